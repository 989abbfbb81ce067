package client

import (
	"fmt"

	"pstorage/dataplane"
)

// This file is Flush. A write of a file with write-ack=disk is durable when it is acknowledged, so
// there is nothing to do. With write-ack=memory the heads of all chunks that were written since
// the last Flush are asked to make them durable. One round per file is under way; Flushes that
// come meanwhile share the next one, because the current may have passed their chunks already.

func (f *File) markDirty(index uint32) {
	ent, _ := f.entry(index)
	if !ent.dirty {
		ent.dirty = true
		f.dirty = append(f.dirty, index)
	}
}

// wrote notes a write to the given chunk that was acknowledged and may not be durable.
func (f *File) wrote(index uint32, now written) {
	ent, _ := f.entry(index)
	switch {
	case ent.wrote.chunk != now.chunk:
		ent.lost = false // what was written to the other one was cut off
	case ent.dirty && ent.wrote.life != now.life:
		ent.lost = true
	}
	ent.wrote = now
	f.markDirty(index)
}

// wasFlushed takes the answer of a flush. In another life than that of the writes before it those
// may be gone: the processes of all members ended before they were durable. That is said once.
func (f *File) wasFlushed(index uint32, now written) error {
	ent, _ := f.entry(index)
	lost := ent.lost && ent.wrote.chunk == now.chunk ||
		ent.flushed.chunk == now.chunk && ent.flushed.life != now.life
	ent.flushed = now
	if !lost {
		return nil
	}
	ent.lost = false
	f.told++
	f.losses = append(f.losses, index)
	if !ent.dirty {
		ent.wrote = now
	}
	return dataplane.E("flush", dataplane.IOError, fmt.Errorf("chunk %d of the file %v: all its "+
		"servers ended at once before what was written had been flushed (write-ack=memory): some of "+
		"it may be lost", index, f.id))
}

// lostUnder notes that a flush found something lost while op, a write that is done only now, was
// under way: that may have been a part of it which was acknowledged before. Its user has been told
// too early, and would take the next flush for the proof that all of the write is durable. Of zeros
// it can only be the ends, which aren't whole blocks and are written: others are durable at once.
func (f *File) lostUnder(op *Op) {
	if op.Kind != Write && op.Kind != Zero || op.FUA || op.total == 0 {
		return
	}
	first := uint32(op.Offset / dataplane.ChunkSize)
	last := uint32((op.Offset + op.total - 1) / dataplane.ChunkSize)
	step := uint32(1)
	if op.Kind == Zero {
		step = max(last-first, 1)
	}
	for index := first; ; index += step {
		if ent, _ := f.entry(index); ent.wrote.chunk != 0 {
			ent.lost = true
			f.markDirty(index)
		}
		if index == last {
			return
		}
	}
}

// flush starts a round for op, or makes it wait for the next.
func (f *File) flush(op *Op) {
	e := f.eng
	busy := f.flushNow.head != nil || f.flushOp.state != opIdle
	if len(f.dirty) == 0 && !busy {
		op.total = 0
		e.finish(op)
		return
	}
	op.state = opFlushing
	f.flushNext.push(op)
	if !busy {
		f.flushRound()
	}
}

func (f *File) flushRound() {
	e := f.eng
	f.flushNow = f.flushNext.take()
	f.flushList, f.dirty = f.dirty, f.flushList[:0]
	for _, index := range f.flushList {
		ent, _ := f.entry(index)
		ent.dirty, ent.flushed = false, ent.wrote
	}
	f.flushOp.Kind, f.flushOp.File = Flush, f
	if f.flushOp.Done == nil {
		f.flushOp.Done = f.flushed
	}
	e.Submit(&f.flushOp)
}

// flushed ends a round.
func (f *File) flushed(round *Op) {
	e := f.eng
	if round.Err != nil {
		for _, index := range f.flushList {
			f.markDirty(index)
		}
	}
	if f.flushNow.head == nil { // they were called off: the next one is told
		for _, index := range f.losses {
			ent, _ := f.entry(index)
			ent.lost = true
		}
	}
	f.losses = f.losses[:0]
	for op := f.flushNow.pop(); op != nil; op = f.flushNow.pop() {
		op.state = opRunning
		op.Err = round.Err
		e.finish(op)
	}
	if f.flushNext.head != nil && !e.closed {
		f.flushRound()
	}
}

// abortFlush takes op out of the queue it is in.
func (f *File) abortFlush(op *Op) {
	f.flushNow.remove(op)
	f.flushNext.remove(op)
}
