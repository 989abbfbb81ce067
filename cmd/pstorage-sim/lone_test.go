package main

import "testing"

// rots is a scenario in which a chunk may be left to the rotten server alone.
func rots(s *scenario) {
	s.replicas, s.minimum, s.rot, s.ghost = 3, 2, true, false
	s.victims = min(s.victims, 1)
}

// TestLone: blocks that are damaged at the only member are found at former ones.
func TestLone(t *testing.T) {
	seeds := uint64(24)
	if testing.Short() {
		seeds = 8
	}
	for seed := range seeds {
		if res := runSeed(config{seed: 31000 + seed, fix: rots}); len(res.violations) > 0 {
			t.Fatalf("seed %d: %v", 31000+seed, res.violations)
		}
	}
}

// TestLoneFindsCanaries: reads that fail although a former member has the block, and old content
// that is taken from one, are noticed.
func TestLoneFindsCanaries(t *testing.T) {
	if testing.Short() {
		t.Skip("takes up to a minute")
	}
	for _, name := range []string{"no-salvage", "salvage-any"} {
		found := uint64(0)
		for seed := uint64(1); seed <= 200 && found == 0; seed++ {
			if len(runSeed(config{seed: 31000 + seed, fix: rots, canary: name}).violations) > 0 {
				found = seed
			}
		}
		if found == 0 {
			t.Errorf("%s: nothing was found", name)
		}
		t.Logf("%s: found in %d seeds", name, found)
	}
}
