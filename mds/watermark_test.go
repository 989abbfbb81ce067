package mds

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

func TestWatermark(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, walDir), 0o700); err != nil {
		t.Fatal(err)
	}
	mark := filepath.Join(dir, markFile)
	open := func() (*store, error) { return openStore(dir, newRaftLog(testLog())) }
	reopen := func(want uint64) *store {
		t.Helper()
		s, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if s.wal.index() != want {
			t.Fatalf("watermark %d, want %d", s.wal.index(), want)
		}
		return s
	}
	s := reopen(0)
	var logs []*raft.Log
	for i := range uint64(10) {
		logs = append(logs, &raft.Log{Index: i + 1, Term: 1, Data: []byte("x")})
	}
	if err := s.wal.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	s.close()
	s = reopen(10)
	// Entries removed on purpose: from the end, and from the beginning.
	for _, r := range [][2]uint64{{9, 10}, {1, 3}} {
		if err := s.wal.DeleteRange(r[0], r[1]); err != nil {
			t.Fatal(err)
		}
	}
	s.close()
	s = reopen(8)
	if err := s.wal.StoreLog(&raft.Log{Index: 9, Term: 2}); err != nil {
		t.Fatal(err)
	}
	s.close()
	good, err := os.ReadFile(mark)
	if err != nil {
		t.Fatal(err)
	}
	higher := guardedLog{mark: append([]byte(nil), good...)}
	higher.set(99)
	for name, b := range map[string][]byte{
		"lost":    nil,
		"damaged": append([]byte{good[0]}, append([]byte{good[1] ^ 1}, good[2:]...)...),
		"higher":  higher.mark,
	} {
		if err := os.WriteFile(mark, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := open(); err == nil {
			s.close()
			t.Errorf("%s: opened", name)
		}
	}
	// Behind, as after a power failure.
	g := guardedLog{mark: append([]byte(nil), good...)}
	g.set(4)
	if err := os.WriteFile(mark, g.mark, 0o600); err != nil {
		t.Fatal(err)
	}
	reopen(9).close()
}
