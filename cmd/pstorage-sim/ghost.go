package main

import "pstorage/dataplane"

// ghost stops a head with writes on their way to the other members, and has these arrive right
// after it was excluded: delayed messages of an older epoch. Nothing but what the members check in
// each write keeps them out then, as the connections they come over are still open.
type ghost struct {
	f       *faults
	n       *csNode
	members []string
	over    bool
	then    func()
}

// chooseGhost decides whether a run has a ghost, by a stream of its own.
func (w *world) chooseGhost() {
	if w.sc.victims > 0 && w.sc.replicas == 3 && w.sim.Rand("ghosts").IntN(3) == 0 {
		w.sc.ghost = true
		w.sc.length = max(w.sc.length, 6*sec)
	}
}

// ghost begins if a victim is the head of a chunk in good order. then is called when it is over.
func (f *faults) ghost(then func()) {
	w := f.w
	n := f.ghostHead()
	if w.calm || n == nil {
		then()
		return
	}
	g := &ghost{f: f, n: n, then: then}
	for _, o := range w.cs {
		if o != n {
			g.members = append(g.members, o.ip)
		}
	}
	d := 5 * sec
	f.until[n.index] = max(f.until[n.index], w.sim.Now()+d)
	w.did(sceneGhost)
	w.trace("cs %d stops with writes on their way", n.id)
	g.hold(true)
	g.burst()
	w.sim.After(f.between(2*ms, 30*ms), func() { n.env.Pause(d) })
	w.sim.After(d, g.end)
	n.onExcluded = func() {
		n.onExcluded = nil
		w.sim.After(f.between(100*us, 30*ms), g.end)
	}
}

// ghostHead is a victim that is the head of a chunk with three active members; nil: there is none.
func (f *faults) ghostHead() *csNode {
	for _, c := range f.w.mds.sim.Chunks() {
		ready := c.Created && len(c.Members) == 3
		for _, m := range c.Members {
			n := f.w.cs[m.CS-1]
			if n.shard == nil || n.env.Dead() {
				return nil
			}
			r, ok := n.shard.SimReplica(c.Chunk)
			ready = ready && ok && r.Active
		}
		if n := f.w.cs[c.Members[0].CS-1]; ready && f.victim(n) && !n.gone {
			return n
		}
	}
	return nil
}

// burst has clients write to the chunks of the head.
func (g *ghost) burst() {
	w := g.f.w
	for _, c := range w.mds.sim.Chunks() {
		used := w.usedOf(c.Index)
		if c.Members[0].CS != g.n.id || len(used) == 0 {
			continue
		}
		for i, f := range w.files {
			if f.id != c.File || w.cl[i].env.Dead() {
				continue
			}
			for range 2 + g.f.rng.IntN(6) {
				a := used[g.f.rng.IntN(len(used))]
				off := a.off + g.f.rng.Int64N(a.length/dataplane.BlockSize)*dataplane.BlockSize
				if f.free(off, dataplane.BlockSize) {
					w.cl[i].env.Do(func() { w.cl[i].write(f, off, dataplane.BlockSize, false) })
				}
			}
		}
	}
}

// hold stops or lets go what the head has sent to others.
func (g *ghost) hold(cut bool) {
	for _, ip := range g.members {
		g.f.w.net.Cut(g.n.ip, ip, cut)
	}
}

// end has everything arrive.
func (g *ghost) end() {
	if !g.over {
		g.over = true
		g.f.w.trace("what cs %d had sent arrives", g.n.id)
		g.hold(false)
		g.then()
	}
}
