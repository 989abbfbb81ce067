package ssdcache

import (
	"math/bits"

	"pstorage/dataplane"
	"pstorage/uring"
)

// maxGap is the most clean blocks in a row that are written again to merge what lies on both sides:
// so many take a disk less time than another seek. What the log doesn't have of them the store has
// to read before, which pays only if an operation takes it seekTime ns or more.
const (
	maxGap   = 64
	seekTime = 2e6
)

// listHeap is a heap of ascending lists, that with the least first entry on top: it merges them.
type listHeap [][]uint64

func (h *listHeap) push(list []uint64) {
	if len(list) == 0 {
		return
	}
	*h = append(*h, list)
	s := *h
	for i := len(s) - 1; i > 0 && s[i][0] < s[(i-1)/2][0]; i = (i - 1) / 2 {
		s[i], s[(i-1)/2] = s[(i-1)/2], s[i]
	}
}

// pop takes the least entry.
func (h *listHeap) pop() uint64 {
	s := *h
	e := s[0][0]
	if s[0] = s[0][1:]; len(s[0]) == 0 {
		last := len(s) - 1
		s[0] = s[last]
		s[last] = nil
		s = s[:last]
		*h = s
	}
	for i := 0; ; {
		c := 2*i + 1
		if c >= len(s) {
			return e
		}
		if c+1 < len(s) && s[c+1][0] < s[c][0] {
			c++
		}
		if s[i][0] <= s[c][0] {
			return e
		}
		s[i], s[c] = s[c], s[i]
		i = c
	}
}

// run is one run of neighbouring blocks, from the log to the Backing. It is written as one
// WriteBack, or as several if some of it was overwritten while it was read.
type run struct {
	WriteBack
	d     *destager
	used  bool
	first uint32 // block of the slot
	n     int
	at    int  // the WriteBack begins with this block of the run
	left  int  // reads in flight
	move  bool // to be appended to the log again
	err   error
	buf   *uring.Buf // nil: the round's segments are in memory
	pos   [MaxRun]Pos
	dirty [MaxRun / 64]uint64
	crcs  [4 * MaxRun]byte
	data  [uring.MaxDiskBufs][]byte
	reads []*ReadOp // made when needed
}

func (r *run) init(d *destager) {
	r.d = d
	r.Done = func(*WriteBack) { r.written() }
}

// read returns the i-th read of the run.
func (r *run) read(i int) *ReadOp {
	for len(r.reads) <= i {
		r.reads = append(r.reads, &ReadOp{Low: true, Done: r.fetched})
	}
	return r.reads[i]
}

func (r *run) isDirty(i int) bool { return r.dirty[i/64]>>(i%64)&1 != 0 }

// block is the memory of block i of the run.
func (r *run) block(i int) []byte {
	if r.buf == nil {
		return r.d.inImage(r.pos[i])[:blockSize]
	}
	return r.buf.Bytes()[i*blockSize:][:blockSize]
}

// freeRun returns a run, or nil.
func (d *destager) freeRun() *run {
	for i := range d.runs {
		if r := &d.runs[i]; !r.used {
			return r
		}
	}
	return nil
}

// memory gives a filled run memory, if it needs any. If there is none, what it was filled with goes
// back to the round. One run always gets memory.
func (d *destager) memory(r *run) bool {
	if d.image != nil {
		r.used = true
		return true
	}
	if r.buf = d.l.pool.Get(r.n * blockSize); r.buf == nil {
		r.buf, d.spare = d.spare, nil
	}
	if r.buf == nil {
		d.putBack(r)
		return false
	}
	r.used = true
	return true
}

// putBack puts what the run was filled with back on the lists of the round.
func (d *destager) putBack(r *run) {
	if r.move {
		d.giveBack(r.pos[:r.n])
		return
	}
	var pos []Pos
	for i := range r.n {
		if r.isDirty(i) && d.l.seqOf(r.pos[i]) < d.from+d.n {
			pos = append(pos, r.pos[i])
		}
	}
	d.giveBack(pos)
}

// free gives a run and its memory back.
func (d *destager) free(r *run) {
	r.used = false
	clear(r.data[:])
	switch {
	case r.buf == nil:
	case d.spare == nil && len(r.buf.Bytes()) >= MaxRun*blockSize:
		d.spare = r.buf
	default:
		r.buf.Release()
	}
	r.buf = nil
}

