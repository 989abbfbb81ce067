package mds

import (
	"pstorage/dataplane"
)

// Move has a replica moved, as the planner does for drains and fill levels. It is false if that
// can't be now: somebody is away, something goes on with the chunk, or it isn't fully replicated.
func (s *Sim) Move(id dataplane.ChunkID, leaving, target dataplane.CSID) bool {
	l := s.l
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	now := l.now()
	w := recoverFacts{planFacts{l, f.s, now}}
	rec := f.s.table.Lookup(id)
	if rec == nil || rec.Present < rec.Wanted || !rec.has(leaving) || rec.has(target) ||
		l.recover.active[id] != nil || !w.takes(target) || l.recover.live(rec, w) < rec.Present {
		return false
	}
	order := l.recover.begin(id, recovery{source: rec.members()[0].CS, target: target,
		leaving: leaving, kind: moveBalance, epoch: rec.Epoch}, now)
	l.pushOrders(f.s, []recoverOrder{order}, now)
	return true
}
