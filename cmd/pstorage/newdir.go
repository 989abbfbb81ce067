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
	flag    string   // that named it
	created []string // by us, outermost first: removed again by undo
	held    *os.File // the directory, locked, from make to release
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
	d := &newDir{path: path, flag: flag}
	return d, d.checkEmpty()
}

// checkEmpty says what is in the directory, if it is there.
func (d *newDir) checkEmpty() error {
	entries, err := os.ReadDir(d.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return cli.Fail("look at "+d.path, cli.Plain(err), "choose another directory with "+d.flag)
	}
	for _, entry := range entries {
		if entry.Name() != "lost+found" {
			return cli.Failf("use directory "+d.path,
				fmt.Sprintf("it isn't empty (it has %q)", entry.Name()),
				"choose an empty or new one with "+d.flag)
		}
	}
	return nil
}

// refuseOwnMount says that path is on a mount of pstorage: a daemon there would wait for itself.
func refuseOwnMount(path, flag string) error {
	mounts, err := cli.Mounts()
	if err != nil {
		return err
	}
	if path, err = cli.Follow(mounts, path); err != nil {
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

// make creates the directory and its parents, mode 0700 for itself, and keeps other commands out of
// it until release. Only when it has returned nil is what is in the directory this command's, to be
// taken back by undo.
func (d *newDir) make() error {
	err := d.create()
	if err == nil {
		err = d.hold()
	}
	if err != nil {
		d.removeCreated()
	}
	return err
}

func (d *newDir) create() error {
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
			return cli.Fail("make directory "+missing[i], cli.Plain(err), advice(err))
		}
		d.created = append(d.created, missing[i])
	}
	return nil
}

// hold locks the directory and looks again whether it is empty. Time has passed since checkNewDir,
// as somebody had to type a password: a server that another command made here meanwhile must not be
// taken for ours.
func (d *newDir) hold() error {
	f, err := os.Open(d.path)
	if err != nil {
		return cli.Fail("look at "+d.path, cli.Plain(err), "choose another directory with "+d.flag)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		err = cli.Failf("use directory "+d.path, "another command is at work in it",
			"choose another one with "+d.flag)
	case err != nil:
		err = cli.Fail("lock "+d.path, err, "")
	default:
		err = d.checkEmpty()
	}
	if err != nil {
		f.Close()
		return err
	}
	d.held = f
	return nil
}

// release lets other commands in.
func (d *newDir) release() {
	if d.held != nil {
		d.held.Close()
		d.held = nil
	}
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
