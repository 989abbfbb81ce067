package ssdcache

import (
	"slices"

	"pstorage/uring"
)

// Destage, in rounds:
//
//	1 take the oldest segments, up to an eighth of the log; note the blocks still dirty in them, per
//	  segment sorted by (slot, block), from where the last round stopped; these lists are merged as
//	  the round goes
//	2 form runs of neighbouring blocks; blocks that lie between and are in the log anyway, dirty in
//	  younger segments or clean, fill gaps; on a disk that seeks, the store fills them (runs.go)
//	3 read them from the log, write them to the Backing; what was overwritten meanwhile is left out.
//	  If the Backing is slow, most are appended to the log again instead (move.go)
//	4 Backing.Checkpoint: durable
//	5 wait until all appends made before 4 are durable: blocks were left out in 3 because of them
//	6 superblock with the new tail: from now on replay begins behind these segments
//	7 they are clean: still indexed, so reads find them in the log, until they are used again
//
// The speed follows the fill level: from one run at a time with pauses at DestageAt to many without
// pauses when the log is nearly full. The intake is slowed to what the round leaves room for
// (pace.go).

// Tuning of destage. Times in nanoseconds.
const (
	maxWriteBacks = 64      // in flight,
	minWriteBacks = 4       // and at least so many may be, at full speed;
	flightTime    = 4e6     // in between, as many as the store takes in this time
	roundShare    = 8       // a round takes at most this part of the log,
	slowShare     = 16      // or this one if Sequential and slow,
	roundBlocks   = 1 << 16 // and this many blocks of log
	pieceSize     = 1 << 20 // of one read
	pauseAtStart  = 2e6     // between runs, at DestageAt
	pauseIdle     = 10e6    // between runs, when nothing is appended
	fullSpeedAt   = 0.25    // part of the way from DestageAt to full where there are no pauses
	tickEvery     = 1e9     // to find out whether the log is idle
	probeEvery    = 8       // rounds: one begins with
	probeOps      = 8       // write-backs without gaps, see fillsGaps
	maxStored     = 1 << 16 // Stored records that replay leaves to the owner, or little more
)

type phase uint8

const (
	resting phase = iota
	collecting
	writing
	checkpointing
	settling // until what superseded blocks of the round is durable
	marking  // the superblock
)

type destager struct {
	l                          *Log
	phase                      phase
	idle                       bool   // this round runs because nothing else happens
	from                       uint64 // segments of the round: [from, from+n)
	n                          uint64
	end                        uint64 // all that lies in segments before this one is durable
	max                        uint64 // most segments of a round
	taken                      uint64 // segments collected
	blocks                     []uint64
	gone                       int     // blocks of the segments collected that were overwritten before
	overwritten                float64 // share that they are, of the last round's
	lists                      listHeap
	total                      int // blocks of the round
	handled                    int // of them: written, moved, or superseded meanwhile
	written, moved, superseded int
	ops                        int      // write-backs done
	base                       blockKey // keys are ordered from here on, around
	last                       blockKey // written last
	writeRest                  bool     // nothing more is moved in this round
	moving                     bool     // the log is waited for, for moving
	reading                    int      // runs in flight that are to be moved
	app                        Append   // for moved blocks
	appCRC                     [4]byte
	image                      *uring.Pool // Sequential: the round's segments
	pieces                     []uring.DiskOp
	ahead                      uint64 // segments after the round and before this one are in the image
	aheadOps                   []uring.DiskOp
	aheadPending               int
	settle                     uint64 // batch that must be durable before the tail moves
	pending                    int    // reads of segments, or runs, in flight
	runs                       [maxWriteBacks]run
	spare                      *uring.Buf  // memory of one run, if the pool has none
	timer                      uring.Timer // pause between runs, or between segments
	tick                       uring.Timer
	seen                       uint64 // batches at the last tick
}

