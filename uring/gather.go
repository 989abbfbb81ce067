package uring

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Waking a thread on another CPU that sleeps takes long where the CPU must leave a deep sleep
// first: on a virtual machine 30 to 300 µs, often more than the disk takes to read a block. The
// scheduler does it all the same whenever another CPU is idle. With little to do, processes of one
// host that answer each other are faster on one CPU: one works while the other has nothing to do.
//
// So loops that talk over local sockets gather while each of them has little to do. A loop with
// disks goes to the CPU that takes their interrupts, where the disk's answer wakes it at once; one
// without follows the loops that answer it, which it finds by where their threads may run. Nothing
// is exchanged for it. Whoever must wait for the CPU there goes away again, and comes back later
// and later: gathering is for queue depths of a few. And it is for reads, see gatherWrites.

const (
	// gatherWindow is how long a loop looks before it decides, in ns.
	gatherWindow = int64(10 * time.Millisecond)
	// gatherQuiet is after how long with less than gatherRecvs receives a loop is at rest.
	gatherQuiet = int64(50 * time.Millisecond)
	gatherRecvs = 4
	// gatherWrites is how many receives there must be for each write to a disk: all members of a
	// chunk work on a write at the same time, better on several CPUs.
	gatherWrites = 4
	// gatherShare is up to which share of a CPU a loop has little to do.
	gatherShare = 0.3
	// gatherWait is which share of the time a loop that gathered may wait for its CPU.
	gatherWait = 0.25
	// gatherAgain and gatherNever are the first and the longest time between leaving and
	// coming back, in ns.
	gatherAgain = int64(50 * time.Millisecond)
	gatherNever = int64(2 * time.Second)
	// gatherLook is how often a peer's threads are looked for, in ns.
	gatherLook = int64(100 * time.Millisecond)
)

// anyCPU is where a loop is that hasn't gathered.
const anyCPU = -1

// placement decides where a loop runs.
type placement struct {
	cpu   int     // anyCPU, or the only one
	since int64   // when it came there
	until int64   // it doesn't come back before
	pause int64   // how long it stayed away the last time
	left  float64 // its share of a CPU when it had to leave

	wait float64 // which share of the time it waited for a CPU, smoothed
}

// window is what a loop saw since its last decision.
type window struct {
	now         int64
	share, wait float64 // of the time: it ran, it waited for a CPU
	target      int     // the CPU to gather on; anyCPU: none, or nobody on this host to talk to
}

// next returns where the loop is to run from now on.
func (p *placement) next(w window) int {
	p.wait += (w.wait - p.wait) / 4
	if p.cpu == anyCPU {
		if w.target == anyCPU || w.share > gatherShare || p.wait > gatherWait/2 ||
			w.now < p.until && w.share > p.left*3/4 {
			return anyCPU
		}
		return w.target
	}
	if p.wait > gatherWait {
		p.leave(w)
		return anyCPU
	}
	if w.target == anyCPU || w.share > 2*gatherShare {
		return anyCPU
	}
	return w.target
}

// leave notes for how long not to come back.
func (p *placement) leave(w window) {
	if p.pause *= 2; p.pause == 0 || w.now-p.since > 4*p.pause {
		p.pause = gatherAgain
	}
	p.pause = min(p.pause, gatherNever)
	p.until, p.left = w.now+p.pause, w.share
}

// gatherer is a loop's part in it.
type gatherer struct {
	placement
	all   unix.CPUSet // where the thread may run
	stat  int         // the thread's schedstat; -1: gathering is off
	text  [96]byte
	count []int64 // receives, or interrupts, by CPU
	home  int     // see homeCPU
	homed int     // of so many disks

	recvs  int   // from processes of this host, in this window
	writes int   // to disks, in it
	begin  int64 // of the window
	then   runs
}

// startGathering is called by Run, on the loop's thread.
func (l *Loop) startGathering() {
	g := &l.gatherer
	g.cpu, g.stat, g.home, g.begin = anyCPU, -1, anyCPU, l.now
	if l.o.NoLocal || l.o.NoGather || os.Getenv("PSTORAGE_NO_GATHER") != "" {
		return
	}
	if err := unix.SchedGetaffinity(0, &g.all); err != nil || g.all.Count() < 2 {
		return
	}
	fd, err := unix.Open("/proc/thread-self/schedstat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // the kernel doesn't count it, or /proc isn't there
	}
	g.stat = fd
	g.count = make([]int64, len(g.all)*64)
	g.then, _ = g.runs()
	// The kernel's own threads for what can't be done at once run for ever where the loop may run
	// when they are made. The last one stays: have it made now. (An eventfd can't be synced.)
	if s := l.sqe(); s != nil {
		PrepFdatasync(s, FD(l.wake.fd))
		s.SetUserData(0)
	}
}

// endGathering gives the thread back as it was.
func (l *Loop) endGathering() {
	g := &l.gatherer
	if g.stat < 0 {
		return
	}
	_ = unix.Close(g.stat)
	g.stat = -1
	if g.cpu != anyCPU {
		_ = unix.SchedSetaffinity(0, &g.all)
		g.cpu = anyCPU
	}
}

// runs are how long a thread has run and waited for a CPU since it began, in ns.
type runs struct{ run, wait int64 }

func (g *gatherer) runs() (r runs, ok bool) {
	n, err := unix.Pread(g.stat, g.text[:], 0)
	b := g.text[:max(n, 0)]
	r.run, b = leadingInt(b)
	r.wait, _ = leadingInt(b)
	return r, err == nil
}

// leadingInt takes a number and the space behind it off b.
func leadingInt(b []byte) (n int64, rest []byte) {
	for len(b) > 0 && b[0] >= '0' && b[0] <= '9' {
		n = n*10 + int64(b[0]-'0')
		b = b[1:]
	}
	return n, bytes.TrimLeft(b, " ")
}

