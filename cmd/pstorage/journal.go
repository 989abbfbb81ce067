package main

import (
	"errors"
	"os"
	"path/filepath"

	"pstorage/chunk"
	"pstorage/cmd/cli"
	"pstorage/dataplane/cluster"
)

// journalPath returns where the journal goes: empty for "in the directory".
func journalPath(conf *cluster.Conf, dir, given string) (string, error) {
	if given == "" {
		return "", nil
	}
	path, err := filepath.Abs(given)
	if err != nil {
		return "", cli.Fail("find journal "+given, err, "")
	}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		path = filepath.Join(path, conf.Name()+"-"+filepath.Base(dir)+".journal")
		if info, err = os.Stat(path); err == nil { // /disk1/cs and /disk2/cs share an SSD
			path = besides(path)
			info, err = os.Stat(path)
		}
	}
	what := "make the journal " + path
	switch {
	case err == nil && info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0:
		return path, cli.Fail("use device "+path+" as journal",
			cli.Plain(chunk.CheckDevice(path)),
			"if nothing on it is needed, empty it: blkdiscard -z "+path)
	case err == nil:
		return "", cli.Failf(what, "there is "+kindOf(info.Mode())+" already", "choose another path "+
			"with -j: a new file, a directory for it, or an empty block device")
	case !errors.Is(err, os.ErrNotExist):
		return "", cli.Fail(what, cli.Plain(err), "choose another path with -j")
	}
	if parent, err := os.Stat(filepath.Dir(path)); err != nil || !parent.IsDir() {
		return "", cli.Failf(what, "there is no directory "+filepath.Dir(path),
			"make it, or choose another path with -j")
	}
	return path, nil
}

// kindOf says in words what a file is.
func kindOf(mode os.FileMode) string {
	switch {
	case mode.IsRegular():
		return "a file"
	case mode.IsDir():
		return "a directory"
	case mode&os.ModeCharDevice != 0:
		return "a character device"
	case mode&os.ModeDevice != 0:
		return "a block device"
	case mode&os.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&os.ModeSocket != 0:
		return "a socket"
	}
	return "something that is neither a file nor a directory"
}
