package chunk

import (
	"bytes"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// fence has the shard of a node refuse tokens below token for the file of chunkA.
func (w *world) fence(node int, seq, token uint64) {
	nd := w.nodes[node]
	nd.env.Do(func() {
		if !nd.sh.Fence(&control.FencePush{After: seq - 1, Seq: seq,
			Fences: []control.FileFence{{File: 7, Token: token}}}, nil) {
			w.t.Fatalf("fence %d: some before it are missing", seq)
		}
	})
}

// askWrite sends one write with a token to the head, over whatever connection there is, and returns
// where its answer will be.
func (w *world) askWrite(token uint64, off uint32, data []byte) *dataplane.Kind {
	st := new(dataplane.Kind)
	*st = dataplane.Internal
	cfg := w.md.chunks[chunkA]
	w.cl.env.Do(func() {
		h := dataplane.Header{Op: dataplane.OpWrite, Chunk: chunkA, Epoch: cfg.Epoch, Offset: off,
			Length: uint32(len(data)), Flags: dataplane.FlagData, Seq: dataplane.Seq(token)}
		w.cl.ask(cfg.Members[0].CS, h, data, func(h *dataplane.Header, _ []byte) { *st = h.Status })
	})
	return st
}

func fenceWorld(t *testing.T) *world {
	w := newWorld(t, 91, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.md.chunks[chunkA].File = 7
	w.mustWrite(chunkA, 0, pattern(1, 4096)) // without a lease: the file was never fenced
	return w
}

// TestFencedWriteDoesNotLand is promise P5: writes of a fenced client that come late, or that wait
// at the head, aren't taken, and none can appear after the fence is in force.
func TestFencedWriteDoesNotLand(t *testing.T) {
	w := fenceWorld(t)
	head := w.nodes[0]
	a := w.askWrite(5, 4096, pattern(2, 4096))
	w.must(func() bool { return *a != dataplane.Internal }, sec, "the write of A")
	if *a != dataplane.OK {
		t.Fatalf("A, not fenced: %v", *a)
	}
	// A member stops, so that a write of A is in flight at the head and others wait behind it.
	w.nodes[2].kill()
	flight := w.askWrite(5, 8192, pattern(3, 4096))
	var parked []*dataplane.Kind
	w.must(func() bool {
		return head.sh.chunks[chunkA].last > head.sh.chunks[chunkA].commit ||
			head.sh.chunks[chunkA].queue.n > 0
	}, sec, "a write in flight or waiting")
	for range 5 { // partial blocks, which have to wait for what is in flight
		parked = append(parked, w.askWrite(5, 8192+512, pattern(4, 512)))
	}
	w.run(10e6)
	inForce := head.sh.FenceSeq()
	for n := range 3 {
		if n != 2 {
			w.fence(n, 1, 6)
		}
	}
	r := head.sh.chunks[chunkA]
	if r.last > r.commit && r.state == active && head.sh.FenceSeq() != inForce {
		t.Error("the fence is called in force while an older write is in flight")
	}
	w.must(func() bool { return head.sh.FenceSeq() == 1 }, 20*sec, "the fence in force")
	late := w.askWrite(5, 16384, pattern(5, 4096)) // delayed on its way
	b := w.askWrite(6, 0, pattern(6, 4096))
	_ = flight
	w.must(func() bool {
		return *late != dataplane.Internal && *b != dataplane.Internal &&
			*b != dataplane.NotReady
	}, 20*sec, "answers")
	w.md.chunks[chunkA].Fence = 6
	for range 100 { // B tries again while the chunk is being settled
		if *b == dataplane.OK {
			break
		}
		b = w.askWrite(6, 0, pattern(6, 4096))
		w.run(sec / 10)
	}
	if *b != dataplane.OK {
		t.Fatalf("B, with the newer lease: %v", *b)
	}
	for range 100 {
		if *late == dataplane.Fenced {
			break
		}
		late = w.askWrite(5, 16384, pattern(5, 4096))
		w.run(sec / 10)
	}
	if *late != dataplane.Fenced {
		t.Fatalf("A, fenced: %v", *late)
	}
	for i, st := range parked {
		if *st == dataplane.OK {
			t.Errorf("waiting write %d of A was taken after the fence", i)
		}
	}
	if got := w.read(chunkA, 16384, 4096, 0); !bytes.Equal(got, make([]byte, 4096)) {
		t.Error("a delayed write of A landed")
	}
	if got := w.read(chunkA, 8192, 4096, 0); bytes.Contains(got, pattern(4, 512)[:512]) {
		t.Error("a waiting write of A landed")
	}
	if got := w.read(chunkA, 0, 4096, 0); !bytes.Equal(got, pattern(6, 4096)) {
		t.Error("the write of B is lost")
	}
}

// TestFenceSurvivesRestart: a server that starts again learns the fence with the configuration,
// also from a head that knows a newer one than the configuration it fetched.
func TestFenceSurvivesRestart(t *testing.T) {
	w := fenceWorld(t)
	w.md.chunks[chunkA].Fence = 6
	for _, nd := range w.nodes {
		nd.restart(false)
	}
	st := w.askWrite(5, 4096, pattern(2, 4096))
	for range 100 {
		w.run(sec / 10)
		if *st == dataplane.Fenced {
			break
		}
		if *st != dataplane.Internal {
			st = w.askWrite(5, 4096, pattern(2, 4096))
		}
	}
	if *st != dataplane.Fenced {
		t.Fatalf("after a restart: %v", *st)
	}
	w.fence(0, 1, 9) // the configuration of the next settling is older
	w.nodes[1].restart(false)
	for range 50 {
		st = w.askWrite(8, 4096, pattern(2, 4096))
		w.run(sec / 10)
		if *st == dataplane.OK {
			t.Fatal("an older configuration took the fence back")
		}
	}
	if r := w.nodes[1].sh.chunks[chunkA]; r == nil || r.fence != 9 {
		t.Errorf("the other member's fence: %+v", r)
	}
	ok := w.askWrite(9, 4096, pattern(2, 4096))
	w.must(func() bool { return *ok != dataplane.Internal }, sec, "answer")
	if *ok != dataplane.OK {
		t.Errorf("with the right token: %v", *ok)
	}
}

// TestFenceGap: fences that don't join those known are refused, so that none is skipped.
func TestFenceGap(t *testing.T) {
	w := fenceWorld(t)
	nd := w.nodes[0]
	nd.env.Do(func() {
		if nd.sh.Fence(&control.FencePush{After: 3, Seq: 4}, nil) {
			t.Error("fences 1 to 3 are missing")
		}
		called := false
		p := control.FencePush{Seq: 4, Fences: []control.FileFence{{File: 7, Token: 1}}}
		if !nd.sh.Fence(&p, func() { called = true }) || nd.sh.FenceSeq() != 4 || !called {
			t.Errorf("in force: %d, told: %v", nd.sh.FenceSeq(), called)
		}
	})
}

// TestFenceAfterLapse: a head with a write in flight loses the connection to a member, and its own
// lease until after that is back. The write's client has gone, and its file goes to another one,
// which waits for the fence: nobody asks for the chunk.
func TestFenceAfterLapse(t *testing.T) {
	w := fenceWorld(t)
	head, member := w.nodes[0], w.nodes[2]
	r := head.sh.chunks[chunkA]
	w.net.Isolate(member.ip, true)
	st := w.askWrite(5, 8192, pattern(2, 4096))
	w.must(func() bool { return r.flight.n == 1 }, sec, "a write in flight")
	head.lapsed = true
	head.sh.SetLease(0)
	w.must(func() bool { return *st != dataplane.Internal }, 10*sec, "an answer")
	w.net.Isolate(member.ip, false)
	w.run(3 * sec)
	head.lapsed = false
	w.run(sec)
	if *st != dataplane.NoLease || r.last == r.commit {
		t.Fatalf("answered %v, seq %d of %d is committed", *st, r.commit, r.last)
	}
	for n := range w.nodes {
		w.fence(n, 1, 6)
	}
	w.must(func() bool { return head.sh.FenceSeq() == 1 }, 10*sec, "the fence in force")
	if got := w.read(chunkA, 8192, 4096, 1); !bytes.Equal(got, pattern(2, 4096)) {
		t.Error("other content")
	}
}
