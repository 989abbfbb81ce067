package main

import "testing"

// TestFewBuffers: requests wait for buffers. In seed 10007 a connection does with a full window.
func TestFewBuffers(t *testing.T) {
	if raced {
		t.Skip("too slow with the race detector; .ci/test runs it without")
	}
	for _, seed := range []uint64{10007, 33001, 33002, 33003, 33004} {
		res := runSeed(config{seed: seed, with: "buffers"})
		if len(res.violations) > 0 {
			t.Errorf("seed %d (%s): %v", seed, res.scenario, res.violations)
		}
		if res.counts.buffers != 1 {
			t.Errorf("seed %d has as many buffers as ever", seed)
		}
	}
}
