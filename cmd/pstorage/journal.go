package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"pstorage/cmd/cli"
	"pstorage/dataplane/cluster"
)

// deviceHead is how much of a block device must be zeros before it may become a journal: all
// known file systems, partition tables and volume managers leave their marks in it.
const deviceHead = 1 << 20

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
		return path, cli.Fail("use device "+path+" as journal", emptyDevice(path),
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

// emptyDevice returns an error if a block device is in use or has something on it.
func emptyDevice(path string) error {
	// O_EXCL of a block device fails while it is mounted, or part of a volume.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_EXCL, 0)
	if errors.Is(err, syscall.EBUSY) {
		return errors.New("it is in use")
	}
	if err != nil {
		return cli.Plain(err)
	}
	defer f.Close()
	head := make([]byte, deviceHead)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return cli.Plain(err)
	}
	if len(bytes.Trim(head[:n], "\x00")) > 0 {
		return errors.New("it isn't empty")
	}
	return nil
}
