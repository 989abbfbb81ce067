package chunk

import (
	"bytes"
	"slices"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestLostDataIsNamed: a member whose disk lost what it had acknowledged lives, answers and has a
// lease, so the metadata servers exclude it only if they are told why. Without it the chunk goes
// on.
func TestLostDataIsNamed(t *testing.T) {
	for liar := range 3 {
		w := newWorld(t, uint64(liar+1), 3)
		w.md.add(chunkA, 2, 1, 2, 3)
		nd := w.nodes[liar]
		for i := range uint32(5) {
			w.mustWrite(chunkA, i*4096, pattern(uint64(i), 4096))
		}
		w.run(sec)
		old := make([]byte, nd.cache.Size())
		nd.cache.ReadAt(old, 0)
		for i := range uint32(5) {
			w.mustWrite(chunkA, i*4096, pattern(uint64(10+i), 4096))
		}
		w.run(sec)
		named := 0
		w.md.hold = func(req *control.ReconfigureReq, cb func(*control.ChunkConfig, error)) bool {
			if req.SetCreated {
				return false
			}
			if slices.Equal(req.Lost, []dataplane.CSID{nd.cs}) {
				named++
			}
			if named > 3 {
				return false // it gave its lease up
			}
			w.sim.After(ms, func() { cb(nil, dataplane.E("reconfigure", dataplane.NotReady, nil)) })
			return true
		}
		for _, n := range w.nodes {
			n.kill()
		}
		nd.cache.WriteAt(old, 0)
		for _, n := range w.nodes {
			n.restart(true)
		}
		done := false
		w.write(chunkA, 65536, pattern(99, 4096), &done)
		w.must(func() bool { return len(w.md.chunks[chunkA].Members) == 2 }, 30*sec,
			"exclusion of the member that lost data")
		w.must(func() bool { return done }, 10*sec, "the write")
		if named < 4 || w.md.event("replica-lost") == 0 {
			t.Errorf("liar %d: named %d times, %d events", liar, named, w.md.event("replica-lost"))
		}
		for i := range uint32(5) {
			if got := w.read(chunkA, i*4096, 4096, 0); !bytes.Equal(got, pattern(uint64(10+i), 4096)) {
				t.Errorf("liar %d: block %d is not what was acknowledged last", liar, i)
			}
		}
	}
}
