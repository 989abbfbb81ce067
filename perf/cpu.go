package perf

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// CPUSample is the CPU time that a set of processes had used at one moment, by process id.
type CPUSample map[int]int64

// cpuClock is the id of the CPU-time clock of a process (kernel: MAKE_PROCESS_CPUCLOCK with
// CPUCLOCK_SCHED). It counts user and system time of all threads, also of those that ended and of
// the ring's kernel workers, in nanoseconds; /proc/PID/stat has the same in ticks of 10 ms.
func cpuClock(pid int) int32 { return int32(^pid<<3 | 2) }

// SampleCPU reads the CPU time of the given processes. One that is gone is left out.
func SampleCPU(pids []int) (CPUSample, error) {
	s := make(CPUSample, len(pids))
	for _, pid := range pids {
		var ts unix.Timespec
		err := unix.ClockGettime(cpuClock(pid), &ts)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ESRCH) {
			continue // no such process any more
		}
		if err != nil {
			return nil, fmt.Errorf("CPU time of process %d: %w", pid, err)
		}
		s[pid] = ts.Nano()
	}
	return s, nil
}

// Since returns the nanoseconds of CPU time that the processes of s used after earlier. A process
// that isn't in earlier counts from its start.
func (s CPUSample) Since(earlier CPUSample) int64 {
	var sum int64
	for pid, ns := range s {
		sum += ns - earlier[pid]
	}
	return sum
}

// ProcessTree returns root and all its living descendants.
func ProcessTree(root int) ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // ended in between
		}
		pid, parent, ok := parseStat(stat)
		if ok {
			children[parent] = append(children[parent], pid)
		}
	}
	tree := []int{root}
	for i := 0; i < len(tree); i++ {
		tree = append(tree, children[tree[i]]...)
	}
	return tree, nil
}

// parseStat takes the process id and that of its parent from the text of /proc/PID/stat:
// "pid (name, may hold spaces and brackets) state ppid ...".
func parseStat(stat []byte) (pid, parent int, ok bool) {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 1 || end < open {
		return 0, 0, false
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(stat[:open])))
	if err != nil {
		return 0, 0, false
	}
	fields := bytes.Fields(stat[end+1:])
	if len(fields) < 2 || fields[0][0] == 'Z' {
		return 0, 0, false
	}
	parent, err = strconv.Atoi(string(fields[1]))
	return pid, parent, err == nil
}

// RSS returns the resident memory of the processes together, in bytes.
func RSS(pids []int) int64 {
	var sum int64
	for _, pid := range pids {
		statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			continue
		}
		if f := bytes.Fields(statm); len(f) > 1 {
			pages, err := strconv.ParseInt(string(f[1]), 10, 64)
			if err == nil {
				sum += pages * int64(os.Getpagesize())
			}
		}
	}
	return sum
}

// processName is the name of a process's program, or "" if it is gone.
func processName(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(name))
}

// DiskBytes returns how much the processes have read from and written to disks since their start.
func DiskBytes(pids []int) int64 {
	var sum int64
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
		if err != nil {
			continue // ended, or not ours to look at
		}
		for line := range bytes.Lines(text) {
			name, value, _ := bytes.Cut(line, []byte(": "))
			switch string(name) {
			case "read_bytes", "write_bytes":
				n, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
				if err == nil {
					sum += n
				}
			}
		}
	}
	return sum
}
