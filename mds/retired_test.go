package mds

import (
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestManyRetired: a chunk server that was excluded from all it had, and whose places nobody could
// take, comes back: the answer to its registration fits a message however much that is.
func TestManyRetired(t *testing.T) {
	const n = 200_000
	s, cs := retiredSim(t)
	st := s.srv.r.fsm.s
	file := do(t, st, 1, &cmdCreate{CreateReq: control.CreateReq{Parent: dataplane.RootID, Name: "f",
		Type: control.TypeFile}}).Attr.File
	var held []control.HeldChunk
	for first := uint32(0); first < n; first += control.MaxMapRange {
		c := &cmdAllocate{File: file}
		for i := first; i < min(first+control.MaxMapRange, n); i++ {
			p := placed{index: i, n: 2}
			copy(p.members[:], cs)
			c.Chunks = append(c.Chunks, p)
		}
		do(t, st, 1, c)
	}
	for slot := range uint64(n) {
		id := st.table.At(slot).ID
		do(t, st, 1, &cmdReconfigure{Chunk: id, Epoch: 1, Members: cs[:1]})
		held = append(held, control.HeldChunk{Chunk: id, Epoch: 1})
	}
	reply := registerWith(t, s, held, true)
	if got := reply.RetiredOf(held); len(got) != n || got[0] != held[0].Chunk ||
		got[n-1] != held[n-1].Chunk || len(reply.Forget) != 0 {
		t.Errorf("%d chunks are retired and %d to be forgotten, want %d and none", len(got),
			len(reply.Forget), n)
	}
}

// TestManyForgotten: a chunk server that is to forget more than it can be told at once serves
// nothing of the rest, as it gets a lease.
func TestManyForgotten(t *testing.T) {
	const n = 2*maxForgetReply + 11
	s, _ := retiredSim(t)
	var held []control.HeldChunk
	for _, id := range goneChunks(t, s.srv.r.fsm.s, n) {
		held = append(held, control.HeldChunk{Chunk: id, Epoch: 1})
	}
	if r := registerWith(t, s, held, false); r.LeaseNs != 0 || len(r.Forget) != maxForgetReply {
		t.Errorf("an older program: a lease of %d ns, and %d to be forgotten", r.LeaseNs,
			len(r.Forget))
	}
	reply := registerWith(t, s, held, true)
	if reply.LeaseNs == 0 {
		t.Error("no lease")
	}
	gone := map[dataplane.ChunkID]bool{}
	for _, id := range append(reply.RetiredOf(held), reply.Forget...) {
		gone[id] = true
	}
	if len(gone) != n {
		t.Errorf("it goes on with %d of %d chunks that aren't its own", n-len(gone), n)
	}
}

// retiredSim is a cluster of two chunk servers.
func retiredSim(t *testing.T) (s *fuzzSim, cs []dataplane.CSID) {
	t.Helper()
	s = newFuzzSim()
	t.Cleanup(s.Close)
	for i := range 2 {
		a, err := s.ask(dataplane.RoleCS, control.OpRegisterCS, control.Marshal(retiredReq(byte(i+1))))
		if err != nil {
			t.Fatal(err)
		}
		cs = append(cs, a.(*control.RegisterCSReply).CS)
	}
	return s, cs
}

func retiredReq(n byte) *control.RegisterCSReq {
	return &control.RegisterCSReq{Disk: [16]byte{n}, Boot: 1, Addr: "10.0.0.1:1", Host: "h",
		Path: "/p", Capacity: 1 << 50, Instance: uint64(n), Marks: true}
}

// registerWith has the second chunk server register with an inventory, and returns the answer as it
// comes by the network.
func registerWith(t *testing.T, s *fuzzSim, held []control.HeldChunk, marks bool) (
	reply control.RegisterCSReply) {
	t.Helper()
	req := retiredReq(2)
	req.Marks = marks
	for len(held) > 0 {
		part := held[:min(len(held), 32<<10)]
		held = held[len(part):]
		if _, err := s.ask(dataplane.RoleCS, control.OpInventory, control.Marshal(
			&control.InventoryReq{Part: req.Parts, Chunks: part})); err != nil {
			t.Fatal(err)
		}
		req.Parts++
	}
	a, err := s.ask(dataplane.RoleCS, control.OpRegisterCS, control.Marshal(req))
	if err != nil {
		t.Fatal(err)
	}
	b := control.Marshal(a)
	if len(b) > dataplane.MaxControlPayload {
		t.Fatalf("an answer of %d bytes, a message has %d", len(b), dataplane.MaxControlPayload)
	}
	if err := control.Unmarshal(b, &reply); err != nil {
		t.Fatal(err)
	}
	return reply
}
