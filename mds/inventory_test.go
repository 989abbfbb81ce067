package mds

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// An inventory of 200 000 chunks comes in parts, and counts as a whole: all of its chunks are
// foreign to the table, so all are to be forgotten, in several registrations.
func TestLongInventory(t *testing.T) {
	c := newTestCluster(t, 1)
	s := c.newCS(1)
	const n = 200_000
	var held []control.HeldChunk
	for _, id := range goneChunks(t, c.nodes[0].r.fsm.s, n) {
		held = append(held, control.HeldChunk{Chunk: id, Epoch: 1})
	}
	send := func(parts ...int) uint32 {
		for i, part := range parts {
			from := part * 32 << 10
			to := min(from+32<<10, n)
			req := &control.InventoryReq{Part: uint32(i), Chunks: held[from:to]}
			if size := len(control.Marshal(req)); size > dataplane.MaxControlPayload {
				t.Fatalf("a part takes %d bytes", size)
			}
			s.must(control.OpInventory, req, nil)
		}
		return uint32(len(parts))
	}
	s.reg.Parts = send(0, 1, 2, 3, 4, 5)
	s.reg.Chunks = held[6*32<<10:]
	first := s.register()
	if len(first.Forget) != maxForgetReply || first.Forget[0] != held[0].Chunk {
		t.Fatalf("%d chunks to forget, want %d of %d", len(first.Forget), maxForgetReply, n)
	}
	// Parts count once, and only if all came.
	s.wantKind(dataplane.NotReady, control.OpRegisterCS, &s.reg)
	s.reg.Parts = send(0, 1) + 1
	s.wantKind(dataplane.NotReady, control.OpRegisterCS, &s.reg)
	s.wantKind(dataplane.NotReady, control.OpInventory, &control.InventoryReq{Part: 1})
	// A new first part begins anew.
	send(0, 1, 2)
	s.reg.Parts, s.reg.Chunks = send(6), nil
	again := s.register()
	if want := n - 6*32<<10; len(again.Forget) != want || again.Forget[0] != held[6*32<<10].Chunk {
		t.Fatalf("%d chunks to forget, want %d", len(again.Forget), want)
	}
	// Without parts an earlier one doesn't count.
	send(0)
	s.reg.Parts = 0
	if r := s.register(); len(r.Forget) != 0 {
		t.Fatalf("%d chunks to forget of an empty inventory", len(r.Forget))
	}
}

// goneChunks returns chunks that were freed.
func goneChunks(t *testing.T, s *State, n int) (ids []dataplane.ChunkID) {
	t.Helper()
	for range n {
		rec, err := s.table.Alloc()
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, rec.ID)
	}
	for _, id := range slices.Backward(ids) {
		s.table.Free(id)
	}
	return ids
}

