package perf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// This file is the measurement of a whole cluster:
//
//  1. a directory of its own on the disk to be measured; a raw file in it, written in full;
//  2. a cluster of its own (`pstorage dev`), a file in it, written in full, by the native client;
//  3. the other front ends: an NBD server, a FUSE passthrough;
//  4. the plan: all runs of all rows in every round;
//  5. emulated disks, with servers of their own, if that is wanted;
//  6. everything is stopped and removed.

// BenchOptions of Bench. Zero values mean the defaults.
type BenchOptions struct {
	Binary   string        // pstorage; default: beside this program, or on the PATH
	Dir      string        // on the disk to be measured; default: /var/tmp
	CS       int           // default 3
	Rounds   int           // default 3
	Each     time.Duration // of one measurement; default 2 s
	Size     int64         // bytes of the files; default 1 GiB
	Journal  int64         // bytes of each chunk server's; default 4 GiB, so that it isn't full soon
	DevArgs  []string      // more arguments of pstorage dev
	Emulated bool          // also the rows with emulated disks, if this machine can
	// Passthrough is the command line of a FUSE file system that passes on what it is asked; the
	// directory it shows and the mountpoint are added. Empty: that row is left out.
	Passthrough []string
	Progress    io.Writer // nil: none
}

func (o *BenchOptions) setDefaults() error {
	if err := setPlaces(&o.Binary, &o.Dir, &o.Progress); err != nil {
		return err
	}
	setDefault(&o.CS, 3)
	setDefault(&o.Rounds, 3)
	setDefault(&o.Each, 2*time.Second)
	setDefault(&o.Size, 1<<30)
	setDefault(&o.Journal, 4<<30)
	if o.CS < 3 {
		return fmt.Errorf("%d chunk servers: files have 3 replicas, so at least 3 are needed", o.CS)
	}
	if o.Rounds < 1 || o.Each <= 0 || o.Size < 1<<20 {
		return errors.New("rounds and times must be more than 0, the files at least 1 MiB")
	}
	return nil
}

const benchPrefix = "pstorage-perf-" // of temporary directories

// Bench measures the main figures, and leaves nothing behind. A report beside an error has what was
// measured before, and says what failed.
func Bench(ctx context.Context, o BenchOptions) (*Report, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	unlock, err := Lock(ctx, o.Progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := sweep(o.Dir, benchPrefix); err != nil { // it takes space, no more
		fmt.Fprintf(o.Progress, "not all that an interrupted run left could be removed: %v\n", err)
	}
	dir, err := os.MkdirTemp(o.Dir, benchPrefix)
	if err != nil {
		return nil, err
	}
	report := &Report{Time: time.Now(), Commit: Commit(), Machine: Machine(), Rounds: o.Rounds,
		Seconds: o.Each.Seconds(), Size: o.Size, CS: o.CS, Journal: o.Journal}
	b := &bench{o: o, dir: dir, report: report}
	if err = b.start(ctx); err == nil {
		err = b.plan(ctx)
	}
	if err != nil {
		err = errors.Join(err, logTails(b.home()))
	}
	err = errors.Join(err, b.stop(), os.RemoveAll(dir))
	if len(report.Figures) == 0 {
		return nil, err
	}
	if o.Emulated && ctx.Err() == nil {
		err = errors.Join(err, engine(ctx, b.emulated(), report))
	}
	return report, err
}

// bench is a measurement under way.
type bench struct {
	o       BenchOptions
	dir     string // temporary
	cluster *Cluster
	native  *Native
	nbd     *Cluster // nil: none
	pass    *Cluster // nil: none
	report  *Report
}

func (b *bench) home() string   { return filepath.Join(b.dir, "cluster") }
func (b *bench) raw() string    { return filepath.Join(b.dir, "disk", "raw") }
func (b *bench) socket() string { return filepath.Join(b.dir, "nbd.sock") }

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.o.Progress, format+"\n", args...)
}

