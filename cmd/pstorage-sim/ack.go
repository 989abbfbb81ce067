package main

import (
	"slices"

	"pstorage/dataplane"
	dpclient "pstorage/dataplane/client"
	"pstorage/perf/history"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// In a part of the runs files have write-ack=memory: a write is acknowledged when all members hold
// it, and durable when a flush says so. Then
//
//   - a block may fall back to an older version, if the processes of all members have ended since
//     the newer one was written, but not behind one that was acknowledged before a flush that
//     succeeded, or that was written with FUA;
//   - what fell back stays there: a version that is gone doesn't come back;
//   - a flush may fail, if the processes of all members have ended since the last one that didn't
//     (of several chunks each says so). What was acknowledged until then is in doubt: no later
//     flush makes it durable.
//
// A chunk never has less than the minimum of members, so that many distinct servers must have
// ended.

// chooseMemory decides by a stream of its own. Who hands a file over flushes first; what rots, or
// is in flight when a client crashes, is looked for in runs where less may be lost.
func (w *world) chooseMemory() {
	rng, s := w.sim.Rand("memory"), &w.sc
	if s.mortal > 0 || s.rot || rng.IntN(4) > 0 {
		return
	}
	s.memory, s.leases, w.counts.memory = true, false, 1
	s.flushes = []int{2, 4, 16}[rng.IntN(3)]
	s.weights[faultSite] = max(s.weights[faultSite], rng.IntN(2))
	s.weights[faultStorm] = max(s.weights[faultStorm], rng.IntN(2))
}

// nextDarkness cuts the power of the site while no server has got durable what it acknowledged.
func (f *faults) nextDarkness() {
	w := f.w
	w.sim.After(int64(f.rng.ExpFloat64()*float64(2*sec)), func() {
		if w.calm {
			return
		}
		for _, n := range w.cs {
			if f.slow[n.index] || n.cache.Fault != nil || n.gone {
				f.nextDarkness()
				return
			}
		}
		late := f.between(20*ms, 200*ms)
		w.did(sceneDarkness)
		w.trace("all journals are %d ms late", late/ms)
		for _, n := range w.cs {
			f.slow[n.index] = true
			n.cache.Fault = func(op *uring.DiskOp) (x simloop.Fault) {
				if op.Kind == uring.DiskWriteSync || op.Kind == uring.DiskSync {
					x.Delay = late
				}
				return x
			}
		}
		w.sim.After(f.between(5*ms, 2*late), func() {
			if !w.calm {
				f.site()
			}
			for _, n := range w.cs {
				f.slow[n.index], n.cache.Fault = false, nil
			}
			f.nextDarkness()
		})
	})
}

// endings counts the servers one of whose processes has ended after a time.
func (w *world) endings(after int64) (n int) {
	for _, cs := range w.cs {
		if cs.ended > after {
			n++
		}
	}
	return n
}

// mayLose says whether what all members of a chunk held at a time may be gone.
func (w *world) mayLose(since int64) bool { return w.endings(since) >= int(w.sc.minimum) }

// fellBack says whether a read that returned these sectors, older than the newest that was visible
// when it began, shows a loss that may be. It then takes note of it.
func (b *block) fellBack(w *world, then marks, from, to int, c *content) bool {
	floor, durable := then.floor, then.durable
	if b.durable <= floor { // else that is about what was written since
		durable = b.durable
	}
	for k := floor - 1; k >= durable; k-- {
		if !slices.Equal(b.versions[k].content[from:to], c[from:to]) {
			continue
		}
		if !w.mayLose(b.versions[k+1].inv) {
			return false
		}
		w.trace("block at %d fell back from version %d to %d", b.off, floor, k)
		w.counts.fellBack++
		for i := k + 1; i <= floor; i++ {
			b.versions[i].lost = w.sim.Now()
		}
		if b.floor <= floor { // else it was written again meanwhile
			b.floor = k
		}
		return true
	}
	return false
}

// wroteDurably notes that a write with FUA was acknowledged.
func (f *file) wroteDurably(off int64, n int) {
	f.touched(off, n, func(b *block, _, _ int) {
		b.durable = len(b.versions) - 1
	})
}

// unflushed is since when something of the file may have been in memory only.
func (f *file) unflushed() int64 {
	since := f.flushed
	for _, b := range f.blocks {
		for k := b.durable + 1; k < len(b.versions); k++ {
			since = min(since, b.versions[k].inv) // its answer may have come much later
		}
	}
	return since
}

// newestAcked is the index of the newest version that was acknowledged. It may be gone since.
func (b *block) newestAcked() int {
	k := len(b.versions) - 1
	for k > 0 && b.versions[k].ret == history.Never {
		k--
	}
	return k
}

// flush flushes a file.
func (c *client) flush(f *file) {
	op := &dpclient.Op{Kind: dpclient.Flush, File: c.handles[f.index]}
	if !c.w.sc.memory {
		c.submit(op, func() {})
		return
	}
	begun := c.w.sim.Now()
	acked := make(map[*block]int, len(f.blocks))
	for _, b := range f.blocks {
		acked[b] = b.newestAcked()
	}
	c.running++
	c.w.ops++
	op.Done = func(op *dpclient.Op) {
		c.running--
		switch {
		case op.Err == nil:
			f.flushed = max(f.flushed, begun)
			for b, k := range acked {
				if k > b.doubtful {
					b.durable = max(b.durable, k)
				}
			}
			c.w.trace("client %d has flushed", c.index+1)
		case dataplane.KindOf(op.Err) == dataplane.IOError && c.w.mayLose(f.unflushed()):
			c.w.trace("client %d: %v", c.index+1, op.Err)
			c.w.counts.lostFlushes++
			for _, b := range f.blocks {
				b.doubtful = b.newestAcked()
			}
		default:
			c.w.violate("client %d: flush: %v, though no chunk lost all its members at once", c.index+1,
				op.Err)
		}
	}
	c.eng.Submit(op)
}
