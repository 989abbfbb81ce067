package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"pstorage/perf"
)

// run runs a function with a command whose output is caught.
func run(f func(*cobra.Command) error) (stdout, stderr string, err error) {
	var out, diag bytes.Buffer
	cmd := &cobra.Command{}
	cmd.SetOut(&out)
	cmd.SetErr(&diag)
	err = f(cmd)
	return out.String(), diag.String(), err
}

func sample() *perf.Report {
	return &perf.Report{Rounds: 3, Figures: []perf.Figure{
		{Name: "fine", Unit: "x", AtLeast: true, Value: 1, Bar: 0.5, Values: []float64{1, 1, 1}},
		{Name: "slow", Unit: "x", AtLeast: true, Value: 0.4, Bar: 0.5,
			Values: []float64{0.4, 0.3, 0.45}},
		{Name: "noisy", Unit: "µs", Value: 12, Bar: 10, Values: []float64{9, 12, 13}}}}
}

// TestFinish: a report that isn't complete is printed and written all the same, and the command
// fails and says why.
func TestFinish(t *testing.T) {
	r := sample()
	r.Skipped = map[string]string{"hdds_coldread_q64": "failed: no loop device"}
	for _, asJSON := range []bool{false, true} {
		p := &planFlags{out: filepath.Join(t.TempDir(), "out"), json: asJSON}
		out, diag, err := run(func(cmd *cobra.Command) error {
			return p.finish(cmd, r, nil, nil, errors.New("no loop device"))
		})
		if err == nil || !strings.Contains(err.Error(), "no loop device") {
			t.Errorf("error %v", err)
		}
		if !strings.Contains(out, "fine") || !strings.Contains(out+diag, "hdds_coldread_q64") {
			t.Errorf("printed %s, %s", out, diag)
		}
		files, _ := filepath.Glob(filepath.Join(p.out, "*.json"))
		if len(files) != 1 {
			t.Fatalf("files %q", files)
		}
		charts, _ := filepath.Glob(filepath.Join(p.out, "*.svg"))
		if len(charts) != len(r.Charts()) {
			t.Errorf("charts %q", charts)
		}
		text, err := os.ReadFile(files[0])
		if err != nil || !json.Valid(text) || !strings.Contains(string(text), "loop device") {
			t.Errorf("%v: %s", err, text)
		}
	}
}

// TestFinishBars: what is beyond its bar is said, and with --bars what is so in all rounds fails.
func TestFinishBars(t *testing.T) {
	for _, bars := range []bool{false, true} {
		p := &planFlags{bars: bars, json: true}
		_, diag, err := run(func(cmd *cobra.Command) error {
			return p.finish(cmd, sample(), nil, nil, nil)
		})
		if (err != nil) != bars || bars && (!strings.Contains(err.Error(), "slow") ||
			strings.Contains(err.Error(), "noisy")) {
			t.Errorf("bars %v: %v", bars, err)
		}
		if strings.Contains(diag, "fine") || !strings.Contains(diag, "slow: 0.4") ||
			!strings.Contains(diag, "noisy: 12") {
			t.Errorf("said %s", diag)
		}
	}
}

// TestFinishFewRounds: --bars doesn't pass for want of rounds.
func TestFinishFewRounds(t *testing.T) {
	r := sample()
	r.Rounds = 2
	_, _, err := run(func(cmd *cobra.Command) error {
		return (&planFlags{bars: true}).finish(cmd, r, nil, nil, nil)
	})
	if err == nil || !strings.Contains(err.Error(), "2 rounds") {
		t.Errorf("error %v", err)
	}
}

// TestBounds: --min and --max fail for what is beyond them.
func TestBounds(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		ok   bool
	}{
		"within": {[]string{"--min", "fine=0.9", "--max", "noisy=12"}, true},
		"low":    {[]string{"--min", "fine=1.1"}, false},
		"high":   {[]string{"--max", "noisy=11"}, false},
	} {
		cmd := newQuick()
		if err := cmd.ParseFlags(c.args); err != nil {
			t.Fatal(err)
		}
		least, err := cmd.Flags().GetStringToString("min")
		if err != nil {
			t.Fatal(err)
		}
		most, err := cmd.Flags().GetStringToString("max")
		if err != nil {
			t.Fatal(err)
		}
		low, err := parseBounds("min", least)
		if err != nil {
			t.Fatal(err)
		}
		high, err := parseBounds("max", most)
		if err != nil {
			t.Fatal(err)
		}
		_, diag, err := run(func(cmd *cobra.Command) error {
			return new(planFlags).finish(cmd, sample(), low, high, nil)
		})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v, %s", name, err, diag)
		}
	}
	if _, err := parseBounds("max", map[string]string{"a": "b"}); err == nil ||
		!strings.Contains(err.Error(), "--max a=b") {
		t.Errorf("no number: %v", err)
	}
}

// TestLimit: quick takes less than 50 s, unless other sizes or rounds are asked for.
func TestLimit(t *testing.T) {
	for args, want := range map[string]time.Duration{
		"": 48 * time.Second, "--json --min a=1": 48 * time.Second, "--rounds 5": 0,
		"--size 1M --journal 1M": 0, "--rounds 5 --within 90": 90 * time.Second, "--within 0": 0,
	} {
		p, cmd := &planFlags{}, &cobra.Command{}
		p.addQuick(cmd)
		if err := cmd.ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		if got := p.limit(cmd); got != want {
			t.Errorf("quick %s: %v, want %v", args, got, want)
		}
	}
}

// TestCompareCommand: what isn't comparable is refused, and a figure that is gone fails.
func TestCompareCommand(t *testing.T) {
	side := func(size int64, machine string, figures ...perf.Figure) []*perf.Report {
		return []*perf.Report{{Size: size, Machine: machine, Figures: figures}}
	}
	all := sample().Figures
	for name, c := range map[string]struct {
		after []*perf.Report
		force bool
		fails string
		diag  string
	}{
		"the same":          {side(1, "m", all...), false, "", ""},
		"another size":      {side(2, "m", all...), false, "bytes of the file: 1 and 2", ""},
		"compared all same": {side(2, "m", all...), true, "", "bytes of the file"},
		"another machine":   {side(1, "n", all...), false, "", "machine: m and n"},
		"one is gone":       {side(1, "m", all[1:]...), false, "1 gone: fine", ""},
	} {
		_, diag, err := run(func(cmd *cobra.Command) error {
			return compare(cmd, side(1, "m", all...), c.after, perf.CompareOptions{}, c.force)
		})
		if (err != nil) != (c.fails != "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: %v", name, err)
		}
		if !strings.Contains(diag, c.diag) || c.diag == "" && diag != "" {
			t.Errorf("%s: said %q", name, diag)
		}
	}
}