// keyOf is the block that an entry is of.
func (d *destager) keyOf(e uint64) blockKey { return blockKey(e>>32) + d.base }

// due takes entry e of the round: is it still to be written?
func (d *destager) due(e uint64) bool {
	p := Pos(e)
	now, ok := d.l.idx.current(p)
	if ok && now == d.keyOf(e) && d.l.idx.state[p]&isClean == 0 {
		return true
	}
	d.l.stats.Superseded++
	d.superseded++
	d.handled++
	return false
}

// fill puts the next run of blocks in r. It is false if the round has no more.
func (d *destager) fill(r *run) bool {
	r.n, r.err, r.move, r.Gaps = 0, nil, false, [MaxRun / 64]uint64{}
	clear(r.dirty[:])
	var key blockKey
	for r.n == 0 {
		if len(d.lists) == 0 {
			return false
		}
		if e := d.lists.pop(); d.due(e) {
			key = d.keyOf(e)
			r.add(Pos(e), true)
		}
	}
	r.Slot, r.first = key>>14, key&(1<<14-1)
	if d.image != nil {
		d.last = d.extend(r, key)
		return true
	}
	// The round began at base. A run that reaches it from below would take blocks that the first
	// ones have in flight.
	for gap := 0; r.n < MaxRun && (key+1)>>14 == r.Slot && key+1 != d.base; {
		key++
		p, dirty, ok := d.neighbour(key)
		if gap++; dirty {
			gap = 0
		}
		if !ok || gap > maxGap {
			break
		}
		r.add(p, dirty)
	}
	for !r.isDirty(r.n - 1) {
		r.n--
	}
	d.last = key
	return true
}

// extend adds to r, which ends with the block of the given key, what follows in the round, whose
// segments are in memory, over gaps if that pays. It returns the key of the last block. In memory
// the blocks may all lie apart.
func (d *destager) extend(r *run, key blockKey) blockKey {
	most := blockKey(1)
	if d.fillsGaps() {
		most = maxGap + 1
	}
	for n := 1; n < uring.MaxDiskBufs && len(d.lists) > 0; {
		next := d.keyOf(d.lists[0][0])
		if next>>14 != r.Slot || next-key-1 >= most || next&(1<<14-1)-r.first >= MaxRun {
			break
		}
		e := d.lists.pop()
		if !d.due(e) {
			continue
		}
		for key++; key < next; key++ {
			r.Gaps[r.n/64] |= 1 << (r.n % 64)
			r.pos[r.n] = 0
			r.n++
		}
		r.add(Pos(e), true)
		n++
	}
	return key
}

// fillsGaps says whether the store is to write neighbours again as they are.
func (d *destager) fillsGaps() bool { return d.l.pace.perOp >= seekTime && !d.probing() }

// probing says whether runs are written without gaps, to see how long an operation takes.
func (d *destager) probing() bool {
	return d.l.stats.Rounds%probeEvery == 0 && d.ops < probeOps
}

// neighbour finds a block that may be written along with the one before it.
func (d *destager) neighbour(key blockKey) (p Pos, dirty, ok bool) {
	l := d.l
	for len(d.lists) > 0 && d.keyOf(d.lists[0][0]) == key {
		if e := d.lists.pop(); d.due(e) {
			return Pos(e), true, true
		}
	}
	if p, ok = l.idx.get(key); !ok {
		return 0, false, false
	}
	dirty = l.dirty(p)
	if dirty && l.seqOf(p) >= d.end {
		return 0, false, false // maybe not durable: the store must never be ahead of the log
	}
	return p, dirty, true
}

func (r *run) add(p Pos, dirty bool) {
	if dirty {
		r.dirty[r.n/64] |= 1 << (r.n % 64)
	}
	r.pos[r.n] = p
	le.PutUint32(r.crcs[4*r.n:], r.d.l.idx.crc(p))
	r.n++
}

// fetch reads the run from the log.
func (r *run) fetch() {
	d := r.d
	if d.image != nil {
		r.goOn()
		return
	}
	r.left = 1
	soon := d.urgency() == 1
	for i, j := 0, 0; i < r.n; i = j {
		for j = i + 1; j < r.n && r.pos[j] == r.pos[j-1]+1; j++ {
		}
		op := r.read(i)
		op.Pos, op.Blocks, op.soon = r.pos[i], j-i, soon
		op.Buf = r.buf.Bytes()[i*blockSize : j*blockSize]
		r.left++
		d.l.Read(op)
	}
	r.left--
}

