package chunk

import (
	"math/bits"
	"time"

	"pstorage/dataplane"
	"pstorage/uring"
)

// This file gives the disk space of zeroed ranges back to the file system. A range is marked when
// its words are zero, which is after its ZERO record is durable: from then on nobody reads those
// blocks of the slot, whatever lies in them, and a crash has the record clear the words again. So
// a punch needs no promise of its own. What it must not do is hit newer data:
//
//   - A write-back takes the marks of its blocks away when it sets their words, and waits for a
//     punch of them in flight.
//   - A punch leaves blocks alone, for later, as long as a write-back of them is in flight.
//
//   - A start punches nothing before it has redone all records: what a ZERO marks may have been
//     written around the log since, which a later record says.
//
// Marks are only in memory. What a crash makes forgotten is marked again by the replay of the ZERO
// records, and in the end by the scrubber, which marks what reads as zeros.

const (
	// punchDelay is how long a mark waits for its neighbours, and a range for a write-back.
	punchDelay = 100 * time.Millisecond
	// punchRest is how many times as long as the last punch took the next one waits, up to
	// punchDelay: file systems keep reads and writes of the file out while they punch.
	punchRest = 3
	// maxPunchSlots bounds the marks in memory, to 8 MiB; the scrubber finds what has no room.
	maxPunchSlots = 4096
)

// holes are the marked blocks of one slot.
type holes struct {
	slot uint32
	n    int // marked blocks
	bits [dataplane.BlocksPerChunk / 64]uint64
	next *holes // free list
}

// puncher gives marked blocks back, one run at a time.
type puncher struct {
	st      *store
	bySlot  map[uint32]*holes
	order   []*holes // oldest first
	free    *holes
	timer   uring.Timer
	began   int64
	held    bool     // no punches yet
	hurry   bool     // the server is being stopped: no rests
	stopped bool     // no more punches
	flying  *holes   // nil: no punch in flight
	first   uint32   // its blocks
	end     uint32   //
	waiting *destage // write-backs that wait for it
	op      uring.DiskOp
	punched uint64 // blocks, since the start
}

func (p *puncher) init(st *store) {
	p.st, p.bySlot = st, map[uint32]*holes{}
	p.timer.Fire = p.work
	p.op.Kind, p.op.Low, p.op.Done = uring.DiskDiscard, true, p.done
}

// mark says that n blocks of the slot read as zeros: their words are zero.
func (p *puncher) mark(slot, block, n uint32) {
	if p.stopped || n == 0 {
		return
	}
	h := p.bySlot[slot]
	if h == nil {
		if len(p.order) >= maxPunchSlots {
			return
		}
		if h = p.free; h == nil {
			h = &holes{}
		} else {
			p.free = h.next
		}
		*h = holes{slot: slot}
		p.bySlot[slot] = h
		p.order = append(p.order, h)
	}
	h.set(block, block+n)
	if p.flying == nil && !p.timer.Armed() && !p.held {
		p.st.env.Arm(&p.timer, int64(punchDelay))
	}
}

// release lets punches begin that were held.
func (p *puncher) release() {
	p.held = false
	if len(p.order) > 0 && !p.timer.Armed() {
		p.st.env.Arm(&p.timer, int64(punchDelay))
	}
}

// unmark takes marks away: the blocks are about to be written.
func (p *puncher) unmark(slot, block, end uint32) {
	if h := p.bySlot[slot]; h != nil {
		h.clear(block, end)
	}
}

// hits says whether a punch of one of the blocks is in flight.
func (p *puncher) hits(slot, block, end uint32) bool {
	return p.flying != nil && p.flying.slot == slot && p.first < end && block < p.end
}

// busy says whether a punch of the slot is in flight.
func (p *puncher) busy(slot uint32) bool { return p.flying != nil && p.flying.slot == slot }

// work punches the next run, or looks again later.
func (p *puncher) work() {
	if p.stopped || p.st.dead != nil || p.flying != nil {
		return
	}
	for i := 0; i < len(p.order); i++ {
		h := p.order[i]
		if first, end, ok := p.run(h); ok {
			p.submit(h, first, end)
			return
		}
		if h.n == 0 {
			p.drop(i)
			i--
		}
	}
	if len(p.order) > 0 { // all of them wait for write-backs
		p.st.env.Arm(&p.timer, int64(punchDelay))
	}
}