func (d *destager) init(l *Log) error {
	d.l = l
	l.pace.init(l)
	segSize := int(l.sb.segSize)
	d.max = max(min(l.segs/roundShare, roundBlocks/uint64(l.segBlocks)), 2)
	if l.o.Sequential {
		mem := l.o.DestageMemory
		if mem == 0 {
			mem = min(int(l.segs)*segSize/4, 64<<20)
		}
		d.max = min(max(uint64(mem/segSize), 2), l.segs/2)
		var err error
		if d.image, err = l.o.NewPool(int(d.max) * segSize); err != nil {
			return err
		}
		d.pieces = make([]uring.DiskOp, max(segSize/pieceSize, 1))
		for i := range d.pieces {
			d.pieces[i].Done, d.pieces[i].Bufs = d.pieceRead, make([][]byte, 1)
		}
		d.aheadOps = make([]uring.DiskOp, len(d.pieces))
		for i := range d.aheadOps {
			d.aheadOps[i].Done, d.aheadOps[i].Bufs = d.aheadRead, make([][]byte, 1)
		}
	}
	if d.spare = l.pool.Get(MaxRun * blockSize); d.spare == nil {
		return errNoMemory
	}
	d.blocks = make([]uint64, 0, d.max*uint64(l.segBlocks))
	d.lists = make(listHeap, 0, d.max)
	d.timer.Fire = d.onTimer
	d.tick.Fire = d.onTick
	for i := range d.runs {
		d.runs[i].init(d)
	}
	return nil
}

// release gives memory back. Nothing is in flight.
func (d *destager) release() error {
	if d.l == nil {
		return nil
	}
	d.l.env.Disarm(&d.tick)
	d.l.env.Disarm(&d.timer)
	if d.spare != nil {
		d.spare.Release()
		d.spare = nil
	}
	if d.image == nil {
		return nil
	}
	return d.image.Close()
}

// inFlight says whether anything of destage must be waited for before the log can be closed.
func (d *destager) inFlight() bool {
	return d.pending > 0 || d.aheadPending > 0 || d.phase >= checkpointing
}

// InWriteBack says whether a WriteBack of any of the n blocks from block on is in flight. Whoever
// changes the store behind the log's back, for a zeroed range or a slot that gets another chunk,
// waits until it isn't: none is begun for blocks that were dropped.
func (l *Log) InWriteBack(slot, block, n uint32) bool {
	for i := range l.destage.runs {
		w := &l.destage.runs[i]
		if w.busy && w.Slot == slot && w.Block < block+n && block < w.Block+uint32(w.Blocks) {
			return true
		}
	}
	return false
}

// onTick begins a gentle round if nothing was appended since the last tick.
func (d *destager) onTick() {
	l := d.l
	l.env.Arm(&d.tick, tickEvery)
	quiet := d.seen == l.nextNr
	d.seen = l.nextNr
	d.idle = quiet && !l.wantRoom && l.draining == nil
	if quiet && l.err == nil && l.closing == nil && l.draining == nil && d.phase == resting {
		d.begin()
	}
}

// startDestage begins a round if the fill level asks for one.
func (l *Log) startDestage() {
	if l.destage.phase != resting || l.closing != nil {
		return
	}
	if l.draining != nil {
		l.drain()
	} else if l.fill() >= l.o.DestageAt || l.stored > maxStored {
		l.destage.idle = false
		l.destage.begin()
	}
}

// StartWriteBack ends Options.Hold.
func (l *Log) StartWriteBack() {
	l.o.Hold = false
	l.env.AtTurnEnd(&l.turn)
}

// begin starts a round, if there is a segment to write back.
func (d *destager) begin() {
	l := d.l
	if l.o.Hold {
		return
	}
	d.end = d.durableEnd() // the segment being filled isn't taken
	most := d.max
	if l.pace.perBlock > 0 && !l.pace.slow() {
		most = min(most, max(l.segs/roundShare, 2)) // a checkpoint doesn't cost much
	}
	if d.image != nil && l.pace.slow() { // the log stays fuller, and the rest is read ahead
		most = min(most, max(l.segs/slowShare, 4))
	}
	d.from, d.n = l.tail, min(most, d.end-l.tail)
	if d.n == 0 {
		return
	}
	d.blocks, d.lists, d.taken, d.total, d.handled = d.blocks[:0], d.lists[:0], 0, 0, 0
	d.gone = 0
	d.written, d.moved, d.superseded, d.ops = 0, 0, 0, 0
	d.base, d.writeRest, d.moving = d.last, false, false
	l.stored = 0
	l.stats.Rounds++
	d.phase = collecting
	l.pace.begin()
	d.onTimer()
}

