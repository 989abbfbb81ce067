package perf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// QuickOptions of Quick. Zero values mean the defaults.
type QuickOptions struct {
	Binary   string        // pstorage; default: beside this program, or on the PATH
	Dir      string        // on the disk to be measured; default: /var/tmp
	CS       int           // default 3
	Rounds   int           // default 3
	Each     time.Duration // of one measurement; default 0.9 s
	Size     int64         // bytes of the file; default 1 GiB
	DevArgs  []string      // more arguments of pstorage dev
	Progress io.Writer     // nil: none
}

func (o *QuickOptions) setDefaults() error {
	if o.Binary == "" {
		binary, err := FindBinary("pstorage")
		if err != nil {
			return err
		}
		o.Binary = binary
	}
	if o.Dir == "" {
		o.Dir = "/var/tmp"
	}
	if o.CS == 0 {
		o.CS = 3
	}
	if o.Rounds == 0 {
		o.Rounds = 3
	}
	if o.Each == 0 {
		o.Each = 900 * time.Millisecond
	}
	if o.Size == 0 {
		o.Size = 1 << 30
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.CS < 3 {
		return fmt.Errorf("%d chunk servers: files have 3 replicas, so at least 3 are needed", o.CS)
	}
	return nil
}

// Quick starts a cluster of its own in a temporary directory below o.Dir, lays out a file in it
// and one beside it for raw fio, runs the short plan, and removes everything.
func Quick(ctx context.Context, o QuickOptions) (report *Report, err error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, o.Progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dir, err := os.MkdirTemp(o.Dir, "pstorage-perf-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	say := func(format string, args ...any) { fmt.Fprintf(o.Progress, format+"\n", args...) }
	say("laying out a raw file of %d MiB in %s", o.Size>>20, dir)
	if err := FioLayout(ctx, filepath.Join(dir, "raw"), o.Size); err != nil {
		return nil, err
	}
	say("starting a cluster with %d chunk servers", o.CS)
	home := filepath.Join(dir, "cluster")
	c, err := StartCluster(ctx, o.cluster(home))
	if err != nil {
		return nil, errors.Join(err, logTails(home))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, logTails(home))
		}
		err = errors.Join(err, c.Stop())
	}()
	native, err := OpenNative(ctx, NativeOptions{Etc: filepath.Join(home, "etc"), Cluster: "dev",
		Path: "/bench", PIDs: c.PIDs, Log: slog.New(slog.NewTextHandler(o.Progress,
			&slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, native.Close()) }()
	laid, err := native.Layout(ctx, o.Size)
	if err != nil {
		return nil, fmt.Errorf("lay out the cluster's file: %w", err)
	}
	say("laid out the cluster's file: %.0f MB/s, three copies of each byte", laid.MBps)
	return quickPlan(ctx, o, native, c, dir)
}

// canMount says whether rows through a mount are possible here.
func canMount() bool {
	_, err := os.Stat("/dev/fuse")
	return err == nil && os.Geteuid() == 0
}

func (o *QuickOptions) cluster(home string) ClusterOptions {
	// The journal that make-cs makes by default; that of pstorage dev is small, to start quickly.
	c := ClusterOptions{Binary: o.Binary, Dir: home, CS: o.CS,
		Args: append([]string{"--log-size", "1G"}, o.DevArgs...)}
	if !canMount() {
		c.Args = append([]string{"--no-mount"}, c.Args...)
	}
	return c
}

// fuseRunner runs fio on a mount, and counts the CPU time of the cluster with fio's.
func fuseRunner(path string, pids func() ([]int, error)) Runner {
	sample := func() (CPUSample, error) {
		all, err := pids()
		if err != nil {
			return nil, err
		}
		return SampleCPU(all)
	}
	return func(ctx context.Context, w Workload) (Result, error) {
		before, err := sample()
		if err != nil {
			return Result{}, err
		}
		r, err := Fio(ctx, w, path, "io_uring")
		if err != nil {
			return Result{}, err
		}
		after, err := sample()
		if err != nil {
			return Result{}, err
		}
		r.CPUPerOp += float64(after.Since(before)) / 1000 / float64(r.Ops)
		return r, nil
	}
}

// quickPlan runs the rows and makes the report. dir has the raw file and the cluster.
func quickPlan(ctx context.Context, o QuickOptions, native *Native, c *Cluster,
	dir string) (*Report, error) {
	raw := func(ctx context.Context, w Workload) (Result, error) {
		if err := quiet(ctx, c.PIDs); err != nil {
			return Result{}, err
		}
		return Fio(ctx, w, filepath.Join(dir, "raw"), "io_uring")
	}
	fronts := map[string]Runner{FrontNative: native.Run,
		FrontFuse: fuseRunner(filepath.Join(dir, "cluster", "mnt", "bench"), c.PIDs)}
	rows := QuickRows(o.Each, o.Size, canMount())
	if _, err := native.Run(ctx, rows[0].Ours); err != nil { // connections, maps, caches of code
		return nil, fmt.Errorf("warm up: %w", err)
	}
	begun := time.Now()
	results, err := RunPlan(ctx, rows, o.Rounds, fronts, raw,
		func(done, total int, what string) {
			fmt.Fprintf(o.Progress, "[%2d/%d, %2.0f s] %s\n", done+1, total,
				time.Since(begun).Seconds(), what)
		})
	if err != nil {
		return nil, err
	}
	pids, err := c.PIDs()
	if err != nil {
		return nil, err
	}
	return &Report{Time: time.Now(), Commit: Commit(), Machine: Machine(), Rounds: o.Rounds,
		Seconds: o.Each.Seconds(), Size: o.Size, RSS: RSS(pids), Rows: results}, nil
}

// Before a yardstick is run the cluster's own work must have calmed down: it writes back what it
// logged, and would slow the yardstick and flatter itself.
const (
	quietBelow = 20e6 // bytes per second of all processes
	quietStep  = 100 * time.Millisecond
	quietLimit = 3 * time.Second
)

// quiet waits until the processes leave the disk alone, quietLimit at most.
func quiet(ctx context.Context, pids func() ([]int, error)) error {
	all, err := pids()
	if err != nil {
		return err
	}
	last := DiskBytes(all)
	for waited := time.Duration(0); waited < quietLimit; waited += quietStep {
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

// lock keeps two measurements on one machine from disturbing each other. It waits its turn.
func lock(ctx context.Context, progress io.Writer) (unlock func(), err error) {
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
