package main

import (
	"math/rand/v2"

	"pstorage/chunk"
	"pstorage/dataplane"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// The kinds of faults.
const (
	faultCrash = iota
	faultPower
	faultSite
	faultCutServers
	faultCutClient
	faultIsolate
	faultCutMDS
	faultSlowNet
	faultReset
	faultPause
	faultLeader
	faultSlowDisk
	faultReadError
	faultRot
	faultDeadDisk
	faultClient
	faultPartial
	faultStorm
	faultStall
	faultSlowCrash
	faultLost
	faultKinds
)

var faultNames = [faultKinds]string{"crash", "power", "site", "cut", "cut-client", "isolate",
	"cut-mds", "slow-net", "reset", "pause", "leader", "slow-disk", "read-error", "rot", "dead-disk",
	"client", "partial", "storm", "stall", "slow-crash", "lost"}

// faults does damage at random, within the budget that keeps what is asked for possible: only the
// victims may be away for so long, all in all, that they lose their lease.
type faults struct {
	w     *world
	rng   *rand.Rand
	kinds []int
	until []int64 // by server: the last trouble of it ends then
	alone []int   // by server: counts the times it saw only clients
	slow  []bool  // by server: its disk is slow now
	rare  *rare
}

func newFaults(w *world) *faults {
	f := &faults{w: w, rng: w.sim.Rand("faults"), until: make([]int64, len(w.cs)),
		slow: make([]bool, len(w.cs)), alone: make([]int, len(w.cs))}
	for k, n := range w.sc.weights {
		for range n {
			f.kinds = append(f.kinds, k)
		}
	}
	f.chooseLate()
	f.chooseRare()
	return f
}

// start begins with a ghost, if there is to be one, and nothing else: it needs a chunk in good
// order.
func (f *faults) start() {
	if f.w.sc.ghost {
		f.w.sim.After(f.between(200*ms, sec), func() { f.ghost(f.others) })
		return
	}
	f.others()
}

// others begins with all other faults.
func (f *faults) others() {
	if f.w.calm {
		return
	}
	if f.w.sc.partialFirst {
		f.w.sim.After(sec, func() {
			if n := f.headVictim(); n != nil && f.rng.IntN(2) == 0 && !f.w.calm {
				f.forsake(n, true)
			} else if !f.w.calm {
				f.partial()
			}
		})
	}
	if f.w.sc.moves > 0 {
		f.nextMove()
	}
	if f.w.sc.memory {
		f.nextDarkness()
	}
	if f.w.sc.away {
		f.w.sim.After(f.between(sec/4, 2*sec), f.away)
	}
	f.w.strand.start(f)
	f.w.lone.start(f)
	f.w.image.start()
	f.w.liar.start()
	f.rare.start()
	if len(f.kinds) > 0 {
		f.next()
	}
}

func (f *faults) next() {
	f.w.sim.After(int64(f.rng.ExpFloat64()*float64(f.w.sc.every)), func() {
		if !f.w.calm {
			f.one(f.kinds[f.rng.IntN(len(f.kinds))])
			f.next()
		}
	})
}

func (f *faults) between(from, to int64) int64 { return from + f.rng.Int64N(to-from) }

// victim: servers are numbered so that the first ones are the victims.
func (f *faults) victim(n *csNode) bool { return n.index < f.w.sc.victims }

// rotten is the server whose disk rots: never a victim.
func (f *faults) rotten() *csNode { return f.w.cs[len(f.w.cs)-1] }

// rest is how long a server that isn't a victim must be well between two troubles.
const rest = 1500 * ms

// outage chooses a server and how long it may be away; nil: none now. most bounds it for those
// that must keep their lease.
func (f *faults) outage(most int64) (n *csNode, d int64) {
	n = f.w.cs[f.rng.IntN(len(f.w.cs))]
	now := f.w.sim.Now()
	if n.gone || n.env.Dead() || n.shard == nil {
		return nil, 0
	}
	if f.victim(n) {
		d = f.between(5*ms, most)
		if f.rng.IntN(2) == 0 {
			d = f.between(sec, 6*sec)
		}
	} else {
		if now < f.until[n.index]+rest || !n.registered {
			return nil, 0
		}
		d = f.between(ms, most)
	}
	f.until[n.index] = max(f.until[n.index], now+d)
	return n, d
}

func (f *faults) one(kind int) {
	w := f.w
	switch kind {
	case faultCrash, faultPower:
		if n, d := f.outage(600 * ms); n != nil {
			w.did(kind)
			certified := f.rng.IntN(2) == 0 && !f.slow[n.index]
			w.trace("cs %d: %s for %v ms, certified %v", n.id, faultNames[kind], d/ms, certified)
			dark := kind == faultPower && f.darken(n)
			n.kill(certified && !dark)
			if f.victim(n) && f.rng.IntN(6) == 0 {
				w.trace("cs %d is gone for good", n.id)
				n.gone = true
			}
			w.sim.After(d, func() { f.light(n, dark); n.start(kind == faultPower) })
		}
	case faultSite:
		f.site()
	case faultCutServers:
		a, b := w.cs[f.rng.IntN(len(w.cs))], w.cs[f.rng.IntN(len(w.cs))]
		if a != b {
			w.did(kind)
			f.cut(a.ip, b.ip, f.between(ms, 3*sec))
		}
	case faultCutClient:
		w.did(kind)
		c := w.cl[f.rng.IntN(len(w.cl))]
		if f.rng.IntN(4) == 0 {
			for _, ip := range w.mds.ips {
				f.cut(c.ip, ip, f.between(ms, 2*sec))
			}
			break
		}
		f.cut(c.ip, w.cs[f.rng.IntN(len(w.cs))].ip, f.between(ms, 3*sec))
	case faultIsolate:
		if n, d := f.outage(800 * ms); n != nil {
			w.did(kind)
			w.trace("cs %d isolated for %d ms", n.id, d/ms)
			w.net.Isolate(n.ip, true)
			w.sim.After(d, func() { w.net.Isolate(n.ip, false) })
		}
	case faultCutMDS:
		if n, d := f.outage(800 * ms); n != nil {
			w.did(kind)
			for _, ip := range w.mds.ips {
				f.cut(n.ip, ip, d)
			}
		}
	case faultSlowNet:
		f.slowNet()
	case faultReset:
		a := w.cs[f.rng.IntN(len(w.cs))].ip
		b := w.cs[f.rng.IntN(len(w.cs))].ip
		if f.rng.IntN(2) == 0 {
			b = w.cl[f.rng.IntN(len(w.cl))].ip
		}
		w.did(kind)
		w.trace("reset %s %s", a, b)
		w.net.Reset(a, b)
	case faultPause:
		if f.rng.IntN(4) == 0 {
			w.did(kind)
			w.cl[f.rng.IntN(len(w.cl))].env.Pause(f.between(ms, 3*sec))
		} else if n, d := f.outage(700 * ms); n != nil {
			w.did(kind)
			w.trace("cs %d paused for %d ms", n.id, d/ms)
			n.env.Pause(d)
		}
	case faultLeader:
		gap := f.between(10*ms, 900*ms)
		if w.mds.sim.Leading() {
			w.did(kind)
		}
		w.trace("no metadata leader for %d ms", gap/ms)
		w.mds.change(gap)
	case faultSlowDisk:
		f.slowDisk()
	case faultReadError, faultRot, faultLost:
		f.damage(kind)
	case faultDeadDisk:
		f.deadDisk()
	case faultClient:
		f.client()
	case faultPartial:
		f.partial()
	case faultStorm:
		f.storm()
	case faultStall:
		f.stall()
	case faultSlowCrash:
		f.slowCrash()
	}
}

// stall holds back what goes over the connections between two nodes, in one direction or both.
func (f *faults) stall() {
	w := f.w
	a, b := w.cl[f.rng.IntN(len(w.cl))].ip, w.cs[f.rng.IntN(len(w.cs))].ip
	if f.rng.IntN(3) == 0 {
		a = w.cs[f.rng.IntN(len(w.cs))].ip
	}
	d := f.between(100*ms, 4*sec)
	w.did(faultStall)
	w.trace("connections from %s to %s stall for %d ms", a, b, d/ms)
	w.net.Stall(a, b, d)
	if f.rng.IntN(3) > 0 {
		w.net.Stall(b, a, d)
	}
}

// slowCrash has a chunk settled while one of its members hasn't got durable what it has accepted,
// and cuts that member's power soon after.
func (f *faults) slowCrash() {
	n, d := f.outage(300 * ms)
	w := f.w
	if n == nil || f.slow[n.index] || n.cache.Fault != nil {
		return
	}
	w.did(faultSlowCrash)
	w.trace("cs %d: slow disk, resets, power cut for %d ms", n.id, d/ms)
	f.slow[n.index] = true
	n.cache.Fault = func(op *uring.DiskOp) (x simloop.Fault) {
		if op.Kind == uring.DiskWriteSync {
			x.Delay = 60 * ms
		}
		return x
	}
	at := f.between(ms, 40*ms)
	for _, o := range w.cs {
		if o != n {
			w.sim.After(at, func() { w.net.Reset(n.ip, o.ip) })
		}
	}
	w.sim.After(at+f.between(20*ms, 80*ms), func() {
		n.kill(false)
		w.sim.After(d, func() { n.start(true) })
		n.cache.Fault = nil
		f.slow[n.index] = false
	})
	f.until[n.index] = max(f.until[n.index], w.sim.Now()+at+80*ms+d)
}

// partial cuts a server off from its peers, perhaps from the metadata servers, not from clients.
func (f *faults) partial() {
	n, d := f.outage(800 * ms)
	if n == nil {
		return
	}
	w := f.w
	w.did(faultPartial)
	if f.victim(n) && f.rng.IntN(3) > 0 {
		f.forsake(n, f.rng.IntN(2) == 0)
		return
	}
	for _, o := range w.cs {
		if o != n {
			f.cut(n.ip, o.ip, d)
		}
	}
	if f.rng.IntN(4) > 0 {
		for _, ip := range w.mds.ips {
			f.cut(n.ip, ip, d)
		}
	}
}

// forsake lets a victim see only clients, long enough to be excluded, and to be asked by clients
// that don't know it. early: the others see it again just when they have begun a new epoch, so that
// what it sent before arrives then.
func (f *faults) forsake(n *csNode, early bool) {
	w := f.w
	d := f.between(3*sec, 7*sec)
	f.until[n.index] = max(f.until[n.index], w.sim.Now()+d)
	w.trace("cs %d sees only clients for %d ms, early %v", n.index+1, d/ms, early)
	all := func(cut bool) {
		for _, o := range w.cs {
			w.net.Cut(n.ip, o.ip, cut)
			w.net.Cut(o.ip, n.ip, cut)
		}
		for _, ip := range w.mds.ips {
			w.net.Cut(n.ip, ip, cut)
			w.net.Cut(ip, n.ip, cut)
		}
	}
	all(true)
	f.alone[n.index]++
	time := f.alone[n.index]
	heal := func() {
		if f.alone[n.index] == time {
			f.alone[n.index]++
			all(false)
		}
	}
	w.sim.After(d, heal)
	if early {
		n.onExcluded = func() {
			n.onExcluded = nil
			w.sim.After(f.between(us, 3*ms), heal)
		}
	}
}

// headVictim is a victim that is the head of a chunk; nil: there is none.
func (f *faults) headVictim() *csNode {
	for _, c := range f.w.mds.sim.Chunks() {
		if n := f.w.cs[c.Members[0].CS-1]; c.Created && f.victim(n) && !n.gone && !n.env.Dead() {
			return n
		}
	}
	return nil
}

// storm restarts servers in quick succession, so that one fault meets the repair of another.
func (f *faults) storm() {
	w := f.w
	at := int64(0)
	for range 2 + f.rng.IntN(5) {
		at += f.between(us, 15*ms)
		n := w.cs[f.rng.IntN(len(w.cs))]
		if !f.victim(n) && w.sim.Now() < f.until[n.index]+rest && f.until[n.index] > 0 {
			continue
		}
		cut, down := f.rng.IntN(2) == 0, f.between(us, 30*ms)
		reset := f.rng.IntN(3) == 0
		w.sim.After(at, func() {
			switch {
			case n.gone || n.env.Dead() || w.calm:
			case reset:
				w.net.Reset(n.ip, w.cs[f.rng.IntN(len(w.cs))].ip)
			default:
				w.did(faultStorm)
				w.trace("storm: cs %d down for %d us, power %v", n.index+1, down/us, cut)
				n.kill(false)
				w.sim.After(down, func() { n.start(cut) })
				f.until[n.index] = max(f.until[n.index], w.sim.Now()+down)
			}
		})
	}
}

// cut cuts the way between two addresses for a time, sometimes in one direction only.
func (f *faults) cut(a, b string, d int64) {
	w := f.w
	way := f.rng.IntN(4)
	w.trace("cut %s %s for %d ms, way %d", a, b, d/ms, way)
	if way != 0 {
		w.net.Cut(a, b, true)
	}
	if way != 1 {
		w.net.Cut(b, a, true)
	}
	w.sim.After(d, func() {
		w.net.Cut(a, b, false)
		w.net.Cut(b, a, false)
	})
}

// site cuts the power of all servers, the metadata leader's too.
func (f *faults) site() {
	w := f.w
	now := w.sim.Now()
	for i, n := range w.cs {
		if !f.victim(n) && now < f.until[i]+rest && f.until[i] != 0 {
			return
		}
	}
	w.did(faultSite)
	w.trace("power cut of the site")
	w.mds.change(f.between(10*ms, 500*ms))
	for i, n := range w.cs {
		dark := f.darken(n)
		n.kill(false)
		d := f.between(10*ms, 700*ms)
		if f.victim(n) && f.rng.IntN(2) == 0 {
			d = f.between(sec, 8*sec)
		}
		f.until[i] = now + d
		w.sim.After(d, func() { f.light(n, dark); n.start(true) })
	}
}

// darken has half of the hosts that lose power fall silent: until they are back nothing resets
// their connections or refuses new ones.
func (f *faults) darken(n *csNode) bool {
	if f.rare.dark.IntN(2) == 0 {
		return false
	}
	f.w.trace("cs %d falls silent", n.id)
	f.w.net.Isolate(n.ip, true)
	return true
}

// light ends what darken began.
func (f *faults) light(n *csNode, dark bool) {
	if dark {
		f.w.net.Isolate(n.ip, false)
	}
}

func (f *faults) slowNet() {
	w := f.w
	a := w.cs[f.rng.IntN(len(w.cs))].ip
	b := w.cs[f.rng.IntN(len(w.cs))].ip
	if f.rng.IntN(2) == 0 {
		b = w.cl[f.rng.IntN(len(w.cl))].ip
	}
	extra := f.between(ms, 300*ms)
	w.did(faultSlowNet)
	w.trace("slow %s to %s by %d ms", a, b, extra/ms)
	w.net.Slow(a, b, extra)
	w.sim.After(f.between(10*ms, 2*sec), func() { w.net.Slow(a, b, 0) })
}

func (f *faults) slowDisk() {
	w := f.w
	n := w.cs[f.rng.IntN(len(w.cs))]
	if f.slow[n.index] || n.store.Fault != nil || n.env.Dead() {
		return
	}
	most := f.between(ms, 100*ms)
	w.did(faultSlowDisk)
	w.trace("cs %d: disk slower by up to %d ms", n.id, most/ms)
	f.slow[n.index] = true
	rng := w.sim.Rand("slow disk")
	slow := func(*uring.DiskOp) simloop.Fault { return simloop.Fault{Delay: rng.Int64N(most)} }
	n.store.Fault, n.cache.Fault = slow, slow
	w.sim.After(f.between(100*ms, 2*sec), func() {
		n.store.Fault, n.cache.Fault = nil, nil
		f.slow[n.index] = false
	})
}

// damage spoils reads of the rotten server's store, or what is stored there.
func (f *faults) damage(kind int) {
	w, n := f.w, f.rotten()
	if !w.sc.rot || n.shard == nil || n.env.Dead() {
		return
	}
	if kind != faultReadError && !f.whole() {
		return
	}
	if kind == faultReadError {
		if n.store.Fault != nil {
			return
		}
		w.trace("cs %d: read errors", n.id)
		rng := w.sim.Rand("read errors")
		n.store.Fault = func(op *uring.DiskOp) (x simloop.Fault) {
			if op.Kind == uring.DiskRead && len(op.Bufs) == 1 && rng.IntN(4) == 0 && !n.opening {
				w.did(faultReadError)
				if rng.IntN(2) == 0 {
					x.Flip = true
				} else {
					x.Err = simloop.ErrIO
				}
			}
			return x
		}
		w.sim.After(f.between(10*ms, sec), func() { n.store.Fault = nil })
		return
	}
	if kind == faultLost {
		f.lostWrites(n)
		return
	}
	chunks := w.mds.sim.Chunks()
	for range 20 {
		if len(chunks) == 0 {
			return
		}
		c := chunks[f.rng.IntN(len(chunks))]
		a := w.areas[f.rng.IntN(len(w.areas))]
		block := uint32((a.off + f.rng.Int64N(a.length)) % dataplane.ChunkSize / dataplane.BlockSize)
		if at, ok := n.shard.SimBlockAt(c.Chunk, block); ok {
			w.did(faultRot)
			w.trace("cs %d: bit rot in chunk %v block %d", n.id, c.Chunk, block)
			n.store.FlipBit(at+f.rng.Int64N(dataplane.BlockSize), uint(f.rng.IntN(8)))
			return
		}
	}
}

// whole says that no chunk lacks a copy. Where one does, because a server was told to give its
// lease up, the rotten one may be all that is left when a victim's disk fails.
func (f *faults) whole() bool {
	for _, c := range f.w.mds.sim.Chunks() {
		if len(c.Members) < int(f.w.sc.replicas) {
			return false
		}
		for _, m := range c.Members {
			if f.w.cs[m.CS-1].gone {
				return false
			}
		}
	}
	return true
}

// lostWrites has writes to the slots of a store do nothing, or land elsewhere.
func (f *faults) lostWrites(n *csNode) {
	if n.store.Fault != nil {
		return
	}
	w := f.w
	w.trace("cs %d: lost and misdirected writes", n.id)
	rng, data := w.sim.Rand("lost writes"), chunk.SimData(slots)
	n.store.Fault = func(op *uring.DiskOp) (x simloop.Fault) {
		if op.Kind != uring.DiskWrite || op.Offset < data || rng.IntN(4) > 0 {
			return x
		}
		w.did(faultLost)
		if x.Misplace = dataplane.BlockSize * (1 + rng.Int64N(64)); rng.IntN(2) == 0 ||
			op.Offset+x.Misplace+(4<<20) > n.store.Size() {
			return simloop.Fault{Lost: true}
		}
		return x
	}
	w.sim.After(f.between(10*ms, sec), func() { n.store.Fault = nil })
}

// deadDisk ends a victim's disk for good.
func (f *faults) deadDisk() {
	w := f.w
	if w.sc.victims == 0 {
		return
	}
	n := w.cs[f.rng.IntN(w.sc.victims)]
	if n.gone || n.env.Dead() || n.shard == nil {
		return
	}
	w.did(faultDeadDisk)
	w.trace("cs %d: disk fails", n.id)
	n.gone = true
	n.cache.FailRange(0, 1<<60, simloop.ErrIO, uring.DiskWrite, uring.DiskWriteSync, uring.DiskSync)
}

// client crashes one of those that may, and starts it again.
func (f *faults) client() {
	w := f.w
	if w.sc.mortal == 0 {
		return
	}
	c := w.cl[f.rng.IntN(w.sc.mortal)]
	if c.env.Dead() {
		return
	}
	w.did(faultClient)
	w.trace("client %d crashes", c.index+1)
	c.crash()
	w.sim.After(f.between(ms, 400*ms), c.newProcess)
}
