package ssdcache

import (
	"errors"
	"fmt"

	"pstorage/uring"
)

// Lookup returns the newest position of a block, appends not yet durable included; false if the
// log doesn't have it, then the store does. The position is good until the end of the turn; a Read
// begun in it keeps it good until its Done.
func (l *Log) Lookup(slot, block uint32) (Pos, bool) { return l.idx.get(keyOf(slot, block)) }

// CRC returns the CRC32C of the block at p, which Lookup returned in this turn.
func (l *Log) CRC(p Pos) uint32 { return l.idx.crc(p) }

// Drop forgets all blocks of a slot. To have it happen in replay too, append a record of kind Drop,
// which calls this. See InWriteBack before the slot is given to another chunk.
func (l *Log) Drop(slot uint32) {
	l.cache.change(slot, 0, 1<<14)
	for b := range uint32(1 << 14) {
		l.idx.drop(keyOf(slot, b))
	}
}

// DropRange forgets n blocks. An append of kind Zero calls it.
func (l *Log) DropRange(slot, block, n uint32) {
	if n == 0 {
		return
	}
	l.cache.change(slot, block, n)
	for ; n > 0; block, n = block+1, n-1 {
		l.idx.drop(keyOf(slot, block))
	}
}

// ReadOp reads Blocks blocks at consecutive positions from Pos on, all found by Lookup, to Buf. It
// belongs to the log until Done. While it is in flight its place in the log isn't used again.
type ReadOp struct {
	Pos    Pos
	Blocks int
	Buf    []byte // Blocks*4096 bytes, page-aligned, out of the Pool
	Low    bool   // background: doesn't count for what the read cache keeps
	soon   bool   // but it is waited for
	Err    error
	Done   func(*ReadOp)

	l    *Log
	op   uring.DiskOp
	iov  [1][]byte
	next *ReadOp
}

var errFailed = errors.New("the log failed before")

// Read starts r; r.Done is called later. What is still only in memory is copied from there. CRCs
// are the caller's to check.
func (l *Log) Read(r *ReadOp) {
	if r.Blocks <= 0 || len(r.Buf) != r.Blocks*blockSize || r.Done == nil || l.closing != nil {
		panic(fmt.Sprintf("ssdcache: read of %d blocks at %d to %d bytes (closing: %v)", r.Blocks,
			r.Pos, len(r.Buf), l.closing != nil))
	}
	r.Err = nil
	if !r.Low {
		l.idx.touch(r.Pos, r.Blocks)
	}
	if l.err != nil {
		r.Err = ioError("read from the log", errFailed)
		l.readDoneLater(r)
		return
	}
	if b := l.batchAt(r.Pos); b != nil {
		b.copyOut(r.Buf, int(r.Pos-b.start)-b.h.headBlocks)
		l.readDoneLater(r)
		return
	}
	r.l = l
	if r.op.Done == nil {
		r.op.Done = func(*uring.DiskOp) { r.finish() }
	}
	r.iov[0] = r.Buf
	r.op.Kind, r.op.Low = uring.DiskRead, r.Low && !r.soon
	r.op.Offset, r.op.Bufs = int64(r.Pos)*blockSize, r.iov[:]
	l.pins[l.segOf(r.Pos)]++
	l.disk.Submit(&r.op)
}

func (l *Log) readDoneLater(r *ReadOp) {
	if l.memReads == nil {
		l.memReads = r
	} else {
		l.memReadsEnd.next = r
	}
	l.memReadsEnd, r.next = r, nil
	l.env.AtTurnEnd(&l.turn)
}

// finish is the completion of a read from the disk.
func (r *ReadOp) finish() {
	l := r.l
	l.pins[l.segOf(r.Pos)]--
	if r.op.Err != nil {
		r.Err = ioError(fmt.Sprintf("read block %d of the log", r.Pos), r.op.Err)
	}
	r.iov[0] = nil
	if l.ready < l.head+l.reserve || l.wantRoom || l.closing != nil {
		l.env.AtTurnEnd(&l.turn)
	}
	r.Done(r)
}

// batchAt returns the batch in memory that position p lies in, or nil.
func (l *Log) batchAt(p Pos) *batch {
	for b := l.oldest; b != nil; b = b.next {
		if p >= b.start && int(p-b.start) < b.h.headBlocks+b.h.dataBlocks {
			return b
		}
	}
	return nil
}

// copyOut copies data blocks from the given one on to buf.
func (b *batch) copyOut(buf []byte, block int) {
	for i := range b.pieces {
		p := &b.pieces[i]
		if from := (block - p.at) * blockSize; from >= 0 && from < len(p.mem) {
			n := copy(buf, p.mem[from:])
			buf, block = buf[n:], block+n/blockSize
		}
		if len(buf) == 0 {
			return
		}
	}
	panic(fmt.Sprintf("ssdcache: read over the end of batch %d", b.h.nr))
}
