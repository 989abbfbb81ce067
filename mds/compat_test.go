package mds

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// What each version wrote is kept in testdata/vN and must be read for ever: snapshots, and log
// entries with the state that they make of a snapshot. PSTORAGE_RECORD=vN makes the files of this
// version, the highest number. They are made anew when it writes something more, which a test
// notices, until it is released; then never again.

// recordedCommands has one command of each kind, for the state of snapshot.gz.
func recordedCommands() []command {
	return []command{
		&cmdInit{ClusterName: "x"},
		&cmdCreate{origin{1, 1}, createReq("new")},
		&cmdRename{origin{1, 3}, control.RenameReq{FromParent: 1, FromName: "small", ToParent: 4,
			ToName: "x"}},
		&cmdSetAttr{origin{1, 4}, control.SetAttrReq{File: 2, Mask: control.SetPolicy |
			control.SetMode, Mode: 0o600, Policy: DefaultPolicy}},
		&cmdGrow{GrowReq: control.GrowReq{File: 2, Size: 1 << 40}},
		&cmdSetXattr{origin{1, 5}, control.XattrReq{File: 4, Name: "n", Value: []byte("v")}},
		&cmdAllocate{File: 2, Chunks: []placed{{index: 9, n: 3, members: members(1, 2, 3)}}},
		&cmdReconfigure{Chunk: dataplane.NewChunkID(1, 0), Epoch: 1,
			Members: []dataplane.CSID{1, 2}, SetCreated: true},
		&cmdRegisterCS{Instance: 1, CS: CS{Disk: [16]byte{9}, Boot: 1}},
		&cmdRegisterCS{Instance: 1, CS: CS{Disk: [16]byte{10}, Boot: 3, Start: 7},
			Starts: []uint64{5, 6}, Confirmed: 1},
		&cmdMarkCS{CS: 1, Failed: "EIO"},
		&cmdAddEvent{Code: "c"},
		&cmdSetConfig{Key: "a", Value: "b"},
		&cmdReap{},
		&cmdUnlink{origin{1, 2}, control.UnlinkReq{Parent: 1, Name: "new"}},
		&cmdLease{Action: leaseGrant, File: 2, Client: 7, Host: "h", Mount: "/m"},
		&cmdLease{Action: leaseRelease, File: 2, Client: 7, Token: 3, Unclean: true},
		&cmdReconfigure{Chunk: dataplane.NewChunkID(1, 1), Epoch: 1,
			Members: []dataplane.CSID{2, 3, 4}, Moved: true},
		&cmdReconfigure{Chunk: dataplane.NewChunkID(1, 2), Epoch: 1,
			Members: []dataplane.CSID{4, 5}, Fresh: true},
		&cmdCreate{origin{1, 6}, createReq("b")},
		&cmdRename{origin{1, 7}, control.RenameReq{FromParent: 1, FromName: "b", ToParent: 4,
			ToName: "x", Keep: "kept", Kept: 2}},
		&cmdMarkCS{CS: 2, Drain: drainCancel},
		&cmdMarkCS{CS: 3, Dropped: true},
	}
}

// recordedState is richState, with leases and keys.
func recordedState(t *testing.T) *State {
	s := richState(t)
	do(t, s, 7, &cmdLease{Action: leaseGrant, File: 2, Client: 5, Host: "host", Mount: "/mnt"})
	do(t, s, 7, &cmdLease{Action: leaseRevoke, File: 2, By: "somebody"})
	keys, set := NewClusterKeys(s.clusterID, "first", true)
	if set.Private == ([32]byte{}) {
		t.Fatal("no keys")
	}
	text, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	do(t, s, 8, &cmdSetConfig{Key: keysKey, Value: string(text)})
	node, err := json.Marshal(nodeRecord{Host: "second", Roles: session.AllRoles, TimeNs: 8,
		Revoked: true})
	if err != nil {
		t.Fatal(err)
	}
	do(t, s, 8, &cmdSetConfig{Key: nodeKey(1 << 56), Value: string(node)})
	return s
}

