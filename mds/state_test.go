package mds

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

func createReq(name string) control.CreateReq {
	return control.CreateReq{Parent: dataplane.RootID, Name: name, Type: control.TypeFile}
}

func TestNames(t *testing.T) {
	s := NewState()
	defer s.Close()
	for name, want := range map[string]dataplane.Kind{
		"a": dataplane.OK, strings.Repeat("x", 255): dataplane.OK, "..a": dataplane.OK,
		"\xff\x01": dataplane.OK,
		"":         dataplane.Invalid, ".": dataplane.Invalid, "..": dataplane.Invalid,
		"a/b": dataplane.Invalid, "a\x00": dataplane.Invalid,
		strings.Repeat("x", 256): dataplane.NameTooLong,
	} {
		if r := do(t, s, 1, &cmdCreate{CreateReq: createReq(name)}); r.Kind != want {
			t.Errorf("%.20q: %v, want %v", name, r.Kind, want)
		}
	}
}

func TestCreateDetails(t *testing.T) {
	s := NewState()
	defer s.Close()
	req := createReq("l")
	req.Type, req.Target = control.TypeSymlink, "/somewhere"
	a := do(t, s, 5, &cmdCreate{CreateReq: req}).Attr
	if a.Size != 10 || a.Target != "/somewhere" || a.Links != 1 || a.MTimeNs != 5 {
		t.Errorf("symlink %+v", a)
	}
	req.Target = ""
	if r := do(t, s, 5, &cmdCreate{CreateReq: req}); r.Kind != dataplane.Invalid {
		t.Errorf("symlink to nothing: %v", r.Kind)
	}
	// A directory hands its policy and, with setgid, its group down.
	d := createReq("d")
	d.Type, d.Mode, d.GID = control.TypeDir, 0o2775, 50
	dir := do(t, s, 6, &cmdCreate{CreateReq: d}).Attr
	pol := control.Policy{Replicas: 2, Minimum: 1, Domain: DomainRack, Tier: 1, AckMemory: true}
	do(t, s, 7, &cmdSetAttr{SetAttrReq: control.SetAttrReq{File: dir.File,
		Mask: control.SetPolicy, Policy: pol}})
	f := createReq("f")
	f.Parent, f.GID = dir.File, 60
	if a := do(t, s, 8, &cmdCreate{CreateReq: f}).Attr; a.Policy != pol || a.GID != 50 {
		t.Errorf("file in it: %+v", a)
	}
	if a := s.attr(s.files.get(dir.File)); a.Links != 2 || a.MTimeNs != 8 || a.CTimeNs != 8 {
		t.Errorf("directory: %+v", a)
	}
	if a := s.attr(s.files.get(dataplane.RootID)); a.Links != 3 {
		t.Errorf("root: %+v", a)
	}
	// Time never goes back.
	if a := do(t, s, 2, &cmdCreate{CreateReq: createReq("late")}).Attr; a.MTimeNs != 8 {
		t.Errorf("time went back to %d", a.MTimeNs)
	}
}

func TestPolicyBounds(t *testing.T) {
	for _, tc := range []struct {
		p  control.Policy
		ok bool
	}{
		{DefaultPolicy, true},
		{control.Policy{Replicas: 1, Minimum: 1}, true},
		{control.Policy{Replicas: 8, Minimum: 8, Domain: DomainRoom, Tier: 3}, true},
		{control.Policy{}, false},
		{control.Policy{Replicas: 9, Minimum: 1}, false},
		{control.Policy{Replicas: 2, Minimum: 3}, false},
		{control.Policy{Replicas: 2, Minimum: 0}, false},
		{control.Policy{Replicas: 1, Minimum: 1, Domain: 5}, false},
		{control.Policy{Replicas: 1, Minimum: 1, Tier: 4}, false},
	} {
		if msg := checkPolicy(tc.p); (msg == "") != tc.ok {
			t.Errorf("%+v: %q", tc.p, msg)
		}
	}
}

// fill makes a file with n chunks on servers 1 to 3.
func fill(t testing.TB, s *State, name string, n uint32) dataplane.FileID {
	t.Helper()
	f := do(t, s, 1, &cmdCreate{CreateReq: createReq(name)}).Attr.File
	for from := uint32(0); from < n; from += control.MaxMapRange {
		c := &cmdAllocate{File: f}
		for i := from; i < min(n, from+control.MaxMapRange); i++ {
			c.Chunks = append(c.Chunks, placed{index: i, n: 3, members: members(1, 2, 3)})
		}
		if r := do(t, s, 1, c); r.Kind != dataplane.OK {
			t.Fatal(r.Msg)
		}
	}
	do(t, s, 1, &cmdGrow{GrowReq: control.GrowReq{File: f, Size: uint64(n) * dataplane.ChunkSize}})
	return f
}

