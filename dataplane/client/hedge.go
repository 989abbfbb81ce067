package client

import (
	"time"

	"pstorage/dataplane"
	"pstorage/uring"
)

// This file keeps reads quick while a chunk server isn't: it tracks how long each takes, sends a
// read that takes too long to another member as well (a hedge), and avoids members that are slow.
// The first good answer wins; the other one finds nobody and is dropped, so it can't touch memory
// that was given back.
//
// A member that answers nothing at all, not even a PING, is called stalled: all reads that wait for
// it are hedged, and no new ones are sent there until something comes from it. Other hedges have a
// budget, so that servers that are slow because of too much work don't get twice as much.

const (
	hedgeTick  = int64(4 * time.Millisecond) // how often it is looked for reads that take too long
	hedgeFloor = int64(4 * time.Millisecond) // none is hedged earlier
	hedgeCeil  = int64(50 * time.Millisecond)
	hedgeTimes = 3 // a read is late after this many times the 95th percentile
	worthTimes = 2 // and after so many times what it takes on average elsewhere
	clearTimes = 8 // after so many times that, a hedge is surely worth it, and costs less
	stallAfter = int64(20 * time.Millisecond)

	hedgeCost = 16  // one hedge for so many reads, at most
	clearCost = 8   // the same, for those that are surely worth it
	queueCost = 64  // the same, where they wait behind others: each takes the place of a read
	hedgeSave = 512 // reads that count for hedges to come

	smallRead = 16 << 10 // bytes; larger reads have a latency of their own

	slowFloor = int64(2 * time.Millisecond)  // a member isn't called slow below that
	slowTimes = 4                            // nor unless it takes so many times as long as another
	queueMean = int64(16 * time.Millisecond) // a disk whose reads take so long has a queue
	probeSlow = 64                           // one of so many reads goes to a slow one nevertheless
)

// latency estimates how long the reads of one size take, in ns: the mean, and the 95th percentile
// by small steps up or down, nineteen times as large upwards. One read counts for clip times the
// mean at most: some wait for a write's end, for seconds, and say nothing of how quick the others
// are; a server that has become slow is slow again and again.
type latency struct{ mean, p95 int64 }

const clip = 4

func (l *latency) add(d int64) {
	if l.mean == 0 {
		l.mean, l.p95 = d, 2*d
		return
	}
	l.mean += (min(d, clip*max(l.mean, slowFloor/clip)) - l.mean) / 16
	step := max(l.p95/128, 1000)
	if d > l.p95 {
		l.p95 += 19 * step / 4
		l.p95 = min(l.p95, max(d, l.mean))
	} else {
		l.p95 -= step / 4
	}
}

// pace is what is known of how quick a chunk server is.
type pace struct {
	small, large latency
	stalled      bool
	ill          bool // the MDS says so
}

func (c *pace) of(n uint32) *latency {
	if n <= smallRead {
		return &c.small
	}
	return &c.large
}

// lateAfter is how long a read may take before it is hedged, in ns.
func (c *pace) lateAfter(n uint32) int64 {
	l := c.of(n)
	if l.mean == 0 {
		return hedgeCeil
	}
	return min(max(hedgeTimes*l.p95, hedgeFloor), hedgeCeil)
}

// hedges is the engine's part.
type hedges struct {
	timer  uring.Timer
	budget int // in reads
	probe  uint32
}

// answered notes that pr answered p, or that another member was quicker.
func (pr *peer) answered(p *part) {
	if p.code == dataplane.OpRead {
		pr.pace.of(p.n).add(pr.eng.env.Now() - p.sentAt)
	}
}

// watchRead has a read that was sent looked after.
func (e *Engine) watchRead() {
	e.hedge.budget = min(e.hedge.budget+1, hedgeSave)
	if !e.hedge.timer.Armed() {
		e.env.Arm(&e.hedge.timer, hedgeTick)
	}
}

// hedgeLate looks at everything that waits for an answer.
func (e *Engine) hedgeLate() {
	if e.closed {
		return
	}
	now := e.env.Now()
	busy := false
	for _, pr := range e.peerList {
		if pr.state != peerUp || pr.sent.head == nil {
			continue
		}
		busy = true
		silent := now - max(pr.lastRecv, pr.sent.head.sentAt)
		switch {
		case silent < stallAfter || pr.pace.stalled:
		case !pr.pinged:
			pr.ping() // a slow disk doesn't keep it from answering
		case now-pr.pingAt >= hedgeTick:
			pr.pace.stalled = true
			pr.tellAcked()
		}
		for p := pr.sent.head; p != nil; {
			late := p
			p = p.next
			if now-late.sentAt < hedgeFloor {
				break // those behind it were sent later
			}
			switch {
			case late.code != dataplane.OpRead:
			case late.twin == nil:
				e.hedgeOne(late, pr, now-late.sentAt)
			case late.hedge && pr.pace.stalled:
				// No luck there either: the first one may ask another member.
				first := late.twin
				first.tried |= 1 << late.member
				first.twin, late.twin = nil, nil
				e.cancelPart(late)
			}
		}
	}
	if busy {
		e.env.Arm(&e.hedge.timer, hedgeTick)
	}
}