func readRecord(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeRecord(t *testing.T, path string, b []byte) {
	t.Helper()
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err == nil {
		_, err = z.Write(b)
	}
	if err == nil {
		err = z.Close()
	}
	if err == nil {
		err = os.WriteFile(path, out.Bytes(), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// applyRecord applies log entries, each with its length in front.
func applyRecord(t *testing.T, s *State, entries []byte) {
	t.Helper()
	for len(entries) > 0 {
		n := binary.LittleEndian.Uint32(entries)
		if _, err := s.Apply(entries[4 : 4+n]); err != nil {
			t.Fatal(err)
		}
		entries = entries[4+n:]
	}
}

func TestEarlierVersions(t *testing.T) {
	if v := os.Getenv("PSTORAGE_RECORD"); v != "" {
		record(t, filepath.Join("testdata", v))
	}
	dirs, err := filepath.Glob("testdata/v*")
	if err != nil || len(dirs) == 0 {
		t.Fatal("nothing is recorded: ", err)
	}
	for _, dir := range dirs {
		snaps, err := filepath.Glob(filepath.Join(dir, "snapshot*.gz"))
		if err != nil || len(snaps) == 0 {
			t.Fatal(dir, err)
		}
		for _, path := range snaps {
			s, err := Restore(bytes.NewReader(readRecord(t, path)))
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			defer s.Close()
			checkState(t, s)
			if f, err := s.lookupPath("/dir/link"); err != nil || f.target != "../small" ||
				s.clusterName != "rich" || len(s.orphans) != 1 || s.server(4).Failed != "EIO" ||
				s.table.Len() == 0 {
				t.Errorf("%s: %+v, %v", path, s, err)
			}
			applyRecord(t, s, readRecord(t, filepath.Join(dir, "entries.gz")))
			checkState(t, s)
			after, err := Restore(bytes.NewReader(readRecord(t, filepath.Join(dir, "after.gz"))))
			if err != nil {
				t.Fatalf("%s: %v", dir, err)
			}
			defer after.Close()
			if !bytes.Equal(sortless(dump(t, s)), sortless(dump(t, after))) {
				t.Errorf("%s: the same log entries make another state of it", path)
			}
		}
	}
}

// TestRecordIsComplete says that what this version's files have in them is all that it writes: each
// command with all its fields, each kind of block, and keys.
func TestRecordIsComplete(t *testing.T) {
	dirs, err := filepath.Glob("testdata/v*")
	if err != nil || len(dirs) == 0 {
		t.Fatal("nothing is recorded: ", err)
	}
	dir := slices.MaxFunc(dirs, func(a, b string) int {
		return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	})
	advise := "; record this version's files anew, PSTORAGE_RECORD=" + filepath.Base(dir)
	seen := map[uint8]bool{}
	for b := readRecord(t, filepath.Join(dir, "entries.gz")); len(b) > 0; {
		n := binary.LittleEndian.Uint32(b)
		now, commands, err := decodeEntry(b[4 : 4+n])
		if err != nil || len(commands) != 1 {
			t.Fatal(len(commands), err)
		}
		seen[commands[0].op()] = true
		if !bytes.Equal(encodeEntry(now, commands[0]), b[4:4+n]) {
			t.Errorf("%T has fields that aren't recorded%s", commands[0], advise)
		}
		b = b[4+n:]
	}
	for op := range 256 {
		if newCommand(uint8(op)) != nil && !seen[uint8(op)] {
			t.Errorf("command %d isn't recorded%s", op, advise)
		}
	}
	snap := readRecord(t, filepath.Join(dir, "snapshot.gz"))
	blocks, types := &blockReader{r: bytes.NewReader(snap)}, map[uint8]bool{}
	for !types[blockEnd] {
		b, err := blocks.next()
		if err != nil {
			t.Fatal(err)
		}
		types[b.typ] = true
	}
	for _, typ := range []uint8{blockHead, blockFiles, blockCS, blockConfig, blockEvents, blockDedupe,
		blockPages, blockLeaseHead, blockLeases} {
		if !types[typ] {
			t.Errorf("no block of type %d is recorded%s", typ, advise)
		}
	}
	s, err := Restore(bytes.NewReader(snap))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !bytes.Equal(dump(t, s), snap) {
		t.Errorf("this version writes another snapshot of what it reads%s", advise)
	}
	keys, err := keysOf(s, nil)
	if err != nil || keys.keys == nil || len(keys.nodes) == 0 {
		t.Errorf("recorded keys: %+v, %v", keys, err)
	}
}

// record writes the files of this version.
func record(t *testing.T, dir string) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := recordedState(t)
	defer s.Close()
	writeRecord(t, filepath.Join(dir, "snapshot.gz"), dump(t, s))
	var entries []byte
	for _, c := range recordedCommands() {
		e := encodeEntry(7, c)
		entries = append(binary.LittleEndian.AppendUint32(entries, uint32(len(e))), e...)
	}
	writeRecord(t, filepath.Join(dir, "entries.gz"), entries)
	applyRecord(t, s, entries)
	writeRecord(t, filepath.Join(dir, "after.gz"), dump(t, s))
}
