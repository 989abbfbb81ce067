package chunk

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// writer keeps writes of a chunk going and knows what was acknowledged. One write per granule is in
// flight at a time, so the model is exact.
type writer struct {
	w       *world
	id      dataplane.ChunkID
	rng     *rand.Rand
	model   []byte // of the first span bytes
	busy    []bool // by granule
	flying  int
	acked   int
	stopped bool
}

const writerSpan = 4 << 20

func newWriter(w *world, id dataplane.ChunkID, seed uint64, depth int) *writer {
	x := &writer{w: w, id: id, rng: rand.New(rand.NewPCG(seed, 1)),
		model: make([]byte, writerSpan), busy: make([]bool, writerSpan/dataplane.PartSize)}
	for range depth {
		x.next()
	}
	return x
}

func (x *writer) next() {
	if x.stopped {
		return
	}
	g := x.rng.IntN(len(x.busy))
	for x.busy[g] {
		g = (g + 1) % len(x.busy)
	}
	n := []int{512, 4096, 12288, dataplane.PartSize}[x.rng.IntN(4)]
	off := g * dataplane.PartSize
	if room := dataplane.PartSize - n; room > 0 {
		off += x.rng.IntN(room/512+1) * 512
	}
	h := dataplane.Header{Op: dataplane.OpWrite, Offset: uint32(off)}
	data := pattern(x.rng.Uint64()>>20, n)
	if x.rng.IntN(8) == 0 {
		off = g * dataplane.PartSize
		n = dataplane.PartSize
		h = dataplane.Header{Op: dataplane.OpZero, Offset: uint32(off), Length: uint32(n)}
		data = nil
	}
	x.busy[g] = true
	x.flying++
	x.w.cl.env.Post(func() {
		x.w.cl.do(x.id, h, data, 0, func([]byte) {
			if data == nil {
				clear(x.model[off : off+n])
			} else {
				copy(x.model[off:], data)
			}
			x.busy[g] = false
			x.flying--
			x.acked++
			t := &uring.Timer{}
			t.Fire = x.next
			x.w.cl.env.Arm(t, ms)
		})
	})
}

// finish stops the writer, and compares all members' replicas, byte by byte.
func (x *writer) finish() {
	x.w.t.Helper()
	x.stopped = true
	x.w.must(func() bool { return x.flying == 0 }, 60*sec, "the last writes")
	x.w.run(50 * ms)
	cfg := x.w.md.chunks[x.id]
	for _, m := range cfg.Members {
		nd := x.w.nodes[m.CS-1]
		if got := nd.contents(x.id, 0, writerSpan); !bytes.Equal(got, x.model) {
			i := 0
			for got[i] == x.model[i] {
				i++
			}
			x.w.t.Fatalf("cs %d differs from what was acknowledged at byte %d (granule %d)", m.CS, i,
				i/dataplane.PartSize)
		}
	}
}

// recover asks the head once to copy the chunk.
func (w *world) recover(id dataplane.ChunkID, target dataplane.CSID) {
	cfg, _ := w.md.get(id)
	head := w.nodes[cfg.Members[0].CS-1]
	if head.sh == nil || head.env.Dead() {
		return
	}
	to := control.CSAddr{CS: target, Addr: w.nodes[target-1].addr()}
	head.env.Post(func() {
		if head.sh != nil {
			head.sh.RecoverPush(&control.RecoverPush{Chunks: []control.ChunkConfig{*cfg},
				Targets: []control.CSAddr{to}})
		}
	})
}

// full says whether the chunk has n members, all of them active at its epoch.
func (w *world) full(id dataplane.ChunkID, n int) bool {
	cfg := w.md.chunks[id]
	for _, m := range cfg.Members {
		sh := w.nodes[m.CS-1].sh
		if sh == nil || sh.chunks[id] == nil {
			return false
		}
		if r := sh.chunks[id]; r.state != active || r.epoch != cfg.Epoch {
			return false
		}
	}
	return len(cfg.Members) == n
}

// recoverUntil asks again and again, as the metadata servers do.
func (w *world) recoverUntil(id dataplane.ChunkID, target dataplane.CSID, n int) {
	w.t.Helper()
	next := int64(0)
	w.must(func() bool {
		if now := w.sim.Now(); now >= next && len(w.md.chunks[id].Members) < n {
			next = now + sec/2
			w.recover(id, target)
		}
		return w.full(id, n)
	}, 60*sec, "recovery")
}

func degraded(t *testing.T, seed uint64, nodes int) (*world, *writer) {
	w := newWorld(t, seed, nodes)
	w.md.add(chunkA, 2, 1, 2, 3)
	x := newWriter(w, chunkA, seed, 6)
	w.must(func() bool { return x.acked > 80 }, 60*sec, "first writes")
	w.nodes[2].kill()
	w.must(func() bool { return w.md.chunks[chunkA].Epoch == 2 }, 60*sec, "exclusion")
	before := x.acked
	w.must(func() bool { return x.acked > before+40 }, 60*sec, "writes without the member")
	return w, x
}

func TestRecoverReturnedMember(t *testing.T) {
	for seed := range uint64(3) {
		w, x := degraded(t, 1000+seed, 3)
		w.nodes[2].restart(seed%2 == 0)
		w.md.reported = nil
		w.recoverUntil(chunkA, 3, 3)
		if e := w.md.chunks[chunkA].Epoch; e != 3 {
			t.Errorf("epoch %d after an exclusion and an addition", e)
		}
		before := x.acked
		w.must(func() bool { return x.acked > before+40 }, 60*sec, "writes with the new member")
		x.finish()
		for i := range 3 {
			if n := len(w.nodes[i].sh.copiers); n != 0 {
				t.Errorf("cs %d: %d copiers left", i+1, n)
			}
		}
	}
}

