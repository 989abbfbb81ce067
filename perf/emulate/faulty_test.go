package emulate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func testFaulty(t *testing.T, o FaultyOptions) *Faulty {
	t.Helper()
	if err := FaultyAvailable(); err != nil {
		t.Skip(err)
	}
	f, err := testRig(t, t.TempDir()).AddFaulty("disk", o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func openDirect(t *testing.T, path string) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// aligned returns n bytes of memory for direct I/O.
func aligned(t *testing.T, n int) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(b) })
	return b
}

// TestFaultyRecord: what was written in parallel is on the disk, and the record replays to the
// same contents. A record without one of its writes doesn't.
func TestFaultyRecord(t *testing.T) {
	const size, writers, each = 8 << 20, 8, 60
	f := testFaulty(t, FaultyOptions{Size: size, Record: true})
	dev := openDirect(t, f.Device())
	want := make([]byte, size)
	var all sync.WaitGroup
	for w := range writers {
		buf := aligned(t, 8192)
		all.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			for i := range each {
				at := int64(w)*(size/writers) + int64(rng.IntN(size/writers/4096-1))*4096
				for j := 0; j < len(buf); j += 8 {
					binary.LittleEndian.PutUint64(buf[j:], rng.Uint64())
				}
				if _, err := dev.WriteAt(buf, at); err != nil {
					t.Error(err)
				}
				copy(want[at:], buf)
				if i%10 == 9 {
					if err := dev.Sync(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	got := aligned(t, size)
	if _, err := dev.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the disk hasn't got what was written")
	}
	n, err := f.LogSize()
	if err != nil || n < writers*each*8192 {
		t.Errorf("the record has %d bytes, %v", n, err)
	}
	dev.Close()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	log, err := ReadWriteLog(f.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if n := len(log.Flushes()); n < each/10 || n > len(log.Entries)/2 {
		t.Errorf("%d flushes in %d entries", n, len(log.Entries))
	}
	replay := func(without int) []byte {
		image, err := os.Create(filepath.Join(t.TempDir(), "image"))
		if err != nil {
			t.Fatal(err)
		}
		defer image.Close()
		if err := image.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for i := range log.Entries {
			var keep func(int64) bool
			if i == without {
				keep = func(int64) bool { return false }
			}
			if err := log.Apply(image, i, keep); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(image.Name())
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if !bytes.Equal(replay(-1), want) {
		t.Error("the record replays to something else")
	}
	last := len(log.Entries) - 1
	for log.Entries[last].Length == 0 {
		last--
	}
	if bytes.Equal(replay(last), want) {
		t.Error("a record without its last write replays to the same")
	}
}

// TestFaultyInject: chosen sectors fail, others don't; flushes fail; then all is well again.
func TestFaultyInject(t *testing.T) {
	f := testFaulty(t, FaultyOptions{Size: 4 << 20, Sector: 4096})
	dev := openDirect(t, f.Device())
	buf := aligned(t, 4096)
	read := func(at int64) error { _, err := dev.ReadAt(buf, at); return err }
	write := func(at int64) error { _, err := dev.WriteAt(buf, at); return err }
	check := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: error %v, want %v", what, err, want)
		}
	}
	inject := func(faults ...Fault) {
		t.Helper()
		if err := f.Inject(faults...); err != nil {
			t.Fatal(err)
		}
	}
	check("write", write(8192), nil)
	inject(Fault{Op: "read", Sector: 16})
	check("read of the bad sector", read(8192), syscall.EIO)
	check("read of a good one", read(4096), nil)
	check("write of the bad sector", write(8192), nil)
	check("read of what was just written", read(8192), nil)
	inject(Fault{Op: "write", Sector: -1, Errno: syscall.ENOSPC}, Fault{Op: "flush", Once: true})
	check("write", write(4096), syscall.ENOSPC)
	check("read", read(8192), nil)
	check("flush", dev.Sync(), syscall.EIO)
	inject()
	check("write", write(4096), nil)
	check("flush", dev.Sync(), nil)
	if _, err := dev.ReadAt(aligned(t, 512), 512); err == nil {
		t.Error("a disk with sectors of 4096 bytes takes a read of 512")
	}
}
