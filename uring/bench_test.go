package uring

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// benchFile is how big the file of the disk benchmarks is, in bytes.
const benchFile = 1 << 30

// cpuTime is the processor time of the process (or of awaited children) so far.
func cpuTime(who int) time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(who, &ru); err != nil {
		panic(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// readers keeps depth random 4 KiB reads in flight until left is used up.
type readers struct {
	l    *Loop
	d    Disk
	ops  []DiskOp
	left int
	busy int
	rng  *rand.Rand
	done chan struct{}
	b    testing.TB
}

func newReaders(b testing.TB, l *Loop, d Disk, depth int) *readers {
	r := &readers{l: l, d: d, ops: make([]DiskOp, depth), done: make(chan struct{}, 1),
		rng: rand.New(rand.NewPCG(1, 2)), b: b}
	for i := range r.ops {
		op := &r.ops[i]
		op.Bufs = [][]byte{l.Pool().Get(4096).Bytes()}
		op.Done = r.next
	}
	return r
}

func (r *readers) start(n int) {
	r.left, r.busy = n, len(r.ops)
	for i := range r.ops {
		r.ops[i].Err = nil
		r.next(&r.ops[i])
	}
}

func (r *readers) next(op *DiskOp) {
	if op.Err != nil {
		r.b.Error(op.Err)
	}
	if r.left == 0 {
		if r.busy--; r.busy == 0 {
			r.done <- struct{}{}
		}
		return
	}
	r.left--
	op.Offset = int64(r.rng.Uint64N(uint64(r.d.Size())/4096)) * 4096
	r.d.Submit(op)
}

func (r *readers) release() {
	for i := range r.ops {
		for _, b := range r.ops[i].Bufs {
			r.l.Pool().put(&Buf{mem: b, pool: r.l.Pool()})
		}
	}
}

// benchDisk lays out a file of written blocks: reads of holes would never reach the disk.
func benchDisk(b testing.TB) string {
	b.Helper()
	dir := os.Getenv("PSTORAGE_BENCH_DIR")
	if dir == "" {
		dir = b.TempDir()
	}
	path := filepath.Join(dir, "bench")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if fi, err := f.Stat(); err == nil && fi.Size() == benchFile {
		return path
	}
	block := make([]byte, 1<<20)
	for n := 0; n < benchFile; n += len(block) {
		_, _ = rand.NewChaCha8([32]byte{byte(n >> 20)}).Read(block)
		if _, err := f.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	return path
}

var ringVariants = []struct {
	name string
	o    LoopOptions
}{
	{"default", LoopOptions{}},
	{"plain", LoopOptions{Ring: RingOptions{Flags: PlainFlags}}},
	{"single", LoopOptions{Ring: RingOptions{Flags: SetupSingleIssuer}}},
	{"coop", LoopOptions{Ring: RingOptions{Flags: SetupSingleIssuer | SetupCoopTaskrun |
		SetupTaskrunFlag}}},
	{"unregistered", LoopOptions{NoRegister: true}},
	{"one-submit", LoopOptions{SubmitEarly: 1 << 20}},
}

// BenchmarkDiskRandRead reads 4 KiB at random places with O_DIRECT, 32 at a time. cpu-us/op is the
// processor time of the whole process. Beside each variant's run, PSTORAGE_FIO=1 runs fio.
func BenchmarkDiskRandRead(b *testing.B) {
	path := benchDisk(b)
	for _, v := range ringVariants {
		b.Run(v.name, func(b *testing.B) { benchRandRead(b, path, v.o, 32) })
		if os.Getenv("PSTORAGE_FIO") != "" {
			b.Run("fio-beside-"+v.name, func(b *testing.B) { benchFio(b, path, 32) })
		}
	}
}

// BenchmarkDiskVectored reads 64 KiB into 16 buffers, 8 at a time.
func BenchmarkDiskVectored(b *testing.B) {
	path := benchDisk(b)
	for _, v := range []struct {
		name string
		o    LoopOptions
	}{{"registered", LoopOptions{}}, {"unregistered", LoopOptions{NoRegister: true}}} {
		b.Run(v.name, func(b *testing.B) { benchReads(b, path, v.o, 8, 16) })
	}
}

func benchRandRead(b *testing.B, path string, o LoopOptions, depth int) {
	benchReads(b, path, o, depth, 1)
}

// benchReads reads bufs pages per operation.
func benchReads(b *testing.B, path string, o LoopOptions, depth, bufs int) {
	l := startLoop(b, o)
	var r *readers
	on(b, l, func() {
		d, err := l.OpenDisk(path, DiskOptions{})
		if err != nil {
			b.Fatal(err)
		}
		r = newReaders(b, l, d, depth)
		for i := range r.ops {
			for len(r.ops[i].Bufs) < bufs {
				r.ops[i].Bufs = append(r.ops[i].Bufs, l.Pool().Get(4096).Bytes())
			}
		}
	})
	b.ReportAllocs()
	b.ResetTimer()
	before, cpu := statsOf(b, l), cpuTime(unix.RUSAGE_SELF)
	l.Post(func() { r.start(b.N) })
	<-r.done
	b.StopTimer()
	after, cpuAfter := statsOf(b, l), cpuTime(unix.RUSAGE_SELF)
	b.ReportMetric(float64(cpuAfter-cpu)/1e3/float64(b.N), "cpu-us/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "iops")
	b.ReportMetric(float64(after.Enters-before.Enters)/float64(b.N), "enters/op")
	on(b, l, func() {
		_ = r.d.Close()
		r.release()
	})
}

// benchFio is the yardstick: the same reads by fio's io_uring engine.
func benchFio(b *testing.B, path string, depth int) {
	fio, err := exec.LookPath("fio")
	if err != nil {
		b.Skip("fio isn't installed")
	}
	cpu := cpuTime(unix.RUSAGE_CHILDREN)
	out, err := exec.Command(fio, "--name=x", "--filename="+path, "--rw=randread", "--bs=4k",
		"--direct=1", "--ioengine=io_uring", "--iodepth="+strconv.Itoa(depth), "--time_based",
		"--runtime=1", "--thread", "--output-format=json", "--randrepeat=0",
		"--norandommap").Output()
	if err != nil {
		b.Skip(err)
	}
	var rep struct {
		Jobs []struct {
			Read struct {
				IOPS     float64 `json:"iops"`
				TotalIOs float64 `json:"total_ios"`
			} `json:"read"`
			UsrCPU float64 `json:"usr_cpu"`
			SysCPU float64 `json:"sys_cpu"`
			MS     float64 `json:"job_runtime"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out, &rep); err != nil || len(rep.Jobs) != 1 {
		b.Fatal(fmt.Errorf("fio's answer: %v", err))
	}
	j := rep.Jobs[0]
	b.ReportMetric((j.UsrCPU+j.SysCPU)/100*j.MS*1e3/j.Read.TotalIOs, "cpu-us/op")
	b.ReportMetric(j.Read.IOPS, "iops")
	b.ReportMetric(float64(cpuTime(unix.RUSAGE_CHILDREN)-cpu)/1e3/j.Read.TotalIOs, "total-cpu-us/op")
}
