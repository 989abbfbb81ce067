package perf

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// This file tells a change from noise. Each side is a set of reports. Rounds of one report share a
// cluster, its files and some minutes: they are more alike than those of two reports. So a figure's
// samples are the medians of its reports, one of each, where there are enough of them on both
// sides; with fewer, the rounds of all reports count one by one, which makes changes look surer
// than they are, and that is said. Two questions are asked:
//
//  1. Could both sets of samples come from the same distribution? Mann-Whitney's rank test answers
//     with a probability, without assuming what the noise looks like; one outlier is one rank.
//  2. How large is the change? The ratio of the medians, with an interval from resampling.
//
// A change counts if the probability is below CompareOptions.Alpha and the medians differ by
// CompareOptions.Least. With few samples no result can be that improbable, and that is said: 5 on
// each side are the least at 1 %. A figure that only the first side has is lost, not the same.

// CompareOptions of Compare. Zero values mean the defaults.
type CompareOptions struct {
	Alpha float64 // how improbable it must be that it is noise; default 0.01
	Least float64 // smaller changes of the median don't count; default 0.05
}

// Verdict is what Compare has to say of a figure.
type Verdict string

// The verdicts.
const (
	Same   Verdict = "same"           // nothing to tell from noise, or too small a change
	Better Verdict = "better"         //
	Worse  Verdict = "WORSE"          // a regression
	TooFew Verdict = "too few rounds" // whatever came out, these rounds couldn't prove it
	Gone   Verdict = "GONE"           // only before has it: it counts as a regression
	New    Verdict = "new"            // only after has it
)

// Change is a figure before and after.
type Change struct {
	Name          string  `json:"name"`
	Unit          string  `json:"unit"`
	Before, After float64 // medians
	Samples       [2]int  // of each side
	Runs          bool    // the samples are reports; else rounds
	Ratio         float64 // After to Before
	Low, High     float64 // 95 % of resampled ratios lie between
	P             float64 // that both sides are the same thing
	Verdict       Verdict
}

// Compare compares the figures of both sides, in the order of after; those that after hasn't got
// come last.
func Compare(before, after []*Report, o CompareOptions) []Change {
	setDefault(&o.Alpha, 0.01)
	setDefault(&o.Least, 0.05)
	a, old := pool(before)
	b, order := pool(after)
	var changes []Change
	for _, f := range order {
		if a[f.Name] == nil {
			changes = append(changes, Change{Name: f.Name, Unit: f.Unit, Verdict: New,
				After: Median(b[f.Name].rounds), Samples: [2]int{0, len(b[f.Name].rounds)}})
			continue
		}
		changes = append(changes, o.compare(f, a[f.Name], b[f.Name]))
	}
	for _, f := range old {
		if b[f.Name] == nil {
			changes = append(changes, Change{Name: f.Name, Unit: f.Unit, Verdict: Gone,
				Before: Median(a[f.Name].rounds), Samples: [2]int{len(a[f.Name].rounds), 0}})
		}
	}
	return changes
}

// compare compares one figure.
func (o CompareOptions) compare(f Figure, before, after *samples) Change {
	c := Change{Name: f.Name, Unit: f.Unit,
		Runs: leastP(len(before.runs), len(after.runs)) < o.Alpha}
	x, y := before.rounds, after.rounds
	if c.Runs {
		x, y = before.runs, after.runs
	}
	c.Before, c.After, c.Samples, c.P = Median(x), Median(y), [2]int{len(x), len(y)}, MannWhitney(x, y)
	c.Ratio = finite(c.After / c.Before)
	c.Low, c.High = resampledRatio(x, y)
	c.Verdict = o.judge(c, f.AtLeast)
	return c
}

// samples are what a side has of a figure.
type samples struct {
	rounds []float64 // of all reports
	runs   []float64 // the median of each report
}

// pool puts the samples of all reports together.
func pool(reports []*Report) (all map[string]*samples, order []Figure) {
	all = map[string]*samples{}
	for _, r := range reports {
		for _, f := range r.Figures {
			s := all[f.Name]
			if s == nil {
				s = new(samples)
				all[f.Name] = s
				order = append(order, f)
			}
			values := f.samples()
			s.rounds = append(s.rounds, values...)
			s.runs = append(s.runs, Median(values))
		}
	}
	return all, order
}