func (d *destager) onTimer() {
	switch {
	case d.phase == collecting && d.pending == 0:
		d.collect()
	case d.phase == writing:
		d.pump()
	}
}

// collect notes the dirty blocks of one more segment: one in a turn, since it takes a while.
func (d *destager) collect() {
	l := d.l
	if l.err != nil || l.closing != nil {
		d.stop()
		return
	}
	if d.taken == d.n {
		d.phase = writing
		d.overwritten = float64(d.gone) / float64(max(d.gone+d.total, 1))
		l.pace.skip(l.env.Now()) // reading isn't what a block costs
		d.pump()
		return
	}
	if d.aheadPending > 0 && d.from+d.taken == d.ahead {
		return // it is being read
	}
	base := l.place(d.from+d.taken, 0)
	first, gone := len(d.blocks), 0
	for i := range l.segBlocks {
		p := base + Pos(i)
		if key, ok := l.idx.current(p); l.idx.state[p]&(isWrite|isClean) != isWrite {
			continue
		} else if ok {
			d.blocks = append(d.blocks, d.entry(key, p))
		} else {
			gone++
		}
	}
	list := d.blocks[first:]
	if !d.fits(len(list)) {
		d.blocks, d.n = d.blocks[:first], d.taken
		l.env.Arm(&d.timer, 0)
		return
	}
	if d.image != nil && d.from+d.taken >= d.ahead {
		d.readSegment(list)
	}
	slices.Sort(list)
	d.lists.push(list)
	d.total += len(list)
	d.gone += gone
	d.taken++
	if d.pending == 0 {
		l.env.Arm(&d.timer, 0)
	}
}

// readSegment reads the segment just collected to memory, from the first to the last dirty block of
// each piece. list is in the order of positions.
func (d *destager) readSegment(list []uint64) {
	l := d.l
	for i, op := 0, 0; i < len(list); op++ {
		first := Pos(list[i])
		last := first
		mem := d.inImage(first)
		piece := (first - l.place(d.from+d.taken, 0)) * blockSize / pieceSize
		for ; i < len(list); i++ {
			p := Pos(list[i])
			if (p-l.place(d.from+d.taken, 0))*blockSize/pieceSize != piece {
				break
			}
			last = p
		}
		o := &d.pieces[op]
		o.Kind, o.Low, o.Offset = uring.DiskRead, d.urgency() < 1, int64(first)*blockSize
		o.Bufs[0] = mem[:(last-first+1)*blockSize]
		d.pending++
		l.disk.Submit(o)
	}
}

// inImage is the memory of position p, and what follows, in the image of the round's segments.
func (d *destager) inImage(p Pos) []byte {
	l := d.l
	s := l.seqOf(p) % d.max
	at := int(s)*int(l.sb.segSize) + int(p-l.segStart(l.segOf(p)))*blockSize
	return d.image.Arena()[at:]
}

// readAhead reads the segments after those of the round, one after the other, while the round is
// written, as far as there is memory for them and writes wait for write-back.
func (d *destager) readAhead() {
	l := d.l
	next := max(d.ahead, d.from+d.n)
	if d.image == nil || d.aheadPending > 0 || d.phase < writing || d.urgency() < 1 ||
		next >= d.durableEnd() || next-d.from >= d.max || l.err != nil || l.closing != nil {
		return
	}
	d.ahead = next
	mem := d.image.Arena()[int(next%d.max)*int(l.sb.segSize):][:l.sb.segSize]
	for i := range d.aheadOps {
		o := &d.aheadOps[i]
		n := min(len(mem), pieceSize)
		o.Kind, o.Low, o.Offset = uring.DiskRead, false, int64(l.place(next, 0))*blockSize+
			int64(i)*pieceSize
		o.Bufs[0], mem = mem[:n], mem[n:]
		d.aheadPending++
		l.disk.Submit(o)
	}
}

func (d *destager) aheadRead(op *uring.DiskOp) {
	l := d.l
	d.aheadPending--
	if op.Err != nil {
		l.fail(ioError("read the log for write-back", op.Err))
	}
	if d.aheadPending > 0 {
		return
	}
	d.ahead++
	if l.closing != nil {
		l.env.AtTurnEnd(&l.turn)
	}
	if d.phase == collecting {
		d.onTimer()
		return
	}
	d.readAhead()
}

