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
	r.say("%s qd%d: %.0f IOPS, p50 %.0f µs, p99 %.0f µs, max %.0f ms", w.RW, w.Depth, res.IOPS,
		res.Latency.P50, res.Latency.P99, res.Latency.Max/1000)
	return res, float64(after.Since(before)) / 1000 / float64(res.Ops), errors.Join(err, stop())
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

// hddRead: cold reads. The chunk server is started anew after the layout, so that nothing is in
// its log; its CRC pages are warmed by random reads while the disk is fast.
func (r *engineRun) hddRead(ctx context.Context) error {
	disk, dir, err := r.disk("hdd", 2*r.o.Set+r.o.Log+(1<<30), true)
	if err != nil {
		return err
	}
	raw := filepath.Join(dir, "raw")
	err = r.start(ctx, ServerDisk{Dir: filepath.Join(dir, "cs"), LogSize: r.o.Log})
	if err == nil {
		err = r.layout(ctx, raw)
	}
	if err == nil {
		err = r.quiet(ctx, disk)
	}
	if err == nil {
		err = r.servers.StopCS()
	}
	if err != nil {
		return err
	}
	if _, err := r.servers.StartCS(ctx); err != nil {
		return err
	}
	if _, _, err := r.ours(ctx, r.random("randread", 64, 3*time.Second)); err != nil {
		return err
	}
	if err := disk.Limit(r.hdd()); err != nil {
		return err
	}
	f := Figure{Name: "hdd_coldread_q32", Unit: "x", Goal: 0.97, AtLeast: true,
		Note: "IOPS; the HDD's own random reads"}
	w := r.random("randread", 32, r.o.Each)
	for range r.o.Rounds {
		own, err := r.fio(ctx, w, raw)
		if err != nil {
			return err
		}
		ours, _, err := r.ours(ctx, w)
		if err != nil {
			return err
		}
		f.Ours, f.Raw = append(f.Ours, ours.IOPS), append(f.Raw, own.IOPS)
	}
	f.Value = Median(Ratios(f.Ours, f.Raw))
	r.add(f)
	return nil
}

