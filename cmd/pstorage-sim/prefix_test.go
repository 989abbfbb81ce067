package main

import (
	"strings"
	"testing"
)

// TestPrefixCanaries: members that begin an activation with other contents than the first are
// noticed then, not only when somebody reads them.
func TestPrefixCanaries(t *testing.T) {
	if raced {
		t.Skip("too slow with the race detector; .ci/test runs it without")
	}
	for _, name := range []string{"no-patches", "no-dirty"} {
		found := false
		for seed := uint64(1); seed <= 100 && !found; seed++ {
			for _, v := range runSeed(config{seed: seed, canary: name}).violations {
				found = found || strings.Contains(v, " I2: ")
			}
		}
		if !found {
			t.Errorf("canary %s: no violation of I2 in 100 seeds", name)
		}
	}
}
