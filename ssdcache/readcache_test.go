package ssdcache

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pstorage/dataplane"
	"pstorage/uring"
)

// reader reads single blocks through a log, which is offered what comes from the store.
type reader struct {
	m    *ram
	log  *Log
	pool *uring.Pool
	ops  []*ReadOp // unused
	left int
	data []byte
	crcs []byte
	hits int
}

func newReader(m *ram, l *Log, pool *uring.Pool) *reader {
	r := &reader{m: m, log: l, pool: pool, data: pool.Get(blockSize).Bytes()[:blockSize],
		crcs: make([]byte, 4)}
	dataplane.PutCRCs(r.crcs, 0, r.data)
	for range 32 {
		op := &ReadOp{Blocks: 1, Buf: pool.Get(blockSize).Bytes()[:blockSize]}
		op.Done = func(op *ReadOp) {
			r.left--
			r.ops = append(r.ops, op)
		}
		r.ops = append(r.ops, op)
	}
	return r
}

func (r *reader) read(block uint32) {
	slot, block := block>>14, block&(1<<14-1)
	if p, ok := r.log.Lookup(slot, block); ok {
		r.hits++
		r.left++
		op := r.ops[len(r.ops)-1]
		r.ops = r.ops[:len(r.ops)-1]
		op.Pos = p
		r.log.Read(op)
	} else {
		r.log.Admit(r.log.Ticket(), slot, block, 1, r.data, r.crcs)
	}
	if len(r.ops) == 0 {
		for r.left > 0 {
			r.m.step()
		}
	}
	if r.log.waiting > 0 || len(r.ops)%8 == 0 {
		r.m.step()
	}
}

// hitRatio reads n blocks that next gives.
func (r *reader) hitRatio(n int, next func() uint32) float64 {
	r.hits = 0
	for range n {
		r.read(next())
	}
	return float64(r.hits) / float64(n)
}

// TestHitRatio reads a Zipf(1.1) trace over ten times the log's size. The hit ratio is compared
// with that of a cache of the log's size which always holds the blocks that are read most. A
// scan over half of everything in between does no harm.
func TestHitRatio(t *testing.T) {
	const size = 64 << 20
	const all = 10 * size / blockSize
	backing := func(m *ram) Backing {
		s := &instantStore{env: m}
		s.tick.Fire = s.fire
		return s
	}
	m, log, pool := openRAMWith(t, size+firstBlock*blockSize, MinSegment, Options{}, backing)
	r := newReader(m, log, pool)
	zipf := rand.NewZipf(rand.New(rand.NewPCG(1, 2)), 1.1, 1, all-1)
	counts := make([]int, all)
	next := func() uint32 {
		k := uint32(zipf.Uint64())
		counts[k]++
		return uint32(uint64(k) * 100_003 % all) // somewhere
	}
	const n = 600_000
	r.hitRatio(3*n, next)
	clear(counts)
	warm := log.Stats()
	got := r.hitRatio(n, next)
	s := log.Stats()
	slices.Sort(counts)
	sum := 0
	for _, c := range counts[all-size/blockSize:] {
		sum += c
	}
	ideal := float64(sum) / n
	t.Logf("hit ratio %.4f, ideal %.4f; "+
		"per read %.3f blocks taken in, %.3f kept; %.1f bytes per block",
		got, ideal, float64(s.Admitted-warm.Admitted)/n, float64(s.Rescued-warm.Rescued)/n,
		float64(s.IndexBytes)/(size/blockSize))
	if got < ideal-0.03 {
		t.Errorf("hit ratio %.4f, ideal %.4f", got, ideal)
	}
	const reads = 20_000
	if a := testing.AllocsPerRun(1, func() { r.hitRatio(reads, next) }); a > reads/100 {
		t.Errorf("%v allocations in %d reads", a, reads) // a round of write-back may need some
	}
	scan := uint32(0)
	inScan := r.hitRatio(all/2, func() uint32 { scan++; return scan })
	after := r.hitRatio(n/6, next)
	t.Logf("in the scan %.4f, after it %.4f", inScan, after)
	if after < got-0.02 {
		t.Errorf("hit ratio %.4f after a scan", after)
	}
}

// TestCopiesStayTrue: a copy is never taken in if the store changed while it was read, and is
// dropped when the store is changed.
func TestCopiesStayTrue(t *testing.T) {
	data := make([]byte, blockSize)
	crcs := make([]byte, 4)
	for _, c := range []struct {
		name   string
		happen func(r *rig, admit func())
		in     bool
	}{
		{"nothing", func(r *rig, admit func()) { admit() }, true},
		{"a write", func(r *rig, admit func()) { r.do(change{Data, 0, 5, 1}); admit() }, false},
		{"a write that went to the store and left the log", func(r *rig, admit func()) {
			r.do(change{Data, 0, 5, 1})
			for i := range uint32(200) {
				r.do(change{Data, 2, i % 80, 16})
			}
			if _, ok := r.log.Lookup(0, 5); ok {
				r.t.Fatal("it is still there")
			}
			admit()
		}, false},
		{"zeros before", func(r *rig, admit func()) { r.do(change{Zero, 0, 4, 2}); admit() }, false},
		{"zeros after", func(r *rig, admit func()) { admit(); r.do(change{Zero, 0, 4, 2}) }, false},
		{"another chunk in the slot", func(r *rig, admit func()) {
			r.do(change{Drop, 0, 0, testBlocks})
			admit()
		}, false},
		{"the slot is dropped after", func(r *rig, admit func()) {
			admit()
			r.do(change{Drop, 0, 0, testBlocks})
		}, false},
		{"a restart", func(r *rig, admit func()) {
			admit()
			r.do(change{Data, 1, 0, 1})
			r.powerCut()
			r.mustOpen()
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := openRig(t, 31, 8)
			r.store.slowest = 1000 // nothing is moved
			var ticket Ticket
			r.env.Do(func() {
				ticket = r.log.Ticket()
				r.log.Admit(ticket, 0, 5, 1, data, crcs) // first touch
			})
			c.happen(r, func() { r.env.Do(func() { r.log.Admit(ticket, 0, 5, 1, data, crcs) }) })
			r.sim.Run(func() bool { return false }, r.sim.Now()+1e6)
			p, ok := r.log.Lookup(0, 5)
			if in := ok && r.log.idx.state[p]&isClean != 0 && r.log.CRC(p) == 0; in != c.in {
				t.Fatalf("the copy is in the log: %v", in)
			}
		})
	}
}