// hddWrite: as much is written as the log can hold, then the rate is that of destage.
func (r *engineRun) hddWrite(ctx context.Context) error {
	disk, dir, err := r.disk("hdd", 2*r.o.Set+r.o.Log+(1<<30), true)
	if err != nil {
		return err
	}
	raw := filepath.Join(dir, "raw")
	err = r.start(ctx, ServerDisk{Dir: filepath.Join(dir, "cs"), LogSize: r.o.Log})
	if err == nil {
		err = r.layout(ctx, raw)
	}
	if err == nil {
		err = r.quiet(ctx, disk)
	}
	if err == nil {
		err = disk.Limit(r.hdd())
	}
	if err != nil {
		return err
	}
	own := r.random("randwrite", 32, r.o.Each)
	f := Figure{Name: "hdd_write_sustained", Unit: "x", Goal: 3, AtLeast: true}
	before, err := r.fio(ctx, own, raw)
	if err != nil {
		return err
	}
	const depth = 128
	filled, slowest, err := r.fill(ctx, r.random("randwrite", depth, 5*time.Second), r.o.Log, false)
	if err != nil {
		return err
	}
	for range r.o.Rounds {
		ours, _, err := r.ours(ctx, r.random("randwrite", depth, r.o.Each))
		if err != nil {
			return err
		}
		f.Ours = append(f.Ours, ours.IOPS)
		slowest = max(slowest, ours.Latency.Max)
	}
	if err := r.servers.StopCS(); err != nil {
		return err
	}
	after, err := r.fio(ctx, own, raw)
	if err != nil {
		return err
	}
	f.Raw = []float64{before.IOPS, after.IOPS}
	f.Value = Median(f.Ours) / Median(f.Raw)
	f.Note = fmt.Sprintf("IOPS at depth %d after %.2f logs were written, slowest write %.1f s; the "+
		"HDD's own random writes", depth, float64(filled)/float64(r.o.Log), slowest/1e6)
	r.add(f)
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

// ssd: the working set is in a log on a fast disk.
func (r *engineRun) ssd(ctx context.Context) error {
	set := min(r.o.Set, r.o.Log/2)
	r.o.Set = set
	disk, dir, err := r.disk("hdd", 2*set+(2<<30), true)
	if err != nil {
		return err
	}
	fast, _, err := r.disk("ssd", r.o.Log, false)
	if err != nil {
		return err
	}
	raw := filepath.Join(dir, "raw")
	err = r.start(ctx, ServerDisk{Dir: filepath.Join(dir, "cs"), Journal: fast.Device()})
	if err == nil {
		err = r.layout(ctx, raw)
	}
	if err == nil {
		err = r.quiet(ctx, disk)
	}
	if err == nil {
		err = disk.Limit(r.hdd())
	}
	if err != nil {
		return err
	}
	for _, c := range []struct{ name, rw string }{
		{"ssd_read_q128", "randread"}, {"ssd_write_q128", "randwrite"}} {
		f := Figure{Name: c.name, Unit: "x", Goal: 100, AtLeast: true,
			Note: "IOPS in the log; the HDD's own"}
		for range r.o.Rounds {
			own, err := r.fio(ctx, r.random(c.rw, 32, r.o.Each/2), raw)
			if err != nil {
				return err
			}
			ours, _, err := r.ours(ctx, r.random(c.rw, 128, r.o.Each/2))
			if err != nil {
				return err
			}
			f.Ours, f.Raw = append(f.Ours, ours.IOPS), append(f.Raw, own.IOPS)
		}
		f.Value = Median(Ratios(f.Ours, f.Raw))
		r.add(f)
	}
	return nil
}

// fast: one chunk server, one copy, the disk as it is.
func (r *engineRun) fast(ctx context.Context) error {
	raw := filepath.Join(r.dir, "raw")
	err := r.start(ctx, ServerDisk{Dir: filepath.Join(r.dir, "cs"), LogSize: 2 * r.o.Log})
	if err == nil {
		err = r.layout(ctx, raw)
	}
	if err != nil {
		return err
	}
	iops := func(name, note string, goal float64) *Figure {
		return &Figure{Name: name, Unit: "x", Goal: goal, AtLeast: true, Note: note}
	}
	q32 := iops("write_q32", "durable writes per s; unsynced fio randwrite", 0.8)
	q128 := iops("write_q128", "durable writes per s; unsynced fio randwrite", 1.4)
	q1 := &Figure{Name: "write_q1_latency", Unit: "x", Goal: 1.4,
		Note: "µs per durable write; fio --fsync=1, write and sync"}
	cpuWrite := &Figure{Name: "cs_cpu_write_q128", Unit: "µs", Goal: 6, Note: "per write"}
	cpuRead := &Figure{Name: "cs_cpu_read_q128", Unit: "µs", Goal: 6, Note: "per read; none"}
	for range r.o.Rounds {
		for _, c := range []struct {
			figure, cpu *Figure
			rw          string
			depth       int
			more        []string
		}{
			{q32, nil, "randwrite", 32, nil}, {q128, cpuWrite, "randwrite", 128, nil},
			{q1, nil, "randwrite", 1, []string{"--fsync=1"}}, {nil, cpuRead, "randread", 128, nil},
		} {
			w := r.random(c.rw, c.depth, r.o.Each/2)
			var own Result
			if c.figure != nil {
				if own, err = r.fio(ctx, w, raw, c.more...); err != nil {
					return err
				}
			}
			ours, cpu, err := r.ours(ctx, w)
			if err != nil {
				return err
			}
			if c.cpu != nil {
				c.cpu.Ours = append(c.cpu.Ours, cpu)
			}
			if c.figure != nil {
				c.figure.Ours = append(c.figure.Ours, ours.IOPS)
				c.figure.Raw = append(c.figure.Raw, own.IOPS)
			}
		}
	}
	for _, f := range []*Figure{q32, q128} {
		f.Value = Median(Ratios(f.Ours, f.Raw))
	}
	for i := range q1.Ours { // at depth 1 the time of one is what the rate says
		q1.Ours[i], q1.Raw[i] = 1e6/q1.Ours[i], 1e6/q1.Raw[i]
	}
	q1.Value = Median(Ratios(q1.Ours, q1.Raw))
	cpuRead.Note = "per read"
	cpuWrite.Value, cpuRead.Value = Median(cpuWrite.Ours), Median(cpuRead.Ours)
	for _, f := range []*Figure{q32, q128, q1, cpuWrite, cpuRead} {
		r.add(*f)
	}
	return nil
}

// rss: one block is written to each chunk, then blocks everywhere are read: so the server knows
// all chunks and its CRC pages use their budget.
func (r *engineRun) rss(ctx context.Context) error {
	_, dir, err := r.disk("hdd", r.o.Store+r.o.Store/16+(4<<30), true)
	if err != nil {
		return err
	}
	err = r.start(ctx, ServerDisk{Dir: filepath.Join(dir, "cs"), LogSize: r.o.Log,
		Capacity: r.o.Store})
	if err != nil {
		return err
	}
	chunks := r.o.Store / dataplane.ChunkSize
	if err := r.touch(ctx, chunks); err != nil {
		return err
	}
	if err := r.native.file.Grow(ctx, uint64(r.o.Store)); err != nil {
		return err
	}
	r.o.Set = r.o.Store
	if _, _, err := r.ours(ctx, r.random("randread", 64, 2*r.o.Each)); err != nil {
		return err
	}
	pids, err := r.servers.CSPIDs()
	if err != nil {
		return err
	}
	mb := float64(RSS(pids)) / 1e6 / (float64(r.o.Store) / (1 << 40))
	r.add(Figure{Name: "rss_per_tib", Value: mb, Unit: "MB", Goal: 300,
		Ours: []float64{float64(RSS(pids)) / 1e6},
		Note: fmt.Sprintf("resident in all with %d chunks and a log of %d MiB", chunks, r.o.Log>>20)})
	return nil
}

// touch writes one block to each chunk of the file.
func (r *engineRun) touch(ctx context.Context, chunks int64) error {
	r.say("touching %d chunks", chunks)
	var next, done atomic.Int64
	file := r.native.file
	errs := make(chan error, 32)
	for range cap(errs) {
		go func() {
			block := make([]byte, dataplane.BlockSize)
			fill(block)
			var err error
			for c := next.Add(1) - 1; c < chunks && err == nil && ctx.Err() == nil; {
				_, err = file.WriteAt(block, c*dataplane.ChunkSize)
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
				return fmt.Errorf("stuck after %d of %d chunks: none was made in %v", now, chunks,
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

// stuckTouch is how long it may take until at least one chunk of many is made.
const stuckTouch = 15 * time.Second

// replay: the log is filled before a store so slow that little is written back, then the chunk
// server is killed and started again.
func (r *engineRun) replay(ctx context.Context) error {
	r.o.Set = r.o.Replay
	disk, dir, err := r.disk("hdd", r.o.Set+(2<<30), true)
	if err != nil {
		return err
	}
	fast, _, err := r.disk("ssd", r.o.Replay, false)
	if err != nil {
		return err
	}
	err = r.start(ctx, ServerDisk{Dir: filepath.Join(dir, "cs"), Journal: fast.Device()})
	if err == nil {
		err = disk.Limit(r.hdd())
	}
	if err != nil {
		return err
	}
	written, _, err := r.fill(ctx, r.random("randwrite", 128, 2*time.Second), r.o.Replay/16*15, true)
	if err != nil {
		return err
	}
	f := Figure{Name: "replay", Unit: "s", Goal: 5, Note: fmt.Sprintf("until ready, log of %d MiB, "+
		"%d MiB of data written; fio reads the log in 1 MiB pieces", r.o.Replay>>20, written>>20)}
	for range r.o.Rounds {
		if err := r.servers.KillCS(); err != nil {
			return err
		}
		own, err := r.fio(ctx, Workload{RW: "read", BlockSize: 1 << 20, Depth: 8, Size: r.o.Replay},
			fast.Device())
		if err != nil {
			return err
		}
		took, err := r.servers.StartCS(ctx)
		if err != nil {
			return err
		}
		r.say("ready after %.2f s; fio reads it in %.2f s", took.Seconds(), own.Seconds)
		f.Ours, f.Raw = append(f.Ours, took.Seconds()), append(f.Raw, own.Seconds)
	}
	f.Value = Median(f.Ours)
	r.add(f)
	return nil
}
