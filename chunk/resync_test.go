package chunk

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// move asks the head once to move a replica.
func (w *world) move(id dataplane.ChunkID, leaving, target dataplane.CSID) {
	cfg, _ := w.md.get(id)
	head := w.nodes[cfg.Members[0].CS-1]
	if head.sh == nil || head.env.Dead() || len(cfg.Members) == 0 {
		return
	}
	to := control.CSAddr{CS: target, Addr: w.nodes[target-1].addr()}
	head.env.Post(func() {
		if head.sh != nil {
			head.sh.RecoverPush(&control.RecoverPush{Chunks: []control.ChunkConfig{*cfg},
				Targets: []control.CSAddr{to}, Leaving: []dataplane.CSID{leaving}})
		}
	})
}

// moveUntil asks again and again, as the metadata servers do.
func (w *world) moveUntil(id dataplane.ChunkID, leaving, target dataplane.CSID) {
	w.t.Helper()
	next := int64(0)
	isMember := func(cs dataplane.CSID) bool {
		return slices.ContainsFunc(w.md.chunks[id].Members, func(m control.CSAddr) bool {
			return m.CS == cs
		})
	}
	w.must(func() bool {
		if now := w.sim.Now(); now >= next && isMember(leaving) {
			next = now + sec/2
			w.move(id, leaving, target)
		}
		return !isMember(leaving) && isMember(target) && w.full(id, len(w.md.chunks[id].Members))
	}, 60*sec, "move")
}

func (w *world) copyStats() (s control.CSStats) {
	for _, nd := range w.nodes {
		if nd.sh != nil {
			x := nd.sh.Stats()
			s.Copies += x.Copies
			s.Deltas += x.Deltas
			s.CopyBytes += x.CopyBytes
		}
	}
	return s
}

// scatter writes n blocks of 4 KiB at random places, several at a time, and returns how many
// granules they touch.
func (w *world) scatter(id dataplane.ChunkID, rng *rand.Rand, n int) int {
	w.t.Helper()
	var set granuleSet
	done, sent := 0, 0
	var next func()
	next = func() {
		if sent == n {
			return
		}
		sent++
		off := uint32(rng.IntN(dataplane.BlocksPerChunk)) * dataplane.BlockSize
		set.touch(off, dataplane.BlockSize)
		w.cl.do(id, dataplane.Header{Op: dataplane.OpWrite, Offset: off},
			pattern(rng.Uint64()>>20, dataplane.BlockSize), 0, func([]byte) {
				done++
				next()
			})
	}
	w.cl.env.Do(func() {
		for range 8 {
			next()
		}
	})
	w.must(func() bool { return done == n }, 120*sec, "scattered writes")
	return set.count()
}

// A member is away while blocks all over some chunks are written: little more than the granules
// that changed is copied when it returns, whatever happened to its process and to the others
// meanwhile.
func TestResyncCopiesWhatChanged(t *testing.T) {
	const chunks, writes = 2, 120
	cases := []struct {
		name string
		do   func(w *world)
	}{
		{"process killed", func(w *world) {}},
		{"survivors lose power", func(w *world) {
			w.nodes[0].restart(true)
			w.nodes[1].restart(true)
			w.md.reported = nil
		}},
		{"the head is lost, too", func(w *world) {
			w.nodes[0].kill()
			w.md.report(1)
			w.must(func() bool {
				return w.md.chunks[chunkA].Epoch == 3 && w.md.chunks[chunkA+1].Epoch == 3
			}, 60*sec, "the second exclusion")
		}},
	}
	for k, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, uint64(7000+k), 3)
			rng := rand.New(rand.NewPCG(uint64(k), 9))
			for i := range chunks {
				w.md.add(chunkA+dataplane.ChunkID(i), 1, 1, 2, 3)
				w.scatter(chunkA+dataplane.ChunkID(i), rng, 150)
			}
			w.nodes[2].kill()
			dirty := 0
			for i := range chunks {
				dirty += w.scatter(chunkA+dataplane.ChunkID(i), rng, writes)
			}
			for i := range chunks {
				if e := w.md.chunks[chunkA+dataplane.ChunkID(i)].Epoch; e != 2 {
					t.Fatalf("epoch %d, the member wasn't excluded", e)
				}
			}
			c.do(w)
			w.nodes[2].restart(k%2 == 0)
			w.md.reported = nil
			for i := range chunks {
				id := chunkA + dataplane.ChunkID(i)
				w.recoverUntil(id, 3, len(w.md.chunks[id].Members)+1)
			}
			s := w.copyStats()
			limit := uint64(dirty) * dataplane.PartSize * 12 / 10
			t.Logf("%d granules dirty, %d bytes copied, %.3f of that", dirty, s.CopyBytes,
				float64(s.CopyBytes)/float64(dirty*dataplane.PartSize))
			if s.Deltas != chunks || s.CopyBytes > limit {
				t.Errorf("%d of %d copies were of what changed, %d bytes, at most %d", s.Deltas, chunks,
					s.CopyBytes, limit)
			}
			for i := range chunks {
				w.sameEverywhere(chunkA + dataplane.ChunkID(i))
			}
		})
	}
}

