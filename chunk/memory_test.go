package chunk

import (
	"bytes"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// memoryFlush is what a writer of the torture test knows of its unflushed writes.
type memoryFlush struct {
	cells  map[uint32]int // how many operations of a cell were acknowledged, not flushed
	life   uint32
	lossy  bool // they are of several lives
	counts struct{ flushed, lost int }
}

// unflushed notes that cells [c, end) were written in memory mode, and goes on, at times with a
// FLUSH.
func (t *tortureWriter) unflushed(c, end uint32) {
	f, cl := &t.flush, t.x.w.cl
	if len(f.cells) > 0 && f.life != cl.aux {
		f.lossy = true
	}
	if cl.aux == 0 {
		t.x.fail = "an answer without a life"
	}
	f.life = cl.aux
	if f.cells == nil {
		f.cells = map[uint32]int{}
	}
	for ; c < end; c++ {
		f.cells[c] = len(t.cells[c])
	}
	if t.rng.IntN(3) > 0 {
		t.pause()
		return
	}
	t.busy = true
	cl.do(t.id, dataplane.Header{Op: dataplane.OpFlush}, nil, 0, func([]byte) {
		t.busy = false
		if f.lossy || f.life != cl.aux {
			f.counts.lost++
		} else {
			f.counts.flushed++
			for c, n := range f.cells {
				t.acked[c] = n
			}
		}
		f.cells, f.lossy = nil, false
		t.pause()
	})
}

func (t *tortureWriter) pause() {
	p := &uring.Timer{Fire: t.next}
	t.x.w.cl.env.Arm(p, int64(t.rng.IntN(int(3*ms))))
}

// What was flushed, or written with FUA, is there after any number of crashes and power cuts, and
// replicas come to one history.
func TestTortureMemory(t *testing.T) {
	run := func(seed uint64) (flushed, lost int) {
		x := &torture{w: newWorld(t, seed, 3), memory: true}
		x.run(t, seed)
		for _, wr := range x.writers {
			flushed += wr.flush.counts.flushed
			lost += wr.flush.counts.lost
		}
		return flushed, lost
	}
	if *seedFlag != 0 {
		run(*seedFlag)
		return
	}
	seeds, flushed, lost := uint64(8), 0, 0
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		f, l := run(seed + 900)
		flushed, lost = flushed+f, lost+l
	}
	t.Logf("%d flushes, %d of them after a loss", flushed, lost)
	if flushed < 100 || lost == 0 {
		t.Error("too few flushes, or no loss: the test shows nothing")
	}
}

// slowLogs delays everything that the logs make durable.
func (w *world) slowLogs(d int64) {
	for _, nd := range w.nodes {
		nd.cache.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
			if op.Kind == uring.DiskWriteSync || op.Kind == uring.DiskSync {
				f.Delay = d
			}
			return f
		}
	}
}

func (w *world) flush(id dataplane.ChunkID, flags uint16) *bool {
	done := new(bool)
	w.cl.env.Do(func() {
		h := dataplane.Header{Op: dataplane.OpFlush}
		var data []byte
		if flags != 0 {
			h = dataplane.Header{Op: dataplane.OpWrite, Flags: flags, Offset: 40 << 20}
			data = pattern(40, 4096)
		}
		w.cl.do(id, h, data, 0, func([]byte) { *done = true })
	})
	return done
}

