package uring

import (
	"errors"
	"fmt"
	"io/fs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DiskOptions are the choices of OpenDisk. The zero value opens an existing file or device for
// reading and writing.
type DiskOptions struct {
	// Create makes the file (mode Perm, 0: 0600) if it isn't there.
	Create bool
	Perm   fs.FileMode
	// Size extends a shorter file to this many bytes, as a hole. A longer one is left alone.
	Size int64
	// ReadOnly opens for reading.
	ReadOnly bool
	// Lock takes an exclusive lock (flock(2)) of the file, and fails if somebody else has one. It is
	// the lock of the descriptor that the operations go through, so the kernel keeps it until the
	// last of them has ended, also if the process is killed before.
	Lock bool
	// MinAlign, a power of two up to 4096, is the least Align in bytes.
	MinAlign int
	// LowDepth is the most Low operations in flight. 0: 4.
	LowDepth int
}

// OpenDisk opens a file or block device with O_DIRECT. On a file system without O_DIRECT (said in
// the log) the page cache is used; DiskSync and DiskWriteSync are durable all the same. Opening
// blocks the loop for some system calls.
func (l *Loop) OpenDisk(path string, o DiskOptions) (Disk, error) {
	if o.LowDepth == 0 {
		o.LowDepth = 4
	}
	if o.Perm == 0 {
		o.Perm = 0o600
	}
	fd, direct, err := openDirect(path, &o)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	d := &ringDisk{l: l, path: path, o: o}
	if o.Lock {
		if err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
			err = errors.New("another process uses it")
		}
	}
	if err == nil {
		err = d.probe(fd, direct)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if !direct {
		l.log.Warn("this file system has no O_DIRECT; the page cache is used", "path", path)
	}
	d.file = l.addFile(fd)
	l.disks = append(l.disks, d)
	return d, nil
}

func openDirect(path string, o *DiskOptions) (fd int, direct bool, err error) {
	flags := unix.O_RDWR | unix.O_CLOEXEC | unix.O_DIRECT
	if o.ReadOnly {
		flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_DIRECT
	}
	if o.Create {
		flags |= unix.O_CREAT
	}
	fd, err = openRetry(path, flags, uint32(o.Perm.Perm()))
	if errors.Is(err, unix.EINVAL) {
		fd, err = openRetry(path, flags&^unix.O_DIRECT, uint32(o.Perm.Perm()))
		return fd, false, err
	}
	return fd, true, err
}

func openRetry(path string, flags int, perm uint32) (int, error) {
	for {
		fd, err := unix.Open(path, flags, perm)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// probe finds out size and alignment.
func (d *ringDisk) probe(fd int, direct bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		d.device = st.Dev
		if d.size = st.Size; d.size < d.o.Size {
			if err := unix.Ftruncate(fd, d.o.Size); err != nil {
				return fmt.Errorf("extend to %d bytes: %w", d.o.Size, err)
			}
			d.size = d.o.Size
		}
	case unix.S_IFBLK:
		d.device = st.Rdev
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64,
			uintptr(unsafe.Pointer(&d.size)))
		if errno != 0 {
			return fmt.Errorf("ask for the device's size: %w", errno)
		}
		if d.size < d.o.Size {
			return fmt.Errorf("the device has %d bytes, %d are needed", d.size, d.o.Size)
		}
	default:
		return errors.New("neither a file nor a block device")
	}
	need := directAlign(fd, st.Mode&unix.S_IFMT == unix.S_IFBLK)
	if !direct {
		need = 1
	}
	need = max(need, d.o.MinAlign)
	switch {
	case need <= 512:
		d.align = 512
	case need <= BufAlign:
		d.align = BufAlign
	default:
		return fmt.Errorf("it needs an alignment of %d bytes, more than %d", need, BufAlign)
	}
	return nil
}

// directAlign is the alignment that O_DIRECT needs: what the kernel says (Linux 6.1), or the
// device's sector size, or 4096, which is always enough.
func directAlign(fd int, block bool) int {
	var sx unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &sx)
	if err == nil && sx.Mask&unix.STATX_DIOALIGN != 0 && sx.Dio_offset_align > 0 {
		return int(max(sx.Dio_mem_align, sx.Dio_offset_align))
	}
	if block {
		if n, err := unix.IoctlGetInt(fd, unix.BLKSSZGET); err == nil {
			return n
		}
	}
	return BufAlign
}
