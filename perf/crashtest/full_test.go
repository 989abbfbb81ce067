package crashtest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/dataplane/control"
	"pstorage/perf"
	"pstorage/perf/emulate"
)

// fullSystem is three chunk servers with a file of which a part has been written; the store and
// the journal of the first are on a small file system of its own.
func fullSystem(t *testing.T) (s *system, volume string, l *load) {
	t.Helper()
	home := t.TempDir() // first: it is removed when the mounts in it are gone
	rig := openRig(t, emulate.Available)
	disk, err := rig.Add("small", 640<<20)
	must(t, err)
	volume = filepath.Join(home, "volume")
	must(t, os.Mkdir(volume, 0o700))
	must(t, disk.Mount(volume))
	disks := make([]perf.ServerDisk, 3)
	for i := range disks {
		disks[i] = perf.ServerDisk{Dir: filepath.Join(home, fmt.Sprint("cs", i)), LogSize: 4 << 20,
			Capacity: 192 << 20}
	}
	disks[0].Dir = filepath.Join(volume, "cs")
	s = newSystem(t, home, disks...)
	s.connect("file")
	began := time.Now()
	l = newLoad(s, 2048, func() int64 { return int64(time.Since(began)) })
	l.seen = make([]int, l.blocks)
	l.layout()
	return s, volume, l
}

// eat leaves a file system with so many bytes that are free, by a file that it makes or extends.
func eat(t *testing.T, path string, leave int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	must(t, err)
	defer f.Close()
	for {
		var fs unix.Statfs_t
		must(t, unix.Fstatfs(int(f.Fd()), &fs))
		more := int64(fs.Bavail)*fs.Bsize - leave
		if more < fs.Bsize {
			return
		}
		info, err := f.Stat()
		must(t, err)
		// A large step fails when what is left is for the file system's own tables.
		for more >= fs.Bsize {
			if err = syscall.Fallocate(int(f.Fd()), 0, info.Size(), more); err == nil {
				break
			}
			more = more / 2 &^ (fs.Bsize - 1)
		}
		if more < fs.Bsize {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			return
		}
	}
}

// steady fails the test when a process of the chunk servers isn't one of before.
func (s *system) steady(before []int) {
	s.t.Helper()
	now, err := s.servers.CSPIDs()
	must(s.t, err)
	if fmt.Sprint(now) != fmt.Sprint(before) {
		s.t.Errorf("processes %v became %v", before, now)
	}
}

// TestFileSystemFills has another file eat the space of a store's file system: first the reserve,
// then everything, then it goes away.
func TestFileSystemFills(t *testing.T) {
	s, volume, l := fullSystem(t)
	other := filepath.Join(volume, "other")
	pids, err := s.servers.CSPIDs()
	must(t, err)
	eat(t, other, 150<<20) // the chunk that is there can be filled, but nothing else
	eventually(t, 20*time.Second, "it is said that space is low", func() bool {
		return s.events("space-low") == 1 && s.first().Capacity <= 64<<20
	})
	must(t, l.run(seed(t), 300*time.Millisecond)) // what is there goes on
	if cs := s.first(); cs.Status != control.CSActive || cs.Chunks != 1 {
		t.Errorf("low on space, the server is %s with %d chunks", cs.Status, cs.Chunks)
	}
	// A new chunk goes to others.
	buf := make([]byte, blockSize)
	fill(buf, 1, 1)
	_, err = s.file.WriteAt(buf, 64<<20)
	must(t, err)
	if cs := s.first(); cs.Chunks != 1 {
		t.Errorf("a new chunk was placed on a server without space: it has %d", cs.Chunks)
	}
	must(t, os.Remove(other))
	eventually(t, 20*time.Second, "the space that is back is noticed", func() bool {
		return s.events("space-enough") == 1 && s.first().Capacity == 192<<20
	})
	var last string
	defer func() { t.Log(last) }()
	eventually(t, 20*time.Second, "new chunks get their third copies there", func() bool {
		doc := s.stat()
		last = fmt.Sprint(doc.Health, doc.Reasons, doc.Recovery, s.first().Chunks)
		return s.first().Chunks > 1 && doc.Health == "healthy"
	})

	eat(t, other, 0)
	l.blocks = 8192 // what was never written needs space
	l.written = append(l.written, make([][]generation, l.blocks-len(l.written))...)
	l.seen = append(l.seen, make([]int, l.blocks-len(l.seen))...)
	must(t, l.run(seed(t), 3*time.Second))
	eventually(t, 30*time.Second, "the server says why it stopped", func() bool {
		cs := s.first()
		return cs.Status == control.CSFailed && strings.Contains(cs.Failed, "no space left")
	})
	t.Logf("failed: %s", s.first().Failed)
	must(t, l.run(seed(t), 300*time.Millisecond))
	l.mustHold("without the full server", math.MaxInt64, math.MaxInt64)
	s.steady(pids)
	must(t, os.Remove(other))
	eventually(t, 60*time.Second, "all is well when there is space, by itself", func() bool {
		return s.active() == 3 && s.stat().Health == "healthy"
	})
	for range 4 { // any member may be asked
		l.mustHold("with space again", math.MaxInt64, math.MaxInt64)
	}
	if n := s.logSays("panic"); n > 0 {
		t.Errorf("%d panics", n)
	}
}

