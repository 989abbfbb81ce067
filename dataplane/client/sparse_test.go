package client

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"pstorage/dataplane"
)

// TestSparseFile works at random places of a file of 1 TiB: it costs no more chunks, and no more
// questions and allocations, than there are chunks that are touched.
func TestSparseFile(t *testing.T) {
	w := newWorld(t, 1, 3)
	const chunks = 1 << 40 / dataplane.ChunkSize
	f := w.file(1 << 40)
	rng := rand.New(rand.NewPCG(1, 1))
	touched := map[int64]bool{}
	for range 100 {
		i := rng.Int64N(chunks)
		touched[i] = true
		w.write(f, i*dataplane.ChunkSize+rng.Int64N(1000)*4096, []byte{1})
	}
	if len(w.chunks) != len(touched) {
		t.Errorf("%d chunks were made for %d that were written to", len(w.chunks), len(touched))
	}
	if got := w.meta.calls["allocate"]; got > len(touched) {
		t.Errorf("%d allocations for %d chunks", got, len(touched))
	}
	if got := w.meta.calls["map"]; got > len(touched) {
		t.Errorf("%d questions for %d chunks", got, len(touched))
	}
	// What is known isn't asked for again.
	before := w.meta.calls["map"]
	for i := range touched {
		w.read(f, i*dataplane.ChunkSize, 4096)
	}
	if got := w.meta.calls["map"] - before; got != 0 {
		t.Errorf("%d questions for chunks that are known", got)
	}
}

// TestLargeFileOpensQuickly reads all over an image of 100 GiB that is there as a whole: its map
// comes in a handful of requests.
func TestLargeFileOpensQuickly(t *testing.T) {
	w := newWorld(t, 1, 3)
	const chunks = 100 << 30 / dataplane.ChunkSize
	f := w.file(chunks * dataplane.ChunkSize)
	for i := uint32(0); i < chunks; i += 16 { // a chunk of this world takes its whole size
		w.meta.make(w.meta.files[f.id], i)
	}
	for i := int64(0); i < chunks; i += 16 {
		w.read(f, i*dataplane.ChunkSize, 4096)
	}
	if got := w.meta.calls["map"]; got > 8 {
		t.Errorf("%d questions for the map of 100 GiB", got)
	} else {
		t.Logf("%d questions for %d chunks", got, chunks)
	}
}

// TestZeroOfHoles: who zeroes what isn't there, of a file of petabytes, leaves nothing in memory.
func TestZeroOfHoles(t *testing.T) {
	w := newWorld(t, 1, 3)
	f := w.file(1 << 50)
	w.write(f, 500*dataplane.ChunkSize, w.random(8192))
	op := &Op{Kind: Zero, File: f, Offset: 4096, Length: 10000*dataplane.ChunkSize - 4096}
	w.run(op)
	w.ok(op)
	kept := 0
	for _, pg := range f.pages {
		if pg != nil {
			kept++
		}
	}
	if kept > 40 {
		t.Errorf("%d pages of %d chunks are kept of one chunk", kept, pageChunks)
	}
	if got := w.read(f, 500*dataplane.ChunkSize, 8192); !bytes.Equal(got, make([]byte, 8192)) {
		t.Error("the chunk wasn't zeroed")
	}
}
