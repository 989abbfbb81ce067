package mds

import (
	"encoding/json"
	"fmt"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// placingSim is a cluster of servers with little room, in which commands are committed when the
// test says so. Each server was asked for its figures before, so that the state alone counts.
func placingSim(t *testing.T, servers int, room uint64) (s *fuzzSim, files []dataplane.FileID) {
	t.Helper()
	s = newFuzzSim()
	t.Cleanup(s.Close)
	must := func(role dataplane.Role, op dataplane.Opcode, req any) any {
		t.Helper()
		answer, err := s.ask(role, op, control.Marshal(req))
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	for i := range servers {
		must(dataplane.RoleCS, control.OpRegisterCS, &control.RegisterCSReq{Disk: [16]byte{byte(i + 1)},
			Boot: 1, Addr: "10.0.0.1:1", Host: fmt.Sprint("h", i), Path: "/p", Instance: uint64(i + 1),
			Capacity: room * dataplane.ChunkSize})
	}
	for i := range 40 {
		a := must(dataplane.RoleClient, control.OpCreate, &control.CreateReq{Parent: dataplane.RootID,
			Name: fmt.Sprint("f", i), Type: control.TypeFile, Mode: 0o600})
		files = append(files, a.(*control.Attr).File)
	}
	return s, files
}

// allocateAll asks for two chunks of each file at once: nothing is committed before all were asked
// for, and the view for placement is made anew before each. It returns how many were turned away
// for want of space.
func allocateAll(t *testing.T, s *fuzzSim, files []dataplane.FileID) (refused int) {
	t.Helper()
	for i, f := range files {
		s.l.viewNs = 0
		s.Handle(dataplane.RoleClient, uint64(500+i), 1, control.OpAllocate,
			&control.MapReq{File: f, Count: 2}, func(_ []byte, err error) {
				switch {
				case dataplane.KindOf(err) == dataplane.NoSpace:
					refused++
				case err != nil:
					t.Error(err)
				}
			})
	}
	for len(s.commits) > 0 {
		done := s.commits[0]
		s.commits = s.commits[1:]
		done()
	}
	if len(s.l.placing) != 0 || s.l.coming != 0 {
		t.Errorf("nothing is proposed any more, and these count: %v, %d", s.l.placing, s.l.coming)
	}
	return refused
}

// TestAllocateTogether: allocations that are on their way at the same time don't get more of a
// server than it has, though the view for placement doesn't see them in the state yet.
func TestAllocateTogether(t *testing.T) {
	const servers, room = 3, 25 // each chunk is on all three
	s, files := placingSim(t, servers, room)
	refused := allocateAll(t, s, files)
	st := s.srv.r.fsm.s
	for cs := 1; cs <= servers; cs++ {
		if st.csLoad[cs] != room {
			t.Errorf("CS %d has room for %d chunks and got %d", cs, room, st.csLoad[cs])
		}
	}
	if refused == 0 {
		t.Error("nobody was turned away")
	}
	// What is freed can be had again.
	for _, f := range files {
		if _, err := s.ask(dataplane.RoleClient, control.OpSetAttr, control.Marshal(
			&control.SetAttrReq{File: f, Mask: control.SetSize})); err != nil {
			t.Fatal(err)
		}
	}
	allocateAll(t, s, files)
	if n := st.table.Len(); n != room {
		t.Errorf("%d chunks after all were freed, wanted %d", n, room)
	}
}

// TestLimitTogether is the same for the capacity limit of the cluster.
func TestLimitTogether(t *testing.T) {
	const limit = 13
	s, files := placingSim(t, 3, 1000)
	doc, err := json.Marshal(&control.SetConfigArgs{Key: control.ConfigLimit, Any: true,
		Value: fmt.Sprint(limit * dataplane.ChunkSize)})
	if err == nil {
		_, err = s.ask(dataplane.RoleAdmin, control.OpAdmin, control.Marshal(
			&control.AdminReq{Command: control.AdminSetConfig, Args: doc}))
	}
	if err != nil {
		t.Fatal(err)
	}
	if refused := allocateAll(t, s, files); refused == 0 {
		t.Error("nobody was turned away")
	}
	if n := s.srv.r.fsm.s.table.Len(); n != limit {
		t.Errorf("%d chunks, the limit is %d", n, limit)
	}
}
