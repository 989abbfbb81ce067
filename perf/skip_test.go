package perf

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMeasureRows: a row that fails, or can't run here, doesn't take the others' figures with it,
// and the report says what isn't there and why.
func TestMeasureRows(t *testing.T) {
	gives := func(err error, names ...string) func() ([]Figure, error) {
		return func() ([]Figure, error) {
			var figures []Figure
			for _, name := range names {
				figures = append(figures, Figure{Name: name, Value: 1})
			}
			return figures, err
		}
	}
	r := &Report{Figures: []Figure{{Name: "before", Value: 1}}}
	err := r.measure(t.Context(), []rowRun{
		{name: "one", figures: []string{"a"}, run: gives(nil, "a")},
		{name: "two", figures: []string{"b", "c"}, run: gives(errors.New("no disk"), "b")},
		{name: "three", figures: []string{"d"}, lacks: errors.New("needs root")},
		{name: "four", figures: []string{"e"}, run: gives(nil, "e")},
	})
	if err == nil || !strings.Contains(err.Error(), "row two: no disk") {
		t.Errorf("error %v", err)
	}
	var names []string
	for _, f := range r.Figures {
		names = append(names, f.Name)
	}
	if !slices.Equal(names, []string{"before", "a", "b", "e"}) {
		t.Errorf("figures %q", names)
	}
	if len(r.Skipped) != 2 || !strings.Contains(r.Skipped["c"], "no disk") ||
		r.Skipped["d"] != "needs root" {
		t.Errorf("skipped %q", r.Skipped)
	}
	var out bytes.Buffer
	if err := r.WriteTable(&out); err != nil || !strings.Contains(out.String(), "d: needs root") {
		t.Errorf("%v: %s", err, out.String())
	}
	if lines, ok := r.Check(map[string]float64{"d": 1}, nil); ok ||
		!strings.Contains(lines[0], "needs root") {
		t.Errorf("a figure that wasn't measured passes: %q", lines)
	}

	none := &Report{}
	if err := none.measure(t.Context(), []rowRun{{name: "x", figures: []string{"x"},
		lacks: errors.New("needs root")}}); err == nil || !strings.Contains(err.Error(), "root") {
		t.Errorf("nothing measured: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	begun := 0
	count := func() ([]Figure, error) { begun++; return nil, ctx.Err() }
	if err := none.measure(ctx, []rowRun{{run: count}, {run: count}}); err == nil || begun != 1 {
		t.Errorf("interrupted: %d rows begun, %v", begun, err)
	}
}

// TestRowsNamed: the figures that the tables of rows name are those that the rows make.
func TestRowsNamed(t *testing.T) {
	var text strings.Builder
	for _, name := range []string{"engine_rows.go", "engine_cluster.go", "recovery_rows.go"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(b)
	}
	named := map[string]bool{}
	for _, row := range engineRows {
		for _, name := range strings.Fields(row.figures) {
			named[name] = true
		}
	}
	for _, row := range recoveryRows {
		for _, name := range strings.Fields(row.figures) {
			named[name] = true
		}
	}
	for name := range named {
		if !strings.Contains(text.String(), `"`+name+`"`) {
			t.Errorf("no row makes %s", name)
		}
	}
	if made := strings.Count(text.String(), "Figure{Name: "); made < 15 || len(named) < made {
		t.Errorf("%d figures are named, the rows make %d", len(named), made)
	}
}

// TestBenchRows: rows of front ends that can't be measured are in the report as left out, with the
// reason, and the others are measured.
func TestBenchRows(t *testing.T) {
	quick := BenchOptions{Each: time.Second, Size: 1 << 30}
	all := quick
	all.Passthrough, all.More = []string{"pass"}, true
	for _, c := range []struct {
		o       BenchOptions
		lacks   string
		skipped []string
	}{
		{quick, FrontFuse, []string{"fuse_randread_q32", "fuse_randread_q1"}},
		{quick, FrontNBD, []string{"nbd_randread_q32"}},
		{quick, FrontLib, nil},
		{all, FrontFuse, []string{"fuse_randread_q32", "fuse_randread_q1", "fuse_to_passthrough_q32",
			"fuse_seqread_q8", "fuse_randwrite_q32", "fuse_seqwrite_q8"}},
		{all, FrontNBD, []string{"nbd_randread_q32", "nbd_tcp_randread_q32", "nbd_seqread_q8",
			"nbd_randwrite_q32", "nbd_seqwrite_q8"}},
		{all, FrontLib, []string{"lib_randread_q32", "lib_randwrite_q32"}},
	} {
		b := &bench{o: c.o, report: &Report{}}
		whole := len(b.rows())
		if len(b.report.Skipped) != 0 {
			t.Errorf("all can be measured: %q", b.report.Skipped)
		}
		b.lacks = map[string]error{c.lacks: errors.New("no " + c.lacks)}
		rows := b.rows()
		for _, name := range c.skipped {
			if b.report.Skipped[name] != "no "+c.lacks {
				t.Errorf("%s without %s: reason %q", name, c.lacks, b.report.Skipped[name])
			}
		}
		for _, row := range rows {
			if row.Ours.Front == c.lacks || row.Yardstick.Front == c.lacks {
				t.Errorf("%s can't be measured", row.Name)
			}
		}
		if len(b.report.Skipped) != len(c.skipped) || len(rows)+len(c.skipped) != whole {
			t.Errorf("without %s: %d rows and %q of %d", c.lacks, len(rows), b.report.Skipped, whole)
		}
	}
}

// TestMoreRows: rows of front ends that only bench has are of native, have no goal, and those that
// write stay within the files that are laid out for them.
func TestMoreRows(t *testing.T) {
	const size = 1 << 30
	can := Fronts{Fuse: true, NBD: true, Passthrough: true, Ping: true}
	main := Rows(time.Second, size, can)
	can.More, can.Lib = true, true
	names := map[string]bool{}
	more := 0
	for _, row := range Rows(time.Second, size, can) {
		if names[row.Name] {
			t.Errorf("%s is there twice", row.Name)
		}
		names[row.Name] = true
		if slices.ContainsFunc(main, func(m Row) bool { return m.Name == row.Name }) {
			continue
		}
		more++
		w := row.Ours.Workload
		if row.Goal != 0 || row.Bar != 0 || row.Yardstick.Front != FrontNative ||
			row.Ours.Front == FrontNative || row.Yardstick.Workload.RW != w.RW {
			t.Errorf("%+v", row)
		}
		if want := int64(size); w.Write() && w.Size != ownPart(size) || !w.Write() && w.Size != want {
			t.Errorf("%s: %d bytes", row.Name, w.Size)
		}
	}
	if more != 9 {
		t.Errorf("%d more rows", more)
	}
}

// TestSweep: what killed runs left is removed, and nothing else.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{benchPrefix + "123/cluster/cs", benchPrefix + "4/disk", "mine"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	raw := filepath.Join(dir, benchPrefix+"4/disk/raw")
	if err := os.WriteFile(raw, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sweep(dir, benchPrefix); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "mine" {
		t.Errorf("left %v, %v", left, err)
	}
}

// TestSweepFirst: a measurement begins by removing what an earlier one left, also if it fails then.
func TestSweepFirst(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, benchPrefix+"1")
	if err := os.Mkdir(left, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir()) // its lock: another measurement may run here
	t.Setenv("PATH", "")            // no fio
	report, err := Bench(t.Context(), BenchOptions{Binary: "/nowhere", Dir: dir})
	if err == nil || report != nil {
		t.Errorf("without fio: %v, %v", report, err)
	}
	if rest, err := os.ReadDir(dir); err != nil || len(rest) > 0 {
		t.Errorf("left %v, %v", rest, err)
	}
}

// TestRoundsOfFigures: every round is a sample, whatever the yardstick was.
func TestRoundsOfFigures(t *testing.T) {
	ours := []float64{10, 20, 40}
	for name, c := range map[string]struct {
		raw   []float64
		set   func(*Figure)
		want  []float64
		value float64
	}{
		"a yardstick in each round": {[]float64{10, 10, 20}, (*Figure).ofSameRound,
			[]float64{1, 2, 2}, 2},
		"one before and one after": {[]float64{5, 15}, (*Figure).ofMedian, []float64{1, 2, 4}, 2},
		"none":                     {nil, (*Figure).byItself, ours, 20},
		"one for the note":         {[]float64{1, 2, 3}, (*Figure).byItself, ours, 20},
	} {
		f := Figure{Unit: "x", Ours: ours, Raw: c.raw}
		c.set(&f)
		if !slices.Equal(f.samples(), c.want) || f.Value != c.value {
			t.Errorf("%s: samples %v, value %v", name, f.samples(), f.Value)
		}
	}
}
