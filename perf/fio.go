package perf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Workload is what a measurement does, for fio and for the native generator alike.
type Workload struct {
	RW        string        // randread, randwrite, read or write
	BlockSize int           // bytes
	Depth     int           // operations in flight
	Time      time.Duration // of measuring; 0: one pass over Size, sequential workloads only
	Size      int64         // bytes of the file that are used, from its start
	Fsync     bool          // fio only: fsync(2) after each write; pstorage's always are durable
	Warm      time.Duration // native only: what ends in this time before Time isn't counted
	Count     uint64        // native only: operations after which it ends before its time; 0: none
}

// Write says whether w writes.
func (w Workload) Write() bool { return w.RW == "randwrite" || w.RW == "write" }

// Random says whether w's offsets are random.
func (w Workload) Random() bool { return w.RW == "randread" || w.RW == "randwrite" }

// Validate says what is wrong with w, for people.
func (w Workload) Validate() error {
	switch {
	case !w.Write() && w.RW != "randread" && w.RW != "read":
		return fmt.Errorf("rw=%q: must be randread, randwrite, read or write", w.RW)
	case w.BlockSize < 512 || w.BlockSize%512 != 0 || w.BlockSize > 16<<20:
		return fmt.Errorf("bs=%d: must be a multiple of 512, at most 16 MiB", w.BlockSize)
	case w.Depth < 1 || w.Depth > 4096:
		return fmt.Errorf("qd=%d: must be 1 to 4096", w.Depth)
	case w.Time < 0 || w.Time == 0 && w.Random():
		return fmt.Errorf("time=%v: must be more than 0", w.Time)
	case w.Warm < 0 || w.Warm > 0 && (w.Time == 0 || w.Count > 0):
		return fmt.Errorf("warm=%v: must be at least 0, and 0 unless the run lasts a time", w.Warm)
	case w.Size < int64(w.BlockSize):
		return fmt.Errorf("size=%d: smaller than one block of %d", w.Size, w.BlockSize)
	}
	return nil
}

// Result is what one run of a workload gave.
type Result struct {
	Ops     uint64  `json:"ops"`
	Errors  uint64  `json:"errors"`
	Seconds float64 `json:"seconds"`
	IOPS    float64 `json:"iops"`
	MBps    float64 `json:"mb_per_s"` // 10^6 bytes
	Latency Latency `json:"latency"`
	// Gap is the longest time without a completed operation, in microseconds; 0: not measured.
	Gap float64 `json:"gap_us,omitempty"`
	// CPUPerOp is in microseconds, over all processes that took part; 0: not measured.
	CPUPerOp float64 `json:"cpu_us_per_op,omitempty"`
}

// fioArgs are the arguments of fio for w on the file at path. What has ended is taken all at once
// and replaced by as many operations in one submission, as our own generator does; by default fio
// makes a system call for each.
func fioArgs(w Workload, path, engine string) []string {
	name := "--filename="
	if engine == "nbd" {
		name = "--uri="
	}
	return fioArgsOn(w, "--ioengine="+engine, name+path)
}

// fioArgsOn are those for w on what target names: an engine and its options.
func fioArgsOn(w Workload, target ...string) []string {
	args := append([]string{"--name=perf"}, target...)
	args = append(args, "--direct=1", "--thread",
		"--rw="+w.RW, "--bs="+strconv.Itoa(w.BlockSize), "--iodepth="+strconv.Itoa(w.Depth),
		"--size="+strconv.FormatInt(w.Size, 10), "--norandommap", "--randrepeat=0",
		"--output-format=json")
	if w.Time > 0 {
		ms := strconv.FormatInt(w.Time.Milliseconds(), 10)
		args = append(args, "--time_based", "--runtime="+ms+"ms")
	}
	if w.Fsync {
		args = append(args, "--fsync=1")
	}
	if depth := strconv.Itoa(w.Depth); w.Depth > 1 {
		args = append(args, "--iodepth_batch_submit="+depth, "--iodepth_batch_complete_min=1",
			"--iodepth_batch_complete_max="+depth)
	}
	return args
}

// Fio runs w with fio on the file at path, which must be there and written in full. engine is
// io_uring, or what else fio has; with nbd, path is a URI.
func Fio(ctx context.Context, w Workload, path, engine string) (Result, error) {
	if err := w.Validate(); err != nil {
		return Result{}, err
	}
	out, err := runFio(ctx, nil, fioArgs(w, path, engine))
	if err != nil {
		return Result{}, fmt.Errorf("fio %s on %s: %w", w.RW, path, err)
	}
	return parseFio(out)
}