// sameEverywhere compares a quarter of the members' replicas.
func (w *world) sameEverywhere(id dataplane.ChunkID) {
	w.t.Helper()
	members := w.md.chunks[id].Members
	for off := uint32(0); off < dataplane.ChunkSize; off += 16 << 20 {
		first := w.nodes[members[0].CS-1].contents(id, off, 4<<20)
		for _, m := range members[1:] {
			if !slices.Equal(first, w.nodes[m.CS-1].contents(id, off, 4<<20)) {
				w.t.Fatalf("chunk %v: cs %d differs from cs %d in [%d, +4 MiB)", id, m.CS, members[0].CS,
					off)
			}
		}
	}
}

// A copy of what changed that is interrupted, whoever fails, is one again the next time; and half
// of it is never taken for a replica.
func TestResyncInterrupted(t *testing.T) {
	cases := map[string]func(w *world){
		"target restarts":    func(w *world) { w.nodes[2].restart(false) },
		"target loses power": func(w *world) { w.nodes[2].restart(true) },
		"head loses power":   func(w *world) { w.nodes[0].restart(true) },
		"connection breaks":  func(w *world) { w.net.Reset(w.nodes[0].ip, w.nodes[2].ip) },
	}
	for name, disturb := range cases {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(2) {
				w, x := degraded(t, 8000+seed, 3)
				w.nodes[2].restart(seed == 0)
				w.md.reported = nil
				w.recover(chunkA, 3)
				w.must(func() bool {
					r := w.nodes[0].sh.chunks[chunkA]
					return r != nil && r.copier != nil && r.copier.delta && r.copier.parts > 2
				}, 10*sec, "copy of what changed")
				disturb(w)
				w.run(100 * ms)
				if r := w.nodes[2].sh.chunks[chunkA]; r != nil && r.state != active && !r.copying() {
					t.Error("the copy passes for a replica")
				}
				w.md.reported = nil
				w.recoverUntil(chunkA, 3, 3)
				if s := w.copyStats(); s.Deltas != 1 {
					t.Errorf("the second copy: %d of %d of what changed", s.Deltas, s.Copies)
				}
				before := x.acked
				w.must(func() bool { return x.acked > before+40 }, 60*sec, "writes afterwards")
				x.finish()
			}
		})
	}
}

