package perf

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"pstorage/dataplane"
)

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
	f.ofSameRound()
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
	filled, slowest, err := r.fill(ctx, r.random("randwrite", depth, 5*time.Second), 3*r.o.Log, false)
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
	f.ofMedian()
	f.Note = fmt.Sprintf("IOPS at depth %d after %.2f logs were written, slowest write %.1f s; the "+
		"HDD's own random writes", depth, float64(filled)/float64(r.o.Log), slowest/1e6)
	r.add(f)
	return nil
}

// behindSSD starts a server with a log of so many bytes on a fast disk before an emulated HDD,
// which is laid out in full. raw is the file for fio on the HDD.
func (r *engineRun) behindSSD(ctx context.Context, log int64) (raw string, err error) {
	disk, dir, err := r.disk("hdd", 2*r.o.Set+(2<<30), true)
	if err != nil {
		return "", err
	}
	fast, _, err := r.disk("ssd", log, false)
	if err != nil {
		return "", err
	}
	raw = filepath.Join(dir, "raw")
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
	return raw, err
}

// ssd: the working set is in a log on a fast disk.
func (r *engineRun) ssd(ctx context.Context) error {
	r.o.Set = min(r.o.Set, r.o.Log/2)
	raw, err := r.behindSSD(ctx, r.o.Log)
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
		f.ofSameRound()
		r.add(f)
	}
	return nil
}

// fast: one chunk server, one copy, the disk as it is. The log is so large that hardly anything
// must be written back meanwhile: it is the log that is measured. The rest is for row sustain.
func (r *engineRun) fast(ctx context.Context) error {
	raw := filepath.Join(r.dir, "raw")
	r.o.Set = min(r.o.Set, r.o.Log/2)
	err := r.start(ctx, ServerDisk{Dir: filepath.Join(r.dir, "cs"), LogSize: 4 * r.o.Log})
	if err == nil {
		err = r.layout(ctx, raw)
	}
	if err != nil {
		return err
	}
	iops := func(x Result) float64 { return x.IOPS }
	mean := func(x Result) float64 { return 1e6 / x.IOPS } // at depth 1: of write and sync together
	q32 := &Figure{Name: "write_q32", Unit: "x", Goal: 0.8, AtLeast: true,
		Note: "durable writes per s; unsynced fio randwrite"}
	q128 := &Figure{Name: "write_q128", Unit: "x", Goal: 1.4, AtLeast: true, Note: q32.Note}
	q1 := &Figure{Name: "write_q1_latency", Unit: "x", Goal: 1.4,
		Note: "mean µs of a durable write; fio --fsync=1, write and sync"}
	cpuWrite := &Figure{Name: "cs_cpu_write_q128", Unit: "µs", Goal: 6, Note: "per write"}
	cpuRead := &Figure{Name: "cs_cpu_read_q128", Unit: "µs", Goal: 6, Note: "per read"}
	for range r.o.Rounds {
		for _, c := range []struct {
			w     Workload
			sync  bool
			ratio map[*Figure]func(Result) float64
			cpu   *Figure
		}{
			{r.random("randwrite", 1, r.o.Each/2), true,
				map[*Figure]func(Result) float64{q1: mean}, nil},
			{r.random("randwrite", 32, r.o.Each/4), false,
				map[*Figure]func(Result) float64{q32: iops}, nil},
			{r.random("randwrite", 128, r.o.Each/4), false,
				map[*Figure]func(Result) float64{q128: iops}, cpuWrite},
			{r.random("randread", 128, r.o.Each/2), false, nil, cpuRead},
		} {
			var more []string
			if c.sync {
				more = []string{"--fsync=1"}
			}
			own, err := r.fio(ctx, c.w, raw, more...)
			if err != nil {
				return err
			}
			ours, cpu, err := r.ours(ctx, c.w)
			if err != nil {
				return err
			}
			if c.cpu != nil {
				c.cpu.Ours, c.cpu.Raw = append(c.cpu.Ours, cpu), append(c.cpu.Raw, own.CPUPerOp)
			}
			for f, value := range c.ratio {
				f.Ours, f.Raw = append(f.Ours, value(ours)), append(f.Raw, value(own))
			}
		}
	}
	for _, f := range []*Figure{q32, q128, q1} {
		f.ofSameRound()
		r.add(*f)
	}
	for _, f := range []*Figure{cpuWrite, cpuRead} {
		f.byItself()
		f.Note += fmt.Sprintf("; fio's own, without a network and checksums: %.3g µs", Median(f.Raw))
		r.add(*f)
	}
	return nil
}

