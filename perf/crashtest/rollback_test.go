package crashtest

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pstorage/perf"
)

// TestRollback puts old copies back while a chunk server is stopped: of blocks in its store, as a
// disk does that lost writes; of the store, of the journal, of the whole directory. What the
// cluster returns must be right, and it must be said that something is wrong.
func TestRollback(t *testing.T) {
	for _, c := range []struct {
		name string
		undo func(t *testing.T, s *system, l *load, old, dir string)
		says func(s *system) string // what was said; empty: nothing
	}{
		{"blocks of the store", lostWrites, mismatches},
		{"the store", putBack("store"), refusedAndTold},
		{"the journal", putBack("cache"), refusedAndTold},
		{"everything", putBack("store", "cache", "identity"), refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			home, rng := t.TempDir(), seed(t)
			var disks []perf.ServerDisk
			for i := range 3 {
				disks = append(disks, perf.ServerDisk{Dir: filepath.Join(home, fmt.Sprint("cs", i)),
					LogSize: 4 << 20, Capacity: 128 << 20})
			}
			s := newSystem(t, home, disks...)
			s.connect("file")
			began := time.Now()
			l := newLoad(s, 2048, func() int64 { return int64(time.Since(began)) })
			l.seen = make([]int, l.blocks)
			l.layout()
			must(t, l.run(rng, 300*time.Millisecond))
			dir, old := disks[0].Dir, filepath.Join(home, "old")
			must(t, s.servers.StopCS())
			run(t, "cp", "-a", "--sparse=always", dir, old)
			s.start()
			must(t, l.run(rng+1, 1500*time.Millisecond)) // the journal goes round several times
			must(t, s.servers.StopCS())
			c.undo(t, s, l, old, dir)
			s.start()
			for range 4 { // any member may be asked
				l.mustHold(c.name, math.MaxInt64, math.MaxInt64)
			}
			s.cli("scrub", "start")
			var said string
			eventually(t, 30*time.Second, "it is said that something is wrong", func() bool {
				said = c.says(s)
				return said != ""
			})
			t.Log(said)
			must(t, l.run(rng+2, 300*time.Millisecond))
			l.mustHold("after more writes", math.MaxInt64, math.MaxInt64)
			if n := s.logSays("panic"); n > 0 {
				t.Errorf("%d panics", n)
			}
		})
	}
}

// putBack replaces files of the directory by their old copies.
func putBack(names ...string) func(*testing.T, *system, *load, string, string) {
	return func(t *testing.T, _ *system, _ *load, old, dir string) {
		for _, name := range names {
			run(t, "cp", "-a", "--sparse=always", filepath.Join(old, name), filepath.Join(dir, name))
		}
	}
}

// lostWrites puts the old contents of blocks of data back.
func lostWrites(t *testing.T, _ *system, l *load, old, dir string) {
	was, err := os.Open(filepath.Join(old, "store"))
	must(t, err)
	defer was.Close()
	is, err := os.OpenFile(filepath.Join(dir, "store"), os.O_RDWR, 0)
	must(t, err)
	defer is.Close()
	info, err := is.Stat()
	must(t, err)
	a, b := make([]byte, blockSize), make([]byte, blockSize)
	lost := 0
	for at := int64(0); at < info.Size() && lost < 100; at += blockSize {
		if _, err := is.ReadAt(b, at); err == io.EOF {
			break
		}
		block := int(binary.LittleEndian.Uint64(b) >> 32)
		if block <= 0 || block >= l.blocks {
			continue
		}
		_, err := was.ReadAt(a, at)
		must(t, err)
		gen, err := identify(b, block)
		earlier, errOld := identify(a, block)
		if err == nil && errOld == nil && earlier > 0 && earlier < gen {
			_, err = is.WriteAt(a, at)
			must(t, err)
			lost++
		}
	}
	if lost < 20 {
		t.Fatalf("only %d blocks of the store have changed", lost)
	}
}

func mismatches(s *system) string {
	bad, repaired := s.events("crc-mismatch"), s.events("block-repaired")
	if bad < 10 || repaired < 10 {
		return ""
	}
	return fmt.Sprintf("%d mismatches, %d repaired", bad, repaired)
}

// refused: the server doesn't serve the directory.
func refused(s *system) string {
	if s.logSays("refuses to serve") == 0 || s.active() != 2 {
		return ""
	}
	return "refused"
}

// refusedAndTold: the metadata servers have been told why.
func refusedAndTold(s *system) string {
	if refused(s) == "" || s.events("cs-refused") == 0 {
		return ""
	}
	return "refused, with an event"
}
