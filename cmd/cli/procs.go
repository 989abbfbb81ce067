package cli

import (
	"os"
	"runtime"
)

// spareProcs is how many processors of the Go scheduler a program with a loop has beyond the
// machine's: one for the loop's thread, one for what it wakes.
const spareProcs = 2

// SpareProcs lets more threads run Go code than there are CPUs, unless the environment says how
// many (GOMAXPROCS). A loop's thread gives its processor up while it sleeps in the kernel; when it
// wakes, one is free, and it needn't wait for a goroutine to end its turn, nor another thread to
// be stopped.
func SpareProcs() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.NumCPU() + spareProcs)
	}
}
