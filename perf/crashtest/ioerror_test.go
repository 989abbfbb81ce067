package crashtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane/control"
	"pstorage/perf"
	"pstorage/perf/emulate"
)

// faultySystem is three chunk servers; the first has everything but its journal (with journal:
// everything) on a file system on a disk whose operations can be made to fail.
func faultySystem(t *testing.T, journal bool) (*system, *emulate.Faulty, *load) {
	t.Helper()
	home := t.TempDir() // first: it is removed when the mounts in it are gone
	rig := openRig(t, emulate.FaultyAvailable)
	disk, err := rig.AddFaulty("disk", emulate.FaultyOptions{Size: 640 << 20})
	must(t, err)
	volume := filepath.Join(home, "volume")
	must(t, os.Mkdir(volume, 0o700))
	must(t, disk.Mount(volume))
	disks := make([]perf.ServerDisk, 3)
	for i := range disks {
		disks[i] = perf.ServerDisk{Dir: filepath.Join(home, fmt.Sprint("cs", i)), LogSize: 4 << 20,
			Capacity: 128 << 20}
	}
	disks[0].Dir = filepath.Join(volume, "cs")
	if !journal {
		disks[0].Journal = filepath.Join(home, "journal0")
	}
	s := newSystem(t, home, disks...)
	s.connect("file")
	began := time.Now()
	l := newLoad(s, 2048, func() int64 { return int64(time.Since(began)) })
	l.seen = make([]int, l.blocks)
	l.layout()
	return s, disk, l
}

// first returns what is known of the chunk server with the faulty disk.
func (s *system) first() control.CSDoc {
	s.t.Helper()
	for _, cs := range s.stat().CS {
		if strings.Contains(cs.Path, "/volume/") {
			return cs
		}
	}
	s.t.Fatal("the chunk server isn't listed")
	return control.CSDoc{}
}

// sectors finds where on the device the newest generations of blocks are, and returns up to n of
// these places, in sectors of 512 bytes, with their blocks.
func (l *load) sectors(device string, n int) map[int64]int {
	t := l.s.t
	t.Helper()
	file, err := os.Open(device)
	must(t, err)
	defer file.Close()
	found := map[int64]int{}
	buf := make([]byte, 1<<20)
	for at := int64(0); len(found) < n; {
		k, err := io.ReadFull(file, buf)
		for i := 0; i+blockSize <= k && len(found) < n; i += blockSize {
			block := int(binary.LittleEndian.Uint64(buf[i:]) >> 32)
			if block <= 0 || block >= l.blocks { // block 0 has tags like many other numbers
				continue
			}
			gen, err := identify(buf[i:i+blockSize], block)
			if err == nil && gen == len(l.written[block]) {
				found[(at+int64(i))/512] = block
			}
		}
		at += int64(k)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		must(t, err)
	}
	return found
}

// TestReadErrors: sectors that can't be read are served from other members and repaired, with an
// event, whether a client or the scrubber finds them.
func TestReadErrors(t *testing.T) {
	s, disk, l := faultySystem(t, false)
	must(t, l.run(seed(t), 500*time.Millisecond))
	bad := l.sectors(disk.Device(), 40)
	if len(bad) < 20 {
		t.Fatalf("only %d blocks have been written back", len(bad))
	}
	must(t, s.servers.StopCS()) // for less than a lease, so that nothing is copied
	var faults []emulate.Fault
	for sector := range bad {
		faults = append(faults, emulate.Fault{Op: "read", Sector: sector})
	}
	must(t, disk.Inject(faults...))
	s.start()
	for range 6 { // any member may be asked
		l.mustHold("with bad sectors", math.MaxInt64, math.MaxInt64)
	}
	s.cli("scrub", "start")
	eventually(t, 60*time.Second, "the bad blocks are repaired", func() bool {
		return s.events("block-repaired") >= len(bad)/4 // others are read from the journal
	})
	t.Logf("%d bad sectors: %d events of bad blocks, %d repairs", len(bad), s.events("crc-mismatch"),
		s.events("block-repaired"))
	if cs := s.first(); cs.Status != control.CSActive {
		t.Errorf("the chunk server is %s: %s", cs.Status, cs.Failed)
	}
	l.mustHold("after the repair", math.MaxInt64, math.MaxInt64)
}

// TestWriteErrors: a disk that fails a write or a flush is not used any more and reported failed;
// the process stays, isn't started again and again, and the file goes on with the other members,
// without an error.
func TestWriteErrors(t *testing.T) {
	for _, c := range []struct {
		name    string
		journal bool // on the faulty disk
		fault   emulate.Fault
	}{
		{"write of the store", false, emulate.Fault{Op: "write", Sector: -1}},
		{"write of the journal", true, emulate.Fault{Op: "write", Sector: -1}},
		{"one flush", true, emulate.Fault{Op: "flush", Once: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, disk, l := faultySystem(t, c.journal)
			pids, err := s.servers.CSPIDs()
			must(t, err)
			done := make(chan error, 1)
			go func() { done <- l.run(seed(t), time.Minute) }()
			before := l.acked.Load()
			eventually(t, 20*time.Second, "writes are acknowledged", func() bool {
				return l.acked.Load() > before+100
			})
			must(t, disk.Inject(c.fault))
			eventually(t, 30*time.Second, "the disk is reported failed", func() bool {
				return s.first().Status == control.CSFailed
			})
			before = l.acked.Load()
			eventually(t, 20*time.Second, "writes go on", func() bool {
				return l.acked.Load() > before+500
			})
			l.stop.Store(true)
			must(t, <-done)
			must(t, disk.Inject()) // a disk that seems well again isn't believed
			l.mustHold("with a failed disk", math.MaxInt64, math.MaxInt64)
			cs := s.first()
			t.Logf("%s: %q; events: %d", cs.Status, cs.Failed, s.events("disk-failed"))
			if cs.Status != control.CSFailed || cs.Failed == "" || s.events("disk-failed") == 0 {
				t.Errorf("the chunk server is %s (%q)", cs.Status, cs.Failed)
			}
			now, err := s.servers.CSPIDs()
			must(t, err)
			if fmt.Sprint(now) != fmt.Sprint(pids) {
				t.Errorf("processes %v became %v", pids, now)
			}
			for _, pid := range now {
				if !alive(pid) {
					t.Errorf("process %d isn't alive", pid)
				}
			}
		})
	}
}
