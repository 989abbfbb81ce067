package uring

import (
	"math/rand"
	"sort"
	"strings"
	"testing"
	"testing/quick"
)

func TestPoolIsBoundedAndReuses(t *testing.T) {
	p, err := NewPool(1<<20 + 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Arena()) != 1<<20+4096 {
		t.Errorf("arena of %d bytes", len(p.Arena()))
	}
	var held []*Buf
	for b := p.Get(4096); b != nil; b = p.Get(4096) {
		held = append(held, b)
	}
	if len(held) != 257 || p.InUse() != len(p.Arena()) {
		t.Errorf("%d buffers, %d bytes in use", len(held), p.InUse())
	}
	for _, b := range held {
		b.Release()
	}
	if p.InUse() != 0 || p.Get(1<<20) != nil {
		t.Errorf("%d bytes in use, or a buffer out of nothing", p.InUse())
	}
	b := p.Get(1)
	b.Release()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestPoolNeverOverlaps takes and returns at random; held buffers keep what was written.
func TestPoolNeverOverlaps(t *testing.T) {
	p, err := NewPool(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	type held struct {
		b    *Buf
		mark byte
	}
	var all []held
	rng := rand.New(rand.NewSource(5))
	for i := range 20000 {
		if len(all) > 0 && rng.Intn(2) == 0 {
			k := rng.Intn(len(all))
			h := all[k]
			m := h.b.Bytes()
			if m[0] != h.mark || m[len(m)-1] != h.mark {
				t.Fatalf("a buffer of %d bytes was overwritten", len(m))
			}
			h.b.Retain()
			h.b.Release()
			h.b.Release()
			all[k] = all[len(all)-1]
			all = all[:len(all)-1]
			continue
		}
		n := 1 + rng.Intn(1<<uint(rng.Intn(21)))
		b := p.Get(n)
		if b == nil {
			continue
		}
		m := b.Bytes()
		if len(m) < n || addrOf(m)%BufAlign != 0 {
			t.Fatalf("%d bytes at %#x for %d", len(m), addrOf(m), n)
		}
		m[0], m[len(m)-1] = byte(i), byte(i)
		all = append(all, held{b, byte(i)})
	}
	for _, h := range all {
		h.b.Release()
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestPoolMisusePanics(t *testing.T) {
	p, err := NewPool(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	b := p.Get(10)
	mustPanic(t, "too large", func() { p.Get(1<<20 + 1) })
	mustPanic(t, "close while in use", func() { _ = p.Close() })
	b.Release()
	mustPanic(t, "second release", b.Release)
	mustPanic(t, "retain of a free buffer", b.Retain)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func mustPanic(t *testing.T, name string, fn func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s: no panic", name)
		}
	}()
	fn()
}

// TestTimerHeapAgainstModel compares with a sorted list.
func TestTimerHeapAgainstModel(t *testing.T) {
	type entry struct {
		t    *Timer
		when int64
		seq  int
	}
	check := func(seed int64) bool {
		rng := rand.New(rand.NewSource(seed))
		var q TimerHeap
		var model []entry
		timers := make([]Timer, 40)
		now, seq := int64(0), 0
		remove := func(t *Timer) {
			for i, e := range model {
				if e.t == t {
					model = append(model[:i], model[i+1:]...)
					return
				}
			}
		}
		for range 500 {
			tm := &timers[rng.Intn(len(timers))]
			switch rng.Intn(4) {
			case 0, 1:
				when := now + int64(rng.Intn(50))
				q.Arm(tm, when)
				remove(tm)
				seq++
				model = append(model, entry{tm, when, seq})
			case 2:
				q.Disarm(tm)
				remove(tm)
			case 3:
				now += int64(rng.Intn(10))
			}
			sort.Slice(model, func(i, j int) bool {
				a, b := model[i], model[j]
				return a.when < b.when || a.when == b.when && a.seq < b.seq
			})
			if when, ok := q.Next(); ok != (len(model) > 0) || ok && when != model[0].when {
				return false
			}
			if rng.Intn(3) == 0 {
				for got := q.Pop(now); got != nil; got = q.Pop(now) {
					if len(model) == 0 || model[0].t != got || model[0].when > now || got.Armed() {
						return false
					}
					model = model[1:]
				}
				if len(model) > 0 && model[0].when <= now {
					return false
				}
			}
			for i := range timers {
				armed := false
				for _, e := range model {
					armed = armed || e.t == &timers[i]
				}
				if timers[i].Armed() != armed {
					return false
				}
			}
		}
		return true
	}
	if err := quick.Check(check, &quick.Config{MaxCount: 100}); err != nil {
		t.Error(err)
	}
}

func TestTurnQueueRunsWhatIsAddedMeanwhile(t *testing.T) {
	var q TurnQueue
	var got []string
	a, b := &TurnEnder{}, &TurnEnder{}
	b.TurnEnd = func() { got = append(got, "b") }
	a.TurnEnd = func() {
		got = append(got, "a")
		if len(got) < 3 {
			q.Add(a)
		}
		q.Add(b)
	}
	q.Add(a)
	q.Add(a)
	q.Run()
	if want := "a a b a b"; strings.Join(got, " ") != want || !q.Empty() {
		t.Errorf("ran %v, want %s", got, want)
	}
}