// Comparable says in what the reports of both sides differ that they shouldn't. Where refuse has
// lines they measured different things; where warn has, what changed may be the machine.
func Comparable(before, after []*Report) (refuse, warn []string) {
	for _, c := range []struct {
		what  string
		value func(*Report) string
		list  *[]string
	}{
		{"bytes of the file", func(r *Report) string { return fmt.Sprint(r.Size) }, &refuse},
		{"seconds of a measurement", func(r *Report) string { return fmt.Sprint(r.Seconds) }, &refuse},
		{"chunk servers", func(r *Report) string { return fmt.Sprint(r.CS) }, &refuse},
		{"bytes of a journal", func(r *Report) string { return fmt.Sprint(r.Journal) }, &refuse},
		{"machine", func(r *Report) string { return r.Machine }, &warn},
	} {
		var values []string
		for _, r := range append(slices.Clone(before), after...) {
			// Reports of earlier versions don't say all of it.
			if v := c.value(r); v != "0" && v != "" && !slices.Contains(values, v) {
				values = append(values, v)
			}
		}
		if len(values) > 1 {
			*c.list = append(*c.list, c.what+": "+strings.Join(values, " and "))
		}
	}
	return refuse, warn
}

func (o CompareOptions) judge(c Change, moreIsBetter bool) Verdict {
	switch {
	case leastP(c.Samples[0], c.Samples[1]) >= o.Alpha:
		return TooFew
	case c.P >= o.Alpha, math.Abs(c.After-c.Before) < o.Least*math.Abs(c.Before):
		return Same
	case c.After > c.Before == moreIsBetter: // not the ratio: an extra latency may be below 0
		return Better
	}
	return Worse
}

// leastP is the smallest probability that n and m samples can give: all of one side above all of
// the other.
func leastP(n, m int) float64 { return min(1, 2/binomial(n+m, n)) }

func binomial(n, k int) float64 {
	v := 1.0
	for i := 1; i <= min(k, n-k); i++ {
		v = v * float64(n-min(k, n-k)+i) / float64(i)
	}
	return math.Round(v)
}

// exactBelow is up to how many samples in all Mann-Whitney's distribution is counted out.
const exactBelow = 40

// MannWhitney returns the probability (two-sided) that samples of one distribution, split at random
// in two such sets, differ in rank by as much as x and y do. Without ties, and for up to 40 samples
// in all, it is exact; otherwise the normal approximation.
func MannWhitney(x, y []float64) float64 {
	n, m := len(x), len(y)
	if n == 0 || m == 0 {
		return 1
	}
	u, ties := rankSum(x, y)
	if ties == 0 && n+m <= exactBelow {
		return exactP(u, n, m)
	}
	total := float64(n + m)
	variance := float64(n) * float64(m) / 12 * (total + 1 - ties/(total*(total-1)))
	if variance <= 0 {
		return 1 // all samples are equal
	}
	z := (math.Abs(u-float64(n*m)/2) - 0.5) / math.Sqrt(variance) // with correction for continuity
	return min(1, math.Erfc(max(z, 0)/math.Sqrt2))
}

// rankSum returns U, how many pairs of a sample of x and one of y have the one of x above (ties
// count half), and the sum of t^3-t over groups of t equal samples.
func rankSum(x, y []float64) (u, ties float64) {
	for _, a := range x {
		for _, b := range y {
			switch {
			case a > b:
				u++
			case a == b:
				u += 0.5
			}
		}
	}
	all := append(slices.Clone(x), y...)
	slices.Sort(all)
	for i := 0; i < len(all); {
		j := i
		for j < len(all) && all[j] == all[i] {
			j++
		}
		t := float64(j - i)
		ties += t*t*t - t
		i = j
	}
	return u, ties
}

