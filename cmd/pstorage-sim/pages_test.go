package main

import "testing"

// TestFewPages: CRC pages make room for others, and requests wait for room. Seed 36 has reads that
// would take it from each other for ever.
func TestFewPages(t *testing.T) {
	if raced {
		t.Skip("too slow with the race detector; .ci/test runs it without")
	}
	var sum counts
	for _, seed := range []uint64{36, 32001, 32002, 32003, 32004, 32005, 32006, 32007} {
		res := runSeed(config{seed: seed, with: "pages"})
		if len(res.violations) > 0 {
			t.Fatalf("seed %d (%s): %v", seed, res.scenario, res.violations)
		}
		sum.add(res.counts)
	}
	if sum.pages == 0 || sum.evicted == 0 || sum.short == 0 {
		t.Errorf("%d runs, %d pages made room, %d waits for room: nothing is shown", sum.pages,
			sum.evicted, sum.short)
	}
}
