package main

import (
	"math/rand/v2"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// lone leaves a chunk to the rotten server alone, and damages some of its blocks there at that very
// moment: one of the others has left before, so that it may have something older, and the last one
// ends now. Both come back, and no faults are besides. So every block is still somewhere, and no
// read may fail or return anything else.
type lone struct {
	w     *world
	f     *faults
	rng   *rand.Rand
	chunk dataplane.ChunkID
	first *csNode // who leaves first
	until int64   // then it is given up
}

// chooseLone decides whether a run has that, by a stream of its own.
func (w *world) chooseLone() {
	rng := w.sim.Rand("lone members")
	if !w.sc.rot || w.sc.ghost || w.strand != nil || w.cfg.scene != nil || rng.IntN(2) > 0 {
		return
	}
	w.lone = &lone{w: w, rng: rng}
	w.sc.length, w.sc.moves, w.sc.weights = 30*sec, 0, [faultKinds]int{}
	w.sc.away, w.sc.partialFirst = false, false
}

func (l *lone) between(from, to int64) int64 { return from + l.rng.Int64N(to-from) }

// start has the first one leave.
func (l *lone) start(f *faults) {
	if l == nil {
		return
	}
	l.f = f
	l.w.sim.After(l.between(300*ms, 1500*ms), func() {
		for _, c := range l.w.mds.sim.Chunks() {
			if c.Created && len(c.Members) == 3 && hasMember(&c, f.rotten().id) && l.alike(&c) {
				l.chunk = c.Chunk
				l.first = l.other(&c)
				l.until = l.w.sim.Now() + 12*sec
				l.w.trace("cs %d leaves chunk %v", l.first.id, c.Chunk)
				l.first.kill(true)
				l.wait()
				return
			}
		}
		if !l.w.calm && l.w.sim.Now() < 4*sec {
			l.start(f)
		}
	})
}

// other is one of the members that aren't the rotten server.
func (l *lone) other(c *control.ChunkConfig) *csNode {
	for {
		n := l.w.cs[c.Members[l.rng.IntN(len(c.Members))].CS-1]
		if n != l.f.rotten() {
			return n
		}
	}
}

// alike says whether all members are there and have the same, all of it committed.
func (l *lone) alike(c *control.ChunkConfig) bool {
	last := dataplane.Seq(0)
	for i, m := range c.Members {
		n := l.w.cs[m.CS-1]
		if n.shard == nil || n.env.Dead() {
			return false
		}
		r, ok := n.shard.SimReplica(c.Chunk)
		if !ok || !r.Active || r.Epoch != c.Epoch || r.Last != r.Commit || i > 0 && r.Last != last {
			return false
		}
		last = r.Last
	}
	return true
}

// wait waits until the rotten server and one other are the members, and some writes later.
func (l *lone) wait() {
	l.w.sim.After(l.between(10*ms, 300*ms), func() {
		c := l.w.config(l.chunk)
		switch {
		case l.w.calm:
		case l.w.sim.Now() > l.until:
			l.first.start(false)
		case c != nil && len(c.Members) == 2 && hasMember(c, l.f.rotten().id) && l.alike(c) &&
			l.rng.IntN(8) == 0 && l.damage() > 0:
			l.leave(l.other(c))
		default:
			l.wait()
		}
	})
}

// damage spoils what the rotten server has in its store, and returns how many blocks that was.
func (l *lone) damage() (n int) {
	rotten := l.f.rotten()
	for range 12 {
		a := l.w.areas[l.rng.IntN(len(l.w.areas))]
		block := uint32((a.off + l.rng.Int64N(a.length)) % dataplane.ChunkSize / dataplane.BlockSize)
		if at, ok := rotten.shard.SimBlockAt(l.chunk, block); ok {
			l.w.trace("cs %d: bit rot in chunk %v block %d", rotten.id, l.chunk, block)
			rotten.store.FlipBit(at+l.rng.Int64N(dataplane.BlockSize), uint(l.rng.IntN(8)))
			n++
		}
	}
	return n
}

// leave has the last one leave, and both return once they have been given up.
func (l *lone) leave(last *csNode) {
	l.w.did(sceneLone)
	l.w.trace("cs %d leaves chunk %v to cs %d alone", last.id, l.chunk, l.f.rotten().id)
	last.kill(true)
	back := func(n *csNode) { l.w.sim.After(l.between(10*sec, 13*sec), func() { n.start(false) }) }
	back(l.first)
	back(last)
}
