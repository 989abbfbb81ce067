package chunk

import (
	"pstorage/dataplane"
	"pstorage/uring"
)

// copyPace holds copies back in favour of clients. They have the disk for themselves when nobody
// else uses it. When clients do, their reads are timed: the mean time is compared with what it was
// without copies, and the rate of all copies here, from and to this server, falls as long as reads
// take much longer, and rises otherwise. A target tells what it allows in its answers.
type copyPace struct {
	sh    *Shard
	timer uring.Timer

	rate   float64 // bytes per second; 0: any
	spent  uint64  // bytes since the last look
	looks  int64
	mine   int // copies to here in this look
	toHere int // in the last one
	quiet  int // looks without any copy

	// One read at a time is timed.
	timed   *request
	timedAt int64
	samples int     // since the last look
	unused  int     // looks since clients last read something
	lat     float64 // ns, mean
	base    float64 // ns, mean without copies
}

const (
	paceEvery  = 50e6 // ns between two looks
	paceFloor  = 4e6  // bytes per second that copies always get
	paceAny    = 2e9  // above it nothing is held back
	paceSlack  = 1.35 // times base: more is too slow
	paceGrace  = 50e3 // ns on top of it
	paceUnused = 6    // looks
	paceDrift  = 1.01 // base may have risen: per look
)

func (p *copyPace) init(sh *Shard) {
	p.sh = sh
	p.timer.Fire = p.look
	p.unused = paceUnused
}

// watch begins to look, because there is a copy.
func (p *copyPace) watch() {
	p.quiet = 0
	if !p.timer.Armed() && !p.sh.stopping {
		p.spent = 0
		p.sh.env.Arm(&p.timer, paceEvery)
	}
}

// begins is told of a client's read.
func (p *copyPace) begins(q *request) {
	if p.timed == nil {
		p.timed, p.timedAt = q, p.sh.env.Now()
	}
}

// ends is told of the end of a read, whatever it was.
func (p *copyPace) ends(q *request, answered bool) {
	if p.timed != q {
		return
	}
	p.timed = nil
	if !answered {
		return
	}
	d := float64(p.sh.env.Now() - p.timedAt)
	p.samples++
	if p.lat == 0 {
		p.lat = d
	}
	p.lat += (d - p.lat) / 16
	if !p.timer.Armed() {
		if p.base == 0 {
			p.base = d
		}
		p.base += (d - p.base) / 64
	}
}

// note counts the copies to here.
func (p *copyPace) note(r *replica) {
	if r.pacedAt != p.looks {
		r.pacedAt = p.looks
		p.mine++
	}
	p.watch()
}

func (p *copyPace) look() {
	rate := float64(p.spent) * 1e9 / paceEvery
	if p.quiet++; p.spent > 0 || len(p.sh.copiers) > 0 {
		p.quiet = 0
	}
	if p.unused++; p.samples > 0 {
		p.unused = 0
	}
	p.toHere, p.mine = p.mine, 0
	p.spent, p.samples = 0, 0
	p.looks++
	p.judge(rate)
	if p.quiet < paceUnused && !p.sh.stopping && p.sh.dead == nil {
		p.sh.env.Arm(&p.timer, paceEvery)
	}
}

// judge sets the rate; now is what copies used.
func (p *copyPace) judge(now float64) {
	switch {
	case p.unused >= paceUnused:
		p.rate *= 2
	case p.base == 0 || p.lat < p.base:
		p.base = p.lat
		p.rate *= 1.15
	case p.lat > p.base*paceSlack+paceGrace:
		if p.rate == 0 || p.rate > 2*now {
			p.rate = now
		}
		p.rate = max(p.rate*0.7, paceFloor)
	default:
		p.rate *= 1.15
	}
	p.base *= paceDrift
	if p.rate > paceAny {
		p.rate = 0
	}
}

// share is what one copy may use, in bytes per second; 0: any.
func (p *copyPace) share() float64 {
	if p.rate == 0 {
		return 0
	}
	return p.rate / float64(max(1, len(p.sh.copiers)+p.toHere))
}

// allowance is share for the head of a copy to here, in KiB per second; 0: any.
func (p *copyPace) allowance() uint32 {
	if s := p.share(); s > 0 {
		return uint32(min(max(s/1024, 1), 1<<31))
	}
	return 0
}

// pause is how long the copier must wait before its next part, in ns.
func (c *copier) pause() int64 { return c.paceAt - c.sh.env.Now() }

// paid counts a part against what the copier may use.
func (c *copier) paid() {
	c.sh.pace.spent += dataplane.PartSize
	rate := c.sh.pace.share()
	if t := float64(c.theirs); t > 0 && (rate == 0 || t < rate) {
		rate = t
	}
	if rate == 0 {
		c.paceAt = 0
		return
	}
	c.paceAt = max(c.paceAt, c.sh.env.Now()-int64(copyBreath)) + int64(dataplane.PartSize*1e9/rate)
}
