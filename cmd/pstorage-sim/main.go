// Command pstorage-sim runs whole clusters in one simulated thread: the real chunk servers, the
// real client and the real metadata state machine, under faults chosen by a seed, and checks what
// they promise. See README.md.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"
)

func main() {
	var o options
	flag.IntVar(&o.seeds, "seeds", 0, "how many seeds to run; 0: 100, or for -canary all as many as "+
		"each canary may take")
	flag.Uint64Var(&o.first, "seed", 1, "the first seed")
	flag.StringVar(&o.canary, "canary", "",
		"break the protocol: all, "+strings.Join(canaryNames(), ", "))
	flag.StringVar(&o.with, "with", "",
		"make every seed that it fits a run of this kind: "+strings.Join(kinds, ", "))
	flag.DurationVar(&o.limit, "time", 0, "stop after this time; 0: when all seeds have run")
	flag.IntVar(&o.jobs, "j", 1, "seeds run at the same time")
	flag.IntVar(&o.keep, "keep", 1, "stop after this many seeds with violations; 0: never")
	flag.IntVar(&o.twice, "twice", 50, "run every n-th seed twice and compare; 0: none")
	flag.BoolVar(&o.trace, "trace", false, "print what happens (for one seed)")
	profile := flag.String("cpuprofile", "", "write a CPU profile to this file")
	flag.Usage = usage
	debug.SetGCPercent(1600)           // of little: what disks hold is outside of the heap
	slog.SetDefault(slog.New(quiet{})) // of connections that have no logger of their own
	flag.Parse()
	if flag.NArg() > 0 || o.seeds < 0 || o.jobs < 1 {
		usage()
		os.Exit(2)
	}
	if o.canary == "all" {
		if o.allCanaries() > 0 {
			os.Exit(1)
		}
		return
	}
	if o.seeds == 0 {
		o.seeds = 100
	}
	if _, ok := canaries[o.canary]; o.canary != "" && !ok {
		fmt.Fprintf(os.Stderr, "pstorage-sim: no canary %q; there are %s\n", o.canary,
			strings.Join(canaryNames(), ", "))
		os.Exit(2)
	}
	if o.with != "" && !slices.Contains(kinds, o.with) {
		fmt.Fprintf(os.Stderr, "pstorage-sim: no kind of run %q; there are %s\n", o.with,
			strings.Join(kinds, ", "))
		os.Exit(2)
	}
	stop := func() {}
	if *profile != "" {
		var err error
		if stop, err = profileTo(*profile); err != nil {
			fmt.Fprintln(os.Stderr, "pstorage-sim:", err)
			os.Exit(2)
		}
	}
	found := o.run()
	stop()
	if found > 0 {
		os.Exit(1)
	}
}

// profileTo writes a CPU profile until stop is called.
func profileTo(path string) (stop func(), err error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() {
		pprof.StopCPUProfile()
		_ = f.Close()
	}, nil
}

func usage() {
	fmt.Fprint(os.Stderr, `usage: pstorage-sim [-seeds N] [-seed S] [-canary NAME] [-time D] [-j N]

Runs simulated clusters, one per seed from S on, under faults, and checks what they promise.
Exits with 0 only if nothing was violated. A seed is replayed with -seed S -seeds 1 [-trace].
With -canary all it exits with 0 only if every canary was found.

`)
	flag.PrintDefaults()
}

type options struct {
	seeds, jobs, keep, twice int
	first                    uint64
	canary, with             string
	limit                    time.Duration
	trace                    bool
	quiet                    bool // prints nothing
}

// run runs all seeds and returns how many violated something.
func (o *options) run() int {
	_, bad := o.seedsRun()
	return bad
}

// seedsRun says how many seeds it ran, too.
func (o *options) seedsRun() (ran, bad int) {
	start := time.Now()
	var mu sync.Mutex
	next, virtual, events, ops, hash := o.first, time.Duration(0), uint64(0), 0, uint64(0)
	var sums counts
	var waits waitTimes
	var wg sync.WaitGroup
	for range o.jobs {
		wg.Go(func() {
			for {
				mu.Lock()
				seed := next
				if seed-o.first >= uint64(o.seeds) || o.limit > 0 && time.Since(start) > o.limit ||
					o.keep > 0 && bad >= o.keep {
					mu.Unlock()
					return
				}
				next++
				mu.Unlock()
				res := runSeed(config{seed: seed, canary: o.canary, with: o.with, trace: o.trace})
				if o.twice > 0 && seed%uint64(o.twice) == 0 && len(res.violations) == 0 {
					again := runSeed(config{seed: seed, canary: o.canary, with: o.with})
					if again.hash != res.hash {
						res.violations = append(res.violations, fmt.Sprintf(
							"two runs of one seed differ: event hash %x and %x", res.hash, again.hash))
					}
				}
				mu.Lock()
				ran++
				virtual += res.virtual
				sums.add(res.counts)
				waits.add(seed, res.stuck)
				events += res.events
				hash ^= res.hash
				ops += res.ops
				if len(res.violations) > 0 {
					bad++
					o.report(seed, &res)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if o.quiet {
		return ran, bad
	}
	took := time.Since(start)
	per := func(n float64) float64 { return n / float64(max(ran, 1)) }
	fmt.Printf("%.0f seeds per minute, %.1f simulated hours in %v; per seed %.0f events, %.0f "+
		"operations, %.1f s; event hash %016x\n", float64(ran)/took.Minutes(), virtual.Hours(),
		took.Round(time.Millisecond), per(float64(events)), per(float64(ops)), per(virtual.Seconds()),
		hash)
	fmt.Println(sums)
	fmt.Println(waits.String())
	fmt.Printf("seeds=%d violations=%d simulated=%v\n", ran, bad, virtual.Round(time.Millisecond))
	return ran, bad
}

func (o *options) report(seed uint64, res *result) {
	if o.quiet {
		return
	}
	fmt.Printf("seed %d: %d violations (%s)\n", seed, len(res.violations), res.scenario)
	for i, v := range res.violations {
		if i == 10 {
			fmt.Printf("  ... and %d more\n", len(res.violations)-i)
			break
		}
		fmt.Println("  " + v)
	}
	replay := fmt.Sprintf("bin/pstorage-sim -seeds 1 -seed %d -trace", seed)
	if o.canary != "" {
		replay += " -canary " + o.canary
	}
	if o.with != "" {
		replay += " -with " + o.with
	}
	fmt.Println("  replay: " + replay)
}

func canaryNames() []string {
	var names []string
	for n := range canaries {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}
