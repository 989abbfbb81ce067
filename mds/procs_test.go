package mds

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestProcs(t *testing.T) {
	for cpus, want := range map[int]int{1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 128: 4} {
		if got := Procs(cpus); got != want {
			t.Errorf("%d threads on %d CPUs, not %d", got, cpus, want)
		}
	}
}

// TestTuneRuntime: what the environment says is left alone.
func TestTuneRuntime(t *testing.T) {
	procs, percent := runtime.GOMAXPROCS(3), debug.SetGCPercent(70)
	defer func() {
		runtime.GOMAXPROCS(procs)
		debug.SetGCPercent(percent)
	}()
	state := func() (int, int) {
		p := debug.SetGCPercent(100)
		debug.SetGCPercent(p)
		return runtime.GOMAXPROCS(0), p
	}
	t.Setenv("GOGC", "70")
	t.Setenv("GOMAXPROCS", "3")
	TuneRuntime()
	if p, gc := state(); p != 3 || gc != 70 {
		t.Errorf("%d threads and %d %% of garbage, not what the environment says", p, gc)
	}
	t.Setenv("GOGC", "")
	t.Setenv("GOMAXPROCS", "")
	runtime.SetDefaultGOMAXPROCS()
	want := Procs(runtime.GOMAXPROCS(0))
	runtime.GOMAXPROCS(want + 7) // as a program with a loop may have set
	TuneRuntime()
	if p, gc := state(); p != want || gc != GCPercent {
		t.Errorf("%d threads and %d %% of garbage, not %d and %d", p, gc, want, GCPercent)
	}
}
