package main

/*
#include "glue.h"
*/
import "C"

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
)

// maxLength bounds the buffer of one operation, in bytes.
const maxLength = 1 << 30

// request is an operation of C under way.
type request struct {
	op     client.Op
	c      *C.ps_op
	file   *file
	waiter chan struct{} // not nil: somebody waits for this one
	next   *request      // free list
}

// take gets a request out of the free list.
func (n *conn) take() *request {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.live++
	r := n.free
	if r == nil {
		r = &request{}
		r.op.Done = func(*client.Op) { r.end() }
		return r
	}
	n.free, r.next = r.next, nil
	return r
}

func (n *conn) put(r *request) {
	r.c, r.file, r.waiter = nil, nil, nil
	r.op.File, r.op.Buf, r.op.Err = nil, nil, nil
	n.mu.Lock()
	defer n.mu.Unlock()
	n.live--
	r.next, n.free = n.free, r
}

var errFields = dataplane.E("operation", dataplane.Invalid, errors.New("a field makes no sense: "+
	"kind, flags, a buffer of NULL, or more than 1 GiB"))

// fill makes r do what o says.
func (r *request) fill(f *file, o *C.ps_op) error {
	op := &r.op
	length := uint64(o.length)
	op.FUA, op.Buf, op.Length, op.Offset = false, nil, 0, int64(o.offset)
	switch o.kind {
	case C.PS_READ, C.PS_WRITE:
		if length > maxLength || o.buf == nil && length > 0 {
			return errFields
		}
		op.Buf = unsafe.Slice((*byte)(o.buf), length)
		if op.Kind = client.Read; o.kind == C.PS_WRITE {
			op.Kind, op.FUA = client.Write, o.flags&C.PS_FUA != 0
		}
	case C.PS_DISCARD:
		op.Kind, op.Length = client.Zero, int64(length)
	case C.PS_FLUSH:
		op.Kind, op.Offset = client.Flush, 0
	default:
		return errFields
	}
	if o.flags&^C.PS_FUA != 0 || int64(o.offset) < 0 || int64(length) < 0 {
		return errFields
	}
	r.c, r.file, op.File = o, f, f.file
	return nil
}

var errDied = dataplane.E("", dataplane.Closed, errors.New("the client's event loop ended"))

// start hands o to the client.
func (f *file) start(o *C.ps_op, waiter chan struct{}) error {
	select {
	case <-f.conn.client.Loop().Done():
		return errDied
	default:
	}
	r := f.conn.take()
	if err := r.fill(f, o); err != nil {
		f.conn.put(r)
		return err
	}
	r.waiter = waiter
	f.flying.Add(1)
	f.conn.client.Do(&r.op)
	return nil
}

// end is called on the client's thread.
func (r *request) end() {
	o, f, waiter := r.c, r.file, r.waiter
	polled := waiter == nil && o.done == nil
	switch {
	case r.op.Err != nil:
		o.result = -C.int64_t(dataplane.KindOf(r.op.Err).Errno())
	case r.op.Kind == client.Zero, r.op.Kind == client.Flush:
		o.result = 0
	default:
		o.result = C.int64_t(r.op.N)
	}
	if polled {
		f.conn.ended.left.Add(1) // before put, so that ps_close finds one or the other
	}
	f.conn.put(r)
	switch {
	case waiter != nil:
		f.flying.Add(-1)
		waiter <- struct{}{}
	case polled:
		f.flying.Add(-1)
		f.conn.ended.add(o)
	default:
		f.telling.Lock()
		f.flying.Add(-1)
		C.psCallDone(o)
		f.telling.Unlock()
	}
}

//export psSubmit
func psSubmit(h C.uintptr_t, o *C.ps_op) C.int {
	f, ok := lookUp[*file](h)
	if !ok || o == nil {
		return fail("operation", errHandle)
	}
	if err := f.start(o, nil); err != nil {
		return fail("operation", err)
	}
	return 0
}

var waiters = sync.Pool{New: func() any { return make(chan struct{}, 1) }}

//export psWait
func psWait(h C.uintptr_t, o *C.ps_op) C.int64_t {
	f, ok := lookUp[*file](h)
	if !ok {
		return C.int64_t(fail("operation", errHandle))
	}
	done := waiters.Get().(chan struct{})
	if err := f.start(o, done); err != nil {
		return C.int64_t(fail("operation", err))
	}
	select {
	case <-done:
	case <-f.conn.client.Loop().Done(): // it died: whoever still holds o and its buffer can't say so
		return C.int64_t(fail("operation", errDied))
	}
	waiters.Put(done)
	if o.result < 0 {
		fail("operation on "+f.file.Name(), unix.Errno(-o.result))
	}
	return o.result
}

// endList has the operations that ended and wait for ps_poll, oldest first.
type endList struct {
	left atomic.Int64 // operations that ended and weren't handed out, those on their way to ops too

	mu   sync.Mutex
	ops  []*C.ps_op
	fd   int           // an eventfd, readable while ops isn't empty
	more chan struct{} // capacity 1: there may be something
}

func (l *endList) init() (err error) {
	l.more = make(chan struct{}, 1)
	l.fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	return err
}

func (l *endList) close() { _ = unix.Close(l.fd) }

func (l *endList) add(o *C.ps_op) {
	l.mu.Lock()
	l.ops = append(l.ops, o)
	first := len(l.ops) == 1
	if first {
		one := [8]byte{1}
		_, _ = unix.Write(l.fd, one[:]) // only fails when it is readable anyway
	}
	l.mu.Unlock()
	if first {
		l.wake()
	}
}

func (l *endList) wake() {
	select {
	case l.more <- struct{}{}:
	default:
	}
}

// take moves operations to out.
func (l *endList) take(out []*C.ps_op) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := copy(out, l.ops)
	l.left.Add(-int64(n))
	rest := copy(l.ops, l.ops[n:])
	clear(l.ops[rest:])
	l.ops = l.ops[:rest]
	switch {
	case rest > 0:
		l.wake() // somebody else may wait
	case n > 0:
		var count [8]byte
		_, _ = unix.Read(l.fd, count[:])
	}
	return n
}

//export psPoll
func psPoll(h C.uintptr_t, ops **C.ps_op, most, timeoutMs C.int) C.int {
	n, ok := lookUp[*conn](h)
	if !ok || most < 0 || ops == nil && most > 0 {
		return fail("poll", errHandle)
	}
	out := unsafe.Slice(ops, int(most))
	var over <-chan time.Time
	if timeoutMs > 0 {
		t := time.NewTimer(time.Duration(timeoutMs) * time.Millisecond)
		defer t.Stop()
		over = t.C
	}
	for {
		got := n.ended.take(out)
		if got > 0 || timeoutMs == 0 || most == 0 {
			return C.int(got)
		}
		select {
		case <-n.ended.more:
		case <-over:
			return 0
		case <-n.client.Loop().Done():
			if got := n.ended.take(out); got > 0 {
				return C.int(got)
			}
			return fail("poll", errDied)
		}
	}
}

//export psPollFD
func psPollFD(h C.uintptr_t) C.int {
	n, ok := lookUp[*conn](h)
	if !ok {
		return fail("poll", errHandle)
	}
	return C.int(n.ended.fd)
}
