package ssdcache

import (
	"math/rand/v2"
	"testing"

	"pstorage/dataplane"
	"pstorage/uring"
)

// hdd is a store on a disk of 200 operations and 150 MB in a second, one at a time.
type hdd struct {
	m    *ram
	free int64 // when the disk has done what it was given
	ops  int
}

const (
	hddOp   = 5e6         // ns per operation
	hddByte = 1e9 / 150e6 // ns per byte
)

func (h *hdd) do(ops int, bytes int, then func()) {
	h.ops += ops
	h.free = max(h.free, h.m.now) + int64(ops)*hddOp + int64(float64(bytes)*hddByte)
	h.m.Arm(&uring.Timer{Fire: then}, h.free-h.m.now)
}

func (h *hdd) WriteBack(w *WriteBack) { h.do(1, w.Blocks*blockSize, func() { w.Done(w) }) }

func (h *hdd) Checkpoint(done func(error)) { h.do(6, 64*blockSize, func() { done(nil) }) }

// TestHardDisk writes ten times the log's size at random to a store on a hard disk. There is never
// a second without progress, and it settles at the disk's own rate, or far above if neighbours come
// together in the log.
func TestHardDisk(t *testing.T) {
	const segments = 64
	logBlocks := segments * MinSegment / blockSize
	for _, c := range []struct {
		name  string
		set   int // blocks written to
		seq   bool
		ratio float64 // of the disk's own 200 writes per second
	}{
		{"sparse", 64 * logBlocks, false, 0.9},
		{"sparse, sequential", 64 * logBlocks, true, 0.9},
		{"as large as the log", logBlocks, false, 4},
		{"half the log", logBlocks / 2, false, 12},
		{"as large as the log, sequential", logBlocks, true, 2.4},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h *hdd
			m, log, pool := openRAMWith(t, segments*MinSegment+firstBlock*blockSize, 0,
				Options{Sequential: c.seq}, func(m *ram) Backing {
					h = &hdd{m: m}
					return h
				})
			w := newHDDWriter(m, log, pool, c.set)
			total := 10 * logBlocks
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
			t.Logf("%.0f writes/s, worst pause %d ms, %d disk operations for %d blocks, %d of gaps",
				rate, worst/1e6, h.ops, s.Destaged, s.GapBlocks)
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

func (w *hddWriter) append() {
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
	b := w.rng.Uint32N(w.set)
	a.Record = Record{Kind: Data, Slot: b >> 14, Chunk: 1, Epoch: 1, Length: blockSize,
		Offset: b & (1<<14 - 1) * blockSize}
	w.log.Append(a)
}
