package ssdcache

import (
	"io"
	"log/slog"
	"testing"

	"pstorage/dataplane"
	"pstorage/uring"
)

// ram is an Env and a Disk in memory without costs of its own: it shows what the log allocates and
// how long it takes.
type ram struct {
	now    int64
	rnd    uint64
	timers uring.TimerHeap
	turns  uring.TurnQueue
	mem    []byte
	ops    []*uring.DiskOp
	spare  []*uring.DiskOp
}

func (m *ram) Now() int64                   { return m.now }
func (m *ram) Rand() uint64                 { m.rnd++; return m.rnd }
func (m *ram) Arm(t *uring.Timer, d int64)  { m.timers.Arm(t, m.now+d) }
func (m *ram) Disarm(t *uring.Timer)        { m.timers.Disarm(t) }
func (m *ram) AtTurnEnd(e *uring.TurnEnder) { m.turns.Add(e) }
func (m *ram) Submit(op *uring.DiskOp)      { m.ops = append(m.ops, op) }
func (m *ram) Size() int64                  { return int64(len(m.mem)) }
func (m *ram) Align() int                   { return 512 }
func (m *ram) Close() error                 { return nil }

// step is one turn: completions, timers, turn end.
func (m *ram) step() {
	m.now += 100_000
	for t := m.timers.Pop(m.now); t != nil; t = m.timers.Pop(m.now) {
		t.Fire()
	}
	ops := m.ops
	m.ops = m.spare[:0]
	for i, op := range ops {
		ops[i] = nil
		off := op.Offset
		for _, b := range op.Bufs {
			switch op.Kind {
			case uring.DiskRead:
				copy(b, m.mem[off:])
			case uring.DiskWrite, uring.DiskWriteSync:
				copy(m.mem[off:], b)
			}
			off += int64(len(b))
		}
		op.Err = nil
		op.Done(op)
	}
	m.spare = ops
	m.turns.Run()
}

// instantStore takes everything.
type instantStore struct {
	env  *ram
	wbs  []*WriteBack
	done func(error)
	tick uring.Timer
}

func (s *instantStore) WriteBack(w *WriteBack) {
	s.wbs = append(s.wbs, w)
	s.env.Arm(&s.tick, 0)
}

func (s *instantStore) Checkpoint(done func(error)) {
	s.done = done
	s.env.Arm(&s.tick, 0)
}

func (s *instantStore) fire() {
	wbs := s.wbs
	s.wbs = s.wbs[:0]
	for _, w := range wbs[:len(wbs):len(wbs)] {
		w.Done(w)
	}
	if done := s.done; done != nil {
		s.done = nil
		done(nil)
	}
}

func openRAM(t testing.TB, size int) (*ram, *Log, *uring.Pool) {
	return openRAMWith(t, size, 0, Options{}, func(m *ram) Backing {
		s := &instantStore{env: m}
		s.tick.Fire = s.fire
		return s
	})
}

func openRAMWith(t testing.TB, size, segSize int, o Options, store func(*ram) Backing) (*ram, *Log,
	*uring.Pool) {
	m := &ram{mem: make([]byte, size)}
	pool, err := uring.NewPool(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	var fin bool
	Format(FormatOptions{Disk: m, Env: m, Pool: pool, Owner: 1, SegmentSize: segSize},
		func(e error) { fin, err = true, e })
	for !fin {
		m.step()
	}
	if err != nil {
		t.Fatal(err)
	}
	var log *Log
	o.Disk, o.Env, o.Pool, o.Owner, o.MaxSlots, o.Backing = m, m, pool, 1, 64, store(m)
	o.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	Open(o, nil, func(l *Log, e error) {
		log, err = l, e
		fin = false
	})
	for fin {
		m.step()
	}
	if err != nil {
		t.Fatal(err)
	}
	return m, log, pool
}

// writer appends 4 KiB blocks all over 16 slots, n in a turn.
type writer struct {
	m    *ram
	log  *Log
	as   []Append
	left int
	rnd  uint32
}

func newWriter(m *ram, l *Log, pool *uring.Pool, n int) *writer {
	w := &writer{m: m, log: l, as: make([]Append, n)}
	data := pool.Get(blockSize).Bytes()
	crcs := make([]byte, 4)
	dataplane.PutCRCs(crcs, 0, data)
	for i := range w.as {
		a := &w.as[i]
		a.Record = Record{Kind: Data, Chunk: 1, Epoch: 1, Length: blockSize}
		a.Data, a.CRCs = data, crcs
		a.Done = func(*Append) { w.left-- }
	}
	return w
}

func (w *writer) turn(t testing.TB) {
	for i := range w.as {
		a := &w.as[i]
		w.rnd = w.rnd*1664525 + 1013904223
		a.Slot, a.Offset = w.rnd>>28, w.rnd>>14&(1<<14-1)*blockSize
		a.Seq++
		w.log.Append(a)
	}
	w.left += len(w.as)
	for n := 0; w.left > 0 || !w.log.Room(); n++ {
		w.m.step()
		if n > 10000 {
			t.Fatal("stuck", w.log)
		}
	}
	if w.as[0].Err != nil {
		t.Fatal(w.as[0].Err)
	}
}

// TestNoAllocations: a warm log appends, reads and writes back without allocating.
func TestNoAllocations(t *testing.T) {
	m, log, pool := openRAM(t, 64<<20)
	w := newWriter(m, log, pool, 32)
	op := &ReadOp{Blocks: 1, Buf: pool.Get(blockSize).Bytes()[:blockSize]}
	op.Done = func(*ReadOp) { w.left-- }
	read := func() {
		w.left++
		op.Pos, _ = log.Lookup(w.as[0].Slot, w.as[0].Offset/blockSize)
		log.Read(op)
		for w.left > 0 {
			m.step()
		}
	}
	for range 2000 { // several times round
		w.turn(t)
		read()
	}
	rounds := log.stats.Rounds
	const turns = 1000
	n := testing.AllocsPerRun(1, func() {
		for range turns {
			w.turn(t)
			read()
		}
	})
	rounds = log.stats.Rounds - rounds
	// A round of destage may allocate a handful, for some thousand appends each.
	if rounds == 0 || n > float64(10*rounds) {
		t.Fatalf("%v allocations in %d appends and %d rounds of destage", n, turns*32, rounds)
	}
	t.Logf("%v allocations in %d appends and %d rounds of destage", n, turns*32, rounds)
}

// BenchmarkAppend is the log's own CPU time per 4 KiB append, batches of 32, destage included,
// with a disk that is a memcpy.
func BenchmarkAppend(b *testing.B) {
	m, log, pool := openRAM(b, 256<<20)
	w := newWriter(m, log, pool, 32)
	for range 3000 {
		w.turn(b)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += 32 {
		w.turn(b)
	}
}