// TestLargeTruncate says that a truncation of many chunks goes in steps, from the end.
func TestLargeTruncate(t *testing.T) {
	s := NewState()
	defer s.Close()
	newNSTest(t, s, testRand(t))
	const chunks = 3*freeStep + 100
	f := fill(t, s, "big", chunks)
	cut := &cmdSetAttr{origin{7, 1}, control.SetAttrReq{File: f, Mask: control.SetSize, Size: 1}}
	freed, steps, size := 0, 0, uint64(chunks)*dataplane.ChunkSize
	for {
		r := do(t, s, 2, cut)
		if len(r.Freed) > freeStep {
			t.Fatalf("%d chunks freed in one step", len(r.Freed))
		}
		freed += len(r.Freed)
		steps++
		checkState(t, s)
		now := s.files.get(f).size
		if now >= size {
			t.Fatalf("size %d after %d", now, size)
		}
		size = now
		if !r.More {
			break
		}
	}
	if freed != chunks-1 || steps != 4 || size != 1 || s.table.Len() != 1 {
		t.Errorf("%d freed in %d steps, size %d, %d left", freed, steps, size, s.table.Len())
	}
	// The retry of what is done frees nothing that was written since.
	do(t, s, 3, &cmdAllocate{File: f, Chunks: []placed{{index: 5, n: 1, members: members(1)}}})
	if r := do(t, s, 4, cut); len(r.Freed) > 0 || r.More || s.table.Len() != 2 {
		t.Errorf("the retry freed %d chunks", len(r.Freed))
	}
}

