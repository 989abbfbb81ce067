package cluster

import (
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
)

// writeAtomic replaces the file name in the cluster's directory, which it makes if necessary.
// After it returned nil the new content survives a power cut; otherwise the old one is there.
func (c *Conf) writeAtomic(name string, data []byte, mode fs.FileMode) error {
	path := filepath.Join(c.path, name)
	fail := func(err error) error { return dataplane.E("write "+path, dataplane.IOError, err) }
	if err := os.MkdirAll(c.path, 0o755); err != nil {
		return fail(err)
	}
	// CreateTemp makes the file 0600, so a key is never readable by others, not even for a moment.
	f, err := os.CreateTemp(c.path, "."+name+".*")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(f.Name()) // after the rename there is nothing to remove
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(c.path)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// locked runs f while no other process changes the cluster's lists. The lock is on the directory
// itself, so it leaves no file behind and ends with its holder.
func (c *Conf) locked(f func() error) error {
	if err := os.MkdirAll(c.path, 0o755); err != nil {
		return dataplane.E("make "+c.path, dataplane.IOError, err)
	}
	dir, err := os.Open(c.path)
	if err != nil {
		return dataplane.E("lock "+c.path, dataplane.IOError, err)
	}
	defer dir.Close()
	for {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return dataplane.E("lock "+c.path, dataplane.IOError, err)
	}
	return f()
}

const (
	lockEvery = 10 * time.Millisecond
	lockSays  = 2 * time.Second
)

// LockNode keeps other processes that lock the node, for whichever of its clusters, from choosing
// what only one may have: an address, a name, a directory. waiting is called if that takes long.
// The lock ends with unlock, which may be called more than once, or with the process. Lists can be
// changed under it. It isn't for long work.
func (c *Conf) LockNode(waiting func()) (unlock func(), err error) {
	path := filepath.Dir(c.path) // that of all clusters
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, dataplane.E("make "+path, dataplane.IOError, err)
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, dataplane.E("lock "+path, dataplane.IOError, err)
	}
	for began := time.Now(); ; time.Sleep(lockEvery) {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { dir.Close() }, nil
		case err != unix.EWOULDBLOCK && err != unix.EINTR:
			dir.Close()
			return nil, dataplane.E("lock "+path, dataplane.IOError, err)
		case waiting != nil && time.Since(began) > lockSays:
			waiting()
			waiting = nil
		}
	}
}
