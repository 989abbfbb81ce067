package client

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
)

// TestCut checks how ops are cut in parts, without any I/O.
func TestCut(t *testing.T) {
	type r struct {
		code    dataplane.Opcode
		idx     uint32
		off, n  uint32
		bufFrom int64
	}
	const c = int64(dataplane.ChunkSize)
	tests := []struct {
		kind   OpKind
		off, n int64
		want   []r
	}{
		{Write, 0, 4096, []r{{dataplane.OpWrite, 0, 0, 4096, 0}}},
		{Read, 4096, 65536, []r{{dataplane.OpRead, 0, 4096, 65536, 0}}},
		{Read, 512, 65536, []r{{dataplane.OpRead, 0, 512, 65024, 0},
			{dataplane.OpRead, 0, 65536, 512, 65024}}},
		{Write, c - 4096, 8192, []r{{dataplane.OpWrite, 0, uint32(c - 4096), 4096, 0},
			{dataplane.OpWrite, 1, 0, 4096, 4096}}},
		{Write, c - 100, 200, []r{{dataplane.OpWrite, 0, uint32(c - 100), 100, 0},
			{dataplane.OpWrite, 1, 0, 100, 100}}},
		{Zero, 0, c, []r{{dataplane.OpZero, 0, 0, uint32(c), 0}}},
		{Zero, 100, 50, []r{{dataplane.OpWrite, 0, 100, 50, 0}}},
		{Zero, 100, 10000, []r{{dataplane.OpWrite, 0, 100, 3996, 0},
			{dataplane.OpZero, 0, 4096, 4096, 3996}, {dataplane.OpWrite, 0, 8192, 1908, 8092}}},
		{Zero, c - 4096, 4096 + c + 1, []r{{dataplane.OpZero, 0, uint32(c - 4096), 4096, 0},
			{dataplane.OpZero, 1, 0, uint32(c), 4096}, {dataplane.OpWrite, 2, 0, 1, 4096 + c}}},
	}
	for _, tt := range tests {
		e := &Engine{}
		op := &Op{Kind: tt.kind, Offset: tt.off, total: tt.n}
		var got []r
		for op.pos < op.total {
			p := &part{}
			e.cut(op, p)
			got = append(got, r{p.code, p.index, p.off, p.n, p.bufOff})
		}
		if len(got) != len(tt.want) {
			t.Errorf("%v [%d +%d]: %v, want %v", tt.kind, tt.off, tt.n, got, tt.want)
			continue
		}
		for i := range got {
			if got[i] != tt.want[i] {
				t.Errorf("%v [%d +%d], part %d: %v, want %v", tt.kind, tt.off, tt.n, i, got[i],
					tt.want[i])
			}
		}
	}
}

func TestReadBackWhatWasWritten(t *testing.T) {
	w := newWorld(t, 1, 3)
	f := w.file(0)
	at := int64(dataplane.ChunkSize) - 3*mib + 77
	data := w.random(int(5*mib + 1234))
	w.write(f, at, data)
	if f.Size() != uint64(at)+uint64(len(data)) {
		t.Errorf("size %d", f.Size())
	}
	if got := w.read(f, at, len(data)); !bytes.Equal(got, data) {
		t.Error("other data")
	}
	if got := w.read(f, at-100, 200); !bytes.Equal(got[:100], make([]byte, 100)) ||
		!bytes.Equal(got[100:], data[:100]) {
		t.Error("other data at the seam")
	}
	if got := w.read(f, at+int64(len(data))-10, 4096); !bytes.Equal(got, data[len(data)-10:]) {
		t.Errorf("%d bytes at the end of the file", len(got))
	}
	if got := w.read(f, at+10*mib, 10); len(got) != 0 {
		t.Errorf("%d bytes behind the end", len(got))
	}
	served := 0
	for _, cs := range w.cs {
		if cs.largest > dataplane.PartSize {
			t.Errorf("part of %d bytes", cs.largest)
		}
		if cs.served[dataplane.OpRead] > 0 {
			served++
		}
	}
	if served != 3 {
		t.Errorf("%d of 3 servers were read from", served)
	}
}

