package uring

import (
	"errors"
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The life of a disk operation:
//  1. Submit checks it and turns it into a submission entry at once if the queues have room;
//     otherwise, and if it is a Low one, it waits in a queue of the disk (issueQueued).
//  2. issue: one buffer is READ or WRITE, with the _FIXED variant if it lies in the registered
//     pool; several are READV or WRITEV over iovecs outside the Go heap.
//  3. complete: a short transfer is continued by another entry; the end of the file is zeros.
//  4. finish: Done is called.

// iovecs are the buffers of one operation in flight.
type iovecs [MaxDiskBufs]unix.Iovec

// allocateStep is how much DiskAllocate writes at a time, in bytes.
const allocateStep = 1 << 20

type opQueue struct{ first, last *DiskOp }

func (q *opQueue) push(op *DiskOp) {
	op.priv.next = nil
	if q.last == nil {
		q.first = op
	} else {
		q.last.priv.next = op
	}
	q.last = op
}

func (q *opQueue) pop() *DiskOp {
	op := q.first
	if q.first = op.priv.next; q.first == nil {
		q.last = nil
	}
	op.priv.next = nil
	return op
}

// ringDisk is a Disk over the ring.
type ringDisk struct {
	l      *Loop
	path   string
	file   File
	device uint64 // that it is, or is on
	size   int64
	align  int
	o      DiskOptions

	queued, low, failed opQueue
	inFlight, lowFlying int
	failing             bool // deferred to call back failed ones
	noPunch             bool // the file system can't punch holes: zeros are written
}

// Submit implements Disk.
func (d *ringDisk) Submit(op *DiskOp) {
	p := &op.priv
	if p.busy {
		panic(fmt.Sprintf("uring: %s: operation at %d submitted twice", d.path, op.Offset))
	}
	p.d, p.done, p.next, p.busy, op.Err = d, 0, nil, true, nil
	if err := d.check(op); err != nil {
		d.fail(op, err)
		return
	}
	if d.l.state == loopStopping || d.l.state == loopStopped {
		d.fail(op, ErrStopped)
		return
	}
	switch {
	case op.Low:
		d.low.push(op)
	case d.queued.first != nil || d.l.diskOps >= d.l.o.MaxDiskOps || !d.issue(op):
		d.queued.push(op)
	}
}

// check validates op against the contract of DiskOp and sets its size.
func (d *ringDisk) check(op *DiskOp) error {
	size, mask := int64(0), uint64(d.align-1)
	switch op.Kind {
	case DiskRead, DiskWrite, DiskWriteSync:
		if len(op.Bufs) == 0 || len(op.Bufs) > MaxDiskBufs {
			return fmt.Errorf("%s: %d buffers in an operation", d.path, len(op.Bufs))
		}
		for _, b := range op.Bufs {
			if uint64(len(b))&mask != 0 || len(b) == 0 || uint64(addrOf(b))&mask != 0 {
				return fmt.Errorf("%s: buffer of %d bytes at %#x isn't aligned to %d",
					d.path, len(b), addrOf(b), d.align)
			}
			size += int64(len(b))
		}
	case DiskDiscard, DiskAllocate:
		if size = op.Length; size <= 0 || uint64(size)&mask != 0 {
			return fmt.Errorf("%s: length %d isn't a multiple of %d", d.path, size, d.align)
		}
	case DiskSync:
		op.priv.size = 0
		return nil
	default:
		return fmt.Errorf("%s: unknown operation %d", d.path, op.Kind)
	}
	if op.Offset < 0 || uint64(op.Offset)&mask != 0 || op.Offset > 1<<62-size {
		return fmt.Errorf("%s: offset %d isn't a multiple of %d", d.path, op.Offset, d.align)
	}
	op.priv.size = size
	return nil
}

// issueQueued submits what waits, as far as it may. Low operations go only when nothing else
// waits, and fewer of them while others are in flight.
func (d *ringDisk) issueQueued() {
	for d.queued.first != nil {
		if d.l.diskOps >= d.l.o.MaxDiskOps || !d.issue(d.queued.first) {
			return
		}
		d.queued.pop()
	}
	for d.low.first != nil && d.l.diskOps < d.l.o.MaxDiskOps {
		limit := d.o.LowDepth
		if d.inFlight > d.lowFlying {
			limit = max(1, limit/4)
		}
		if d.lowFlying >= limit || !d.issue(d.low.first) {
			return
		}
		d.low.pop()
	}
}

// issue fills a submission entry for what is left of op. It returns false if there is none.
func (d *ringDisk) issue(op *DiskOp) bool {
	s := d.l.sqe()
	if s == nil {
		return false
	}
	p := &op.priv
	switch op.Kind {
	case DiskRead, DiskWrite, DiskWriteSync:
		d.prepTransfer(s, op)
	case DiskSync:
		PrepFdatasync(s, d.file)
	case DiskDiscard:
		if p.punch = !d.noPunch; !p.punch {
			d.prepZeros(s, op)
			break
		}
		PrepFallocate(s, d.file, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
			op.Offset, p.size)
	case DiskAllocate:
		d.prepZeros(s, op)
	}
	if op.Kind != DiskRead {
		d.l.gatherer.writes++
	}
	d.l.start(s, op, 0)
	d.l.diskOps++
	d.inFlight++
	if op.Low {
		d.lowFlying++
	}
	return true
}

func (d *ringDisk) prepTransfer(s *SQE, op *DiskOp) {
	skip := op.priv.done
	off := op.Offset + skip
	flags := uint32(0)
	if op.Kind == DiskWriteSync {
		flags = unix.RWF_DSYNC
	}
	i := 0
	for skip >= int64(len(op.Bufs[i])) {
		skip -= int64(len(op.Bufs[i]))
		i++
	}
	if i == len(op.Bufs)-1 {
		d.prepSingle(s, op, op.Bufs[i][skip:], off, flags)
		return
	}
	if op.priv.iov == nil {
		op.priv.iov = d.l.iovs.get()
	}
	v := op.priv.iov
	n := 0
	fixed := d.l.ring.ops.ops[opReadvFixed] && d.l.ring.ops.ops[opWritevFixed]
	buf := noBuffer
	for _, b := range op.Bufs[i:] {
		b = b[skip:]
		v[n].Base, v[n].Len = &b[0], uint64(len(b))
		if fixed {
			in, ok := d.l.fixedIndex(addrOf(b), len(b))
			fixed = ok && (buf == noBuffer || buf == int(in))
			buf = int(in)
		}
		skip = 0
		n++
	}
	switch {
	case op.Kind == DiskRead && fixed:
		PrepReadvFixed(s, d.file, &v[0], n, off, uint16(buf))
	case op.Kind == DiskRead:
		PrepReadv(s, d.file, &v[0], n, off)
	case fixed:
		PrepWritevFixed(s, d.file, &v[0], n, off, flags, uint16(buf))
	default:
		PrepWritev(s, d.file, &v[0], n, off, flags)
	}
}

// noBuffer is the index of no registered buffer.
const noBuffer = -1

func (d *ringDisk) prepSingle(s *SQE, op *DiskOp, b []byte, off int64, flags uint32) {
	addr, n := addrOf(b), uint32(len(b))
	buf, fixed := d.l.fixedIndex(addr, len(b))
	switch {
	case op.Kind == DiskRead && fixed:
		PrepReadFixed(s, d.file, addr, n, off, buf)
	case op.Kind == DiskRead:
		PrepRead(s, d.file, addr, n, off)
	case fixed:
		PrepWriteFixed(s, d.file, addr, n, off, flags, buf)
	default:
		PrepWrite(s, d.file, addr, n, off, flags)
	}
}

func (d *ringDisk) prepZeros(s *SQE, op *DiskOp) {
	if d.l.zeros == nil {
		d.l.zeros = mustMap(allocateStep)
	}
	p := &op.priv
	n := min(p.size-p.done, allocateStep)
	PrepWrite(s, d.file, addrOf(d.l.zeros), uint32(n), op.Offset+p.done, 0)
}

// fixedIndex tells in which registered buffer n bytes at addr lie, if they do.
func (l *Loop) fixedIndex(addr uintptr, n int) (uint16, bool) {
	if !l.registered {
		return 0, false
	}
	arena := l.pool.arena
	from := uintptr(unsafe.Pointer(unsafe.SliceData(arena)))
	if addr < from || addr+uintptr(n) > from+uintptr(len(arena)) {
		return 0, false
	}
	first, last := (addr-from)/maxRegistered, (addr-from+uintptr(n)-1)/maxRegistered
	return uint16(first), first == last
}

// complete implements completer for an operation of a ringDisk.
func (op *DiskOp) complete(_ uint8, res int32, _ uint32) {
	p := &op.priv
	d := p.d
	d.l.diskOps--
	d.inFlight--
	if op.Low {
		d.lowFlying--
	}
	if res < 0 {
		d.completeError(op, unix.Errno(-res))
		return
	}
	switch op.Kind {
	case DiskSync:
		d.finish(op)
		return
	case DiskDiscard:
		if p.punch {
			d.finish(op)
			return
		}
	case DiskRead:
		// Less than asked at a place that isn't aligned, or nothing: the end of the file.
		p.done += int64(res)
		if p.done < p.size && (res == 0 || p.done&int64(d.align-1) != 0) {
			zeroFrom(op.Bufs, p.done)
			p.done = p.size
		}
		d.goOn(op)
		return
	}
	if res == 0 {
		op.Err = fmt.Errorf("write %s at %d: %w", d.path, op.Offset+p.done, io.ErrShortWrite)
		d.finish(op)
		return
	}
	p.done += int64(res)
	d.goOn(op)
}

// goOn continues an operation that has transferred priv.done bytes, or ends it.
func (d *ringDisk) goOn(op *DiskOp) {
	p := &op.priv
	if p.done > p.size {
		panic(fmt.Sprintf("uring: %s: %d bytes transferred of %d", d.path, p.done, p.size))
	}
	if p.done == p.size {
		d.finish(op)
		return
	}
	d.again(op)
}

// again has an operation submitted once more, from where it is.
func (d *ringDisk) again(op *DiskOp) {
	if d.l.state == loopStopping {
		d.fail(op, ErrStopped)
		return
	}
	if op.Low {
		d.low.push(op)
	} else {
		d.queued.push(op)
	}
}

func (d *ringDisk) completeError(op *DiskOp, errno unix.Errno) {
	switch {
	case errno == unix.EINTR || errno == unix.EAGAIN:
		d.again(op) // a sync has no bytes to go, and was not done all the same
		return
	case op.Kind == DiskDiscard && op.priv.punch &&
		(errno == unix.EOPNOTSUPP || errno == unix.ENOSYS || errno == unix.ENODEV):
		if !d.noPunch {
			d.l.log.Warn("holes can't be punched here; discarding writes zeros", "path", d.path)
		}
		d.noPunch = true
		d.again(op)
		return
	}
	op.Err = fmt.Errorf("%s %s at %d, %d bytes: %w", op.Kind, d.path, op.Offset, op.priv.size, errno)
	d.finish(op)
}

func (d *ringDisk) finish(op *DiskOp) {
	p := &op.priv
	if p.iov != nil {
		*p.iov = iovecs{}
		d.l.iovs.put(p.iov)
		p.iov = nil
	}
	p.busy = false
	op.Done(op)
}

// fail ends op with err outside the current call.
func (d *ringDisk) fail(op *DiskOp, err error) {
	op.Err = err
	d.failed.push(op)
	if !d.failing {
		d.failing = true
		d.l.later(d)
	}
}

func (d *ringDisk) runDeferred() {
	d.failing = false
	q := d.failed
	d.failed = opQueue{}
	for q.first != nil {
		d.finish(q.pop())
	}
}

func (d *ringDisk) failQueued(err error) {
	for _, q := range []*opQueue{&d.queued, &d.low} {
		for q.first != nil {
			d.fail(q.pop(), err)
		}
	}
}

// Size implements Disk.
func (d *ringDisk) Size() int64 { return d.size }

// Align implements Disk.
func (d *ringDisk) Align() int { return d.align }

// Close implements Disk.
func (d *ringDisk) Close() error {
	if d.l == nil {
		return errors.New("close a disk: it is closed already")
	}
	if d.inFlight > 0 || d.queued.first != nil || d.low.first != nil || d.failed.first != nil {
		panic(fmt.Sprintf("uring: %s closed with %d operations in flight", d.path, d.inFlight))
	}
	for i, e := range d.l.disks {
		if e == d {
			d.l.disks = append(d.l.disks[:i], d.l.disks[i+1:]...)
			break
		}
	}
	l := d.l
	d.l = nil
	if d.o.Lock { // else it is there until the kernel has put the last reference to the file
		_ = unix.Flock(int(d.file.fd), unix.LOCK_UN)
	}
	return l.closeFile(d.file)
}

// zeroFrom zeroes the bytes of bufs from position from on.
func zeroFrom(bufs [][]byte, from int64) {
	for _, b := range bufs {
		if from >= int64(len(b)) {
			from -= int64(len(b))
			continue
		}
		clear(b[from:])
		from = 0
	}
}

var opKindNames = [...]string{"read", "write", "write and sync", "sync", "discard", "allocate"}

// String is for messages: "read".
func (k OpKind) String() string {
	if int(k) < len(opKindNames) {
		return opKindNames[k]
	}
	return fmt.Sprintf("OpKind(%d)", uint8(k))
}
