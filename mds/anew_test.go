package mds

import (
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestPlaceAnew: a chunk that was allocated and never written to, whose members are all lost, is
// begun anew on others, with the next epoch; whether somebody complains about it or not. One that
// may have been written to is not, nor is one whose member may come back.
func TestPlaceAnew(t *testing.T) {
	for _, c := range []struct {
		name                           string
		created, oneBack, asked, moved bool
	}{
		{"complained about", false, false, true, true},
		{"found", false, false, false, true},
		{"written to", true, false, true, false},
		{"one is there", false, true, true, false},
	} {
		t.Run(c.name, func(t *testing.T) { testPlaceAnew(t, c.created, c.oneBack, c.asked, c.moved) })
	}
}

func testPlaceAnew(t *testing.T, created, oneBack, asked, moved bool) {
	const servers = 6
	s, files := placingSim(t, servers, 100)
	if _, err := s.ask(dataplane.RoleClient, control.OpAllocate, control.Marshal(
		&control.MapReq{File: files[0], Count: 1})); err != nil {
		t.Fatal(err)
	}
	table := s.srv.r.fsm.s.table
	id := table.At(0).ID
	if created {
		table.Edit(id).Flags |= flagCreated
	}
	before := *table.At(0)

	// Its members are silent for longer than anybody waits, but for one perhaps; the others aren't.
	s.l.leases.sinceNs -= int64(2 * s.l.recover.offline)
	for cs := dataplane.CSID(1); cs <= servers; cs++ {
		s.l.leases.at(cs).answeredNs = s.l.now()
		if before.has(cs) && !(oneBack && cs == before.Replicas[1].CS) {
			s.l.leases.at(cs).answeredNs -= int64(2 * s.l.recover.offline)
		}
	}
	for range 20 {
		if asked {
			s.l.plan.report(id, s.l.now())
		}
		s.Tick()
		for len(s.commits) > 0 {
			done := s.commits[0]
			s.commits = s.commits[1:]
			done()
		}
	}
	after := *table.At(0)
	if !moved {
		if after.Epoch != before.Epoch || memberList(&after) != memberList(&before) {
			t.Errorf("epoch %d with members %s, before %d with %s", after.Epoch,
				memberList(&after), before.Epoch, memberList(&before))
		}
		return
	}
	if after.Epoch != before.Epoch+1 || after.Present != before.Present || after.ID != id {
		t.Errorf("epoch %d with members %s, before %d with %s", after.Epoch, memberList(&after),
			before.Epoch, memberList(&before))
	}
	for _, m := range after.members() {
		if before.has(m.CS) {
			t.Errorf("CS %d is a member again", m.CS)
		}
	}
	for cs := dataplane.CSID(1); cs <= servers; cs++ {
		if e := s.l.leases.at(cs); e.excluding != 0 || e.adding != 0 {
			t.Errorf("CS %d can't register any more", cs)
		}
		if c := s.srv.r.fsm.s.server(cs); c.Fenced != before.has(cs) {
			t.Errorf("CS %d must register again: %v", cs, c.Fenced)
		}
	}
	// What an old member still asks for comes too late.
	_, err := s.ask(dataplane.RoleCS, control.OpReconfigure, control.Marshal(&control.ReconfigureReq{
		Chunk: id, Epoch: before.Epoch, SetCreated: true}))
	if dataplane.KindOf(err) != dataplane.Conflict {
		t.Errorf("marked as created at the epoch before: %v", err)
	}
}
