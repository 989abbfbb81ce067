package chunk

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"pstorage/dataplane"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// A start with a log full of ZEROs all over the store reads each CRC page once, several at a time,
// though there are more of them than fit the memory.
func TestManyZerosAreRedoneByPage(t *testing.T) {
	const chunks, rounds = 6, 4
	w := newWorldSlots(t, 340, 1, 8, 32<<20, 64*dataplane.BlockSize)
	nd := w.nodes[0]
	id := func(i int) dataplane.ChunkID { return chunkA + dataplane.ChunkID(i) }
	const step = wordsPerPage * dataplane.BlockSize // what a page covers
	for i := range chunks {
		w.md.add(id(i), 1, 1)
		for page := range uint32(pagesPerSlot) {
			w.mustWrite(id(i), page*step, pattern(uint64(page), 65536))
		}
	}
	for i := range 480 { // fills the log, so that all of it gets to the store
		w.mustWrite(id(i%chunks), uint32(i/chunks%16)*step+1<<20+uint32(i/96)*65536,
			pattern(uint64(i), 65536))
	}
	w.run(20 * sec)
	for r := range uint32(rounds) {
		for page := range uint32(pagesPerSlot) {
			for i := range chunks {
				done := false
				w.cl.env.Do(func() {
					w.cl.do(id(i), dataplane.Header{Op: dataplane.OpZero, Offset: page*step + 2*r*4096,
						Length: 4096}, nil, 0, func([]byte) { done = true })
				})
				w.must(func() bool { return done }, 10*sec, "zero")
			}
		}
	}
	sb := &nd.sh.store.sb
	loads := map[int64]int{}
	most, first, last := 0, sb.crcPage(0), sb.crcPage(sb.slots*pagesPerSlot-1)
	nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
		if op.Kind == uring.DiskRead && op.Offset >= first && op.Offset <= last {
			loads[op.Offset]++
			most = max(most, loads[op.Offset])
			f.Delay = 10 * ms
		}
		return f
	}
	began := w.sim.Now()
	nd.restart(false)
	took := w.sim.Now() - began
	nd.store.Fault = nil
	if len(loads) < chunks*pagesPerSlot/2 {
		t.Fatalf("%d pages read; the test proves nothing", len(loads))
	}
	if most > 1 || took > int64(len(loads))*10*ms/8 {
		t.Errorf("%d pages were read up to %d times, in %d ms", len(loads), most, took/ms)
	}
	for i := range chunks {
		for page := range uint32(pagesPerSlot) {
			want := pattern(uint64(page), 65536)
			for r := range rounds {
				clear(want[2*r*4096:][:4096])
			}
			if !bytes.Equal(w.read(id(i), page*step, 65536, 0), want) {
				t.Fatalf("chunk %d, page %d: other content", i, page)
			}
		}
	}
}

// What is redone by page leaves the words that the order of the log leaves.
func TestByPage(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 341))
	for range 200 {
		const blocks = 2 * dataplane.BlocksPerChunk
		var plain, sorted [blocks]uint32
		var list []zeroing
		for i := range uint32(60) {
			z := zeroing{slot: rng.Uint32N(2), block: rng.Uint32N(dataplane.BlocksPerChunk)}
			z.end = min(z.block+rng.Uint32N(3*wordsPerPage), dataplane.BlocksPerChunk)
			if i%3 == 0 {
				z.end = min(z.block+16, z.end)
				z.sums = bytes.Repeat([]byte{byte(i + 1)}, int(4*(z.end-z.block)))
			}
			list = append(list, z)
		}
		apply := func(words *[blocks]uint32, list []zeroing) {
			for _, z := range list {
				for b := z.block; b < z.end; b++ {
					w := uint32(0)
					if z.sums != nil {
						w = uint32(z.sums[4*(b-z.block)])
					}
					words[z.slot*dataplane.BlocksPerChunk+b] = w
				}
			}
		}
		apply(&plain, list)
		pieces := byPage(list)
		apply(&sorted, pieces)
		if plain != sorted {
			t.Fatal("other words")
		}
		for i, z := range pieces {
			if z.block >= z.end || (z.end-1)/wordsPerPage != z.block/wordsPerPage ||
				i > 0 && z.firstPage() < pieces[i-1].firstPage() ||
				z.sums != nil && len(z.sums) != int(4*(z.end-z.block)) {
				t.Fatalf("piece %d: %d to %d", i, z.block, z.end)
			}
		}
	}
}
