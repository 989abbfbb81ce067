package chunk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"pstorage/uring"
	"pstorage/uring/simloop"
)

// A server that found no space to write starts anew when there is more where it was missing, or
// after a while; not for the room that there was anyway: the next start would only end the same
// way.
func TestStartsAnewOnlyForMoreSpace(t *testing.T) {
	full := fmt.Errorf("write: %w", syscall.ENOSPC)
	for _, journal := range []bool{false, true} {
		const store, log = "/cs/store", "/ssd/journal"
		free := map[string]int64{store: 1 << 40, log: 1 << 30}
		s := &server{o: Options{Dir: "/cs"}, id: &Identity{LogPath: log},
			freeAt: func(path string) int64 { return free[path] }}
		place, other, err := store, log, full
		if journal {
			place, other, err = log, store, journalError{full}
		}
		if s.spaceIsBack() {
			t.Fatal("space is back that was never missing")
		}
		s.diskFailed(err)
		if s.short.path != place || !errors.Is(s.failure(), syscall.ENOSPC) {
			t.Fatalf("journal %v: no space at %q", journal, s.short.path)
		}
		if s.spaceIsBack() {
			t.Errorf("%s: starts anew for the room that it had", place)
		}
		free[other] += 1 << 40
		free[place] += spaceMore - 1
		if s.spaceIsBack() {
			t.Errorf("%s: starts anew for room elsewhere", place)
		}
		free[place]++
		if !s.spaceIsBack() {
			t.Errorf("%s: doesn't start anew with more room", place)
		}
		if s.full = true; s.spaceIsBack() {
			t.Errorf("%s: starts anew though what is there can't be filled", place)
		}
		s.full, free[place] = false, 0
		s.short.since = s.short.since.Add(-spaceRetry)
		if !s.spaceIsBack() {
			t.Errorf("%s: isn't tried again after %v", place, spaceRetry)
		}
	}
	s := &server{freeAt: freeAt}
	if s.diskFailed(syscall.EIO); s.spaceIsBack() {
		t.Error("starts anew after an error of its disk")
	}
}

// Failures of the journal can be told from those of the store.
func TestFailedPlace(t *testing.T) {
	for _, journal := range []bool{false, true} {
		w := newWorld(t, 90, 1)
		w.md.add(chunkA, 1, 1)
		nd := w.nodes[0]
		fault := func(op *uring.DiskOp) (f simloop.Fault) {
			if op.Kind != uring.DiskRead {
				f.Err = syscall.ENOSPC
			}
			return f
		}
		if journal {
			nd.cache.Fault = fault
		} else {
			nd.store.Fault = fault
		}
		l := startLoad(w, chunkA, 4, 65536)
		w.must(func() bool { return nd.failed != nil }, 60*sec, "failure")
		l.stop = true
		var j journalError
		if !errors.Is(nd.failed, syscall.ENOSPC) || errors.As(nd.failed, &j) != journal {
			t.Errorf("journal %v: %v", journal, nd.failed)
		}
	}
}

func TestFreeAt(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if freeAt(path) == 0 {
		t.Error("no space at a file")
	}
	for _, path := range []string{dir, "/dev/null", filepath.Join(dir, "nothing")} {
		if n := freeAt(path); n != 0 {
			t.Errorf("%s: %d bytes", path, n)
		}
	}
}
