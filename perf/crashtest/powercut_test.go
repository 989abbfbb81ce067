package crashtest

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/perf"
	"pstorage/perf/emulate"
)

// TestPowerCut records everything that a chunk server's file system (with its store, its journal
// and ext4's own tables) writes to its disk while 4K writes are acknowledged, then cuts the power
// at every flush of the record (without PSTORAGE_LONG: at some): the disk is rebuilt as it was
// at that flush, with an arbitrary part of what was written since, and the server is started on
// it. Whatever was acknowledged before the next flush must be there, and nothing but what was
// being written may have changed.
//
// The time of an acknowledgement is the length of the record then. A write that was acknowledged
// before the record had flush n+1 must have been made durable by flush n or before.
func TestPowerCut(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprintf("sectors of %d", sector), func(t *testing.T) { powerCut(t, sector) })
	}
}

func powerCut(t *testing.T, sector int) {
	home := t.TempDir() // first: it is removed when the mounts in it are gone
	rig := openRig(t, emulate.FaultyAvailable)
	seed := seed(t)
	disk, err := rig.AddFaulty("disk", emulate.FaultyOptions{Size: 256 << 20, Sector: sector,
		Record: true})
	must(t, err)
	volume := filepath.Join(home, "volume")
	must(t, os.Mkdir(volume, 0o700))
	must(t, disk.Mount(volume))
	s := newSystem(t, home, perf.ServerDisk{Dir: filepath.Join(home, "cs"),
		Journal: filepath.Join(volume, "journal"), LogSize: 4 << 20, Capacity: 128 << 20})
	must(t, s.servers.StopCS())
	move(t, filepath.Join(home, "cs/store"), filepath.Join(volume, "store"))
	s.start()
	s.connect("file")
	size := func() int64 {
		n, err := disk.LogSize()
		must(t, err)
		return n
	}
	l := newLoad(s, 2048, size)
	l.layout()
	from := size()
	must(t, l.run(seed, 1500*time.Millisecond))
	to := size()
	if l.acked.Load() < int64(l.blocks)+100 {
		t.Fatalf("only %d writes were acknowledged", l.acked.Load())
	}
	must(t, s.servers.KillCS())
	must(t, disk.Close())
	log, err := emulate.ReadWriteLog(disk.LogPath())
	must(t, err)
	defer log.Close()
	c := &cutter{s: s, l: l, log: log, record: disk.LogPath(),
		rng: generator(seed, 99), volume: volume, sector: int64(sector),
		identity: filepath.Join(home, "cs/identity")}
	c.stamp = stampLine.Find(read(t, c.identity))
	c.choose(from, to)
	t.Logf("%d writes acknowledged, %d entries of %d bytes in the record, %d flushes, %d cuts",
		l.acked.Load(), len(log.Entries), to, c.flushes, len(c.cuts))
	began := time.Now()
	c.run()
	t.Logf("%v per cut; recoveries that replayed the journal: %d",
		(time.Since(began) / time.Duration(len(c.cuts))).Round(time.Millisecond),
		s.logSays("chunk server opened"))
}

// cutter goes through the record of one run.
type cutter struct {
	s      *system
	l      *load
	log    *emulate.WriteLog
	record string // its file
	rng    *rand.Rand
	volume string
	// The server's identity lies elsewhere, as its starts must be counted for the metadata server.
	identity string
	stamp    []byte // the line in it that names the last checkpoint, as the run had it
	sector   int64
	flushes  int   // of the run
	cuts     []int // entries: flushes after which the power is cut
}

// choose chooses the flushes to cut at: those of the record between two places.
func (c *cutter) choose(from, to int64) {
	t := c.s.t
	for _, i := range c.log.Flushes() {
		if at := c.log.Entries[i].At; at >= from && at < to {
			c.cuts = append(c.cuts, i)
		}
	}
	c.flushes = len(c.cuts)
	if c.flushes < 20 {
		t.Fatalf("the run has only %d flushes", c.flushes)
	}
	if !long() {
		keep := map[int]bool{}
		for len(keep) < 5 {
			keep[c.rng.IntN(c.flushes-1)] = true
		}
		var some []int
		for i, cut := range c.cuts {
			if keep[i] {
				some = append(some, cut)
			}
		}
		c.cuts = some
	}
}

// horizon is the time of the cut after flush i by the load's clock: everything acknowledged
// before the record had the next flush.
func (c *cutter) horizon(i int) int64 {
	for i++; i < len(c.log.Entries); i++ {
		if c.log.Entries[i].Flush {
			return c.log.Entries[i].At
		}
	}
	return math.MaxInt64
}

