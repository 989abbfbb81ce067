package perf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
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

// sweep removes the directories in dir that killed runs left: those whose names begin with prefix.
// Nobody else measures: the caller has the lock.
func sweep(dir, prefix string) error {
	left, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
	for _, path := range left {
		gone := unmountBelow(path)
		if gone == nil { // else it would be somebody's files in there that are removed
			gone = os.RemoveAll(path)
		}
		err = errors.Join(err, gone)
	}
	return err
}

// unmountBelow unmounts what is mounted in dir: a mount outlives a process that was killed.
func unmountBelow(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err == nil {
		dir, err = filepath.Abs(dir)
	}
	if err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	lines := strings.Split(string(mounts), "\n")
	slices.Reverse(lines) // the newest first
	for _, line := range lines {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			if err := unix.Unmount(fields[4], unix.MNT_DETACH); err != nil {
				errs = append(errs, fmt.Errorf("unmount %s: %w", fields[4], err))
			}
		}
	}
	return errors.Join(errs...)
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
