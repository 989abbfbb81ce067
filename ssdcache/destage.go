package ssdcache

import (
	"slices"

	"pstorage/uring"
)

// Destage, in rounds:
//
//	1 take the oldest segments that fit the destage memory; note the blocks still current in them,
//	  sorted by (slot, block)
//	2 read these segments to memory, in large reads
//	3 write runs of consecutive blocks to the Backing; blocks that were overwritten meanwhile are
//	  left out
//	4 Backing.Checkpoint: durable
//	5 wait until all appends made before 4 are durable: blocks were left out in 3 because of them
//	6 superblock with the new tail: from now on replay begins behind these segments
//	7 they are clean: still indexed, so reads find them in the log, until they are used again
//
// The speed follows the fill level: from one run at a time with pauses at DestageAt to many without
// pauses when the log is nearly full, so the intake slows smoothly to the speed of the store.

// Tuning of destage. Times in nanoseconds.
const (
	maxWriteBacks = 8
	pieceSize     = 1 << 20 // of one read
	pauseAtStart  = 2e6     // between runs, at DestageAt
	pauseIdle     = 10e6    // between runs, when nothing is appended
	fullSpeedAt   = 0.85    // fill level without pauses
	tickEvery     = 1e9     // to find out whether the log is idle
	retryEvery    = 5e6
)

type phase uint8

const (
	resting phase = iota
	reading
	writing
	checkpointing
	settling // until what superseded blocks of the round is durable
	marking  // the superblock
)

type destager struct {
	l       *Log
	phase   phase
	idle    bool   // this round runs because nothing else happens
	from    uint64 // segments of the round: [from, from+n)
	n       uint64
	max     uint64   // most segments of a round
	blocks  []uint64 // key<<32 | position: to be written back, ascending
	next    int      // in blocks
	bufs    []*uring.Buf
	ops     []uring.DiskOp
	settle  uint64 // batch that must be durable before the tail moves
	pending int    // reads or WriteBacks in flight
	wb      [maxWriteBacks]WriteBack
	timer   uring.Timer // pause between runs
	tick    uring.Timer
	seen    uint64 // batches at the last tick
}

func (d *destager) init(l *Log, memory int) error {
	d.l = l
	segSize := int(l.sb.segSize)
	d.max = uint64(memory / segSize)
	d.blocks = make([]uint64, 0, d.max*uint64(l.segBlocks))
	size := min(segSize, pieceSize)
	for range int(d.max) * segSize / size {
		b := l.pool.Get(size)
		if b == nil {
			d.release()
			return errNoMemory
		}
		d.bufs = append(d.bufs, b)
	}
	d.ops = make([]uring.DiskOp, len(d.bufs))
	for i := range d.ops {
		d.ops[i].Done, d.ops[i].Bufs = d.readDone, make([][]byte, 1)
	}
	d.timer.Fire = d.pump
	d.tick.Fire = d.onTick
	for i := range d.wb {
		d.wb[i].Done = d.written
	}
	return nil
}

func (d *destager) release() {
	for _, b := range d.bufs {
		b.Release()
	}
	d.bufs = nil
	if d.l != nil {
		d.l.env.Disarm(&d.tick)
		d.l.env.Disarm(&d.timer)
	}
}

// inFlight says whether anything of destage must be waited for before the log can be closed.
func (d *destager) inFlight() bool {
	return d.pending > 0 || d.phase >= checkpointing
}