// exactP counts the ways in which n of n+m ranks can have a U as far from the middle as u.
func exactP(u float64, n, m int) float64 {
	// ways[i][k]: how many choices of i of the ranks seen so far have a U of k. A rank's share of
	// U, when it is the i-th chosen, is how many ranks before it weren't.
	ways := make([][]float64, n+1)
	for i := range ways {
		ways[i] = make([]float64, n*m+1)
	}
	ways[0][0] = 1
	for rank := range n + m {
		for i := min(rank, n-1); i >= 0; i-- {
			skipped := rank - i
			for k := n*m - skipped; k >= 0 && skipped <= m; k-- {
				ways[i+1][k+skipped] += ways[i][k]
			}
		}
	}
	far := math.Abs(u - float64(n*m)/2)
	hits, all := 0.0, 0.0
	for k, w := range ways[n] {
		all += w
		if math.Abs(float64(k)-float64(n*m)/2) >= far {
			hits += w
		}
	}
	return min(1, hits/all)
}

// resamples is how often the samples are drawn anew for an interval.
const resamples = 2000

// resampledRatio returns between what values 95 % of the ratios of medians lie when both sides are
// drawn anew from their samples (bootstrap). The same samples give the same answer.
func resampledRatio(x, y []float64) (low, high float64) {
	rng := rand.New(rand.NewPCG(uint64(len(x)), uint64(len(y))))
	draw := func(from, to []float64) float64 {
		for i := range to {
			to[i] = from[rng.IntN(len(from))]
		}
		return Median(to)
	}
	a, b := make([]float64, len(x)), make([]float64, len(y))
	ratios := make([]float64, resamples)
	for i := range ratios {
		ratios[i] = finite(draw(y, b) / draw(x, a))
	}
	slices.Sort(ratios)
	return ratios[resamples*25/1000], ratios[resamples*975/1000]
}

// ReadReports reads the JSON that quick, bench and engine print: a file, or all *.json of a
// directory.
func ReadReports(path string) ([]*Report, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	files := []string{path}
	if info.IsDir() {
		if files, err = filepath.Glob(filepath.Join(path, "*.json")); err != nil {
			return nil, err
		}
	}
	var reports []*Report
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var doc struct {
			Report *Report `json:"report"`
		}
		if err := json.Unmarshal(text, &doc); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if doc.Report == nil || len(doc.Report.Figures) == 0 {
			return nil, fmt.Errorf("%s: not a report of pstorage-perf", file)
		}
		reports = append(reports, doc.Report)
	}
	if len(reports) == 0 {
		return nil, fmt.Errorf("%s: no *.json in it", path)
	}
	return reports, nil
}

// WriteChanges writes the changes for people.
func WriteChanges(out io.Writer, changes []Change) error {
	var b strings.Builder
	const line = "%-24s %10s %10s %-3s %8s %16s %8s %11s  %s\n"
	fmt.Fprintf(&b, line, "figure", "before", "after", "", "change", "95 %", "p", "samples", "")
	percent := func(ratio float64) string { return fmt.Sprintf("%+.1f", (ratio-1)*100) }
	rounds := false
	for _, c := range changes {
		before, after := fmt.Sprintf("%.4g", c.Before), fmt.Sprintf("%.4g", c.After)
		change, between := percent(c.Ratio)+" %", percent(c.Low)+" to "+percent(c.High)
		if c.Before <= 0 || c.After <= 0 {
			change, between = "-", "-" // no ratio says anything
		}
		p, of := fmt.Sprintf("%.3f", c.P), "rounds"
		switch {
		case c.Verdict == Gone:
			after, change, between, p = "-", "-", "-", "-"
		case c.Verdict == New:
			before, change, between, p = "-", "-", "-", "-"
		case c.Runs:
			of = "runs"
		default:
			rounds = true
		}
		fmt.Fprintf(&b, line, c.Name, before, after, c.Unit, change, between, p,
			fmt.Sprintf("%d/%d %s", c.Samples[0], c.Samples[1], of), c.Verdict)
	}
	if rounds {
		b.WriteString("\nRounds of a run are more alike than runs are, so where they count one by one " +
			"p is\ntoo small. 5 reports or more on each side, made in turns, make runs the samples.\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}
