package perf

import (
	"fmt"
	"html"
	"io"
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
		color := "#8aa9d6"
		if slices.Contains([]string{FrontNative, FrontFuse, FrontNBD}, run.Front) {
			color = "#3a6db5"
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
