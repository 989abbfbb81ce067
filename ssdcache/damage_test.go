package ssdcache

import (
	"errors"
	"strings"
	"testing"

	"pstorage/dataplane"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// batchPlace returns where the batch that holds a block's newest version begins.
func (r *rig) batchPlace(slot, block uint32) int64 {
	p, ok := r.log.Lookup(slot, block)
	if !ok {
		r.t.Fatal("block isn't in the log")
	}
	b := make([]byte, blockSize)
	for {
		p--
		if r.disk.ReadAt(b, int64(p)*blockSize); headerBlocks(b) > 0 {
			return int64(p) * blockSize
		}
	}
}

// TestDamage: bit rot in batches that were acknowledged is an error that names the place, or, if
// only data is hit, left to the readers' checksums; at the very end, after a power cut, it can't be
// told from a torn tail; after an orderly close it can.
func TestDamage(t *testing.T) {
	for _, c := range []struct {
		name  string
		batch uint32 // of 40
		off   int64  // of the flipped bit, from the batch's start
		clean bool
		want  string // of the error; "": opens
		lost  bool   // the batch is gone, as if it were torn
	}{
		{"header in the middle", 20, 50, false, "batch 21 is", false},
		{"entry in the middle", 20, headSize + 20, false, "damaged", false},
		{"first header", 0, 50, false, "damaged", false},
		{"data in the middle", 20, blockSize + 5, false, "", false},
		{"data in the middle, closed", 20, blockSize + 5, true, "", false},
		{"last header", 39, 50, false, "", true},
		{"last data", 39, blockSize + 5, false, "", true},
		{"last header, closed", 39, 50, true, "damaged", false},
		{"last data, closed", 39, blockSize + 5, true, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := openRig(t, 8, 12)
			r.log.o.DestageAt = 0.9
			for i := range uint32(40) { // a few segments
				r.do(change{Data, 0, i, 1}, change{Data, 1, i, 7})
			}
			at := r.batchPlace(0, c.batch)
			if c.clean {
				if err := r.wait(func(done func(error)) { r.log.Close(done) }); err != nil {
					t.Fatal(err)
				}
				r.kill()
			} else {
				r.powerCut()
			}
			r.disk.FlipBit(at+c.off, 3)
			err := r.open()
			if c.want != "" {
				var bad *CorruptError
				if !errors.As(err, &bad) || bad.Batch != uint64(c.batch)+1 || bad.Offset != at ||
					dataplane.KindOf(err) != dataplane.BadCRC {
					t.Fatalf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			_, in, err := r.readBack(0, c.batch)
			switch {
			case c.lost && (in || r.replay != 78):
				t.Errorf("torn tail: found %v, replayed up to %d", in, r.replay)
			case !c.lost && dataplane.KindOf(err) != dataplane.BadCRC:
				t.Errorf("damaged block read as %v", err)
			case !c.lost && r.replay != 80:
				t.Errorf("replayed up to %d", r.replay)
			}
			if tag, in, err := r.readBack(0, 19); tag != 39 || !in || err != nil {
				t.Errorf("its neighbour: %d %v %v", tag, in, err)
			}
		})
	}
}

// TestDamageGoesOn: damaged data of an old batch, which replay doesn't read, is written back with
// the checksum of what should be there, so that it is found in the store as it was in the log.
func TestDamageGoesOn(t *testing.T) {
	r := openRig(t, 12, 16)
	for i := range uint32(40) {
		r.do(change{Data, 0, i, 8})
	}
	at := r.batchPlace(0, 3)
	r.powerCut()
	r.disk.FlipBit(at+blockSize+5, 3)
	r.mustOpen()
	if _, in, err := r.readBack(0, 3); !in || dataplane.KindOf(err) != dataplane.BadCRC {
		t.Fatalf("read: in the log %v, %v", in, err)
	}
	r.sim.Run(func() bool { return r.log.tail == r.log.head }, r.sim.Now()+100e9)
	if bad := r.store.bad; bad == nil || !strings.Contains(bad.Error(), "torn block") {
		t.Fatalf("the store got: %v", bad)
	}
}

// TestWipedSegments: acknowledged batches are missed even if whole segments of them are gone.
func TestWipedSegments(t *testing.T) {
	for _, wiped := range []int64{1, 2, 4} {
		r := openRig(t, 9, 16)
		r.log.o.DestageAt = 0.9
		for i := range uint32(25) {
			r.do(change{Data, 0, i, 16})
		}
		r.powerCut()
		start := int64(firstBlock*blockSize + 1*MinSegment)
		r.disk.WriteAt(make([]byte, wiped*MinSegment), start)
		var bad *CorruptError
		if err := r.open(); !errors.As(err, &bad) {
			t.Errorf("%d segments wiped: %v", wiped, err)
		}
	}
}

// TestLyingDisk: a batch that the disk acknowledged and lost, or put somewhere else, is noticed.
func TestLyingDisk(t *testing.T) {
	for _, f := range []simloop.Fault{{Lost: true}, {Misplace: MinSegment},
		{Misplace: -8 * blockSize}} {
		r := openRig(t, 10, 12)
		for i := range uint32(10) {
			if i == 5 {
				r.disk.Fault = func(*uring.DiskOp) simloop.Fault { return f }
			}
			r.do(change{Data, 0, i, 1})
			r.disk.Fault = nil
		}
		r.powerCut()
		var bad *CorruptError
		if err := r.open(); !errors.As(err, &bad) {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

// TestOldSuperblock: losing the newer copy of the superblock never goes unnoticed: the log is the
// same, or it is not opened.
func TestOldSuperblock(t *testing.T) {
	same, refused := 0, 0
	for seed := range uint64(40) {
		r := newRig(t, seed, 8, MinSegment)
		r.opt.DestageAt = 0.1
		r.mustOpen()
		r.live(30 + r.rng.IntN(200))
		r.powerCut()
		var a, b super
		buf := make([]byte, 2*superSize)
		r.disk.ReadAt(buf, 0)
		if a.decode(buf) != nil || b.decode(buf[superSize:]) != nil {
			r.dispose()
			continue // torn by the power cut itself
		}
		off := int64(0)
		if b.gen > a.gen {
			off = superSize
		}
		r.disk.FlipBit(off+60, 0)
		if err := r.open(); err != nil {
			if !strings.Contains(err.Error(), "damaged") {
				t.Error(err)
			}
			refused++
		} else {
			r.check()
			same++
		}
		r.dispose()
	}
	if same == 0 || refused == 0 {
		t.Errorf("opened %d times, refused %d times: one of them isn't tested", same, refused)
	}
}