// The copy goes on after whatever happens to those who take part, and nothing is lost.
func TestRecoverDisturbed(t *testing.T) {
	cases := map[string]func(w *world, x *writer){
		"target dies": func(w *world, x *writer) {
			w.nodes[3].kill()
			w.run(3 * sec)
			w.nodes[3].restart(true)
		},
		"target restarts": func(w *world, x *writer) { w.nodes[3].restart(false) },
		"head restarts":   func(w *world, x *writer) { w.nodes[0].restart(false) },
		"head loses power": func(w *world, x *writer) {
			w.nodes[0].restart(true)
		},
		"member restarts": func(w *world, x *writer) { w.nodes[1].restart(true) },
		"another target": func(w *world, x *writer) {
			w.nodes[2].restart(false)
			w.md.reported = nil
			w.recover(chunkA, 3)
		},
	}
	for name, disturb := range cases {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(2) {
				w, x := degraded(t, 2000+seed, 4)
				w.recover(chunkA, 4)
				copying := func() bool {
					r := w.nodes[0].sh.chunks[chunkA]
					return r.copier != nil && r.copier.parts > 5*seed
				}
				w.must(copying, 10*sec, "copy")
				disturb(w, x)
				w.md.reported = nil
				w.recoverUntil(chunkA, 4, 3)
				before := x.acked
				w.must(func() bool { return x.acked > before+50 }, 60*sec, "writes afterwards")
				x.finish()
			}
		})
	}
}

// The metadata servers commit the addition, and the head learns of it late or never; or they seem
// to have refused it and commit it when the chunk has gone on.
func TestRecoverDelayedAddition(t *testing.T) {
	for _, c := range []struct {
		name            string
		commit, restart bool // commit at once; the head dies before the answer
	}{
		{"answer lost", true, false},
		{"head dies before the answer", true, true},
		{"committed late", false, false},
		{"committed late, head restarted", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, x := degraded(t, 3000, 4)
			var held *control.ReconfigureReq
			w.md.hold = func(req *control.ReconfigureReq,
				cb func(*control.ChunkConfig, error)) bool {
				if held != nil || !slices.Contains(req.Members, 4) {
					return false
				}
				r := *req
				r.Members = slices.Clone(req.Members)
				held = &r
				if c.commit {
					if _, err := w.md.reconfigure(held); err != nil {
						t.Error(err)
					}
				}
				if !c.restart {
					cb(nil, dataplane.E("reconfigure", dataplane.TimedOut, nil))
				}
				return true
			}
			w.recover(chunkA, 4)
			w.must(func() bool { return held != nil }, 20*sec, "addition")
			if c.restart {
				w.nodes[0].restart(true)
			}
			before := x.acked
			w.must(func() bool { return x.acked > before+50 }, 30*sec, "writes go on")
			if !c.commit {
				if _, err := w.md.reconfigure(held); err == nil {
					t.Error("the late addition was committed")
				}
			}
			w.md.reported = nil
			w.recoverUntil(chunkA, 4, 3)
			before = x.acked
			w.must(func() bool { return x.acked > before+50 }, 30*sec, "writes afterwards")
			x.finish()
		})
	}
}

// An addition is committed late, when the chunk has taken more writes without the new member, as
// the head that asked is an older program, with no record of it. What it got isn't believed.
func TestRecoverLateAdditionGetsAll(t *testing.T) {
	w := newWorld(t, 4000, 4)
	w.md.add(chunkA, 2, 1, 2)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	w.nodes[0].sh.canary.ForgetAsked = true
	var held *control.ReconfigureReq
	w.md.hold = func(req *control.ReconfigureReq, cb func(*control.ChunkConfig, error)) bool {
		if held != nil || !slices.Contains(req.Members, 4) {
			return false
		}
		r := *req
		r.Members = slices.Clone(req.Members)
		held = &r
		return true
	}
	w.recover(chunkA, 4)
	w.must(func() bool { return held != nil }, 20*sec, "addition")
	w.nodes[0].restart(false)
	const far = 20 * dataplane.PartSize
	w.mustWrite(chunkA, far, pattern(2, 4096))
	if _, err := w.md.reconfigure(held); err != nil {
		t.Fatal(err)
	}
	w.mustWrite(chunkA, 2*far, pattern(3, 4096))
	w.must(func() bool { return w.full(chunkA, 3) }, 20*sec, "the new member")
	for i, at := range []uint32{0, far, 2 * far} {
		if got := w.nodes[3].contents(chunkA, at, dataplane.PartSize)[:4096]; !bytes.Equal(got,
			pattern(uint64(i+1), 4096)) {
			t.Errorf("the new member has something else at %d", at)
		}
	}
}

// A chunk that nobody has written to is given its members, too.
func TestRecoverUnwritten(t *testing.T) {
	w := newWorld(t, 5000, 3)
	w.md.add(chunkA, 2, 1, 2)
	w.recoverUntil(chunkA, 3, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	if got := w.nodes[2].contents(chunkA, 0, dataplane.PartSize)[:4096]; !bytes.Equal(got,
		pattern(1, 4096)) {
		t.Error("the new member doesn't have the first write")
	}
}
