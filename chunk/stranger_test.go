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
