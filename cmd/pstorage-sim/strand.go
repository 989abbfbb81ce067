package main

import (
	"math/rand/v2"

	"pstorage/dataplane/control"
)

// strand loses the head of a chunk of two copies for good at the moment at which a move of its
// other copy is committed, and restarts the target soon after: then what the target held before it
// was activated is all that is left.
type strand struct {
	rng  *rand.Rand
	done bool
}

// chooseStrand decides whether a run has that, by a stream of its own.
func (w *world) chooseStrand() {
	rng := w.sim.Rand("strands")
	if w.sc.victims > 0 && w.sc.replicas == 2 && rng.IntN(2) == 0 {
		w.strand = &strand{rng: rng}
		w.sc.moves = 100 * ms
	}
}

// moved is told of each change of members.
func (s *strand) moved(w *world, old, c *control.ChunkConfig) {
	if s == nil || s.done || w.calm || !c.Created || len(old.Members) != 2 || len(c.Members) != 2 ||
		old.Members[0].CS != c.Members[0].CS || old.Members[1].CS == c.Members[1].CS {
		return
	}
	head, target := w.cs[c.Members[0].CS-1], w.cs[c.Members[1].CS-1]
	if head.index >= w.sc.victims || head.gone || head.env.Dead() || target.env.Dead() {
		return
	}
	s.done = true
	between := func(from, to int64) int64 { return from + s.rng.Int64N(to-from) }
	w.sim.After(between(us, 800*us), func() {
		if head.env.Dead() {
			return
		}
		w.trace("cs %d is gone for good in the middle of a move of chunk %v", head.id, c.Chunk)
		head.kill(false)
		head.gone = true
	})
	w.sim.After(between(ms, sec), func() {
		if w.calm || target.env.Dead() {
			return
		}
		w.trace("cs %d, to which it was moved, restarts", target.id)
		target.kill(true)
		cut := s.rng.IntN(2) == 0
		w.sim.After(between(ms, 100*ms), func() { target.start(cut) })
	})
}
