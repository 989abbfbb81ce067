package perf

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const fioOutput = `fio: a warning goes before
{"fio version": "fio-3.33", "jobs": [{"jobname": "x", "error": 0, "total_err": 2,
 "usr_cpu": 10, "sys_cpu": 20, "job_runtime": 1000,
 "read": {"total_ios": 0, "runtime": 0},
 "write": {"total_ios": 35163, "iops": 35092.8, "bw_bytes": 143740167, "runtime": 1002,
  "lat_ns": {"max": 13871970, "mean": 3642373.8},
  "clat_ns": {"percentile": {"50.000000": 3588096, "99.000000": 11075584, "99.900000": 12386304}}
 }}]}
trailing`

func TestParseFio(t *testing.T) {
	r, err := parseFio([]byte(fioOutput))
	if err != nil {
		t.Fatal(err)
	}
	if r.Ops != 35163 || r.Errors != 2 || r.IOPS != 35092.8 || r.Seconds != 1.002 ||
		r.Latency.P50 != 3588.096 || r.Latency.P999 != 12386.304 || r.MBps != 143.740167 {
		t.Errorf("%+v", r)
	}
	if r.CPUPerOp < 8.5 || r.CPUPerOp > 8.6 { // 0.3 s of CPU for 35163 operations
		t.Errorf("CPU per op %v µs", r.CPUPerOp)
	}
	for name, bad := range map[string]string{
		"empty":   "",
		"no JSON": "fio: could not open file",
		"cut":     fioOutput[:200],
		"no jobs": `{"jobs": []}`,
		"failed":  `{"jobs": [{"error": 5}]}`,
		"no I/O":  `{"jobs": [{"error": 0, "read": {"total_ios": 0}}]}`,
	} {
		if _, err := parseFio([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestFioArgs(t *testing.T) {
	for depth, want := range map[int]bool{1: false, 32: true} {
		args := strings.Join(fioArgs(Workload{RW: "randread", BlockSize: 4096, Depth: depth}, "/x",
			"io_uring"), " ")
		if strings.Contains(args, "--iodepth_batch_submit=32 ") != want {
			t.Errorf("depth %d: %s", depth, args)
		}
	}
}

// TestFio runs the real thing for a moment.
func TestFio(t *testing.T) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("needs fio")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	path := filepath.Join(t.TempDir(), "raw")
	if err := FioLayout(ctx, path, 8<<20); err != nil {
		t.Skipf("no direct I/O here: %v", err)
	}
	w := Workload{RW: "randread", BlockSize: 4096, Depth: 4, Time: 200 * time.Millisecond,
		Size: 8 << 20}
	r, err := Fio(ctx, w, path, "io_uring")
	if err != nil {
		t.Fatal(err)
	}
	if r.Ops == 0 || r.IOPS <= 0 || r.Latency.P50 <= 0 || r.Latency.Max < r.Latency.P50 {
		t.Errorf("%+v", r)
	}
	_, err = Fio(ctx, w, filepath.Join(path, "such"), "io_uring")
	if err == nil || !strings.Contains(err.Error(), "raw/such") {
		t.Errorf("a path through a file: %v", err)
	}
}

func TestRatios(t *testing.T) {
	got := Ratios([]float64{1, 2, 3}, []float64{2, 0, 6, 9})
	if len(got) != 2 || got[0] != 0.5 || got[1] != 0.5 {
		t.Errorf("ratios %v", got)
	}
	if m := Median([]float64{4, 1, 3}); m != 3 {
		t.Errorf("median %v", m)
	}
	if m := Median([]float64{4, 1, 3, 2}); m != 2.5 {
		t.Errorf("median of an even number %v", m)
	}
	if s := Spread([]float64{9, 10, 12}); s != 0.3 {
		t.Errorf("spread %v", s)
	}
}
