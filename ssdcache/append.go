package ssdcache

import (
	"errors"
	"fmt"
	"unsafe"

	"pstorage/dataplane"
	"pstorage/uring"
)

// Append is a record on its way to the log. It is owned by the log from Log.Append until Done.
type Append struct {
	Record
	// CRCs are 4 bytes per block, Data and Stored only. Copied at once.
	CRCs []byte
	// Data is Length bytes, Data only. It is copied at once, unless it is larger than CopyMax, page
	// aligned, and in Buf, which the log then retains instead.
	Data []byte
	Buf  *uring.Buf
	// Err is nil if the record is durable.
	Err error
	// Done is called when the record is durable or failed, in the order of the appends.
	Done func(*Append)

	next *Append
}

// CopyMax is the largest payload, in bytes, that Append copies although it could retain Buf.
const CopyMax = 32 << 10

// appendList is a queue of appends, linked through them.
type appendList struct{ first, last *Append }

func (q *appendList) add(a *Append) {
	a.next = nil
	if q.last == nil {
		q.first = a
	} else {
		q.last.next = a
	}
	q.last = a
}

// finish calls Done of all, in order; with err unless they have their own.
func (q *appendList) finish(err error) {
	for a := q.first; a != nil; a = q.first {
		if q.first = a.next; q.first == nil {
			q.last = nil
		}
		a.next = nil
		if a.Err == nil {
			a.Err = err
		}
		a.Done(a)
	}
}

// stagingSize is the memory that small payloads are copied to, in bytes; the first of a batch.
const stagingSize = 256 << 10

// piece is a part of a batch's data in memory.
type piece struct {
	mem []byte
	at  int        // first data block of the batch that it holds
	buf *uring.Buf // retained for it; nil: staging memory
}

// batch is what is written with one operation. It is open (entries are added), then waits, then is
// in flight, then done; it is retired, and its appends reported, in the order of batches.
type batch struct {
	l       *Log
	h       header
	start   Pos // of its header
	limit   int // data blocks it may have
	hdr     *uring.Buf
	pieces  []piece // capacity MaxDiskBufs-1
	staging []*uring.Buf
	free    []byte // rest of the newest staging buffer
	appends appendList
	count   int // of appends
	clean   int // of the data blocks, for the read cache
	moved   int // of the data blocks, out of segments to be used again
	sealed  bool
	done    bool
	err     error
	op      uring.DiskOp
	iov     [uring.MaxDiskBufs][]byte
	next    *batch
}

var (
	errNoSpace  = errors.New("the log is full")
	errNoMemory = errors.New("no memory for batches")
)

// Append adds a record to the log. Its blocks are found by Lookup from now on; a.Done is called
// later, when the record and all before it are durable. All appends of a turn go together.
func (l *Log) Append(a *Append) {
	l.checkAppend(a)
	a.Err = nil
	l.env.AtTurnEnd(&l.turn)
	if l.err != nil {
		l.refuse(a, l.err)
		return
	}
	b, err := l.roomFor(a)
	if err != nil {
		l.refuse(a, dataplane.E("append to the log", dataplane.Overloaded, err))
		return
	}
	l.addEntry(b, a)
	b.count++
	b.appends.add(a)
	switch a.Kind {
	case Data:
		l.addData(b, a)
	case Zero:
		l.DropRange(a.Slot, a.Offset/blockSize, a.Length/blockSize)
	case Stored:
		l.DropRange(a.Slot, a.Offset/blockSize, a.Length/blockSize)
		l.stored++
	case Drop:
		l.Drop(a.Slot)
	}
}

// addEntry adds a's entry to the header.
func (l *Log) addEntry(b *batch, a *Append) {
	crcs := a.Record.put(b.hdr.Bytes()[b.h.used:])
	copy(crcs, a.CRCs)
	b.h.used += a.headerBytes()
	b.h.entries++
}

func (l *Log) checkAppend(a *Append) {
	why := a.check()
	switch {
	case why != "":
	case a.Kind == Clean || a.Kind == Moved:
		why = "records of this kind are the log's own"
	case l.closing != nil:
		why = "the log is being closed"
	case a.Slot >= l.o.MaxSlots:
		why = "no such slot"
	case a.Done == nil:
		why = "no Done"
	case len(a.CRCs) != 4*a.sums() || len(a.Data) != blockSize*a.blocks():
		why = "lengths of data and CRCs don't fit"
	default:
		return
	}
	panic(fmt.Sprintf("ssdcache: append of kind %d slot %d [%d +%d] data %d crcs %d meta %d: %s",
		a.Kind, a.Slot, a.Offset, a.Length, len(a.Data), len(a.CRCs), len(a.Meta), why))
}

// refuse fails a, after everything appended before it was reported.
func (l *Log) refuse(a *Append, err error) {
	a.Err = err
	if l.newest != nil {
		l.newest.appends.add(a)
	} else {
		l.refused.add(a)
	}
}

