package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// scrubFlags are how the scrubbers of this node's chunk servers work.
type scrubFlags struct {
	every every
	mibS  uint32
}

func (f *scrubFlags) add(flags *pflag.FlagSet) {
	f.every = every(14 * 24 * time.Hour)
	flags.Var(&f.every, "scrub-period", "read each whole store once in this `TIME` and compare it "+
		"with its checksums, such as 14d or 36h; off: only on pstorage scrub start")
	flags.Uint32Var(&f.mibS, "scrub-rate", 64, "read at most so many `MiB` per second for it")
}

// args hands the flags to a child.
func (f *scrubFlags) args() []string {
	return []string{"--scrub-period", f.every.String(), "--scrub-rate", strconv.Itoa(int(f.mibS))}
}

// period is as in chunk.Options: negative is off.
func (f *scrubFlags) period() time.Duration {
	if f.every == 0 {
		return -1
	}
	return time.Duration(f.every)
}

func (f *scrubFlags) rate() int64 { return int64(f.mibS) << 20 }

// every is a duration that may be in days; 0 is off.
type every time.Duration

const (
	shortestPeriod = time.Hour
	longestPeriod  = 365 * 24 * time.Hour
)

func (e *every) Set(s string) error {
	if s == "off" {
		*e = 0
		return nil
	}
	var d time.Duration
	var err error
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n float64
		n, err = strconv.ParseFloat(days, 64)
		d = time.Duration(n * 24 * float64(time.Hour))
	} else {
		d, err = time.ParseDuration(s)
	}
	switch {
	case err != nil:
		return errors.New("not a time: write 14d, 36h, or off")
	case d < shortestPeriod || d > longestPeriod:
		return fmt.Errorf("from 1h to %dd, or off", longestPeriod/(24*time.Hour))
	}
	*e = every(d)
	return nil
}

func (e *every) String() string {
	const day = 24 * time.Hour
	switch d := time.Duration(*e); {
	case d == 0:
		return "off"
	case d%day == 0:
		return fmt.Sprintf("%dd", d/day)
	default:
		return d.String()
	}
}

func (e *every) Type() string { return "time" }