func (r *run) fetched(op *ReadOp) {
	d := r.d
	op.Buf = nil
	if op.Err != nil {
		d.l.fail(op.Err)
	}
	if r.left--; r.left > 0 {
		return
	}
	if d.l.err != nil || d.l.closing != nil {
		d.ended(r)
		return
	}
	r.goOn()
}

// goOn is called when the run's blocks are in memory.
func (r *run) goOn() {
	if r.move {
		r.moveOn()
		r.d.ended(r)
		return
	}
	r.issue(0)
}

// good says whether block i of the run may go to the store: it wasn't overwritten or dropped since,
// and, if the store has it already, it is what the store should have.
func (r *run) good(i int) bool {
	if r.IsGap(i) {
		return true
	}
	idx := r.d.l.idx
	p := r.pos[i]
	key, ok := idx.current(p)
	if !ok || key != keyOf(r.Slot, r.first+uint32(i)) {
		return false
	}
	if r.isDirty(i) || dataplane.CRC(r.block(i)) == idx.crc(p) {
		return true
	}
	if !r.d.l.dirty(p) { // otherwise the place was used again since, for a newer write
		idx.evict(p) // damaged in the log; the store has it
	}
	return false
}

// issue writes the next good part of the run, from block i on, or ends the run. A run with gaps was
// filled in this turn: all of it is good.
func (r *run) issue(i int) {
	d := r.d
	for ; i < r.n; i++ {
		if !r.isDirty(i) || !r.good(i) {
			continue
		}
		end := i + 1
		for j := end; j < r.n && r.good(j); j++ {
			if r.isDirty(j) {
				end = j + 1
			}
		}
		r.at, r.Blocks, r.Block, r.Err = i, end-i, r.first+uint32(i), nil
		r.Data, r.CRCs, r.busy = r.gather(i, end), r.crcs[4*i:4*end], true
		r.Urgent = d.urgency() == 1
		d.l.stats.WriteBacks++
		d.l.pace.sent()
		d.l.cache.change(r.Slot, r.Block, uint32(r.Blocks))
		d.l.o.Backing.WriteBack(&r.WriteBack)
		return
	}
	d.ended(r)
}

// gather is the memory of blocks [i, end).
func (r *run) gather(i, end int) [][]byte {
	if r.buf != nil {
		r.data[0] = r.buf.Bytes()[i*blockSize : end*blockSize]
		return r.data[:1]
	}
	n := 0
	for j := i; i < end; i = j {
		if j = i + 1; r.IsGap(i) {
			continue
		}
		for ; j < end && r.pos[j] == r.pos[j-1]+1; j++ {
		}
		r.data[n] = r.d.inImage(r.pos[i])[:(j-i)*blockSize]
		n++
	}
	return r.data[:n]
}

// written is the Done of the WriteBack. Blocks of younger segments are clean from now on: they need
// not be written in their round, which ends with a checkpoint after this one.
func (r *run) written() {
	d, l := r.d, r.d.l
	r.busy = false
	d.ops++
	l.pace.served(r.due(), r.HasGaps())
	if r.Err != nil {
		l.fail(ioError("write back to the store", r.Err))
		d.ended(r)
		return
	}
	for i := r.at; i < r.at+r.Blocks; i++ {
		if !r.isDirty(i) {
			l.stats.GapBlocks++
			continue
		}
		l.stats.Destaged++
		if r.good(i) {
			l.idx.state[r.pos[i]] |= isClean
		}
	}
	if l.err != nil || l.closing != nil {
		d.ended(r)
		return
	}
	r.issue(r.at + r.Blocks)
}

// due is how many blocks of the WriteBack had to be written in this round.
func (r *run) due() (n int) {
	end := r.d.from + r.d.n
	for i := r.at; i < r.at+r.Blocks; i++ {
		if r.isDirty(i) && r.d.l.seqOf(r.pos[i]) < end {
			n++
		}
	}
	return n
}

// ended takes a run back.
func (d *destager) ended(r *run) {
	if r.move {
		d.reading--
	} else {
		for _, w := range r.dirty {
			d.handled += bits.OnesCount64(w)
			d.written += bits.OnesCount64(w)
		}
	}
	d.free(r)
	d.pending--
	d.l.pace.update()
	d.pump()
}
