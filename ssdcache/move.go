package ssdcache

import "pstorage/dataplane"

// Moving. When the store can't keep up, most of what lies in the oldest segments may have been
// overwritten meanwhile: then a round appends what is left of them to the log again (records of
// kind Moved) instead of writing it back. That costs the log's disk sequential reads and writes,
// but the store only a checkpoint. So as long as the working set fits in the log, writes go on at
// the speed of the log's disk; and if it nearly does, the store is only written what doesn't fit.
//
// What must be written back all the same, so that a round frees at least two fifths of its
// segments, is taken in the order of the store's disk, each round going on where the one before
// stopped.
//
// A moved block is read, compared with its checksum, and appended in the same turn in which it was
// still current; so no version of a block ever follows a newer one in the log. One that is damaged
// is never moved: replay would take its batch for a torn one. It is written back as it is.

const (
	moveAt       = 0.8   // fill level from which on: the later, the less is left to be moved
	moveShare    = 0.6   // of a round's blocks may be moved
	movePiece    = 64    // blocks read, or appended, at a time
	movePerBatch = 128   // blocks: a batch must not make writes wait long
	slowStore    = 150e3 // ns of a block written back that is slow, whatever moving takes
	moveReserve  = 3     // segments that moving leaves to what was taken in already
)

// moves says whether what is left of the round is to be moved.
func (d *destager) moves() bool {
	return !d.writeRest && !d.idle && d.l.draining == nil && d.l.fill() >= d.moveFrom() &&
		d.movingPays() && d.urgency() == 1 && d.mustWrite() == 0
}

// movingPays says whether moving a block takes less time than it saves: that of writing it back, if
// it is overwritten before it would have to be moved again, as so many of this round's were. What
// isn't overwritten, such as a large file, would go round in the log for ever.
func (d *destager) movingPays() bool {
	p := &d.l.pace
	return p.slow() && d.overwritten*p.perBlock > p.moveTime()
}

// moveFrom is the fill level from which on the round moves: moveAt, or where a round as large as
// this one leaves a log that was filled as far as the pace permits.
func (d *destager) moveFrom() float64 {
	l := d.l
	return min(moveAt, l.pace.level()-float64(d.n)/float64(l.segs-l.reserve-1))
}

// mustWrite is how many more blocks of the round must be written back if all others are moved.
func (d *destager) mustWrite() int {
	most := int(moveShare * float64(d.n) * float64(d.l.segBlocks))
	return max(0, d.total-d.superseded-most-d.written)
}

// mayMove says whether the log takes moved blocks now.
func (d *destager) mayMove() bool {
	l := d.l
	if l.waiting > 0 || l.open != nil && l.open.moved >= movePerBatch {
		return false
	}
	// Segments that are still read from will be ready in a moment.
	return int(l.ready-l.head) > d.spared() || d.moveSpace() <= 0
}

// moveSpace is how many blocks may be moved before the tail moves on.
func (d *destager) moveSpace() int {
	l := d.l
	return (int(l.tail+l.segs-1-l.head) - d.spared()) * int(l.segBlocks)
}

// spared is how many segments moving leaves to what was taken in already.
func (d *destager) spared() int { return int(min(moveReserve, d.l.reserve-1)) }

// fits says whether a round may take one more segment, with so many blocks to be moved: there must
// be space for all that will be.
func (d *destager) fits(blocks int) bool {
	if d.taken == 0 || d.idle || d.urgency() < 1 || !d.movingPays() {
		return true
	}
	return d.total+blocks <= d.moveSpace()
}

// goOnMoving is called at the end of turns.
func (d *destager) goOnMoving() {
	if d.moving && d.phase == writing && d.mayMove() {
		d.moving = false
		d.pump()
	}
}

// fillMoves takes the next blocks of the round to be moved. It is false if there are no more.
func (d *destager) fillMoves(r *run) bool {
	r.n, r.err, r.move = 0, nil, true
	for r.n < movePiece && len(d.lists) > 0 {
		if e := d.lists.pop(); d.due(e) {
			r.pos[r.n] = Pos(e)
			r.n++
		}
	}
	return r.n > 0
}

// moveOn appends the run's blocks, which are in memory. Those that find no place go back to the
// round.
func (r *run) moveOn() {
	d, l := r.d, r.d.l
	for i := range r.n {
		p := r.pos[i]
		key, ok := l.idx.current(p)
		if !ok || l.idx.state[p]&isClean != 0 {
			d.superseded++
			d.handled++
			l.stats.Superseded++
			continue
		}
		data, sum := r.block(i), l.idx.crc(p)
		full := int(l.ready-l.head) < d.spared()
		if full || dataplane.CRC(data) != sum || !d.move(key, p, data, sum) {
			d.writeRest = !full || d.moveSpace() <= 0
			d.giveBack(r.pos[i:r.n])
			return
		}
	}
}

// giveBack puts blocks of the round, in its order, back on its lists.
func (d *destager) giveBack(pos []Pos) {
	var list []uint64
	for _, p := range pos {
		if key, ok := d.l.idx.current(p); ok {
			list = append(list, d.entry(key, p))
		} else {
			d.superseded++
			d.handled++
		}
	}
	d.lists.push(list)
}

// move appends the block of the given key at p again. It is false if there is no place for it.
func (d *destager) move(key blockKey, p Pos, data []byte, sum uint32) bool {
	l, a := d.l, &d.app
	a.Record = Record{Kind: Moved, Slot: key >> 14, Offset: key & (1<<14 - 1) * blockSize,
		Length: blockSize}
	le.PutUint32(d.appCRC[:], sum)
	a.Data, a.CRCs = data, d.appCRC[:]
	defer func() { a.Data = nil }()
	b, err := l.roomFor(a)
	if err != nil {
		return false
	}
	l.env.AtTurnEnd(&l.turn)
	to := b.start + Pos(b.h.headBlocks+b.h.dataBlocks)
	heat := l.idx.state[p] & heatMask
	l.addEntry(b, a)
	l.addData(b, a)
	l.idx.state[to] = isWrite | heat
	b.moved++
	d.moved++
	d.handled++
	l.stats.Moved++
	l.pace.moved()
	return true
}