// FioOn runs w with fio on what target names: arguments of fio, an engine and its options. wrap is
// put before fio's command line.
func FioOn(ctx context.Context, w Workload, wrap []string, target ...string) (Result, error) {
	if err := w.Validate(); err != nil {
		return Result{}, err
	}
	out, err := runFio(ctx, wrap, fioArgsOn(w, target...))
	if err != nil {
		return Result{}, fmt.Errorf("fio %s on %s: %w", w.RW, strings.Join(target, " "), err)
	}
	return parseFio(out)
}

// FioLayout writes size bytes at path in full, so that a yardstick on it meets no holes.
func FioLayout(ctx context.Context, path string, size int64) error {
	w := Workload{RW: "write", BlockSize: 1 << 20, Depth: 8, Size: size}
	args := append(fioArgs(w, path, "io_uring"), "--end_fsync=1")
	if _, err := runFio(ctx, nil, args); err != nil {
		return fmt.Errorf("fio lays out %s: %w", path, err)
	}
	return nil
}

func runFio(ctx context.Context, wrap, args []string) ([]byte, error) {
	line := append(append(slices.Clone(wrap), "fio"), args...)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, errors.New("there is no fio here; as root: apt-get install fio")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// fioSide is one direction of a job in fio's JSON.
type fioSide struct {
	TotalIOs uint64  `json:"total_ios"`
	IOPS     float64 `json:"iops"`
	Bytes    float64 `json:"bw_bytes"`
	Runtime  float64 `json:"runtime"` // ms
	Lat      struct {
		Max  float64 `json:"max"`
		Mean float64 `json:"mean"`
	} `json:"lat_ns"`
	CLat struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
}

// parseFio reads the JSON of a run with one job. fio may print warnings before it.
func parseFio(out []byte) (Result, error) {
	start := bytes.IndexByte(out, '{')
	if start < 0 {
		return Result{}, fmt.Errorf("fio printed no JSON: %.200q", out)
	}
	var doc struct {
		Jobs []struct {
			Error     int     `json:"error"`
			TotalErr  uint64  `json:"total_err"`
			UsrCPU    float64 `json:"usr_cpu"` // percent of one CPU
			SysCPU    float64 `json:"sys_cpu"`
			Runtime   float64 `json:"job_runtime"` // ms
			Read      fioSide `json:"read"`
			WriteSide fioSide `json:"write"`
		} `json:"jobs"`
	}
	if err := json.NewDecoder(bytes.NewReader(out[start:])).Decode(&doc); err != nil {
		return Result{}, fmt.Errorf("fio's JSON: %w", err)
	}
	if len(doc.Jobs) != 1 {
		return Result{}, fmt.Errorf("fio's JSON has %d jobs, not 1", len(doc.Jobs))
	}
	job := doc.Jobs[0]
	if job.Error != 0 {
		return Result{}, fmt.Errorf("fio's job ended with errno %d", job.Error)
	}
	side := job.Read
	if side.TotalIOs == 0 {
		side = job.WriteSide
	}
	if side.TotalIOs == 0 || side.Runtime <= 0 {
		return Result{}, errors.New("fio's job did no I/O")
	}
	us := func(p string) float64 { return side.CLat.Percentile[p] / 1000 }
	return Result{
		Ops: side.TotalIOs, Errors: job.TotalErr, Seconds: side.Runtime / 1000,
		IOPS: side.IOPS, MBps: side.Bytes / 1e6,
		Latency: Latency{Mean: side.Lat.Mean / 1000, P50: us("50.000000"), P99: us("99.000000"),
			P999: us("99.900000"), Max: side.Lat.Max / 1000},
		CPUPerOp: (job.UsrCPU + job.SysCPU) / 100 * job.Runtime * 1000 / float64(side.TotalIOs),
	}, nil
}

// parseFioSum reads the JSON of a run with any number of jobs: bytes per second that all of them
// read and wrote.
func parseFioSum(out []byte) (read, write float64, err error) {
	start := bytes.IndexByte(out, '{')
	if start < 0 {
		return 0, 0, fmt.Errorf("fio printed no JSON: %.200q", out)
	}
	var doc struct {
		Jobs []struct {
			Error int     `json:"error"`
			Read  fioSide `json:"read"`
			Write fioSide `json:"write"`
		} `json:"jobs"`
	}
	if err := json.NewDecoder(bytes.NewReader(out[start:])).Decode(&doc); err != nil {
		return 0, 0, fmt.Errorf("fio's JSON: %w", err)
	}
	for _, job := range doc.Jobs {
		if job.Error != 0 {
			return 0, 0, fmt.Errorf("a job of fio ended with errno %d", job.Error)
		}
		read, write = read+job.Read.Bytes, write+job.Write.Bytes
	}
	if read <= 0 || write <= 0 {
		return 0, 0, errors.New("fio did no I/O")
	}
	return read, write, nil
}
