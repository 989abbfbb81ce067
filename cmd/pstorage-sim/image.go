package main

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring/simloop"
)

// image puts an old image of a server's directory back: its disks, its start counter and what it
// remembers of its registrations, as they were before it started and registered anew. Whatever
// starts from it must be refused and serve nothing, for good, and its chunks recover elsewhere
// (I8).
type image struct {
	w    *world
	rng  *rand.Rand
	n    *csNode
	snap *snapshot
}

// snapshot is what a server has on disk at a moment.
type snapshot struct {
	store, cache    *simloop.Disk
	boot, confirmed uint64
	starts          []uint64
}

func (n *csNode) snapshot(rng *rand.Rand) *snapshot {
	seed := rng.Uint64()
	return &snapshot{store: n.store.CrashClone(n.env, seed), cache: n.cache.CrashClone(n.env, seed),
		boot: n.boot, confirmed: n.confirmed, starts: slices.Clone(n.starts)}
}

// chooseImage decides whether a run has that, by a stream of its own. The server is lost by it, so
// it is a victim.
func (w *world) chooseImage() {
	rng := w.sim.Rand("images")
	if !w.drawn("image", rng.IntN(12) == 0) || w.sc.victims == 0 || w.lone != nil || w.strand != nil {
		return
	}
	w.image = &image{w: w, rng: rng}
	w.sc.length = max(w.sc.length, 7*sec)
}

func (g *image) between(from, to int64) int64 { return from + g.rng.Int64N(to-from) }

// start takes the image as soon as there is something in it.
func (g *image) start() {
	if g == nil {
		return
	}
	w := g.w
	w.sim.After(g.between(200*ms, 1500*ms), func() {
		n := w.cs[g.rng.IntN(w.sc.victims)]
		switch {
		case w.calm:
		case !n.well() || n.drained || !w.holds(n):
			g.start()
		default:
			w.trace("cs %d: an image of its directory is taken", n.id)
			g.n, g.snap = n, n.snapshot(g.rng)
			w.sim.After(g.between(50*ms, sec), g.restart)
			w.sim.After(g.between(1200*ms, 3500*ms), g.putBack)
		}
	})
}

// well says whether a server is there and registered.
func (n *csNode) well() bool {
	return n.shard != nil && !n.env.Dead() && !n.gone && n.registered
}

// holds says whether a server is a member of a chunk that was written to.
func (w *world) holds(n *csNode) bool {
	for _, c := range w.mds.sim.Chunks() {
		if c.Created && hasMember(&c, n.id) {
			return true
		}
	}
	return false
}

// restart has the server start and register once more, so that the image is an old one.
func (g *image) restart() {
	n := g.n
	if g.w.calm || !n.well() {
		return
	}
	n.kill(g.rng.IntN(2) == 0)
	g.w.sim.After(g.between(5*ms, 200*ms), func() { n.start(false) })
}

// putBack puts the image back.
func (g *image) putBack() {
	w, n := g.w, g.n
	if w.calm || n.gone {
		return
	}
	if n.confirmed <= g.snap.boot {
		if n.well() && n.boot <= g.snap.boot {
			g.restart()
		}
		w.sim.After(300*ms, g.putBack)
		return
	}
	n.gone = true // its disks are lost
	n.kill(g.rng.IntN(2) == 0)
	w.sim.After(g.between(5*ms, 500*ms), func() {
		w.trace("cs %d: start %d is put back in the place of %d", n.id, g.snap.boot, n.boot)
		w.did(sceneImage)
		n.store, n.cache = g.snap.store, g.snap.cache
		n.boot, n.confirmed, n.starts = g.snap.boot, g.snap.confirmed, g.snap.starts
		n.image = true
		g.begin()
		for range g.rng.IntN(4) { // until its counter is above what is on record
			w.sim.After(g.between(500*ms, 3*sec), func() {
				n.kill(false)
				g.begin()
			})
		}
	})
}

// begin starts a process from the image.
func (g *image) begin() {
	if !g.w.calm {
		g.n.gone = false
		g.n.start(true)
		g.n.gone = true
	}
}

// letIn is told that the metadata servers let a process that started from an image in.
func (n *csNode) letIn() {
	n.w.violate("I8: cs %d registered as start %d from an old image of its directory", n.index+1,
		n.boot)
}

// refused notes that they didn't: the process ends, as chunk.Run does. Until then others may have
// settled a chunk with it, if it has all that they have.
func (n *csNode) refused(err error) {
	n.w.trace("cs %d: its old image is refused: %v", n.index+1, err)
	n.w.counts.refused++
	env := n.env
	n.w.sim.After(0, func() { // not in its own turn
		if n.env == env {
			n.kill(false)
		}
	})
}

// liar puts a server's disks back to an earlier state in a short power cut, though all that it has
// acknowledged since was flushed; its counters and its registration are those of now. It is the
// only one of three. The others find that it lost data (replica-lost), it is asked for its lease
// and excluded, and the chunk goes on without it, soon.
type liar struct {
	w    *world
	rng  *rand.Rand
	n    *csNode
	snap *snapshot
	tail bool                                // its slot table must have the tail of a write
	then map[dataplane.ChunkID]dataplane.Seq // what it had

	chunk  dataplane.ChunkID
	epoch  dataplane.Epoch
	commit dataplane.Seq
	told   bool
	began  int64 // when it lost it
	over   bool  // the chunk went on, or nothing came of it
}

