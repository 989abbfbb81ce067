package mds

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"pstorage/dataplane"
)

// testSegment is the size of segments in tests: small, so that there are many.
const testSegment = 64 << 10

func entries(first uint64, n int, size int) (logs []*raft.Log) {
	for i := range uint64(n) {
		logs = append(logs, &raft.Log{Index: first + i, Term: 3, Type: raft.LogCommand,
			Data: bytes.Repeat([]byte{byte(first + i)}, size), AppendedAt: time.Unix(1, 2)})
	}
	return logs
}

// mustOpen opens a log and fails the test on an error.
func mustOpen(t *testing.T, dir string) *raftLog {
	t.Helper()
	l, err := openRaftLog(dir, testSegment, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// wantRange checks the ends of a log and every entry in it.
func wantRange(t *testing.T, l *raftLog, model map[uint64]*raft.Log) {
	t.Helper()
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	for i, want := range model {
		var got raft.Log
		if i < first || i > last {
			t.Fatalf("the log is [%d, %d], without %d", first, last, i)
		}
		if err := l.GetLog(i, &got); err != nil {
			t.Fatal(err)
		}
		if got.Index != i || got.Term != want.Term || got.Type != want.Type ||
			!bytes.Equal(got.Data, want.Data) || !bytes.Equal(got.Extensions, want.Extensions) ||
			!got.AppendedAt.Equal(want.AppendedAt) {
			t.Fatalf("entry %d: %+v, want %+v", i, got, want)
		}
	}
	if len(model) == 0 && (first != 0 || last != 0) {
		t.Fatalf("the log is [%d, %d], want an empty one", first, last)
	}
	var l0 raft.Log
	if err := l.GetLog(last+1, &l0); err != raft.ErrLogNotFound {
		t.Fatalf("entry behind the end: %v", err)
	}
}

// TestRaftLogModel compares the log with a map under random operations and restarts.
func TestRaftLogModel(t *testing.T) {
	rng := testRand(t)
	dir := t.TempDir()
	l := mustOpen(t, dir)
	defer func() { l.close() }()
	model := map[uint64]*raft.Log{}
	first, last := uint64(1), uint64(0)
	for range 400 {
		switch k := rng.IntN(20); {
		case k < 12:
			logs := entries(last+1, 1+rng.IntN(5), rng.IntN(1<<rng.IntN(17)))
			logs[0].Extensions = []byte("ext")[:rng.IntN(4)]
			if len(logs[0].Extensions) == 0 {
				logs[0].Extensions = nil
			}
			logs[0].Type = raft.LogNoop
			if err := l.StoreLogs(logs); err != nil {
				t.Fatal(err)
			}
			for _, e := range logs {
				model[e.Index] = e
				last = e.Index
			}
		case k < 14 && last > 0: // compaction; the log may keep more
			to := first + rng.Uint64N(last-first+1)
			from, _ := l.FirstIndex()
			if err := l.DeleteRange(from, to); err != nil {
				t.Fatal(err)
			}
			for i := first; i <= to; i++ {
				delete(model, i)
			}
			if first = to + 1; to == last {
				first, last = 1, 0
			}
		case k < 16 && last > 0: // a new leader disagrees
			from := first + rng.Uint64N(last-first+1)
			if err := l.DeleteRange(from, last); err != nil {
				t.Fatal(err)
			}
			for i := from; i <= last; i++ {
				delete(model, i)
			}
			if last = from - 1; first > last { // compact what is left, to keep the model simple
				at, _ := l.FirstIndex()
				if err := l.DeleteRange(at, last); err != nil {
					t.Fatal(err)
				}
				first, last = 1, 0
			}
		case k == 16 && last > 0: // a snapshot was installed
			last += 100
			model = map[uint64]*raft.Log{}
			e := entries(last+1, 1, 10)
			if err := l.StoreLogs(e); err != nil {
				t.Fatal(err)
			}
			last++
			first, model[last] = last, e[0]
		default:
			if err := l.close(); err != nil {
				t.Fatal(err)
			}
			l = mustOpen(t, dir)
		}
		wantRange(t, l, model)
	}
}

// copyDir copies the files of a directory.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestRaftLogCrash damages the last batch in many ways, as a crash before its flush may: what was
// durable before must be there, and the log goes on.
func TestRaftLogCrash(t *testing.T) {
	rng := testRand(t)
	dir := t.TempDir()
	l := mustOpen(t, dir)
	model := map[uint64]*raft.Log{}
	for i := range 5 {
		logs := entries(uint64(1+2*i), 2, 700)
		if err := l.StoreLogs(logs); err != nil {
			t.Fatal(err)
		}
		model[logs[0].Index], model[logs[1].Index] = logs[0], logs[1]
	}
	durable := int(l.segs[0].end())
	before, err := os.ReadFile(filepath.Join(dir, markFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.StoreLogs(entries(11, 8, 3000)); err != nil {
		t.Fatal(err)
	}
	end := int(l.segs[0].end())
	l.close()
	for range 100 {
		crashed := copyDir(t, dir)
		path := filepath.Join(crashed, segmentName(1))
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := durable; at < end; at += 512 { // some sectors of the batch weren't written
			if rng.IntN(3) == 0 {
				clear(b[at:min(at+512, end)])
			}
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		// The mark is raised after the flush.
		if err := os.WriteFile(filepath.Join(crashed, markFile), before, 0o600); err != nil {
			t.Fatal(err)
		}
		l := mustOpen(t, crashed)
		last, _ := l.LastIndex()
		if last < 10 || last > 18 {
			t.Fatalf("ends at %d", last)
		}
		wantRange(t, l, model)
		if err := l.StoreLogs(entries(last+1, 1, 10)); err != nil {
			t.Fatal(err)
		}
		l.close()
		l = mustOpen(t, crashed)
		if again, _ := l.LastIndex(); again != last+1 {
			t.Fatalf("ends at %d, want %d", again, last+1)
		}
		l.close()
	}
}

// TestRaftLogAnyDirectory: the name of the directory is no pattern.
func TestRaftLogAnyDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mds[1]*")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, dir)
	if err := l.StoreLogs(entries(1, 3, 10)); err != nil {
		t.Fatal(err)
	}
	l.close()
	l = mustOpen(t, dir)
	defer l.close()
	if last, _ := l.LastIndex(); last != 3 {
		t.Errorf("the log ends at %d after a restart, not at 3", last)
	}
}

// TestRaftLogLargeTornBatch: a follower that is far behind gets entries by the megabyte, and a
// power cut tears such a batch near its beginning. The next start doesn't take hours for it.
func TestRaftLogLargeTornBatch(t *testing.T) {
	const commands, batch = 512, 160
	path := segmentName(1)
	b := make([]byte, segHeader)
	copy(b, segMagic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], segVersion)
	le.PutUint64(b[12:], 1)
	le.PutUint32(b[20:], dataplane.CRC(b[:20]))
	for i := range uint64(batch) {
		var list []command
		for k := range uint64(commands) {
			list = append(list, &cmdReconfigure{Chunk: dataplane.NewChunkID(1, i*commands+k), Epoch: 7,
				Members: []dataplane.CSID{1, 2, 3}})
		}
		b = appendRecord(b, &raft.Log{Index: 1 + i, Term: 3, Data: encodeEntry(1e18, list...)}, 1)
	}
	b[segHeader+recHeader] ^= 1
	end := len(b)
	b = append(b, make([]byte, segmentSize-end)...)
	began := time.Now()
	s, torn, err := scanSegment(b, path)
	took := time.Since(began)
	if err != nil || !torn || len(s.ends) != 0 {
		t.Fatalf("%+v, %v, %v", s, torn, err)
	}
	t.Logf("%d KiB of a torn batch: %v", end>>10, took)
	if took > 5*time.Second {
		t.Errorf("a look at %d KiB took %v", end>>10, took)
	}
}

// TestRaftLogDamage says that damage of what was durable is an error, wherever it is.
func TestRaftLogDamage(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	for i := range 40 {
		if err := l.StoreLogs(entries(uint64(1+i), 1, 4<<10)); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.segs) < 3 {
		t.Fatalf("%d segments", len(l.segs))
	}
	paths := []string{l.segs[0].path, l.segs[1].path, l.segs[len(l.segs)-1].path}
	end := int(l.segs[len(l.segs)-1].end())
	l.close()
	for i, tc := range []struct {
		path string
		at   int
	}{
		{paths[0], 3}, {paths[0], segHeader + 2}, {paths[0], 20 << 10}, {paths[1], 50 << 10},
		{paths[2], 3}, {paths[2], segHeader + 100}, {paths[2], end - 5}, // the very last entry
	} {
		bad := copyDir(t, dir)
		damage(t, filepath.Join(bad, filepath.Base(tc.path)), tc.at)
		l, err := openRaftLog(bad, testSegment, func(error) {})
		if dataplane.KindOf(err) != dataplane.BadCRC {
			t.Errorf("case %d: %v", i, err)
		}
		if err == nil {
			l.close()
		}
	}
	for i := range 2 {
		bad := copyDir(t, dir)
		if err := os.Remove(filepath.Join(bad, filepath.Base(paths[i+1]))); err != nil {
			t.Fatal(err)
		}
		if l, err := openRaftLog(bad, testSegment, func(error) {}); err == nil {
			l.close()
			t.Errorf("segment %d is missing, unseen", i+1)
		}
	}
	// Nor is one without a header taken for one that was just being made, if it has entries: after a
	// power failure the watermark, too, may not know of them.
	bad := copyDir(t, dir)
	newest := filepath.Join(bad, filepath.Base(paths[2]))
	b, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[:segHeader])
	m := mark{make([]byte, markSize)}
	m.set(1)
	if err := errors.Join(os.WriteFile(newest, b, 0o600),
		os.WriteFile(filepath.Join(bad, markFile), m.b, 0o600)); err != nil {
		t.Fatal(err)
	}
	lost, err := openRaftLog(bad, testSegment, func(error) {})
	if dataplane.KindOf(err) != dataplane.BadCRC {
		t.Error("a header of zeros: ", err)
	}
	if err == nil {
		lost.close()
	}
	if _, err := os.Stat(newest); err != nil {
		t.Error("a header of zeros: ", err)
	}
	// A segment that was just being made is no damage.
	half := filepath.Join(dir, segmentName(41))
	if err := os.WriteFile(half, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, dir)
	if err := l.StoreLogs(entries(41, 1, 5)); err != nil {
		t.Fatal(err)
	}
	l.close()
}

func TestMark(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	if err := l.StoreLogs(entries(1, 10, 1)); err != nil {
		t.Fatal(err)
	}
	if err := l.DeleteRange(9, 10); err != nil || l.mark.index() != 8 {
		t.Fatalf("%v, mark %d", err, l.mark.index())
	}
	l.close()
	path := filepath.Join(dir, markFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := func(index uint64) []byte {
		m := mark{bytes.Clone(good)}
		m.set(index)
		return m.b
	}
	bad := bytes.Clone(good)
	bad[9]++
	for name, tc := range map[string]struct {
		b  []byte
		ok bool
	}{
		"good": {good, true}, "behind": {at(2), true}, "ahead": {at(9), false},
		"lost": {nil, false}, "damaged": {bad, false},
	} {
		if err := os.WriteFile(path, tc.b, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := openRaftLog(dir, testSegment, func(error) {})
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			l.close()
		}
	}
}

// TestRaftLogFails says that after a failed write nothing is written any more.
func TestRaftLogFails(t *testing.T) {
	var told error
	dir := t.TempDir()
	l, err := openRaftLog(dir, testSegment, func(err error) { told = err })
	if err != nil {
		t.Fatal(err)
	}
	if err := l.StoreLogs(entries(1, 2, 10)); err != nil {
		t.Fatal(err)
	}
	l.segs[0].f.Close()
	for range 2 {
		if err := l.StoreLogs(entries(3, 1, 10)); dataplane.KindOf(err) != dataplane.IOError {
			t.Errorf("wrote to a closed file: %v", err)
		}
	}
	if told == nil || l.DeleteRange(1, 2) == nil {
		t.Error("nobody was told")
	}
	l.close()
	l = mustOpen(t, dir)
	wantRange(t, l, map[uint64]*raft.Log{2: entries(2, 1, 10)[0]})
	l.close()
}

// TestRaftLogDamageWhileOpen: an entry that is damaged while the server runs is told when it is
// read.
func TestRaftLogDamageWhileOpen(t *testing.T) {
	var told error
	l, err := openRaftLog(t.TempDir(), testSegment, func(err error) { told = err })
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if err := l.StoreLogs(entries(1, 3, 100)); err != nil {
		t.Fatal(err)
	}
	damage(t, l.segs[0].path, int(l.segs[0].start(1))+recHeader+10)
	var got raft.Log
	if err := errors.Join(l.GetLog(1, &got), l.GetLog(3, &got)); err != nil || told != nil {
		t.Fatalf("what isn't damaged: %v, %v", err, told)
	}
	if err := l.GetLog(2, &got); dataplane.KindOf(err) != dataplane.BadCRC ||
		dataplane.KindOf(told) != dataplane.IOError { // which has it started again
		t.Errorf("the damaged entry: %v; told: %v", err, told)
	}
	told = nil
	l.segs[0].f.Close()
	if err := l.GetLog(1, &got); dataplane.KindOf(err) != dataplane.IOError || told == nil {
		t.Errorf("one that can't be read: %v; told: %v", err, told)
	}
}

func TestStable(t *testing.T) {
	dir := t.TempDir()
	s, err := openStable(dir)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := s.GetUint64([]byte("a")); v != 0 || err != nil {
		t.Errorf("%d, %v", v, err)
	}
	for i := range uint64(3) {
		if err := s.SetUint64([]byte("a"), i); err != nil {
			t.Fatal(err)
		}
		if err := s.Set([]byte("b"), fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = openStable(dir); err != nil {
		t.Fatal(err)
	}
	a, _ := s.GetUint64([]byte("a"))
	b, _ := s.Get([]byte("b"))
	if a != 2 || string(b) != "2" {
		t.Errorf("%d, %q", a, b)
	}
	path := filepath.Join(dir, stableFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		damage(t, path, i)
		if _, err := openStable(dir); err == nil {
			t.Fatalf("damage in byte %d goes unseen", i)
		}
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzSegment reads arbitrary segments: no panic, and records that are intact.
func FuzzSegment(f *testing.F) {
	b := usedSegment(f)
	f.Add(b)
	f.Add(b[:len(b)-3])
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _, err := scanSegment(b, segmentName(1))
		if err != nil {
			return
		}
		for i := range s.ends {
			n, index, _ := parseRecord(b[s.start(i):s.ends[i]])
			if n != int(s.ends[i]-s.start(i)) || index != s.first+uint64(i) {
				t.Fatalf("record %d: %d bytes, index %d", i, n, index)
			}
		}
	})
}

// usedSegment returns the used bytes of a segment with some records.
func usedSegment(f *testing.F) []byte {
	dir := f.TempDir()
	l, err := openRaftLog(dir, testSegment, func(error) {})
	if err != nil {
		f.Fatal(err)
	}
	defer l.close()
	if err := l.StoreLogs(entries(1, 3, 20)); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(l.segs[0].path)
	if err != nil {
		f.Fatal(err)
	}
	return b[:l.segs[0].end()]
}

// TestMarkTorn: a process may be killed, and the kernel write the page back, between any two fields
// of a watermark that is being raised or lowered.
func TestMarkTorn(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, dir)
	if err := l.StoreLogs(entries(1, 10, 1)); err != nil {
		t.Fatal(err)
	}
	l.close()
	path := filepath.Join(dir, markFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range [][2]uint64{{0, 10}, {2, 9}, {9, 10}, {10, 3}} {
		m, after := mark{make([]byte, markSize)}, mark{bytes.Clone(good)}
		m.set(step[0])
		after.set(step[1])
		for slot := markSize - 24; slot >= 0; slot -= 24 { // in the order of the stores
			for _, field := range [][2]int{{0, 8}, {8, 16}, {16, 20}, {20, 24}} {
				copy(m.b[slot+field[0]:slot+field[1]], after.b[slot+field[0]:])
				if err := os.WriteFile(path, m.b, 0o600); err != nil {
					t.Fatal(err)
				}
				l, err := openRaftLog(dir, testSegment, func(error) {})
				if err != nil {
					t.Fatalf("from %d to %d, up to byte %d: %v", step[0], step[1], slot+field[1], err)
				}
				l.close()
			}
		}
	}
}

// FuzzMark reads arbitrary watermarks: no panic, and one that passes says what it says after it was
// raised, too.
func FuzzMark(f *testing.F) {
	m := mark{make([]byte, markSize)}
	f.Add(bytes.Clone(m.b), uint64(0))
	m.set(7)
	f.Add(bytes.Clone(m.b), uint64(7))
	m.b[8]++
	f.Add(bytes.Clone(m.b), uint64(8))
	f.Fuzz(func(t *testing.T, b []byte, last uint64) {
		m := mark{make([]byte, markSize)}
		copy(m.b, b)
		if m.check(last) != nil {
			return
		}
		if index := m.index(); index > last {
			t.Fatalf("index %d of a log that ends at %d", index, last)
		}
		m.set(last)
		if err := m.check(last); err != nil || m.index() != last {
			t.Fatalf("raised to %d: %d, %v", last, m.index(), err)
		}
	})
}
