package perf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"pstorage/dataplane"
	"pstorage/perf/emulate"
)

// random returns a 4K random workload over the working set.
func (r *engineRun) random(rw string, depth int, each time.Duration) Workload {
	return Workload{RW: rw, BlockSize: 4096, Depth: depth, Time: each, Size: r.o.Set}
}

// fio runs the yardstick, as slow as the chunk server's disks.
func (r *engineRun) fio(ctx context.Context, w Workload, path string, more ...string) (Result,
	error) {
	args := append(append([]string{"fio"}, fioArgs(w, path, "io_uring")...), more...)
	if r.rig != nil {
		args = r.rig.Wrap(args...)
	}
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output()
	if err != nil {
		return Result{}, fmt.Errorf("fio %s on %s: %w", w.RW, path, err)
	}
	return parseFio(out)
}

// ours runs w through the client library, and says how much CPU time the chunk server needed for
// one operation, in microseconds.
func (r *engineRun) ours(ctx context.Context, w Workload) (res Result, csCPU float64, err error) {
	pids, err := r.servers.CSPIDs()
	if err != nil {
		return res, 0, err
	}
	stop, err := r.profile(ctx, w, pids)
	if err != nil {
		return res, 0, err
	}
	before, err := SampleCPU(pids)
	if err != nil {
		return res, 0, err
	}
	if res, err = r.native.Run(ctx, w); err != nil {
		return res, 0, errors.Join(err, stop())
	}
	after, err := SampleCPU(pids)
	csCPU = float64(after.Since(before)) / 1000 / float64(res.Ops)
	r.say("%s qd%d: %.0f IOPS, p50 %.0f µs, p99 %.0f µs, max %.0f ms; CPU %.1f µs, servers %.1f",
		w.RW, w.Depth, res.IOPS, res.Latency.P50, res.Latency.P99, res.Latency.Max/1000,
		res.CPUPerOp, csCPU)
	return res, csCPU, errors.Join(err, stop())
}

// profile records where the chunk server's time goes, if that is wanted. The last round of a
// workload counts.
func (r *engineRun) profile(ctx context.Context, w Workload, pids []int) (stop func() error,
	err error) {
	if r.o.Profile == "" {
		return func() error { return nil }, nil
	}
	file := filepath.Join(r.o.Profile, fmt.Sprintf("%s-%s-q%d.perf", r.name, w.RW, w.Depth))
	if err := os.RemoveAll(file); err != nil {
		return nil, err
	}
	list := strings.Trim(strings.ReplaceAll(fmt.Sprint(pids), " ", ","), "[]")
	cmd := exec.CommandContext(ctx, "perf", "record", "-q", "-g", "-F", "1999", "-o", file, "-p", list)
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("profile the chunk server: %w", err)
	}
	for begun := time.Now(); ; { // it makes the file when it is about to begin
		if _, err := os.Stat(file); err == nil {
			break
		}
		if time.Since(begun) > 10*time.Second {
			_ = cmd.Process.Kill()
			return nil, fmt.Errorf("perf record hasn't begun after 10 s: %v", cmd.Wait())
		}
		time.Sleep(10 * time.Millisecond) // nothing tells when
	}
	return func() error {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			return err
		}
		_ = cmd.Wait() // it ends by the signal
		_, err := os.Stat(file)
		return err
	}, nil
}

// layout writes the working set of our file, and the yardstick's, if there is one.
func (r *engineRun) layout(ctx context.Context, raw string) error {
	r.say("laying out %d MiB", r.o.Set>>20)
	w := Workload{RW: "write", BlockSize: 64 << 10, Depth: 16, Size: r.o.Set}
	if _, err := r.native.Run(ctx, w); err != nil {
		return err
	}
	if raw == "" {
		return nil
	}
	return FioLayout(ctx, raw, r.o.Set)
}

// Limits of waiting until a chunk server has written everything back.
const (
	quietIO     = 20 // operations in quietFor that don't count
	quietFor    = 1500 * time.Millisecond
	quietWithin = 45 * time.Second
)

// quiet waits until a disk has nothing to do. Destage works in the background when nothing else
// is to be done; only then reads are measured alone.
func (r *engineRun) quiet(ctx context.Context, d *emulate.Disk) error {
	r.say("waiting until everything is written back")
	for begun := time.Now(); time.Since(begun) < quietWithin; {
		before, err := d.Operations()
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(quietFor):
		}
		after, err := d.Operations()
		if err != nil {
			return err
		}
		if after-before < quietIO {
			return nil
		}
	}
	r.say("the disk is still busy after %v; measuring all the same", quietWithin)
	return nil
}

// fill writes at least size bytes, or as long as it may take, or (with untilSlow) until the server
// takes little more; it returns how many it were and the slowest write in microseconds.
func (r *engineRun) fill(ctx context.Context, w Workload, size int64, untilSlow bool) (
	written int64, slowest float64, err error) {
	r.say("filling the log of %d MiB", size>>20)
	best := 0.0
	for begun := time.Now(); written < size && time.Since(begun) < r.o.Fill; {
		res, _, err := r.ours(ctx, w)
		if err != nil {
			return written, slowest, err
		}
		written += int64(res.Ops) * int64(w.BlockSize)
		slowest = max(slowest, res.Latency.Max)
		best = max(best, res.IOPS)
		if untilSlow && res.IOPS < best/20 {
			break
		}
	}
	return written, slowest, nil
}

// flood writes until size bytes are written, or as long as it may take. rates and gap are of all of
// it: writes per second in each run of w, and the longest time without an acknowledged one.
func (r *engineRun) flood(ctx context.Context, w Workload, size int64) (written int64,
	rates []float64, gap time.Duration, err error) {
	r.say("writing %d MiB", size>>20)
	for begun := time.Now(); written < size && time.Since(begun) < r.o.Fill; {
		res, _, err := r.ours(ctx, w)
		if err != nil {
			return written, rates, gap, err
		}
		written += int64(res.Ops) * int64(w.BlockSize)
		rates = append(rates, res.IOPS)
		gap = max(gap, time.Duration(res.Gap*1000))
		r.say("%d MiB so far, longest gap %.0f ms", written>>20, res.Gap/1000)
	}
	return written, rates, gap, nil
}

// touch does something at the start of each chunk of the file, for many at a time.
func (r *engineRun) touch(ctx context.Context, chunks int64, do func(off int64) error) error {
	r.say("touching %d chunks", chunks)
	var next, done atomic.Int64
	errs := make(chan error, 32)
	for range cap(errs) {
		go func() {
			var err error
			for c := next.Add(1) - 1; c < chunks && err == nil && ctx.Err() == nil; {
				err = do(c * dataplane.ChunkSize)
				done.Add(1)
				c = next.Add(1) - 1
			}
			errs <- err
		}()
	}
	alive := time.NewTicker(stuckTouch)
	defer alive.Stop()
	before := int64(0)
	for running := cap(errs); running > 0; {
		select {
		case err := <-errs:
			if err != nil {
				return err // the others end with the client
			}
			running--
		case <-alive.C:
			now := done.Load()
			if now == before {
				return fmt.Errorf("stuck after %d of %d chunks: none in %v", now, chunks,
					stuckTouch)
			}
			r.say("%d chunks", now)
			before = now
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ctx.Err()
}

// stuckTouch is how long it may take until at least one of many is done.
const stuckTouch = 15 * time.Second
