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
	"slices"
	"strconv"
	"time"
)

// This file is the measurement of a whole cluster:
//
//  1. a directory of its own on the disk to be measured; a raw file in it, written in full, as
//     large as the time allows (budget.go);
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
	Within   time.Duration // for all of it; what doesn't fit is made smaller or left out; 0: no limit
	DevArgs  []string      // more arguments of pstorage dev
	Emulated bool          // also the rows with emulated disks, if this machine can
	More     bool          // also the rows of front ends without a goal
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
	if o.Rounds < 1 || o.Each <= 0 || o.Size < 1<<20 || o.Within < 0 {
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
	report := &Report{Time: time.Now(), Commit: Commit(), Machine: Machine(),
		Seconds: o.Each.Seconds(), CS: o.CS}
	b := &bench{o: o, dir: dir, report: report, begun: time.Now()}
	b.findLacks(ctx)
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
	report  *Report
	begun   time.Time

	lacks     map[string]error // front ends that can't be measured
	nbd       *Cluster         // nil: none; also the next two
	nbdWrites *Cluster
	pass      *Cluster
	tcp       string // where nbd listens, too
}

func (b *bench) home() string { return filepath.Join(b.dir, "cluster") }
func (b *bench) raw() string  { return filepath.Join(b.dir, "disk", "raw") }
func (b *bench) etc() string  { return filepath.Join(b.home(), "etc") }
func (b *bench) env() string  { return "PSTORAGE_ETC=" + b.etc() }

func (b *bench) socket(file string) string { return filepath.Join(b.dir, file+".sock") }

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.o.Progress, format+"\n", args...)
}

func (b *bench) start(ctx context.Context) (err error) {
	if err := os.Mkdir(filepath.Dir(b.raw()), 0o755); err != nil {
		return err
	}
	if err := b.fit(ctx); err != nil {
		return err
	}
	b.say("laying out a raw file of %d MiB in %s", b.o.Size>>20, b.dir)
	if err := FioLayout(ctx, b.raw(), b.o.Size); err != nil {
		return err
	}
	b.say("starting a cluster with %d chunk servers", b.o.CS)
	if b.cluster, err = StartCluster(ctx, b.clusterOptions()); err != nil {
		return err
	}
	if b.native, err = b.open(ctx, benchFile); err != nil {
		return err
	}
	if err := b.layout(ctx); err != nil {
		return fmt.Errorf("lay out the cluster's file: %w", err)
	}
	return b.startFronts(ctx)
}

// open opens a file of the cluster with a client of its own.
func (b *bench) open(ctx context.Context, file string) (*Native, error) {
	return OpenNative(ctx, NativeOptions{Etc: b.etc(), Cluster: "dev", Path: "/" + file,
		PIDs: b.cluster.PIDs, Log: slog.New(slog.NewTextHandler(b.o.Progress,
			&slog.HandlerOptions{Level: slog.LevelWarn}))})
}

// laid is when everything should be written.
func (b *bench) laid() time.Time {
	return b.begun.Add(time.Duration(layShare * float64(b.o.Within)))
}

// fit makes files and journals as small as the time needs it.
func (b *bench) fit(ctx context.Context) error {
	if b.o.Within == 0 {
		return nil
	}
	path := filepath.Join(b.dir, "disk", "probe")
	r, err := Fio(ctx, Workload{RW: "write", BlockSize: 1 << 20, Depth: 8, Size: leastSize,
		Time: 500 * time.Millisecond}, path, "io_uring")
	if err != nil {
		return fmt.Errorf("probe the disk: %w", err)
	}
	want := sizes{b.o.Size, b.o.Journal, b.o.CS}
	got := want.fit(time.Until(b.laid())-startTime, r.MBps*1e6)
	b.o.Size, b.o.Journal = got.file, got.journal
	b.reduced(got.smaller(want, r.MBps*1e6))
	return os.Remove(path)
}

// reduced notes what isn't as it should be for want of time; empty: nothing.
func (b *bench) reduced(what string) {
	if what != "" {
		what = fmt.Sprintf("to stay within %.0f s: %s", b.o.Within.Seconds(), what)
		b.say("%s", what)
		b.report.Notes = append(b.report.Notes, what)
	}
}

// layout writes the cluster's file, as far as there is time. All runs use that part of the files.
func (b *bench) layout(ctx context.Context) error {
	if b.o.Within == 0 {
		r, err := b.native.Layout(ctx, b.o.Size)
		b.say("laid out the cluster's file: %.0f MB/s, %d copies of each byte", r.MBps, 3)
		return err
	}
	size, begun := b.o.Size, time.Now()
	done, err := pieces(size, b.laid(), time.Now, func(from, n int64) error {
		b.native.place = func(off int64) int64 { return from + off }
		_, err := b.native.Layout(ctx, n)
		return err
	})
	b.native.place = nil
	if done < size {
		b.o.Size = done
		b.reduced(fmt.Sprintf("the first %d MiB of files of %d MiB are used: the cluster writes %.0f "+
			"MB/s", done>>20, size>>20, float64(done)/1e6/time.Since(begun).Seconds()))
	}
	return err
}

