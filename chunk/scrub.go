package chunk

import (
	"fmt"
	"math/bits"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// The scrubber reads the whole store once in a period, so that damage in what nobody reads is
// found while other members still have the block. A pass goes over the slots in order, 1 MiB
// (a step) at a time, one low-priority read in flight:
//
//  1. tick: is it time for the next step? Clients that are at work are given way to, as long as the
//     pass is on schedule.
//  2. step: the next blocks; those that were never written cost nothing. The space of those that
//     were zeroed is given back if a crash left it (punch.go).
//  3. gotPage: with their CRC page in memory: which blocks are to be compared, and with what. A
//     block that the log has a copy of isn't: readers are given that one.
//  4. read, compare. A block that doesn't match may have been overwritten meanwhile.
//  5. confirm: so each suspect is read again by itself. One that stays bad goes the way of
//     repair.go, as if a client had read it; its chunk is settled first if it wasn't.
//  6. At the end of a chunk its head compares the replicas (digest.go).
//
// The position is kept in the scrub record (scrubrecord.go): the next start goes on from there.
type scrubber struct {
	sh     *Shard
	period int64        // ns for one pass; < 0: only passes that are asked for
	rate   int64        // bytes per second at most
	wall   func() int64 // ns since 1970
	timer  uring.Timer
	then   func() // what the timer is for
	rec    scrubRecord

	late     bool   // it was said that this pass takes too long
	lastStep int64  // env time
	seen     uint64 // requests of clients
	left     uint64 // bytes from slot leftAt on, counted at leftNs
	leftAt   uint32
	leftNs   int64

	r        *replica // of the step; nil: between two steps
	at       uint32   // its first block
	page     *crcPage // pinned
	wait     pageWait
	waiting  bool // for the page
	cold     bool // the page wasn't in memory
	op       uring.DiskOp
	mem      [1][]byte
	inFlight bool
	buf      *uring.Buf
	from     uint32 // first block being read
	todo     [scrubBlocks / 64]uint64
	suspect  [scrubBlocks / 64]uint64
	tries    int
	woken    int64 // when the chunk was asked to be settled; 0: it wasn't
	repairs  int   // of this step, under way
	again    int   // of this step, that came to nothing

	comparing bool // a comparison is under way

	savedAt int64
	saving  bool
	saveOp  uring.DiskOp
	saveMem [1][]byte
	saveBuf *uring.Buf
}

const (
	// scrubBlocks is how many blocks one step covers: 1 MiB, so one CRC page has their words.
	scrubBlocks = 256
	scrubBytes  = scrubBlocks * dataplane.BlockSize

	scrubSkips    = 256 // steps without I/O in one turn
	scrubPeriod   = 14 * 24 * time.Hour
	scrubRate     = 64 << 20 // bytes per second
	scrubSaves    = 10 * time.Second
	scrubBusy     = 250 * time.Millisecond // longest wait for a step while clients are at work
	scrubLook     = 10 * time.Millisecond  // between two looks at whether they still are
	scrubRetry    = 100 * time.Millisecond // for memory, repairs, settling
	scrubPatience = 10 * time.Second       // for a chunk to be settled
	scrubLongest  = time.Hour              // the timer is armed for
	scrubRecount  = time.Minute            // of what is left
	scrubAgain    = 16                     // repairs of one step that are begun anew
	scrubLate     = 20                     // a pass is late by one part in so many of its period
)

// init readies the scrubber; the record is loaded later.
func (s *scrubber) init(sh *Shard, o *ShardOptions) {
	s.sh, s.period, s.rate, s.wall = sh, int64(o.ScrubPeriod), o.ScrubRate, o.WallClock
	if s.period == 0 {
		s.period = int64(scrubPeriod)
	}
	if s.rate <= 0 {
		s.rate = scrubRate
	}
	if s.wall == nil {
		s.wall = sh.env.Now
	}
	s.leftAt = noSlot
	s.timer.Fire = func() {
		if !s.ended() {
			s.then()
		}
	}
	s.wait.ready = s.gotPage
	s.op.Kind, s.op.Low, s.op.Bufs = uring.DiskRead, true, s.mem[:]
	s.op.Done = s.readDone
	s.saveOp.Kind, s.saveOp.Low, s.saveOp.Offset = uring.DiskWriteSync, true, scrubOffset
	s.saveOp.Bufs, s.saveOp.Done = s.saveMem[:], s.saved
}

// load takes the record that the store has.
func (s *scrubber) load(b []byte) {
	if err := s.rec.decode(b); err != nil {
		s.sh.slog.Warn("the scrubber starts anew", "reason", err)
	}
}

// start has the scrubber work.
func (s *scrubber) start() { s.after(0, s.tick) }

func (s *scrubber) after(d int64, then func()) {
	s.then = then
	s.sh.env.Arm(&s.timer, d)
}

func (s *scrubber) ended() bool { return s.sh.dead != nil || s.sh.stopping }

// ScrubStart begins a pass over the whole store now, at the highest rate that is set. A pass that
// was asked for and is under way goes on.
func (sh *Shard) ScrubStart() {
	s := &sh.scrub
	const both = scrubRunning | scrubManual
	if s.ended() || s.rec.flags&both == both {
		return
	}
	s.begin(scrubManual)
	if s.r == nil && !s.comparing {
		s.after(0, s.tick)
	}
}

// begin starts a pass. A step that is under way ends as one of the new pass.
func (s *scrubber) begin(flags uint32) {
	s.rec = scrubRecord{flags: scrubRunning | flags, startedNs: s.wall(),
		finishedNs: s.rec.finishedNs}
	s.leftAt, s.late = noSlot, false
	s.sh.slog.Info("scrub began", "asked", flags&scrubManual != 0)
	s.save()
}

func (s *scrubber) finish() {
	s.rec.flags = 0
	s.rec.finishedNs = s.wall()
	s.sh.slog.Info("scrub ended", "read", s.rec.read, "bad", s.rec.bad, "repaired", s.rec.repaired,
		"lost", s.rec.lost, "mismatches", s.rec.mismatches)
	s.save()
	s.after(0, s.tick)
}

// tick starts the next step when it is due.
func (s *scrubber) tick() {
	now, wall := s.sh.env.Now(), s.wall()
	if s.rec.flags&scrubRunning == 0 {
		due := s.rec.startedNs + s.period
		switch {
		case s.period < 0:
			s.after(int64(scrubLongest), s.tick)
			return
		case wall < due && s.rec.startedNs <= wall:
			s.after(min(due-wall, int64(scrubLongest)), s.tick)
			return
		}
		if _, used := s.sh.Capacity(); used == 0 {
			s.after(min(s.period, int64(scrubLongest)), s.tick)
			return
		}
		s.begin(0)
		s.lastStep = now // the first step isn't at once: many servers may start together
	}
	s.tellLate(wall)
	gap := s.gap(wall)
	if wait := s.lastStep + gap - now; wait > 0 {
		s.after(min(wait, int64(scrubLongest)), s.tick)
		return
	}
	// Clients at work: wait for a pause, but not for ever, and not at the expense of the period.
	ops := s.sh.stats.Reads + s.sh.stats.Writes
	busy := ops != s.seen
	s.seen = ops
	if busy && now-s.lastStep < int64(scrubBusy) && s.onTime(wall) {
		s.after(int64(scrubLook), s.tick)
		return
	}
	s.lastStep = now
	s.step()
}

// gap is the time from one step to the next: for a pass that was asked for as the rate says; for
// the others so that what is left fills what is left of the period, but at most four times as
// fast as if nothing had come in between.
func (s *scrubber) gap(wall int64) int64 {
	least := int64(scrubBytes) * int64(time.Second) / s.rate
	if s.rec.flags&scrubManual != 0 || s.period < 0 {
		return least
	}
	steps, all := s.steps()
	rest := max(s.rec.startedNs+s.period-wall, 0)
	return max(min(rest, s.period)/steps, s.period/all/4, least)
}

// steps is how many steps the pass has before it, and how many it has in all.
func (s *scrubber) steps() (left, all int64) {
	bytes := s.remaining()
	return int64(bytes/scrubBytes) + 1, int64((bytes+s.rec.done)/scrubBytes) + 1
}

// onTime says whether the pass is no more than a step behind one that takes the whole period.
func (s *scrubber) onTime(wall int64) bool {
	if s.period < 0 {
		return true
	}
	left, all := s.steps()
	return wall-s.rec.startedNs <= (all-left+1)*(s.period/all)
}

// tellLate says once of a pass that it takes longer than the period.
func (s *scrubber) tellLate(wall int64) {
	took := wall - s.rec.startedNs
	if s.late || s.period < 0 || took < s.period+s.period/scrubLate {
		return
	}
	s.late = true
	s.sh.event(control.Warning, "scrub-late", fmt.Sprintf("cs %d: the scrubber's pass began %v ago, "+
		"should have ended after %v and has %d of %d GiB left, so damage is found later than that: its "+
		"disk is too slow or too busy, --scrub-rate too low, or it was off for long; a longer "+
		"--scrub-period says what it can do", s.sh.id, time.Duration(took).Round(time.Second),
		time.Duration(s.period), s.remaining()>>30, (s.remaining()+s.rec.done)>>30))
}

// remaining is how many bytes of chunks the pass has before it.
func (s *scrubber) remaining() uint64 {
	now := s.sh.env.Now()
	if s.leftAt != s.rec.slot || now-s.leftNs > int64(scrubRecount) {
		s.left, s.leftAt, s.leftNs = 0, s.rec.slot, now
		for _, r := range s.sh.store.owners[min(int(s.rec.slot), len(s.sh.store.owners)):] {
			if r != nil {
				s.left += dataplane.ChunkSize
			}
		}
	}
	return s.left - min(s.left, uint64(s.rec.block)*dataplane.BlockSize)
}

// step finds the next blocks that have to be read.
func (s *scrubber) step() {
	st := s.sh.store
	for range scrubSkips {
		if s.rec.slot >= st.sb.slots {
			s.finish()
			return
		}
		r := st.owners[s.rec.slot]
		if r == nil || r.gone || r.copying() {
			s.rec.slot, s.rec.block = s.rec.slot+1, 0
			continue
		}
		if s.rec.block == dataplane.BlocksPerChunk {
			s.chunkDone(r)
			return
		}
		n := s.rec.block / wordsPerPage
		page := s.rec.slot*pagesPerSlot + n
		s.cold = st.cache.index[page] < 0
		if s.cold && st.entries[s.rec.slot].pages[n] == wordZeros {
			s.passed(s.rec.slot, s.rec.block)
			continue // nothing was ever written here
		}
		r.refs++
		s.r, s.at, s.waiting = r, s.rec.block, true
		s.wait.page = page
		st.cache.want(&s.wait)
		return
	}
	s.after(0, s.step)
}

// passed moves the position behind the blocks of a step, unless a new pass began meanwhile.
func (s *scrubber) passed(slot, block uint32) {
	if s.rec.slot != slot || s.rec.block != block {
		return
	}
	s.rec.block += scrubBlocks
	s.rec.done += scrubBytes
}

// gotPage finds out which blocks are to be compared.
func (s *scrubber) gotPage(p *crcPage) {
	s.waiting = false
	p.pins++
	s.page = p
	if s.cold {
		p.hot = false // a pass over everything must not displace what clients use
	}
	if s.ended() {
		s.endStep()
		return
	}
	clear(s.todo[:])
	clear(s.suspect[:])
	s.tries, s.woken, s.repairs, s.again = 0, 0, 0, 0
	first, end := uint32(scrubBlocks), uint32(0)
	for i := range uint32(scrubBlocks) {
		switch s.expects(s.at + i) {
		case wordZeros:
			if p.word(s.at+i) == wordZeros {
				s.sh.store.holes.mark(s.r.slot, s.at+i, 1) // a crash may have kept its space
			}
		case wordUnknown:
			s.suspect[i/64] |= 1 << (i % 64)
		default:
			s.todo[i/64] |= 1 << (i % 64)
			first, end = min(first, i), i+1
		}
	}
	if first >= end {
		s.confirm()
		return
	}
	s.read(s.at+first, end-first)
}

// expects returns the word that a block in the store must match; wordZeros: nothing is expected
// of it, because it reads as zeros or the log has it.
func (s *scrubber) expects(block uint32) uint32 {
	if _, ok := s.sh.log.Lookup(s.r.slot, block); ok {
		return wordZeros
	}
	return s.page.word(block)
}

func (s *scrubber) read(from, n uint32) {
	if s.buf == nil {
		if s.buf = s.sh.pool.Get(scrubBytes); s.buf == nil {
			s.after(int64(scrubRetry), func() { s.read(from, n) })
			return
		}
	}
	s.from = from
	s.mem[0] = s.buf.Bytes()[:n*dataplane.BlockSize]
	s.op.Offset = s.sh.store.sb.block(s.r.slot, from)
	s.inFlight = true
	s.sh.store.disk.Submit(&s.op)
}

// readDone compares a step, or a suspect that was read by itself.
func (s *scrubber) readDone(op *uring.DiskOp) {
	s.inFlight = false
	if s.ended() {
		s.endStep()
		return
	}
	mem := s.mem[0]
	s.rec.read += uint64(len(mem))
	for i := s.from - s.at; len(mem) > 0; i++ {
		bit := uint64(1) << (i % 64)
		if s.todo[i/64]&bit != 0 {
			w := s.expects(s.at + i)
			if w == wordZeros || op.Err == nil &&
				wordMatches(w, dataplane.CRC(mem[:dataplane.BlockSize])) {
				s.suspect[i/64] &^= bit
			} else {
				s.suspect[i/64] |= bit
			}
		}
		mem = mem[dataplane.BlockSize:]
	}
	s.confirm()
}

// confirm reads the next suspect again, and ends the step when there is none.
func (s *scrubber) confirm() {
	i := uint32(scrubBlocks)
	for n, mask := range s.suspect {
		if mask != 0 {
			i = uint32(64*n + bits.TrailingZeros64(mask))
			break
		}
	}
	switch {
	case i < scrubBlocks:
	case s.repairs > 0:
		s.after(int64(scrubLook), s.confirm) // they need the page
		return
	default:
		s.passed(s.r.slot, s.at)
		s.endStep()
		return
	}
	block := s.at + i
	if s.tries > 0 && block != s.from {
		s.tries = 0 // the one before was good after all
	}
	w := s.expects(block)
	switch {
	case w == wordZeros:
		s.cleared(i)
	case w == wordUnknown || s.tries >= readRetries:
		s.damaged(i)
	default:
		s.tries++
		s.todo[i/64] |= 1 << (i % 64)
		s.read(block, 1)
	}
}

// cleared goes on with the suspect after i.
func (s *scrubber) cleared(i uint32) {
	s.suspect[i/64] &^= 1 << (i % 64)
	s.tries = 0
	s.after(0, s.confirm)
}

// damaged has a block repaired. Few repairs are left to the scrubber, so that clients' damaged
// blocks find room.
func (s *scrubber) damaged(i uint32) {
	sh, r := s.sh, s.r
	block := s.at + i
	switch {
	case r.gone:
		s.cleared(i)
		return
	case r.state == active && len(sh.repairs) >= maxRepairs/2,
		r.state != active && s.awaits(block):
		s.after(int64(scrubRetry), s.confirm)
		return
	}
	s.rec.bad++
	sh.stats.CRCErrors++
	if r.state != active {
		s.rec.lost++
		sh.event(control.Warning, "block-not-repaired", fmt.Sprintf(
			"cs %d: block %d of chunk %v is damaged and couldn't be repaired, because the chunk's "+
				"members didn't agree within %v", sh.id, block, r.id, scrubPatience))
	} else {
		sh.repair(r, block)
		for _, x := range sh.repairs {
			if x.r == r && x.block == block {
				s.repairs++
				x.ended = func(result string) { s.repairEnded(i, result) }
			}
		}
	}
	s.cleared(i)
}

func (s *scrubber) repairEnded(i uint32, result string) {
	s.repairs--
	switch result {
	case repairDone:
		s.rec.repaired++
	case repairLost:
		s.rec.lost++
	default:
		// The chunk is being settled, or the block was overwritten: look again.
		if s.again++; s.again <= scrubAgain {
			s.rec.bad--
			s.suspect[i/64] |= 1 << (i % 64)
		}
	}
}

// awaits has a chunk settled that nobody has used since the start: its head does that when it is
// read. It is false when that took too long.
func (s *scrubber) awaits(block uint32) bool {
	sh, id := s.sh, s.r.id
	now := sh.env.Now()
	if s.woken != 0 {
		return now-s.woken < int64(scrubPatience)
	}
	s.woken = now
	sh.md.GetChunk(id, func(cfg *control.ChunkConfig, err error) {
		r := sh.chunks[id]
		if err != nil || r == nil || r.state == active || len(cfg.Members) == 0 || s.ended() {
			return
		}
		head := cfg.Members[0]
		if head.CS == sh.id {
			sh.settle(r, nil)
			return
		}
		sh.peer(head.CS, head.Addr).call(dataplane.Header{Op: dataplane.OpRead, Chunk: id,
			Epoch: cfg.Epoch, Offset: block * dataplane.BlockSize, Length: dataplane.BlockSize}, nil, nil,
			func(*dataplane.Header, []byte, []byte, *uring.Buf, error) {})
	})
	return true
}

// endStep gives back what a step used.
func (s *scrubber) endStep() {
	sh := s.sh
	if s.buf != nil {
		s.buf.Release()
		s.buf, s.mem[0] = nil, nil
	}
	if s.page != nil {
		s.page.pins--
		s.page = nil
	}
	r := s.r
	s.r = nil
	sh.release(r)
	if sh.dead != nil {
		return
	}
	sh.store.cache.feed()
	if s.ended() {
		return
	}
	if sh.env.Now()-s.savedAt >= int64(scrubSaves) {
		s.save()
	}
	s.after(0, s.tick)
}

// stop ends the step that is under way, or lets its I/O end it, and keeps the position.
func (s *scrubber) stop() {
	s.sh.env.Disarm(&s.timer)
	if s.r != nil && !s.inFlight && !s.waiting {
		s.endStep()
	}
	s.save()
}

// idle says that nothing is under way.
func (s *scrubber) idle() bool { return s.r == nil && !s.saving }

// save writes the record. It is skipped without harm if there is no memory for it.
func (s *scrubber) save() {
	if s.saving || s.sh.dead != nil {
		return
	}
	if s.saveBuf = s.sh.pool.Get(superSize); s.saveBuf == nil {
		return
	}
	s.savedAt = s.sh.env.Now()
	s.saving = true
	s.saveMem[0] = s.saveBuf.Bytes()[:superSize]
	clear(s.saveMem[0])
	s.rec.put(s.saveMem[0])
	s.sh.store.disk.Submit(&s.saveOp)
}

func (s *scrubber) saved(op *uring.DiskOp) {
	s.saveBuf.Release()
	s.saveBuf, s.saveMem[0] = nil, nil
	s.saving = false
	if op.Err != nil {
		s.sh.fail(fmt.Errorf("write the scrub record: %w", op.Err))
	}
}

// stats fills in how the pass stands.
func (s *scrubber) stats(c *control.CSStats) {
	c.ScrubDone, c.ScrubTotal = s.rec.done, s.rec.done
	if s.rec.flags&scrubRunning != 0 {
		c.ScrubTotal += s.remaining()
	}
	c.ScrubRead, c.ScrubBad, c.ScrubRepaired = s.rec.read, s.rec.bad, s.rec.repaired
	c.ScrubLost, c.ScrubMismatches = s.rec.lost, s.rec.mismatches
	c.ScrubRunning = s.rec.flags&scrubRunning != 0
	c.ScrubManual = s.rec.flags&scrubManual != 0
	c.ScrubStartedNs, c.ScrubFinishedNs = s.rec.startedNs, s.rec.finishedNs
}