// ping asks for a sign of life.
func (pr *peer) ping() {
	e := pr.eng
	pr.pinged, pr.pingAt = true, e.env.Now()
	e.hdr = dataplane.Header{Op: dataplane.OpPing}
	pr.conn.session.Send(&e.hdr, nil, nil)
}

// hedgeOne sends a copy of p, which waits for pr, to another member, if it is late.
func (e *Engine) hedgeOne(p *part, pr *peer, waited int64) {
	if !pr.pace.stalled && waited < pr.pace.lateAfter(p.n) {
		return
	}
	if !pr.pace.stalled && e.hedge.budget < clearCost {
		return
	}
	ent, _ := p.file.entry(p.index)
	if ent.chunk != p.chunk || ent.epoch != p.epoch {
		if pr.pace.stalled {
			e.takeBack(p, pr) // else its answer will say that the map is old
		}
		return
	}
	if p.file.unproven(ent) && p.hard&1 == 0 {
		return
	}
	m := e.quickest(p, ent, p.tried|1<<p.member)
	if m < 0 {
		if pr.pace.stalled && waited >= hedgeCeil && p.tried&^p.hard != 0 {
			e.takeBack(p, pr)
		}
		return
	}
	to := e.peer(ent.members[m])
	if to.state == peerIdle {
		to.want() // for the next look
	}
	if to.pace.stalled || to.state != peerUp || to.wait.head != nil || !to.room(p) {
		return
	}
	cost := 0
	if !pr.pace.stalled {
		mean := to.pace.of(p.n).mean
		switch {
		case mean > 0 && waited >= max(hedgeCeil, clearTimes*mean):
			cost = clearCost
		case mean >= queueMean:
			cost = queueCost
		default:
			cost = hedgeCost
		}
		if waited < worthTimes*mean || e.hedge.budget < cost {
			return // all disks have long queues: it would only make them longer
		}
	}
	t := e.newPart(p.file)
	if t == nil {
		return
	}
	e.hedge.budget -= cost
	e.stats.Hedges++
	t.op, t.bufOff, t.index, t.off, t.n, t.code = p.op, p.bufOff, p.index, p.off, p.n, p.code
	t.chunk, t.epoch, t.member, t.tried, t.hard = p.chunk, p.epoch, uint8(m), p.tried, p.hard
	t.rounds, t.retries, t.fresh = p.rounds, p.retries, p.fresh
	t.hedge, t.twin, p.twin = true, p, t
	to.send(t)
}

// takeBack takes a read back from a stalled member when it can't be hedged as it stands: the map
// has changed since, or the others have refused it. Those may have got a lease, or the chunk other
// members, since: a new round asks them, and for the map.
func (e *Engine) takeBack(p *part, pr *peer) {
	pr.sent.remove(p)
	pr.forget(p)
	pr.answered(p) // at least that long
	p.why = dataplane.TimedOut
	e.otherMember(p, false)
}

// quickest returns the member, not among those in the bit set without, that answers soonest as far
// as is known; -1 if none can be reached.
func (e *Engine) quickest(p *part, ent *entry, without uint8) int {
	best, bestTime := -1, int64(0)
	for i := 0; i < int(ent.n); i++ {
		if without&(1<<i) != 0 {
			continue
		}
		pr := e.peer(ent.members[i])
		if !pr.usable() {
			continue
		}
		t := pr.pace.of(p.n).mean
		if pr.state != peerUp {
			t += hedgeFloor
		}
		if pr.pace.stalled {
			t += int64(time.Minute)
		}
		if !pr.live || pr.pace.ill {
			t += int64(time.Second)
		}
		if best < 0 || t < bestTime {
			best, bestTime = i, t
		}
	}
	return best
}

// avoid says whether pr is so much slower than another member that can be read from that it isn't
// read from.
func (e *Engine) avoid(p *part, ent *entry, i int) bool {
	pr := e.peer(ent.members[i])
	mean := pr.pace.of(p.n).mean
	bad := pr.pace.stalled || pr.pace.ill
	if !bad && mean < slowFloor {
		return false
	}
	q := e.quickest(p, ent, p.tried|1<<i)
	if q < 0 {
		return false
	}
	other := e.peer(ent.members[q])
	if other.pace.stalled || other.pace.ill && !pr.pace.stalled {
		return false
	}
	if bad {
		return true
	}
	if mean < slowTimes*max(other.pace.of(p.n).mean, slowFloor/slowTimes) {
		return false
	}
	e.hedge.probe++
	return e.hedge.probe%probeSlow != 0
}

// untwin ends the race of p, which was answered well or is given up: the other one is forgotten.
// What remains of the two counts as the op's.
func (e *Engine) untwin(p *part) {
	t := p.twin
	if t == nil {
		return
	}
	if t.list != nil && t.list.peer != nil && t.list == &t.list.peer.sent {
		t.list.peer.answered(t) // at least that long
	}
	p.twin, t.twin, p.hedge = nil, nil, false
	e.cancelPart(t)
}

// leaveToTwin: p failed, but another member was asked too. It is false if there is none.
func (e *Engine) leaveToTwin(p *part, hard bool) bool {
	t := p.twin
	if t == nil {
		return false
	}
	t.tried |= p.tried | 1<<p.member
	t.hard |= p.hard
	if hard {
		t.hard |= 1 << p.member
	}
	t.hedge, t.twin, p.twin = false, nil, nil
	e.freePart(p)
	return true
}
