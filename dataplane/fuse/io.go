package fuse

import (
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pstorage/dataplane/client"
)

// This file is operations of the client's engine on behalf of go-fuse's goroutines: what isn't as
// frequent as READ and WRITE, see call.go.

// request is one of them on its way.
type request struct {
	op   client.Op
	done chan struct{}
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
	r.op.Length, r.op.Right = 0, 0
	return r
}

// run starts r, waits for it and frees it.
func (fs *fileSystem) run(r *request, cancel <-chan struct{}) fuse.Status {
	fs.b.Do(&r.op)
	select {
	case <-r.done:
	case <-fs.b.Gone():
		return fuse.Status(syscall.ESHUTDOWN) // r is left to whoever may still hold it
	case <-cancel:
		if !fs.interrupted(r) {
			return fuse.Status(syscall.ESHUTDOWN)
		}
	}
	status := fuse.OK
	if r.op.Err != nil {
		status = fs.ioStatus(&r.op, r.once)
	}
	r.op.File, r.op.Err = nil, nil
	if !r.once {
		requests.Put(r)
	}
	return status
}

// interrupted goes on waiting for r, as call.interrupt does. It says false if r never ends.
func (fs *fileSystem) interrupted(r *request) bool {
	t := time.NewTimer(fs.o.Grace)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			r.once = true
			fs.b.Cancel(&r.op)
		case <-fs.b.Gone():
			return false
		case <-r.done:
			return true
		}
	}
}
