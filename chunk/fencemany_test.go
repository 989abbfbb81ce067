package chunk

import (
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestFenceMany: the disks of a host that died go to other ones, on a server with many chunks. It
// gets on with other things before its lease is over.
func TestFenceMany(t *testing.T) {
	const chunks, fences = 100_000, 80
	w := newWorldSlots(t, 1, 1, chunks, 32<<20, 1<<20)
	nd := w.nodes[0]
	ids := nd.give(chunks)
	for i, id := range ids {
		nd.sh.chunks[id].file = dataplane.FileID(1 + i/100)
	}
	nd.env.Do(func() {
		began := time.Now()
		for seq := range uint64(fences) {
			file := dataplane.FileID(seq + 1)
			nd.sh.Fence(&control.FencePush{After: seq, Seq: seq + 1,
				Fences: []control.FileFence{{File: file, Token: 7}}}, nil)
		}
		if took := time.Since(began); took > dataplane.LeaseTime {
			t.Errorf("%d fences took %v", fences, took)
		}
	})
	for i, id := range ids {
		if r := nd.sh.chunks[id]; (r.fence == 7) != (i/100 < fences) {
			t.Fatalf("chunk %d: fence %d", i, r.fence)
		}
	}
}