// roomFor returns the open batch, with room for a and its memory at hand.
func (l *Log) roomFor(a *Append) (*batch, error) {
	if l.open != nil && !l.open.fits(a) {
		l.seal()
	}
	if l.open == nil {
		if err := l.openBatch(a); err != nil {
			return nil, err
		}
	}
	b := l.open
	if n := len(a.Data); n > len(b.free) && !l.retains(a) {
		s := l.memory(stagingSize)
		if s == nil {
			return nil, errNoMemory
		}
		b.staging, b.free = append(b.staging, s), s.Bytes()[:stagingSize]
	}
	return b, nil
}

// memory returns a buffer for a batch, out of the spill when the pool is used up by others: what
// was taken in before Room said no must not be refused.
func (l *Log) memory(n int) *uring.Buf {
	if b := l.pool.Get(n); b != nil {
		return b
	}
	return l.spill.Get(n)
}

// retains says whether a's memory is kept instead of copied.
func (l *Log) retains(a *Append) bool {
	return a.Buf != nil && len(a.Data) > CopyMax &&
		uintptr(unsafe.Pointer(&a.Data[0]))%uintptr(l.disk.Align()) == 0
}

func (b *batch) fits(a *Append) bool {
	return b.h.used+a.headerBytes() <= b.h.headBlocks*blockSize &&
		b.h.dataBlocks+a.blocks() <= b.limit && len(b.pieces)+2 <= cap(b.pieces)
}

// openBatch begins a batch that has room for a, in the next segment if this one has none.
func (l *Log) openBatch(a *Append) error {
	hb := l.headBlocks
	if int(l.segBlocks-l.at) < hb+a.blocks() {
		if l.ready <= l.head {
			return errNoSpace
		}
		l.head, l.at = l.head+1, 0
		l.first[l.head%l.segs] = l.nextNr // also if there is no batch at the moment
		if l.destage.phase != resting {
			l.pace.update()
		}
	}
	b := l.newBatch()
	if b == nil {
		return errNoMemory
	}
	if l.at == 0 {
		l.first[l.head%l.segs] = l.nextNr
	}
	b.start = l.place(l.head, l.at)
	b.limit = min(l.maxBlocks, int(l.segBlocks-l.at)) - hb
	b.h = header{headBlocks: hb, owner: l.sb.owner, id: l.sb.id, seg: l.head, nr: l.nextNr,
		inc: l.sb.inc, pos: uint32(b.start), used: headSize}
	l.nextNr++
	if l.newest == nil {
		l.oldest = b
	} else {
		l.newest.next = b
	}
	l.newest, l.open = b, b
	return nil
}

// newBatch returns an empty batch with header memory, or nil.
func (l *Log) newBatch() *batch {
	hdr := l.memory(maxHeaderBlocks * blockSize)
	if hdr == nil {
		return nil
	}
	b := l.freeBatches
	switch {
	case b != nil:
		l.freeBatches = b.next
		b.next = nil
	case l.made == maxBatches:
		hdr.Release()
		return nil
	default:
		l.made++
		b = &batch{l: l, pieces: make([]piece, 0, uring.MaxDiskBufs-1),
			staging: make([]*uring.Buf, 0, 8)}
		b.op.Done = func(*uring.DiskOp) { l.batchDone(b) }
	}
	b.hdr, b.count, b.clean, b.moved, b.sealed, b.done, b.err = hdr, 0, 0, 0, false, false, nil
	return b
}

// seal closes the open batch: its place and size are fixed.
func (l *Log) seal() {
	b := l.open
	b.sealed = true
	l.open = nil
	l.waiting++
	l.at += uint32(b.h.headBlocks + b.h.dataBlocks)
	// The next header is larger if this one ran full, smaller if half would have done.
	switch size := b.h.headBlocks * blockSize; {
	case b.h.used > size-entrySize-MaxMeta && b.h.headBlocks < maxHeaderBlocks:
		l.headBlocks = b.h.headBlocks * 2
	case b.h.used < size/4 && b.h.headBlocks > 1:
		l.headBlocks = b.h.headBlocks / 2
	}
}

// addData adds a's blocks to the batch and the index.
func (l *Log) addData(b *batch, a *Append) {
	first := a.Offset / blockSize
	p := b.start + Pos(b.h.headBlocks+b.h.dataBlocks)
	key := keyOf(a.Slot, first)
	for i := range a.blocks() {
		l.idx.put(key+uint32(i), p+Pos(i), le.Uint32(a.CRCs[4*i:]))
	}
	if l.retains(a) {
		a.Buf.Retain()
		b.pieces = append(b.pieces, piece{a.Data, b.h.dataBlocks, a.Buf})
	} else {
		n := copy(b.free, a.Data)
		last := len(b.pieces) - 1
		if last >= 0 && b.pieces[last].extends(b.free) {
			m := &b.pieces[last].mem
			*m = (*m)[:len(*m)+n]
		} else {
			b.pieces = append(b.pieces, piece{b.free[:n], b.h.dataBlocks, nil})
		}
		b.free = b.free[n:]
	}
	b.h.dataBlocks += a.blocks()
}

// extends says whether the staging memory at next follows p's directly. Pieces keep the capacity
// of their buffer, so comparing the ends of the slices tells.
func (p *piece) extends(next []byte) bool {
	return p.buf == nil && cap(p.mem)-len(p.mem) >= len(next) && len(next) > 0 &&
		&p.mem[:len(p.mem)+1][len(p.mem)] == &next[0]
}
