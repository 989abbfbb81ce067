package fuse

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// aioWrite writes by libaio's system calls.
func aioWrite(t *testing.T, fd int, p []byte, off int64) error {
	t.Helper()
	var ctx uintptr
	if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, 1, uintptr(unsafe.Pointer(&ctx)), 0); e != 0 {
		t.Skip("io_setup: ", e)
	}
	defer unix.Syscall(unix.SYS_IO_DESTROY, ctx, 0, 0)
	iocb := &struct { // struct iocb
		data           uint64
		key, rwFlags   uint32
		opcode         uint16
		prio           int16
		fd             uint32
		buf            *byte
		size           uint64
		off            int64
		_              uint64
		flags, eventFd uint32
	}{opcode: 1, fd: uint32(fd), buf: &p[0], size: uint64(len(p)), off: off} // IOCB_CMD_PWRITE
	_, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, ctx, 1, uintptr(unsafe.Pointer(&iocb)))
	if e != 0 {
		return e
	}
	var event struct {
		data, obj uint64
		res, res2 int64
	}
	_, _, e = unix.Syscall6(unix.SYS_IO_GETEVENTS, ctx, 1, 1, uintptr(unsafe.Pointer(&event)), 0, 0)
	if e != 0 {
		t.Fatal("io_getevents: ", e)
	}
	if event.res < 0 {
		return syscall.Errno(-event.res)
	}
	return nil
}

// The kernel cuts a file back after an aio write that would have made it longer and failed. That
// doesn't cut off what another host has appended.
func TestFailedWriteCutsNothing(t *testing.T) { overBoth(t, "", testFailedWriteCutsNothing) }

func testFailedWriteCutsNothing(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	must(t, os.WriteFile(name, aligned(4096), 0600))
	size := func() int64 {
		t.Helper()
		var st unix.Statx_t // as we know it, not as the kernel does
		must(t, unix.Statx(unix.AT_FDCWD, name, unix.AT_STATX_FORCE_SYNC, unix.STATX_SIZE, &st))
		return int64(st.Size)
	}
	for _, attribute := range []string{"user.busy", "user.eio"} {
		for _, pieces := range []int{1, 3} { // WRITEs that the kernel makes of one write
			before := size()
			fd, err := unix.Open(name, unix.O_RDWR|unix.O_DIRECT, 0)
			must(t, err)
			must(t, unix.Setxattr(name, attribute, nil, 0))
			must(t, unix.Setxattr(name, appendAttribute, aligned(8192), 0))
			p := aligned((pieces-1)*maxWrite + 4096)
			for i := range 3 {
				if err := aioWrite(t, fd, p, before); err == nil {
					t.Errorf("%s: write %d succeeded", attribute, i)
				}
			}
			must(t, unix.Removexattr(name, attribute))
			if got := size(); got != before+8192 {
				t.Errorf("%s, %d pieces: the file has %d bytes after the write failed, want %d", attribute,
					pieces, got, before+8192)
			}
			must(t, unix.Ftruncate(fd, before+12288))
			if got := size(); got != before+12288 {
				t.Errorf("%s, %d pieces: %d bytes after ftruncate to %d", attribute, pieces, got,
					before+12288)
			}
			must(t, unix.Close(fd))
		}
	}
}

// TestRefusedUndo: which truncations by a handle are refused after a WRITE by it.
func TestRefusedUndo(t *testing.T) {
	const busy, eio = fuse.Status(syscall.EBUSY), fuse.EIO
	for _, c := range []struct {
		name   string
		flags  uint32 // of the open
		status fuse.Status
		then   func(h *handle)
		want   fuse.Status
	}{
		{"O_DIRECT", unix.O_DIRECT, eio, nil, eio},
		{"O_DIRECT, busy", unix.O_DIRECT, busy, nil, busy},
		{"loop device, busy", 0, busy, nil, busy},
		{"ordinary write", 0, eio, nil, fuse.OK},
		{"FSYNC", unix.O_DIRECT, eio, func(h *handle) { h.synced() }, fuse.OK},
		{"a WRITE beside it", unix.O_DIRECT, eio, func(h *handle) { h.writes(0) }, eio},
		{"a WRITE long after", unix.O_DIRECT, eio, func(h *handle) {
			h.failedAt = h.failedAt.Add(-2 * undoTime)
			h.writes(0)
		}, fuse.OK},
		{"a mapping's WRITE long after", unix.O_DIRECT, eio, func(h *handle) {
			h.failedAt = h.failedAt.Add(-2 * undoTime)
			h.writes(fuse.WRITE_CACHE)
		}, eio},
	} {
		h := &handle{}
		h.writeFailed(c.status, c.flags)
		if c.then != nil {
			c.then(h)
		}
		if got := h.refuseUndo(); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
		if got := h.refuseUndo(); got != fuse.OK {
			t.Errorf("%s: refused twice, %v", c.name, got)
		}
	}
}
