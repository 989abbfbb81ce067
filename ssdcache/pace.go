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

	sampled int64 // when handled was last looked at
	handled int
	perItem float64 // ns per block of the round, smoothed; 0: not known
	rest    float64 // ns from the last write-back to the new tail, smoothed
	wrote   int64   // when the last write-back of the round ended
}

// Tuning of the pace.
const (
	paceLevel   = 0.85 // of Pressure: where a round may end
	sampleTime  = 50e6 // ns of a sample
	burstTime   = 20e6 // ns worth of intake that is let in at once,
	burstBlocks = 256  // and at most so many blocks
	slowDisk    = 5e6  // ns that a hard disk takes for one block
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
func (p *pacer) burst() float64 { return min(p.rate*burstTime, burstBlocks) }

// begin is called when a round begins.
func (p *pacer) begin() {
	p.began = p.l.env.Now()
	p.sampled, p.handled, p.wrote = p.began, 0, 0
	p.update()
}

// sample learns how fast blocks are written back.
func (p *pacer) sample(now int64) {
	d := &p.l.destage
	if d.phase > writing || d.handled == p.handled || now-p.sampled < sampleTime && p.perItem > 0 {
		return
	}
	per := float64(now-p.sampled) / float64(d.handled-p.handled)
	if p.perItem == 0 {
		p.perItem = per
	}
	p.perItem += (per - p.perItem) / 8
	p.sampled, p.handled = now, d.handled
}

// update computes the rate anew.
func (p *pacer) update() {
	l, d := p.l, &p.l.destage
	now := l.env.Now()
	if d.urgency() < 1 || d.idle {
		// Write-back isn't at its full speed by its own choice: nothing is learnt from it.
		p.sampled, p.handled = now, d.handled
		p.stop()
		return
	}
	p.sample(now)
	if d.phase > writing && p.wrote == 0 {
		p.wrote = now
	}
	per := p.perItem
	if per == 0 {
		per = slowDisk // until the first run is written
	}
	seg := float64(l.segBlocks)
	total := float64(d.total)
	if d.phase == collecting {
		total = float64(d.n) * seg // at most
	}
	left := max((total-float64(d.handled))*per+p.rest, sampleTime)
	whole := max(total*per+p.rest, sampleTime)
	level := l.o.DestageAt + paceLevel*(1-l.o.DestageAt)
	room := (level-l.fill())*float64(l.segs-l.reserve-1)*seg - float64(l.at)
	rate := max(room/left, float64(d.n)*seg/(2*whole))
	base := p.position()
	if p.on { // what was too much remains so; what wasn't used is kept for a burst
		base = min(base+p.burst(), p.bound(now))
	}
	p.base, p.at, p.rate, p.on = base, now, rate, true
}

// end is called when the tail has moved.
func (p *pacer) end() {
	now := p.l.env.Now()
	if p.wrote != 0 {
		p.rest += (float64(now-p.wrote) - p.rest) / 4
	}
	p.on = false
}
