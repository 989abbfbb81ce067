package client

import (
	"testing"

	"pstorage/dataplane"
)

// TestHangingFileLeavesRoom: files whose chunks nobody serves don't keep the others from getting
// on, however many requests they have. Those go on in the end, too.
func TestHangingFileLeavesRoom(t *testing.T) {
	const hanging, each = 3, 100
	w := newWorld(t, 1, 3, func(o *Options) { o.MaxParts = 64 })
	below := map[dataplane.ChunkID]bool{}
	var ops []*Op
	for range hanging {
		f := w.file(0)
		w.write(f, 0, w.random(4096))
		below[w.meta.files[f.id].chunks[0]] = true
		for i := range int64(each) {
			ops = append(ops, &Op{Kind: Write, File: f, Offset: i * 4096, Buf: make([]byte, 4096)},
				&Op{Kind: Read, File: f, Offset: i * 4096, Buf: make([]byte, 8192)})
		}
	}
	well := w.file(0)
	w.write(well, 0, w.random(1<<20))
	for _, cs := range w.cs {
		cs.refuse = func(h *dataplane.Header) dataplane.Kind {
			if below[h.Chunk] {
				return dataplane.BelowMinimum
			}
			return dataplane.OK
		}
	}
	hung := w.start(ops...)
	w.sim.Run(func() bool { return false }, w.sim.Now()+1e9)
	if *hung != 0 || w.eng.Pending() != len(ops) {
		t.Fatalf("%d of %d done, %d pending", *hung, len(ops), w.eng.Pending())
	}
	var good []*Op
	for i := range int64(50) {
		good = append(good, &Op{Kind: Read, File: well, Offset: i * 4096, Buf: make([]byte, 4096)},
			&Op{Kind: Write, File: well, Offset: i * 4096, Buf: make([]byte, 65536)})
	}
	done := w.start(good...)
	if !w.sim.Run(func() bool { return *done == len(good) }, w.sim.Now()+1e9) {
		t.Fatalf("%d of %d operations on a file that is well were done in a second", *done, len(good))
	}
	clear(below)
	if !w.sim.Run(func() bool { return *hung == len(ops) }, w.sim.Now()+10e9) {
		t.Fatalf("%d of %d operations on the files that hung were done", *hung, len(ops))
	}
	for _, op := range append(ops, good...) {
		if op.Err != nil {
			t.Fatal(op.Err)
		}
	}
	w.check()
	if w.eng.spare != len(w.eng.parts) || len(w.eng.starving) != 0 {
		t.Errorf("%d parts are said to be free, %d files to wait", w.eng.spare, len(w.eng.starving))
	}
}

// TestCanceledWhileStarved: operations that wait for a part can be canceled, in any order.
func TestCanceledWhileStarved(t *testing.T) {
	w := newWorld(t, 1, 3, func(o *Options) { o.MaxParts = 2 })
	f, g := w.file(1<<20), w.file(1<<20)
	w.write(f, 0, w.random(1<<20))
	w.write(g, 0, w.random(1<<20))
	for _, cs := range w.cs {
		cs.refuse = func(*dataplane.Header) dataplane.Kind { return dataplane.BelowMinimum }
	}
	var ops []*Op
	for i := range int64(8) {
		of := f
		if i%2 == 1 {
			of = g
		}
		ops = append(ops, &Op{Kind: Read, File: of, Offset: i * 4096, Buf: make([]byte, 4096)})
	}
	done := w.start(ops...)
	w.sim.Run(func() bool { return false }, w.sim.Now()+1e8)
	w.env.Do(func() {
		for _, i := range []int{4, 7, 2, 6, 3, 5, 1} {
			w.eng.Cancel(ops[i])
		}
	})
	for _, cs := range w.cs {
		cs.refuse = nil
	}
	w.sim.Run(func() bool { return *done == len(ops) }, w.sim.Now()+1e9)
	for i, op := range ops {
		want := dataplane.Closed
		if i == 0 {
			want = dataplane.OK
		}
		if dataplane.KindOf(op.Err) != want {
			t.Errorf("op %d: %v", i, op.Err)
		}
	}
	w.check()
	if w.eng.spare != 2 || len(w.eng.starving) != 0 {
		t.Errorf("%d parts are said to be free, %d files to wait", w.eng.spare, len(w.eng.starving))
	}
}
