package perf

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// Report is what a run of a plan gave.
type Report struct {
	Time    time.Time   `json:"time"`
	Commit  string      `json:"commit"`
	Machine string      `json:"machine"`
	Rounds  int         `json:"rounds"`
	Seconds float64     `json:"seconds_per_run"`
	Size    int64       `json:"file_bytes"`
	RSS     int64       `json:"rss_bytes"` // of the cluster's processes, at the end
	Rows    []RowResult `json:"rows"`
}

// Figures are the main figures by name: for each row the ratio to its yardstick (randread_q32),
// for rows of depth 1 also the added latency (randread_q1_added_us), and the CPU time per
// operation in the deepest rows (cpu_us_read, cpu_us_write).
func (r *Report) Figures() map[string]float64 {
	figures := map[string]float64{}
	for _, row := range r.Rows {
		figures[row.Key] = row.Ratio
		if strings.HasSuffix(row.Key, "_q1") {
			figures[row.Key+"_added_us"] = row.AddedUs
		}
		switch row.Key {
		case "randread_q128":
			figures["cpu_us_read"] = row.CPUPerOp
		case "randwrite_q128":
			figures["cpu_us_write"] = row.CPUPerOp
		}
	}
	return figures
}

// WriteJSON writes the figures as the first keys of one object, then everything else.
func (r *Report) WriteJSON(out io.Writer) error {
	doc := map[string]any{}
	for name, value := range r.Figures() {
		doc[name] = value
	}
	doc["report"] = r
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(doc)
}

// WriteTable writes the rows for people.
func (r *Report) WriteTable(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, commit %s, %s\n", r.Time.Format("2006-01-02 15:04"), r.Commit, r.Machine)
	fmt.Fprintf(&b, "medians of %d interleaved rounds of %.2g s; everything on one machine; raw: "+
		"fio io_uring O_DIRECT on the same disk\n\n", r.Rounds, r.Seconds)
	const line = "%-16s %10s %10s %7s %7s %9s %9s %9s %9s\n"
	fmt.Fprintf(&b, line, "4 KiB", "IOPS", "raw IOPS", "ratio", "spread", "p50 µs", "p99 µs",
		"raw p50", "CPU µs/op")
	for _, row := range r.Rows {
		p50 := func(x Result) float64 { return x.Latency.P50 }
		p99 := func(x Result) float64 { return x.Latency.P99 }
		fmt.Fprintf(&b, line, row.Key, fmt.Sprintf("%.0f", row.IOPS()),
			fmt.Sprintf("%.0f", row.RawIOPS()), fmt.Sprintf("%.3f", row.Ratio),
			fmt.Sprintf("%.0f %%", row.Spread*100), fmt.Sprintf("%.0f", medianOf(row.Ours, p50)),
			fmt.Sprintf("%.0f", medianOf(row.Ours, p99)), fmt.Sprintf("%.0f", medianOf(row.Raw, p50)),
			fmt.Sprintf("%.1f", row.CPUPerOp))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// Check compares figures with the least they may be, and returns a line for each.
func (r *Report) Check(least map[string]float64) (lines []string, ok bool) {
	figures := r.Figures()
	names := make([]string, 0, len(least))
	for name := range least {
		names = append(names, name)
	}
	slices.Sort(names)
	ok = true
	for _, name := range names {
		value, known := figures[name]
		verdict := "ok"
		switch {
		case !known:
			verdict, ok = "no such figure", false
		case value < least[name]:
			verdict, ok = "TOO LOW", false
		}
		lines = append(lines, fmt.Sprintf("%s: %.3f, at least %.3g: %s", name, value, least[name],
			verdict))
	}
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
