package client

import (
	"errors"
	"fmt"
	"slices"

	"pstorage/dataplane"
	"pstorage/uring"
)

// OpKind is what an Op does.
type OpKind uint8

// The kinds of operations.
const (
	Read  OpKind = iota // fill Buf from Offset; N < len(Buf) at the end of the file
	Write               // write Buf at Offset; the file grows as needed
	Zero                // [Offset, Offset+Length) reads as zeros; the file doesn't grow
	Flush               // all acknowledged writes of the file are durable (write-ack=memory)
)

func (k OpKind) String() string {
	if int(k) < len(opNames) {
		return opNames[k]
	}
	return fmt.Sprintf("op(%d)", uint8(k))
}

var opNames = [...]string{Read: "read", Write: "write", Zero: "zero", Flush: "flush"}

// Op is one operation on a file, of any size and alignment. Its user sets the exported fields down
// to Done; the engine owns it and the memory of Buf from Submit until Done is called, on the
// loop's thread and never from inside Submit. Then it may be used again.
type Op struct {
	Kind   OpKind
	FUA    bool // Write: durable before Done also with write-ack=memory
	Append bool // Write: to the end, if Offset is before what another client wrote; changes Offset
	File   *File
	Offset int64  // bytes in the file
	Buf    []byte // Read, Write
	Length int64  // Zero: bytes

	// Right is what File.OpenForWrite gave, for Write and Zero; zero: that of the moment.
	Right Right

	// Timeout bounds the whole operation, in nanoseconds; 0: it waits for as long as it takes.
	Timeout int64

	N    int   // bytes done; 0 if Err is set
	Err  error // a *dataplane.Error
	Done func(*Op)

	// User is for the owner of the op; the engine doesn't look at it.
	User any

	// From here on the engine's own.
	eng    *Engine
	token  uint64 // of the lease that it writes under; 0: none
	next   *Op    // in one opQueue
	older  *Op    // in e.all
	newer  *Op
	state  opState
	begin  uint64    // e.seq when submitted: what was fetched later is fresh for this op
	pos    int64     // bytes (Flush: chunks) of [0, total) cut in parts so far
	total  int64     // bytes (Flush: chunks) to do
	live   int32     // parts not finished
	cuts   bool      // issue is at work on this op
	acks   []written // write: by chunk, where its first part was that is acknowledged from memory
	growTo uint64    // write: the size the file must have before Done; 0: has it
	sized  bool      // read: the file's size was asked for on behalf of this op
	timer  uring.Timer
	work   uring.Work // Client.Do
}

// opState says in which of the engine's queues an op is.
type opState uint8

const (
	opIdle     opState = iota
	opReady            // in e.ready
	opStarved          // in f.starved: waits for a free part
	opSizing           // in f.sizeWait
	opLeasing          // in f.lease.wait
	opFlushing         // in f.flushNow or f.flushNext
	opRunning          // its parts, or f.growWait, hold it
	opDone             // in e.finished
)

// opQueue is a list of ops, first in, first out.
type opQueue struct{ head, tail *Op }

func (q *opQueue) push(op *Op) {
	op.next = nil
	if q.tail == nil {
		q.head = op
	} else {
		q.tail.next = op
	}
	q.tail = op
}

func (q *opQueue) pop() *Op {
	op := q.head
	if op != nil {
		q.head = op.next
		if q.head == nil {
			q.tail = nil
		}
		op.next = nil
	}
	return op
}

func (q *opQueue) remove(op *Op) {
	var prev *Op
	for o := q.head; o != nil; prev, o = o, o.next {
		if o != op {
			continue
		}
		if prev == nil {
			q.head = op.next
		} else {
			prev.next = op.next
		}
		if q.tail == op {
			q.tail = prev
		}
		op.next = nil
		return
	}
}

func (q *opQueue) take() opQueue {
	t := *q
	*q = opQueue{}
	return t
}

// Submit starts op. Must be called on the loop's thread.
func (e *Engine) Submit(op *Op) {
	if op.state != opIdle {
		panic(fmt.Sprintf("client: op submitted twice (%v, state %d)", op.Kind, op.state))
	}
	op.eng, op.N, op.Err = e, 0, nil
	op.pos, op.live, op.growTo, op.sized, op.token = 0, 0, 0, false, 0
	e.seq++
	op.begin = e.seq
	op.acks = op.acks[:0]
	e.link(op)
	e.ready.push(op)
	op.state = opReady
	e.env.AtTurnEnd(&e.turn)
	if op.Timeout > 0 {
		if op.timer.Fire == nil {
			op.timer.Fire = func() { op.eng.expire(op) }
		}
		e.env.Arm(&op.timer, op.Timeout)
	}
}

