package mds

import (
	"errors"
	"strings"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestOlderRecord: a leader that learns from one chunk server that its record is an older copy
// gives none of them a lease, deletes nothing and allocates nothing. What the record has is no
// reason, nor what it had and has no more.
func TestOlderRecord(t *testing.T) {
	for _, c := range []struct {
		name  string
		seen  uint64 // entries above those that there are
		beat  bool   // said in a heartbeat, not a registration
		held  control.HeldChunk
		older bool
	}{
		{"what it has", 0, false, control.HeldChunk{Chunk: dataplane.NewChunkID(1, 0), Epoch: 1}, false},
		{"freed since", 0, false, control.HeldChunk{Chunk: dataplane.NewChunkID(1, 1), Epoch: 1}, false},
		{"a copy", 0, false, control.HeldChunk{Chunk: dataplane.NewChunkID(1, 0)}, false},
		{"seen more", 1, false, control.HeldChunk{Chunk: dataplane.NewChunkID(1, 0), Epoch: 1}, true},
		{"seen more, heartbeat", 1, true, control.HeldChunk{}, true},
		{"as much, heartbeat", 0, true, control.HeldChunk{}, false},
		{"chunk in a new slot", 0, false, control.HeldChunk{Chunk: dataplane.NewChunkID(1, 5)}, true},
		{"a later one in a slot", 0, false, control.HeldChunk{Chunk: dataplane.NewChunkID(2, 1)}, true},
		{"newer epoch", 0, false, control.HeldChunk{Chunk: dataplane.NewChunkID(1, 0), Epoch: 2}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFuzzSim()
			defer s.Close()
			register := func(i int, seen uint64, held ...control.HeldChunk) (uint64, error) {
				answer, err := s.ask(dataplane.RoleCS, control.OpRegisterCS, control.Marshal(
					&control.RegisterCSReq{Disk: [16]byte{byte(i)}, Boot: 1, Addr: "10.0.0.1:1",
						Host: "h", Path: "/p", Instance: uint64(i), Capacity: 100 * dataplane.ChunkSize,
						Chunks: held, Seen: seen}))
				if err != nil {
					return 0, err
				}
				return answer.(*control.RegisterCSReply).Index, nil
			}
			must := func(answer any, err error) any {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
				return answer
			}
			for i := range 3 {
				must(register(i+1, 0))
			}
			var files [2]dataplane.FileID
			for i, name := range []string{"a", "b"} {
				a := must(s.ask(dataplane.RoleClient, control.OpCreate, control.Marshal(&control.CreateReq{
					Parent: dataplane.RootID, Name: name, Type: control.TypeFile, Mode: 0o600})))
				files[i] = a.(*control.Attr).File
				must(s.ask(dataplane.RoleClient, control.OpAllocate, control.Marshal(
					&control.MapReq{File: files[i], Count: 1})))
			}
			must(s.ask(dataplane.RoleClient, control.OpSetAttr, control.Marshal(
				&control.SetAttrReq{File: files[1], Mask: control.SetSize})))

			now := must(register(2, 0)).(uint64)
			var err error
			if c.beat {
				_, err = s.ask(dataplane.RoleCS, control.OpHeartbeat, control.Marshal(
					&control.HeartbeatReq{CS: 1, Boot: 1, Instance: 1, Seen: now + c.seen}))
			} else {
				_, err = register(1, now+c.seen, c.held)
			}
			if !c.older {
				must(nil, err)
				return
			}
			if dataplane.KindOf(err) != dataplane.Internal || !strings.Contains(err.Error(), "CS 1") {
				t.Errorf("it got %v", err)
			}
			if _, err := register(2, 0); dataplane.KindOf(err) != dataplane.Internal {
				t.Errorf("another one registered: %v", err)
			}
			_, err = s.ask(dataplane.RoleCS, control.OpHeartbeat, control.Marshal(
				&control.HeartbeatReq{CS: 3, Boot: 1, Instance: 3}))
			if dataplane.KindOf(err) != dataplane.Internal {
				t.Errorf("another one got a lease: %v", err)
			}
			_, err = s.ask(dataplane.RoleClient, control.OpAllocate, control.Marshal(
				&control.MapReq{File: files[1], Count: 1}))
			if dataplane.KindOf(err) != dataplane.NotReady {
				t.Errorf("a chunk was allocated: %v", err)
			}
			events := s.Events()
			if n := len(events); n == 0 || events[n-1].Code != "mds-rolled-back" {
				t.Errorf("events: %+v", events)
			}
		})
	}
}

// TestOlderDirectory: a chunk server's directory that is an older copy, or a clone, is refused, and
// an event tells of it, once per process. It isn't told of one that is only unknown here.
func TestOlderDirectory(t *testing.T) {
	s := newFuzzSim()
	defer s.Close()
	register := func(disk byte, boot, instance uint64, starts ...uint64) error {
		s.Depose() // no process is connected
		s.Lead()
		_, err := s.ask(dataplane.RoleCS, control.OpRegisterCS, control.Marshal(&control.RegisterCSReq{
			Disk: [16]byte{disk}, Boot: boot, Starts: starts, Instance: instance, Addr: "10.0.0.1:1",
			Host: "h", Path: "/cs", Capacity: 1 << 40}))
		return err
	}
	told := func() (list []string) {
		for _, e := range s.Events() {
			if e.Code == "cs-rolled-back" {
				if e.Severity != control.Fault || e.Source != "cs 1" {
					t.Errorf("event %+v", e)
				}
				list = append(list, e.Message)
			}
		}
		return list
	}
	if err := errors.Join(register(1, 3, 13, 33), register(1, 5, 15, 33, 55)); err != nil {
		t.Fatal(err)
	}
	if err := register(0, 1, 1); dataplane.KindOf(err) != dataplane.Invalid || len(told()) != 0 {
		t.Errorf("without an identity: %v, events %q", err, told())
	}
	for i, c := range []struct {
		boot   uint64
		starts []uint64
		why    string
	}{
		{4, []uint64{33, 44}, "its start counter isn't above the recorded 5"},
		{5, []uint64{33, 55}, "its start counter isn't above the recorded 5"}, // a clone
		{7, []uint64{33, 66, 77}, "it never had start 5"},
	} {
		err := register(1, c.boot, uint64(100+i), c.starts...)
		if dataplane.KindOf(err) != dataplane.Conflict || !strings.Contains(err.Error(), c.why) {
			t.Fatalf("start %d: %v", c.boot, err)
		}
		list := told()
		if len(list) != i+1 || !strings.Contains(list[i], c.why) ||
			!strings.Contains(list[i], "/cs is a copy or was rolled back") {
			t.Errorf("start %d: events %q", c.boot, list)
		}
	}
	again := func() error {
		_, err := s.ask(dataplane.RoleCS, control.OpRegisterCS, control.Marshal(&control.RegisterCSReq{
			Disk: [16]byte{1}, Boot: 4, Instance: 200, Addr: "10.0.0.1:1", Host: "h", Path: "/cs"}))
		return err
	}
	if a, b := again(), again(); dataplane.KindOf(a) != dataplane.Conflict ||
		dataplane.KindOf(b) != dataplane.Conflict || len(told()) != 4 {
		t.Errorf("asked twice: %v, %v, events %q", a, b, told())
	}
	if err := register(1, 6, 16, 33, 55, 66); err != nil || len(told()) != 4 {
		t.Errorf("the right one: %v, events %q", err, told())
	}
}
