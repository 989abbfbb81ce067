package chunk

import (
	"bytes"
	"testing"

	"pstorage/dataplane"
)

const chunkA = dataplane.ChunkID(1<<40 | 5)

func TestWriteReplicates(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	for i := range 20 {
		n := []int{4096, 8192, 65536, 32768}[i%4]
		w.mustWrite(chunkA, uint32(i)*65536, pattern(uint64(i), n))
	}
	for i := range 20 {
		n := []int{4096, 8192, 65536, 32768}[i%4]
		for m := range 3 {
			got := w.read(chunkA, uint32(i)*65536, uint32(n), m)
			if !bytes.Equal(got, pattern(uint64(i), n)) {
				t.Fatalf("write %d at member %d: other content", i, m)
			}
		}
	}
	if got := w.read(chunkA, 40<<20, 4096, 1); !bytes.Equal(got, make([]byte, 4096)) {
		t.Fatal("a block never written isn't zeros")
	}
}