// Replicas of the head and of others move while writes go on.
func TestMove(t *testing.T) {
	for k, leaving := range []dataplane.CSID{1, 2, 3} {
		t.Run(fmt.Sprint("cs ", leaving), func(t *testing.T) {
			w := newWorld(t, uint64(9000+k), 4)
			w.md.add(chunkA, 2, 1, 2, 3)
			x := newWriter(w, chunkA, uint64(k), 6)
			w.must(func() bool { return x.acked > 60 }, 60*sec, "first writes")
			epochs := []dataplane.Epoch{2}
			if leaving == 1 { // it must still activate the others
				w.md.hold = func(req *control.ReconfigureReq,
					cb func(*control.ChunkConfig, error)) bool {
					cfg, err := w.md.reconfigure(req)
					cb(cfg, err)
					w.sim.After(310_000, func() {
						w.nodes[0].env.Post(func() {
							w.nodes[0].sh.ForgetPush(&control.ForgetPush{Epochs: epochs,
								Chunks: []dataplane.ChunkID{chunkA}})
						})
					})
					w.md.hold = nil
					return true
				}
			}
			w.moveUntil(chunkA, leaving, 4)
			if e := w.md.chunks[chunkA].Epoch; e != 2 {
				t.Errorf("epoch %d after one change", e)
			}
			left := w.nodes[leaving-1]
			if r := left.sh.chunks[chunkA]; leaving != 1 && (r == nil || r.state == active) {
				t.Error("who left still serves, or has forgotten it unasked")
			}
			left.env.Do(func() {
				left.sh.ForgetPush(&control.ForgetPush{Chunks: []dataplane.ChunkID{chunkA},
					Epochs: epochs})
			})
			before := x.acked
			w.must(func() bool { return x.acked > before+60 }, 60*sec, "writes afterwards")
			if left.sh.chunks[chunkA] != nil && left.sh.chunks[chunkA].slot != noSlot {
				t.Error("not forgotten")
			}
			w.moveUntil(chunkA, 4, leaving) // and back
			x.finish()
		})
	}
}

// A move is disturbed: by the end of who leaves, of the target, of the head, and by an answer of
// the metadata servers that never comes.
func TestMoveDisturbed(t *testing.T) {
	type test struct {
		leaving dataplane.CSID
		do      func(w *world)
	}
	cases := map[string]test{
		"who leaves restarts": {2, func(w *world) { w.nodes[1].restart(true) }},
		"target restarts":     {2, func(w *world) { w.nodes[3].restart(true) }},
		"head restarts":       {2, func(w *world) { w.nodes[0].restart(true) }},
		"head leaves, dies":   {1, func(w *world) { w.nodes[0].restart(true) }},
		"answer lost":         {3, nil},
		"head, answer lost":   {1, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 9100, 4)
			w.md.add(chunkA, 2, 1, 2, 3)
			x := newWriter(w, chunkA, 7, 6)
			w.must(func() bool { return x.acked > 60 }, 60*sec, "first writes")
			if c.do == nil {
				held := false
				w.md.hold = func(req *control.ReconfigureReq,
					cb func(*control.ChunkConfig, error)) bool {
					if held || !slices.Contains(req.Members, 4) {
						return false
					}
					held = true
					if _, err := w.md.reconfigure(req); err != nil {
						t.Error(err)
					}
					cb(nil, dataplane.E("reconfigure", dataplane.TimedOut, nil))
					return true
				}
			}
			w.move(chunkA, c.leaving, 4)
			if c.do != nil {
				w.must(func() bool {
					r := w.nodes[0].sh.chunks[chunkA]
					return r != nil && r.copier != nil && r.copier.parts > 3
				}, 10*sec, "copy")
				c.do(w)
			}
			w.md.reported = nil
			w.moveUntil(chunkA, c.leaving, 4)
			before := x.acked
			w.must(func() bool { return x.acked > before+50 }, 60*sec, "writes afterwards")
			x.finish()
		})
	}
}

