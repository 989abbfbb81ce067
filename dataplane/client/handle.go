package client

import (
	"context"
	"errors"
	"io"
	"sync"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// This file is a File for ordinary goroutines, which wait. A front end with many requests in
// flight uses Client.Do.

// waiter is an op and somebody who waits for it.
type waiter struct {
	op   Op
	done chan struct{}
}

var waiters = sync.Pool{New: func() any {
	w := &waiter{done: make(chan struct{}, 1)}
	w.op.Done = func(*Op) { w.done <- struct{}{} }
	return w
}}

// do fills an op, waits for it and says what came of it.
func (f *File) do(kind OpKind, off int64, buf []byte, length int64, fua bool) (int, error) {
	if f.client == nil {
		panic("client: blocking call on a file of a bare engine")
	}
	w := waiters.Get().(*waiter)
	op := &w.op
	op.Kind, op.File, op.Offset, op.Buf, op.Length, op.FUA = kind, f, off, buf, length, fua
	f.client.Do(op)
	select {
	case <-w.done:
	case <-f.client.loop.Done():
		return 0, errEngineClosed // the op and buf are left to whoever may still hold them
	}
	n, err := op.N, op.Err
	op.File, op.Buf, op.Err = nil, nil, nil
	waiters.Put(w)
	return n, err
}

// zero is Zero by the right of an open. It is called off when ctx ends.
func (f *File) zero(ctx context.Context, right Right, off, length int64) error {
	c, done := f.client, make(chan struct{})
	op := &Op{Kind: Zero, File: f, Right: right, Offset: off, Length: length,
		Done: func(*Op) { close(done) }}
	c.Do(op)
	ended := ctx.Done()
	for {
		select {
		case <-done:
			if dataplane.KindOf(op.Err) == dataplane.Closed && ctx.Err() != nil {
				return dataplane.E(f.what(Zero), dataplane.Closed, ctx.Err())
			}
			return op.Err
		case <-c.loop.Done():
			return errEngineClosed
		case <-ended:
			c.Cancel(op)
			ended = nil
		}
	}
}

// ReadAt reads len(p) bytes at off; fewer, with io.EOF, at the end of the file.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.do(Read, off, p, 0, false)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// WriteAt writes p at off. When it returns without an error, the data is on stable storage on all
// members (files with write-ack=memory: after Flush).
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	return f.do(Write, off, p, 0, false)
}

// Zero makes length bytes at off read as zeros. The file doesn't grow.
func (f *File) Zero(off, length int64) error {
	_, err := f.do(Zero, off, nil, length, false)
	return err
}

// Flush makes all acknowledged writes durable.
func (f *File) Flush() error {
	_, err := f.do(Flush, 0, nil, 0, false)
	return err
}

// Truncate sets the size of the file. What lies behind the new end is gone, and reads as zeros if
// the file grows again. Writes that are under way at the same time may end up before or after it.
func (f *File) Truncate(ctx context.Context, size uint64) (*control.Attr, error) {
	return f.TruncateBy(ctx, 0, size)
}

// TruncateBy is Truncate by the right of an open.
func (f *File) TruncateBy(ctx context.Context, right Right, size uint64) (*control.Attr, error) {
	c := f.client
	if size > MaxFileSize {
		return nil, dataplane.E("truncate", dataplane.TooLarge, errRange)
	}
	if err := f.zero(ctx, right, 0, 0); err != nil { // which waits for the right to write
		return nil, err
	}
	now, err := c.GetAttr(ctx, f.id)
	if err != nil {
		return nil, err
	}
	// The tail of the last chunk first: if this client dies in between, the truncation hasn't
	// happened, instead of old data coming back when the file grows.
	chunkEnd := (size + dataplane.ChunkSize - 1) / dataplane.ChunkSize * dataplane.ChunkSize
	if end := min(now.Size, chunkEnd); size < end {
		if err := f.zero(ctx, right, int64(size), int64(end-size)); err != nil {
			return nil, err
		}
	}
	// The question may be on its way for long, and another client write the file by then.
	token, held := uint64(0), true
	if err := c.onLoop(func() {
		token = f.lease.token
		held = f.eng.leases.meta == nil ||
			f.lease.status == leaseHeld && (right == 0 || right == f.lease.right+1)
	}); err != nil {
		return nil, err
	}
	if !held {
		return nil, f.lostError(Zero)
	}
	a, err := call[control.Attr](ctx, c, control.OpSetAttr,
		&control.SetAttrReq{File: f.id, Mask: control.SetSize, Size: size, Token: token})
	if err != nil {
		if dataplane.KindOf(err) != dataplane.Fenced {
			c.loop.Post(f.maybeCut)
		}
		return nil, err
	}
	return a, c.onLoop(func() { f.setSize(size) })
}