// With write-ack=memory a write is answered before it is durable, a FLUSH and an FUA write aren't.
// A member that dies takes nothing with it; when all die what was flushed is there, and the life
// says that the rest may not be.
func TestWriteAckMemory(t *testing.T) {
	w := newWorld(t, 95, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.md.chunks[chunkA].Ack = 1
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	life := w.cl.aux
	must := func(done *bool, what string) {
		t.Helper()
		w.must(func() bool { return *done }, 20*sec, what)
	}
	must(w.flush(chunkA, 0), "flush")
	if life == 0 || w.cl.aux != life {
		t.Fatalf("life %d, then %d", life, w.cl.aux)
	}
	w.slowLogs(sec)
	for i, n := range []int{4096, 65536, 512} { // to all, along the chain, merged
		began := w.sim.Now()
		w.mustWrite(chunkA, uint32(i+1)<<20, pattern(uint64(i+2), n))
		if took := w.sim.Now() - began; took > 100*ms {
			t.Errorf("a write of %d bytes took %d ms: it waited for the log", n, took/ms)
		}
	}
	for m := range 3 {
		began := w.sim.Now()
		if got := w.read(chunkA, 2<<20, 65536, m); !bytes.Equal(got, pattern(3, 65536)) {
			t.Errorf("member %d: not what was acknowledged", m)
		}
		if took := w.sim.Now() - began; took > 100*ms {
			t.Errorf("member %d: a read took %d ms", m, took/ms)
		}
	}
	began := w.sim.Now()
	must(w.flush(chunkA, 0), "flush")
	if w.sim.Now()-began < 300*ms {
		t.Error("FLUSH didn't wait for the logs")
	}
	began = w.sim.Now()
	must(w.flush(chunkA, dataplane.FlagFUA), "FUA")
	if w.sim.Now()-began < 900*ms {
		t.Error("FUA didn't wait for the logs")
	}
	// Two of three lose what isn't durable. The third has it.
	w.mustWrite(chunkA, 5<<20, pattern(5, 65536))
	w.nodes[0].restart(true)
	w.nodes[2].restart(true)
	w.slowLogs(0)
	for m := range 3 {
		if got := w.read(chunkA, 5<<20, 65536, m); !bytes.Equal(got, pattern(5, 65536)) {
			t.Errorf("member %d: an acknowledged write is gone with two members of three", m)
		}
	}
	must(w.flush(chunkA, 0), "flush")
	if w.cl.aux != life {
		t.Error("another life although one member was there all the time")
	}
	// All three lose it.
	w.slowLogs(sec)
	w.mustWrite(chunkA, 6<<20, pattern(6, 4096))
	for _, nd := range w.nodes {
		nd.kill()
	}
	for _, nd := range w.nodes {
		nd.restart(true)
	}
	w.slowLogs(0)
	must(w.flush(chunkA, 0), "flush")
	if w.cl.aux == life || w.cl.aux == 0 {
		t.Errorf("life %d after all members lost unflushed writes, before %d", w.cl.aux, life)
	}
	for m := range 3 {
		if got := w.read(chunkA, 5<<20, 65536, m); !bytes.Equal(got, pattern(5, 65536)) {
			t.Errorf("member %d: a flushed write is gone", m)
		}
		if got := w.read(chunkA, 40<<20, 4096, m); !bytes.Equal(got, pattern(40, 4096)) {
			t.Errorf("member %d: an FUA write is gone", m)
		}
	}
	w.equal(chunkA, 8<<20, 0, 1, 2)
}

// The marks come to rest: the members know that everything is durable, so that replicas can be
// compared. More writes than the window has room for don't get stuck.
func TestMemoryMarksComeToRest(t *testing.T) {
	w := newWorld(t, 96, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.md.chunks[chunkA].Ack = 1
	done := 0
	w.cl.env.Do(func() {
		for i := range 3 * dataplane.MaxInflightPerChunk {
			w.cl.do(chunkA, dataplane.Header{Op: dataplane.OpWrite, Offset: uint32(i) * 4096},
				pattern(uint64(i), 4096), 0, func([]byte) { done++ })
		}
	})
	w.must(func() bool { return done == 3*dataplane.MaxInflightPerChunk }, 30*sec, "all writes")
	w.must(func() bool {
		for _, nd := range w.nodes {
			if r := nd.sh.chunks[chunkA]; !r.atRest() {
				return false
			}
		}
		return true
	}, sec, "marks at rest")
}

// The life goes on exactly if a member of the winner's epoch was there all the time, or the head
// was and nobody wrote in that epoch.
func TestLife(t *testing.T) {
	for _, c := range []struct {
		tails []memberTail
		head  int
		goes  uint16 // 0: a new one
	}{
		{[]memberTail{{epoch: 3, life: 7}, {epoch: 3}}, 0, 7},
		{[]memberTail{{epoch: 3}, {epoch: 3, life: 7}}, 0, 7},
		{[]memberTail{{epoch: 3}, {epoch: 3}}, 0, 0},
		{[]memberTail{{epoch: 2, life: 7}, {epoch: 3}}, -1, 0}, // was excluded
		{[]memberTail{{epoch: 2, life: 7}, {epoch: 3}}, 1, 0},
		{[]memberTail{{epoch: 2, life: 7}, {epoch: 3}}, 0, 7}, // nobody wrote in epoch 3
		{[]memberTail{{epoch: 2}, {epoch: 3}}, 0, 0},
		{[]memberTail{{epoch: 1, life: 7}, {epoch: 3}}, 0, 0},
		{[]memberTail{{epoch: 2, life: 7}, {epoch: 3, life: 8}}, 0, 8},
		{[]memberTail{{unknown: true, life: 7}, {epoch: 3}}, 0, 0},
		{[]memberTail{{unknown: true}}, 0, 0},
	} {
		for _, random := range []uint64{0, 1, 0xfffe, 0xffff, 1<<64 - 1} {
			got := lifeOf(3, c.tails, c.head, random)
			if got == 0 || c.goes != 0 && got != c.goes || c.goes == 0 && got != uint16(random%0xffff)+1 {
				t.Errorf("%+v: life %d", c.tails, got)
			}
		}
	}
}

// A write that is answered while its head is being settled tells the life in which all hold it:
// without one its client's next flush would say that something was lost.
func TestAnswerWhileSealedHasLife(t *testing.T) {
	w := newWorld(t, 97, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.md.chunks[chunkA].Ack = 1
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	life, head := w.cl.aux, w.nodes[0]
	for _, nd := range w.nodes[1:] {
		w.net.Slow(head.ip, nd.ip, 50*ms)
	}
	done, sealed := false, false
	w.cl.env.Do(func() {
		w.cl.do(chunkA, dataplane.Header{Op: dataplane.OpWrite}, pattern(2, 4096), 0, func([]byte) {
			done, sealed = true, head.sh.chunks[chunkA].state != active
		})
	})
	w.sim.Run(func() bool { return false }, w.sim.Now()+10*ms)
	head.env.Do(func() {
		r := head.sh.chunks[chunkA]
		head.sh.settle(r, []dataplane.CSID{})
		head.sh.seal(r, r.epoch, r.settler, func() {})
	})
	w.must(func() bool { return done }, 10*sec, "write")
	if !sealed || w.cl.aux != life {
		t.Errorf("sealed: %v; life %d, before %d", sealed, w.cl.aux, life)
	}
}

// The only copy of a chunk moves, as when its server is drained, and the target gets on by itself:
// nothing is lost, and so the life goes on; unless the target ended before it served the chunk.
func TestLifeMovesWithTheOnlyCopy(t *testing.T) {
	for _, ends := range []bool{false, true} {
		w := newWorld(t, 98, 2)
		w.md.add(chunkA, 1, 1)
		w.md.chunks[chunkA].Ack = 1
		w.mustWrite(chunkA, 0, pattern(1, 4096))
		life := w.cl.aux
		w.md.hold = func(req *control.ReconfigureReq, _ func(*control.ChunkConfig, error)) bool {
			if _, err := w.md.reconfigure(req); err != nil {
				t.Error(err)
			}
			w.net.Isolate(w.nodes[0].ip, true) // who left can't activate the target any more
			return true
		}
		w.move(chunkA, 1, 2)
		w.must(func() bool { return w.md.chunks[chunkA].Members[0].CS == 2 }, 60*sec, "move")
		if ends {
			w.nodes[1].restart(true)
		}
		w.mustWrite(chunkA, 4096, pattern(2, 4096))
		if goesOn := w.cl.aux == life; goesOn == ends || life == 0 || w.cl.aux == 0 {
			t.Errorf("the target ended: %v; life %d, before the move %d", ends, w.cl.aux, life)
		}
		if got := w.read(chunkA, 0, 4096, 0); !bytes.Equal(got, pattern(1, 4096)) {
			t.Error("not what was written before the move")
		}
	}
}
