package client

import (
	"bytes"
	"slices"
	"testing"

	"pstorage/dataplane"
)

// pausedReads reads single blocks one after the other and returns the time that each took, sorted.
func pausedReads(w *world, f *File, data []byte, n int) []int64 {
	w.t.Helper()
	var took []int64
	for range n {
		off := w.rng.Int64N(int64(len(data)/dataplane.BlockSize)) * dataplane.BlockSize
		op := &Op{Kind: Read, File: f, Offset: off, Buf: make([]byte, dataplane.BlockSize)}
		begin := w.sim.Now()
		w.run(op)
		w.ok(op)
		if !bytes.Equal(op.Buf, data[off:off+dataplane.BlockSize]) {
			w.t.Fatalf("wrong data at %d", off)
		}
		took = append(took, w.sim.Now()-begin)
	}
	slices.Sort(took)
	return took
}

// TestHedgeSilent: a server stops answering anything, without its connection being lost. No read
// waits for it for long, and only the first ones at all.
func TestHedgeSilent(t *testing.T) {
	w, f, data, ch := with(t)
	pausedReads(w, f, data, 50)
	for _, m := range ch.members[:2] { // one member is enough
		w.cs[m-1].silent = true
		took := pausedReads(w, f, data, 300)
		if worst := took[len(took)-1]; worst > 100e6 {
			t.Errorf("a read took %d ms", worst/1e6)
		}
		if slow := took[len(took)-5]; slow > 5e6 {
			t.Errorf("five reads took more than %d us: the silent server isn't avoided", slow/1e3)
		}
	}
	if w.eng.stats.Hedges == 0 {
		t.Error("nothing was hedged")
	}
	for _, m := range ch.members[:2] {
		w.cs[m-1].silent = false
	}
	w.sim.Run(func() bool { return false }, w.sim.Now()+20e9)
	served := func() int {
		return w.cs[ch.members[0]-1].served[dataplane.OpRead] +
			w.cs[ch.members[1]-1].served[dataplane.OpRead]
	}
	before := served()
	pausedReads(w, f, data, 300)
	if served() == before {
		t.Error("a server that answers again isn't read from")
	}
}

// TestHedgeSlow: a server takes long for every answer. Only a part of the reads is hedged, and then
// it is avoided.
func TestHedgeSlow(t *testing.T) {
	w, f, data, _ := with(t)
	pausedReads(w, f, data, 100)
	slow := w.cs[0]
	for _, cs := range w.cs {
		if cs.served[dataplane.OpRead] > slow.served[dataplane.OpRead] {
			slow = cs
		}
	}
	slow.delay = 80e6
	took := pausedReads(w, f, data, 600)
	if worst := took[len(took)-1]; worst > 200e6 {
		t.Errorf("a read took %d ms", worst/1e6)
	}
	if p99 := took[len(took)*99/100]; p99 > 100e6 {
		t.Errorf("99 of 100 reads took up to %d ms", p99/1e6)
	}
	if h := w.eng.stats.Hedges; h == 0 || h > 700/hedgeCost {
		t.Errorf("%d hedges for 700 reads", h)
	}
}

// TestHedgeBehindWrites: all members leave reads of one block waiting for a second, as it has a
// write in flight, and one member also those of another block, as it doesn't know that the write
// there is done. The latter are hedged in time nevertheless: the others are quick.
func TestHedgeBehindWrites(t *testing.T) {
	w, f, data, _ := with(t)
	pausedReads(w, f, data, 300)
	const inFlight, unknown = 0, dataplane.BlockSize
	block := func(off int64) (took int64) {
		op := &Op{Kind: Read, File: f, Offset: off, Buf: make([]byte, dataplane.BlockSize)}
		begin := w.sim.Now()
		w.run(op)
		w.ok(op)
		return w.sim.Now() - begin
	}
	block(2 * dataplane.BlockSize) // whoever answers that is asked for both blocks
	var asked *fakeCS
	for _, cs := range w.cs {
		if asked == nil || cs.lastRead > asked.lastRead {
			asked = cs
		}
	}
	for _, cs := range w.cs {
		cs.late = func(off uint32) int64 {
			if off == inFlight || off == unknown && cs == asked {
				return 1e9
			}
			return 0
		}
	}
	met := 0
	for round := range 60 {
		if took := block(inFlight); took < 1e9 {
			t.Fatalf("round %d: the read of the block in flight took %d ms", round, took/1e6)
		}
		for range 20 {
			block((2 + w.rng.Int64N(int64(len(data)/dataplane.BlockSize-2))) * dataplane.BlockSize)
		}
		before := w.eng.stats.Hedges
		if took := block(unknown); took > 100e6 {
			t.Fatalf("round %d: the read took %d ms", round, took/1e6)
		}
		met += int(w.eng.stats.Hedges - before)
	}
	if met == 0 {
		t.Error("no read met the member that doesn't know")
	}
}