// liarWithin is how soon a chunk must go on without a member that lost data: mostly a heartbeat
// with the wish for its lease, another one without, some attempts of the coordinator. One that was
// just about to register again keeps its lease, and is asked once more after 10 s.
const liarWithin = 15 * sec

// chooseLiar decides by a stream of its own. No other faults are besides.
func (w *world) chooseLiar() {
	rng, s := w.sim.Rand("liars"), &w.sc
	if !w.drawn("liar", rng.IntN(16) == 0) || s.memory || s.ghost || w.lone != nil ||
		w.strand != nil || w.image != nil {
		return
	}
	w.liar = &liar{w: w, rng: rng, tail: rng.IntN(2) == 0,
		then: map[dataplane.ChunkID]dataplane.Seq{}}
	s.replicas, s.minimum, s.victims, s.rot = 3, 2, 0, false
	s.length, s.moves, s.weights = 24*sec, 0, [faultKinds]int{}
	s.away, s.partialFirst = false, false
	// A gap that is known: a member that was touched out of the order of seqs counts as one that a
	// settling has patched, and isn't held to have lost anything. So no such state is put back.
}

func (l *liar) between(from, to int64) int64 { return from + l.rng.Int64N(to-from) }

// start notes what one of the servers has.
func (l *liar) start() {
	if l == nil {
		return
	}
	w := l.w
	w.sim.After(l.between(500*ms, 1500*ms), func() {
		n := w.cs[l.rng.IntN(len(w.cs))]
		ok := n.well() && w.holds(n)
		if ok {
			var tail bool
			ok, tail = n.shard.SimInOrder()
			ok = ok && (tail || !l.tail)
		}
		if !ok {
			if l.over = w.sim.Now() > 6*sec; !l.over {
				l.start()
			}
			return
		}
		l.n, l.snap = n, n.snapshot(l.rng)
		for _, c := range w.mds.sim.Chunks() {
			if r, ok := w.replicaAt(n.id, c.Chunk); ok && c.Created && r.Epoch == c.Epoch {
				l.then[c.Chunk] = r.Last
			}
		}
		l.wait()
	})
}

// wait waits until it would lose something that was acknowledged, and that the others know to be:
// what they don't, they give to it like to any that was cut off in the middle of a write, and
// nothing is lost.
func (l *liar) wait() {
	w := l.w
	w.sim.After(l.between(20*ms, 300*ms), func() {
		if l.over = w.calm || w.sim.Now() > 7*sec; l.over {
			return
		}
		for _, c := range w.mds.sim.Chunks() {
			last, had := l.then[c.Chunk]
			head, ok := w.replicaAt(c.Members[0].CS, c.Chunk)
			if had && ok && len(c.Members) == 3 && hasMember(&c, l.n.id) && head.Epoch == c.Epoch &&
				l.othersKnow(&c, last) && l.n.well() {
				l.chunk, l.epoch, l.commit = c.Chunk, c.Epoch, head.Commit
				l.strike(last)
				return
			}
		}
		l.wait()
	})
}

// othersKnow says whether all members but the liar know that more than seq is committed.
func (l *liar) othersKnow(c *control.ChunkConfig, seq dataplane.Seq) bool {
	for _, m := range c.Members {
		r, ok := l.w.replicaAt(m.CS, c.Chunk)
		if m.CS != l.n.id && (!ok || r.Epoch != c.Epoch || r.Commit <= seq) {
			return false
		}
	}
	return true
}

func (l *liar) strike(last dataplane.Seq) {
	w, n := l.w, l.n
	w.trace("cs %d: power cut; of chunk %v it has seq %d, after %d was acknowledged", n.id, l.chunk,
		last, l.commit)
	w.did(sceneLiar)
	l.began = w.sim.Now()
	n.kill(false)
	n.store, n.cache = l.snap.store, l.snap.cache
	w.sim.After(l.between(2*ms, 40*ms), func() { n.start(true) })
	w.sim.After(sec, l.check)
}

// done says whether a run may end, as far as the liar is concerned; there may be none.
func (l *liar) done() bool { return l != nil && l.over }

// check waits until the chunk has gone on without the liar.
func (l *liar) check() {
	c := l.w.config(l.chunk)
	head, ok := l.w.replicaAt(c.Members[0].CS, l.chunk)
	ok = ok && head.Epoch == c.Epoch && head.Commit > l.commit
	switch {
	case l.told && c.Epoch > l.epoch && ok:
		l.over = true
	case l.w.sim.Now() < l.began+liarWithin:
		l.w.sim.After(100*ms, l.check)
	case !l.told:
		l.w.violate("I8: nobody says that cs %d lost data of chunk %v", l.n.id, l.chunk)
	case c.Epoch == l.epoch:
		l.w.violate("I8: cs %d lost data of chunk %v, and isn't excluded after %v s", l.n.id, l.chunk,
			liarWithin/sec)
	default:
		l.w.violate("chunk %v doesn't go on though cs %d was excluded", l.chunk, l.n.id)
	}
}

// mayHaveLost says whether a replica-lost event is about a server that lost data by what the
// simulation did to it: an old image that others ask before it was refused, or the liar.
func (w *world) mayHaveLost(message string) bool {
	var cs dataplane.CSID
	if n, _ := fmt.Sscanf(message, "chunk %d.%d: cs %d lost", new(int), new(int), &cs); n < 3 ||
		cs == 0 || int(cs) > len(w.cs) {
		return false
	}
	n := w.cs[cs-1]
	if l := w.liar; l != nil && l.n == n && l.chunk != 0 {
		l.told = true
		return true
	}
	return n.image
}
