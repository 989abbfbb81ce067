package perf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestRunPlan(t *testing.T) {
	rows := QuickRows(time.Second, 1<<30, true)
	var order []string
	machine := 1.0 // how fast the machine happens to be in this round
	runs := 0
	run := func(who string, speed float64) Runner {
		return func(_ context.Context, w Workload) (Result, error) {
			if err := w.Validate(); err != nil {
				t.Fatal(err)
			}
			if runs++; runs%2 == 1 {
				machine *= 1.1 // the same for both runs of a pair
			}
			order = append(order, who)
			return Result{Ops: 1, IOPS: 1000 * speed * machine, CPUPerOp: 7,
				Latency: Latency{Mean: 100 / speed}}, nil
		}
	}
	ours := run("ours", 0.5)
	results, err := RunPlan(context.Background(), rows, 3,
		map[string]Runner{FrontNative: ours, FrontFuse: ours}, run("raw", 1),
		func(int, int, string) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if r.Ratio < 0.4999 || r.Ratio > 0.5001 || r.Spread > 1e-9 || len(r.Ratios) != 3 ||
			r.AddedUs != 100 {
			t.Errorf("%+v", r)
		}
	}
	if order[0] != "ours" || order[1] != "raw" || order[2*len(rows)] != "raw" {
		t.Errorf("order %v: who is first doesn't alternate by round", order)
	}
	report := Report{Rounds: 3, Seconds: 1, Rows: results}
	var out bytes.Buffer
	if err := report.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"randread_q1", "randread_q32", "randread_q128", "randwrite_q32",
		"randwrite_q128", "randread_q1_added_us", "cpu_us_read", "cpu_us_write",
		"fuse_randread_q32", "report"} {
		if _, ok := doc[key]; !ok {
			t.Errorf("no %s in %s", key, out.String())
		}
	}
	out.Reset()
	if err := report.WriteTable(&out); err != nil || !strings.Contains(out.String(), "randwrite_q32") {
		t.Errorf("table %v:\n%s", err, out.String())
	}
	if lines, ok := report.Check(map[string]float64{"randread_q32": 0.4}); !ok {
		t.Errorf("0.5 is not enough for 0.4: %v", lines)
	}
	for _, bad := range []map[string]float64{{"randread_q32": 0.6}, {"no_such": 0}} {
		if lines, ok := report.Check(bad); ok {
			t.Errorf("%v passes: %v", bad, lines)
		}
	}
}

func TestRunPlanError(t *testing.T) {
	good := func(context.Context, Workload) (Result, error) { return Result{IOPS: 1}, nil }
	bad := func(context.Context, Workload) (Result, error) { return Result{}, errors.New("no disk") }
	_, err := RunPlan(context.Background(), QuickRows(time.Second, 1<<20, false), 2,
		map[string]Runner{FrontNative: good}, bad,
		func(int, int, string) {})
	if err == nil || !strings.Contains(err.Error(), "no disk") ||
		!strings.Contains(err.Error(), "randread_q1, raw, round 1") {
		t.Errorf("error %v", err)
	}
}
