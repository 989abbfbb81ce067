package chunk

import (
	"bytes"
	"testing"

	"pstorage/dataplane"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// TestCheckpointWithoutMemory: parts on their way take all of the pool's memory when a server makes
// its first checkpoint, and reads its first checksums. It does with what it has.
func TestCheckpointWithoutMemory(t *testing.T) {
	w := newWorldWith(t, 1, 1, ssdcache.MinSize, 1<<20)
	nd := w.nodes[0]
	w.md.add(chunkA, 1, 1)
	for i := range uint32(64) {
		w.mustWrite(chunkA, i*dataplane.PartSize, pattern(uint64(i), 4096))
	}
	w.run(20 * sec)
	for round := range 2 {
		var parts []*uring.Buf
		for b := nd.pool.Get(dataplane.PartSize); b != nil; b = nd.pool.Get(dataplane.PartSize) {
			parts = append(parts, b)
		}
		done := false
		nd.env.Do(func() {
			nd.sh.store.touch(0)
			nd.sh.store.flush(func(err error) {
				if done = true; err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			})
		})
		w.must(func() bool { return done }, 10*sec, "checkpoint")
		parts[0].Release() // for the answer
		parts[1].Release()
		if got := w.read(chunkA, 0, 4096, 0); !bytes.Equal(got, pattern(0, 4096)) {
			t.Errorf("round %d: other content", round)
		}
		for _, b := range parts[2:] {
			b.Release()
		}
		nd.restart(false)
	}
}
