package main

import (
	"log/slog"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/anishathalye/porcupine"

	"pstorage/uring/simloop"
)

// register is porcupine's model of a register: an input is a rop, an output the value read.
var register = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		if in := input.(rop); in.write {
			return true, in.value
		}
		return output.(uint64) == state.(uint64), state
	},
}

func porcupineSays(history []rop) bool {
	var ops []porcupine.Operation
	for i, o := range history {
		op := porcupine.Operation{ClientId: i, Input: o, Call: o.inv, Output: o.value, Return: o.ret}
		if o.ret == never {
			op.Return = math.MaxInt64
		}
		ops = append(ops, op)
	}
	return porcupine.CheckOperations(register, ops)
}

// TestLinearizable compares the checker with porcupine on random histories, most of them nearly
// linearizable: a register with random delays, then some values swapped.
func TestLinearizable(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	good, bad := 0, 0
	for range 4000 {
		h := randomHistory(rng)
		want, why := porcupineSays(h), linearizable(h)
		if want != (why == "") {
			t.Fatalf("porcupine says %v, the checker %q of %+v", want, why, h)
		}
		if want {
			good++
		} else {
			bad++
		}
	}
	if good < 500 || bad < 500 {
		t.Errorf("%d good and %d bad histories: one-sided", good, bad)
	}
}

func randomHistory(rng *rand.Rand) []rop {
	var h []rop
	state, tag, now := uint64(0), uint64(0), int64(1000)
	spread := 1 + rng.Int64N(200) // how much operations overlap
	times := map[int64]bool{}     // porcupine and the checker may see ties differently
	unique := func(v int64) int64 {
		for times[v] {
			v++
		}
		times[v] = true
		return v
	}
	for range 2 + rng.IntN(12) {
		now += 100
		o := rop{inv: unique(now - rng.Int64N(spread)), ret: unique(now + 1 + rng.Int64N(spread))}
		if rng.IntN(2) == 0 {
			tag++
			o.write, o.value = true, tag
			if rng.IntN(6) == 0 {
				o.ret = never
			}
			if o.ret != never || rng.IntN(2) == 0 {
				state = tag
			}
		} else {
			o.value = state
			if rng.IntN(8) == 0 && tag > 0 {
				o.value = rng.Uint64N(tag + 1)
			}
		}
		h = append(h, o)
	}
	return h
}

func newTestWorld() *world {
	return &world{sim: simloop.New(1), log: slog.New(quiet{})}
}

// TestVersions feeds the online check of files with one serial writer.
func TestVersions(t *testing.T) {
	for _, c := range []struct {
		name string
		read uint64
		late bool // the read begins after the second write was acknowledged
		bad  bool
	}{
		{"first while the second is in flight", 1, false, false},
		{"second while it is in flight", 2, false, false},
		{"zeros after the first was acknowledged", 0, false, true},
		{"second after its acknowledgement", 2, true, false},
		{"first after the second's acknowledgement", 1, true, true},
		{"never written", 9, true, true},
	} {
		w := newTestWorld()
		f := newFile(w, 0)
		f.invoke(0, 4096, 1)
		f.acked(0, 4096)
		f.invoke(0, 4096, 2)
		if c.late {
			f.acked(0, 4096)
		}
		r := f.beginRead(0, 4096)
		p := make([]byte, 4096)
		for i := 0; i < len(p); i += 8 {
			p[i] = byte(c.read)
		}
		r.returned(p, "test")
		if got := len(w.violations) > 0; got != c.bad {
			t.Errorf("%s: violations %q", c.name, w.violations)
		}
	}
}

// TestReadsDontGoBack: once a read has returned a write in flight, later ones must, too; also for
// parts of blocks, and for zeros.
func TestReadsDontGoBack(t *testing.T) {
	w := newTestWorld()
	f := newFile(w, 0)
	f.invoke(0, 4096, 7)
	f.acked(0, 4096)
	f.invoke(512, 512, 0)
	page := func(tags ...uint64) []byte {
		p := make([]byte, len(tags)*512)
		for i := range p {
			if i%8 == 0 {
				p[i] = byte(tags[i/512])
			}
		}
		return p
	}
	f.beginRead(0, 1024).returned(page(7, 0), "new")
	if len(w.violations) > 0 {
		t.Fatal(w.violations)
	}
	f.beginRead(0, 512).returned(page(7), "untouched part")
	if len(w.violations) > 0 {
		t.Fatal(w.violations)
	}
	f.beginRead(0, 1024).returned(page(7, 7), "old again")
	if len(w.violations) != 1 {
		t.Fatalf("violations %q", w.violations)
	}
	torn := page(7, 0)
	torn[8] = 9
	f.beginRead(0, 1024).returned(torn, "torn")
	if len(w.violations) < 2 {
		t.Fatal("a torn sector wasn't noticed")
	}
}