// TestHedgeOverload: all servers are slow. Few reads are sent twice, and none when that is known.
func TestHedgeOverload(t *testing.T) {
	w, f, data, _ := with(t)
	for _, cs := range w.cs {
		cs.delay = 120e6
	}
	var ops []*Op
	for range 400 {
		off := w.rng.Int64N(int64(len(data)/dataplane.BlockSize)) * dataplane.BlockSize
		ops = append(ops, &Op{Kind: Read, File: f, Offset: off,
			Buf: make([]byte, dataplane.BlockSize)})
	}
	w.run(ops...)
	w.ok(ops...)
	if h := w.eng.stats.Hedges; h > 400/hedgeCost+1 {
		t.Errorf("%d hedges for 400 reads", h)
	}
	before := w.eng.stats.Hedges
	pausedReads(w, f, data, 100)
	if h := w.eng.stats.Hedges - before; h > 0 {
		t.Errorf("%d of 100 reads were hedged though it is as slow elsewhere", h)
	}
}

// TestHedgeCancel: reads are canceled, refused and answered late while both members have them.
func TestHedgeCancel(t *testing.T) {
	w, f, data, ch := with(t)
	pausedReads(w, f, data, 100)
	for round := range 40 {
		for _, cs := range w.cs {
			cs.stuck = w.rng.IntN(2) == 0
		}
		var ops []*Op
		for range 8 {
			ops = append(ops, &Op{Kind: Read, File: f, Buf: make([]byte, 8192),
				Offset: w.rng.Int64N(int64(len(data) - 8192))})
		}
		done := w.start(ops...)
		w.sim.Run(func() bool { return false }, w.sim.Now()+w.rng.Int64N(200e6))
		if round%2 == 0 {
			w.env.Do(func() {
				for _, op := range ops {
					w.eng.Cancel(op)
				}
			})
		}
		for _, cs := range w.cs {
			cs.stuck = false
		}
		if round%5 == 0 {
			ch.epoch++
		}
		w.sim.Run(func() bool { return *done == len(ops) }, w.sim.Now()+20e9)
		if *done != len(ops) {
			t.Fatalf("round %d: %d of %d done", round, *done, len(ops))
		}
		for _, op := range ops {
			want := data[op.Offset : op.Offset+8192]
			if op.Err == nil && !bytes.Equal(op.Buf, want) {
				t.Fatalf("round %d: wrong data", round)
			}
		}
		w.check()
	}
}

// TestShortestQueue: the reads of one region all go to one member, whose cache then has it; if the
// disks are slow, to all of them alike.
func TestShortestQueue(t *testing.T) {
	w, f, data, ch := with(t)
	served := func() (counts []int) {
		for _, m := range ch.members {
			counts = append(counts, w.cs[m-1].served[dataplane.OpRead])
		}
		return counts
	}
	burst := func() (counts []int) {
		before := served()
		var ops []*Op
		for i := range 8 * len(ch.members) {
			off := int64(i*dataplane.BlockSize) % int64(len(data))
			ops = append(ops, &Op{Kind: Read, File: f, Offset: off,
				Buf: make([]byte, dataplane.BlockSize)})
		}
		w.run(ops...)
		for _, op := range ops {
			w.ok(op)
		}
		for i, n := range served() {
			counts = append(counts, n-before[i])
		}
		return counts
	}
	burst() // connections are made
	if counts := burst(); slices.Max(counts) != 8*len(counts) {
		t.Errorf("quick servers got %v of the reads of one region", counts)
	}
	for _, cs := range w.cs {
		cs.delay = 8e6
	}
	for range 20 { // until it is known how slow they are
		burst()
	}
	if counts := burst(); slices.Max(counts) > 10 {
		t.Errorf("slow servers got %v of the reads of one region", counts)
	}
}