// TestFileSystemReadOnly makes the file system of a store read-only while it is used, as the
// kernel does after an error.
func TestFileSystemReadOnly(t *testing.T) {
	s, volume, l := fullSystem(t)
	pids, err := s.servers.CSPIDs()
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- l.run(seed(t), time.Minute) }()
	before := l.acked.Load()
	eventually(t, 20*time.Second, "writes are acknowledged", func() bool {
		return l.acked.Load() > before+100
	})
	// As echo u > /proc/sysrq-trigger does, for one file system: files open for writing don't
	// prevent it.
	run(t, "mount", "-o", "remount,abort", volume)
	eventually(t, 30*time.Second, "the disk is reported failed", func() bool {
		return s.first().Status == control.CSFailed
	})
	before = l.acked.Load()
	eventually(t, 20*time.Second, "writes go on", func() bool { return l.acked.Load() > before+500 })
	l.stop.Store(true)
	must(t, <-done)
	l.mustHold("with a read-only file system", math.MaxInt64, math.MaxInt64)
	t.Logf("failed: %s", s.first().Failed)
	s.steady(pids)
}

// TestMakeWithoutSpace: a chunk server isn't made where there is no space for its journal or a
// chunk, it is said why, and nothing of it is left.
func TestMakeWithoutSpace(t *testing.T) {
	s, volume, _ := fullSystem(t)
	other := filepath.Join(volume, "other")
	eat(t, other, 20<<20)
	for _, c := range []struct {
		name, says string
		args       []string
	}{
		{"journal", "no space left", []string{"-r", filepath.Join(s.home, "new"), "-j",
			filepath.Join(volume, "journal"), "-s", "64M", "--capacity", "128M"}},
		{"store", "not even one chunk", []string{"-r", filepath.Join(volume, "new"), "-j",
			filepath.Join(s.home, "journal"), "-s", "64M"}},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		cmd := exec.CommandContext(ctx, filepath.Join(bin, "pstorage"),
			append([]string{"make-cs", "-a", "127.0.0.1"}, c.args...)...)
		cmd.Env = append(os.Environ(), "PSTORAGE_ETC="+s.servers.Etc())
		out, err := cmd.CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(string(out), c.says) {
			t.Errorf("%s: %v: %s", c.name, err, out)
		}
		t.Logf("%s: %s", c.name, out)
		for _, dir := range []string{s.home, volume} {
			for _, left := range []string{"journal", "new/store", "new/cache", "new/identity"} {
				if _, err := os.Lstat(filepath.Join(dir, left)); err == nil {
					t.Errorf("%s: %s is left in %s", c.name, left, dir)
				}
			}
		}
	}
	if s.active() != 3 {
		t.Errorf("%d servers are active", s.active())
	}
}