// InWriteBack says whether a WriteBack of any of the n blocks from block on is in flight. Whoever
// changes the store behind the log's back, for a zeroed range or a slot that gets another chunk,
// waits until it isn't: none is begun for blocks that were dropped.
func (l *Log) InWriteBack(slot, block, n uint32) bool {
	for i := range l.destage.wb {
		w := &l.destage.wb[i]
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
	d.idle = quiet
	if quiet && l.err == nil && l.closing == nil && d.phase == resting {
		d.begin()
	}
}

// startDestage begins a round if the fill level asks for one.
func (l *Log) startDestage() {
	if l.destage.phase == resting && l.closing == nil && l.fill() >= l.o.DestageAt {
		l.destage.idle = false
		l.destage.begin()
	}
}

// begin starts a round, if there is a segment to write back.
func (d *destager) begin() {
	l := d.l
	end := l.head // the segment being filled isn't taken
	if l.oldest != nil {
		end = min(end, l.oldest.h.seg)
	}
	d.from, d.n = l.tail, min(d.max, end-l.tail)
	if d.n == 0 {
		return
	}
	d.blocks, d.next = d.blocks[:0], 0
	for s := d.from; s < d.from+d.n; s++ {
		base := l.place(s, 0)
		for i := range l.segBlocks {
			if key, ok := l.idx.current(base + Pos(i)); ok {
				d.blocks = append(d.blocks, uint64(key)<<32|uint64(base+Pos(i)))
			}
		}
	}
	l.stats.Rounds++
	d.phase = reading
	d.read()
	if d.pending == 0 {
		d.sortAndWrite()
	}
}

// pieceOf returns which of the round's pieces position p lies in, and its byte offset there.
func (d *destager) pieceOf(p Pos) (piece, off int) {
	l := d.l
	place := l.segOf(p)
	s := (place + l.segs - d.from%l.segs) % l.segs // segment of the round
	at := int(s)*int(l.sb.segSize) + int(p-l.segStart(place))*blockSize
	size := min(int(l.sb.segSize), pieceSize)
	return at / size, at % size
}

// read starts reads of the pieces that hold current blocks, from the first to the last of each; a
// few at a time. d.blocks is still in the order of positions within each segment.
func (d *destager) read() {
	for d.pending < 4 && d.next < len(d.blocks) {
		first := Pos(d.blocks[d.next])
		piece, off := d.pieceOf(first)
		last := first
		for d.next < len(d.blocks) {
			p := Pos(d.blocks[d.next])
			if q, _ := d.pieceOf(p); q != piece {
				break
			}
			last = p
			d.next++
		}
		op := &d.ops[piece]
		n := (int(last-first) + 1) * blockSize
		op.Kind, op.Low, op.Offset = uring.DiskRead, true, int64(first)*blockSize
		op.Bufs[0] = d.bufs[piece].Bytes()[off : off+n]
		d.pending++
		d.l.disk.Submit(op)
	}
}

func (d *destager) readDone(op *uring.DiskOp) {
	l := d.l
	d.pending--
	if op.Err != nil {
		l.fail(ioError("read the log for write-back", op.Err))
	}
	if l.err != nil || l.closing != nil {
		d.stop()
		return
	}
	if d.read(); d.pending == 0 {
		d.sortAndWrite()
	}
}

func (d *destager) sortAndWrite() {
	slices.Sort(d.blocks)
	d.phase, d.next = writing, 0
	d.pump()
}

// urgency is 0 where destage starts and 1 from the level of full speed on.
func (d *destager) urgency() float64 {
	at := d.l.o.DestageAt
	return min(max((d.l.fill()-at)/max(fullSpeedAt-at, 0.05), 0), 1)
}

// pump starts WriteBacks as far as the speed allows, and ends the writing when all are done.
func (d *destager) pump() {
	l := d.l
	if d.phase != writing {
		return
	}
	if l.err != nil || l.closing != nil {
		d.stop()
		return
	}
	u := d.urgency()
	pause := int64((1 - u) * (1 - u) * pauseAtStart)
	if d.idle && l.fill() < l.o.DestageAt {
		pause = pauseIdle
	}
	for d.pending < 1+int(u*(maxWriteBacks-1)) && !d.timer.Armed() {
		w := d.nextRun()
		if w == nil {
			break
		}
		d.pending++
		l.stats.WriteBacks++
		l.stats.Destaged += uint64(w.Blocks)
		l.o.Backing.WriteBack(w)
		if pause > 0 {
			l.env.Arm(&d.timer, pause)
		}
	}
	if d.pending == 0 && d.next == len(d.blocks) {
		l.env.Disarm(&d.timer)
		d.phase, d.settle = checkpointing, l.nextNr-1
		l.o.Backing.Checkpoint(d.checkpointed)
	}
}

// nextRun returns the next run of consecutive blocks that are still current, or nil.
func (d *destager) nextRun() *WriteBack {
	l := d.l
	var w *WriteBack
	for ; d.next < len(d.blocks); d.next++ {
		key, p := blockKey(d.blocks[d.next]>>32), Pos(d.blocks[d.next])
		if now, ok := l.idx.current(p); !ok || now != key {
			l.stats.Superseded++
			continue
		}
		slot, block := key>>14, key&(1<<14-1)
		if w == nil {
			w = d.freeWriteBack()
			w.Slot, w.Block, w.Blocks, w.Err = slot, block, 0, nil
			w.Data, w.busy = w.iov[:0], true
		} else if slot != w.Slot || block != w.Block+uint32(w.Blocks) || w.Blocks == MaxRun {
			break
		}
		piece, off := d.pieceOf(p)
		if !w.add(d.bufs[piece].Bytes()[off : off+blockSize]) {
			break
		}
		le.PutUint32(w.crcs[4*w.Blocks:], l.idx.crc[p])
		w.Blocks++
	}
	if w != nil {
		w.CRCs = w.crcs[:4*w.Blocks]
	}
	return w
}

func (d *destager) freeWriteBack() *WriteBack {
	for i := range d.wb {
		if !d.wb[i].busy {
			return &d.wb[i]
		}
	}
	panic("ssdcache: more WriteBacks than allowed")
}

// add appends a block's memory, whose capacity reaches to the end of its buffer, merged with the
// piece before if it lies right behind it. It returns false if there are too many pieces.
func (w *WriteBack) add(mem []byte) bool {
	n := len(w.Data)
	if n > 0 {
		last := w.Data[n-1]
		if len(last) < cap(last) && &last[:len(last)+1][len(last)] == &mem[0] {
			w.Data[n-1] = last[:len(last)+blockSize]
			return true
		}
	}
	if n == len(w.iov) {
		return false
	}
	w.Data = append(w.Data, mem)
	return true
}

// written is the Done of WriteBacks.
func (d *destager) written(w *WriteBack) {
	w.busy = false
	d.pending--
	w.Data, w.CRCs = nil, nil
	clear(w.iov[:])
	if w.Err != nil {
		d.l.fail(ioError("write back to the store", w.Err))
	}
	d.pump()
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
