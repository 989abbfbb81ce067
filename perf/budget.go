package perf

import (
	"fmt"
	"time"
)

// This file keeps a measurement within a time (BenchOptions.Within), whatever the disk:
//
//  1. how fast the disk writes is probed, and files and journals are made smaller until writing
//     them takes no more than a share of the time;
//  2. the cluster's file is written in pieces, as many as that share has room for;
//  3. a round begins only if there is room for one as long as the longest before it, and a run only
//     if there is room for the slowest before it.
//
// What was made smaller or left out is in the report.

const (
	layShare  = 0.4             // of the time, until the first run
	startTime = 5 * time.Second // of it, to start the servers
	stopTime  = 4 * time.Second // after the last run, to stop and remove everything

	leastSize    = 64 << 20  // files aren't made smaller than this
	leastJournal = 256 << 20 // nor journals: the write rows are to find room in them

	// nativeRate is what the client writes at most when everything runs on two CPUs, in bytes per
	// second.
	nativeRate = 250e6
)

// sizes are what is written before the first run.
type sizes struct {
	file    int64 // of the yardstick's file, and of the cluster's, of which there are three copies
	journal int64 // of each chunk server, written in full when it is made
	servers int
}

// time is how long writing it all takes on a disk of so many bytes per second.
func (s sizes) time(rate float64) time.Duration {
	file := float64(s.file)
	seconds := (file+float64(s.journal)*float64(s.servers))/rate + max(3*file/rate, file/nativeRate)
	return time.Duration(seconds * float64(time.Second))
}

// fit makes sizes smaller, by halves, until writing them takes at most limit.
func (s sizes) fit(limit time.Duration, rate float64) sizes {
	if rate <= 0 {
		rate = 1 // nothing was written in all the time of the probe
	}
	for s.time(rate) > limit && (s.file > leastSize || s.journal > leastJournal) {
		if s.file > leastSize {
			s.file = max(s.file/2, leastSize)
		}
		if s.journal > leastJournal {
			s.journal = max(s.journal/2, leastJournal)
		}
	}
	return s
}

// smaller says what fit changed, for people; empty: nothing.
func (s sizes) smaller(than sizes, rate float64) string {
	if s == than {
		return ""
	}
	return fmt.Sprintf("files of %d MiB instead of %d and journals of %d MiB instead of %d: the disk "+
		"writes %.0f MB/s", s.file>>20, than.file>>20, s.journal>>20, than.journal>>20, rate/1e6)
}

// pieces lays out size bytes by calls of lay, as far as it gets before the end. The first piece is
// written in any case. It returns how many bytes it were.
func pieces(size int64, end time.Time, now func() time.Time, lay func(from, n int64) error) (
	done int64, err error) {
	for slowest := time.Duration(0); done < size; {
		begun := now()
		if done > 0 && begun.Add(slowest).After(end) {
			break
		}
		n := min(size-done, leastSize)
		if err := lay(done, n); err != nil {
			return done, err
		}
		done += n
		slowest = max(slowest, now().Sub(begun))
	}
	return done, nil
}

// pace says how far a plan may go. nil: all the way.
type pace struct {
	until   time.Time
	now     func() time.Time
	slowest time.Duration // run so far
	longest time.Duration // round so far
	begun   time.Time     // of the round
}

// round says whether another round may begin.
func (p *pace) round() bool {
	if p == nil {
		return true
	}
	now := p.now()
	if !p.begun.IsZero() {
		p.longest = max(p.longest, now.Sub(p.begun))
	}
	p.begun = now
	return !now.Add(p.longest).After(p.until)
}

// run says whether another run may begin.
func (p *pace) run() bool { return p == nil || !p.now().Add(p.slowest).After(p.until) }

// ran is told of a run that began then.
func (p *pace) ran(begun time.Time) {
	if p != nil {
		p.slowest = max(p.slowest, p.now().Sub(begun))
	}
}

// time is the clock's.
func (p *pace) time() (t time.Time) {
	if p != nil {
		t = p.now()
	}
	return t
}