// sustain: ten times what the log holds is written to a disk as it is. What counts is the last
// rounds' rate and that there was progress all the time.
func (r *engineRun) sustain(ctx context.Context) error {
	raw := filepath.Join(r.dir, "raw")
	size := r.o.Log / 8
	err := r.start(ctx, ServerDisk{Dir: filepath.Join(r.dir, "cs"), LogSize: size})
	if err == nil {
		err = r.layout(ctx, raw)
	}
	if err != nil {
		return err
	}
	w := r.random("randwrite", 128, 2*time.Second)
	written, slowest, err := r.fill(ctx, w, 10*size, false)
	if err != nil {
		return err
	}
	f := Figure{Name: "sustained_q128", Unit: "x", Goal: 1, AtLeast: true,
		Note: fmt.Sprintf("durable writes per s after %.1f logs of %d MiB; unsynced fio randwrite",
			float64(written)/float64(size), size>>20)}
	for range r.o.Rounds {
		ours, _, err := r.ours(ctx, w)
		if err != nil {
			return err
		}
		slowest = max(slowest, ours.Latency.Max)
		f.Ours = append(f.Ours, ours.IOPS)
		if err := r.servers.StopCS(); err != nil { // it would go on writing back
			return err
		}
		own, err := r.fio(ctx, w, raw)
		if err != nil {
			return err
		}
		f.Raw = append(f.Raw, own.IOPS)
		if _, err := r.servers.StartCS(ctx); err != nil {
			return err
		}
		if _, _, err := r.fill(ctx, w, size, false); err != nil {
			return err
		}
	}
	f.ofSameRound()
	r.add(f)
	r.add(Figure{Name: "sustained_max_wait", Value: slowest / 1e6, Unit: "s", Goal: 1,
		Ours: []float64{slowest / 1e6}, Note: "slowest write of all: no standstill was longer"})
	return nil
}

// sustainHDD: the same with the log on an SSD and the store on an HDD. The log is an eighth of row
// ssd's; what counts is the second half of the writes, and the longest standstill of all.
func (r *engineRun) sustainHDD(ctx context.Context) error {
	size := r.o.Log / 8
	raw, err := r.behindSSD(ctx, size)
	if err != nil {
		return err
	}
	own := r.random("randwrite", 32, r.o.Each)
	before, err := r.fio(ctx, own, raw)
	if err != nil {
		return err
	}
	const depth = 128
	written, rates, gap, err := r.flood(ctx, r.random("randwrite", depth, 2*time.Second), 10*size)
	if err == nil {
		err = r.servers.StopCS() // it would go on writing back
	}
	if err != nil {
		return err
	}
	after, err := r.fio(ctx, own, raw)
	if err != nil {
		return err
	}
	f := Figure{Name: "sustained_hdd_q128", Unit: "x", Goal: 1, AtLeast: true,
		Ours: rates[len(rates)/2:], Raw: []float64{before.IOPS, after.IOPS},
		Note: fmt.Sprintf("durable writes per s, the second half of %.1f logs of %d MiB over %d MiB; "+
			"the HDD's own random writes", float64(written)/float64(size), size>>20, r.o.Set>>20)}
	f.ofMedian()
	r.add(f)
	r.add(Figure{Name: "sustained_hdd_gap", Value: gap.Seconds(), Unit: "s", Goal: 1,
		Ours: []float64{gap.Seconds()}, Note: "the longest time without an acknowledged write"})
	return nil
}

// rss: one block is written to each chunk; after a new start all of them are read from the store.
// So the server knows all chunks, and its CRC pages use their budget: each block has another page.
func (r *engineRun) rss(ctx context.Context) error {
	disk, dir, err := r.disk("hdd", r.o.Store+r.o.Store/16+(4<<30), true)
	if err != nil {
		return err
	}
	err = r.start(ctx, ServerDisk{Dir: filepath.Join(dir, "cs"), LogSize: r.o.Log,
		Capacity: r.o.Store})
	if err != nil {
		return err
	}
	chunks := r.o.Store / dataplane.ChunkSize
	block := make([]byte, dataplane.BlockSize)
	fill(block)
	if err := r.touch(ctx, chunks, func(off int64) error {
		_, err := r.native.file.WriteAt(block, off)
		return err
	}); err != nil {
		return err
	}
	err = r.quiet(ctx, disk)
	if err == nil {
		err = r.servers.StopCS()
	}
	if err != nil {
		return err
	}
	if _, err := r.servers.StartCS(ctx); err != nil {
		return err
	}
	if err := r.touch(ctx, chunks, func(off int64) error {
		_, err := r.native.file.ReadAt(make([]byte, dataplane.BlockSize), off)
		return err
	}); err != nil {
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
	f.byItself()
	r.add(f)
	return nil
}
