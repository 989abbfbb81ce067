package ssdcache

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"pstorage/uring"
)

// extent is a piece of a file, as FIEMAP tells.
type extent struct {
	logical, physical, length uint64
	flags                     uint32
}

const (
	fiemapIoctl     = 0xc020660b
	fiemapLast      = 0x1
	fiemapUnwritten = 0x800
	fiemapHeader    = 32
	fiemapExtent    = 56
)

// extents lists where a file lies, without what the file system may merge or split at will.
func extents(t *testing.T, path string) (list []extent) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const most = 512
	b := make([]byte, fiemapHeader+most*fiemapExtent)
	le := binary.LittleEndian
	le.PutUint64(b[8:], 1<<62) // length
	le.PutUint32(b[16:], 1)    // FIEMAP_FLAG_SYNC
	le.PutUint32(b[24:], most)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemapIoctl, uintptr(unsafe.Pointer(&b[0])))
	if errno == syscall.EOPNOTSUPP || errno == syscall.ENOTTY {
		t.Skipf("the file system of %s doesn't tell where files lie: %v", path, error(errno))
	} else if errno != 0 {
		t.Fatal(errno)
	}
	n := int(le.Uint32(b[20:]))
	for i := range n {
		e := b[fiemapHeader+i*fiemapExtent:]
		list = append(list, extent{le.Uint64(e), le.Uint64(e[8:]), le.Uint64(e[16:]),
			le.Uint32(e[40:])})
	}
	if n == 0 || list[n-1].flags&fiemapLast == 0 {
		t.Fatalf("%d extents, not all of them", n)
	}
	return list
}

// TestSpaceIsWritten: the space of a new log is written, not only reserved, and going round in it
// twice doesn't change where it lies: appends change nothing of the file system's own.
func TestSpaceIsWritten(t *testing.T) {
	const size = 16 << 20
	path := filepath.Join(t.TempDir(), "log")
	formatFile(t, path, size)
	before := extents(t, path)
	at := uint64(0)
	for _, e := range before {
		if e.logical != at || e.flags&fiemapUnwritten != 0 {
			t.Errorf("extent %+v, expected a written one at %d", e, at)
		}
		at = e.logical + e.length
	}
	onLoop(t, func(l *uring.Loop, stop func()) {
		openFile(t, l, path, Options{}, nil, func(log *Log) {
			end := (firstBlock + log.segs*uint64(log.segBlocks)) * blockSize
			if at != end || size-end > uint64(log.sb.segSize) {
				t.Errorf("%d bytes lie on the disk, the log uses %d of %d", at, end, size)
			}
			startLoad(log, l.Pool().Get(blockSize), 32, 2*size/blockSize, func() {
				if log.head < 2*log.segs || log.Err() != nil {
					t.Errorf("segment %d of %d, %v", log.head, log.segs, log.Err())
				}
				stop()
			})
		})
	})
	if after := extents(t, path); !slices.Equal(before, after) {
		t.Errorf("was %+v, is %+v", before, after)
	}
}

// depthDisk notes how many batches are on their way at once.
type depthDisk struct {
	uring.Disk
	now, most int
}

func (d *depthDisk) Submit(op *uring.DiskOp) {
	if op.Kind == uring.DiskWriteSync {
		done := op.Done
		d.now++
		d.most = max(d.most, d.now)
		op.Done = func(op *uring.DiskOp) {
			d.now--
			op.Done = done
			done(op)
		}
	}
	d.Disk.Submit(op)
}

// TestBatchesInFlight: while one batch is on its way the next is sent, as many as are allowed, and
// what comes meanwhile shares a batch.
func TestBatchesInFlight(t *testing.T) {
	for _, most := range []int{0, 1, 2, 8} {
		r := newRig(t, 1, 8, 4*MinSegment)
		d := &depthDisk{Disk: r.disk}
		r.dev, r.opt = d, Options{BatchesInFlight: most}
		r.mustOpen()
		d.most = 0
		for range 40 { // some in each of many turns: the disk takes longer than a turn
			r.env.Do(func() {
				for range 5 {
					r.append(change{Data, 0, uint32(len(r.history)) % testBlocks, 1})
				}
			})
			r.sim.Run(func() bool { return false }, r.sim.Now()+10_000)
		}
		if !r.sim.Run(func() bool { return r.acked == uint64(len(r.history)) }, r.sim.Now()+60e9) {
			t.Fatal("not all were acknowledged")
		}
		if most == 0 {
			most = 2
		}
		s := r.log.Stats()
		if d.most != most || s.Batches >= 200 {
			t.Errorf("%d batches in flight, at most %d are allowed; %d batches for 200 appends", d.most,
				most, s.Batches)
		}
		r.dispose()
	}
}
