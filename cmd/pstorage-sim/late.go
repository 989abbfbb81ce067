package main

import (
	"math/rand/v2"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// late has a request of a head for one more member arrive only after the head's process has ended,
// and perhaps after the next one has settled the chunk and taken writes: requests are on their way
// in the network, or in a queue, whatever becomes of who sent them. What the new member was given
// may be old by the time it is one.
type late struct {
	f    *faults
	rng  *rand.Rand
	left int
}

// chooseLate decides whether a run has that, by a stream of its own. Where strand loses the head
// right after the addition, what the new member was given is even all that is left.
func (f *faults) chooseLate() {
	rng := f.w.sim.Rand("late requests")
	if alone := f.w.strand != nil && f.w.strand.adds; (f.w.sc.away || alone) && rng.IntN(2) == 0 {
		f.w.late = &late{f: f, rng: rng, left: 3}
	}
}

// takes says whether it has taken a request from the process that sends it, which has ended then.
func (l *late) takes(n *csNode, r *control.ReconfigureReq) bool {
	if l == nil || l.left == 0 || l.f.w.calm || r.SetCreated {
		return false
	}
	w := l.f.w
	now := w.sim.Now()
	cfg, ok := w.configs[r.Chunk]
	if !ok || cfg.Epoch != r.Epoch || len(r.Members) <= len(cfg.Members) ||
		!l.f.victim(n) && now < l.f.until[n.index]+rest && l.f.until[n.index] > 0 {
		return false
	}
	l.left--
	w.did(sceneLate)
	between := func(from, to int64) int64 { return from + l.rng.Int64N(to-from) }
	down, on := between(us, 20*ms), between(10*ms, sec)
	w.trace("cs %d: its process ends while it asks for %v in chunk %v; that arrives after %d ms",
		n.id, r.Members, r.Chunk, on/ms)
	l.f.until[n.index] = max(l.f.until[n.index], now+down)
	instance, cut := n.instance, l.rng.IntN(2) == 0
	w.mds.req++
	id := w.mds.req
	w.sim.After(0, func() { n.kill(false) }) // not in its own turn
	w.sim.After(down, func() { n.start(cut) })
	w.sim.After(on, func() {
		if w.mds.sim.Leading() {
			w.mds.sim.Handle(dataplane.RoleCS, instance, id, control.OpReconfigure, r,
				func([]byte, error) {})
		}
	})
	return true
}
