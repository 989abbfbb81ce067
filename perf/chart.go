package perf

import (
	"fmt"
	"html"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
)

// Measures of a chart, in pixels.
const (
	chartLabel = 250 // of the text at the left
	chartPlot  = 460
	chartRight = 190 // of the text at the right
	chartRow   = 26
	chartTop   = 68
	chartWidth = chartLabel + chartPlot + chartRight
)

// svg gathers a drawing.
type svg struct{ strings.Builder }

func newChart(rows int, title, about string) *svg {
	s := &svg{}
	height := chartTop + rows*chartRow + 16
	fmt.Fprintf(s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" `+
		`font-family="sans-serif" font-size="12">`+"\n", chartWidth, height)
	fmt.Fprintf(s, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", chartWidth, height)
	s.text(10, 20, "start", "#000", title)
	s.text(10, 38, "start", "#666", about)
	return s
}

func (s *svg) text(x, y float64, anchor, color, text string) {
	fmt.Fprintf(s, `<text x="%.0f" y="%.0f" text-anchor="%s" fill="%s">%s</text>`+"\n", x, y, anchor,
		color, html.EscapeString(text))
}

func (s *svg) rect(x, y, width, height float64, color string) {
	fmt.Fprintf(s, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x, y,
		max(width, 1), height, color)
}

func (s *svg) write(out io.Writer) error {
	s.WriteString("</svg>\n")
	_, err := io.WriteString(out, s.String())
	return err
}

// WriteFigureChart draws each figure that has a goal as a bar of how good it is: at the vertical
// line the goal is met, at twice the length it is twice as good. Thin lines are the rounds.
func (r *Report) WriteFigureChart(out io.Writer) error {
	var figures []Figure
	for _, f := range r.Figures {
		if f.Goal != 0 {
			figures = append(figures, f)
		}
	}
	s := newChart(len(figures), fmt.Sprintf("pstorage %s, %s", r.Commit, r.Machine),
		"how good each figure is; the line is its goal; thin lines: the rounds")
	const most = 2.0 // times the goal at the right end
	scale := func(f Figure, v float64) float64 {
		good := f.Goal / v
		if f.AtLeast {
			good = v / f.Goal
		}
		if v <= 0 { // faster than the yardstick, or nothing
			good = most
			if f.AtLeast {
				good = 0
			}
		}
		return chartLabel + min(good, most)/most*chartPlot
	}
	for i, f := range figures {
		y := float64(chartTop + i*chartRow)
		color := "#c0504d"
		if f.Met() {
			color = "#4f9d5d"
		}
		s.text(chartLabel-8, y+14, "end", "#000", f.Name)
		s.rect(chartLabel, y+3, scale(f, f.Value)-chartLabel, 14, color)
		for _, v := range f.samples() {
			s.rect(scale(f, v), y+6, 1, 8, "#222")
		}
		sign := "at most"
		if f.AtLeast {
			sign = "at least"
		}
		s.text(chartLabel+chartPlot+8, y+14, "start", "#000",
			fmt.Sprintf("%.3g %s (%s %.3g)", f.Value, f.Unit, sign, f.Goal))
	}
	s.rect(chartLabel+chartPlot/most, chartTop-4, 1.5, float64(len(figures)*chartRow+4), "#000")
	return s.write(out)
}

// WriteLatencyChart draws the latencies of all runs on a logarithmic scale: a bar from the median
// to the 99th percentile, marks at 99.9 % and the maximum.
func (r *Report) WriteLatencyChart(out io.Writer) error {
	s := newChart(len(r.Runs), fmt.Sprintf("latency in µs, pstorage %s", r.Commit),
		"bar: median to 99 %; marks: 99.9 %, maximum; medians over the rounds")
	median := func(run RunResult, f func(Latency) float64) float64 {
		return medianOf(run.Rounds, func(x Result) float64 { return f(x.Latency) })
	}
	low, high := math.Inf(1), 0.0
	for _, run := range r.Runs {
		low = min(low, median(run, func(l Latency) float64 { return l.P50 }))
		high = max(high, median(run, func(l Latency) float64 { return l.Max }))
	}
	first := math.Floor(math.Log10(max(low, 1)))
	decades := max(math.Ceil(math.Log10(max(high, 10)))-first, 1)
	scale := func(us float64) float64 {
		return chartLabel + min(max(math.Log10(max(us, 1))-first, 0)/decades, 1)*chartPlot
	}
	for d := range int(decades) + 1 {
		x := scale(math.Pow10(int(first) + d))
		s.rect(x, chartTop-4, 0.5, float64(len(r.Runs)*chartRow+4), "#bbb")
		s.text(x, chartTop-8, "middle", "#666", fmt.Sprintf("%.0f", math.Pow10(int(first)+d)))
	}
	for i, run := range r.Runs {
		y := float64(chartTop + i*chartRow)
		p50 := median(run, func(l Latency) float64 { return l.P50 })
		p99 := median(run, func(l Latency) float64 { return l.P99 })
		color := colorOurs
		if isYardstick(run.Front) {
			color = colorOther
		}
		s.text(chartLabel-8, y+14, "end", "#000", run.Name)
		s.rect(scale(p50), y+3, scale(p99)-scale(p50), 14, color)
		s.rect(scale(median(run, func(l Latency) float64 { return l.P999 })), y+3, 2, 14, "#555")
		s.rect(scale(median(run, func(l Latency) float64 { return l.Max })), y+3, 2, 14, "#c0504d")
		s.text(chartLabel+chartPlot+8, y+14, "start", "#000",
			fmt.Sprintf("%.0f, 99 %%: %.0f", p50, p99))
	}
	return s.write(out)
}

// bar is a line of a simple chart.
type bar struct {
	name  string
	value float64
	text  string
	color string
}

// Colors of what is ours, and of yardsticks.
const (
	colorOurs  = "#3a6db5"
	colorOther = "#8aa9d6"
)

// isYardstick says whether a front end is one that ours is compared with.
func isYardstick(front string) bool {
	return slices.Contains([]string{FrontRaw, FrontPass, FrontPing}, front)
}

// writeBars draws bars from 0 to the largest value.
func writeBars(out io.Writer, title, about string, bars []bar) error {
	s := newChart(len(bars), title, about)
	most := 0.0
	for _, b := range bars {
		most = max(most, b.value)
	}
	for i, b := range bars {
		y := float64(chartTop + i*chartRow)
		s.text(chartLabel-8, y+14, "end", "#000", b.name)
		s.rect(chartLabel, y+3, finite(b.value/most)*chartPlot, 14, b.color)
		s.text(chartLabel+chartPlot+8, y+14, "start", "#000", b.text)
	}
	return s.write(out)
}

// runBars are the medians of all runs in which something was measured.
func (r *Report) runBars(format string, value func(Result) float64) (bars []bar) {
	for _, run := range r.Runs {
		b := bar{name: run.Name, value: medianOf(run.Rounds, value), color: colorOurs}
		if isYardstick(run.Front) {
			b.color = colorOther
		}
		if b.value > 0 {
			b.text = fmt.Sprintf(format, b.value)
			bars = append(bars, b)
		}
	}
	return bars
}

// WriteIOPSChart draws the operations per second of all runs.
func (r *Report) WriteIOPSChart(out io.Writer) error {
	return writeBars(out, fmt.Sprintf("operations per second, pstorage %s", r.Commit),
		"light: yardsticks; medians over the rounds",
		r.runBars("%.0f IOPS", func(x Result) float64 { return x.IOPS }))
}

// WriteMBpsChart draws the throughput of all runs.
func (r *Report) WriteMBpsChart(out io.Writer) error {
	return writeBars(out, fmt.Sprintf("MB per second, pstorage %s", r.Commit),
		"light: yardsticks; medians over the rounds",
		r.runBars("%.1f MB/s", func(x Result) float64 { return x.MBps }))
}

// WriteCPUChart draws the CPU time per operation of all runs of which it is known.
func (r *Report) WriteCPUChart(out io.Writer) error {
	return writeBars(out, fmt.Sprintf("CPU time per operation, pstorage %s", r.Commit),
		"of all processes that take part; light: yardsticks; medians over the rounds",
		r.runBars("%.1f µs", func(x Result) float64 { return x.CPUPerOp }))
}

// WriteMemoryChart draws the resident memory at the end.
func (r *Report) WriteMemoryChart(out io.Writer) error {
	var bars []bar
	for _, name := range slices.Sorted(maps.Keys(r.Memory)) {
		bars = append(bars, bar{name, float64(r.Memory[name]),
			fmt.Sprintf("%d MiB", r.Memory[name]>>20), colorOurs})
	}
	return writeBars(out, fmt.Sprintf("resident memory, pstorage %s", r.Commit),
		"of all processes of a name, at the end", bars)
}

// Charts are the report's charts by name.
func (r *Report) Charts() map[string]func(io.Writer) error {
	return map[string]func(io.Writer) error{"figures": r.WriteFigureChart,
		"latency": r.WriteLatencyChart, "iops": r.WriteIOPSChart, "mbps": r.WriteMBpsChart,
		"cpu": r.WriteCPUChart, "memory": r.WriteMemoryChart}
}
