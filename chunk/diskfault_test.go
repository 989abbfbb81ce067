package chunk

import (
	"bytes"
	"syscall"
	"testing"

	"pstorage/dataplane"
	"pstorage/ssdcache"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// faultPlan fails the nth operation of a node's disks that changes anything, and with sticky all
// after it: a disk that is full, or was made read-only, stays that.
type faultPlan struct {
	nth, seen int
	err       error
	sticky    bool
	store     bool // the nth was one of the store
}

func (p *faultPlan) fault(op *uring.DiskOp, store bool) (f simloop.Fault) {
	if op.Kind == uring.DiskRead {
		return f
	}
	p.seen++
	if p.seen == p.nth {
		p.store = store
	}
	if p.seen == p.nth || p.sticky && p.seen > p.nth {
		f.Err = p.err
	}
	return f
}

// faultyWrites is how many writes faultyWorkload does: enough to go round a small log.
const faultyWrites = 48

// faultyWrite returns where write i goes, from 1, and what it writes: one block of a few, or a
// range that is as large as a part of the log.
func faultyWrite(i uint64) (off uint32, data []byte) {
	if i%4 != 0 {
		return uint32(i%5) * 8192, pattern(i, 4096)
	}
	return uint32(i%3+1) << 20, pattern(i, dataplane.PartSize)
}

// faultyWorkload writes to a server that is alone, until that fails. By block it returns which
// write was acknowledged last, and which may be there as well: the one that wasn't.
func faultyWorkload(w *world, nd *node) (acked, maybe map[uint32]uint64) {
	acked, maybe = map[uint32]uint64{}, map[uint32]uint64{}
	for i := uint64(1); i <= faultyWrites; i++ {
		off, data := faultyWrite(i)
		done := false
		w.write(chunkA, off, data, &done)
		w.must(func() bool { return done || nd.failed != nil }, 30*sec, "write or failure")
		for b := 0; b < len(data); b += dataplane.BlockSize {
			if done {
				acked[off+uint32(b)] = i
			} else {
				maybe[off+uint32(b)] = i
			}
		}
		if !done {
			break
		}
	}
	return acked, maybe
}

// holds says whether got is what write i put into the block at off.
func holds(got []byte, off uint32, i uint64) bool {
	from, data := faultyWrite(i)
	return i != 0 && bytes.Equal(got, data[off-from:][:dataplane.BlockSize])
}

// TestEveryDiskFault fails each operation of a short life in turn, with each of the errors of disks
// and full file systems: the server stops using its disk and says so, and after a new start all
// that was acknowledged is there.
func TestEveryDiskFault(t *testing.T) {
	for _, c := range []struct {
		err    error
		sticky bool
	}{{syscall.EIO, false}, {syscall.ENOSPC, true}, {syscall.EROFS, true}} {
		t.Run(c.err.Error(), func(t *testing.T) {
			failed, without, store := 0, 0, 0
			for nth := 1; ; nth++ {
				p := &faultPlan{nth: nth, err: c.err, sticky: c.sticky}
				died := runDiskFault(t, p, nth%2 == 0)
				if p.seen < nth {
					break // the life has no more operations
				}
				if p.store {
					store++
				}
				if died {
					failed++
				} else {
					without++
				}
			}
			t.Logf("%d operations failed the server, %d it did without; %d were of the store", failed,
				without, store)
			if failed < 50 || store < 3 {
				t.Errorf("too few operations")
			}
		})
	}
}

// runDiskFault is one life, a new start, maybe after a power cut, and a look at everything.
func runDiskFault(t *testing.T, p *faultPlan, cut bool) (died bool) {
	w := newWorldWith(t, uint64(p.nth), 1, ssdcache.MinSize, 1<<20)
	nd := w.nodes[0]
	defer func() { nd.kill() }()
	w.md.add(chunkA, 1, 1)
	nd.store.Fault = func(op *uring.DiskOp) simloop.Fault { return p.fault(op, true) }
	nd.cache.Fault = func(op *uring.DiskOp) simloop.Fault { return p.fault(op, false) }
	acked, maybe := faultyWorkload(w, nd)
	if nd.failed == nil {
		w.run(2 * sec) // write-back, checkpoints
	}
	died = nd.failed != nil
	if n := w.md.event("disk-failed"); died != (n == 1) {
		t.Errorf("operation %d: failed %v, %d events", p.nth, died, n)
	}
	nd.store.Fault, nd.cache.Fault = nil, nil
	nd.restart(cut)
	for off, i := range acked {
		got := w.read(chunkA, off, dataplane.BlockSize, 0)
		if !holds(got, off, i) && !holds(got, off, maybe[off]) {
			t.Errorf("operation %d: the block at %d isn't of write %d, nor of %d", p.nth, off, i,
				maybe[off])
		}
	}
	return died
}