// TestReadsPastMap: the metadata servers are silent while a write wants a new map of a chunk. Reads
// of the chunk go on with the map that is known.
func TestReadsPastMap(t *testing.T) {
	w, f, data, _ := with(t)
	pausedReads(w, f, data, 20)
	for _, cs := range w.cs {
		cs.refuse = func(h *dataplane.Header) dataplane.Kind {
			if h.Op == dataplane.OpWrite {
				return dataplane.NotReady
			}
			return dataplane.OK
		}
	}
	w.meta.delay = 5e9
	asked := w.meta.calls["map"]
	done := w.start(&Op{Kind: Write, File: f, Buf: make([]byte, dataplane.BlockSize)})
	w.sim.Run(func() bool { return w.meta.calls["map"] > asked }, w.sim.Now()+1e9)
	if w.meta.calls["map"] == asked || *done != 0 {
		t.Fatal("the write doesn't wait for a new map")
	}
	for range 20 {
		op := &Op{Kind: Read, File: f, Buf: make([]byte, dataplane.BlockSize)}
		begin := w.sim.Now()
		one := w.start(op)
		w.sim.Run(func() bool { return *one == 1 }, begin+100e6)
		if *one == 0 {
			t.Fatal("a read waits for the map that a write asked for")
		}
		w.ok(op)
		if !bytes.Equal(op.Buf, data[:dataplane.BlockSize]) {
			t.Fatal("wrong data")
		}
	}
	for _, cs := range w.cs {
		cs.refuse = nil
	}
	w.sim.Run(func() bool { return *done == 1 }, w.sim.Now()+20e9)
	if *done != 1 {
		t.Error("the write doesn't end")
	}
}

// TestHedgeStalledOnly: the member that would serve is silent, the others refuse for a while. When
// they serve again the read goes there, and doesn't wait until the connection is given up; the same
// when the chunk has other members meanwhile, as a pushed map says.
func TestHedgeStalledOnly(t *testing.T) {
	for _, push := range []bool{false, true} {
		w, f, data, ch := with(t)
		pausedReads(w, f, data, 50)
		silent := ch.members[0]
		w.cs[silent-1].silent = true
		refusing := true
		for _, m := range ch.members[1:] {
			w.cs[m-1].refuse = func(h *dataplane.Header) dataplane.Kind {
				if refusing && h.Op == dataplane.OpRead {
					return dataplane.NoLease
				}
				return dataplane.OK
			}
		}
		op := &Op{Kind: Read, File: f, Buf: make([]byte, dataplane.BlockSize)}
		begin := w.sim.Now()
		done := w.start(op)
		w.sim.Run(func() bool { return false }, begin+200e6)
		if *done != 0 {
			t.Fatal("served by nobody")
		}
		refusing = false
		if push {
			ch.epoch++
			ch.members = ch.members[1:]
			w.env.Do(func() { w.eng.MapChanged(f, mapPushOf(f, w, 0)) })
		}
		w.sim.Run(func() bool { return *done == 1 }, begin+1e9)
		if took := w.sim.Now() - begin; *done == 0 || took > 400e6 {
			t.Fatalf("push %v: done %d after %d ms", push, *done, took/1e6)
		}
		w.ok(op)
		if !bytes.Equal(op.Buf, data[:dataplane.BlockSize]) {
			t.Fatal("wrong data")
		}
	}
}
