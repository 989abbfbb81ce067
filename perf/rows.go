package perf

import "time"

// The ways to make a figure of two runs.
func iopsRatio(ours, yardstick Result) float64 { return ours.IOPS / yardstick.IOPS }

// thirdRatio compares writes, of which we make three, to a disk that makes one.
func thirdRatio(ours, yardstick Result) float64 { return 3 * ours.MBps / yardstick.MBps }

// slowness compares times per operation at depth 1, where they are one over the rate. fio's
// latencies leave the sync after a write out.
func slowness(ours, yardstick Result) float64 { return yardstick.IOPS / ours.IOPS }

func extraUs(ours, yardstick Result) float64 { return ours.Latency.Mean - yardstick.Latency.Mean }

func meanUs(ours, _ Result) float64 { return ours.Latency.Mean }

func cpuUs(ours, _ Result) float64 { return ours.CPUPerOp }

// Fronts says which of the front ends are measured besides native and raw.
type Fronts struct{ Fuse, NBD, Passthrough, Ping bool }

// Rows are the main figures. Each run takes the given time, on files of size bytes. The goals are
// those of the project; the bars lie 10 to 20 % beyond the worst median that a shared 2-CPU virtual
// machine with a noisy disk gave on slow evenings (BENCHMARKS.md has both).
func Rows(each time.Duration, size int64, can Fronts) []Row {
	run := func(front, rw string, block, depth int) Run {
		return Run{front, Workload{RW: rw, BlockSize: block, Depth: depth, Time: each, Size: size}}
	}
	const k4, m1 = 4 << 10, 1 << 20
	native := func(rw string, block, depth int) Run { return run(FrontNative, rw, block, depth) }
	raw := func(rw string, block, depth int) Run { return run(FrontRaw, rw, block, depth) }
	synced := raw("randwrite", k4, 1)
	synced.Workload.Fsync = true
	rows := []Row{
		{Name: "read_q1_extra_us", About: "mean latency of a 4K random read, less that of raw",
			Ours: native("randread", k4, 1), Yardstick: raw("randread", k4, 1),
			Value: extraUs, Unit: "µs", Goal: 55, Bar: 130},
		{Name: "randread_q32", About: "4K random reads, of raw",
			Ours: native("randread", k4, 32), Yardstick: raw("randread", k4, 32),
			Value: iopsRatio, Unit: "x", Goal: 0.6, AtLeast: true, Bar: 0.6},
	}
	if can.NBD {
		rows = append(rows, Row{Name: "nbd_randread_q32",
			About: "4K random reads through NBD, of native",
			Ours:  run(FrontNBD, "randread", k4, 32), Yardstick: native("randread", k4, 32),
			Value: iopsRatio, Unit: "x", Goal: 0.8, AtLeast: true, Bar: 0.55})
	}
	if can.Fuse {
		rows = append(rows, Row{Name: "fuse_randread_q32",
			About: "4K random reads through the mount, of native",
			Ours:  run(FrontFuse, "randread", k4, 32), Yardstick: native("randread", k4, 32),
			Value: iopsRatio, Unit: "x", Goal: 0.8, AtLeast: true, Bar: 0.58},
			Row{Name: "fuse_randread_q1", About: "the same at depth 1",
				Ours: run(FrontFuse, "randread", k4, 1), Yardstick: native("randread", k4, 1),
				Value: iopsRatio, Unit: "x", Goal: 0.8, AtLeast: true, Bar: 0.52})
	}
	if can.Passthrough {
		rows = append(rows, Row{Name: "fuse_to_passthrough_q32",
			About: "4K random reads through the mount, of a FUSE passthrough to the raw file",
			Ours:  run(FrontFuse, "randread", k4, 32), Yardstick: run(FrontPass, "randread", k4, 32),
			Value: iopsRatio, Unit: "x", Goal: 1, AtLeast: true, Bar: 0.6})
	}
	if can.Ping {
		rows = append(rows, Row{Name: "tcp_roundtrip_us",
			About: "64 bytes to another thread and back: a yardstick of wake-ups",
			Ours:  run(FrontPing, "randread", k4, 1), Value: meanUs, Unit: "µs"})
	}
	return append(rows,
		Row{Name: "randread_q128", About: "4K random reads, of raw",
			Ours: native("randread", k4, 128), Yardstick: raw("randread", k4, 128),
			Value: iopsRatio, Unit: "x", Goal: 0.8, AtLeast: true, Bar: 0.65},
		Row{Name: "cpu_us_read", About: "CPU of all processes per 4K read at depth 128",
			Ours: native("randread", k4, 128), Value: cpuUs, Unit: "µs", Goal: 10, Bar: 21},
		Row{Name: "seqread_q8", About: "1M sequential reads, of raw",
			Ours: native("read", m1, 8), Yardstick: raw("read", m1, 8),
			Value: iopsRatio, Unit: "x", Goal: 0.8, AtLeast: true, Bar: 0.3},
		Row{Name: "write_q1_ratio", About: "time of a durable 4K write, 3 copies, to raw write and fsync",
			Ours: native("randwrite", k4, 1), Yardstick: synced,
			Value: slowness, Unit: "x", Goal: 3, Bar: 3.4},
		Row{Name: "randwrite_q32", About: "durable 4K random writes, 3 copies, of raw without sync",
			Ours: native("randwrite", k4, 32), Yardstick: raw("randwrite", k4, 32),
			Value: iopsRatio, Unit: "x", Goal: 0.45, AtLeast: true, Bar: 0.27},
		Row{Name: "randwrite_q128", About: "durable 4K random writes, 3 copies, of raw without sync",
			Ours: native("randwrite", k4, 128), Yardstick: raw("randwrite", k4, 128),
			Value: iopsRatio, Unit: "x", Goal: 0.8, AtLeast: true, Bar: 0.35},
		Row{Name: "cpu_us_write", About: "CPU of all processes per durable 4K write at depth 128",
			Ours: native("randwrite", k4, 128), Value: cpuUs, Unit: "µs", Goal: 30, Bar: 40},
		Row{Name: "seqwrite_q8", About: "1M sequential writes, 3 copies, of a third of raw",
			Ours: native("write", m1, 8), Yardstick: raw("write", m1, 8),
			Value: thirdRatio, Unit: "x", Goal: 0.9, AtLeast: true, Bar: 0.31})
}
