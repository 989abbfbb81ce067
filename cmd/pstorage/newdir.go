package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"pstorage/cmd/cli"
	"pstorage/dataplane/cluster"
)

// newDir is a directory that a command fills, so that it can take back what it did.
type newDir struct {
	path    string   // absolute
	created []string // by us, outermost first: removed again by undo
}

// checkNewDir says whether dir can become a daemon's directory: it doesn't exist, or is empty. It
// changes nothing. flag is the option that names the directory, for the advice.
func checkNewDir(dir, flag string) (*newDir, error) {
	if dir == "" {
		return nil, cli.Usage("which directory? name it with %s DIR", flag)
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, cli.Fail("find directory "+dir, err, "")
	}
	if err := cluster.CheckDir(path); err != nil {
		return nil, cli.Fail("", err, "choose another one with "+flag)
	}
	if err := refuseOwnMount(path, flag); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &newDir{path: path}, nil
	case err != nil:
		return nil, cli.Fail("look at "+path, cli.Plain(err), "choose another directory with "+flag)
	}
	for _, entry := range entries {
		if entry.Name() != "lost+found" {
			return nil, cli.Failf("use directory "+path,
				fmt.Sprintf("it isn't empty (it has %q)", entry.Name()),
				"choose an empty or new one with "+flag)
		}
	}
	return &newDir{path: path}, nil
}

// refuseOwnMount says that path is on a mount of pstorage: a daemon there would wait for itself.
func refuseOwnMount(path, flag string) error {
	mounts, err := cli.Mounts()
	if err != nil {
		return err
	}
	on := onMount(mounts, path)
	if on == nil {
		return nil
	}
	var of, at unix.Statfs_t // another file system may be mounted below the mount
	for dir := path; ; dir = filepath.Dir(dir) {
		err := unix.Statfs(dir, &at)
		if err == nil || dir == on.Mountpoint || !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	if unix.Statfs(on.Mountpoint, &of) == nil && at.Fsid != of.Fsid {
		return nil
	}
	return cli.Failf("use directory "+path, "it is in the cluster itself, mounted on "+on.Mountpoint,
		"choose one on a disk of this node with "+flag)
}

// make creates the directory and its parents, mode 0700 for itself.
func (d *newDir) make() error {
	var missing []string
	for at := d.path; ; at = filepath.Dir(at) {
		if _, err := os.Lstat(at); err == nil || at == filepath.Dir(at) {
			break
		}
		missing = append(missing, at)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		mode := fs.FileMode(0o755)
		if i == 0 {
			mode = 0o700
		}
		if err := os.Mkdir(missing[i], mode); err != nil {
			d.removeCreated()
			return cli.Fail("make directory "+missing[i], cli.Plain(err), advice(err))
		}
		d.created = append(d.created, missing[i])
	}
	return nil
}

// undo removes what make created, with what was put in it. A directory that was there before
// loses what is in it now: it was empty.
func (d *newDir) undo() {
	if entries, err := os.ReadDir(d.path); err == nil {
		for _, entry := range entries {
			if entry.Name() != "lost+found" {
				os.RemoveAll(filepath.Join(d.path, entry.Name()))
			}
		}
	}
	d.removeCreated()
}

// removeCreated removes the directories that make created, if there is nothing in them: what is
// there may be another process's.
func (d *newDir) removeCreated() {
	for i := len(d.created) - 1; i >= 0; i-- {
		os.Remove(d.created[i])
	}
	d.created = nil
}