// TestRandomOps compares a long random history with a plain array.
func TestRandomOps(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		w := newWorld(t, seed, 4, func(o *Options) { o.Window = 3; o.MaxParts = 8; o.PeerParts = 3 })
		f := w.file(0)
		base := int64(dataplane.ChunkSize) - mib // across a chunk border
		model := make([]byte, 2*mib)
		size := int64(0)
		for range 60 {
			// Ops that are in flight together don't overlap: one lane each.
			var ops []*Op
			lane := int64(len(model)) / 4
			for l := range int64(4) {
				off := l*lane + w.rng.Int64N(lane)
				n := w.rng.Int64N(min(lane-off%lane, 300*kib)) + 1
				op := &Op{Kind: OpKind(w.rng.IntN(3)), File: f, Offset: base + off}
				switch op.Kind {
				case Read:
					op.Buf = make([]byte, n)
				case Write:
					op.Buf = w.random(int(n))
				case Zero:
					op.Length = n
				}
				ops = append(ops, op)
			}
			before := size
			w.run(ops...)
			w.ok(ops...)
			for _, op := range ops {
				off := op.Offset - base
				switch op.Kind {
				case Write:
					copy(model[off:], op.Buf)
					size = max(size, off+int64(len(op.Buf)))
				case Zero:
					clear(model[off : off+op.Length])
				}
			}
			for _, op := range ops {
				off := op.Offset - base
				if op.Kind == Read && !bytes.Equal(op.Buf[:op.N], model[off:off+int64(op.N)]) {
					t.Fatalf("seed %d: read of %d at %d differs", seed, op.N, off)
				}
				if op.Kind == Read && off+int64(op.N) < min(before, off+int64(len(op.Buf))) {
					t.Fatalf("seed %d: read at %d is short: %d", seed, off, op.N)
				}
			}
		}
		if got := w.read(f, base, len(model)); !bytes.Equal(got, model[:size]) {
			t.Fatalf("seed %d: differs at the end", seed)
		}
	}
}

func TestHoles(t *testing.T) {
	w := newWorld(t, 1, 3)
	f := w.file(uint64(200 * mib))
	if got := w.read(f, 60*mib, int(10*mib)); !bytes.Equal(got, make([]byte, 10*mib)) {
		t.Error("a hole isn't zeros")
	}
	if w.eng.stats.Parts != 0 {
		t.Errorf("%d requests for a hole", w.eng.stats.Parts)
	}
	op := &Op{Kind: Zero, File: f, Offset: 0, Length: 200 * mib}
	w.run(op)
	w.ok(op)
	if len(w.chunks) != 0 {
		t.Errorf("zeroing made %d chunks", len(w.chunks))
	}
	// Another client makes the chunk: it is seen at once, though the absence was cached.
	ff := w.meta.files[f.id]
	w.meta.make(ff, 1).data[5] = 9
	if got := w.read(f, int64(dataplane.ChunkSize), 10); got[5] != 9 {
		t.Error("another client's write isn't seen")
	}
	ff.size = 300 << 20
	w.meta.make(ff, 4).data[0] = 8
	if got := w.read(f, 4*int64(dataplane.ChunkSize), 10); len(got) != 10 || got[0] != 8 {
		t.Errorf("another client's growth isn't seen: %v", got)
	}
}

func TestHoleTTL(t *testing.T) {
	w := newWorld(t, 1, 3, func(o *Options) { o.HoleTTL = 1e9 })
	f := w.file(uint64(100 * mib))
	w.read(f, 0, 4096)
	before := w.meta.calls["map"]
	for range 10 {
		w.read(f, 8192, 4096)
	}
	if got := w.meta.calls["map"] - before; got != 0 {
		t.Errorf("%d questions for a hole that is believed", got)
	}
}

func TestAllocationAhead(t *testing.T) {
	w := newWorld(t, 1, 3)
	f := w.file(0)
	for i := range int64(12) {
		w.write(f, i*dataplane.ChunkSize, []byte{1})
	}
	if got := w.meta.calls["allocate"]; got > 5 {
		t.Errorf("%d allocations for 12 chunks in order", got)
	}
	w = newWorld(t, 1, 3)
	f = w.file(0)
	for _, i := range []int64{5, 3, 9, 1} {
		w.write(f, i*dataplane.ChunkSize, []byte{1})
	}
	if len(w.chunks) != 4 {
		t.Errorf("%d chunks for 4 random writes", len(w.chunks))
	}
}

func TestMapFetchesAreShared(t *testing.T) {
	w := newWorld(t, 1, 3)
	f := w.file(uint64(2 * dataplane.ChunkSize))
	ff := w.meta.files[f.id]
	w.meta.make(ff, 0)
	w.meta.make(ff, 1)
	var ops []*Op
	for i := range int64(64) {
		ops = append(ops, &Op{Kind: Read, File: f, Offset: i * 2 * mib, Buf: make([]byte, 4096)})
	}
	w.run(ops...)
	w.ok(ops...)
	if got := w.meta.calls["map"]; got != 1 {
		t.Errorf("%d map fetches for 64 reads of known chunks", got)
	}
}

