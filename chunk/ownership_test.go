package chunk

import (
	"bytes"
	"testing"
)

// An activation record in the log doesn't bring a replica back whose slot entry is damaged: what it
// held before the log begins would read as zeros.
func TestDamagedSlotEntryOfActiveReplica(t *testing.T) {
	w := settledInStore(t, 79)
	w.read(chunkA, 0, 4096, 0) // activates it: the record is in the log
	nd := w.nodes[2]
	slot := nd.sh.chunks[chunkA].slot
	for _, n := range w.nodes {
		n.kill()
	}
	nd.store.FlipBit(nd.sh.store.sb.tablePage(slot)+int64(slot%entriesInPage)*entrySize+9, 1)
	nd.store.FlipBit(nd.sh.store.sb.stage, 1) // it may have an intact copy
	for _, n := range w.nodes {
		n.restart(false)
	}
	w.read(chunkA, 0, 4096, 0)
	if cfg := w.md.chunks[chunkA]; cfg.Epoch != 2 || len(cfg.Members) != 2 {
		t.Errorf("epoch %d, %d members", cfg.Epoch, len(cfg.Members))
	}
	for i := range 9 {
		got := w.read(chunkA, uint32(i%8)*65536, 65536, i)
		if !bytes.Equal(got, pattern(uint64(i%8+1), 65536)) {
			t.Fatalf("part %d: other content", i%8)
		}
	}
}
