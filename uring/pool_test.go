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
	for i, b := range held {
		if p.Get(1<<20) != nil {
			t.Errorf("a buffer out of nothing, with %d of %d held", len(held)-i, len(held))
		}
		if i > 1 { // the first two are kept from being part of a large one
			b.Release()
		}
	}
	held[0].Release()
	held[1].Release()
	if p.InUse() != 0 {
		t.Errorf("%d bytes in use", p.InUse())
	}
	b := p.Get(1)
	b.Release()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestPoolIsCutAnew: what many requests of one size have needed once is there for others.
func TestPoolIsCutAnew(t *testing.T) {
	const size = 4<<20 + 5*BufAlign
	sizes := []int{4096, 16384, 65536, 262144, 1 << 20}
	for _, before := range sizes {
		for _, n := range sizes {
			p, err := NewPool(size)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{before, n, before} {
				var held []*Buf
				for b := p.Get(n); b != nil; b = p.Get(n) {
					held = append(held, b)
				}
				for _, b := range held {
					if len(held) < size/len(b.mem)*3/4 {
						t.Fatalf("%d buffers of %d bytes in a pool of %d", len(held), len(b.mem), size)
					}
					b.Release()
				}
			}
			checkPool(t, p)
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestPoolLooksAgain: a look through the pool in vain isn't the last one.
func TestPoolLooksAgain(t *testing.T) {
	p, err := NewPool(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	var held []*Buf
	for b := p.Get(4096); b != nil; b = p.Get(4096) {
		held = append(held, b)
	}
	for i, b := range held {
		if i%2 == 0 {
			b.Release()
		}
	}
	if p.Get(65536) != nil || !p.recut.vain {
		t.Error("a buffer of pages that don't lie side by side")
	}
	for i, b := range held {
		if i%2 == 1 {
			b.Release()
		}
	}
	held = held[:0]
	tries := 0
	for ; len(held) < 4<<20/(64<<10+4096); tries++ {
		if b := p.Get(65536); b != nil {
			held = append(held, b)
		} else if tries > 1000 {
			t.Fatalf("%d buffers after %d tries", len(held), tries)
		}
	}
	for _, b := range held {
		b.Release()
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// checkPool compares what a pool knows of its buffers with its lists. None is held.
func checkPool(t *testing.T, p *Pool) {
	t.Helper()
	listed, bytes := map[*Buf]bool{}, 0
	for c, b := range p.free {
		for ; b != nil; b = b.next {
			if int(b.class) != c || len(b.mem) != bufClasses[c] || b.refs != 0 {
				t.Fatalf("a buffer of %d bytes and class %d, %d references, in list %d", len(b.mem), b.class,
					b.refs, c)
			}
			listed[b] = true
			bytes += len(b.mem)
		}
	}
	if bytes != p.brk || len(p.recut.first) != p.brk/BufAlign {
		t.Fatalf("%d bytes are free of %d, %d pages known", bytes, p.brk, len(p.recut.first))
	}
	for page, left := 0, len(listed); page < len(p.recut.first); left-- {
		b := p.recut.first[page]
		if !listed[b] || addrOf(b.mem) != addrOf(p.arena[page*BufAlign:]) {
			t.Fatalf("page %d, %d to go: not a free buffer", page, left)
		}
		page += len(b.mem) / BufAlign
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
			for at := 0; at < len(m); at += BufAlign {
				if m[at] != h.mark || m[at+BufAlign-1] != h.mark {
					t.Fatalf("a buffer of %d bytes was overwritten", len(m))
				}
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
		for at := 0; at < len(m); at += BufAlign {
			m[at], m[at+BufAlign-1] = byte(i), byte(i)
		}
		all = append(all, held{b, byte(i)})
	}
	for _, h := range all {
		h.b.Release()
	}
	checkPool(t, p)
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