// Grow makes the file at least size bytes long.
func (f *File) Grow(ctx context.Context, size uint64) error {
	if size > MaxFileSize {
		return dataplane.E("grow", dataplane.TooLarge, errRange)
	}
	var token uint64
	now := func() { token = f.lease.token }
	if err := f.client.onLoop(now); err != nil {
		return err
	}
	for {
		by := token
		a, err := call[control.Attr](ctx, f.client, control.OpGrow,
			&control.GrowReq{File: f.id, Size: size, Token: by})
		if err == nil {
			return f.client.onLoop(func() { f.grown(a) })
		}
		if dataplane.KindOf(err) != dataplane.Fenced || f.client.onLoop(now) != nil || token == by {
			return err
		} // otherwise there is a newer grant of the right
	}
}

// Refresh asks for the file's attributes; Size is up to date then.
func (f *File) Refresh(ctx context.Context) (*control.Attr, error) {
	var seq uint64
	if err := f.client.onLoop(func() { f.eng.seq++; seq = f.eng.seq }); err != nil {
		return nil, err
	}
	a, err := f.client.GetAttr(ctx, f.id)
	if err != nil {
		return nil, err
	}
	err = f.client.onLoop(func() {
		f.learn(a, seq)
		a.Size = f.Size()
	})
	return a, err
}

// Seek returns the first offset at or behind off that has data (or, with hole, has none), in whole
// chunks; the end of the file counts as a hole. Behind the last data: Kind NotFound.
func (f *File) Seek(ctx context.Context, off int64, hole bool) (int64, error) {
	a, err := f.Refresh(ctx)
	if err != nil {
		return 0, err
	}
	size := int64(a.Size)
	if off < 0 || off >= size {
		return 0, dataplane.E("seek", dataplane.NotFound, errBehindEnd)
	}
	last := uint32((size - 1) / dataplane.ChunkSize)
	for i := uint32(off / dataplane.ChunkSize); i <= last; {
		count := min(control.MaxMapRange, last-i+1)
		r, err := call[control.MapReply](ctx, f.client, control.OpGetMap,
			&control.MapReq{File: f.id, First: i, Count: count})
		if err != nil {
			return 0, err
		}
		if at, ok := firstIn(r.Chunks, i, count, hole); ok {
			return min(size, max(off, int64(at)*dataplane.ChunkSize)), nil
		}
		i += count
	}
	if hole {
		return size, nil
	}
	return 0, dataplane.E("seek", dataplane.NotFound, errBehindEnd)
}

var errBehindEnd = errors.New("behind the last data")

// firstIn returns the first of the chunks [first, first+count) that is (with hole: isn't) in have,
// which is ascending.
func firstIn(have []control.ChunkMap, first, count uint32, hole bool) (uint32, bool) {
	if !hole {
		if len(have) == 0 {
			return 0, false
		}
		return have[0].Index, true
	}
	for i := range have {
		if have[i].Index != first+uint32(i) {
			return first + uint32(i), true
		}
	}
	return first + uint32(len(have)), uint32(len(have)) < count
}

// Close ends one open of the file, also if it returns an error. The last one flushes, because
// nobody would know later that there is something to flush.
func (f *File) Close() error {
	c := f.client
	flushed := uint64(0) // after which open
	var lost error
	c.mu.Lock()
	defer c.mu.Unlock()
	// Others may close, or open, write and close, during a flush.
	for f.opens == 1 && flushed != f.opened {
		flushed = f.opened
		c.mu.Unlock()
		if err := f.Flush(); err != nil && dataplane.KindOf(err) != dataplane.Closed {
			c.log.Error("flush of a file that is closed", "file", f.id, "err", err)
			lost = err
		}
		c.mu.Lock()
	}
	if f.opens <= 0 {
		return dataplane.E("close", dataplane.Closed, errors.New("file closed twice"))
	}
	f.opens--
	if f.opens == 0 {
		delete(c.files, f.id)
		c.loop.Post(f.dropLease)
	}
	return lost
}

// onLoop runs fn on the loop's thread and waits for it.
func (c *Client) onLoop(fn func()) error {
	done := make(chan struct{})
	c.loop.Post(func() { fn(); close(done) })
	select {
	case <-done:
		return nil
	case <-c.loop.Done():
		return errEngineClosed
	}
}