func TestGrowIsMerged(t *testing.T) {
	w := newWorld(t, 1, 3)
	f := w.file(0)
	var ops []*Op
	for i := range int64(100) {
		ops = append(ops, &Op{Kind: Write, File: f, Offset: i * 4096, Buf: w.random(4096)})
	}
	w.run(ops...)
	w.ok(ops...)
	if got := w.meta.calls["grow"]; got != 1 {
		t.Errorf("%d Grows for 100 writes of one turn", got)
	}
	if w.meta.files[f.id].size != 100*4096 || f.Size() != 100*4096 {
		t.Errorf("size %d at the MDS, %d here", w.meta.files[f.id].size, f.Size())
	}
	// A write isn't done before the MDS has agreed to the new size.
	refusals := 3
	w.meta.fail = func(what string) error {
		if what == "grow" && refusals > 0 {
			refusals--
			return dataplane.E("grow", dataplane.NotLeader, nil)
		}
		return nil
	}
	w.write(f, 1<<20, []byte("x"))
	if refusals != 0 || w.meta.files[f.id].size != 1<<20+1 {
		t.Errorf("acknowledged with %d refusals left, size %d", refusals, w.meta.files[f.id].size)
	}
}

func TestErrorsThatAreFinal(t *testing.T) {
	w := newWorld(t, 1, 3)
	f := w.file(4096)
	for _, op := range []*Op{
		{Kind: Read, File: f, Offset: -1, Buf: make([]byte, 1)},
		{Kind: Write, File: f, Offset: MaxFileSize, Buf: make([]byte, 1)},
		{Kind: Zero, File: f, Offset: 0, Length: MaxFileSize + 1},
		{Kind: Zero, File: f, Offset: MaxFileSize, Length: 1 << 62},
		{Kind: Zero, File: f, Offset: 4096, Length: math.MaxInt64}, // the sum is negative
	} {
		w.run(op)
		if dataplane.KindOf(op.Err) != dataplane.TooLarge {
			t.Errorf("%v at %d: %v", op.Kind, op.Offset, op.Err)
		}
	}
	op := &Op{Kind: Read, Buf: make([]byte, 1)}
	if w.run(op); !errors.Is(op.Err, errNoFile) {
		t.Errorf("no file: %v", op.Err)
	}
	w.meta.files[f.id].deleted = true
	op = &Op{Kind: Write, File: f, Buf: make([]byte, 1)}
	if w.run(op); dataplane.KindOf(op.Err) != dataplane.NotFound {
		t.Errorf("deleted file: %v", op.Err)
	}
	w.cs[0].refuse = func(*dataplane.Header) dataplane.Kind { return dataplane.Fenced }
	w.cs[1].refuse, w.cs[2].refuse = w.cs[0].refuse, w.cs[0].refuse
	op = &Op{Kind: Write, File: w.file(0), Buf: make([]byte, 1)}
	if w.run(op); dataplane.KindOf(op.Err) != dataplane.Fenced {
		t.Errorf("fenced: %v", op.Err)
	}
	if _, err := w.eng.OpenFile(&control.Attr{Type: control.TypeDir}, "d"); err == nil {
		t.Error("a directory was opened")
	}
}

func TestClose(t *testing.T) {
	w := newWorld(t, 1, 3, func(o *Options) { o.MaxParts = 4 })
	f := w.file(1 << 30)
	w.write(f, 0, w.random(4096))
	for _, cs := range w.cs {
		cs.silent = true
	}
	w.meta.fail = func(string) error { return dataplane.E("", dataplane.NotLeader, nil) }
	f.ackMemory = true
	f.markDirty(0)
	ops := []*Op{
		{Kind: Read, File: f, Buf: make([]byte, 1<<20)},
		{Kind: Write, File: f, Buf: make([]byte, 1<<20)},
		{Kind: Write, File: f, Offset: 2 << 30, Buf: make([]byte, 10)},
		{Kind: Read, File: f, Offset: 3 << 30, Buf: make([]byte, 10)},
		{Kind: Flush, File: f},
		{Kind: Flush, File: f},
	}
	done := w.start(ops...)
	w.sim.Run(func() bool { return false }, w.sim.Now()+1e9)
	late := &Op{Kind: Read, File: f, Buf: make([]byte, 10), Done: func(*Op) { *done++ }}
	w.env.Do(func() { w.eng.Close(); w.eng.Submit(late); w.eng.Close() })
	w.sim.Run(func() bool { return *done == len(ops)+1 }, w.sim.Now()+1e9)
	for i, op := range append(ops, late) {
		if dataplane.KindOf(op.Err) != dataplane.Closed {
			t.Errorf("op %d: %v", i, op.Err)
		}
	}
	if w.eng.Pending() != 0 {
		t.Errorf("%d ops pending", w.eng.Pending())
	}
	w.check()
	w.sim.Run(func() bool { return false }, w.sim.Now()+10e9)
	for _, cs := range w.cs {
		if cs.conns != 0 {
			t.Errorf("cs %d has %d connections after Close", cs.id, cs.conns)
		}
	}
}
