package perf

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var allFronts = Fronts{Fuse: true, NBD: true, Passthrough: true, Ping: true, More: true, Lib: true}

// fakeFronts run at given speeds: IOPS in thousands.
func fakeFronts(t *testing.T, speeds map[string]float64, order *[]string) map[string]Runner {
	fronts := map[string]Runner{}
	for front, speed := range speeds {
		fronts[front] = func(_ context.Context, w Workload) (Result, error) {
			if err := w.Validate(); err != nil {
				t.Fatal(err)
			}
			*order = append(*order, Run{front, w}.String())
			iops := 1000 * speed * (1 + 0.01*float64(len(*order)%3))
			return Result{Ops: 1, IOPS: iops, MBps: iops * float64(w.BlockSize) / 1e6, CPUPerOp: 7,
				Latency: Latency{Mean: 100 / speed, P50: 90 / speed, P99: 200 / speed,
					P999: 300 / speed, Max: 900 / speed}}, nil
		}
	}
	return fronts
}

func TestRunPlan(t *testing.T) {
	rows := Rows(time.Second, 1<<30, allFronts)
	var order []string
	speeds := map[string]float64{FrontNative: 0.5, FrontRaw: 1, FrontFuse: 0.25, FrontNBD: 0.4,
		FrontPass: 0.5, FrontPing: 10, FrontTCP: 0.3, FrontLib: 0.2}
	steps := 0
	figures, runs, err := RunPlan(context.Background(), rows, 3, fakeFronts(t, speeds, &order),
		func(done, total int, _ string) {
			if done != steps || total <= done {
				t.Errorf("progress %d of %d at step %d", done, total, steps)
			}
			steps++
		})
	if err != nil {
		t.Fatal(err)
	}
	report := Report{Rounds: 3, Seconds: 1, Figures: figures, Runs: runs, Commit: "abc",
		Machine: "a <machine>", Memory: map[string]int64{"pstorage-csd": 1 << 30}}
	for name, want := range map[string]float64{"randread_q32": 0.5, "randread_q128": 0.5,
		"read_q1_extra_us": 100, "randwrite_q32": 0.5, "randwrite_q128": 0.5, "write_q1_ratio": 2,
		"cpu_us_read": 7, "cpu_us_write": 7, "seqread_q8": 0.5, "seqwrite_q8": 1.5,
		"fuse_randread_q32": 0.5, "fuse_randread_q1": 0.5, "nbd_randread_q32": 0.8,
		"fuse_to_passthrough_q32": 0.5, "nbd_tcp_randread_q32": 0.6, "lib_randread_q32": 0.4,
		"lib_randwrite_q32": 0.4, "nbd_seqread_q8": 0.8, "nbd_randwrite_q32": 0.8,
		"fuse_randwrite_q32": 0.5, "fuse_seqwrite_q8": 0.5} {
		if got := report.Values()[name]; math.Abs(got/want-1) > 0.03 {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if len(order) != 3*len(runs) || len(order) != steps {
		t.Errorf("%d runs made in 3 rounds of %d", len(order), len(runs))
	}
	checkOrder(t, rows, order)
	checkOutput(t, &report)
}

// checkOrder: no run twice in a round, and who goes first alternates for reads only.
func checkOrder(t *testing.T, rows []Row, order []string) {
	n := len(order) / 3
	rounds := [][]string{order[:n], order[n : 2*n], order[2*n:]}
	for i, round := range rounds {
		if unique := slices.Compact(slices.Sorted(slices.Values(round))); len(unique) != n {
			t.Errorf("round %d makes a run twice: %q", i, round)
		}
		for _, row := range rows {
			ours := slices.Index(round, row.Ours.String())
			raw := slices.Index(round, row.Yardstick.String())
			if row.Yardstick.Front != FrontRaw {
				continue
			}
			first := raw < ours
			if want := i%2 == 0 || row.Ours.Workload.Write(); first != want {
				t.Errorf("round %d, %s: yardstick first is %v", i, row.Name, first)
			}
		}
	}
}

func checkOutput(t *testing.T, report *Report) {
	var out bytes.Buffer
	if err := report.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Figures {
		if doc[f.Name] != f.Value {
			t.Errorf("JSON has %v as %s", doc[f.Name], f.Name)
		}
	}
	out.Reset()
	if err := report.WriteTable(&out); err != nil || !strings.Contains(out.String(), "1024 MiB") ||
		!strings.Contains(out.String(), "native randwrite 4k q32") {
		t.Errorf("table %v:\n%s", err, out.String())
	}
	checkCharts(t, report)
	type bounds map[string]float64
	if lines, ok := report.Check(bounds{"randread_q32": 0.4}, bounds{"cpu_us_read": 8}); !ok ||
		len(lines) != 2 {
		t.Errorf("0.5 is not enough for 0.4, or 7 more than 8: %v", lines)
	}
	for _, bad := range [][2]bounds{{{"randread_q32": 0.6}, nil}, {{"no_such": 0}, nil},
		{nil, {"cpu_us_read": 6}}, {nil, {"no_such": 9}}} {
		if lines, ok := report.Check(bad[0], bad[1]); ok {
			t.Errorf("%v passes: %v", bad, lines)
		}
	}
}

// chart is what a drawing shows.
type chart struct {
	texts []string
	bars  []float64 // widths of the rectangles as high as a bar
}

func drawn(t *testing.T, name string, write func(io.Writer) error) (c chart) {
	var out bytes.Buffer
	if err := write(&out); err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Texts []string `xml:"text"`
		Rects []struct {
			Width  float64 `xml:"width,attr"`
			Height float64 `xml:"height,attr"`
		} `xml:"rect"`
	}
	if err := xml.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatalf("chart of %s: %v", name, err)
	}
	c.texts = doc.Texts
	for _, r := range doc.Rects {
		if r.Height == 14 && r.Width != 2 { // 2: the marks of latencies
			c.bars = append(c.bars, r.Width)
		}
	}
	return c
}

