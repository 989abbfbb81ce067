package chunk

import (
	"bytes"
	"slices"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestLateLead: a member asks to become the head, and its process ends. The next one is activated
// as a member, in the epoch as it was; then the request is committed. Clients know it as the head
// by then, and nobody else settles the chunk: it does when they write, or read.
func TestLateLead(t *testing.T) {
	for what, read := range map[string]bool{"write": false, "read": true} {
		t.Run(what, func(t *testing.T) { lateLead(t, read) })
	}
}

func lateLead(t *testing.T, read bool) {
	w := newWorld(t, 4200, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	var lead *control.ReconfigureReq
	w.md.hold = func(req *control.ReconfigureReq, _ func(*control.ChunkConfig, error)) bool {
		if lead != nil || len(req.Members) == 0 || req.Members[0] != 2 {
			return false
		}
		r := *req
		r.Members = slices.Clone(req.Members)
		lead = &r
		return true
	}
	w.lead(1, chunkA)
	w.must(func() bool { return lead != nil }, 20*sec, "the change is asked for")
	w.nodes[1].restart(false)
	w.mustWrite(chunkA, 0, pattern(2, 4096)) // with the head as it was
	if _, err := w.md.reconfigure(lead); err != nil {
		t.Fatal(err)
	}
	if read {
		if got := w.read(chunkA, 0, 4096, 0); !bytes.Equal(got, pattern(2, 4096)) {
			t.Error("other content")
		}
		return
	}
	w.mustWrite(chunkA, 0, pattern(3, 4096))
	w.equal(chunkA, dataplane.PartSize, 0, 1, 2)
}
