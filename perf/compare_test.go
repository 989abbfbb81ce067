package perf

import (
	"bytes"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// synthetic makes reports of one figure whose rounds scatter like a shared disk's: most close to
// the median, some far below it.
func synthetic(rng *rand.Rand, name string, atLeast bool, median float64, rounds int) []*Report {
	f := Figure{Name: name, Unit: "x", AtLeast: atLeast}
	for range rounds {
		v := median * (1 + 0.04*rng.NormFloat64())
		if rng.IntN(8) == 0 {
			v *= 0.6
		}
		f.Values = append(f.Values, v)
	}
	f.Value = Median(f.Values)
	return []*Report{{Figures: []Figure{f}}}
}

func TestCompareNoise(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	wrong, small, found := 0, 0, 0
	const trials = 100
	for range trials {
		base := synthetic(rng, "a", true, 0.6, 12)
		if Compare(base, synthetic(rng, "a", true, 0.6, 12), CompareOptions{})[0].Verdict != Same {
			wrong++
		}
		if Compare(base, synthetic(rng, "a", true, 0.59, 12), CompareOptions{})[0].Verdict != Same {
			small++
		}
		if Compare(base, synthetic(rng, "a", true, 0.5, 12), CompareOptions{})[0].Verdict == Worse {
			found++
		}
	}
	if wrong > trials/50 {
		t.Errorf("%d of %d pairs that differ by noise alone count as changes", wrong, trials)
	}
	if small > trials/20 {
		t.Errorf("%d of %d changes by 2 %% count", small, trials)
	}
	if found < trials*8/10 {
		t.Errorf("only %d of %d losses of 17 %% were found", found, trials)
	}
}

func TestCompareDirection(t *testing.T) {
	values := func(name string, atLeast bool, v ...float64) []*Report {
		return []*Report{{Figures: []Figure{{Name: name, AtLeast: atLeast, Values: v}}}}
	}
	low := []float64{1, 1.01, 1.02, 1.03, 1.04, 1.05}
	high := []float64{2, 2.01, 2.02, 2.03, 2.04, 2.05}
	below := []float64{-5, -5.1, -5.2, -5.3, -5.4, -5.5} // the yardstick was slower
	lower := []float64{-9, -9.1, -9.2, -9.3, -9.4, -9.5}
	none := []float64{0, 0, 0, 0, 0, 0}
	for _, c := range []struct {
		name          string
		atLeast       bool
		before, after []float64
		want          Verdict
	}{
		{"more of what should be much", true, low, high, Better},
		{"less of what should be much", true, high, low, Worse},
		{"more of what should be little", false, low, high, Worse},
		{"less of what should be little", false, high, low, Better},
		{"the same", true, low, low, Same},
		{"the same below 0", false, below, below, Same},
		{"from below 0 to above", false, below, low, Worse},
		{"from above 0 to below", false, low, below, Better},
		{"further below 0", false, below, lower, Better},
		{"from 0", false, none, low, Worse},
		{"three rounds prove nothing", true, low[:3], high[:3], TooFew},
	} {
		got := Compare(values("a", c.atLeast, c.before...), values("a", c.atLeast, c.after...),
			CompareOptions{})
		if len(got) != 1 || got[0].Verdict != c.want {
			t.Errorf("%s: %+v, want %v", c.name, got, c.want)
		}
	}
	// Rounds of several reports count together.
	two := append(values("a", true, low[:3]...), values("a", true, low[3:]...)...)
	if got := Compare(two, values("a", true, high...), CompareOptions{})[0]; got.Verdict != Better {
		t.Errorf("two reports of three rounds: %+v", got)
	}
}

// TestCompareLost: a figure that only one side has is said, and which one.
func TestCompareLost(t *testing.T) {
	report := func(names ...string) []*Report {
		r := &Report{}
		for _, name := range names {
			r.Figures = append(r.Figures, Figure{Name: name, Value: 3, Values: []float64{2, 3, 4}})
		}
		return []*Report{r}
	}
	got := Compare(report("both", "old"), report("new", "both"), CompareOptions{})
	if len(got) != 3 || got[0].Name != "new" || got[0].Verdict != New || got[1].Name != "both" ||
		got[2].Name != "old" || got[2].Verdict != Gone || got[2].Before != 3 {
		t.Fatalf("%+v", got)
	}
	var out bytes.Buffer
	if err := WriteChanges(&out, got); err != nil || !strings.Contains(out.String(), "GONE") {
		t.Errorf("%v: %s", err, out.String())
	}
}

// TestCompareRuns: rounds of a report that are all alike prove nothing when there are enough
// reports to see how these differ.
func TestCompareRuns(t *testing.T) {
	side := func(medians ...float64) (reports []*Report) {
		for _, m := range medians {
			reports = append(reports, &Report{Figures: []Figure{{Name: "a", Unit: "x", AtLeast: true,
				Values: []float64{m - 0.001, m, m + 0.001}}}})
		}
		return reports
	}
	// Reports differ by a half, rounds by a thousandth.
	before, after := side(1, 1.5, 1.1, 1.4, 1.3), side(0.9, 1.35, 1.45, 1.05, 0.8)
	got := Compare(before, after, CompareOptions{})[0]
	if !got.Runs || got.Verdict != Same || got.Samples != [2]int{5, 5} {
		t.Errorf("5 reports each: %+v", got)
	}
	if got := Compare(side(1, 1.1, 1.2, 1.3, 1.4), side(2, 2.1, 2.2, 2.3, 2.4),
		CompareOptions{})[0]; got.Verdict != Better || !got.Runs {
		t.Errorf("5 reports each, far apart: %+v", got)
	}
	got = Compare(before[:3], after[:3], CompareOptions{})[0]
	if got.Runs || got.Samples != [2]int{9, 9} {
		t.Errorf("3 reports each: %+v", got)
	}
	var out bytes.Buffer
	err := WriteChanges(&out, []Change{got})
	if err != nil || !strings.Contains(out.String(), "9/9 rounds") ||
		!strings.Contains(out.String(), "more alike") {
		t.Errorf("it isn't said that rounds count one by one: %v, %s", err, out.String())
	}
}

func TestComparable(t *testing.T) {
	base := Report{Size: 1 << 30, Seconds: 2, CS: 3, Journal: 1 << 30, Machine: "a"}
	for name, c := range map[string]struct {
		change       func(*Report)
		refuse, warn string
	}{
		"the same":           {func(*Report) {}, "", ""},
		"another size":       {func(r *Report) { r.Size = 1 << 29 }, "bytes of the file", ""},
		"shorter":            {func(r *Report) { r.Seconds = 0.25 }, "seconds", ""},
		"more servers":       {func(r *Report) { r.CS = 4 }, "chunk servers", ""},
		"a smaller journal":  {func(r *Report) { r.Journal = 1 << 28 }, "journal", ""},
		"another machine":    {func(r *Report) { r.Machine = "b" }, "", "machine: a and b"},
		"an earlier version": {func(r *Report) { r.CS, r.Journal = 0, 0 }, "", ""},
	} {
		other := base
		c.change(&other)
		refuse, warn := Comparable([]*Report{&base, &base}, []*Report{&base, &other})
		if len(refuse) > 1 || len(warn) > 1 ||
			!strings.Contains(strings.Join(refuse, ""), c.refuse) || c.refuse == "" && refuse != nil ||
			!strings.Contains(strings.Join(warn, ""), c.warn) || c.warn == "" && warn != nil {
			t.Errorf("%s: refuse %q, warn %q", name, refuse, warn)
		}
	}
}

// TestMannWhitney compares with what counting all splits gives.
func TestMannWhitney(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for n := 1; n <= 4; n++ {
		for m := 1; m <= 5; m++ {
			var all []float64
			for range n + m {
				all = append(all, rng.Float64())
			}
			far := func(x, y []float64) float64 {
				u, _ := rankSum(x, y)
				return math.Abs(u - float64(n*m)/2)
			}
			want := far(all[:n], all[n:])
			hits, total := 0.0, 0.0
			for set := range 1 << (n + m) {
				var x, y []float64
				for i, v := range all {
					if set&(1<<i) != 0 {
						x = append(x, v)
					} else {
						y = append(y, v)
					}
				}
				if len(x) == n {
					total++
					if far(x, y) >= want {
						hits++
					}
				}
			}
			if got := MannWhitney(all[:n], all[n:]); math.Abs(got-hits/total) > 1e-12 {
				t.Errorf("%d and %d samples: p %v, counted %v", n, m, got, hits/total)
			}
		}
	}
	if p := MannWhitney([]float64{1, 1, 1, 1, 1}, []float64{1, 1, 1, 1, 1}); p != 1 {
		t.Errorf("equal samples: p %v", p)
	}
	if p := MannWhitney([]float64{1, 1, 2, 2, 1}, []float64{5, 5, 6, 6, 5}); p > 0.02 {
		t.Errorf("with ties, far apart: p %v", p)
	}
	if p := leastP(5, 5); math.Abs(p-2.0/252) > 1e-12 {
		t.Errorf("least p of 5 and 5: %v", p)
	}
}

func TestReadReports(t *testing.T) {
	dir := t.TempDir()
	report := synthetic(rand.New(rand.NewPCG(5, 6)), "randread_q32", true, 0.6, 3)[0]
	for _, name := range []string{"a.json", "b.json"} {
		var out bytes.Buffer
		if err := report.WriteJSON(&out); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	both, err := ReadReports(dir)
	if err != nil || len(both) != 2 {
		t.Fatalf("%d reports, %v", len(both), err)
	}
	var out bytes.Buffer
	err = WriteChanges(&out, Compare(both[:1], both[1:], CompareOptions{}))
	if err != nil || !strings.Contains(out.String(), "randread_q32") {
		t.Errorf("%v: %s", err, out.String())
	}
	for name, text := range map[string]string{"empty.json": "", "other.json": `{"a": 1}`} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadReports(path); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := ReadReports(t.TempDir()); err == nil {
		t.Error("a directory without reports: accepted")
	}
}