// checkCharts: each value is in its chart, and the bars are as long as they should be.
func checkCharts(t *testing.T, report *Report) {
	want := map[string][]string{}
	lengths := map[string][]float64{}
	add := func(name, label string, value float64, text string) {
		want[name] = append(want[name], label, text)
		lengths[name] = append(lengths[name], value)
	}
	for _, f := range report.Figures {
		if f.Goal != 0 {
			want["figures"] = append(want["figures"], f.Name, fmt.Sprintf("%.3g %s (at", f.Value, f.Unit))
		}
	}
	for _, run := range report.Runs {
		median := func(f func(Result) float64) float64 { return medianOf(run.Rounds, f) }
		iops := median(func(r Result) float64 { return r.IOPS })
		mbps := median(func(r Result) float64 { return r.MBps })
		add("iops", run.Name, iops, fmt.Sprintf("%.0f IOPS", iops))
		add("mbps", run.Name, mbps, fmt.Sprintf("%.1f MB/s", mbps))
		add("cpu", run.Name, 7, "7.0 µs")
		want["latency"] = append(want["latency"], run.Name, fmt.Sprintf("%.0f, 99 %%: %.0f",
			median(func(r Result) float64 { return r.Latency.P50 }),
			median(func(r Result) float64 { return r.Latency.P99 })))
	}
	add("memory", "pstorage-csd", 1<<30, "1024 MiB")
	charts := report.Charts()
	if len(charts) != len(want) {
		t.Errorf("%d charts, %d are known here", len(charts), len(want))
	}
	for name, write := range charts {
		c := drawn(t, name, write)
		text := strings.Join(c.texts, "\n")
		for _, word := range want[name] {
			if !strings.Contains(text, word) {
				t.Errorf("chart of %s: no %q", name, word)
			}
		}
		if lengths[name] == nil {
			continue
		}
		if len(c.bars) != len(lengths[name]) {
			t.Fatalf("chart of %s: %d bars, want %d", name, len(c.bars), len(lengths[name]))
		}
		most := slices.Max(lengths[name])
		for i, v := range lengths[name] {
			if math.Abs(c.bars[i]-max(v/most*chartPlot, 1)) > 0.1 {
				t.Errorf("chart of %s: the bar of %v is %v long, that of %v %v", name, v, c.bars[i],
					most, slices.Max(c.bars))
			}
		}
	}
	empty := &Report{}
	for name, write := range empty.Charts() { // nothing to draw is no error
		drawn(t, name, write)
	}
}