// The longest time that a write takes while the chunk is copied, under as many writes as the chunk
// takes, is bounded: only the settle at the end makes them wait.
func TestCopyDoesNotStallWrites(t *testing.T) {
	w := newWorld(t, 9500, 4)
	w.md.add(chunkA, 2, 1, 2, 3)
	rng := rand.New(rand.NewPCG(5, 5))
	w.scatter(chunkA, rng, 1000)
	longest := func(until func() bool) (worst int64, n int) {
		stop, flying := false, 0
		var next func()
		next = func() {
			if stop {
				return
			}
			flying++
			began := w.cl.env.Now()
			off := uint32(rng.IntN(dataplane.BlocksPerChunk)) * dataplane.BlockSize
			w.cl.do(chunkA, dataplane.Header{Op: dataplane.OpWrite, Offset: off},
				pattern(rng.Uint64()>>20, dataplane.BlockSize), 0, func([]byte) {
					worst = max(worst, w.cl.env.Now()-began)
					flying--
					n++
					t := &uring.Timer{Fire: next}
					w.cl.env.Arm(t, 0)
				})
		}
		w.cl.env.Do(func() {
			for range 32 {
				next()
			}
		})
		w.must(until, 60*sec, "load")
		stop = true
		w.must(func() bool { return flying == 0 }, 10*sec, "the last writes")
		return worst, n
	}
	from := w.sim.Now()
	alone, n := longest(func() bool { return w.sim.Now() > from+200*ms })
	t.Logf("alone: %d writes, the longest %.1f ms", n, float64(alone)/1e6)
	w.move(chunkA, 3, 4)
	with, n := longest(func() bool { return w.full(chunkA, 3) && w.md.chunks[chunkA].Epoch == 2 })
	c := w.copyStats()
	t.Logf("while copied: %d writes, the longest %.1f ms, %d bytes copied", n, float64(with)/1e6,
		c.CopyBytes)
	if with > alone+100*ms {
		t.Errorf("a write took %d ms, without a copy %d ms", with/ms, alone/ms)
	}
	w.sameEverywhere(chunkA)
}

// What is left in the log of a copy that a power cut ended is of a free slot: it is never written
// back, however long it takes until the slot is used again, and the next copy isn't disturbed.
func TestCopyCutOffLeavesFreeSlotAlone(t *testing.T) {
	for seed := range uint64(4) {
		w, x := degraded(t, 8100+seed, 4)
		target := w.nodes[3]
		began := target.sh.log.Durable()
		w.recover(chunkA, 4)
		w.must(func() bool { return target.sh.log.Durable() > began }, 10*sec, "copy")
		slot, left := target.sh.chunks[chunkA].slot, false
		logged := func(b uint32) bool {
			_, ok := target.sh.log.Lookup(slot, b)
			return ok
		}
		for b := range uint32(dataplane.BlocksPerChunk) {
			left = left || logged(b)
		}
		target.restart(true)
		for b := range uint32(dataplane.BlocksPerChunk) {
			if logged(b) {
				t.Fatalf("seed %d: block %d of free slot %d is still to be written back", seed, b, slot)
			}
		}
		if !left {
			t.Fatalf("seed %d: nothing is left of the copy, the test shows nothing", seed)
		}
		w.run(int64(seed) * sec)
		w.md.reported = nil
		w.recoverUntil(chunkA, 4, 3)
		target.restart(true)
		before := x.acked
		w.must(func() bool { return x.acked > before+40 }, 60*sec, "writes afterwards")
		x.finish()
	}
}

// A middle link of a chain waits for the server behind it. The chunk is settled, and that server
// moves out of the chain, while the connection to it hangs: when that ends, so does the wait. It
// isn't one for the server that took the place, which would be blamed for ever.
func TestChainChangesBehindWait(t *testing.T) {
	w := newWorld(t, 8200, 4)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	w.net.Cut(w.nodes[1].ip, w.nodes[2].ip, true)
	done := false
	w.write(chunkA, 65536, pattern(2, 65536), &done)
	middle := w.nodes[1].sh
	waits := func() (n int) {
		middle.eachWait(func(_ *request, p *peer, _ bool) {
			if p.cs != 3 {
				t.Errorf("it waits for cs %d", p.cs)
			}
			n++
		})
		return n
	}
	w.must(func() bool { return waits() > 0 }, sec, "a part in the chain")
	w.moveUntil(chunkA, 3, 4)
	if w.must(func() bool { return done }, 10*sec, "the write"); waits() == 0 {
		t.Fatal("it waits no more, the test shows nothing")
	}
	w.net.Reset(w.nodes[1].ip, w.nodes[2].ip)
	w.must(func() bool { return waits() == 0 }, 10*sec, "the end of the wait")
}
