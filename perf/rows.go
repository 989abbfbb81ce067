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
type Fronts struct {
	Fuse, NBD, Passthrough, Ping bool
	// More: also the rows without a goal: writes and large requests through the mount and NBD, NBD
	// over TCP; Lib: the C library.
	More, Lib bool
}

// rowMaker makes runs that take a time on files of a size.
type rowMaker struct {
	each time.Duration
	size int64
	can  Fronts
}

func (m rowMaker) run(front, rw string, block, depth int) Run {
	return Run{front, Workload{RW: rw, BlockSize: block, Depth: depth, Time: m.each, Size: m.size}}
}

func (m rowMaker) native(rw string, block, depth int) Run {
	return m.run(FrontNative, rw, block, depth)
}

func (m rowMaker) raw(rw string, block, depth int) Run { return m.run(FrontRaw, rw, block, depth) }

// ownPart is the size of the file that each front end writes to: one client at a time may write a
// file.
func ownPart(size int64) int64 { return min(size, 256<<20) }

// more are rows without a goal: a workload through all front ends that have it, of native.
func (m rowMaker) more(name, about, rw string, block, depth int) (rows []Row) {
	yardstick := m.native(rw, block, depth)
	add := func(can bool, prefix, through, front string) {
		if !can {
			return
		}
		ours := m.run(front, rw, block, depth)
		if ours.Workload.Write() {
			ours.Workload.Size = ownPart(m.size)
		}
		rows = append(rows, Row{Name: prefix + name, About: about + " through " + through + ", of native",
			Ours: ours, Yardstick: yardstick, Value: iopsRatio, Unit: "x", AtLeast: true})
	}
	goal := rw == "randread" // mount and NBD have a row with a goal
	add(m.can.More && m.can.NBD && !goal, "nbd_", "NBD", FrontNBD)
	add(m.can.More && m.can.NBD && goal, "nbd_tcp_", "NBD over TCP", FrontTCP)
	add(m.can.More && m.can.Fuse && !goal, "fuse_", "the mount", FrontFuse)
	add(m.can.Lib && block == k4, "lib_", "libpstorage", FrontLib)
	return rows
}

const k4, m1 = 4 << 10, 1 << 20

// Rows are the main figures. Each run takes the given time, on files of size bytes. The goals are
// those of the project; the bars lie at most 20 % beyond the worst median that a shared 2-CPU
// virtual machine with a noisy disk gave on slow evenings, some within it (BENCHMARKS.md has both).
func Rows(each time.Duration, size int64, can Fronts) []Row {
	m := rowMaker{each, size, can}
	return append(m.reads(), m.writes()...)
}