func TestBars(t *testing.T) {
	report := Report{Figures: []Figure{
		{Name: "good", AtLeast: true, Bar: 0.5, Value: 0.4, Values: []float64{0.4, 0.6, 0.4}},
		{Name: "bad", AtLeast: true, Bar: 0.5, Value: 0.4, Values: []float64{0.4, 0.45, 0.4}},
		{Name: "slow", Bar: 10, Value: 12, Values: []float64{11, 12, 13}},
		{Name: "no_bar", Values: []float64{0.1, 0.1, 0.1}},
		{Name: "few_rounds", AtLeast: true, Bar: 0.5, Value: 0.1, Values: []float64{0.1, 0.1}},
	}}
	if got := report.Regressions(); !slices.Equal(got, []string{"bad", "slow"}) {
		t.Errorf("regressions %v", got)
	}
	lines := strings.Join(report.BarLines(), "\n")
	for name, want := range map[string]string{"good": "median", "bad": "all rounds",
		"slow": "all rounds", "no_bar": "", "few_rounds": "median"} {
		if strings.Contains(lines, name+": ") != (want != "") {
			t.Errorf("%s: %s", name, lines)
		}
	}
	for _, row := range Rows(time.Second, 1<<30, allFronts) {
		f := Figure{AtLeast: row.AtLeast}
		if row.Goal != 0 && (row.Bar == 0 || f.worse(row.Goal, row.Bar)) {
			t.Errorf("%s: the bar %v isn't below the goal %v", row.Name, row.Bar, row.Goal)
		}
	}
}

// TestBarsDocumented: BENCHMARKS.md has each bar and the worst median that was found, and no bar is
// far beyond that: else it tells nothing.
func TestBarsDocumented(t *testing.T) {
	text, err := os.ReadFile("../BENCHMARKS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "| key | what | value | goal | worst median | bar |")
	table, _, _ = strings.Cut(table, "\n\n")
	number := regexp.MustCompile(`[0-9.]+`)
	numbers := func(cell string) (v []float64) {
		for _, word := range number.FindAllString(cell, -1) {
			n, err := strconv.ParseFloat(word, 64)
			if err != nil {
				t.Fatalf("%q: %v", cell, err)
			}
			v = append(v, n)
		}
		return v
	}
	documented := map[string][]string{}
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); len(cells) > 6 {
			documented[strings.TrimSpace(cells[1])] = cells
		}
	}
	for _, row := range Rows(time.Second, 1<<30, Fronts{Fuse: true, NBD: true}) {
		cells := documented[row.Name]
		if cells == nil {
			t.Errorf("%s isn't in the table", row.Name)
			continue
		}
		f := Figure{AtLeast: row.AtLeast}
		value, worst, bar := numbers(cells[3]), numbers(cells[5])[0], numbers(cells[6])[0]
		if bar != row.Bar || numbers(cells[4])[0] != row.Goal {
			t.Errorf("%s: the table has goal %s and bar %s, not %v and %v", row.Name, cells[4], cells[6],
				row.Goal, row.Bar)
		}
		for _, v := range value {
			if f.worse(v, worst) {
				t.Errorf("%s: %v is worse than the worst, %v", row.Name, v, worst)
			}
		}
		room := worst / bar
		if !row.AtLeast {
			room = bar / worst
		}
		if room > 1.25 {
			t.Errorf("%s: bar %v, worst median %v", row.Name, bar, worst)
		}
	}
}

