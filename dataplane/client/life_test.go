package client

import (
	"context"
	"testing"

	"pstorage/dataplane"
)

// withLife is with, of a file with write-ack=memory; live changes the life of all chunks, as when
// all their servers end at once.
func withLife(t *testing.T) (w *world, f *File, live func(uint32)) {
	w, f, _, _ = with(t)
	f.ackMemory = true
	live = func(life uint32) {
		for _, cs := range w.cs {
			cs.life = life
		}
	}
	live(1)
	return w, f, live
}

// A flush that was called off, because a signal came while it waited for the servers to come back,
// told nobody of what was lost: the next one does.
func TestCanceledFlushLeavesLossToNext(t *testing.T) {
	w, f, live := withLife(t)
	w.write(f, 0, w.random(100))
	back := false
	for _, cs := range w.cs {
		cs.refuse = func(h *dataplane.Header) dataplane.Kind {
			if h.Op == dataplane.OpFlush && !back {
				return dataplane.NotReady
			}
			return dataplane.OK
		}
	}
	first := &Op{Kind: Flush, File: f}
	done := w.start(first)
	w.sim.Run(func() bool { return false }, w.sim.Now()+1e9)
	w.env.Do(func() { w.eng.Cancel(first) })
	back = true
	live(2)
	w.sim.Run(func() bool { return w.eng.Pending() == 0 }, w.sim.Now()+10e9)
	if *done != 1 || dataplane.KindOf(first.Err) != dataplane.Closed {
		t.Fatalf("the first flush: %v", first.Err)
	}
	flush := &Op{Kind: Flush, File: f}
	w.run(flush)
	if dataplane.KindOf(flush.Err) != dataplane.IOError {
		t.Errorf("the first flush that is told anything after a loss: %v", flush.Err)
	}
	w.run(flush) // it is said once
	w.ok(flush)
}

// A part of a write may be lost, and a flush of somebody else say so, before the rest of the write
// is done: then the flush after the write says it, too.
func TestLossUnderAWrite(t *testing.T) {
	w, f, live := withLife(t)
	w.write(f, 0, w.random(100)) // both chunks are there
	w.write(f, dataplane.ChunkSize, w.random(100))
	flush := &Op{Kind: Flush, File: f}
	w.run(flush)
	w.ok(flush)
	first, held := w.meta.files[f.id].chunks[0], true
	for _, cs := range w.cs {
		cs.refuse = func(h *dataplane.Header) dataplane.Kind {
			if held && h.Op == dataplane.OpWrite && h.Chunk == first {
				return dataplane.NotReady
			}
			return dataplane.OK
		}
	}
	write := &Op{Kind: Write, File: f, Offset: dataplane.ChunkSize - 4096, Buf: w.random(8192)}
	done := w.start(write)
	w.sim.Run(func() bool { return false }, w.sim.Now()+100e6)
	live(2)
	flushed := w.start(flush)
	w.sim.Run(func() bool { return *flushed == 1 }, w.sim.Now()+10e9)
	if dataplane.KindOf(flush.Err) != dataplane.IOError || *done != 0 {
		t.Fatalf("the second part was lost: %v; the write is done: %d", flush.Err, *done)
	}
	held = false
	w.sim.Run(func() bool { return w.eng.Pending() == 0 }, w.sim.Now()+10e9)
	w.ok(write)
	w.run(flush)
	if dataplane.KindOf(flush.Err) != dataplane.IOError {
		t.Errorf("the write was acknowledged after that: %v", flush.Err)
	}
	w.run(flush) // it is said once
	w.ok(flush)
}

// What was cut off isn't lost: the chunk that takes its place has another life.
func TestCutIsNoLoss(t *testing.T) {
	w, f, live := withLife(t)
	ff := w.meta.files[f.id]
	cut := func(life uint32) {
		w.env.Do(func() {
			delete(w.chunks, ff.chunks[0])
			delete(ff.chunks, 0)
			ff.size = 0
			f.setSize(0)
		})
		live(life)
	}
	flush := &Op{Kind: Flush, File: f}
	w.write(f, 0, w.random(100))
	cut(2)
	w.write(f, 0, w.random(100))
	w.run(flush)
	w.ok(flush)
	// The same while a flush is under way.
	w.write(f, 0, w.random(100))
	held := true
	for _, cs := range w.cs {
		cs.refuse = func(h *dataplane.Header) dataplane.Kind {
			if h.Op == dataplane.OpFlush && held {
				return dataplane.NotReady
			}
			return dataplane.OK
		}
	}
	w.start(flush)
	w.sim.Run(func() bool { return false }, w.sim.Now()+100e6)
	cut(3)
	w.write(f, 0, w.random(100))
	held = false
	w.sim.Run(func() bool { return w.eng.Pending() == 0 }, w.sim.Now()+10e9)
	w.ok(flush)
	// And what was lost since is said.
	w.write(f, 0, w.random(100))
	live(4)
	w.run(flush)
	if dataplane.KindOf(flush.Err) != dataplane.IOError {
		t.Errorf("after a loss: %v", flush.Err)
	}
}

// Who closes a file last learns of what was lost: nobody else could be told later.
func TestCloseTellsOfLoss(t *testing.T) {
	c := newCluster(t, 3)
	live := func(life uint32) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.life = life
	}
	live(1)
	f := c.create("f")
	again, err := c.client.OpenFile(context.Background(), f.ID())
	check(t, err)
	_, err = f.WriteAt(make([]byte, 100), 0)
	check(t, err)
	live(2)
	check(t, again.Close())
	if err := f.Close(); dataplane.KindOf(err) != dataplane.IOError {
		t.Errorf("close after a loss: %v", err)
	}
	if err := f.Close(); dataplane.KindOf(err) != dataplane.Closed {
		t.Errorf("second close: %v", err)
	}
}
