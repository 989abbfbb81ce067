package chunk

import (
	"bytes"
	"testing"

	"pstorage/uring"
	"pstorage/uring/simloop"
)

// A cold block that is read again comes from the log's device and not from the store; not if the
// log is on the store's disk, where that is no faster.
func TestColdBlockReadAgainComesFromTheLog(t *testing.T) {
	for _, same := range []bool{false, true} {
		w := settledInStore(t, 350)
		nd := w.nodes[1]
		nd.sh.noReadCache = same
		const off = 5 * 65536
		if _, ok := nd.sh.log.Lookup(nd.sh.chunks[chunkA].slot, off/4096); ok {
			t.Fatal("the block is still in the log; the test proves nothing")
		}
		w.read(chunkA, 60<<20, 4096, 1) // settles
		at := nd.sh.store.sb.block(nd.sh.chunks[chunkA].slot, off/4096)
		fromStore := 0
		nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
			if op.Kind == uring.DiskRead && op.Offset == at {
				fromStore++
			}
			return f
		}
		logReads := 0
		nd.cache.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
			if op.Kind == uring.DiskRead {
				logReads++
			}
			return f
		}
		for i := range 4 {
			if got := w.read(chunkA, off, 4096, 1); !bytes.Equal(got, pattern(6, 65536)[:4096]) {
				t.Fatalf("same %v, read %d: other content", same, i+1)
			}
			if i == 0 && fromStore != 1 {
				t.Fatalf("the first read took %d reads of the store", fromStore)
			}
			w.run(100 * ms)
			for part := range uint32(64) { // the log keeps in memory what it has just written
				if i == 0 {
					w.mustWrite(chunkA, 48<<20+part*65536, pattern(uint64(part), 65536))
				}
			}
		}
		o, want := nd.sh.observation(), 1
		if same {
			want = 4
		}
		if fromStore != want || o.FromStore != uint64(want) || o.FromLog != uint64(4-want) ||
			(logReads == 0) != same {
			t.Errorf("same %v: of 4 reads %d came from the store, %d from the log's device; %d and %d "+
				"counted", same, fromStore, logReads, o.FromStore, o.FromLog)
		}
	}
}