func (m rowMaker) reads() []Row {
	rows := []Row{
		{Name: "read_q1_extra_us", About: "mean latency of a 4K random read, less that of raw",
			Ours: m.native("randread", k4, 1), Yardstick: m.raw("randread", k4, 1),
			Value: extraUs, Unit: "µs", Goal: 55, Bar: 110},
		{Name: "randread_q32", About: "4K random reads, of raw",
			Ours: m.native("randread", k4, 32), Yardstick: m.raw("randread", k4, 32),
			Value: iopsRatio, Unit: "x", Goal: 0.6, AtLeast: true, Bar: 0.6},
	}
	if m.can.NBD {
		rows = append(rows, Row{Name: "nbd_randread_q32",
			About: "4K random reads through NBD, of native",
			Ours:  m.run(FrontNBD, "randread", k4, 32), Yardstick: m.native("randread", k4, 32),
			Value: iopsRatio, Unit: "x", Goal: 0.8, AtLeast: true, Bar: 0.55})
	}
	if m.can.Fuse {
		rows = append(rows, Row{Name: "fuse_randread_q32",
			About: "4K random reads through the mount, of native",
			Ours:  m.run(FrontFuse, "randread", k4, 32), Yardstick: m.native("randread", k4, 32),
			Value: iopsRatio, Unit: "x", Goal: 0.8, AtLeast: true, Bar: 0.6},
			Row{Name: "fuse_randread_q1", About: "the same at depth 1",
				Ours: m.run(FrontFuse, "randread", k4, 1), Yardstick: m.native("randread", k4, 1),
				Value: iopsRatio, Unit: "x", Goal: 0.8, AtLeast: true, Bar: 0.52})
	}
	if m.can.Passthrough {
		rows = append(rows, Row{Name: "fuse_to_passthrough_q32",
			About:     "4K random reads through the mount, of a FUSE passthrough to the raw file",
			Ours:      m.run(FrontFuse, "randread", k4, 32),
			Yardstick: m.run(FrontPass, "randread", k4, 32),
			Value:     iopsRatio, Unit: "x", Goal: 1, AtLeast: true, Bar: 0.6})
	}
	rows = append(rows, m.more("randread_q32", "4K random reads", "randread", k4, 32)...)
	if m.can.Ping {
		rows = append(rows, Row{Name: "tcp_roundtrip_us",
			About: "64 bytes to another thread and back: a yardstick of wake-ups",
			Ours:  m.run(FrontPing, "randread", k4, 1), Value: meanUs, Unit: "µs"})
	}
	rows = append(rows,
		Row{Name: "randread_q128", About: "4K random reads, of raw",
			Ours: m.native("randread", k4, 128), Yardstick: m.raw("randread", k4, 128),
			Value: iopsRatio, Unit: "x", Goal: 0.8, AtLeast: true, Bar: 0.65},
		Row{Name: "cpu_us_read", About: "CPU of all processes per 4K read at depth 128",
			Ours: m.native("randread", k4, 128), Value: cpuUs, Unit: "µs", Goal: 10, Bar: 15},
		Row{Name: "seqread_q8", About: "1M sequential reads, of raw",
			Ours: m.native("read", m1, 8), Yardstick: m.raw("read", m1, 8),
			Value: iopsRatio, Unit: "x", Goal: 0.8, AtLeast: true, Bar: 0.5})
	return append(rows, m.more("seqread_q8", "1M sequential reads", "read", m1, 8)...)
}

func (m rowMaker) writes() []Row {
	synced := m.raw("randwrite", k4, 1)
	synced.Workload.Fsync = true
	rows := []Row{
		{Name: "write_q1_ratio", About: "time of a durable 4K write, 3 copies, to raw write and fsync",
			Ours: m.native("randwrite", k4, 1), Yardstick: synced,
			Value: slowness, Unit: "x", Goal: 3, Bar: 3.4},
		{Name: "randwrite_q32", About: "durable 4K random writes, 3 copies, of raw without sync",
			Ours: m.native("randwrite", k4, 32), Yardstick: m.raw("randwrite", k4, 32),
			Value: iopsRatio, Unit: "x", Goal: 0.45, AtLeast: true, Bar: 0.27},
	}
	rows = append(rows, m.more("randwrite_q32", "durable 4K random writes", "randwrite", k4, 32)...)
	rows = append(rows,
		Row{Name: "randwrite_q128", About: "durable 4K random writes, 3 copies, of raw without sync",
			Ours: m.native("randwrite", k4, 128), Yardstick: m.raw("randwrite", k4, 128),
			Value: iopsRatio, Unit: "x", Goal: 0.8, AtLeast: true, Bar: 0.35},
		Row{Name: "cpu_us_write", About: "CPU of all processes per durable 4K write at depth 128",
			Ours: m.native("randwrite", k4, 128), Value: cpuUs, Unit: "µs", Goal: 30, Bar: 40},
		Row{Name: "seqwrite_q8", About: "1M sequential writes, 3 copies, of a third of raw",
			Ours: m.native("write", m1, 8), Yardstick: m.raw("write", m1, 8),
			Value: thirdRatio, Unit: "x", Goal: 0.9, AtLeast: true, Bar: 0.31})
	return append(rows, m.more("seqwrite_q8", "1M sequential writes", "write", m1, 8)...)
}
