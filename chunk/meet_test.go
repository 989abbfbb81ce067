package chunk

import (
	"bytes"
	"testing"

	"pstorage/dataplane"
)

// TestReadsWhileMeetingTheNext: a member that was away is back, but its link to the one before it
// in the chain isn't yet. That one looks for it before the chunk is written again; reads don't wait
// for that.
func TestReadsWhileMeetingTheNext(t *testing.T) {
	w := newWorld(t, 77, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, dataplane.BlockSize))
	w.nodes[2].kill()
	w.md.report(3)
	want := pattern(2, dataplane.BlockSize)
	w.mustWrite(chunkA, 0, want)
	w.net.Cut(w.nodes[1].ip, w.nodes[2].ip, true)
	w.net.Cut(w.nodes[2].ip, w.nodes[1].ip, true)
	w.nodes[2].restart(false)
	w.md.reported = nil
	w.recover(chunkA, 3)
	w.must(func() bool { return len(w.md.chunks[chunkA].Members) == 3 }, 10*sec, "addition")
	begun := w.sim.Now()
	if got := w.read(chunkA, 0, dataplane.BlockSize, 1); !bytes.Equal(got, want) {
		t.Error("read something else than was written")
	}
	took := w.sim.Now() - begun
	head, member := w.nodes[0].sh.chunks[chunkA], w.nodes[1].sh.chunks[chunkA]
	if took > 100*ms || head.state == active || member.state != active {
		t.Errorf("a read took %d ms; head %v, member %v: it should be answered by the member while "+
			"the head waits for it", took/ms, head.state, member.state)
	}
	w.must(func() bool { return w.full(chunkA, 3) }, int64(2*meetTimeout), "the head goes on")
}
