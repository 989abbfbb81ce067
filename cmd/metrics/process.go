package metrics

import (
	"bytes"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
)

// Process adds what every process can say of itself: its version, CPU time, memory, open files.
func Process(t *Text) {
	version, revision := "unknown", "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	t.Family(Info, "pstorage_build", "", "Version of the program").
		Add(1, "version", version, "revision", revision, "go", runtime.Version())
	var use syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &use) == nil {
		seconds := float64(use.Utime.Nano()+use.Stime.Nano()) / 1e9
		t.Family(Counter, "process_cpu_seconds", "seconds", "CPU time").Add(seconds)
	}
	if text, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := bytes.Fields(text); len(fields) > 1 {
			pages, _ := strconv.ParseFloat(string(fields[1]), 64)
			t.Family(Gauge, "process_resident_memory_bytes", "bytes", "Memory in RAM").
				Add(pages * float64(os.Getpagesize()))
		}
	}
	if files, err := os.ReadDir("/proc/self/fd"); err == nil {
		t.Family(Gauge, "process_open_fds", "", "Open files").Add(float64(len(files)))
	}
	t.Family(Gauge, "go_goroutines", "", "Goroutines").Add(float64(runtime.NumGoroutine()))
}
