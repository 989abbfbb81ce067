package main

import (
	"math/rand/v2"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// strand loses the head of a chunk of two copies for good at the moment at which a move of its
// other copy, or the addition of a second one, is committed, and restarts the target soon after:
// then what the target held before it was activated is all that is left. The same with the server
// of a chunk's only copy, when that was moved away from it; it comes back in the end.
type strand struct {
	rng  *rand.Rand
	adds bool // additions, not moves
	done bool
}

// chooseStrand decides whether a run has that, by a stream of its own.
func (w *world) chooseStrand() {
	rng := w.sim.Rand("strands")
	if w.sc.replicas == 1 {
		w.strand = &strand{rng: rng}
		return
	}
	if w.sc.victims == 0 || w.sc.replicas != 2 {
		return
	}
	if rng.IntN(2) == 0 {
		w.strand = &strand{rng: rng}
		w.sc.moves = 100 * ms
	} else {
		// Other faults would have the head lost, or its chunk moved, before that.
		w.strand = &strand{rng: rng, adds: true}
		w.sc.length, w.sc.moves, w.sc.weights = 9*sec, 0, [faultKinds]int{}
		w.sc.away, w.sc.partialFirst = false, false
	}
}

// start has the head of a chunk be its only member for a time, as soon as there is one.
func (s *strand) start(f *faults) {
	if s == nil || !s.adds {
		return
	}
	w := f.w
	w.sim.After(s.between(200*ms, sec), func() {
		for _, c := range w.mds.sim.Chunks() {
			head, n := w.cs[c.Members[0].CS-1], w.cs[c.Members[len(c.Members)-1].CS-1]
			if w.calm {
				return
			}
			if !c.Created || len(c.Members) != 2 || !f.victim(head) || head.gone || head.env.Dead() ||
				n.env.Dead() || !n.registered {
				continue
			}
			d := s.between(3*sec, 4*sec)
			w.trace("cs %d leaves chunk %v to cs %d alone for %d ms", n.id, c.Chunk, head.id, d/ms)
			f.until[n.index] = max(f.until[n.index], w.sim.Now()+d)
			n.kill(false)
			w.sim.After(d, func() { n.start(false) })
			return
		}
		s.start(f)
	})
}

func (s *strand) between(from, to int64) int64 { return from + s.rng.Int64N(to-from) }

// change says whether a change of members is one that the run is about.
func (s *strand) change(old, c *control.ChunkConfig) bool {
	if len(old.Members) == 1 && len(c.Members) == 1 {
		return c.Created && old.Members[0].CS != c.Members[0].CS
	}
	if !c.Created || len(c.Members) != 2 || old.Members[0].CS != c.Members[0].CS {
		return false
	}
	if s.adds {
		return len(old.Members) == 1
	}
	return len(old.Members) == 2 && old.Members[1].CS != c.Members[1].CS
}

// dispensable says whether every other chunk of a server has another member that got on.
func dispensable(w *world, n *csNode, but dataplane.ChunkID) bool {
	for _, c := range w.mds.sim.Chunks() {
		others := 0
		for _, m := range c.Members {
			o := w.cs[m.CS-1]
			if o == n || o.gone || o.shard == nil || o.env.Dead() {
				continue
			}
			if r, ok := o.shard.SimReplica(c.Chunk); ok && r.Epoch == c.Epoch {
				others++
			}
		}
		if c.Chunk != but && hasMember(&c, n.id) && others == 0 {
			return false
		}
	}
	return true
}

// moved is told of each change of members.
func (s *strand) moved(w *world, old, c *control.ChunkConfig) {
	if s == nil || s.done || w.calm || !s.change(old, c) {
		return
	}
	head, target := w.cs[old.Members[0].CS-1], w.cs[c.Members[len(c.Members)-1].CS-1]
	single := len(old.Members) == 1 && !s.adds
	if head.index >= w.sc.victims && !single || head.gone || head.env.Dead() ||
		target.env.Dead() || (s.adds || single) && !dispensable(w, head, c.Chunk) {
		return
	}
	s.done = true
	w.sim.After(s.between(us, 400*us), func() {
		if head.env.Dead() {
			return
		}
		w.did(sceneStrand)
		w.trace("cs %d is gone in the middle of a change of chunk %v", head.id, c.Chunk)
		head.kill(false)
		head.gone = !single // it may have been given other chunks of one copy meanwhile
	})
	w.sim.After(s.between(ms, sec), func() {
		if w.calm || target.env.Dead() {
			return
		}
		w.trace("cs %d, which was to have it, restarts", target.id)
		target.kill(true)
		cut := s.rng.IntN(2) == 0
		w.sim.After(s.between(ms, 100*ms), func() { target.start(cut) })
	})
}
