package crashtest

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pstorage/perf"
	"pstorage/perf/emulate"
)

// TestKill kills chunk servers with SIGKILL under 4K random writes, again and again, and verifies
// every block after each time: three servers with their supervisor, or one of them, which the
// supervisor starts again. In some rounds the client is gone as well. 100 rounds with
// PSTORAGE_LONG=1, 3 otherwise.
func TestKill(t *testing.T) {
	t.Run("files", func(t *testing.T) {
		home := t.TempDir()
		var disks []perf.ServerDisk
		for i := range 3 {
			disks = append(disks, perf.ServerDisk{Dir: filepath.Join(home, fmt.Sprint("cs", i)),
				LogSize: 8 << 20, Capacity: 256 << 20})
		}
		killLoop(t, home, disks)
	})
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprintf("sectors of %d", sector), func(t *testing.T) {
			home, disks := strictDisks(t, sector)
			killLoop(t, home, disks)
		})
	}
}

// strictDisks makes devices with direct I/O that take nothing that isn't aligned to a sector, for
// three servers: stores on file systems; journals on these, and one on a device of its own.
func strictDisks(t *testing.T, sector int) (home string, disks []perf.ServerDisk) {
	t.Helper()
	home = t.TempDir() // first: it is removed when the mounts in it are gone
	rig := openRig(t, emulate.Available)
	for i := range 3 {
		d, err := rig.AddSectors(fmt.Sprint("store", i), 1<<30, sector)
		must(t, err)
		dir := filepath.Join(home, fmt.Sprint("volume", i))
		must(t, os.Mkdir(dir, 0o700))
		must(t, d.Mount(dir))
		disks = append(disks, perf.ServerDisk{Dir: filepath.Join(dir, "cs"), LogSize: 8 << 20,
			Capacity: 256 << 20})
	}
	journal, err := rig.AddSectors("journal", 8<<20, sector)
	must(t, err)
	disks[1].Journal, disks[1].LogSize = journal.Device(), 0
	file, err := os.OpenFile(journal.Device(), os.O_RDWR|syscall.O_DIRECT, 0)
	must(t, err)
	defer file.Close()
	if n, err := file.ReadAt(make([]byte, 8192)[:256], 0); err == nil {
		t.Fatalf("the device isn't strict: it reads %d bytes", n)
	}
	return home, disks
}

func killLoop(t *testing.T, home string, disks []perf.ServerDisk) {
	rounds := 3
	if long() {
		rounds = 100
	}
	seed := seed(t)
	rng := generator(seed, 1)
	s := newSystem(t, home, disks...)
	s.connect("file")
	began := time.Now()
	l := newLoad(s, 1024, func() int64 { return int64(time.Since(began)) })
	l.seen = make([]int, l.blocks)
	l.layout()
	one, lost := 0, 0
	var slowest time.Duration
	for round := range rounds {
		before, opened := l.acked.Load(), s.logSays("chunk server opened")
		done := make(chan error, 1)
		go func() { done <- l.run(seed+uint64(round), time.Minute) }()
		enough := 100 + int64(rng.IntN(400))
		eventually(t, 20*time.Second, "writes are acknowledged", func() bool {
			return l.acked.Load()-before >= enough
		})
		pids, err := s.servers.CSPIDs()
		must(t, err)
		for _, pid := range pids {
			if !alive(pid) {
				t.Fatalf("round %d: chunk server %d was dead before it was killed", round, pid)
			}
		}
		if len(pids) != 3 {
			t.Fatalf("round %d: %d chunk servers run", round, len(pids))
		}
		var clientGone bool
		killed := time.Now()
		restarted := 3
		if all := rng.IntN(3) > 0 || round == 0; all {
			must(t, s.servers.KillCS())
			if clientGone = rng.IntN(4) == 0; clientGone {
				s.disconnect() // writes in flight may or may not have been done
				lost++
			}
			s.start()
		} else {
			must(t, syscall.Kill(pids[rng.IntN(3)], syscall.SIGKILL))
			restarted = 1
			one++
		}
		eventually(t, 20*time.Second, "the servers have opened their disks again", func() bool {
			return s.logSays("chunk server opened") >= opened+restarted
		})
		if clientGone {
			if err := <-done; err == nil {
				t.Fatalf("round %d: no write ended with an error when the client was closed", round)
			}
			s.reconnect()
		} else {
			again := l.acked.Load()
			eventually(t, 20*time.Second, "writes go on", func() bool { return l.acked.Load() > again+32 })
			slowest = max(slowest, time.Since(killed))
			l.stop.Store(true)
			must(t, <-done)
		}
		l.mustHold(fmt.Sprintf("round %d", round), math.MaxInt64, math.MaxInt64)
	}
	t.Logf("%d rounds, %d of one server, %d with the client; %d writes; slowest recovery with load %v",
		rounds, one, lost, l.acked.Load(), slowest.Round(time.Millisecond))
	if n := s.logSays("panic"); n > 0 {
		t.Errorf("%d panics", n)
	}
	if doc := s.stat(); doc.Chunks.Offline > 0 {
		t.Errorf("chunks are offline: %+v", doc.Chunks)
	}
}

// alive says whether a process runs, and isn't one that has ended and wasn't waited for.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(rest, "Z")
}
