package history

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/anishathalye/porcupine"
)

// register is porcupine's model of a register: an input is an Op, an output the value read.
var register = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		if in := input.(Op); in.Write {
			return true, in.Value
		}
		return output.(uint64) == state.(uint64), state
	},
}

func porcupineSays(history []Op) bool {
	var ops []porcupine.Operation
	for i, o := range history {
		op := porcupine.Operation{ClientId: i, Input: o, Call: o.Inv, Output: o.Value, Return: o.Ret}
		if o.Ret == Never {
			op.Return = math.MaxInt64
		}
		ops = append(ops, op)
	}
	return porcupine.CheckOperations(register, ops)
}

// TestCheck compares the checker with porcupine on random histories, most of them nearly
// linearizable: a register with random delays, then some values swapped.
func TestCheck(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	good, bad := 0, 0
	for range 4000 {
		h := randomHistory(rng)
		want, why := porcupineSays(h), Check(h)
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

func randomHistory(rng *rand.Rand) []Op {
	var h []Op
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
		o := Op{Inv: unique(now - rng.Int64N(spread)), Ret: unique(now + 1 + rng.Int64N(spread))}
		if rng.IntN(2) == 0 {
			tag++
			o.Write, o.Value = true, tag
			if rng.IntN(6) == 0 {
				o.Ret = Never
			}
			if o.Ret != Never || rng.IntN(2) == 0 {
				state = tag
			}
		} else {
			o.Value = state
			if rng.IntN(8) == 0 && tag > 0 {
				o.Value = rng.Uint64N(tag + 1)
			}
		}
		h = append(h, o)
	}
	return h
}