func (b *bench) start(ctx context.Context) (err error) {
	b.say("laying out a raw file of %d MiB in %s", b.o.Size>>20, b.dir)
	if err := os.Mkdir(filepath.Dir(b.raw()), 0o755); err != nil {
		return err
	}
	if err := FioLayout(ctx, b.raw(), b.o.Size); err != nil {
		return err
	}
	b.say("starting a cluster with %d chunk servers", b.o.CS)
	if b.cluster, err = StartCluster(ctx, b.clusterOptions()); err != nil {
		return err
	}
	b.native, err = OpenNative(ctx, NativeOptions{Etc: filepath.Join(b.home(), "etc"),
		Cluster: "dev", Path: "/bench", PIDs: b.cluster.PIDs,
		Log: slog.New(slog.NewTextHandler(b.o.Progress,
			&slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		return err
	}
	laid, err := b.native.Layout(ctx, b.o.Size)
	if err != nil {
		return fmt.Errorf("lay out the cluster's file: %w", err)
	}
	b.say("laid out the cluster's file: %.0f MB/s, %d copies of each byte", laid.MBps, 3)
	return b.startFronts(ctx)
}

func (b *bench) clusterOptions() ClusterOptions {
	c := ClusterOptions{Binary: b.o.Binary, Dir: b.home(), CS: b.o.CS,
		Args: append([]string{"--log-size", strconv.FormatInt(b.o.Journal, 10)}, b.o.DevArgs...)}
	if mountLacks() != nil {
		c.Args = append([]string{"--no-mount"}, c.Args...)
	}
	return c
}

// mountLacks says why rows through a mount aren't possible here; nil: they are.
func mountLacks() error {
	if os.Geteuid() != 0 {
		return errors.New("only root can mount")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return fmt.Errorf("no mounts here: %w", err)
	}
	return nil
}

func (b *bench) startFronts(ctx context.Context) (err error) {
	nbd := exec.Command(b.o.Binary, "-c", "dev", "export", "nbd", "/bench", "--read-only",
		"--socket", b.socket())
	nbd.Env = append(os.Environ(), "PSTORAGE_ETC="+filepath.Join(b.home(), "etc"))
	if b.nbd, err = launch(ctx, nbd, "serving"); err != nil {
		return err
	}
	if len(b.o.Passthrough) == 0 || mountLacks() != nil {
		return nil
	}
	mnt := filepath.Join(b.dir, "pass")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		return err
	}
	p := b.o.Passthrough
	args := append(append([]string(nil), p[1:]...), filepath.Dir(b.raw()), mnt)
	b.pass, err = launch(ctx, exec.Command(p[0], args...), readyMessage)
	return err
}

func (b *bench) stop() error {
	var errs []error
	for _, c := range []*Cluster{b.nbd, b.pass} {
		if c != nil {
			errs = append(errs, c.Stop())
		}
	}
	if b.native != nil {
		errs = append(errs, b.native.Close())
	}
	if b.cluster != nil {
		errs = append(errs, b.cluster.Stop())
	}
	return errors.Join(errs...)
}

// fio returns a runner for a front end that fio drives. The CPU time of the programs' processes
// counts besides fio's own.
func (b *bench) fio(path, engine string, programs ...*Cluster) Runner {
	sample := func() (CPUSample, error) {
		var all []int
		for _, p := range programs {
			pids, err := p.PIDs()
			if err != nil {
				return nil, err
			}
			all = append(all, pids...)
		}
		return SampleCPU(all)
	}
	return func(ctx context.Context, w Workload) (Result, error) {
		before, err := sample()
		if err != nil {
			return Result{}, err
		}
		r, err := Fio(ctx, w, path, engine)
		if err != nil {
			return Result{}, err
		}
		after, err := sample()
		r.CPUPerOp += float64(after.Since(before)) / 1000 / float64(r.Ops)
		return r, err
	}
}

func (b *bench) fronts() map[string]Runner {
	raw := b.fio(b.raw(), "io_uring")
	fronts := map[string]Runner{
		FrontNative: b.native.Run,
		FrontNBD:    b.fio("nbd+unix:///bench?socket="+b.socket(), "nbd", b.cluster, b.nbd),
		FrontFuse:   b.fio(filepath.Join(b.home(), "mnt", "bench"), "io_uring", b.cluster),
		FrontPing:   PingPong,
		FrontRaw: func(ctx context.Context, w Workload) (Result, error) {
			limit := quietLimit
			if w.Write() { // ours before it wrote as much as it will again
				limit = min(limit, b.o.Each)
			}
			if err := quiet(ctx, b.cluster.PIDs, limit); err != nil {
				return Result{}, err
			}
			return raw(ctx, w)
		},
	}
	if b.pass != nil {
		fronts[FrontPass] = b.fio(filepath.Join(b.dir, "pass", "raw"), "io_uring", b.pass)
	}
	return fronts
}

// rows are those that can be measured here. The report says what is left out, and why: noMount, if
// that isn't nil.
func (b *bench) rows(noMount error) []Row {
	all := len(b.o.Passthrough) > 0
	want := Fronts{Fuse: true, NBD: true, Passthrough: all, Ping: all}
	can, why := want, map[string]string{}
	if noMount != nil {
		can.Fuse, can.Passthrough = false, false
		why[FrontFuse], why[FrontPass] = noMount.Error(), noMount.Error()
	}
	rows := Rows(b.o.Each, b.o.Size, can)
	b.report.skipFronts(Rows(b.o.Each, b.o.Size, want), rows, why)
	return rows
}

// plan runs the rows and completes the report.
func (b *bench) plan(ctx context.Context) error {
	rows := b.rows(mountLacks())
	if _, err := b.native.Run(ctx, rows[0].Ours.Workload); err != nil { // connections, maps, caches
		return fmt.Errorf("warm up: %w", err)
	}
	begun := time.Now()
	figures, runs, err := RunPlan(ctx, rows, b.o.Rounds, b.fronts(),
		func(done, total int, what string) {
			passed := time.Since(begun)
			left := passed * time.Duration(total-done) / time.Duration(max(done, 1))
			b.say("[%3d/%d, %3.0f s, about %3.0f s left] %s", done+1, total, passed.Seconds(),
				left.Seconds(), what)
		})
	if err != nil {
		return err
	}
	b.report.Figures, b.report.Runs = figures, runs
	b.report.Memory, err = memory(b.cluster, b.nbd)
	return err
}

// memory returns the resident memory of the programs' processes by program name, in bytes.
func memory(programs ...*Cluster) (map[string]int64, error) {
	sums := map[string]int64{}
	for _, p := range programs {
		pids, err := p.PIDs()
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			if name := processName(pid); name != "" {
				sums[name] += RSS([]int{pid})
			}
		}
	}
	return sums, nil
}

// emulated are the rows of whole clusters on emulated disks.
func (b *bench) emulated() EngineOptions {
	return EngineOptions{Binary: b.o.Binary, Dir: b.o.Dir, Rows: []string{"hdds", "ssds"},
		Rounds: b.o.Rounds, Each: b.o.Each, Progress: b.o.Progress}
}
