package perf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Before a yardstick is run the cluster's own work must have calmed down: it writes back what it
// logged, and would slow the yardstick and flatter itself.
const (
	quietBelow = 20e6 // bytes per second of all processes
	quietStep  = 50 * time.Millisecond
	quietLimit = 2 * time.Second
)

// quiet waits until the processes leave the disk alone, for as long as limit at most.
func quiet(ctx context.Context, pids func() ([]int, error), limit time.Duration) error {
	all, err := pids()
	if err != nil {
		return err
	}
	last := DiskBytes(all)
	for waited := time.Duration(0); waited < limit; waited += quietStep {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(quietStep):
		}
		now := DiskBytes(all)
		if float64(now-last) < quietBelow*quietStep.Seconds() {
			return nil
		}
		last = now
	}
	return nil
}

// Lock keeps two measurements on one machine from disturbing each other. It waits its turn.
func Lock(ctx context.Context, progress io.Writer) (unlock func(), err error) {
	path := filepath.Join(os.TempDir(), "pstorage-perf.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	for said := false; ; said = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !said {
			fmt.Fprintln(progress, "waiting for another measurement on this machine to end")
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// logTails are the last lines of the daemons' logs, as an error; nil if there are none.
func logTails(home string) error {
	files, err := filepath.Glob(filepath.Join(home, "log", "*.log"))
	if err != nil {
		return err
	}
	var all []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || len(text) == 0 {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		lines = lines[max(0, len(lines)-3):]
		all = append(all, filepath.Base(file)+": "+strings.Join(lines, " | "))
	}
	if len(all) == 0 {
		return nil
	}
	return errors.New(strings.Join(all, "\n"))
}