// run goes through the cuts. An image has everything that was flushed; each cut works on a copy.
func (c *cutter) run() {
	t := c.s.t
	dir := memoryDir(t)
	t.Cleanup(func() {
		if t.Failed() {
			c.keep(dir)
		}
	})
	image, err := os.Create(filepath.Join(dir, "image"))
	must(t, err)
	defer image.Close()
	must(t, image.Truncate(256<<20))
	done := 0
	for n, cut := range c.cuts {
		for ; done <= cut; done++ {
			must(t, c.log.Apply(image, done, nil))
		}
		trial := filepath.Join(dir, "trial")
		run(t, "cp", "--sparse=always", image.Name(), trial)
		how := c.unflushed(trial, cut)
		what := fmt.Sprintf("cut %d of %d, after entry %d of the record, %s", n+1, len(c.cuts), cut,
			how)
		c.try(trial, func() {
			h := c.horizon(cut)
			c.l.mustHold(what, h, h)
			if n == 0 { // a disk that forgets flushed writes must be noticed
				if len(c.l.verify(math.MaxInt64, math.MaxInt64)) == 0 {
					t.Error("canary: nothing is missing of what was written after the cut")
				}
			}
		})
	}
}

// keep copies what tells why a cut failed to where it stays: the record, from which the image of
// each cut can be made again, the image as the server left it, its identity, and the logs.
func (c *cutter) keep(dir string) {
	t := c.s.t
	to, err := os.MkdirTemp("/var/tmp", "pstorage-cut-failed-")
	if err != nil {
		t.Log(err)
		return
	}
	for _, from := range []string{c.record, filepath.Join(dir, "trial"), c.identity,
		filepath.Join(c.s.home, "log")} {
		out, err := exec.Command("cp", "-r", "--sparse=always", from, to).CombinedOutput()
		if err != nil {
			t.Logf("keep %s: %v: %s", from, err, out)
		}
	}
	t.Log("record, image and logs are kept in ", to)
}

// unflushed applies an arbitrary part of the writes between the flush at cut and the next.
func (c *cutter) unflushed(path string, cut int) string {
	t := c.s.t
	trial, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer trial.Close()
	mode := c.rng.IntN(4)
	n := 0
	for i := cut + 1; i < len(c.log.Entries) && !c.log.Entries[i].Flush; i++ {
		n++
		switch {
		case mode == 1, mode == 2 && c.rng.IntN(2) == 0:
			must(t, c.log.Apply(trial, i, nil))
		case mode == 3:
			must(t, c.log.Apply(trial, i, c.torn(c.log.Entries[i].Offset)))
		}
	}
	return fmt.Sprintf("%s of the %d unflushed writes", [...]string{"none", "all", "some",
		"some sectors"}[mode], n)
}

// torn says of each 512 bytes of a write whether they reach the disk: by sectors. The first block
// is never torn: ext4 can't be mounted with a torn superblock.
func (c *cutter) torn(offset int64) func(part int64) bool {
	last, keep := int64(-1), false
	return func(part int64) bool {
		unit := (offset + part*512) / c.sector
		if offset+part*512 < 4096 {
			unit = 0
		}
		if unit != last {
			last, keep = unit, c.rng.IntN(2) == 0
		}
		return keep
	}
}

// try starts the server on an image, and ends it by kill -9.
func (c *cutter) try(image string, check func()) {
	t := c.s.t
	device := run(t, "losetup", "--find", "--show", image)
	defer run(t, "losetup", "--detach", device)
	if err := unix.Mount(device, c.volume, "ext4", unix.MS_NOATIME, ""); err != nil {
		t.Fatalf("mount the image: %v", err)
	}
	defer func() {
		// The kernel lets go of a killed process's ring, and of its files, a little later.
		eventually(t, 10*time.Second, "unmount the image", func() bool {
			return unix.Unmount(c.volume, 0) == nil
		})
	}()
	c.sameStamp()
	c.s.start()
	defer func() { must(t, c.s.servers.KillCS()) }()
	check()
}

var stampLine = regexp.MustCompile(`"Stamp": \d+`)

// sameStamp has the identity name the checkpoint again that it named in the run. Each image goes
// its own way from its cut on: if the one before had a checkpoint at its start, that of the next
// may be older, and would be refused as what it is.
func (c *cutter) sameStamp() {
	t := c.s.t
	b := stampLine.ReplaceAll(read(t, c.identity), c.stamp)
	body := b[:bytes.LastIndexByte(bytes.TrimRight(b, "\n"), '\n')+1]
	b = fmt.Appendf(body, "crc32c %08x\n", dataplane.CRC(body))
	must(t, os.WriteFile(c.identity, b, 0o600))
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

// memoryDir returns a directory in memory, or on disk if there is none.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "pstorage-crashtest-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
