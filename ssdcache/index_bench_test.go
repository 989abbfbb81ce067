package ssdcache

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// fullIndex has all its positions in use, by the blocks keyAt names.
func fullIndex(b *testing.B, positions uint32) *index {
	x, err := newIndex(positions, 1)
	if err != nil {
		b.Fatal(err)
	}
	for p := uint32(1); p < positions; p++ {
		x.put(keyAt(p), Pos(p), p)
	}
	b.Cleanup(func() { _ = x.close() })
	return x
}

// keyAt is the n-th block of the store.
func keyAt(n uint32) blockKey { return keyOf(n>>14, n&(1<<14-1)) }

// onLogs runs a benchmark on full indexes for logs of 4, 32 and 64 GiB.
func onLogs(b *testing.B, f func(b *testing.B, x *index, positions uint32, rng *rand.Rand)) {
	for _, gib := range []uint32{4, 32, 64} {
		b.Run(fmt.Sprintf("%dGiB", gib), func(b *testing.B) {
			positions := gib << 18
			x := fullIndex(b, positions)
			b.ReportAllocs()
			b.ResetTimer()
			f(b, x, positions, rand.New(rand.NewPCG(1, 1)))
		})
	}
}

// BenchmarkIndexGet is what a read in the log asks of the index. A look-up has to wait for the one
// before, as there is other work between two of them in a server.
func BenchmarkIndexGet(b *testing.B) {
	onLogs(b, func(b *testing.B, x *index, positions uint32, rng *rand.Rand) {
		wait := uint32(0) // always 0
		for range b.N {
			n := 1 + rng.Uint32N(positions-1) + wait
			p, ok := x.get(keyAt(n))
			if !ok || x.crc(p) != n {
				b.Fatalf("block %d: position %d", n, p)
			}
			wait = x.crc(p) ^ uint32(p)
		}
	})
}

// BenchmarkIndexMiss asks for blocks that the log doesn't have.
func BenchmarkIndexMiss(b *testing.B) {
	onLogs(b, func(b *testing.B, x *index, positions uint32, rng *rand.Rand) {
		wait := uint32(0)
		for range b.N {
			n := positions + rng.Uint32N(positions) + wait
			p, ok := x.get(keyAt(n))
			if ok {
				b.Fatalf("block %d: position %d", n, p)
			}
			wait = uint32(p)
		}
	})
}

// BenchmarkIndexPut writes the log around and around: a block goes, a new one comes. The blocks are
// those of a store four times the log's size.
func BenchmarkIndexPut(b *testing.B) {
	onLogs(b, func(b *testing.B, x *index, positions uint32, rng *rand.Rand) {
		for i := range b.N {
			p := Pos(1 + uint32(i)%(positions-1))
			x.evict(p)
			x.put(keyAt(rng.Uint32N(4*positions)), p, 0)
		}
	})
}
