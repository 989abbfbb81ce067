package chunk

import (
	"testing"

	"pstorage/dataplane"
)

// TestStrangersBecomeChunks: a chunk that has got a slot is no stranger any more. Otherwise a
// server could never get more than maxStrangers new chunks, and would forget one that a lost
// coordinator had sealed.
func TestStrangersBecomeChunks(t *testing.T) {
	w := newWorld(t, 1, 3)
	for i := range 3 {
		id := chunkA + dataplane.ChunkID(i)
		w.md.add(id, 2, 1, 2, 3)
		w.mustWrite(id, 0, pattern(uint64(i), 4096))
	}
	for i, nd := range w.nodes {
		if len(nd.sh.chunks) != 3 || len(nd.sh.strangers) != 0 {
			t.Errorf("node %d: %d chunks, %d strangers; want 3, 0", i, len(nd.sh.chunks),
				len(nd.sh.strangers))
		}
	}
}

// TestStrangersGo: chunks that never came to be, and whose end nobody tells of, as the metadata
// servers don't know that this server was asked for them. They don't keep new ones out.
func TestStrangersGo(t *testing.T) {
	w := newWorld(t, 1, 2)
	w.nodes[1].sh.SetFull(true) // no chunk comes to be there
	id := chunkA
	for range maxStrangers + 8 {
		id++
		w.md.add(id, 1, 1, 2)
		st := dataplane.Internal
		w.cl.env.Do(func() {
			h := dataplane.Header{Op: dataplane.OpWrite, Chunk: id, Epoch: 1}
			w.cl.ask(1, h, pattern(1, 4096), func(h *dataplane.Header, _ []byte) { st = h.Status })
		})
		r := func() *replica { return w.nodes[0].sh.chunks[id] }
		w.must(func() bool { return st != dataplane.Internal || r() != nil && r().state == sealed },
			sec, "seal")
		delete(w.md.chunks, id) // the file was removed
		w.must(func() bool { return st != dataplane.Internal }, 5*sec, "an answer")
		if st != dataplane.UnknownChunk {
			t.Fatalf("chunk %d: %v", id-chunkA, st)
		}
	}
	w.nodes[1].sh.SetFull(false)
	w.run(20 * sec)
	w.md.add(chunkA, 1, 1, 2)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
}
