package perf

import (
	"context"
	"fmt"
	"math"
	"time"
)

// Runner runs a workload on one front end.
type Runner func(ctx context.Context, w Workload) (Result, error)

// The front ends that a row can go through.
const (
	FrontNative = "native" // the client library
	FrontFuse   = "fuse"   // fio on a mount
)

// Row is one line of a plan: a workload for us, and one for the yardstick.
type Row struct {
	Key       string
	Front     string // through which ours goes
	Ours, Raw Workload
}

// RowResult has the rounds of a row and what follows from them.
type RowResult struct {
	Key    string    `json:"key"`
	Ours   []Result  `json:"ours"`
	Raw    []Result  `json:"raw"`
	Ratio  float64   `json:"ratio"`  // median over the rounds of IOPS to raw IOPS
	Spread float64   `json:"spread"` // (largest - smallest) / median of the rounds' ratios
	Ratios []float64 `json:"ratios"` // by round
	// AddedUs is the median of the rounds of our mean latency less that of raw, in µs.
	AddedUs  float64 `json:"added_us"`
	CPUPerOp float64 `json:"cpu_us_per_op"` // median, all our processes
	RawCPU   float64 `json:"raw_cpu_us_per_op"`
}

// IOPS is the median of our rounds.
func (r RowResult) IOPS() float64 {
	return medianOf(r.Ours, func(x Result) float64 { return x.IOPS })
}

// RawIOPS is the median of the yardstick's rounds.
func (r RowResult) RawIOPS() float64 {
	return medianOf(r.Raw, func(x Result) float64 { return x.IOPS })
}

func medianOf(results []Result, f func(Result) float64) float64 { return Median(each(results, f)) }

func each(results []Result, f func(Result) float64) []float64 {
	var values []float64
	for _, r := range results {
		values = append(values, f(r))
	}
	return values
}

// QuickRows are the rows of the short plan, each of the given time, on files of size bytes.
func QuickRows(each time.Duration, size int64, mounted bool) []Row {
	row := func(key, rw string, depth int, sync bool) Row {
		w := Workload{RW: rw, BlockSize: 4096, Depth: depth, Time: each, Size: size}
		raw := w
		raw.Sync = sync
		return Row{Key: key, Front: FrontNative, Ours: w, Raw: raw}
	}
	rows := []Row{
		row("randread_q1", "randread", 1, false),
		row("randread_q32", "randread", 32, false),
		row("randread_q128", "randread", 128, false),
		row("randwrite_q1", "randwrite", 1, true), // the yardstick of a single write is durable
		row("randwrite_q32", "randwrite", 32, false),
		row("randwrite_q128", "randwrite", 128, false),
	}
	if mounted {
		fuse := row("fuse_randread_q32", "randread", 32, false)
		fuse.Front = FrontFuse
		rows = append(rows, fuse)
	}
	return rows
}

// RunPlan runs all rows in every round, ours and the yardstick in turns; which of the two goes
// first alternates by round, so that what one leaves behind hits both. fronts has a runner for
// each front end of the rows. progress is called before each run.
func RunPlan(ctx context.Context, rows []Row, rounds int, fronts map[string]Runner, raw Runner,
	progress func(done, total int, what string)) ([]RowResult, error) {
	results := make([]RowResult, len(rows))
	done, total := 0, rounds*len(rows)*2
	for round := range rounds {
		for i, row := range rows {
			results[i].Key = row.Key
			for turn := range 2 {
				runner, w, who := fronts[row.Front], row.Ours, "pstorage"
				out := &results[i].Ours
				if (turn+round)%2 == 1 {
					runner, w, who = raw, row.Raw, "raw"
					out = &results[i].Raw
				}
				progress(done, total, row.Key+" "+who)
				r, err := runner(ctx, w)
				if err != nil {
					return nil, fmt.Errorf("%s, %s, round %d: %w", row.Key, who, round+1, err)
				}
				*out = append(*out, r)
				done++
			}
		}
	}
	for i := range results {
		results[i].summarize()
	}
	return results, nil
}

func (r *RowResult) summarize() {
	iops := func(x Result) float64 { return x.IOPS }
	cpu := func(x Result) float64 { return x.CPUPerOp }
	r.Ratios = Ratios(each(r.Ours, iops), each(r.Raw, iops))
	r.Ratio = finite(Median(r.Ratios))
	r.Spread = Spread(r.Ratios)
	r.CPUPerOp = medianOf(r.Ours, cpu)
	r.RawCPU = medianOf(r.Raw, cpu)
	var added []float64
	for i := range r.Ours {
		added = append(added, r.Ours[i].Latency.Mean-r.Raw[i].Latency.Mean)
	}
	r.AddedUs = finite(Median(added))
}

// finite makes what JSON can't say a zero.
func finite(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}