func TestRunPlanError(t *testing.T) {
	good := func(context.Context, Workload) (Result, error) { return Result{IOPS: 1}, nil }
	bad := func(context.Context, Workload) (Result, error) { return Result{}, errors.New("no disk") }
	_, _, err := RunPlan(context.Background(), Rows(time.Second, 1<<20, Fronts{}), 2,
		map[string]Runner{FrontNative: good, FrontRaw: bad}, func(int, int, string) {})
	if err == nil || !strings.Contains(err.Error(), "no disk") ||
		!strings.Contains(err.Error(), "raw randread 4k q1, round 1") {
		t.Errorf("error %v", err)
	}
}

// TestPlanGoesOn: a front end that fails takes its own rows with it; the base of the others ends
// the plan. What was measured stays, and the report says why the rest isn't there.
func TestPlanGoesOn(t *testing.T) {
	rows := Rows(time.Second, 1<<30, Fronts{Fuse: true, NBD: true})
	for _, c := range []struct {
		front      string
		good       int // runs of it before it fails
		rounds     int
		gone, stay string // rows
		values     int    // of stay
	}{
		{FrontNBD, 0, 3, "nbd_randread_q32", "fuse_randread_q32", 3},
		{FrontNBD, 1, 3, "nbd_randread_q32", "seqwrite_q8", 3},
		{FrontRaw, 4, 0, "randwrite_q32", "randread_q32", 1},
		{FrontNative, 12, 1, "", "randwrite_q32", 1},
	} {
		fronts := map[string]Runner{}
		for _, front := range []string{FrontNative, FrontRaw, FrontFuse, FrontNBD} {
			ran := 0
			fronts[front] = func(context.Context, Workload) (Result, error) {
				if ran++; front == c.front && ran > c.good {
					return Result{}, errors.New("it broke")
				}
				return Result{Ops: 1, IOPS: 1, MBps: 1}, nil
			}
		}
		p, err := runPlan(t.Context(), rows, 3, fronts, nil, func(int, int, string) {})
		if err == nil || !strings.Contains(err.Error(), c.front) || p.rounds != c.rounds {
			t.Errorf("%s fails: %d rounds, %v", c.front, p.rounds, err)
		}
		b := &bench{o: BenchOptions{Rounds: 3, Size: 1 << 30}, report: &Report{}}
		b.take(rows, p, err)
		if len(b.report.Figures)+len(b.report.Skipped) != len(rows) || len(b.report.Notes) > 0 {
			t.Errorf("%s fails: %d figures, left out %q, %q", c.front, len(b.report.Figures),
				b.report.Skipped, b.report.Notes)
		}
		if c.gone != "" && !strings.Contains(b.report.Skipped[c.gone], "it broke") {
			t.Errorf("%s fails: %s: %q", c.front, c.gone, b.report.Skipped[c.gone])
		}
		i := slices.IndexFunc(b.report.Figures, func(f Figure) bool { return f.Name == c.stay })
		if i < 0 || len(b.report.Figures[i].Values) != c.values {
			t.Errorf("%s fails: %s isn't there or has other than %d rounds", c.front, c.stay, c.values)
		}
	}
}

func TestPingPong(t *testing.T) {
	begun := time.Now() // on a busy machine one message may take all the time
	r, err := PingPong(context.Background(), Workload{Time: 50 * time.Millisecond})
	took := float64(time.Since(begun).Microseconds() + 1)
	if err != nil || r.Ops == 0 || r.Latency.Mean <= 0 || r.Latency.Mean*float64(r.Ops) > took {
		t.Errorf("%+v, %v", r, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := PingPong(ctx, Workload{Time: time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
