package chunk

import (
	"path/filepath"
	"testing"
	"time"

	"pstorage/dataplane"
)

// On a real file system: blocks that were written back and then zeroed don't take space any more.
func TestRealPunch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cs")
	formatReal(t, dir)
	m := startTableMDS(t)
	r := runReal(t, dir, m)
	m.add(chunkA, r.id)
	nc := dialReal(t, r.addr, dataplane.RoleClient)
	store := filepath.Join(dir, storeFile)
	before := allocated(store)
	const parts = 64 // 4 MiB
	for i := range parts {
		h := dataplane.Header{Op: dataplane.OpWrite, ReqID: uint64(i), Chunk: chunkA, Epoch: 1,
			Offset: uint32(i) * dataplane.PartSize}
		if st, _ := ask(t, nc, h, pattern(uint64(i+1), dataplane.PartSize)); st != dataplane.OK {
			t.Fatalf("write: %v", st)
		}
	}
	wait := func(what string, ok func(n uint64) bool) {
		t.Helper()
		end := time.Now().Add(60 * time.Second)
		for !ok(allocated(store)) {
			if time.Now().After(end) {
				t.Fatalf("%s: the store takes %d bytes, at first %d", what, allocated(store), before)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	wait("write-back", func(n uint64) bool { return n >= before+3<<20 })
	full := allocated(store)
	zero := func(off, n uint32) {
		h := dataplane.Header{Op: dataplane.OpZero, ReqID: 1000 + uint64(off), Chunk: chunkA, Epoch: 1,
			Offset: off, Length: n}
		if st, _ := ask(t, nc, h, nil); st != dataplane.OK {
			t.Fatalf("zero: %v", st)
		}
	}
	zero(4096, 2<<20) // of what is left, 2 MiB, some may be in the log only
	wait("a part zeroed", func(n uint64) bool { return n < full && n <= before+9<<18 })
	h := dataplane.Header{Op: dataplane.OpRead, ReqID: 5, Chunk: chunkA, Epoch: 1, Length: 8192}
	if st, got := ask(t, nc, h, nil); st != dataplane.OK || isZero(got[:4096]) || !isZero(got[4096:]) {
		t.Errorf("read around the border: %v", st)
	}
	zero(0, dataplane.ChunkSize)
	wait("the chunk zeroed", func(n uint64) bool { return n <= before+1<<20 })
	r.end(t)
}
