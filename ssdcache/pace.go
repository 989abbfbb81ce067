package ssdcache

import "pstorage/uring"

// pacer slows the intake to what write-back leaves room for, smoothly: from the level on where
// write-back is at full speed, while a round of it is under way, the room that is left is spread
// over the time which the round still needs. So the intake settles at the rate of the store,
// whatever it is, and never stops until a round ends.
type pacer struct {
	l     *Log
	on    bool
	timer uring.Timer
	began int64   // the round
	base  float64 // in blocks of log: may be written at time at
	at    int64
	rate  float64 // blocks per ns from then on
	held  bool    // waiting for a burst

	sampled  int64 // when handled was last looked at
	handled  int
	perItem  float64 // ns per block written back, smoothed; 0: not known
	perOp    float64 // ns per write-back that the Backing needs, smoothed; 0: not known
	perBlock float64 // ns per block of the round that it needs, smoothed; 0: not known
	perMove  float64 // ns per block moved, smoothed

	flying    int    // write-backs in flight
	busySince int64  // they are, or since the last one was completed
	plain     sample // of those without gaps
	all       sample // of all, but those that only probe

	ops   int     // write-backs, and
	moves int     // moved blocks of the round when handled was last looked at
	rest  float64 // ns from the last write-back to the new tail, smoothed
	wrote int64   // when the last write-back of the round ended
}

// sample counts completed write-backs.
type sample struct {
	busy         float64 // ns with some in flight
	done, blocks int
}

// Tuning of the pace.
const (
	paceLevel   = 0.85  // of Pressure: where a round may end
	busyTime    = 30e6  // ns of a sample of the Backing's speed,
	busyOps     = 512   // or so many write-backs
	sampleTime  = 50e6  // ns of a sample
	burstTime   = 2e6   // ns worth of intake that is let in at once, at least,
	burstMost   = 100e6 // and at most; in between it is
	burstOps    = 20    // the time of so many write-backs,
	burstBlocks = 256   // and at most so many blocks
	firstMove   = 50e3  // ns per moved block, until it is known
	mostMove    = 200e3 // what takes longer was waiting for space
	leastRate   = 2e-8  // blocks per ns, when there is no room: 20 in a second
	slowDisk    = 5e6   // ns that a hard disk takes for one block
)

func (p *pacer) init(l *Log) {
	p.l = l
	p.timer.Fire = func() { l.env.AtTurnEnd(&l.turn) } // tells of room
}

func (p *pacer) stop() {
	p.on, p.held = false, false
	p.l.env.Disarm(&p.timer)
}

// position is how far the log is written, in blocks.
func (p *pacer) position() float64 {
	return float64(p.l.head)*float64(p.l.segBlocks) + float64(p.l.at)
}

// bound is how far the log may be written by now.
func (p *pacer) bound(now int64) float64 { return p.base + p.rate*float64(now-p.at) }

// allows says whether the pace permits more intake. If not, there is room when the timer fires: not
// before a few blocks' worth, so that batches don't get small, which would waste log on headers.
func (p *pacer) allows() bool {
	if !p.on {
		return true
	}
	over := p.position() - p.bound(p.l.env.Now())
	if p.held {
		over += p.burst()
	}
	if p.held = over > 0; !p.held {
		return true
	}
	if !p.timer.Armed() {
		p.l.env.Arm(&p.timer, int64(min(over/p.rate, 50e6))+1000)
	}
	return false
}

// burst is how many blocks are let in at once.
func (p *pacer) burst() float64 {
	time := min(max(burstOps*p.perOp, burstTime), burstMost)
	return min(p.rate*time, burstBlocks)
}

// moved says that a block was moved: that takes log, too, but isn't intake.
func (p *pacer) moved() { p.base += 1 + 1./64 }

// begin is called when a round begins.
func (p *pacer) begin() {
	p.began = p.l.env.Now()
	p.sampled, p.wrote = p.began, 0
	p.handled, p.ops, p.moves = 0, 0, 0
	p.update()
}

// sample learns how fast blocks are written back, and moved, when there is enough to learn from;
// when writing back ends, from what there is.
func (p *pacer) sample(now int64, ends bool) {
	d := &p.l.destage
	if d.phase > writing || d.handled == p.handled {
		return
	}
	took := float64(now - p.sampled)
	if took < sampleTime && !ends {
		return
	}
	ops, moves := d.ops-p.ops, d.moved-p.moves
	switch {
	case ops > 0 && moves == 0:
		smooth(&p.perItem, took/float64(d.handled-p.handled))
	case ops == 0 && moves > 0:
		smooth(&p.perMove, min(took/float64(moves), mostMove))
	}
	p.skip(now)
}

