package crashtest

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane/cluster"
	"pstorage/perf"
)

// TestColdStart kills all chunk servers with their supervisors, as when a site loses its power,
// and starts them one after the other: the first must not go on without both others, as then two
// would need copies.
func TestColdStart(t *testing.T) {
	home := t.TempDir()
	var disks []perf.ServerDisk
	for i := range 3 {
		disks = append(disks, perf.ServerDisk{Dir: filepath.Join(home, fmt.Sprint("cs", i)),
			LogSize: 8 << 20, Capacity: 256 << 20})
	}
	s := newSystem(t, home, disks...)
	s.connect("file")
	began := time.Now()
	l := newLoad(s, 1024, func() int64 { return int64(time.Since(began)) })
	l.seen = make([]int, l.blocks)
	l.layout()
	// A list with some of the servers has the supervisor start those.
	list := s.conf().ListPath(cluster.CS)
	all, err := os.ReadFile(list)
	must(t, err)
	head, lines := "", []string(nil)
	for line := range strings.Lines(string(all)) {
		if strings.HasPrefix(line, "#") {
			head += line
		} else {
			lines = append(lines, line)
		}
	}
	if len(lines) != 3 {
		t.Fatalf("%s: %q", list, all)
	}
	for _, c := range []struct {
		away, apart time.Duration
		copies      uint64 // at most, of the only chunk
	}{
		{0, 500 * time.Millisecond, 0}, {5 * time.Second, 3 * time.Second, 1},
		{12 * time.Second, 2 * time.Second, 1}, // longer than the metadata servers wait
	} {
		if c.away > 10*time.Second && !long() {
			continue
		}
		done := make(chan error, 1)
		before := l.acked.Load()
		go func() { done <- l.run(seed(t), time.Minute) }()
		eventually(t, 20*time.Second, "writes are acknowledged", func() bool {
			return l.acked.Load() > before+100
		})
		must(t, s.servers.KillCS())
		time.Sleep(c.away) // the outage
		for i := range lines {
			text := head + strings.Join(lines[:i+1], "")
			must(t, os.WriteFile(list, []byte(text), 0o644))
			if i == 0 {
				s.start()
			}
			time.Sleep(c.apart) // the next server takes longer to start
		}
		eventually(t, 30*time.Second, "all chunks have all members", func() bool {
			doc := s.stat()
			return doc.Health == "healthy"
		})
		l.stop.Store(true)
		must(t, <-done)
		l.mustHold("after the start", math.MaxInt64, math.MaxInt64)
		copies := uint64(0)
		eventually(t, 10*time.Second, "all servers have counted", func() bool {
			copies = 0
			for _, cs := range s.stat().CS {
				if cs.Stats == nil {
					return false
				}
				copies += cs.Stats.Copies
			}
			return true
		})
		t.Logf("away for %v, started %v apart: %d copies", c.away, c.apart, copies)
		// When two of three are back writes go on, and the third may need what it missed.
		if copies > c.copies {
			t.Errorf("%d copies, want at most %d", copies, c.copies)
		}
	}
}
