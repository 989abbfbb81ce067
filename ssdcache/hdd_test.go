package ssdcache

import (
	"math/rand/v2"
	"testing"

	"pstorage/dataplane"
	"pstorage/uring"
)

// hdd is a store on a disk that does one thing at a time; unless set otherwise, 200 operations and
// 150 MB in a second.
type hdd struct {
	m       *ram
	op      int64   // ns per operation
	perByte float64 // ns
	free    int64   // when the disk has done what it was given
	ops     int
}

const (
	hddOp   = 5e6         // ns per operation
	hddByte = 1e9 / 150e6 // ns per byte
)

func newHDD(m *ram) *hdd { return &hdd{m: m, op: hddOp, perByte: hddByte} }

func (h *hdd) do(ops int, bytes int, then func()) {
	h.ops += ops
	h.free = max(h.free, h.m.now) + int64(ops)*h.op + int64(float64(bytes)*h.perByte)
	h.m.Arm(&uring.Timer{Fire: then}, h.free-h.m.now)
}

func (h *hdd) WriteBack(w *WriteBack) {
	n := 1
	if w.HasGaps() { // read before
		n = 2
	}
	h.do(n, n*w.Blocks*blockSize, func() { w.Done(w) })
}

func (h *hdd) Checkpoint(done func(error)) { h.do(6, 64*blockSize, func() { done(nil) }) }

// hddLog is a log on the disk of its store.
type hddLog struct {
	*ram
	h *hdd
}

func (d *hddLog) Submit(op *uring.DiskOp) {
	if d.h == nil { // being made
		d.ram.Submit(op)
		return
	}
	n := 0
	for _, b := range op.Bufs {
		n += len(b)
	}
	d.h.do(1, n, func() { d.ram.Submit(op) })
}

// TestHardDisk writes ten times the log's size at random to a store on a hard disk. There is never
// a second without progress, and it settles at the disk's own rate, or far above if neighbours come
// together in the log.
func TestHardDisk(t *testing.T) {
	const small, large = 64 * MinSegment / blockSize, 256 * 2 * MinSegment / blockSize
	for _, c := range []struct {
		name  string
		log   int     // blocks
		seg   int     // size of a segment; 0: chosen
		set   int     // blocks written to
		same  bool    // the log is on the store's disk
		ratio float64 // of the disk's own 200 writes per second
	}{
		{"sparse", small, 0, 64 * small, false, 0.9},
		{"as large as the log", small, 0, small, false, 4},
		{"half the log", small, 0, small / 2, false, 12},
		{"sparse, same disk", small, 0, 16 * small, true, 0.8},
		{"as large as the log, same disk", large, 2 * MinSegment, large, true, 4},
		{"half the log, same disk", large, 2 * MinSegment, large / 2, true, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h *hdd
			// A 16th of it fits in memory, as of a log of 1 GiB.
			size := c.log * blockSize
			o := Options{Sequential: c.same, DestageMemory: size / 16}
			m, log, pool := openRAMWith(t, size+firstBlock*blockSize, c.seg, o,
				func(m *ram) Backing {
					h = newHDD(m)
					return h
				})
			if c.same {
				log.disk = &hddLog{m, h}
			}
			w := newHDDWriter(m, log, pool, c.set)
			total := 10 * c.log
			var halfAt, worst, last int64
			last = m.now
			for acked := 0; acked < total; {
				for range 32 {
					if log.Room() {
						w.append()
					}
				}
				m.step()
				if w.acked == acked {
					if m.now-last > 20e9 {
						t.Fatal("stuck", log)
					}
					continue
				}
				if acked < total/2 && w.acked >= total/2 {
					halfAt = m.now
				}
				worst = max(worst, m.now-last)
				acked, last = w.acked, m.now
			}
			rate := float64(total/2) / (float64(m.now-halfAt) / 1e9)
			s := log.Stats()
			t.Logf("%.0f writes/s, worst pause %d ms, %d disk operations for %d blocks in %d "+
				"write-backs, %d of gaps, %d moved", rate, worst/1e6, h.ops, s.Destaged, s.WriteBacks,
				s.GapBlocks, s.Moved)
			if worst > 1e9 || rate < c.ratio*1e9/hddOp {
				t.Errorf("%d ms without progress, %.0f writes per second", worst/1e6, rate)
			}
		})
	}
}

// hddWriter appends single blocks at random places of a set.
type hddWriter struct {
	log   *Log
	rng   *rand.Rand
	set   uint32
	as    []*Append // unused
	acked int
	data  []byte
	crcs  []byte
}

func newHDDWriter(m *ram, l *Log, pool *uring.Pool, set int) *hddWriter {
	w := &hddWriter{log: l, rng: rand.New(rand.NewPCG(1, uint64(set))), set: uint32(set),
		data: pool.Get(blockSize).Bytes()[:blockSize], crcs: make([]byte, 4)}
	dataplane.PutCRCs(w.crcs, 0, w.data)
	return w
}

func (w *hddWriter) append() { w.put(w.rng.Uint32N(w.set)) }

// put appends block b of the set.
func (w *hddWriter) put(b uint32) {
	var a *Append
	if n := len(w.as); n > 0 {
		a, w.as = w.as[n-1], w.as[:n-1]
	} else {
		a = &Append{Data: w.data, CRCs: w.crcs}
		a.Done = func(a *Append) {
			w.acked++
			w.as = append(w.as, a)
		}
	}
	a.Record = Record{Kind: Data, Slot: b >> 14, Chunk: 1, Epoch: 1, Length: blockSize,
		Offset: b & (1<<14 - 1) * blockSize}
	w.log.Append(a)
}

// TestColdData writes a large file behind a small one, on a disk that is slow by the byte. Neither
// is ever written again: they must not go round in the log, but leave it in the order in which they
// came; and when nothing is written any more, all of it soon is in the store.
func TestColdData(t *testing.T) {
	const logBlocks = 64 * MinSegment / blockSize
	m, log, pool := openRAMWith(t, 64*MinSegment+firstBlock*blockSize, MinSegment,
		Options{Sequential: true},
		func(m *ram) Backing { return &hdd{m: m, op: hddOp, perByte: 6 * hddByte} })
	w := newHDDWriter(m, log, pool, 1)
	const small, large = 256, 6 * logBlocks
	for next := uint32(0); w.acked < small+large; m.step() {
		if next < small+large && log.Room() {
			w.put(next)
			next++
		}
	}
	if s := log.Stats(); s.Moved > s.Destaged/10 {
		t.Errorf("%d blocks moved, %d written back", s.Moved, s.Destaged)
	}
	for b := range uint32(small) {
		if _, ok := log.Lookup(0, b); ok {
			t.Fatalf("block %d is still in the log, after %d times its size", b, large/logBlocks)
		}
	}
	for end := m.now + 30e9; m.now < end; m.step() {
	}
	if s := log.Stats(); s.Dirty > 1 {
		t.Errorf("30 s after the last write %d segments aren't written back", s.Dirty)
	}
}
