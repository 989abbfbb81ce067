package mds

import (
	"fmt"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// healthEvery is how often servers are judged.
const healthEvery = 250 * time.Millisecond

// watchHealth judges the servers, and has one excluded that keeps writes from getting on. mu is
// held.
func (l *leader) watchHealth(nowNs int64) {
	h := l.health
	if nowNs-h.stepNs < int64(healthEvery) {
		return
	}
	h.stepNs = nowNs
	live := func(cs dataplane.CSID) bool { return l.leases.live(cs, nowNs) }
	h.step(nowNs, live)
	cs := h.suspect(nowNs, live)
	if cs == 0 || l.judging {
		return
	}
	l.judging = true
	l.background(func() {
		short := l.wouldLack(cs)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.judging = false
		l.exclude(cs, short)
	})
}

// wouldLack counts the chunks that would have fewer live members than their minimum, or none,
// without a server and those that are being excluded.
func (l *leader) wouldLack(cs dataplane.CSID) (n uint64) {
	f := l.r.fsm
	l.mu.Lock()
	f.mu.RLock()
	now := l.now()
	live := make([]bool, len(f.s.cs))
	for id := range live {
		other := dataplane.CSID(id)
		live[id] = l.leases.live(other, now) && !l.leases.at(other).withheld
	}
	slots := f.s.table.Slots()
	f.mu.RUnlock()
	l.mu.Unlock()
	l.scan(slots, func(_ *State, rec *Record) {
		if !rec.has(cs) {
			return
		}
		left := 0
		for _, m := range rec.members() {
			if m.CS != cs && int(m.CS) < len(live) && live[m.CS] {
				left++
			}
		}
		if left < max(int(rec.Minimum), 1) {
			n++
		}
	})
	return n
}

// exclude asks a server for its lease, unless short chunks need it. mu is held.
func (l *leader) exclude(cs dataplane.CSID, short uint64) {
	now, s := l.now(), l.health.at(cs)
	live := func(cs dataplane.CSID) bool { return l.leases.live(cs, now) }
	if l.ctx.Err() != nil || l.health.suspect(now, live) != cs {
		return // it has got on meanwhile
	}
	source := fmt.Sprintf("cs %d", cs)
	if short > 0 {
		note := fmt.Sprintf("writes don't get on because of it, but it can't be excluded: %d chunks "+
			"would have fewer members than needed", short)
		if s.note == "" {
			l.event(control.Fault, source, "cs-stalled", note)
		}
		s.note = note
		return
	}
	if now-s.askedNs > int64(yieldCalm) {
		s.times = 0
	}
	s.times++
	s.ask(now)
	what := fmt.Sprintf("its disk hasn't got on for %v", s.own.Round(100*time.Millisecond))
	if s.own < stallAfter {
		what = "other servers wait for its answers"
	}
	s.note = "excluded from writes because " + what
	l.leases.at(cs).withheld = true
	l.viewNs = 0
	l.event(control.Fault, source, "cs-stalled", s.note+fmt.Sprintf(
		"; it may come back after %v", s.probation()))
}

// forfeitEvery is how often a server may be asked for its lease because it lost data, all together:
// after a power cut that many disks didn't survive unharmed they are away one by one.
const forfeitEvery = 2 * yieldFirst

// forfeit asks a server for its lease because it lost data of a chunk that it had acknowledged: so
// it can be excluded there. Other chunks are without it for that time, but this one can't go on
// with it. The coordinator asks for the exclusion again and again. mu is held.
func (l *leader) forfeit(cs dataplane.CSID, chunk dataplane.ChunkID) {
	now, e := l.now(), l.leases.at(cs)
	if l.noForfeit || e.withheld || l.forfeitNs != 0 && now-l.forfeitNs < int64(forfeitEvery) {
		return
	}
	s := l.health.at(cs)
	l.forfeitNs = now
	s.ask(now)
	s.note = fmt.Sprintf("lost data of chunk %v that it had acknowledged, and is excluded where that "+
		"is found; does its disk keep what it acknowledges? (hwflush-check)", chunk)
	e.withheld = true
	l.viewNs = 0
	l.event(control.Fault, fmt.Sprintf("cs %d", cs), "cs-lost-data", s.note+fmt.Sprintf(
		"; it may come back after %v", s.probation()))
}

// yielding answers the heartbeat of a server that is to give its lease up, or did; nil: it may
// register again. mu is held.
func (l *leader) yielding(req *control.HeartbeatReq, nowNs int64) *control.HeartbeatReply {
	l.health.report(req.CS, req, nowNs)
	s, e := l.health.at(req.CS), l.leases.at(req.CS)
	if req.Yielded && !e.yielded {
		e.yielded = true
		l.viewNs = 0
	}
	if s.mayReturn(nowNs) && (e.yielded || !l.leases.live(req.CS, nowNs)) {
		return nil
	}
	return &control.HeartbeatReply{Yield: true}
}

// returned notes that a server which was excluded for its stalls has registered again. mu is held.
func (l *leader) returned(cs dataplane.CSID) {
	if s := l.health.peek(cs); s != nil {
		if s.asked {
			l.event(control.Info, fmt.Sprintf("cs %d", cs), "cs-back",
				"it registered again after it was excluded")
		}
		s.asked, s.note = false, ""
		s.own, s.stuckOn = 0, s.stuckOn[:0]
	}
}
