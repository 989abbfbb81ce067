package main

import (
	"math/rand/v2"

	"pstorage/dataplane"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// rare are faults that few runs have, by streams of their own.
type rare struct {
	f        *faults
	misreads *rand.Rand // nil: none
	hangs    *rand.Rand // nil: none
	dark     *rand.Rand // see darken
}

// chooseRare decides about them.
func (f *faults) chooseRare() {
	w := f.w
	r := &rare{f: f, dark: w.sim.Rand("dark")}
	if rng := w.sim.Rand("misreads"); w.drawn("misread", rng.IntN(2) == 0) && w.sc.rot &&
		w.lone == nil {
		r.misreads = rng
	}
	if rng := w.sim.Rand("hangs"); w.drawn("hang", rng.IntN(10) == 0) && w.sc.victims > 0 &&
		w.lone == nil && w.strand == nil {
		r.hangs = rng
		w.sc.length = max(w.sc.length, 8*sec)
	}
	f.rare = r
}

// start begins with both.
func (r *rare) start() {
	if r.misreads != nil {
		r.nextMisread()
	}
	if r.hangs != nil {
		r.f.w.sim.After(200*ms+r.hangs.Int64N(2*sec), r.hang)
	}
}

// nextMisread has some reads of the rotten server's store come from elsewhere for a while: what
// they return was written, with a checksum of its own, but isn't what was asked for.
func (r *rare) nextMisread() {
	f, w, rng := r.f, r.f.w, r.misreads
	w.sim.After(100*ms+rng.Int64N(sec), func() {
		if w.calm {
			return
		}
		if n := f.rotten(); n.shard != nil && !n.env.Dead() && n.store.Fault == nil {
			w.trace("cs %d: misdirected reads", n.id)
			disk := n.store
			disk.Fault = func(op *uring.DiskOp) (x simloop.Fault) {
				if op.Kind != uring.DiskRead || len(op.Bufs) != 1 || n.opening || rng.IntN(3) > 0 {
					return x
				}
				by := dataplane.BlockSize * (1 + rng.Int64N(32))
				if op.Offset+by+int64(len(op.Bufs[0])) <= disk.Size() {
					w.did(faultMisread)
					x.Misplace = by
				}
				return x
			}
			w.sim.After(10*ms+rng.Int64N(500*ms), func() { disk.Fault = nil })
		}
		r.nextMisread()
	})
}

// hang stops a victim's disks for some seconds, its log, its store or both, while its process
// lives: nothing fails, nothing returns.
func (r *rare) hang() {
	f, w, rng := r.f, r.f.w, r.hangs
	n := w.cs[rng.IntN(w.sc.victims)]
	if w.calm {
		return
	}
	if !n.well() || f.slow[n.index] || n.store.Fault != nil || n.cache.Fault != nil {
		w.sim.After(300*ms, r.hang)
		return
	}
	d := 3*sec + rng.Int64N(7*sec)
	until := w.sim.Now() + d
	f.until[n.index] = max(f.until[n.index], until)
	f.slow[n.index] = true
	hung := func(*uring.DiskOp) simloop.Fault {
		return simloop.Fault{Delay: max(until-w.sim.Now(), 0)}
	}
	which := rng.IntN(3)
	w.trace("cs %d: its disks hang for %d ms, way %d", n.id, d/ms, which)
	w.did(faultHang)
	store, cache := n.store, n.cache
	if which != 0 {
		store.Fault = hung
	}
	if which != 1 {
		cache.Fault = hung
	}
	w.sim.After(d, func() {
		f.slow[n.index] = false
		if which != 0 {
			store.Fault = nil
		}
		if which != 1 {
			cache.Fault = nil
		}
	})
}
