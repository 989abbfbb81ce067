package perf

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

var quickSizes = sizes{file: 512 << 20, journal: 1 << 30, servers: 3}

// TestFit: on a fast disk nothing is made smaller; on slower ones files and journals are, until
// writing them takes no longer than it may; and never below what still measures something.
func TestFit(t *testing.T) {
	const limit = 15 * time.Second
	last := quickSizes
	for _, mbps := range []float64{2000, 600, 400, 200, 100, 50, 20, 5, 0} {
		rate := mbps * 1e6
		got := quickSizes.fit(limit, rate)
		least := got.file == leastSize && got.journal == leastJournal
		if took := got.time(max(rate, 1)); took > limit && !least {
			t.Errorf("%v MB/s: %v takes %v", mbps, got, took)
		}
		if got.file > last.file || got.journal > last.journal {
			t.Errorf("%v MB/s: %v, more than %v on a faster disk", mbps, got, last)
		}
		if got.file < leastSize || got.journal < leastJournal {
			t.Errorf("%v MB/s: %v is too small", mbps, got)
		}
		if next := (sizes{got.file * 2, got.journal * 2, 3}); got != quickSizes && rate > 0 &&
			next.time(rate) <= limit {
			t.Errorf("%v MB/s: there is room for more than %v", mbps, got)
		}
		words := got.smaller(quickSizes, rate)
		if (words == "") != (got == quickSizes) {
			t.Errorf("%v MB/s: said %q of %v", mbps, words, got)
		}
		last = got
	}
	if got := quickSizes.fit(limit, 600e6); got != quickSizes {
		t.Errorf("600 MB/s: %v", got)
	}
	if last.file != leastSize || last.journal != leastJournal {
		t.Errorf("a disk that stands still: %v", last)
	}
	small := sizes{16 << 20, 64 << 20, 3} // asked for
	if got := small.fit(time.Second, 1e6); got != small {
		t.Errorf("small ones became %v", got)
	}
}

// fakeClock is told what time passes.
type fakeClock struct{ t time.Time }

func (c *fakeClock) now() time.Time       { return c.t }
func (c *fakeClock) pass(d time.Duration) { c.t = c.t.Add(d) }
func newClock() (*fakeClock, time.Time)   { c := &fakeClock{time.Unix(1e9, 0)}; return c, c.t }
func seconds(s float64) (d time.Duration) { return time.Duration(s * float64(time.Second)) }
func about(got, want time.Duration) (ok bool) {
	return math.Abs(float64(got-want)) < float64(time.Millisecond)
}

// TestPieces: the file is written as far as there is time, at least a piece of it.
func TestPieces(t *testing.T) {
	for name, c := range map[string]struct {
		each float64 // seconds of a piece
		want int64   // pieces
	}{"fast": {0.5, 8}, "slow": {3, 3}, "too slow": {30, 1}, "none left": {math.Inf(1), 1}} {
		clock, begun := newClock()
		var at int64
		done, err := pieces(8*leastSize, begun.Add(10*time.Second), clock.now,
			func(from, n int64) error {
				if from != at || n != leastSize {
					t.Errorf("%s: %d bytes from %d on, after %d", name, n, from, at)
				}
				at = from + n
				clock.pass(seconds(min(c.each, 1e6)))
				return nil
			})
		if err != nil || done != c.want*leastSize {
			t.Errorf("%s: %d bytes, %v", name, done, err)
		}
	}
	bad := errors.New("bad")
	fails := func(int64, int64) error { return bad }
	if _, err := pieces(1, time.Time{}, time.Now, fails); err != bad {
		t.Errorf("error %v", err)
	}
	if done, err := pieces(3<<20, time.Now().Add(time.Hour), time.Now,
		func(_, n int64) error { return nil }); err != nil || done != 3<<20 {
		t.Errorf("less than a piece: %d, %v", done, err)
	}
}

// TestPace: a plan ends in time, whatever a run takes; what it has then is used, and what it hasn't
// is named.
func TestPace(t *testing.T) {
	const within = 40 * time.Second
	rows := Rows(250*time.Millisecond, 1<<30, Fronts{Fuse: true, NBD: true})
	perRound := len(order(rows, 0))
	for _, c := range []struct {
		each   float64 // seconds of a run
		rounds int     // in full
	}{{0.3, 3}, {0.6, 3}, {0.9, 2}, {1.5, 1}, {2.5, 0}, {25, 0}, {50, 0}} {
		clock, begun := newClock()
		ran := 0
		fronts := map[string]Runner{}
		for _, front := range []string{FrontNative, FrontRaw, FrontFuse, FrontNBD} {
			fronts[front] = func(context.Context, Workload) (Result, error) {
				ran++
				clock.pass(seconds(c.each))
				return Result{Ops: 1, IOPS: 1, MBps: 1}, nil
			}
		}
		p, err := runPlan(t.Context(), rows, 3, fronts,
			&pace{until: begun.Add(within), now: clock.now}, func(int, int, string) {})
		if err != nil {
			t.Fatal(err)
		}
		took := clock.t.Sub(begun)
		if took > within && !about(took, seconds(c.each)) { // the first run begins in any case
			t.Errorf("%v s each: it took %v", c.each, took)
		}
		if p.rounds != c.rounds {
			t.Errorf("%v s each: %d rounds, want %d", c.each, p.rounds, c.rounds)
		}
		if len(p.figures)+len(p.left) != len(rows) {
			t.Errorf("%v s each: %d figures, %d left out of %d", c.each, len(p.figures), len(p.left),
				len(rows))
		}
		if c.rounds > 0 && (len(p.left) > 0 || ran < c.rounds*perRound) {
			t.Errorf("%v s each: %q left out after %d runs", c.each, p.left, ran)
		}
		for _, f := range p.figures {
			if len(f.Values) != max(c.rounds, 1) || f.Value <= 0 && f.Name != "read_q1_extra_us" &&
				!strings.HasPrefix(f.Name, "cpu") {
				t.Errorf("%v s each: %+v", c.each, f)
			}
		}
		for _, r := range p.runs {
			if len(r.Rounds) == 0 {
				t.Errorf("%v s each: no round of %s", c.each, r.Name)
			}
		}
	}
	// Files took all the time: nothing is begun.
	clock, begun := newClock()
	p, err := runPlan(t.Context(), rows, 3, nil, &pace{until: begun.Add(-1), now: clock.now},
		func(int, int, string) {})
	if err != nil || len(p.figures) != 0 || len(p.left) != len(rows) {
		t.Errorf("no time at all: %+v, %v", p, err)
	}
}