func (b *bench) clusterOptions() ClusterOptions {
	c := ClusterOptions{Binary: b.o.Binary, Dir: b.home(), CS: b.o.CS,
		Args: append([]string{"--log-size", strconv.FormatInt(b.o.Journal, 10)}, b.o.DevArgs...)}
	if b.lacks[FrontFuse] != nil {
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

// findLacks finds out which front ends can't be measured here.
func (b *bench) findLacks(ctx context.Context) {
	b.lacks = map[string]error{FrontFuse: mountLacks()}
	if _, err := runFio(ctx, nil, []string{"--enghelp=nbd"}); err != nil {
		b.lacks[FrontNBD] = fmt.Errorf("fio has no engine nbd here: %w", err)
	}
	if _, err := os.Stat(b.fioEngine()); err != nil {
		b.lacks[FrontLib] = errors.New("fio's engine for libpstorage isn't beside pstorage: " +
			"make fio-engine")
	}
}

// fioEngine is where fio's engine for libpstorage is, if it was built.
func (b *bench) fioEngine() string {
	return filepath.Join(filepath.Dir(b.o.Binary), "fio-pstorage.so")
}

// wanted are the front ends that are wanted, and those of them that can be measured here.
func (b *bench) wanted() (want, can Fronts) {
	all := len(b.o.Passthrough) > 0
	want = Fronts{Fuse: true, NBD: true, Passthrough: all, Ping: all, More: b.o.More, Lib: b.o.More}
	can = want
	can.NBD = b.lacks[FrontNBD] == nil
	can.Fuse = b.lacks[FrontFuse] == nil
	can.Passthrough = can.Passthrough && can.Fuse
	can.Lib = can.Lib && b.lacks[FrontLib] == nil
	return want, can
}

// The files of the cluster: one for reads, and one for the writes of each front end.
const (
	benchFile = "bench"
	nbdFile   = "bench-nbd"
	fuseFile  = "bench-fuse"
	libFile   = "bench-lib"
)

func (b *bench) startFronts(ctx context.Context) (err error) {
	_, can := b.wanted()
	if err := b.layoutOwn(ctx, can); err != nil {
		return err
	}
	if can.NBD {
		args := []string{"--read-only", "--socket", b.socket(benchFile)}
		if can.More {
			if b.tcp, err = freeAddr("127.0.0.1"); err != nil {
				return err
			}
			args = append(args, "--listen", b.tcp)
		}
		if b.nbd, err = b.export(ctx, benchFile, args...); err != nil {
			return err
		}
	}
	if can.NBD && can.More {
		b.nbdWrites, err = b.export(ctx, nbdFile, "--socket", b.socket(nbdFile))
		if err != nil {
			return err
		}
	}
	if !can.Passthrough {
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

// layoutOwn writes the files that the front ends write to.
func (b *bench) layoutOwn(ctx context.Context, can Fronts) error {
	for file, needed := range map[string]bool{nbdFile: can.More && can.NBD,
		fuseFile: can.More && can.Fuse, libFile: can.Lib} {
		if !needed {
			continue
		}
		b.say("laying out /%s", file)
		n, err := b.open(ctx, file)
		if err == nil {
			_, err = n.Layout(ctx, ownPart(b.o.Size))
			err = errors.Join(err, n.Close()) // and others may write it
		}
		if err != nil {
			return fmt.Errorf("lay out /%s: %w", file, err)
		}
	}
	return nil
}

// export starts an NBD server for a file.
func (b *bench) export(ctx context.Context, file string, args ...string) (*Cluster, error) {
	nbd := exec.Command(b.o.Binary, append([]string{"-c", "dev", "export", "nbd", "/" + file},
		args...)...)
	nbd.Env = append(os.Environ(), b.env())
	return launch(ctx, nbd, "serving")
}

func (b *bench) stop() error {
	var errs []error
	for _, c := range []*Cluster{b.nbd, b.nbdWrites, b.pass} {
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

// reads and writes go to different files: one client at a time may write one.
func either(reads, writes Runner) Runner {
	return func(ctx context.Context, w Workload) (Result, error) {
		if w.Write() {
			return writes(ctx, w)
		}
		return reads(ctx, w)
	}
}

// lib runs fio with the engine for libpstorage. How much CPU time that takes isn't known: fio
// counts its own thread, not the library's.
func (b *bench) lib(file string) Runner {
	return func(ctx context.Context, w Workload) (Result, error) {
		r, err := FioOn(ctx, w, []string{"env", b.env()}, "--ioengine=external:"+b.fioEngine(),
			"--cluster=dev", "--filename=/"+file)
		r.CPUPerOp = 0
		return r, err
	}
}

func (b *bench) fronts() map[string]Runner {
	raw := b.fio(b.raw(), "io_uring")
	fronts := map[string]Runner{
		FrontNative: b.native.Run,
		FrontFuse: either(b.fio(filepath.Join(b.home(), "mnt", benchFile), "io_uring", b.cluster),
			b.fio(filepath.Join(b.home(), "mnt", fuseFile), "io_uring", b.cluster)),
		FrontNBD: either(b.fio("nbd+unix:///"+benchFile+"?socket="+b.socket(benchFile), "nbd",
			b.cluster, b.nbd), b.fio("nbd+unix:///"+nbdFile+"?socket="+b.socket(nbdFile), "nbd",
			b.cluster, b.nbdWrites)),
		FrontTCP:  b.fio("nbd://"+b.tcp+"/"+benchFile, "nbd", b.cluster, b.nbd),
		FrontLib:  either(b.lib(benchFile), b.lib(libFile)),
		FrontPing: PingPong,
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

// rows are those that can be measured here. The report says what is left out, and why.
func (b *bench) rows() []Row {
	want, can := b.wanted()
	why := map[string]string{}
	for front, err := range b.lacks {
		if err != nil {
			why[front] = err.Error()
		}
	}
	why[FrontPass], why[FrontTCP] = why[FrontFuse], why[FrontNBD]
	rows := Rows(b.o.Each, b.o.Size, can)
	b.report.skipFronts(Rows(b.o.Each, b.o.Size, want), rows, why)
	return rows
}

// plan runs the rows and completes the report.
func (b *bench) plan(ctx context.Context) error {
	rows := b.rows()
	if _, err := b.native.Run(ctx, rows[0].Ours.Workload); err != nil { // connections, maps, caches
		return fmt.Errorf("warm up: %w", err)
	}
	begun := time.Now()
	var limit *pace
	if b.o.Within > 0 {
		limit = &pace{until: b.begun.Add(b.o.Within - stopTime), now: time.Now}
	}
	p, err := runPlan(ctx, rows, b.o.Rounds, b.fronts(), limit,
		func(done, total int, what string) {
			passed := time.Since(begun)
			left := passed * time.Duration(total-done) / time.Duration(max(done, 1))
			b.say("[%3d/%d, %3.0f s, about %3.0f s left] %s", done+1, total, passed.Seconds(),
				left.Seconds(), what)
		})
	if len(p.figures) == 0 && err == nil {
		err = fmt.Errorf("starting and writing files took %.0f s: there was no time to measure within "+
			"%.0f s; give it longer, or smaller files", begun.Sub(b.begun).Seconds(),
			b.o.Within.Seconds())
	}
	b.take(rows, p, err)
	if len(p.figures) == 0 {
		return err
	}
	used, memErr := memory(b.cluster, b.nbd, b.nbdWrites)
	b.report.Memory = used
	return errors.Join(err, memErr)
}

// take puts into the report what a plan gave, and why the rest isn't there. err is why it ended, if
// it didn't come to its end.
func (b *bench) take(rows []Row, p planned, err error) {
	b.report.Figures, b.report.Runs, b.report.Rounds = p.figures, p.runs, p.rounds
	b.report.Size, b.report.Journal = b.o.Size, b.o.Journal
	why := map[string]string{}
	for front, failed := range p.failed {
		why[front] = "failed: " + failed.Error()
	}
	ended := p.failed[FrontNative] != nil || p.failed[FrontRaw] != nil
	if b.o.Within > 0 && !ended && p.rounds < b.o.Rounds {
		b.reduced(fmt.Sprintf("%d of %d rounds in full", p.rounds, b.o.Rounds))
	}
	for _, row := range rows {
		if slices.ContainsFunc(p.figures, func(f Figure) bool { return f.Name == row.Name }) {
			continue
		}
		reason := fmt.Sprintf("no time left within %.0f s", b.o.Within.Seconds())
		switch {
		case why[row.Ours.Front] != "":
			reason = why[row.Ours.Front]
		case why[row.Yardstick.Front] != "":
			reason = why[row.Yardstick.Front]
		case err != nil:
			reason = "not reached: " + err.Error()
		}
		b.report.skip(reason, row.Name)
	}
}

// memory returns the resident memory of the programs' processes by program name, in bytes.
func memory(programs ...*Cluster) (map[string]int64, error) {
	sums := map[string]int64{}
	for _, p := range programs {
		if p == nil {
			continue
		}
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
