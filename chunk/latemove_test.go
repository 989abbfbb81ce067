package chunk

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestLateMove: the head's request to move a member is on its way for long. Meanwhile the head is
// held to be lost, another member begins to go on without it, finds that it is back, and has all
// members activated again. If the request were committed after that, the member that leaves would
// serve reads of an epoch in which nobody writes any more: it was sealed for the move, so it keeps
// its lease.
func TestLateMove(t *testing.T) {
	for _, leaving := range []dataplane.CSID{3, 1} { // a member, and the head itself
		t.Run(fmt.Sprintf("cs%d leaves", leaving), func(t *testing.T) { lateMove(t, leaving) })
	}
}

func lateMove(t *testing.T, leaving dataplane.CSID) {
	w := newWorld(t, 4100, 4)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	var move *control.ReconfigureReq
	var answer func(*control.ChunkConfig, error)
	w.md.hold = func(req *control.ReconfigureReq, cb func(*control.ChunkConfig, error)) bool {
		switch n := len(req.Members); {
		case move == nil && slices.Contains(req.Members, 4):
			r := *req
			r.Members = slices.Clone(req.Members)
			move, answer = &r, cb
			return true
		case n > 0 && n < 3:
			cb(nil, dataplane.E("reconfigure", dataplane.NotReady, nil)) // the head has its lease again
			return true
		}
		return false
	}
	w.move(chunkA, leaving, 4)
	w.must(func() bool { return move != nil }, 20*sec, "the move is asked for")
	w.push(1, chunkA, 1)
	w.must(func() bool { return w.full(chunkA, 3) }, 20*sec, "another member has all activated")

	_, err := w.md.reconfigure(move)
	t.Logf("the late request: %v", err)
	answer(nil, dataplane.E("reconfigure", dataplane.TimedOut, nil))
	w.mustWrite(chunkA, 0, pattern(2, 4096))
	var st dataplane.Kind
	var got []byte
	w.cl.env.Do(func() {
		w.cl.ask(leaving, dataplane.Header{Op: dataplane.OpRead, Chunk: chunkA, Epoch: 1,
			Length: 4096}, nil, func(a *dataplane.Header, p []byte) {
			st, got = a.Status, append([]byte{}, p...)
		})
	})
	w.must(func() bool { return got != nil }, 5*sec, "an answer")
	if st == dataplane.OK && !bytes.Equal(got, pattern(2, 4096)) {
		t.Errorf("cs %d, which has left, serves what was there before the last write", leaving)
	}
}