// durableEnd is the first segment that may hold what isn't durable.
func (d *destager) durableEnd() uint64 {
	if l := d.l; l.oldest != nil {
		return min(l.head, l.oldest.h.seg)
	}
	return d.l.head
}

func (d *destager) pieceRead(op *uring.DiskOp) {
	d.pending--
	if op.Err != nil {
		d.l.fail(ioError("read the log for write-back", op.Err))
	}
	if d.pending == 0 {
		d.collect()
	}
}

// entry is how a block is noted: in the order of the store's disk, from base on, around.
func (d *destager) entry(key blockKey, p Pos) uint64 { return uint64(key-d.base)<<32 | uint64(p) }

// depth is how many runs may be in flight.
func (d *destager) depth(u float64) int {
	most := float64(2 * minWriteBacks)
	if per := d.l.pace.perOp; per > 0 {
		most = min(max(flightTime/per, minWriteBacks), maxWriteBacks)
	}
	return 1 + int(u*(most-1))
}

// urgency is 0 where destage starts and 1 from the level of full speed on.
func (d *destager) urgency() float64 {
	if d.l.draining != nil {
		return 1
	}
	at := d.l.o.DestageAt
	return min(max((d.l.fill()-at)/((1-at)*fullSpeedAt), 0), 1)
}

// pump starts runs as far as the speed allows, and ends the writing when all are done.
func (d *destager) pump() {
	l := d.l
	if d.phase != writing {
		return
	}
	if l.err != nil || l.closing != nil {
		d.stop()
		return
	}
	d.idle = d.idle && d.seen == l.nextNr
	d.readAhead()
	u := d.urgency()
	pause := int64((1 - u) * (1 - u) * pauseAtStart)
	if u < 1 && l.fill() < l.o.DestageAt && !l.wantRoom { // begun when nothing else happened
		pause = pauseIdle
	}
	for d.phase == writing && d.pending < d.depth(u) && !d.timer.Armed() && len(d.lists) > 0 {
		moves := d.moves()
		if moves && d.moved == 0 {
			l.pace.sample(l.env.Now(), true)
		}
		if moves && !d.mayMove() {
			d.moving = true
			break
		}
		if !moves && d.reading > 0 {
			break // what can't be moved comes back, and must not lie in a run of others
		}
		r := d.freeRun()
		if r == nil || moves && !d.fillMoves(r) || !moves && !d.fill(r) {
			break
		}
		if !d.memory(r) {
			break
		}
		d.pending++
		if moves {
			d.reading++
		}
		if pause > 0 {
			l.env.Arm(&d.timer, pause)
		}
		r.fetch()
	}
	if d.phase == writing && d.pending == 0 && len(d.lists) == 0 {
		l.env.Disarm(&d.timer)
		d.phase, d.settle = checkpointing, l.nextNr-1
		l.pace.update()
		l.env.AtTurnEnd(&l.turn) // a batch of copies that could wait is settled with it, and can't now
		l.o.Backing.Checkpoint(d.checkpointed)
	}
}

func (d *destager) checkpointed(err error) {
	l := d.l
	if err != nil {
		l.fail(ioError("checkpoint of the store", err))
	}
	d.phase = settling
	d.trySettle()
}

// trySettle moves the tail when every append that took a block of the round out of the index is
// durable. Before, a crash could lose that append, and the older block must still be in the log.
func (d *destager) trySettle() {
	l := d.l
	if d.phase != settling {
		return
	}
	if l.err != nil {
		d.stop()
		return
	}
	if l.durable < d.settle {
		return
	}
	d.phase = marking
	tail := d.from + d.n
	l.sb.tail, l.sb.tailBatch = tail, l.first[tail%l.segs]
	l.writeSuper(d.marked)
}

func (d *destager) marked(err error) {
	l := d.l
	d.phase = resting
	if err != nil {
		l.fail(err)
		return
	}
	l.tail = d.from + d.n
	l.pace.end()
	l.env.AtTurnEnd(&l.turn) // more to do, or room to tell of, or closing
}

// stop gives up the round; what was written back is written again after the next start.
func (d *destager) stop() {
	if d.pending == 0 {
		d.phase = resting
		d.l.env.Disarm(&d.timer)
		d.l.env.AtTurnEnd(&d.l.turn)
	}
}
