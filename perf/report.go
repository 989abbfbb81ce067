package perf

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// Figure is one figure beside its goal.
type Figure struct {
	Name    string  `json:"name"`
	Value   float64 `json:"value"` // the median of Values, if there are any
	Unit    string  `json:"unit"`
	Goal    float64 `json:"goal"`          // 0: none
	AtLeast bool    `json:"at_least"`      // the goal is the least; else the most
	Bar     float64 `json:"bar,omitempty"` // worse is a regression; 0: none is set

	Values []float64 `json:"values,omitempty"`    // of each round
	Ours   []float64 `json:"ours"`                // what was measured, by round
	Raw    []float64 `json:"yardstick,omitempty"` // by round, from the same minutes
	Note   string    `json:"note"`                // what all this is
}

// Met says whether the goal is met.
func (f Figure) Met() bool { return f.Goal == 0 || !f.worse(f.Value, f.Goal) }

// worse says whether a value is on the wrong side of a bound.
func (f Figure) worse(value, bound float64) bool {
	if f.AtLeast {
		return value < bound
	}
	return value > bound
}

// Regressed says whether the figure was beyond its bar in every one of three rounds or more: noise
// seldom does that.
func (f Figure) Regressed() bool {
	if f.Bar == 0 || len(f.samples()) < 3 {
		return false
	}
	for _, v := range f.samples() {
		if !f.worse(v, f.Bar) {
			return false
		}
	}
	return true
}

// BeyondBar says whether the figure is worse than its bar. With few rounds, or beside other work,
// noise does that now and then; see Regressed.
func (f Figure) BeyondBar() bool { return f.Bar != 0 && f.worse(f.Value, f.Bar) }

// bound writes a bound of the figure: ">= 0.8"; nothing if there is none.
func (f Figure) bound(v float64) string {
	switch {
	case v == 0:
		return ""
	case f.AtLeast:
		return fmt.Sprintf(">= %.3g", v)
	}
	return fmt.Sprintf("<= %.3g", v)
}

// samples are the figure's values by round.
func (f Figure) samples() []float64 {
	switch {
	case len(f.Values) > 0:
		return f.Values
	case f.Unit == "x" && len(f.Ours) == len(f.Raw) && len(f.Raw) > 0:
		return Ratios(f.Ours, f.Raw)
	}
	return []float64{f.Value}
}

// The ways to make a figure of its rounds.

// ofSameRound: each round has a yardstick of its own.
func (f *Figure) ofSameRound() { f.set(Ratios(f.Ours, f.Raw)) }

// ofMedian: the yardstick was measured before and after all rounds.
func (f *Figure) ofMedian() {
	raw := Median(f.Raw)
	var values []float64
	for _, v := range f.Ours {
		values = append(values, finite(v/raw))
	}
	f.set(values)
}

// byItself: the figure is what was measured; the yardstick is for its note.
func (f *Figure) byItself() { f.set(slices.Clone(f.Ours)) }

func (f *Figure) set(values []float64) { f.Values, f.Value = values, finite(Median(values)) }

// Report is what a measurement gave.
type Report struct {
	Time    time.Time        `json:"time"`
	Commit  string           `json:"commit"`
	Machine string           `json:"machine"`
	Rounds  int              `json:"rounds"`
	Seconds float64          `json:"seconds_per_run"`
	Size    int64            `json:"file_bytes"`
	CS      int              `json:"chunk_servers,omitempty"`
	Journal int64            `json:"journal_bytes,omitempty"` // of each chunk server
	Memory  map[string]int64 `json:"rss_bytes,omitempty"`     // by program, at the end
	Figures []Figure         `json:"figures"`
	Runs    []RunResult      `json:"runs,omitempty"`
	// Skipped has the figures that weren't measured, with the reason.
	Skipped map[string]string `json:"skipped,omitempty"`
	Notes   []string          `json:"notes,omitempty"` // what else a reader should know
}

// Values are the figures by name.
func (r *Report) Values() map[string]float64 {
	values := map[string]float64{}
	for _, f := range r.Figures {
		values[f.Name] = f.Value
	}
	return values
}