// turnEnd starts what was submitted and finishes what is done, until neither is left.
func (e *Engine) turnEnd() {
	for {
		if op := e.ready.pop(); op != nil {
			op.state = opRunning
			e.start(op)
		} else if op := e.finished.pop(); op != nil {
			op.state = opIdle
			e.unlink(op)
			e.stats.Ops[op.Kind]++
			op.Done(op)
		} else if op := e.nextStarved(); op != nil {
			op.state = opRunning
			e.issue(op)
		} else if n := len(e.growing); n > 0 {
			f := e.growing[n-1]
			e.growing = e.growing[:n-1]
			f.grow()
		} else if n := len(e.pumps); n > 0 {
			pr := e.pumps[n-1]
			e.pumps = e.pumps[:n-1]
			pr.pumping = false
			pr.pump()
		} else {
			return
		}
	}
}

// link and unlink keep the list of all ops between Submit and Done.
func (e *Engine) link(op *Op) {
	op.older, op.newer = e.newest, nil
	if e.newest != nil {
		e.newest.newer = op
	}
	e.newest = op
	e.ops++
}

func (e *Engine) unlink(op *Op) {
	if op.newer != nil {
		op.newer.older = op.older
	} else {
		e.newest = op.older
	}
	if op.older != nil {
		op.older.newer = op.newer
	}
	op.older, op.newer = nil, nil
	e.ops--
}

// start checks an op, settles what it has to do with the file's size, and issues its first parts.
// A read that waited for the size comes here a second time.
func (e *Engine) start(op *Op) {
	f := op.File
	switch {
	case e.closed:
		e.fail(op, errEngineClosed)
		return
	case f == nil || f.eng != e:
		e.fail(op, dataplane.E(op.Kind.String(), dataplane.Invalid, errNoFile))
		return
	case op.Offset < 0 || op.Length < 0 || op.Offset > MaxFileSize ||
		op.Length > MaxFileSize-op.Offset || int64(len(op.Buf)) > MaxFileSize-op.Offset:
		e.fail(op, dataplane.E(f.what(op.Kind), dataplane.TooLarge, errRange))
		return
	}
	if (op.Kind == Write || op.Kind == Zero) && !f.mayWrite(op) {
		return
	}
	if op.Kind == Write && op.Append && !f.atEnd(op) {
		return
	}
	switch op.Kind {
	case Read:
		op.total = int64(len(op.Buf))
		if !f.clampRead(op) {
			return
		}
	case Write:
		op.total = int64(len(op.Buf))
		if op.total > 0 {
			f.growFor(op)
		}
	case Zero:
		op.total = op.Length
	case Flush:
		if op != &f.flushOp {
			f.flush(op)
			return
		}
		op.total = int64(len(f.flushList))
	default:
		e.fail(op, dataplane.E("submit", dataplane.Invalid, fmt.Errorf("no op %d", op.Kind)))
		return
	}
	e.issue(op)
}

// issue cuts as many parts of op as its window and the slab allow.
func (e *Engine) issue(op *Op) {
	if op.state != opRunning || op.cuts {
		return // in the second case the loop below goes on by itself
	}
	op.cuts = true
	for op.pos < op.total && op.Err == nil && int(op.live) < e.opt.Window {
		p := e.newPart(op.File)
		if p == nil {
			e.starve(op)
			break
		}
		e.cut(op, p)
		e.dispatch(p)
	}
	op.cuts = false
	e.settle(op)
}

// starve has op wait for a part.
func (e *Engine) starve(op *Op) {
	f := op.File
	if f.starved.head == nil {
		e.starving = append(e.starving, f)
	}
	op.state = opStarved
	f.starved.push(op)
}

// nextStarved takes an op that waited and may have a part now: files in turns, each one's in the
// order in which they came.
func (e *Engine) nextStarved() *Op {
	for i, f := range e.starving {
		if !e.mayTake(f) {
			continue
		}
		op := f.starved.pop()
		e.starving = slices.Delete(e.starving, i, i+1)
		if f.starved.head != nil {
			e.starving = append(e.starving, f)
		}
		return op
	}
	return nil
}

// unstarve takes op out of its file's queue.
func (e *Engine) unstarve(op *Op) {
	f := op.File
	f.starved.remove(op)
	if f.starved.head == nil {
		i := slices.Index(e.starving, f)
		e.starving = slices.Delete(e.starving, i, i+1)
	}
}