// run finds the first run of marked blocks that no write-back is under way to.
func (p *puncher) run(h *holes) (first, end uint32, ok bool) {
	for at := uint32(0); ; at = end {
		if first, end, ok = h.runFrom(at); !ok {
			return 0, 0, false
		}
		if !p.st.writesTo(h.slot, first, end) && !p.st.bypassed(h.slot, first, end) {
			return first, end, true
		}
	}
}

func (p *puncher) submit(h *holes, first, end uint32) {
	h.clear(first, end)
	p.flying, p.first, p.end = h, first, end
	p.began = p.st.env.Now()
	p.op.Offset = p.st.sb.block(h.slot, first)
	p.op.Length = int64(end-first) * dataplane.BlockSize
	p.st.disk.Submit(&p.op)
}

func (p *puncher) done(op *uring.DiskOp) {
	st := p.st
	if op.Err != nil {
		// Only space is lost: the blocks read as zeros all the same.
		st.log.Warn("give the space of zeroed blocks back", "slot", p.flying.slot, "block", p.first,
			"blocks", p.end-p.first, "err", op.Err)
	} else {
		p.punched += uint64(p.end - p.first)
	}
	p.flying = nil
	list := p.waiting
	p.waiting = nil
	for d := list; d != nil; {
		next := d.parked
		d.parked = nil
		d.write()
		d = next
	}
	rest := min(punchRest*(st.env.Now()-p.began), int64(punchDelay))
	if p.hurry {
		rest = 0
	}
	if len(p.order) > 0 && !p.stopped {
		st.env.Arm(&p.timer, rest)
	}
}

// drop forgets the marks of the i-th slot.
func (p *puncher) drop(i int) {
	h := p.order[i]
	delete(p.bySlot, h.slot)
	p.order = append(p.order[:i], p.order[i+1:]...)
	if p.flying != h {
		h.next, p.free = p.free, h
	}
}

// drain punches what is marked without resting; idle says when that is done.
func (p *puncher) drain() {
	p.hurry = true
	if p.flying == nil && len(p.order) > 0 {
		p.st.env.Arm(&p.timer, 0)
	}
}

// idle says that nothing is marked or under way.
func (p *puncher) idle() bool { return p.flying == nil && (len(p.order) == 0 || p.stopped) }

// stop gives up what is marked. A punch in flight ends by itself.
func (p *puncher) stop() {
	p.stopped = true
	p.st.env.Disarm(&p.timer)
}

// set marks blocks [block, end).
func (h *holes) set(block, end uint32) {
	h.each(block, end, func(word *uint64, mask uint64) {
		h.n += bits.OnesCount64(mask &^ *word)
		*word |= mask
	})
}

// clear takes the marks of blocks [block, end) away.
func (h *holes) clear(block, end uint32) {
	h.each(block, end, func(word *uint64, mask uint64) {
		h.n -= bits.OnesCount64(mask & *word)
		*word &^= mask
	})
}

func (h *holes) each(block, end uint32, f func(word *uint64, mask uint64)) {
	for block < end {
		n := min(64-block%64, end-block)
		f(&h.bits[block/64], (1<<n-1)<<(block%64))
		block += n
	}
}

// runFrom finds the first run of marked blocks at or behind block at.
func (h *holes) runFrom(at uint32) (first, end uint32, ok bool) {
	first = h.scan(at, 0)
	if first == dataplane.BlocksPerChunk {
		return 0, 0, false
	}
	return first, h.scan(first, ^uint64(0)), true
}

// scan returns the first block from at on whose mark isn't the bit that flip is made of.
func (h *holes) scan(at uint32, flip uint64) uint32 {
	for at < dataplane.BlocksPerChunk {
		if w := (h.bits[at/64] ^ flip) >> (at % 64); w != 0 {
			return at + uint32(bits.TrailingZeros64(w))
		}
		at += 64 - at%64
	}
	return dataplane.BlocksPerChunk
}

// writesTo says whether a write-back of one of the blocks is in flight.
func (st *store) writesTo(slot, block, end uint32) bool {
	for d := st.writing; d != nil; d = d.next {
		if d.wb.Slot == slot && d.wb.Block < end && block < writeEnd(d.wb) {
			return true
		}
	}
	return false
}
