package client

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"pstorage/dataplane"
)

// TestCutByAnother: another client cuts a file that is open here, and the right to write comes here
// after that. A write goes to the chunk that the file has now, not to the one that it had, whose
// servers may not know yet that it is gone; and the file becomes long enough for it.
func TestCutByAnother(t *testing.T) {
	const size = 3 * dataplane.ChunkSize
	w := newWorld(t, 1, 3)
	f := w.file(size)
	ff := w.meta.files[f.id]
	was := w.meta.make(ff, 1)
	w.read(f, dataplane.ChunkSize, 4096)
	w.eng.leases.meta = &leaser{w: w, fenced: true}
	ff.size = 0
	clear(ff.chunks)
	w.write(f, dataplane.ChunkSize, w.random(4096))
	if was.writes > 0 || len(ff.chunks) != 1 {
		t.Errorf("%d writes to a chunk that the file hasn't any more; it has %d", was.writes,
			len(ff.chunks))
	}
	if ff.size < dataplane.ChunkSize+4096 {
		t.Errorf("an acknowledged write of 4096 bytes at %d, and the file has %d",
			dataplane.ChunkSize, ff.size)
	}
}

// TestCutSeen: another client cuts a file that is open here for reading. Who asks for its size, or
// opens it again, reads no zeros behind its end after that.
func TestCutSeen(t *testing.T) {
	c := newCluster(t, 3)
	ctx := context.Background()
	f := c.create("f")
	defer f.Close()
	_, err := f.WriteAt(bytes.Repeat([]byte{7}, 1000), 0)
	check(t, err)
	other := c.second(time.Second)
	defer other.Close()
	theirs, err := other.OpenFile(ctx, f.ID())
	check(t, err)
	buf := make([]byte, 1000)
	for size, look := range []func() error{
		func() error { _, err := other.GetAttr(ctx, f.ID()); return err },
		func() error { _, err := other.OpenPath(ctx, "/f"); return err },
	} {
		_, err := f.WriteAt(bytes.Repeat([]byte{7}, 1000), 0)
		check(t, err)
		if n, err := theirs.ReadAt(buf, 0); n != len(buf) {
			t.Fatalf("read of the whole file: %d, %v", n, err)
		}
		_, err = f.Truncate(ctx, uint64(size))
		check(t, err)
		check(t, look())
		if n, err := theirs.ReadAt(buf, 0); n != size || err != io.EOF {
			t.Errorf("read of %d from a file that was cut to %d: %d bytes, %v", len(buf), size, n, err)
		}
	}
}

// TestCutOvertakesGrow: a file is cut here while the answer to an earlier Grow is on its way. It
// says nothing of the size any more, or the next write would be behind an end that nobody knows.
func TestCutOvertakesGrow(t *testing.T) {
	w := newWorld(t, 1, 3)
	f := w.file(0)
	ff := w.meta.files[f.id]
	op := &Op{Kind: Write, File: f, Buf: w.random(8192)}
	w.start(op)
	for ff.size == 0 { // until the MDS has agreed
		w.sim.Run(func() bool { return ff.size > 0 }, w.sim.Now()+1e9)
	}
	w.env.Do(func() {
		ff.size = 0
		clear(ff.chunks)
		f.setSize(0)
	})
	w.sim.Run(func() bool { return w.eng.Pending() == 0 }, w.sim.Now()+1e9)
	w.write(f, 0, w.random(4096))
	if ff.size < 4096 {
		t.Errorf("an acknowledged write of 4096 bytes, and the file has %d", ff.size)
	}
}
