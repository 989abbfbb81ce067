package chunk

import (
	"testing"

	"pstorage/dataplane"
)

// TestMarkOfDurableWrites: with write-ack=memory and nothing but FUA writes, one after the other
// without a pause, no round of FLUSH is needed; the members learn all the same what is committed,
// and take each next write.
func TestMarkOfDurableWrites(t *testing.T) {
	w := newWorld(t, 4300, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.md.chunks[chunkA].Ack = 1
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	head := w.nodes[0].sh.chunks[chunkA]
	term, acked := head.term, 0
	var next func(i uint32)
	next = func(i uint32) {
		h := dataplane.Header{Op: dataplane.OpWrite, Flags: dataplane.FlagFUA, Offset: i * 65536}
		w.cl.do(chunkA, h, pattern(uint64(i), 4096), 0, func([]byte) {
			acked++
			next(i)
		})
	}
	w.cl.env.Do(func() {
		for i := range uint32(8) {
			next(i)
		}
	})
	w.must(func() bool { return acked > 8*dataplane.MaxInflightPerChunk }, 60*sec, "writes")
	if head.term != term || w.cl.retries > 0 {
		t.Errorf("the chunk was settled while nothing was wrong: %d writes were tried again",
			w.cl.retries)
	}
}
