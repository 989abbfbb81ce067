package mds

import (
	"bytes"
	"encoding/binary"
	"io"
	"sync"
	"testing"

	"github.com/hashicorp/raft"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// richState is a state with something of everything.
func richState(t testing.TB) *State {
	t.Helper()
	s := NewState()
	do(t, s, 1, &cmdInit{ClusterID: dataplane.ClusterID{1, 2}, ClusterName: "rich"})
	for i := range byte(4) {
		do(t, s, 1, &cmdRegisterCS{Instance: 5, CS: CS{Disk: [16]byte{i + 1}, Boot: 1, Addr: "a",
			Host: "h", Path: "/p", Location: "x/y/z", Capacity: 7, Start: uint64(i)}})
	}
	fill(t, s, "small", 3)
	fill(t, s, "big", freeStep+10)
	d := createReq("dir")
	d.Type = control.TypeDir
	dir := do(t, s, 2, &cmdCreate{origin{3, 4}, d}).Attr.File
	l := createReq("link")
	l.Parent, l.Type, l.Target = dir, control.TypeSymlink, "../small"
	do(t, s, 3, &cmdCreate{origin{3, 5}, l})
	do(t, s, 3, &cmdSetXattr{XattrReq: control.XattrReq{File: dir, Name: "user.a",
		Value: []byte("b")}})
	do(t, s, 4, &cmdUnlink{UnlinkReq: control.UnlinkReq{Parent: 1, Name: "big"}})
	do(t, s, 4, &cmdReap{})
	do(t, s, 5, &cmdSetConfig{Key: "k", Value: "v"})
	do(t, s, 6, &cmdMarkCS{CS: 4, Failed: "EIO"})
	do(t, s, 6, &cmdMarkCS{CS: 2, Drain: drainStart})
	return s
}

// TestSnapshotBesideApply writes a snapshot while commands change everything that it captured.
func TestSnapshotBesideApply(t *testing.T) {
	rng := testRand(t)
	s := NewState()
	defer s.Close()
	n := newNSTest(t, s, rng)
	for range 300 {
		n.step()
	}
	fill(t, s, "chunky", 2000)
	var mu sync.Mutex
	for range 5 {
		sn, err := s.Capture()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Capture(); dataplane.KindOf(err) != dataplane.Overloaded {
			t.Fatalf("second snapshot at once: %v", err)
		}
		var before, beside bytes.Buffer
		if err := sn.Write(&before); err != nil {
			t.Fatal(err)
		}
		written := make(chan error)
		go func() {
			for range 5 {
				beside.Reset()
				if err := sn.Write(&beside); err != nil {
					written <- err
					return
				}
			}
			written <- nil
		}()
		for range 300 {
			mu.Lock()
			n.step()
			mu.Unlock()
		}
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(before.Bytes(), beside.Bytes()) {
			t.Fatal("the snapshot changed")
		}
		mu.Lock()
		sn.Release()
		sn.Release() // harmless
		mu.Unlock()
		restored, err := Restore(&before)
		if err != nil {
			t.Fatal(err)
		}
		checkState(t, restored)
		restored.Close()
		checkState(t, s)
	}
	if s.table.open != nil || s.files.open {
		t.Error("a capture is still open")
	}
}

func TestSnapshotRoundTrip(t *testing.T) {
	s := richState(t)
	defer s.Close()
	a := dump(t, s)
	r, err := Restore(bytes.NewReader(a))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b := dump(t, r); !bytes.Equal(sortless(a), sortless(b)) {
		t.Error("a snapshot of the restored state differs")
	}
	if r.clusterName != "rich" || r.nowNs != 6 || len(r.orphans) != 1 || r.config[0].value != "v" ||
		r.server(4).Failed != "EIO" || r.server(2).Location != "x/y/z" || len(r.seen) != 2 {
		t.Errorf("restored %+v", r)
	}
	// A retry across the snapshot is answered as before.
	d := createReq("dir")
	d.Type = control.TypeDir
	res := do(t, r, 9, &cmdCreate{origin{3, 4}, d})
	if res.Kind != dataplane.OK || res.Attr.File != 4 {
		t.Errorf("retry: %+v", res)
	}
	if f, err := r.lookupPath("/dir/link"); err != nil || f.target != "../small" {
		t.Errorf("lookup: %v", err)
	}
}

// sortless is a snapshot without its files, whose order depends on the order of creation.
func sortless(snap []byte) (out []byte) {
	for b := snap; len(b) > 0; {
		n := binary.LittleEndian.Uint32(b[4:])
		if b[0] != blockFiles {
			out = append(out, b[:8+n]...)
		}
		b = b[12+n:]
	}
	return out
}

// TestSnapshotDamage says that every single damaged byte, and every cut, is noticed.
func TestSnapshotDamage(t *testing.T) {
	s := richState(t)
	defer s.Close()
	good := dump(t, s)
	step := 1
	if testing.Short() {
		step = 37
	}
	for i := 0; i < len(good); i += 1 + i%(step*211) {
		bad := bytes.Clone(good)
		bad[i] ^= 0x10
		if r, err := Restore(bytes.NewReader(bad)); err == nil {
			r.Close()
			t.Fatalf("damage in byte %d goes unseen", i)
		}
		if r, err := Restore(bytes.NewReader(good[:i])); err == nil {
			r.Close()
			t.Fatalf("cut at %d goes unseen", i)
		}
	}
	// A snapshot that lacks a whole block in the middle.
	n := binary.LittleEndian.Uint32(good[4:])
	second := good[12+n:]
	n2 := binary.LittleEndian.Uint32(second[4:])
	if r, err := Restore(io.MultiReader(bytes.NewReader(good[:12+n]),
		bytes.NewReader(second[12+n2:]))); err == nil {
		r.Close()
		t.Error("a missing block goes unseen")
	}
}

// TestSnapshotMemoryDamage says that a damaged record in memory is never written out, and ends the
// server, to be started again.
func TestSnapshotMemoryDamage(t *testing.T) {
	s := richState(t)
	defer s.Close()
	s.table.at(1).Epoch++
	sn, err := s.Capture()
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Release()
	if err := sn.Write(io.Discard); dataplane.KindOf(err) != dataplane.BadCRC {
		t.Errorf("a damaged record was written: %v", err)
	}
	var told error
	p := &fsmSnapshot{&fsm{s: s, onFail: func(err error) { told = err }}, sn}
	if err := p.Persist(&raft.DiscardSnapshotSink{}); err == nil ||
		dataplane.KindOf(told) != dataplane.IOError {
		t.Errorf("the server is told %v; the snapshot: %v", told, err)
	}
}

// TestRestoreContradictions builds snapshots with right checksums and wrong contents.
func TestRestoreContradictions(t *testing.T) {
	for name, change := range map[string]func(s *State){
		"none":                func(*State) {},
		"no root":             func(s *State) { s.files.remove(dataplane.RootID) },
		"root is a file":      func(s *State) { s.files.edit(1).typ = control.TypeFile },
		"parent is missing":   func(s *State) { s.files.edit(2).parent = 99 },
		"parent is a file":    func(s *State) { s.files.edit(4).parent = 2 },
		"bad name":            func(s *State) { s.files.edit(2).name = "a/b" },
		"name twice":          func(s *State) { s.files.edit(2).name = "dir" },
		"file type":           func(s *State) { s.files.edit(2).typ = 7 },
		"directory loop":      func(s *State) { s.files.edit(4).parent = 4 },
		"id too high":         func(s *State) { s.nextFile = 2 },
		"record without file": func(s *State) { s.table.at(0).File = 77; s.table.at(0).seal() },
		"two records, one place": func(s *State) {
			s.table.at(1).Index = 0
			s.table.at(1).seal()
		},
		"unknown server": func(s *State) { s.table.at(0).Replicas[0].CS = 88; s.table.at(0).seal() },
		"free list loop": func(s *State) {
			r := s.table.at(s.table.freeHead - 1)
			r.File = dataplane.FileID(s.table.freeHead)
			r.seal()
		},
		"free list": func(s *State) { s.table.freeHead = 1 },
		"disk twice": func(s *State) {
			clone := *s.cs[2]
			clone.Disk = s.cs[1].Disk
			s.cs[2] = &clone
		},
	} {
		s := richState(t)
		change(s)
		r, err := Restore(bytes.NewReader(dump(t, s)))
		if (err == nil) != (name == "none") {
			t.Errorf("%s: %v", name, err)
		}
		if r != nil {
			r.Close()
		}
		s.Close()
	}
}

func TestEntryDamage(t *testing.T) {
	s := NewState()
	defer s.Close()
	good := encodeEntry(5, &cmdCreate{CreateReq: createReq("a")}, &cmdReap{})
	for i := range good {
		for _, bad := range [][]byte{good[:i], append(bytes.Clone(good[:i]), append([]byte{
			good[i] ^ 1}, good[i+1:]...)...)} {
			if _, err := s.Apply(bad); err == nil {
				t.Fatalf("damage at byte %d goes unseen", i)
			}
		}
	}
	for name, bad := range map[string][]byte{
		"unknown command": finishEntry(append(beginEntry(nil), 99, 0, 0, 0, 0), 1, 1),
		"bytes behind":    finishEntry(append(encodeEntry(1, &cmdReap{}), 0), 1, 1),
		"too few":         finishEntry(encodeEntry(1, &cmdReap{}), 1, 2),
		"huge count":      finishEntry(encodeEntry(1, &cmdReap{}), 1, 1<<31-1),
	} {
		if _, err := s.Apply(bad); err == nil {
			t.Errorf("%s goes unseen", name)
		}
	}
	if s.fileCount() != 0 {
		t.Error("something was applied")
	}
	// Fields that a newer version appended are skipped.
	e := encodeEntry(1, &cmdReap{})
	e = append(e, "new"...)
	binary.LittleEndian.PutUint32(e[21:], 16+3)
	if _, err := s.Apply(finishEntry(e, 1, 1)); err != nil {
		t.Errorf("a longer command: %v", err)
	}
}

// FuzzEntry applies arbitrary log entries to a state: no panic, no contradiction.
func FuzzEntry(f *testing.F) {
	for _, c := range []command{
		&cmdInit{ClusterName: "x"}, &cmdCreate{origin{1, 1}, createReq("new")},
		&cmdUnlink{origin{1, 2}, control.UnlinkReq{Parent: 1, Name: "small"}},
		&cmdRename{origin{1, 3}, control.RenameReq{FromParent: 1, FromName: "small", ToParent: 4,
			ToName: "x"}},
		&cmdRename{origin{1, 7}, control.RenameReq{FromParent: 1, FromName: "dir", ToParent: 1,
			ToName: "small", Keep: "kept", Kept: 2}},
		&cmdSetAttr{origin{1, 4}, control.SetAttrReq{File: 2, Mask: 127, Policy: DefaultPolicy}},
		&cmdGrow{GrowReq: control.GrowReq{File: 2, Size: 1 << 40}},
		&cmdSetXattr{origin{1, 5}, control.XattrReq{File: 4, Name: "n", Value: []byte("v")}},
		&cmdAllocate{File: 2, Chunks: []placed{{index: 9, n: 3, members: members(1, 2, 3)}}},
		&cmdReconfigure{Chunk: dataplane.NewChunkID(1, 0), Epoch: 1,
			Members: []dataplane.CSID{1, 2}, SetCreated: true},
		&cmdReconfigure{Chunk: dataplane.NewChunkID(1, 0), Epoch: 1,
			Members: []dataplane.CSID{4}, Moved: true, Handover: true},
		&cmdReconfigure{Chunk: dataplane.NewChunkID(1, 0), Epoch: 1,
			Members: []dataplane.CSID{4}, Fresh: true},
		&cmdRegisterCS{Instance: 1, CS: CS{Disk: [16]byte{9}, Boot: 1}},
		&cmdRegisterCS{CS: CS{Disk: [16]byte{9}, Boot: 2, Start: 2}, Starts: []uint64{1}},
		&cmdMarkCS{CS: 1, Dropped: true}, &cmdAddEvent{Code: "c"}, &cmdSetConfig{Key: "a", Value: "b"},
		&cmdReap{},
	} {
		f.Add(encodeEntry(1, c)[entryHeader:])
	}
	f.Fuzz(func(t *testing.T, commands []byte) {
		s := richState(t)
		defer s.Close()
		for n := 1; n < 3; n++ {
			e := finishEntry(append(beginEntry(nil), commands...), 7, n)
			if _, err := s.Apply(e); err != nil {
				continue
			}
			checkState(t, s)
			r, err := Restore(bytes.NewReader(dump(t, s)))
			if err != nil {
				t.Fatalf("the snapshot after it can't be read: %v", err)
			}
			r.Close()
		}
	})
}

// FuzzRestore reads arbitrary blocks with right checksums.
func FuzzRestore(f *testing.F) {
	s := richState(f)
	var payloads []byte
	for b := dump(f, s); len(b) > 0; {
		n := binary.LittleEndian.Uint32(b[4:])
		if n < 4096 {
			payloads = append(payloads, b[:8+n]...)
		}
		b = b[12+n:]
	}
	s.Close()
	f.Add(payloads)
	f.Fuzz(func(t *testing.T, blocks []byte) {
		var out bytes.Buffer
		w := &blockWriter{w: &out}
		for len(blocks) >= 8 {
			n := binary.LittleEndian.Uint32(blocks[4:])
			if uint64(n)+8 > uint64(len(blocks)) || n > maxBlock {
				break
			}
			if err := w.block(blocks[0], blocks[8:8+n]); err != nil {
				t.Fatal(err)
			}
			blocks = blocks[8+n:]
		}
		r, err := Restore(&out)
		if err == nil {
			checkState(t, r)
			r.Close()
		}
	})
}

func BenchmarkApplyAllocate(b *testing.B) {
	s := NewState()
	defer s.Close()
	for i := range byte(3) {
		do(b, s, 1, &cmdRegisterCS{Instance: 1, CS: CS{Disk: [16]byte{i + 1}, Boot: 1}})
	}
	f := do(b, s, 1, &cmdCreate{CreateReq: createReq("f")}).Attr.File
	b.ReportAllocs()
	i := uint32(0)
	for b.Loop() {
		c := &cmdAllocate{File: f}
		for range 16 {
			c.Chunks = append(c.Chunks, placed{index: i % MaxFileChunks, n: 3, members: members(1, 2, 3)})
			i++
		}
		if _, err := s.Apply(encodeEntry(1, c)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(i), "ns/chunk")
}

// TestPackPage packs pages of records of all kinds, and reads them again; what is cut off or makes
// no sense is an error.
func TestPackPage(t *testing.T) {
	rng := testRand(t)
	for range 200 {
		var p, q page
		for i := range p {
			for k := range p[i].words() {
				p[i].words()[k] = rng.Uint64() >> (8 * rng.IntN(9)) // 0 to 8 bytes
			}
		}
		b := packPage([]byte("before"), &p)
		rest, err := unpackPage(&q, append(b[len("before"):], "behind"...))
		if err != nil || q != p || string(rest) != "behind" {
			t.Fatalf("%v; the same: %v; left %q", err, q == p, rest)
		}
		whole := b[len("before"):]
		if _, err := unpackPage(&q, whole[:rng.IntN(len(whole))]); err == nil {
			t.Fatal("a page that is cut off was read")
		}
		whole[0] |= 15 // a word of 15 bytes
		if _, err := unpackPage(&q, whole); err == nil {
			t.Fatal("a word of 15 bytes was read")
		}
	}
}

// TestPagesBehindTheEnd: a block of empty pages takes little room in a snapshot and much in memory,
// so there may be no more of them than the table has.
func TestPagesBehindTheEnd(t *testing.T) {
	var tab Table
	defer tab.Close()
	b := packPage(nil, &page{})
	if _, err := tab.load(b, 2, 0); dataplane.KindOf(err) != dataplane.BadCRC {
		t.Errorf("a page of a table with no records: %v", err)
	}
	if len(tab.pages) != 0 {
		t.Errorf("it has %d pages", len(tab.pages))
	}
}
