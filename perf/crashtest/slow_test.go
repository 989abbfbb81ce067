package crashtest

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane/control"
	"pstorage/perf"
	"pstorage/perf/emulate"
)

// crawl is a disk that all but hangs: a write of 4 KiB takes 8 s.
var crawl = emulate.Limits{WriteIOPS: 1, WriteBytes: 512}

// process returns the process of the chunk server whose data are in dir.
func (s *system) process(dir string) int {
	s.t.Helper()
	pids, err := s.servers.CSPIDs()
	must(s.t, err)
	for _, pid := range pids {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && slices.Contains(strings.Split(string(args), "\x00"), dir) {
			return pid
		}
	}
	s.t.Fatalf("no process serves %s", dir)
	return 0
}

// TestDiskCrawls: the disk of one of four chunk servers takes next to no writes any more, though
// the server lives and sends its heartbeats. It is said to stall and is excluded, writes go on
// without it, and it comes back when its disk is as before.
func TestDiskCrawls(t *testing.T) {
	home := t.TempDir() // first: it is removed when the mounts in it are gone
	rig := openRig(t, emulate.Available)
	disk, err := rig.Add("slow", 640<<20)
	must(t, err)
	volume := filepath.Join(home, "volume")
	must(t, os.Mkdir(volume, 0o700))
	must(t, disk.Mount(volume))
	disks := make([]perf.ServerDisk, 4)
	for i := range disks {
		disks[i] = perf.ServerDisk{Dir: filepath.Join(home, fmt.Sprint("cs", i)), LogSize: 16 << 20,
			Capacity: 192 << 20}
	}
	disks[0].Dir = filepath.Join(volume, "cs")
	s := newSystem(t, home, disks...)
	s.cli("set-attr", "/", "failure-domain=disk", "replicas=4:2") // each has each chunk
	s.connect("file")
	began := time.Now()
	l := newLoad(s, 512, func() int64 { return int64(time.Since(began)) })
	l.seen = make([]int, l.blocks)
	l.layout()
	pids, err := s.servers.CSPIDs()
	must(t, err)
	must(t, rig.Join(s.process(disks[0].Dir)))

	done := make(chan error, 1)
	go func() { done <- l.run(seed(t), time.Minute) }()
	goOn := func(within time.Duration, when string) {
		t.Helper()
		before := l.acked.Load()
		eventually(t, within, "writes are acknowledged "+when, func() bool {
			return l.acked.Load() > before+200
		})
	}
	goOn(20*time.Second, "by all four")
	unlimited := func() { must(t, disk.Limit(emulate.Limits{})) }
	must(t, disk.Limit(crawl))
	t.Cleanup(unlimited) // a process that waits for its disk can't be stopped
	slowed := time.Now()
	excluded := func() bool {
		cs := s.first()
		return cs.Status == control.CSIll && strings.Contains(cs.Reason, "excluded from writes")
	}
	eventually(t, 20*time.Second, "it is excluded, and that is said", func() bool {
		return excluded() && s.events("cs-stalled") > 0
	})
	t.Logf("excluded after %v: %s", time.Since(slowed), s.first().Reason)
	goOn(10*time.Second, "without the one whose disk crawls")
	t.Logf("writes go on after %v", time.Since(slowed))

	unlimited()
	eventually(t, 30*time.Second, "it comes back and has what it missed", func() bool {
		return s.events("cs-back") > 0 && s.active() == len(disks) && s.stat().Health == "healthy"
	})
	t.Logf("all is well %v after the disk was slowed down", time.Since(slowed))
	goOn(20*time.Second, "by all four again")
	l.stop.Store(true)
	must(t, <-done)
	s.steady(pids)
	for range disks { // any member may be asked
		l.mustHold("with all four", math.MaxInt64, math.MaxInt64)
	}
}
