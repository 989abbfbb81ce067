package perf

import (
	"context"
	"errors"
	"fmt"
	"math"
)

// Runner runs a workload on one front end.
type Runner func(ctx context.Context, w Workload) (Result, error)

// The front ends that a run can go through.
const (
	FrontNative = "native"      // the client library
	FrontFuse   = "fuse"        // fio on a mount
	FrontNBD    = "nbd"         // fio's nbd engine, on a unix socket
	FrontTCP    = "nbd-tcp"     // the same over TCP
	FrontLib    = "libpstorage" // fio's engine for the C library
	FrontRaw    = "raw"         // fio (io_uring, O_DIRECT) on a file of the disk itself
	FrontPass   = "passthrough" // fio on a FUSE file system that passes requests on to that disk
	FrontPing   = "tcp"         // 64 bytes there and back between two threads, over loopback
)

// Run is one measurement: a workload through a front end.
type Run struct {
	Front    string   `json:"front"`
	Workload Workload `json:"workload"`
}

// String names the run: "native randread 4k q32".
func (r Run) String() string {
	w := r.Workload
	if r.Front == FrontPing {
		return "tcp there and back"
	}
	size := fmt.Sprintf("%dk", w.BlockSize>>10)
	if w.BlockSize >= 1<<20 {
		size = fmt.Sprintf("%dm", w.BlockSize>>20)
	}
	sync := ""
	if w.Fsync {
		sync = " fsync"
	}
	return fmt.Sprintf("%s %s %s q%d%s", r.Front, w.RW, size, w.Depth, sync)
}

// Row is a figure to be measured: what one run gives, beside what another gives in the same round.
type Row struct {
	Name, About string
	Ours        Run
	Yardstick   Run // Front empty: the figure needs none
	// Value makes the figure of a round.
	Value   func(ours, yardstick Result) float64
	Unit    string  // "x" for a ratio
	Goal    float64 // what we are after
	AtLeast bool    // the goal is the least; else the most
	// Bar is what the figure has reached with a margin for noise: worse is a regression.
	Bar float64
}

// RunResult has the rounds of a run.
type RunResult struct {
	Name   string   `json:"name"`
	Front  string   `json:"front"`
	Rounds []Result `json:"rounds"`
}

// IOPS is the median of the rounds.
func (r RunResult) IOPS() float64 {
	return medianOf(r.Rounds, func(x Result) float64 { return x.IOPS })
}

func medianOf(results []Result, f func(Result) float64) float64 { return Median(each(results, f)) }

func each(results []Result, f func(Result) float64) []float64 {
	var values []float64
	for _, r := range results {
		values = append(values, f(r))
	}
	return values
}

// order returns the runs of one round. A row's two runs stand side by side, and which of them goes
// first alternates by round, so that what one leaves behind hits both. Before writes it is always
// the yardstick: what we write is still being written back when a run is over. A run that several
// rows share is made once.
func order(rows []Row, round int) []Run {
	var runs []Run
	seen := map[Run]bool{}
	add := func(r Run) {
		if r.Front != "" && !seen[r] {
			seen[r] = true
			runs = append(runs, r)
		}
	}
	for _, row := range rows {
		if round%2 == 0 || row.Ours.Workload.Write() {
			add(row.Yardstick)
			add(row.Ours)
		} else {
			add(row.Ours)
			add(row.Yardstick)
		}
	}
	return runs
}

// RunPlan makes all runs of the rows in every round. fronts has a runner for each front end.
// progress is called before each run.
func RunPlan(ctx context.Context, rows []Row, rounds int, fronts map[string]Runner,
	progress func(done, total int, what string)) ([]Figure, []RunResult, error) {
	p, err := runPlan(ctx, rows, rounds, fronts, nil, progress)
	if err != nil {
		return nil, nil, err
	}
	return p.figures, p.runs, nil
}

// planned is what a plan gave.
type planned struct {
	figures []Figure
	runs    []RunResult
	rounds  int              // that were made in full
	left    []string         // rows that weren't reached
	failed  map[string]error // by front end
}

// base says whether a front end is one without which a plan can't go on.
func base(front string) bool { return front == FrontNative || front == FrontRaw }

// runPlan is RunPlan as far as the time allows. A front end that fails is given up, the others are
// measured all the same; without the client library, or the disk itself, it ends. What was measured
// till then is returned beside the error.
func runPlan(ctx context.Context, rows []Row, rounds int, fronts map[string]Runner, time *pace,
	progress func(done, total int, what string)) (p planned, err error) {
	results := map[Run]*RunResult{}
	first := order(rows, 0)
	for _, run := range first {
		results[run] = &RunResult{Name: run.String(), Front: run.Front}
	}
	done, total := 0, rounds*len(first)
	p.failed = map[string]error{}
	round := func(i int) (whole bool) {
		for _, run := range order(rows, i) {
			if p.failed[run.Front] != nil {
				continue
			}
			if !time.run() {
				return false
			}
			progress(done, total, run.String())
			begun := time.time()
			r, failed := fronts[run.Front](ctx, run.Workload)
			if failed != nil {
				failed = fmt.Errorf("%v, round %d: %w", run, i+1, failed)
				p.failed[run.Front], err = failed, errors.Join(err, failed)
				if base(run.Front) || ctx.Err() != nil {
					return false
				}
				continue
			}
			time.ran(begun)
			results[run].Rounds = append(results[run].Rounds, r)
			done++
		}
		return true
	}
	for p.rounds < rounds && time.round() && round(p.rounds) {
		p.rounds++
	}
	for _, row := range rows {
		ours, yardstick := row.Ours.Front, row.Yardstick.Front
		if p.failed[ours] != nil && !base(ours) || p.failed[yardstick] != nil && !base(yardstick) {
			continue
		}
		f := row.figure(results[row.Ours], results[row.Yardstick])
		if len(f.Values) == 0 {
			p.left = append(p.left, row.Name)
			continue
		}
		p.figures = append(p.figures, f)
	}
	for _, run := range first {
		if len(results[run].Rounds) > 0 {
			p.runs = append(p.runs, *results[run])
		}
	}
	return p, err
}

// figure is the median over the rounds. yardstick is nil if the row has none. A round that was cut
// off may have one without the other.
func (row Row) figure(ours, yardstick *RunResult) Figure {
	f := Figure{Name: row.Name, Unit: row.Unit, Goal: row.Goal, AtLeast: row.AtLeast, Bar: row.Bar,
		Note: row.About}
	for i, r := range ours.Rounds {
		var y Result
		if yardstick != nil {
			if i == len(yardstick.Rounds) {
				break
			}
			y = yardstick.Rounds[i]
			f.Raw = append(f.Raw, y.IOPS)
		}
		f.Ours = append(f.Ours, r.IOPS)
		f.Values = append(f.Values, finite(row.Value(r, y)))
	}
	f.Value = finite(Median(f.Values))
	return f
}

// finite makes what JSON can't say a zero.
func finite(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}
