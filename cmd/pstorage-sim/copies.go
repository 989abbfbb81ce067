package main

import (
	"fmt"

	"pstorage/chunk"
)

// counts says what there was of copies of chunks and of losses: a run without any proves nothing
// about them.
type counts struct {
	runs           int // with copies
	copies, deltas uint64
	moves          uint64 // ordered by the simulation
	bypassed       uint64 // writes that went around the log
	claims         uint64 // marks moved by what clients said was acknowledged

	// write-ack=memory.
	memory      int // runs
	fellBack    int // blocks that lost what was only acknowledged
	lostFlushes int // flushes that said so

	injected injected
	refused  int // attempts of old images of a server to register

	// I2: members activated, blocks compared then, members compared with heads.
	activations, compared, prefixes uint64

	// Few CRC pages in memory.
	pages   int // runs
	evicted uint64
	short   uint64 // times a request had to wait for room

	buffers int // runs with few buffers
}

// count adds what a process did that ends now.
func (w *world) count(sh *chunk.Shard) {
	if sh == nil {
		return
	}
	s := sh.Stats()
	w.counts.copies += s.Copies
	w.counts.deltas += s.Deltas
	w.counts.bypassed += sh.SimBypassed()
	w.counts.claims += sh.SimClaims()
	evicted, short := sh.SimCRCPages()
	w.counts.evicted += evicted
	w.counts.short += short
	if w.counts.copies > 0 {
		w.counts.runs = 1
	}
}

func (c *counts) add(o counts) {
	c.runs += o.runs
	c.copies += o.copies
	c.deltas += o.deltas
	c.moves += o.moves
	c.bypassed += o.bypassed
	c.claims += o.claims
	c.memory += o.memory
	c.fellBack += o.fellBack
	c.lostFlushes += o.lostFlushes
	c.refused += o.refused
	for k, n := range o.injected {
		c.injected[k] += n
	}
	c.activations += o.activations
	c.compared += o.compared
	c.prefixes += o.prefixes
	c.pages += o.pages
	c.evicted += o.evicted
	c.short += o.short
	c.buffers += o.buffers
}

func (c counts) String() string {
	return fmt.Sprintf("%d runs with %d copies, %d of them of what changed, %d moves ordered; "+
		"%d writes around the log; %d marks moved by clients\n", c.runs, c.copies, c.deltas, c.moves,
		c.bypassed, c.claims) +
		fmt.Sprintf("%d runs with write-ack=memory: %d blocks lost what wasn't flushed, %d flushes "+
			"said so\n", c.memory, c.fellBack, c.lostFlushes) +
		fmt.Sprintf("%d runs with few CRC pages in memory: %d evicted, %d waits for room\n"+
			"%d runs with few buffers\n", c.pages, c.evicted, c.short, c.buffers) +
		fmt.Sprintf("%d members activated with %d blocks as others had; %d times compared with a "+
			"head\n%d attempts of old images to register\n%v", c.activations, c.compared, c.prefixes,
			c.refused, c.injected)
}

// away has a victim excluded from its chunks, in one of several ways, and come back.
func (f *faults) away() {
	w := f.w
	n := w.cs[f.rng.IntN(w.sc.victims)]
	if w.calm || n.gone || n.env.Dead() || n.shard == nil {
		return
	}
	d := f.between(2800*ms, 4500*ms)
	f.until[n.index] = max(f.until[n.index], w.sim.Now()+d)
	how := f.rng.IntN(4)
	w.did(sceneAway)
	w.trace("cs %d is away for %d ms, way %d", n.id, d/ms, how)
	switch how {
	case 0, 1: // its process ends, perhaps with what wasn't flushed
		n.kill(how == 1 && !f.slow[n.index])
		cut := f.rng.IntN(2) == 0
		w.sim.After(d, func() { n.start(cut) })
	case 2:
		w.net.Isolate(n.ip, true)
		w.sim.After(d, func() { w.net.Isolate(n.ip, false) })
	default:
		n.env.Pause(d)
	}
	if f.rng.IntN(3) == 0 { // and once more, perhaps in the middle of its return
		w.sim.After(d+f.between(10*ms, 800*ms), func() {
			if !w.calm && !n.gone && !n.env.Dead() {
				w.trace("cs %d: crash while it returns", n.id)
				n.kill(false)
				w.sim.After(f.between(5*ms, 300*ms), func() { n.start(true) })
			}
		})
	}
}

// nextMove has replicas moved at random, heads as well as others.
func (f *faults) nextMove() {
	w := f.w
	w.sim.After(int64(f.rng.ExpFloat64()*float64(w.sc.moves)), func() {
		if w.calm {
			return
		}
		if chunks := w.mds.sim.Chunks(); len(chunks) > 0 {
			c := chunks[f.rng.IntN(len(chunks))]
			leaving := c.Members[f.rng.IntN(len(c.Members))].CS
			target := w.cs[f.rng.IntN(len(w.cs))].id
			if w.mds.sim.Move(c.Chunk, leaving, target) {
				w.trace("chunk %v moves from cs %d to cs %d", c.Chunk, leaving, target)
				w.counts.moves++
			}
		}
		f.nextMove()
	})
}

// atRest says whether all members of all chunks are there and active in the committed epoch.
func (w *world) atRest() bool {
	for _, c := range w.mds.sim.Chunks() {
		for _, m := range c.Members {
			n := w.cs[m.CS-1]
			if !c.Created {
				continue
			}
			if n.shard == nil || n.env.Dead() || n.gone {
				return false
			}
			r, ok := n.shard.SimReplica(c.Chunk)
			if !ok || r.Epoch != c.Epoch || !r.Active && r.Last > 0 {
				return false
			}
		}
	}
	return true
}
