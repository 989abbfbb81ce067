package fuse

import (
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// This file keeps the kernel from undoing what another host did.
//
// When a write with O_DIRECT by libaio or io_uring fails that would have made the file longer, the
// kernel itself cuts the file back (fuse_direct_IO in fs/fuse/file.c): a SETATTR by the handle, to
// the size that it was told last. Nothing is to be undone here, since a write that fails doesn't
// make the file longer than the parts of it that were done; and another host may have made it
// longer since the kernel was told. When the write was refused because that host has the lease,
// which it then gives back, the SETATTR would cut off what it was told is safe.
//
// A user's ftruncate looks the same. So a WRITE that fails marks its handle, and the next SETATTR
// of a size by the handle takes the mark away and gets the WRITE's error, which the kernel ignores.
// At worst that is a user's ftruncate, refused once; it is better than data lost.
//
// Which failures mark: those of any O_DIRECT write, because whether it would have made the file
// longer is for the kernel's idea of the size, which isn't known here. A program without O_DIRECT
// (it may undo a failed append by ftruncate) is let alone, unless another host has the lease: a
// loop device may do direct I/O on a file that was opened without O_DIRECT.
//
// One mark is enough however many WRITEs failed: the kernel holds the inode's lock exclusively from
// the first WRITE of such a write to the end of its SETATTR, so the next such write begins after
// that. The lock is also why an FSYNC, which needs it, takes away the mark of a write that brought
// no SETATTR. A WRITE that is done does not, since the kernel may have split one write into several
// and sends them side by side, nor does a FLUSH, which comes without the lock. But a WRITE that
// comes long after the failure isn't a part of the write that failed.

// undoTime is after how long a further WRITE takes away the mark of one that failed: more than one
// can wait in the kernel behind others.
const undoTime = time.Minute

// writeFailed is told of the answer to a WRITE, on the loop's thread.
func (h *handle) writeFailed(status fuse.Status, openFlags uint32) {
	if openFlags&unix.O_DIRECT == 0 && status != fuse.Status(syscall.EBUSY) {
		return
	}
	h.failedAt = time.Now()
	h.failed.Store(int32(status))
}

// writes is told of a WRITE that begins, on the loop's thread.
func (h *handle) writes(flags uint32) {
	// What the kernel writes back of a mapping comes without the lock.
	if h.failed.Load() != 0 && flags&fuse.WRITE_CACHE == 0 && time.Since(h.failedAt) > undoTime {
		h.failed.Store(0)
	}
}

// synced is told of an FSYNC that begins.
func (h *handle) synced() { h.failed.Store(0) }

// refuseUndo says what the kernel gets for a SETATTR of a size if that may be its own. The next one
// is the user's.
func (h *handle) refuseUndo() fuse.Status { return fuse.Status(h.failed.Swap(0)) }