// sent and served learn how long the Backing is busy for a write-back, and for a block. A disk may
// take many at once and then none for a while, so it's the time that is cut in samples.
func (p *pacer) sent() {
	if p.flying++; p.flying == 1 {
		p.busySince = p.l.env.Now()
	}
}

func (p *pacer) served(blocks int, gaps bool) {
	now := p.l.env.Now()
	took := float64(now - p.busySince)
	p.busySince = now
	p.flying--
	if !gaps && p.plain.add(took, blocks) {
		learn(&p.perOp, p.plain.busy/float64(p.plain.done))
		p.plain = sample{}
	}
	if !(p.perOp >= seekTime && p.l.destage.probing()) && p.all.add(took, blocks) {
		learn(&p.perBlock, p.all.busy/float64(max(p.all.blocks, 1)))
		p.all = sample{}
	}
}

// add counts a write-back. It is true when there are enough to learn from.
func (s *sample) add(took float64, blocks int) bool {
	s.busy += took
	s.done++
	s.blocks += blocks
	return s.busy >= busyTime || s.done >= busyOps
}

func learn(v *float64, x float64) {
	if *v == 0 {
		*v = x
	}
	*v += (x - *v) / 2
}

// slow says whether writing back takes the Backing so long that moving is cheaper.
func (p *pacer) slow() bool {
	return p.perBlock > slowStore || p.perMove > 0 && p.perBlock > 3*p.perMove
}

func smooth(v *float64, x float64) {
	if *v == 0 {
		*v = x
	}
	*v += (x - *v) / 8
}

// skip begins a new sample.
func (p *pacer) skip(now int64) {
	d := &p.l.destage
	p.sampled, p.handled, p.ops, p.moves = now, d.handled, d.ops, d.moved
}

// level is the fill level where a round may end.
func (p *pacer) level() float64 { return p.l.o.DestageAt + paceLevel*(1-p.l.o.DestageAt) }

// update computes the rate anew.
func (p *pacer) update() {
	l, d := p.l, &p.l.destage
	now := l.env.Now()
	if d.urgency() < 1 || d.idle {
		// Write-back isn't at its full speed by its own choice: nothing is learnt from it.
		p.skip(now)
		p.stop()
		return
	}
	p.sample(now, false)
	if d.phase > writing && p.wrote == 0 {
		p.wrote = now
	}
	seg := float64(l.segBlocks)
	write, move := p.todo()
	left := max(p.time(write, move), sampleTime)
	whole := max(p.time(write+float64(d.written), move+float64(d.moved)), sampleTime)
	room := (p.level()-l.fill())*float64(l.segs-l.reserve-1)*seg - float64(l.at) - move
	if from := d.moveFrom(); move > 0 && d.moved == 0 && l.fill() < from {
		// Moving doesn't begin before, and what would be moved is written back meanwhile.
		room = (from-l.fill())*float64(l.segs-l.reserve-1)*seg + seg - float64(l.at)
		left = max(p.time(write, 0), sampleTime)
	}
	freed := float64(d.n)*seg - move - float64(d.moved)
	rate := max(room/left, freed/(2*whole))
	if move > 0 { // whatever happens, there must be space for it
		space := float64(d.moveSpace()-int(l.at)) - move*(1+1./64)
		rate = min(rate, max(space/left, leastRate))
	}
	base := p.position()
	if p.on { // what was too much remains so; what wasn't used is kept for a burst
		base = min(base+p.burst(), p.bound(now))
	}
	p.base, p.at, p.rate, p.on = base, now, rate, true
}

// todo is how many blocks of the round are still to be written back, and to be moved.
func (p *pacer) todo() (write, move float64) {
	l, d := p.l, &p.l.destage
	total := d.total
	if d.phase == collecting {
		total = int(d.n) * int(l.segBlocks) // at most
	}
	rest := float64(total - d.handled)
	if d.writeRest || !d.movingPays() {
		return rest, 0
	}
	write = min(rest, float64(d.mustWrite()))
	return write, rest - write
}

// time is how long so many blocks take, and the end of the round.
func (p *pacer) time(write, move float64) float64 {
	per := max(p.perItem, p.perBlock)
	if per == 0 {
		per = slowDisk // until the first run is written
	}
	return write*per + move*p.moveTime() + p.rest
}

// moveTime is how long it takes to move a block, in ns.
func (p *pacer) moveTime() float64 {
	if p.perMove == 0 {
		return firstMove
	}
	return p.perMove
}

// end is called when the tail has moved.
func (p *pacer) end() {
	now := p.l.env.Now()
	if p.wrote != 0 {
		p.rest += (float64(now-p.wrote) - p.rest) / 4
	}
	p.on = false
}
