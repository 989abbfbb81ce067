package fuse

import (
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
)

// This file is data: the kernel's READ and WRITE requests.

// request is one of them on its way, and the reply to a READ.
type request struct {
	op   client.Op
	done chan struct{}
	data []byte
	once bool // not for the pool: a cancellation of op may still be on its way
}

var requests = sync.Pool{New: func() any {
	r := &request{done: make(chan struct{}, 1)}
	r.op.Done = func(*client.Op) { r.done <- struct{}{} }
	return r
}}

func newRequest(kind client.OpKind, f *client.File, off int64) *request {
	r := requests.Get().(*request)
	r.op.Kind, r.op.File, r.op.Offset = kind, f, off
	r.op.Length, r.op.FUA, r.op.Right = 0, false, 0
	return r
}

func (r *request) free() {
	r.op.File, r.op.Buf, r.op.Err, r.data = nil, nil, nil, nil
	if !r.once {
		requests.Put(r)
	}
}

// Bytes, Size and Done implement fuse.ReadResult.
func (r *request) Bytes([]byte) ([]byte, fuse.Status) { return r.data, fuse.OK }

// Size implements fuse.ReadResult.
func (r *request) Size() int { return len(r.data) }

// Done implements fuse.ReadResult: the reply was sent.
func (r *request) Done() { r.free() }

// Read implements fuse.RawFileSystem.
func (fs *fileSystem) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult,
	fuse.Status) {
	h := fs.handle(in.Fh)
	switch {
	case h == nil:
		return nil, fuse.EBADF
	case in.Offset > client.MaxFileSize-maxWrite:
		return fuse.ReadResultData(nil), fuse.OK
	}
	r := newRequest(client.Read, h.file, int64(in.Offset))
	r.op.Buf = buf[:min(len(buf), int(in.Size))]
	if status := fs.wait(r, cancel); status != fuse.OK {
		return nil, status
	}
	r.data = r.op.Buf[:r.op.N]
	return r, fuse.OK
}

// Write implements fuse.RawFileSystem.
func (fs *fileSystem) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32,
	fuse.Status) {
	h := fs.handle(in.Fh)
	switch {
	case h == nil || !h.write:
		return 0, fuse.EBADF
	case in.Offset > client.MaxFileSize-maxWrite:
		return 0, fuse.Status(syscall.EFBIG)
	}
	r := newRequest(client.Write, h.file, int64(in.Offset))
	r.op.Buf, r.op.Right = data, h.right
	n, status := fs.run(r, cancel)
	if status == fuse.OK {
		h.node.wrote.Store(time.Now().UnixNano())
	}
	return uint32(n), status
}

// run starts r, waits for it and frees it.
func (fs *fileSystem) run(r *request, cancel <-chan struct{}) (int, fuse.Status) {
	if status := fs.wait(r, cancel); status != fuse.OK {
		return 0, status
	}
	n := r.op.N
	r.free()
	return n, fuse.OK
}

// wait starts r and waits for it. If that isn't answered OK, r is gone.
func (fs *fileSystem) wait(r *request, cancel <-chan struct{}) fuse.Status {
	fs.b.Do(&r.op)
	select {
	case <-r.done:
	case <-cancel:
		return fs.interrupted(r)
	case <-fs.b.Gone():
		return fuse.Status(syscall.ESHUTDOWN) // r is left to whoever may still hold it
	}
	return fs.outcome(r)
}

// outcome is the status of r, which is done; r is freed if it failed.
func (fs *fileSystem) outcome(r *request) fuse.Status {
	err := r.op.Err
	if err == nil {
		return fuse.OK
	}
	var status fuse.Status
	switch kind := dataplane.KindOf(err); {
	case kind == dataplane.NotFound: // removed by another host
		status = fuse.Status(syscall.ESTALE)
	case kind == dataplane.Closed && r.once:
		status = fuse.EINTR
	default:
		status = fs.status(r.op.Kind.String(), err)
	}
	r.free()
	return status
}

// interrupted goes on waiting for r: a signal alone is no reason to fail an I/O that is about to
// succeed. After the grace it is canceled.
func (fs *fileSystem) interrupted(r *request) fuse.Status {
	t := time.NewTimer(fs.o.Grace)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			r.once = true
			fs.b.Cancel(&r.op)
		case <-fs.b.Gone():
			return fuse.Status(syscall.ESHUTDOWN)
		case <-r.done:
			return fs.outcome(r)
		}
	}
}
