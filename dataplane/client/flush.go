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
	f.losses = append(f.losses, index)
	if !ent.dirty {
		ent.wrote = now
	}
	return dataplane.E("flush", dataplane.IOError, fmt.Errorf("chunk %d of the file %v: all its "+
		"servers ended at once before what was written had been flushed (write-ack=memory): some of "+
		"it may be lost", index, f.id))
}

// wrotePart is wrote for a part of op, which may be done only much later. Of zeros that are
// punched only the ends matter, which may be parts of blocks and are written; the rest is durable.
func (f *File) wrotePart(op *Op, index uint32, now written) {
	f.wrote(index, now)
	first, last := op.chunks()
	i := int(index - first)
	if op.Kind == Zero && i > 0 {
		if i = 1; index != last {
			return
		}
	}
	for len(op.acks) <= i {
		op.acks = append(op.acks, written{})
	}
	if op.acks[i].chunk == 0 {
		op.acks[i] = now
	}
}

// wroteAll notes that all of op, a write, is acknowledged. A part of it may have been lost since,
// and a flush may have said so before: to a user who hadn't been told of the write yet, and would
// take the next flush for the proof that it is durable.
func (f *File) wroteAll(op *Op) {
	first, last := op.chunks()
	for i, now := range op.acks {
		index := first + uint32(i)
		if op.Kind == Zero && i > 0 {
			index = last
		}
		if ent, _ := f.entry(index); now.chunk != 0 && ent.wrote.chunk == now.chunk {
			f.wrote(index, now)
		}
	}
}

// chunks are the first and the last that op, of at least one byte, touches.
func (op *Op) chunks() (first, last uint32) {
	return uint32(op.Offset / dataplane.ChunkSize),
		uint32((op.Offset + op.total - 1) / dataplane.ChunkSize)
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