// TestLargeUnlink says that a removed file with many chunks is gone at once and its chunks later,
// also across a snapshot.
func TestLargeUnlink(t *testing.T) {
	s := NewState()
	newNSTest(t, s, testRand(t))
	f := fill(t, s, "big", 2*freeStep+1)
	if r := do(t, s, 2, &cmdUnlink{UnlinkReq: control.UnlinkReq{Parent: 1, Name: "big"}}); len(
		r.Freed) > 0 {
		t.Fatal("freed in the same command")
	}
	for _, c := range []command{
		&cmdGrow{GrowReq: control.GrowReq{File: f}},
		&cmdAllocate{File: f, Chunks: []placed{{index: 1, n: 1, members: members(1)}}},
		&cmdSetAttr{SetAttrReq: control.SetAttrReq{File: f, Mask: control.SetMode}},
		&cmdSetXattr{XattrReq: control.XattrReq{File: f, Name: "a"}},
	} {
		if r := do(t, s, 2, c); r.Kind != dataplane.NotFound {
			t.Errorf("%T on a removed file: %v", c, r.Kind)
		}
	}
	if s.fileCount() != 0 {
		t.Errorf("%d files", s.fileCount())
	}
	freed := len(do(t, s, 2, &cmdReap{}).Freed)
	restored, err := Restore(bytes.NewReader(dump(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	defer restored.Close()
	for len(restored.orphans) > 0 {
		freed += len(do(t, restored, 3, &cmdReap{}).Freed)
		checkState(t, restored)
	}
	if freed != 2*freeStep+1 || restored.table.Len() != 0 {
		t.Errorf("%d chunks freed, %d left", freed, restored.table.Len())
	}
	do(t, restored, 3, &cmdReap{}) // nothing to do
}

func TestReconfigure(t *testing.T) {
	s := NewState()
	defer s.Close()
	newNSTest(t, s, testRand(t))
	fill(t, s, "f", 1)
	id := s.table.At(0).ID
	type cs = []dataplane.CSID
	for i, tc := range []struct {
		chunk   dataplane.ChunkID
		epoch   dataplane.Epoch
		members cs
		created bool
		want    dataplane.Kind
		then    dataplane.Epoch // afterwards
	}{
		{id + 1, 1, cs{1}, false, dataplane.NotFound, 1},
		{id, 1, nil, false, dataplane.Invalid, 1},
		{id, 2, cs{1, 2}, false, dataplane.Conflict, 1},
		{id, 1, cs{4}, false, dataplane.Invalid, 1},        // nobody of the epoch stays (I7)
		{id, 1, cs{3, 2, 1}, false, dataplane.Invalid, 1},  // order
		{id, 1, cs{1, 1}, false, dataplane.Invalid, 1},     // twice
		{id, 1, cs{1, 2, 99}, false, dataplane.Invalid, 1}, // unknown
		{id, 2, nil, true, dataplane.Conflict, 1},
		{id, 1, nil, true, dataplane.OK, 1},
		{id, 1, nil, true, dataplane.OK, 1},
		{id, 1, cs{1, 3}, false, dataplane.OK, 2},
		{id, 1, cs{1, 3}, false, dataplane.OK, 2}, // again: the reply was lost
		{id, 1, cs{1, 2}, false, dataplane.Conflict, 2},
		{id, 2, cs{1, 3, 4}, false, dataplane.OK, 3}, // a new member
		{id, 3, cs{4}, true, dataplane.OK, 4},
		{id, 4, cs{1}, false, dataplane.Invalid, 4}, // an old one never replaces the last
		{id, 4, cs{4, 1, 2}, false, dataplane.OK, 5},
		{id, 5, cs{2, 4, 1}, false, dataplane.OK, 6}, // the last one leads
	} {
		r := do(t, s, int64(i), &cmdReconfigure{Chunk: tc.chunk, Epoch: tc.epoch,
			Members: tc.members, SetCreated: tc.created})
		rec := s.table.Lookup(id)
		if r.Kind != tc.want || rec.Epoch != tc.then || !rec.intact() {
			t.Errorf("case %d: %v %s, epoch %d; want %v, %d", i, r.Kind, r.Msg, rec.Epoch,
				tc.want, tc.then)
		}
		if r.Kind == dataplane.OK && r.Rec != *rec {
			t.Errorf("case %d: result %+v, record %+v", i, r.Rec, *rec)
		}
		checkState(t, s)
	}
	for cs, fenced := range map[dataplane.CSID]bool{1: true, 2: true, 3: true, 4: false} {
		if s.server(cs).Fenced != fenced {
			t.Errorf("cs %d fenced: %v", cs, !fenced)
		}
	}
	if s.table.Lookup(id).Flags&flagCreated == 0 {
		t.Error("not created")
	}
}

// TestHandover: an only copy goes to another server when the leader says that it is handed over,
// and in no other case.
func TestHandover(t *testing.T) {
	type cs = []dataplane.CSID
	for i, tc := range []struct {
		before, members cs
		handover        bool
		want            dataplane.Kind
	}{
		{cs{1}, cs{4}, false, dataplane.Invalid},
		{cs{1}, cs{4}, true, dataplane.OK},
		{cs{1}, cs{4, 5}, true, dataplane.Invalid},
		{cs{1, 2}, cs{4}, true, dataplane.Invalid},
		{cs{1, 2}, cs{4, 5}, true, dataplane.Invalid},
		{cs{1}, cs{99}, true, dataplane.Invalid},
	} {
		s := NewState()
		newNSTest(t, s, testRand(t))
		fill(t, s, "f", 1)
		rec := s.table.At(0)
		do(t, s, 1, &cmdReconfigure{Chunk: rec.ID, Epoch: 1, Members: tc.before, SetCreated: true})
		c := &cmdReconfigure{Chunk: rec.ID, Epoch: 2, Members: tc.members, Moved: true,
			Handover: tc.handover}
		r := do(t, s, 2, c)
		if rec = s.table.Lookup(rec.ID); r.Kind != tc.want {
			t.Errorf("case %d: %v %s, want %v", i, r.Kind, r.Msg, tc.want)
		} else if ok := r.Kind == dataplane.OK; ok != (rec.Epoch == 3) || ok != rec.sameMembers(cs{4}) {
			t.Errorf("case %d: epoch %d, members %v", i, rec.Epoch, rec.members())
		}
		checkState(t, s)
		s.Close()
	}
}

// TestRegistrationCase goes through all inputs that differ.
func TestRegistrationCase(t *testing.T) {
	known := &CS{ID: 3, Boot: 5, Instance: 77}
	dropped := &CS{ID: 3, Boot: 5, Instance: 77, Dropped: true}
	failed := &CS{ID: 3, Boot: 5, Instance: 77, Failed: "EIO"}
	started := &CS{ID: 3, Boot: 5, Instance: 77, Start: 50}
	other := &CS{ID: 4, Boot: 1}
	for i, tc := range []struct {
		id           dataplane.CSID
		boot, inst   uint64
		starts       []uint64
		known, named *CS
		want         registration
	}{
		{0, 1, 1, nil, nil, nil, regNew},
		{0, 1, 1, []uint64{9}, nil, nil, regNew},
		{3, 1, 1, nil, nil, nil, regUnknown},     // an id, and a disk that nobody knows
		{4, 6, 1, nil, nil, other, regUnknown},   // another's id
		{4, 6, 1, nil, known, other, regUnknown}, // a known disk with another's id
		{9, 6, 1, nil, known, nil, regUnknown},
		{3, 6, 1, nil, known, known, regRestart},
		{3, 6, 1, []uint64{9}, known, known, regRestart}, // the first with a program that says it
		{0, 6, 1, nil, known, known, regRestart},         // never learned its id
		{3, 5, 77, nil, known, known, regAgain},
		{3, 5, 78, nil, known, known, regBehind}, // a copy of the directory
		{3, 4, 77, nil, known, known, regBehind}, // rolled back
		{0, 5, 78, nil, known, known, regBehind},
		{3, 6, 77, nil, dropped, dropped, regDropped},
		{3, 5, 77, nil, failed, failed, regFailed},
		{3, 6, 78, nil, failed, failed, regRestart},
		{3, 6, 1, []uint64{50, 60}, started, started, regRestart},
		{3, 9, 1, []uint64{40, 50, 60, 70}, started, started, regRestart},
		{3, 99, 1, []uint64{50}, started, started, regRestart}, // too many starts to number them
		{3, 5, 77, []uint64{50}, started, started, regAgain},
		{3, 5, 78, []uint64{50}, started, started, regBehind},
		{3, 9, 1, []uint64{40, 41, 42, 43}, started, started, regBehind}, // rolled back, started often
		{3, 4, 1, []uint64{40, 50}, started, started, regBehind},
		{3, 9, 1, nil, started, started, regBehind}, // rolled back to an older program's
		{3, 9, 1, []uint64{50, 60}, started, started, regRestart},
	} {
		r := &cmdRegisterCS{Instance: tc.inst, CS: CS{ID: tc.id, Boot: tc.boot}}
		if n := len(tc.starts); n > 0 {
			r.CS.Start, r.Starts = tc.starts[n-1], tc.starts[:n-1]
		}
		named := tc.named
		if tc.id == 0 {
			named = nil
		}
		for r.Confirmed = range tc.boot + 1 {
			want := tc.want
			if want != regDropped && tc.known != nil && r.Confirmed > tc.known.Boot &&
				(tc.id == 0 || named != nil && named.ID == tc.known.ID) {
				want = regAhead // not the server is older than what is recorded
			}
			if got := registrationCase(r, tc.known, named); got != want {
				t.Errorf("case %d, confirmed %d: %d, want %d", i, r.Confirmed, got, want)
			}
		}
	}
}

func TestRegister(t *testing.T) {
	s := NewState()
	defer s.Close()
	reg := func(id dataplane.CSID, disk byte, boot, instance uint64) Result {
		return do(t, s, 1, &cmdRegisterCS{Instance: instance, CS: CS{ID: id, Disk: [16]byte{disk},
			Boot: boot, Addr: fmt.Sprint("a", boot)}})
	}
	if r := reg(0, 1, 1, 10); r.CS != 1 {
		t.Errorf("first: %+v", r)
	}
	if r := reg(0, 2, 1, 20); r.CS != 2 {
		t.Errorf("second: %+v", r)
	}
	if r := reg(1, 1, 2, 11); r.CS != 1 || s.server(1).Addr != "a2" {
		t.Errorf("restart: %+v", r)
	}
	r := reg(1, 1, 2, 12)
	if r.Kind != dataplane.Conflict || !strings.Contains(r.Msg, "copy or was rolled back") ||
		s.server(1).Instance != 11 {
		t.Errorf("clone: %+v", r)
	}
	do(t, s, 1, &cmdMarkCS{CS: 1, Failed: "EIO"})
	if s.server(1).Failed != "EIO" {
		t.Error("not failed")
	}
	if r := reg(1, 1, 2, 11); r.Kind != dataplane.Denied {
		t.Errorf("the process with the failed disk again: %+v", r)
	}
	if r := reg(1, 1, 3, 13); r.Kind != dataplane.OK || s.server(1).Failed != "" {
		t.Errorf("after a failure: %+v", r)
	}
	do(t, s, 1, &cmdMarkCS{CS: 1, Dropped: true})
	if r := reg(1, 1, 4, 14); r.Kind != dataplane.Denied {
		t.Errorf("dropped: %+v", r)
	}
	if r := do(t, s, 1, &cmdMarkCS{CS: 9, Dropped: true}); r.Kind != dataplane.NotFound {
		t.Errorf("unknown: %+v", r)
	}
}

func TestInitOnce(t *testing.T) {
	s := NewState()
	defer s.Close()
	a, b := dataplane.ClusterID{1}, dataplane.ClusterID{2}
	for _, tc := range []struct {
		id   dataplane.ClusterID
		want dataplane.Kind
	}{{a, dataplane.OK}, {a, dataplane.OK}, {b, dataplane.WrongCluster}} {
		if r := do(t, s, 1, &cmdInit{ClusterID: tc.id, ClusterName: "n"}); r.Kind != tc.want {
			t.Errorf("%v: %v", tc.id, r.Kind)
		}
	}
	if s.clusterID != a {
		t.Error("changed")
	}
}

func TestConfig(t *testing.T) {
	s := NewState()
	defer s.Close()
	for i, tc := range []struct {
		key, value string
		version    uint64
		any        bool
		want       dataplane.Kind
	}{
		{"b", "1", 0, false, dataplane.OK},
		{"b", "2", 0, false, dataplane.Conflict},
		{"b", "2", 1, false, dataplane.OK},
		{"a", "1", 0, false, dataplane.OK},
		{"a", "2", 0, true, dataplane.OK},
		{"a", "", 4, false, dataplane.OK},
		{"a", "", 0, false, dataplane.OK},
		{"", "x", 0, false, dataplane.Invalid},
	} {
		r := do(t, s, 1, &cmdSetConfig{Key: tc.key, Value: tc.value, Version: tc.version,
			Any: tc.any})
		if r.Kind != tc.want {
			t.Errorf("case %d: %v %s", i, r.Kind, r.Msg)
		}
	}
	if len(s.config) != 1 || s.config[0] != (configEntry{"b", "2", 2}) {
		t.Errorf("%+v", s.config)
	}
}

// TestDedupeBound says that remembered results and events are bounded.
func TestDedupeBound(t *testing.T) {
	s := NewState()
	defer s.Close()
	first := &cmdAddEvent{origin: origin{7, 1}, Code: "first"}
	do(t, s, 1, first)
	do(t, s, 1, first)
	if s.events.n != 1 {
		t.Fatalf("%d events", s.events.n)
	}
	for i := range uint64(dedupeMax) {
		do(t, s, 1, &cmdAddEvent{origin: origin{7, 2 + i}, Code: "x"})
	}
	if len(s.seen) != dedupeMax || s.dedupe.n != dedupeMax || s.events.n != MaxEvents {
		t.Errorf("%d results, %d events", len(s.seen), s.events.n)
	}
	if last := s.events.blocks[len(s.events.blocks)-1]; last[len(last)-1].ID != dedupeMax+1 {
		t.Errorf("newest event %d", last[len(last)-1].ID)
	}
}

// TestDirIndexModel compares a directory with a sorted map under random names.
func TestDirIndexModel(t *testing.T) {
	rng := testRand(t)
	d, model := &dirIndex{}, map[string]dataplane.FileID{}
	for step := range 40000 {
		name := fmt.Sprint(rng.IntN(3000))
		id, found := model[name]
		if got := d.find(name); got != id {
			t.Fatalf("find %s: %d, want %d", name, got, id)
		}
		switch {
		case !found && (step < 20000 || rng.IntN(3) == 0):
			model[name] = dataplane.FileID(step + 1)
			d.insert(name, dataplane.FileID(step+1))
		case found && rng.IntN(2) == 0:
			delete(model, name)
			d.remove(name)
		}
		if step%2000 == 0 {
			after, n, last := fmt.Sprint(rng.IntN(3000)), 0, ""
			want := 0
			for name := range model {
				if name > after {
					want++
				}
			}
			d.after(after, func(e *dirEntry) bool {
				if e.name <= after || e.name <= last || model[e.name] != e.id {
					t.Fatalf("entry %v after %q and %q", e, after, last)
				}
				n, last = n+1, e.name
				return true
			})
			if n != want || d.n != len(model) {
				t.Fatalf("%d entries after %q, want %d; %d in all, want %d", n, after, want, d.n,
					len(model))
			}
		}
	}
}
