package mds

import (
	"os"
	"runtime"
	"runtime/debug"
)

// maxProcs bounds Procs: there is one log and one state, so more would wait for each other.
const maxProcs = 4

// Procs is how many threads of a process with metadata servers should run Go code at once where
// there are so many CPUs: one fewer, at least 1. A pause of the collector ends when the thread that
// made it has woken the others. If they find no idle CPU they take its own, and the pause is as
// long as their turns: milliseconds. A CPU is also needed by threads that wait for the disk, and
// by the kernel's, so that a server whose threads have all CPUs gets less done.
func Procs(cpus int) int { return max(1, min(cpus-1, maxProcs)) }

// TuneRuntime sets up the Go runtime of a process with metadata servers, GOMAXPROCS and GOGC, each
// unless the environment does.
func TuneRuntime() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(GCPercent)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.SetDefaultGOMAXPROCS() // the CPUs that this process may use, whatever was set before
		runtime.GOMAXPROCS(Procs(runtime.GOMAXPROCS(0)))
	}
}
