package chunk

import (
	"testing"

	"pstorage/dataplane"
)

// A head that is asked by clients all the time doesn't stop the member that was told to go on
// without a lost one, however long that copies.
func TestHeadYieldsToCoordinator(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	head := w.nodes[0]
	r := head.sh.chunks[chunkA]
	w.nodes[2].kill()
	w.run(3 * sec)
	done := false
	w.write(chunkA, 0, pattern(2, 4096), &done) // what keeps the head settling
	w.must(func() bool { return r.settler != nil && r.settler.running }, sec, "settle")

	// Another coordinator seals the head, and patches it for longer than the head's pause.
	var l *link
	for _, k := range head.sh.links {
		if k.open {
			l = k
		}
	}
	head.env.Do(func() {
		if st := head.sh.seal(r, r.epoch, l, func() {}); st != dataplane.OK {
			t.Fatalf("sealed: %v", st)
		}
	})
	for range 30 {
		w.run(int64(settleRetry))
		head.env.Do(func() { r.sealedAt = head.env.Now() })
		if r.sealer != any(l) {
			t.Fatal("the head sealed it again while the other one was at work")
		}
	}
	// It says nothing any more: the head goes on by itself, once it may.
	w.nodes[2].restart(false)
	w.must(func() bool { return done }, 5*sec, "go on")
}
