package ssdcache

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestIndexAgainstMap drives the index and a map with the same random calls.
func TestIndexAgainstMap(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		const positions = 600
		x, err := newIndex(positions)
		if err != nil {
			t.Fatal(err)
		}
		model := map[blockKey]Pos{}
		where := map[Pos]blockKey{}
		// Seeds differ in how crowded the keys are; some share homes.
		keys := []uint32{50, 300, 5000, 1 << 18}[seed%4]
		for range 20000 {
			key := rng.Uint32N(keys) * 77 % (MaxSlots << 14)
			p := Pos(rng.Uint32N(positions))
			switch rng.IntN(5) {
			case 0:
				x.drop(key)
				if old, ok := model[key]; ok {
					delete(where, old)
				}
				delete(model, key)
			case 1:
				x.evict(p)
				if k, ok := where[p]; ok {
					delete(model, k)
					delete(where, p)
				}
			default:
				if _, used := where[p]; used {
					continue
				}
				x.put(key, p, uint32(p)*3)
				if old, ok := model[key]; ok {
					delete(where, old)
				}
				model[key], where[p] = p, key
			}
			want, has := model[key]
			if got, ok := x.get(key); ok != has || ok && got != want {
				t.Fatalf("seed %d: key %d: %d %v, want %d", seed, key, got, ok, model[key])
			}
		}
		for key, want := range model {
			got, ok := x.get(key)
			if k, cur := x.current(want); !ok || got != want || !cur || k != key ||
				x.crc(got) != uint32(got)*3 {
				t.Fatalf("seed %d: key %d: %d %v, want %d", seed, key, got, ok, want)
			}
		}
		if x.n != len(model) {
			t.Fatalf("%d entries, want %d", x.n, len(model))
		}
		n := 0
		for p := range Pos(positions) {
			if _, ok := x.current(p); ok {
				n++
			}
		}
		if n != len(model) {
			t.Fatalf("%d current positions, want %d", n, len(model))
		}
		if err := x.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestIndexBudget: the design's bounds, 8 bytes of table and 16 in all per block.
func TestIndexBudget(t *testing.T) {
	const positions = 1 << 20
	x, err := newIndex(positions)
	if err != nil {
		t.Fatal(err)
	}
	defer x.close()
	if b := 4 * float64(len(x.table)) / positions; b > 8 {
		t.Errorf("table: %.1f bytes per block", b)
	}
	if b := float64(len(x.mem)) / positions; b > 16 {
		t.Errorf("index: %.1f bytes per block", b)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for p := range Pos(positions) { // full, with the worst kind of keys for probing: dense runs
		x.put(keyOf(uint32(p)>>14*3, uint32(p)&(1<<14-1)), p, 0)
	}
	longest := 0
	for range 10000 {
		p := Pos(rng.Uint32N(positions))
		key, _ := x.current(p)
		n := x.find(key) - x.home(key)
		longest = max(longest, n)
	}
	if longest > 200 {
		t.Errorf("a search took %d steps", longest)
	}
}

func BenchmarkIndexPut(b *testing.B) {
	const positions = 1 << 20
	x, _ := newIndex(positions)
	defer x.close()
	rng := rand.New(rand.NewPCG(1, 1))
	b.ReportAllocs()
	for i := range b.N {
		p := Pos(i % positions)
		x.evict(p)
		x.put(rng.Uint32N(1<<24), p, 0)
	}
}

// BenchmarkIndexGet is what a read in the log asks of the index, in logs of 4 and 32 GiB.
func BenchmarkIndexGet(b *testing.B) {
	for _, positions := range []uint32{1 << 20, 1 << 23} {
		b.Run(fmt.Sprintf("%dMiB", positions>>8), func(b *testing.B) {
			x, err := newIndex(positions)
			if err != nil {
				b.Fatal(err)
			}
			defer x.close()
			for p := range positions {
				x.put(keyOf(p>>14, p&(1<<14-1)), Pos(p), p)
			}
			rng := rand.New(rand.NewPCG(1, 1))
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				n := rng.Uint32N(positions)
				p, ok := x.get(keyOf(n>>14, n&(1<<14-1)))
				if !ok || x.crc(p) != n {
					b.Fatalf("block %d: position %d", n, p)
				}
			}
		})
	}
}