// cut makes p the next part of op: up to the end of the chunk and PartSize bytes, and ending at a
// block border, so that at most the first and the last part of an op have fragments of blocks.
func (e *Engine) cut(op *Op, p *part) {
	p.op, p.bufOff = op, op.pos
	op.live++
	if op.Kind == Flush {
		p.code, p.index, p.off, p.n = dataplane.OpFlush, op.File.flushList[op.pos], 0, 0
		op.pos++
		return
	}
	at := op.Offset + op.pos
	left := op.total - op.pos
	p.index = uint32(at / dataplane.ChunkSize)
	p.off = uint32(at % dataplane.ChunkSize)
	n := min(left, dataplane.ChunkSize-int64(p.off))
	switch op.Kind {
	case Read:
		p.code = dataplane.OpRead
		n = min(n, partEnd(p.off))
	case Write:
		p.code = dataplane.OpWrite
		n = min(n, partEnd(p.off))
	case Zero:
		p.code, n = zeroPart(p.off, n)
	}
	p.n = uint32(n)
	op.pos += n
}

// partEnd is how many bytes a part that starts at chunk offset off may have.
func partEnd(off uint32) int64 {
	return int64((off+dataplane.PartSize)&^(dataplane.BlockSize-1) - off)
}

// zeroPart cuts a zeroed range: fragments of blocks are written, whole blocks go as one OpZero.
func zeroPart(off uint32, n int64) (dataplane.Opcode, int64) {
	if edge := int64(off % dataplane.BlockSize); edge != 0 || n < dataplane.BlockSize {
		return dataplane.OpWrite, min(n, dataplane.BlockSize-edge)
	}
	return dataplane.OpZero, n &^ (dataplane.BlockSize - 1)
}

// partDone is the end of p, good (err nil) or bad.
func (e *Engine) partDone(p *part, err error) {
	e.untwin(p)
	op := p.op
	op.live--
	if err != nil && op.Err == nil {
		op.Err = err
	}
	e.freePart(p)
	if op.pos < op.total && op.Err == nil {
		e.issue(op)
		return
	}
	e.settle(op)
}

// settle finishes op if nothing of it is left to do.
func (e *Engine) settle(op *Op) {
	if op.state != opRunning || op.cuts || op.live > 0 || op.Err == nil && op.pos < op.total {
		return
	}
	if op.growTo != 0 {
		if op.Err == nil {
			return // onGrow will
		}
		op.File.dropGrow(op)
	}
	if op.Err == nil {
		op.N = int(op.total)
	}
	e.finish(op)
}

// finish queues op for Done at the end of the turn.
func (e *Engine) finish(op *Op) {
	if op.live != 0 {
		panic(fmt.Sprintf("client: %v finished with %d parts alive", op.Kind, op.live))
	}
	if op.timer.Armed() {
		e.env.Disarm(&op.timer)
	}
	if op.Err == nil && len(op.acks) > 0 {
		op.File.wroteAll(op)
	}
	if op.Err != nil {
		op.N = 0
		if op.Append && op.File != nil {
			op.File.appendTo = 0
		}
	}
	op.state = opDone
	e.finished.push(op)
	e.env.AtTurnEnd(&e.turn)
}

// fail ends an op that has no parts.
func (e *Engine) fail(op *Op, err error) {
	op.Err = err
	e.finish(op)
}

// Cancel fails op with Kind Closed, unless it is done. What a canceled write did isn't known.
func (e *Engine) Cancel(op *Op) {
	e.abort(op, dataplane.E(op.File.what(op.Kind), dataplane.Closed, errCanceled))
}

var errCanceled = errors.New("canceled")

// expire fails an op whose Timeout is over.
func (e *Engine) expire(op *Op) {
	e.abort(op, dataplane.E(op.File.what(op.Kind), dataplane.TimedOut, nil))
}

// abort takes op out of whatever it waits for, forgets its parts (a late answer finds nobody) and
// fails it.
func (e *Engine) abort(op *Op, err error) {
	switch op.state {
	case opIdle, opDone:
		return
	case opReady:
		e.ready.remove(op)
	case opStarved:
		e.unstarve(op)
	case opSizing:
		op.File.sizeWait.remove(op)
	case opLeasing:
		op.File.lease.wait.remove(op)
	case opFlushing:
		op.File.abortFlush(op)
	}
	if op.token != 0 && op.live > 0 {
		op.File.lease.unclean = true
	}
	if op.growTo != 0 {
		op.File.dropGrow(op)
	}
	op.state = opRunning
	for i := range e.parts {
		if p := &e.parts[i]; p.op == op {
			if t := p.twin; t != nil {
				p.twin, t.twin = nil, nil
			}
			if !p.hedge {
				op.live--
			}
			e.cancelPart(p)
		}
	}
	e.fail(op, err)
}
