package ssdcache

import (
	"fmt"

	"pstorage/uring"
)

// submitBatches sends batches to the disk, as many as may be in flight. The window counts from the
// oldest batch that isn't durable, so at most BatchesInFlight batches lie on the disk behind a torn
// one: replay relies on it.
func (l *Log) submitBatches() {
	for l.lastSent < l.durable+uint64(l.o.BatchesInFlight) {
		b := l.oldest
		for b != nil && b.h.nr <= l.lastSent {
			b = b.next
		}
		if b == nil || l.canWait(b) || l.canGrow(b) {
			return
		}
		if !b.sealed {
			l.seal()
		}
		l.waiting--
		l.submit(b)
	}
}

// canWait says whether b is an open batch of a few copies for the read cache, for which nobody
// waits: a header for each would waste the log.
func (l *Log) canWait(b *batch) bool {
	return !b.sealed && b.appends.first == nil && b.moved == 0 &&
		b.clean < cleanPerBatch/2 && l.closing == nil && l.draining == nil &&
		l.destage.phase < checkpointing
}

// canGrow says whether b is better sent when a batch in flight has ended, which sends it in any
// case: it takes more in meanwhile. Each batch costs two requests of the disk, its write and a flush, and
// the disk is no sooner done with two small ones than with one.
func (l *Log) canGrow(b *batch) bool {
	return !b.sealed && l.lastSent > l.durable && b.h.dataBlocks < l.o.NextBatch
}

// submit completes the batch's header and writes it with its data, in one operation.
func (l *Log) submit(b *batch) {
	if b.h.nr != l.lastSent+1 {
		panic(fmt.Sprintf("ssdcache: batch %d sent after %d", b.h.nr, l.lastSent))
	}
	hdr := b.hdr.Bytes()[:b.h.headBlocks*blockSize]
	clear(hdr[b.h.used:])
	b.h.durable, b.h.prev = l.durable, l.prev
	b.h.put(hdr)
	l.prev, l.lastSent = b.h.crc, b.h.nr
	b.iov[0] = hdr
	for i, p := range b.pieces {
		b.iov[i+1] = p.mem
	}
	b.op.Kind = uring.DiskWriteSync
	b.op.Offset = int64(b.start) * blockSize
	b.op.Bufs = b.iov[:len(b.pieces)+1]
	l.disk.Submit(&b.op)
}

// batchDone is the completion of a batch's write.
func (l *Log) batchDone(b *batch) {
	b.done = true
	if b.op.Err != nil {
		l.fail(ioError(fmt.Sprintf("write batch %d of the log at block %d", b.h.nr, b.start),
			b.op.Err))
	}
	l.env.AtTurnEnd(&l.turn)
	l.retire()
}

// retire reports, in order, the batches that are done and have no unfinished one before them.
func (l *Log) retire() {
	for b := l.oldest; b != nil && b.done; b = l.oldest {
		if l.oldest = b.next; l.oldest == nil {
			l.newest = nil
		}
		if l.err == nil {
			l.durable = b.h.nr
			l.stats.Batches++
			l.stats.Appends += uint64(b.count)
			l.stats.Blocks += uint64(b.h.dataBlocks - b.clean - b.moved)
			l.stats.LogBlocks += uint64(b.h.headBlocks + b.h.dataBlocks)
		}
		l.freeMemory(b)
		list := b.appends
		b.appends = appendList{}
		b.next, l.freeBatches = l.freeBatches, b
		list.finish(l.err)
	}
}

func (l *Log) freeMemory(b *batch) {
	b.hdr.Release()
	b.hdr = nil
	for i := range b.pieces {
		if buf := b.pieces[i].buf; buf != nil {
			buf.Release()
		}
	}
	for _, s := range b.staging {
		s.Release()
	}
	clear(b.pieces)
	clear(b.staging)
	clear(b.iov[:])
	b.pieces, b.staging, b.free = b.pieces[:0], b.staging[:0], nil
}

// failWaiting ends the batches that will not be written any more; those in flight end by
// themselves.
func (l *Log) failWaiting() {
	if l.open != nil {
		l.seal()
	}
	for b := l.oldest; b != nil; b = b.next {
		if b.h.nr > l.lastSent {
			b.done = true
		}
	}
	l.waiting = 0
}
