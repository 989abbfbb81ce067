package simloop

import (
	"bytes"
	"errors"
	"testing"

	"pstorage/uring"
)

type bench struct {
	sim  *Sim
	env  *Env
	disk *Disk
	pool *uring.Pool
}

func newBench(t testing.TB, seed uint64) *bench {
	s := New(seed)
	e := s.NewEnv("n")
	p, err := uring.NewPool(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	return &bench{s, e, NewDisk(e, 1<<20, 512, DiskOptions{}), p}
}

func (b *bench) op(kind uring.OpKind, off int64, n int, v byte,
	done func(*uring.DiskOp)) *uring.DiskOp {
	op := &uring.DiskOp{Kind: kind, Offset: off, Done: done}
	if done == nil {
		op.Done = func(*uring.DiskOp) {}
	}
	switch kind {
	case uring.DiskRead, uring.DiskWrite, uring.DiskWriteSync:
		buf := b.pool.Get(n)
		fill(buf.Bytes()[:n], v)
		op.Bufs = [][]byte{buf.Bytes()[:n]}
	default:
		op.Length = int64(n)
	}
	return op
}

// run does one operation to its end.
func (b *bench) run(t testing.TB, kind uring.OpKind, off int64, n int, v byte) *uring.DiskOp {
	t.Helper()
	fin := false
	op := b.op(kind, off, n, v, func(*uring.DiskOp) { fin = true })
	b.env.Do(func() { b.disk.Submit(op) })
	if fin {
		t.Fatal("completed inside Submit")
	}
	if !b.sim.Run(func() bool { return fin }, b.sim.Now()+1e9) {
		t.Fatal("the operation never completed")
	}
	return op
}

func (b *bench) at(off int64) byte {
	var p [1]byte
	b.disk.ReadAt(p[:], off)
	return p[0]
}

func TestDiskReadsWhatWasWritten(t *testing.T) {
	b := newBench(t, 1)
	b.run(t, uring.DiskWrite, 512, 8192, 7)
	if r := b.run(t, uring.DiskRead, 0, 16384, 0); r.Bufs[0][0] != 0 || r.Bufs[0][512] != 7 ||
		r.Bufs[0][8703] != 7 || r.Bufs[0][8704] != 0 {
		t.Fatal("wrong contents")
	}
	b.run(t, uring.DiskDiscard, 4096, 512, 0)
	if b.at(4096) != 0 || b.at(4095) != 7 || b.at(4608) != 7 {
		t.Fatal("discard went wrong")
	}
	if r := b.run(t, uring.DiskRead, 1<<20-512, 4096, 1); r.Err != nil || r.Bufs[0][4095] != 0 {
		t.Fatal("a read past the end is filled with zeros")
	}
}

// TestPowerCut holds the promises of durability: what was synced survives, what wasn't may come
// out as any mixture by sectors, and both outcomes do happen.
func TestPowerCut(t *testing.T) {
	var lost, kept, torn, flushed int
	for seed := uint64(0); seed < 200; seed++ {
		b := newBench(t, seed)
		b.run(t, uring.DiskWriteSync, 0, 4096, 1) // durable by itself
		b.run(t, uring.DiskWrite, 8192, 4096, 2)
		b.run(t, uring.DiskSync, 0, 0, 0)            // makes the one before durable
		b.run(t, uring.DiskWrite, 8192, 4096, 3)     // may survive
		b.run(t, uring.DiskWriteSync, 16384, 512, 4) // covers only itself
		late := b.op(uring.DiskWriteSync, 0, 4096, 5, nil)
		b.env.Do(func() { b.disk.Submit(late) }) // in flight
		clone := b.disk.CrashClone(New(seed).NewEnv("m"), seed)
		b.env.Kill()
		b.disk.PowerCut()
		for _, d := range []*Disk{clone, b.disk} {
			img := make([]byte, 20480)
			d.ReadAt(img, 0)
			n3, n5 := bytes.Count(img[8192:12288], []byte{3}), bytes.Count(img[:4096], []byte{5})
			n2, n1 := bytes.Count(img[8192:12288], []byte{2}), bytes.Count(img[:4096], []byte{1})
			if n1+n5 != 4096 || n2+n3 != 4096 || n3%512 != 0 || n5%512 != 0 || img[16384] != 4 {
				t.Fatalf("seed %d: %d %d %d %d %d", seed, n1, n5, n2, n3, img[16384])
			}
			switch n3 {
			case 0:
				lost++
			case 4096:
				kept++
			default:
				torn++
			}
			if n5 > 0 {
				flushed++
			}
		}
	}
	if lost == 0 || kept == 0 || torn == 0 || flushed == 0 {
		t.Fatalf("outcomes missing: lost %d kept %d torn %d in flight %d", lost, kept, torn, flushed)
	}
}

// TestSyncOrder: a flush doesn't promise what completed after it was submitted, and an old unsynced
// write never comes back over a newer durable one.
func TestSyncOrder(t *testing.T) {
	older, early := 0, 0
	for seed := uint64(0); seed < 100; seed++ {
		b := newBench(t, seed)
		b.run(t, uring.DiskWrite, 0, 512, 1)
		b.run(t, uring.DiskWriteSync, 0, 512, 2)
		b.disk.opt.SyncLatency = 10e6
		syn := b.op(uring.DiskSync, 0, 0, 0, nil)
		b.env.Do(func() { b.disk.Submit(syn) })
		b.run(t, uring.DiskWrite, 4096, 512, 3)
		b.sim.Run(func() bool { return b.disk.InFlight() == 0 }, 1e12)
		b.env.Kill()
		b.disk.PowerCut()
		if b.at(0) != 2 {
			older++
		}
		if b.at(4096) != 3 {
			early++
		}
	}
	if older != 0 || early == 0 {
		t.Fatalf("older write back: %d times; later write always kept: %v", older, early == 0)
	}
}

func TestFaults(t *testing.T) {
	b := newBench(t, 3)
	var next Fault
	b.disk.Fault = func(*uring.DiskOp) Fault { f := next; next = Fault{}; return f }
	b.run(t, uring.DiskWrite, 0, 4096, 1)
	next = Fault{Lost: true}
	if b.run(t, uring.DiskWrite, 0, 4096, 2); b.at(0) != 1 {
		t.Error("lost write landed")
	}
	next = Fault{Misplace: 8192}
	if b.run(t, uring.DiskWrite, 0, 4096, 2); b.at(0) != 1 || b.at(8192) != 2 {
		t.Error("misplaced write landed right")
	}
	next = Fault{Flip: true}
	r := b.run(t, uring.DiskRead, 0, 4096, 0)
	if bytes.Count(r.Bufs[0], []byte{1}) != 4095 {
		t.Error("no bit flipped")
	}
	b.disk.FailRange(4096, 512, ErrIO, uring.DiskRead, uring.DiskSync)
	for _, c := range []struct {
		kind uring.OpKind
		off  int64
		n    int
		want error
	}{{uring.DiskRead, 0, 4096, nil}, {uring.DiskRead, 0, 8192, ErrIO}, {uring.DiskSync, 0, 0, ErrIO},
		{uring.DiskWrite, 4096, 4096, nil}, {uring.DiskRead, 4608, 512, nil}} {
		if op := b.run(t, c.kind, c.off, c.n, 9); !errors.Is(op.Err, c.want) {
			t.Errorf("%v: %v", c, op.Err)
		}
	}
	b.disk.Heal()
	if op := b.run(t, uring.DiskRead, 4096, 4096, 0); op.Err != nil {
		t.Error(op.Err)
	}
}

func TestBrokenUsersAreCaught(t *testing.T) {
	mustPanic := func(name string, f func()) {
		defer func() {
			if recover() == nil {
				t.Errorf("%s: not caught", name)
			}
		}()
		f()
	}
	b := newBench(t, 4)
	mustPanic("unaligned offset", func() { b.run(t, uring.DiskRead, 100, 512, 0) })
	mustPanic("unaligned memory", func() {
		b.disk.Submit(&uring.DiskOp{Bufs: [][]byte{b.pool.Get(4096).Bytes()[1:513]},
			Done: func(*uring.DiskOp) {}})
	})
	b = newBench(t, 4)
	mustPanic("memory changed in flight", func() {
		op := b.op(uring.DiskWrite, 0, 4096, 1, nil)
		b.env.Do(func() { b.disk.Submit(op) })
		op.Bufs[0][0]++
		b.sim.Run(func() bool { return false }, 1e9)
	})
}

// history runs a random workload with timers and returns the event hash.
func history(t testing.TB, seed uint64) uint64 {
	b := newBench(t, seed)
	n := 0
	var tick uring.Timer
	for range 50 {
		off := int64(b.env.Rand()%200) * 4096
		op := b.op(uring.OpKind(b.env.Rand()%4), off, 4096, 1, func(*uring.DiskOp) { n++ })
		tick.Fire = func() { b.sim.Note(uint64(b.env.Now())) }
		b.env.Do(func() {
			b.env.Arm(&tick, int64(b.env.Rand()%1000000))
			b.disk.Submit(op)
		})
		b.sim.Step()
	}
	if !b.sim.Run(func() bool { return n == 50 && !tick.Armed() }, 1e10) {
		t.Fatal("stuck")
	}
	return b.sim.Hash()
}

func TestSameSeedSameHistory(t *testing.T) {
	seen := map[uint64]bool{}
	for seed := uint64(0); seed < 20; seed++ {
		h := history(t, seed)
		if h != history(t, seed) {
			t.Fatalf("seed %d: two histories", seed)
		}
		seen[h] = true
	}
	if len(seen) != 20 {
		t.Fatalf("20 seeds gave %d histories", len(seen))
	}
}

func TestTimersAndTurns(t *testing.T) {
	s := New(1)
	e := s.NewEnv("a")
	var log []string
	var a, b, c uring.Timer
	var end uring.TurnEnder
	end.TurnEnd = func() { log = append(log, "end") }
	a.Fire = func() { log = append(log, "a"); e.AtTurnEnd(&end); e.AtTurnEnd(&end) }
	b.Fire = func() { log = append(log, "b"); e.Disarm(&c) }
	c.Fire = func() { log = append(log, "c") }
	start := e.Now()
	e.Do(func() { e.Arm(&b, 1e6); e.Arm(&c, 2e6); e.Arm(&a, 5e5) })
	s.Run(func() bool { return false }, 1e9)
	if got := len(log); got != 3 || log[0] != "a" || log[1] != "end" || log[2] != "b" {
		t.Fatal(log)
	}
	if d := e.Now() - start; d < 1e6 || d > 11e5 {
		t.Fatalf("clock moved %d ns", d)
	}
	e.Kill()
	e.Post(func() { t.Error("ran on a dead node") })
	s.Run(func() bool { return false }, 1e9)
}

func fill(b []byte, v byte) {
	for i := range b {
		b[i] = v
	}
}
