package main

import (
	"flag"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seedFlag  = flag.Uint64("sim.seed", 0, "run this seed only")
	seedsFlag = flag.Int("sim.seeds", 300, "how many seeds TestSeeds runs")
)

// regressions are seeds that found faults of the program. What a seed does changes with every
// change of the program, so they prove little by themselves; they are as good as any others.
var regressions = []uint64{3, 6, 36, 40, 63, 73, 87, 138, 228, 376, 840, 1032, 700300, 8001196,
	8001533, 9000391, 12000706, 14001234, 14001552, 20000909, 850001376, 850010822, 870002946,
	870003887, 870004346, 870014030, 870016054, 870020745, 870021527, 870022601, 870029533}

func check(t *testing.T, seed uint64) result {
	t.Helper()
	r := runSeed(config{seed: seed})
	for _, v := range r.violations {
		t.Errorf("seed %d (%s): %s", seed, r.scenario, v)
	}
	return r
}

// TestSeeds runs a fixed set of seeds; with -sim.seed=S that one.
func TestSeeds(t *testing.T) {
	if *seedFlag != 0 {
		check(t, *seedFlag)
		return
	}
	list, seeds := regressions, *seedsFlag
	if raced {
		seeds = min(seeds, 20) // .ci/test runs all of them without the detector
	}
	for i := range seeds {
		list = append(list, uint64(10_000+i))
	}
	start := time.Now()
	var next, ops atomic.Int64
	var mu sync.Mutex
	var done counts
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(list)); i = next.Add(1) - 1 {
				r := check(t, list[i])
				ops.Add(int64(r.ops))
				mu.Lock()
				done.add(r.counts)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d seeds in %v", len(list), time.Since(start).Round(time.Millisecond))
	if ops.Load() < 50*int64(len(list)) {
		t.Errorf("only %d operations: the runs prove nothing", ops.Load())
	}
	t.Log(done)
	if never := done.injected.never(); len(never) > 0 && seeds >= 300 {
		t.Errorf("never injected: %v: the runs prove nothing about them", never)
	}
}

// TestSameHistory runs seeds twice and compares all events.
func TestSameHistory(t *testing.T) {
	for _, seed := range []uint64{11, 12, 13} {
		if a, b := runSeed(config{seed: seed}), runSeed(config{seed: seed}); a.hash != b.hash {
			t.Errorf("seed %d: event hashes %x and %x", seed, a.hash, b.hash)
		}
	}
}

// TestCanaries makes sure that broken protocols are found: those that take few seeds. All of them,
// with how many seeds each takes: bin/pstorage-sim -canary all -j 2.
func TestCanaries(t *testing.T) {
	if raced {
		t.Skip("too slow with the race detector; .ci/test runs it without")
	}
	for _, name := range []string{"ack-early", "no-patches", "deaf-head", "volatile-activate",
		"no-term-wait", "no-lease-wait"} {
		found := false
		for seed := uint64(1); seed <= 200 && !found; seed++ {
			found = len(runSeed(config{seed: seed, canary: name}).violations) > 0
		}
		if !found {
			t.Errorf("canary %s: not found in 200 seeds", name)
		}
	}
}

// TestFindCanary: one that isn't found in as many seeds as there are is missed.
func TestFindCanary(t *testing.T) {
	if raced {
		t.Skip("too slow with the race detector; .ci/test runs it without")
	}
	o := options{first: 1, jobs: 1}
	if ran, found := o.findCanary("ack-early"); !found || ran > usualSeeds {
		t.Errorf("ack-early: found %v in %d seeds", found, ran)
	}
	o.seeds = 1
	if ran, found := o.findCanary("no-salvage"); found || ran != 1 {
		t.Errorf("no-salvage: found %v in %d seeds, of one that hasn't got it", found, ran)
	}
}