// WriteJSON writes an object with each figure under its name, and everything as "report".
func (r *Report) WriteJSON(out io.Writer) error {
	doc := map[string]any{"report": r}
	for name, value := range r.Values() {
		doc[name] = value
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(doc)
}

// WriteTable writes the figures, and the runs they were made of, for people.
func (r *Report) WriteTable(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, commit %s, %s\n", r.Time.Format("2006-01-02 15:04"), r.Commit, r.Machine)
	if r.Rounds > 0 {
		fmt.Fprintf(&b, "medians of %d interleaved rounds of %.2g s\n", r.Rounds, r.Seconds)
	}
	b.WriteString("\n")
	r.writeFigures(&b)
	if len(r.Runs) > 0 {
		r.writeRuns(&b)
	}
	if len(r.Memory) > 0 {
		b.WriteString("\nresident memory:")
		for _, name := range slices.Sorted(maps.Keys(r.Memory)) {
			fmt.Fprintf(&b, "  %s %d MiB", name, r.Memory[name]>>20)
		}
		b.WriteString("\n")
	}
	if lines := r.MissingLines(); len(lines) > 0 {
		b.WriteString("\nnot measured:\n  " + strings.Join(lines, "\n  ") + "\n")
	}
	if len(r.Notes) > 0 {
		b.WriteString("\nnotes:\n  " + strings.Join(r.Notes, "\n  ") + "\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func (r *Report) writeFigures(b *strings.Builder) {
	const line = "%-24s %8s %-3s %8s %8s  %-10s %18s  %s\n"
	fmt.Fprintf(b, line, "figure", "value", "", "goal", "bar", "", "low-high", "")
	for _, f := range r.Figures {
		verdict := ""
		switch {
		case f.Regressed():
			verdict = "WORSE"
		case f.BeyondBar():
			verdict = "beyond bar"
		case !f.Met():
			verdict = "MISS"
		case f.Goal != 0:
			verdict = "ok"
		}
		low, high := slices.Min(f.samples()), slices.Max(f.samples())
		fmt.Fprintf(b, line, f.Name, fmt.Sprintf("%.3g", f.Value), f.Unit, f.bound(f.Goal),
			f.bound(f.Bar), verdict, fmt.Sprintf("%.3g-%.3g", low, high), f.Note)
	}
}

func (r *Report) writeRuns(b *strings.Builder) {
	const line = "%-30s %9s %8s %8s %8s %8s %8s %9s %10s\n"
	b.WriteString("\n")
	fmt.Fprintf(b, line, "run", "IOPS", "MB/s", "mean µs", "p50", "p99", "p99.9", "max",
		"CPU µs/op")
	for _, run := range r.Runs {
		cpu := "-" // not measured
		if us := medianOf(run.Rounds, func(x Result) float64 { return x.CPUPerOp }); us > 0 {
			cpu = fmt.Sprintf("%.1f", us)
		}
		median := func(f func(Result) float64) string {
			return fmt.Sprintf("%.0f", medianOf(run.Rounds, f))
		}
		fmt.Fprintf(b, line, run.Name, median(func(x Result) float64 { return x.IOPS }),
			median(func(x Result) float64 { return x.MBps }),
			median(func(x Result) float64 { return x.Latency.Mean }),
			median(func(x Result) float64 { return x.Latency.P50 }),
			median(func(x Result) float64 { return x.Latency.P99 }),
			median(func(x Result) float64 { return x.Latency.P999 }),
			median(func(x Result) float64 { return x.Latency.Max }), cpu)
	}
}

// Regressions are the names of the figures that were beyond their bars in every round.
func (r *Report) Regressions() []string {
	var names []string
	for _, f := range r.Figures {
		if f.Regressed() {
			names = append(names, f.Name)
		}
	}
	return names
}

// BarLines has a line for each figure beyond its bar.
func (r *Report) BarLines() []string {
	var lines []string
	for _, f := range r.Figures {
		rounds := "the median"
		if f.Regressed() {
			rounds = "all rounds"
		}
		if f.BeyondBar() || f.Regressed() {
			lines = append(lines, fmt.Sprintf("%s: %.3g %s is beyond its bar %s (%s)", f.Name, f.Value,
				f.Unit, f.bound(f.Bar), rounds))
		}
	}
	return lines
}

// Check compares figures with the least and the most they may be, and returns a line for each.
func (r *Report) Check(least, most map[string]float64) (lines []string, ok bool) {
	figures := r.Values()
	ok = true
	check := func(bounds map[string]float64, words, beyond string, bad func(v, bound float64) bool) {
		for _, name := range slices.Sorted(maps.Keys(bounds)) {
			value, known := figures[name]
			verdict := "ok"
			switch {
			case !known && r.Skipped[name] != "":
				verdict, ok = "not measured: "+r.Skipped[name], false
			case !known:
				verdict, ok = "no such figure", false
			case bad(value, bounds[name]):
				verdict, ok = beyond, false
			}
			lines = append(lines, fmt.Sprintf("%s: %.3f, %s %.3g: %s", name, value, words,
				bounds[name], verdict))
		}
	}
	check(least, "at least", "TOO LOW", func(v, bound float64) bool { return v < bound })
	check(most, "at most", "TOO HIGH", func(v, bound float64) bool { return v > bound })
	return lines, ok
}

// Machine describes where a run takes place.
func Machine() string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	model := "unknown CPU"
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("%d CPUs (%s), Linux %s, %s", runtime.NumCPU(), model,
		strings.TrimSpace(string(kernel)), runtime.Version())
}

// Commit is the commit this program was built from, with a + if files had been changed.
func Commit() string {
	commit, changed := "unknown", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				commit = s.Value[:min(12, len(s.Value))]
			case s.Key == "vcs.modified" && s.Value == "true":
				changed = "+"
			}
		}
	}
	return commit + changed
}
