package chunk

import (
	"bytes"
	"testing"

	"pstorage/dataplane"
	"pstorage/uring"
)

// Reads across the border of two CRC pages, more of them at the same time than pages have room in
// memory: each page makes room for others before the second one of a read is there.
func TestReadsMakeRoomForEachOther(t *testing.T) {
	w := newWorldWith(t, 95, 1, 8<<20, 1<<20)
	w.md.add(chunkA, 1, 1)
	const page = wordsPerPage * dataplane.BlockSize
	border := func(i int) uint32 { return uint32(i*page - dataplane.PartSize/2) }
	for i := 1; i < pagesPerSlot; i++ {
		w.mustWrite(chunkA, border(i), pattern(uint64(i), dataplane.PartSize))
	}
	for i := range uint32(320) { // more than the log holds
		w.mustWrite(chunkA, i<<16%page/2, pattern(9, 65536))
	}
	nd := w.nodes[0]
	w.must(func() bool {
		for i := 1; i < pagesPerSlot; i++ {
			for b := border(i); b < border(i)+dataplane.PartSize; b += dataplane.BlockSize {
				if _, ok := nd.sh.SimBlockAt(chunkA, b/dataplane.BlockSize); !ok {
					return false
				}
			}
		}
		return true
	}, 60*sec, "destage")
	w.frames = 4
	nd.restart(false)
	w.must(func() bool {
		r, ok := nd.sh.SimReplica(chunkA)
		return ok && r.Epoch > 0
	}, 10*sec, "start")
	left := 0
	nd.env.Do(func() {
		for i := 1; i < pagesPerSlot; i++ {
			left++
			nd.sh.readPart(nd.sh.chunks[chunkA], border(i), dataplane.PartSize,
				func(_ []byte, b *uring.Buf, err error) {
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(b.Bytes()[:dataplane.PartSize], pattern(uint64(i), dataplane.PartSize)) {
						t.Errorf("border %d: not what was written", i)
					}
					left--
				})
		}
	})
	w.must(func() bool { return left == 0 }, sec, "reads across borders")
	if evicted, short := nd.sh.SimCRCPages(); evicted == 0 || short == 0 {
		t.Errorf("%d pages made room, %d waits for room: the test shows nothing", evicted, short)
	}
}
