package main

import (
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func TestScrubFlags(t *testing.T) {
	for _, c := range []struct {
		in   string
		want time.Duration
		bad  bool
	}{{"14d", 14 * 24 * time.Hour, false}, {"36h", 36 * time.Hour, false}, {"off", -1, false},
		{"1.5d", 36 * time.Hour, false}, {"1h30m", 90 * time.Minute, false}, {"0", 0, true},
		{"-3d", 0, true}, {"59m", 0, true}, {"9999d", 0, true}, {"d", 0, true}, {"NaNd", 0, true},
		{"1e300d", 0, true}, {"", 0, true}} {
		var f, child scrubFlags
		flags := pflag.NewFlagSet("t", pflag.ContinueOnError)
		f.add(flags)
		err := flags.Parse([]string{"--scrub-period", c.in, "--scrub-rate", "7"})
		if (err != nil) != c.bad {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if c.bad {
			continue
		}
		again := pflag.NewFlagSet("t", pflag.ContinueOnError)
		child.add(again)
		if err := again.Parse(f.args()); err != nil || child.period() != c.want ||
			child.rate() != 7<<20 {
			t.Errorf("%q: the child gets %v: %v %d %v", c.in, f.args(), child.period(), child.rate(), err)
		}
	}
	var f scrubFlags
	f.add(pflag.NewFlagSet("t", pflag.ContinueOnError))
	if f.period() != 14*24*time.Hour || f.rate() != 64<<20 {
		t.Errorf("defaults: %v, %d", f.period(), f.rate())
	}
}
