package main

import (
	"strings"
	"testing"
)

// TestImage: an old image of a server's directory is refused, and its chunks recover; that it is
// let in is noticed.
func TestImage(t *testing.T) {
	if raced {
		t.Skip("too slow with the race detector; .ci/test runs it without")
	}
	seedsWith(t, "image", "trust-images", sceneImage)
}

// TestLiar: a server that lost what it had acknowledged is found and excluded, soon; that it isn't
// asked for its lease is noticed.
func TestLiar(t *testing.T) {
	if raced {
		t.Skip("too slow with the race detector; .ci/test runs it without")
	}
	seedsWith(t, "liar", "no-forfeit", sceneLiar)
}

// seedsWith runs some seeds of a kind, until there were enough, and its canary until it is found.
func seedsWith(t *testing.T, kind, canary string, scene int) {
	t.Helper()
	var sum counts
	for seed := uint64(33000); seed < 33100 && sum.injected[scene] < 4; seed++ {
		res := runSeed(config{seed: seed, with: kind})
		if len(res.violations) > 0 {
			t.Fatalf("seed %d (%s): %v", seed, res.scenario, res.violations)
		}
		sum.add(res.counts)
	}
	if sum.injected[scene] == 0 || scene == sceneImage && sum.refused == 0 {
		t.Errorf("%v, %d refused: nothing is shown", sum.injected, sum.refused)
	}
	for seed := uint64(33000); seed < 33100; seed++ {
		for _, v := range runSeed(config{seed: seed, with: kind, canary: canary}).violations {
			if strings.Contains(v, " I8: ") {
				return
			}
		}
	}
	t.Errorf("canary %s: no violation of I8 in 100 seeds", canary)
}
