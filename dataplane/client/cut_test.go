package client

import (
	"testing"

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
