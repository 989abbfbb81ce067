package main

import "testing"

func BenchmarkSeed(b *testing.B) {
	ops := 0
	for i := range b.N {
		r := runSeed(config{seed: uint64(i + 1)})
		ops += r.ops
		for _, v := range r.violations {
			b.Errorf("seed %d: %s", i+1, v)
		}
	}
	b.ReportMetric(float64(ops)/float64(b.N), "client-ops/op")
}