// gather is called before each sleep.
func (l *Loop) gather() {
	g := &l.gatherer
	spent := l.now - g.begin
	if spent < gatherWindow || g.stat < 0 || g.recvs < gatherRecvs && spent < gatherQuiet {
		return
	}
	now, ok := g.runs()
	if !ok {
		return
	}
	w := window{now: l.now, target: anyCPU,
		share: float64(now.run-g.then.run) / float64(spent),
		wait:  float64(now.wait-g.then.wait) / float64(spent)}
	if g.recvs >= gatherRecvs && g.writes*gatherWrites < g.recvs {
		w.target = l.gatherTarget()
	}
	g.begin, g.then, g.recvs, g.writes = l.now, now, 0, 0
	l.moveTo(g.next(w))
}

// moveTo has the thread run on one CPU, or anywhere.
func (l *Loop) moveTo(cpu int) {
	g := &l.gatherer
	if cpu == g.cpu {
		return
	}
	set := g.all
	if cpu != anyCPU {
		set = unix.CPUSet{}
		set.Set(cpu)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		// The CPU was taken away from us, or from the host.
		l.log.Info("the event loop can't choose its CPU; a queue depth of 1 is slower", "cpu", cpu,
			"error", err)
		g.cpu = cpu
		l.endGathering()
		return
	}
	g.cpu, g.since = cpu, l.now
}

// gatherTarget is where this loop is to be when it has little to do.
func (l *Loop) gatherTarget() int {
	g := &l.gatherer
	clear(g.count)
	total := int64(0)
	for _, c := range l.conns {
		if c.peer.recvs == 0 {
			continue
		}
		if len(l.disks) == 0 {
			if cpu := c.peerCPU(); cpu >= 0 && cpu < len(g.count) {
				g.count[cpu] += int64(c.peer.recvs)
			}
		}
		total += int64(c.peer.recvs)
		c.peer.recvs = 0
	}
	if len(l.disks) > 0 {
		return l.homeCPU()
	}
	return majority(g.count, total, &g.all)
}

// majority is the CPU of all that has three quarters of a total, or anyCPU.
func majority(count []int64, total int64, all *unix.CPUSet) int {
	for cpu, n := range count {
		if n*4 > total*3 && all.IsSet(cpu) {
			return cpu
		}
	}
	return anyCPU
}

// localPeer is the process at the other end of a local socket.
type localPeer struct {
	pid    int
	recvs  int32 // from it in this window
	thread int   // of its loop, when it was on a CPU of its own; 0: not known
	looked int64
}

// peerCPU is the CPU that the loop at the other end gathered on, or anyCPU.
func (c *conn) peerCPU() int {
	p := &c.peer
	if cpu := onlyCPU(p.thread); cpu != anyCPU {
		return cpu
	}
	if p.looked != 0 && c.l.now-p.looked < gatherLook {
		return anyCPU
	}
	p.looked, p.thread = c.l.now, 0
	// Only loops bind a thread to one CPU. A process has one of them.
	names, err := os.ReadDir("/proc/" + strconv.Itoa(p.pid) + "/task")
	if err != nil {
		return anyCPU // another PID namespace
	}
	for _, e := range names {
		tid, err := strconv.Atoi(e.Name())
		if err != nil || tid == unix.Gettid() {
			continue
		}
		if cpu := onlyCPU(tid); cpu != anyCPU {
			p.thread = tid
			return cpu
		}
	}
	return anyCPU
}

// onlyCPU is the one CPU that a thread may run on; anyCPU if there are several, or no such thread.
func onlyCPU(thread int) int {
	var set unix.CPUSet
	if thread == 0 || unix.SchedGetaffinity(thread, &set) != nil || set.Count() != 1 {
		return anyCPU
	}
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			return cpu
		}
	}
	return anyCPU
}

// homeCPU is the CPU that takes the interrupts of the loop's disks; if there is no such one, or
// it isn't known, the first that the loop may run on, where others without come, too.
func (l *Loop) homeCPU() int {
	g := &l.gatherer
	if g.homed == len(l.disks) && g.home != anyCPU {
		return g.home
	}
	g.homed = len(l.disks)
	clear(g.count)
	total := int64(0)
	for _, d := range l.disks {
		total += addInterrupts("/sys", d.device, g.count)
	}
	if g.home = majority(g.count, total, &g.all); g.home == anyCPU {
		for g.home = 0; !g.all.IsSet(g.home); g.home++ {
		}
	}
	return g.home
}

// addInterrupts adds how many interrupts of a block device each CPU took since the
// host started, and returns their sum. Not all kinds of devices tell.
func addInterrupts(sysfs string, device uint64, count []int64) (total int64) {
	dir, err := filepath.EvalSymlinks(filepath.Join(sysfs, "dev/block",
		strconv.Itoa(int(unix.Major(device)))+":"+strconv.Itoa(int(unix.Minor(device)))))
	if err != nil {
		return 0
	}
	for ; strings.HasPrefix(dir, sysfs+"/devices/"); dir = filepath.Dir(dir) {
		irqs, err := os.ReadDir(filepath.Join(dir, "msi_irqs"))
		if err != nil {
			continue
		}
		for _, irq := range irqs {
			b, err := os.ReadFile(filepath.Join(sysfs, "kernel/irq", irq.Name(), "per_cpu_count"))
			if err != nil {
				continue
			}
			for cpu, n := range strings.Split(strings.TrimSpace(string(b)), ",") {
				if v, err := strconv.ParseInt(n, 10, 64); err == nil && cpu < len(count) {
					count[cpu] += v
					total += v
				}
			}
		}
		return total
	}
	return 0
}
