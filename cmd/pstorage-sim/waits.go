package main

import (
	"fmt"
	"slices"
	"time"
)

// waitTimes says how long clients waited for the last operation after all faults had ended: what
// the program's own time limits and repetitions cost.
type waitTimes struct {
	all   []time.Duration
	worst time.Duration
	seed  uint64 // of the worst
}

func (t *waitTimes) add(seed uint64, d time.Duration) {
	t.all = append(t.all, d)
	if d > t.worst {
		t.worst, t.seed = d, seed
	}
}

func (t *waitTimes) String() string {
	if len(t.all) == 0 {
		return "no runs"
	}
	slices.Sort(t.all)
	at := func(share float64) time.Duration {
		return t.all[int(share*float64(len(t.all)-1))].Round(time.Millisecond)
	}
	return fmt.Sprintf("last operation after the end of faults: median %v, 99 %% within %v, "+
		"longest %v (seed %d)", at(0.5), at(0.99), t.worst.Round(time.Millisecond), t.seed)
}
