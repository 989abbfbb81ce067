package chunk

import (
	"runtime"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestFenceMany: the disks of a host that died go to other ones, on a server with many chunks. That
// must not take it longer than its lease, so it doesn't list all of its chunks for each of them.
func TestFenceMany(t *testing.T) {
	const chunks, fences = 100_000, 80
	w := newWorldSlots(t, 1, 1, chunks, 32<<20, 1<<20)
	nd := w.nodes[0]
	ids := nd.give(chunks)
	for i, id := range ids {
		nd.sh.chunks[id].file = dataplane.FileID(1 + i/100)
	}
	nd.env.Do(func() {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for seq := range uint64(fences) {
			file := dataplane.FileID(seq + 1)
			nd.sh.Fence(&control.FencePush{After: seq, Seq: seq + 1,
				Fences: []control.FileFence{{File: file, Token: 7}}}, nil)
		}
		runtime.ReadMemStats(&after)
		if n := (after.TotalAlloc - before.TotalAlloc) / fences; n > 8*chunks/10 {
			t.Errorf("a fence takes %d bytes; a list of all chunks has %d", n, 8*chunks)
		}
	})
	for i, id := range ids {
		if r := nd.sh.chunks[id]; (r.fence == 7) != (i/100 < fences) {
			t.Fatalf("chunk %d: fence %d", i, r.fence)
		}
	}
}