// A directory that its process refuses is said to be refused, with the reason, until it serves.
func TestRefusedDirectory(t *testing.T) {
	c := newTestCluster(t, 1)
	s := c.newCS(1)
	sup := c.client(dataplane.RoleSupervisor, 77, nil)
	const reason = "its journal is missing"
	admin := c.client(dataplane.RoleAdmin, 78, nil)
	sup.must(control.OpRefused, &control.RefusedReq{CS: s.id, Host: "h", Path: "/cs1",
		Reason: reason}, nil)
	find := func() control.CSDoc {
		var doc control.ServicesDoc
		admin.admin(control.AdminListServices, nil, &doc)
		return doc.CS[0]
	}
	if d := find(); d.Status != control.CSActive {
		t.Errorf("status %q of a server with a lease: another process was refused", d.Status)
	}
	sup.must(control.OpExited, &control.ExitedReq{CS: s.id, Boot: s.reg.Boot}, nil)
	if d := find(); d.Status != control.CSRefused || d.Failed != reason {
		t.Errorf("status %q, %q", d.Status, d.Failed)
	}
	sup.must(control.OpRefused, &control.RefusedReq{CS: s.id, Host: "h", Path: "/cs1",
		Reason: reason}, nil)
	sup.must(control.OpRefused, &control.RefusedReq{Host: "h", Path: "/cs9",
		Reason: "no identity"}, nil)
	var doc control.ServicesDoc
	admin.admin(control.AdminListServices, nil, &doc)
	if len(doc.Refused) != 1 || doc.Refused[0].Path != "/cs9" {
		t.Errorf("refused directories %+v", doc.Refused)
	}
	// A directory that doesn't say whose it is, where a known server has its own: it is that one's.
	at := find()
	sup.must(control.OpRefused, &control.RefusedReq{Host: at.Host, Path: at.Path,
		Reason: "another cluster's disk"}, nil)
	if d := find(); d.Status != control.CSRefused || d.Failed != "another cluster's disk" {
		t.Errorf("status %q, %q after a refusal at %s:%s", d.Status, d.Failed, at.Host, at.Path)
	}
	events := 0
	eventually(t, "the event", func() bool {
		events = 0
		var list control.EventsDoc
		admin.admin(control.AdminEvents, control.EventsArgs{}, &list)
		for _, e := range list.Events {
			if e.Code == "cs-refused" && strings.Contains(e.Message, reason) {
				events++
			}
		}
		return events > 0
	})
	if events != 1 {
		t.Errorf("%d events of one refusal", events)
	}
	sup.wantKind(dataplane.NotFound, control.OpRefused, &control.RefusedReq{CS: 99, Host: "h",
		Path: "/x", Reason: "x"})
	s.wantKind(dataplane.Denied, control.OpRefused, &control.RefusedReq{CS: s.id, Host: "h",
		Path: "/x", Reason: "x"})
	s.reg.Boot++
	s.reg.Instance++
	s.register()
	if d := find(); d.Status != control.CSActive || d.Failed != "" {
		t.Errorf("status %q, %q after it registered", d.Status, d.Failed)
	}
	// One that said nothing of its id and gets one now.
	sup.must(control.OpRefused, &control.RefusedReq{Host: "host2", Path: "/cs2", Reason: "empty"}, nil)
	c.newCS(2)
	doc = control.ServicesDoc{}
	admin.admin(control.AdminListServices, nil, &doc)
	if len(doc.Refused) != 1 || doc.Refused[0].Path != "/cs9" {
		t.Errorf("refused directories %+v after the server of one registered", doc.Refused)
	}
}

// Refusals that nobody repeats any more don't keep others out.
func TestOldRefusals(t *testing.T) {
	w := newLeaseWorld(t)
	refused := func(path string) error {
		return w.try(77, dataplane.RoleSupervisor, control.OpRefused, &control.RefusedReq{Host: "h",
			Path: path, Reason: "no identity"}, nil)
	}
	for i := range maxRefusals {
		if err := refused(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := refused("more"); dataplane.KindOf(err) != dataplane.Overloaded {
		t.Errorf("one too many: %v", err)
	}
	w.now += int64(refusalLife) + 1
	if err := refused("later"); err != nil {
		t.Error(err)
	}
}

// A new leader lets a server keep copies that the one before may have ordered: the request to make
// it a member may be on its way. When the leader isn't new any more it asks for the inventory once
// more.
func TestCopiesOutliveTheirLeader(t *testing.T) {
	c := newTestCluster(t, 1)
	gone := goneChunks(t, c.nodes[0].r.fsm.s, 1)[0]
	for n := range byte(3) {
		defer c.newCS(n + 1).keepAlive()()
	}
	conf := oneChunk(t, c.client(dataplane.RoleClient, 7, nil))
	s := c.newCS(4)
	l := c.nodes[0].lead.Load()
	for _, epoch := range []dataplane.Epoch{0, conf.Epoch} { // one that isn't finished, and one held
		s.reg.Chunks = []control.HeldChunk{{Chunk: conf.Chunk, Epoch: epoch}, {Chunk: gone, Epoch: 1}}
		if r := s.register(); len(r.Forget) != 1 || r.Forget[0] != gone || len(r.Retired) != 0 {
			t.Errorf("a copy of epoch %d, a new leader: %+v", epoch, r)
		}
	}
	l.mu.Lock()
	l.leases.sinceNs -= int64(relistAfter)
	l.mu.Unlock()
	eventually(t, "the inventory is asked for again", func() bool {
		return dataplane.KindOf(s.beat()) == dataplane.NotFound
	})
	if r := s.register(); len(r.Forget) != 2 {
		t.Errorf("later: %+v", r)
	}
	if err := s.beat(); err != nil {
		t.Errorf("asked for once more: %v", err)
	}
}
