// Package peers measures other storage systems beside pstorage: the same workloads, three copies,
// all servers on one machine and one disk, each beside raw fio on that disk in the same rounds. One
// system runs after the other, in a sandbox of its own; nothing of it is left behind. fio drives
// the others, the native generator pstorage, which does what fio would.
package peers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"pstorage/perf"
)

// system is a peer.
type system struct {
	name     string
	packages []string // of Debian, by which it is installed
	programs []string // that must be there
	own      []string // well-known directories that it writes to
	about    string
	// start starts its servers and makes a file or image of size bytes with three copies.
	start func(ctx context.Context, s *sandbox, size int64) (target, error)
}

// target is what fio is to use.
type target struct {
	args  []string // an engine of fio and its options
	fsync bool     // a write isn't durable, as far as it gets at all, before it is synced
}

var systems = []system{gluster, moosefs, ceph}

// Ours is the name of pstorage among the systems.
const Ours = "pstorage"

// Names are those of all systems; about says what each is measured as.
func Names() (names, about []string) {
	names, about = []string{Ours}, []string{"native client by a load generator of its own, not fio; " +
		"writes durable on all copies"}
	for _, y := range systems {
		names, about = append(names, y.name), append(about, y.about)
	}
	return names, about
}

const prefix = "pstorage-peers-" // of temporary directories

// Options of Run. Zero values mean the defaults.
type Options struct {
	Only     []string      // systems; default: all
	Dir      string        // on the disk to be measured; default: /var/tmp
	Rounds   int           // default 3
	Each     time.Duration // of one measurement; default 1 s
	Size     int64         // bytes of the files; default 512 MiB
	Progress io.Writer     // nil: none
}

func (o *Options) setDefaults() error {
	names, _ := Names()
	if len(o.Only) == 0 {
		o.Only = names
	}
	for _, name := range o.Only {
		if !slices.Contains(names, name) {
			return fmt.Errorf("there is no system %q: choose among %s", name, strings.Join(names, ", "))
		}
	}
	if o.Dir == "" {
		o.Dir = "/var/tmp"
	}
	if o.Rounds == 0 {
		o.Rounds = 3
	}
	if o.Each == 0 {
		o.Each = time.Second
	}
	if o.Size == 0 {
		o.Size = 512 << 20
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Rounds < 1 || o.Each <= 0 || o.Size < 1<<20 || o.Size%(1<<20) != 0 {
		return errors.New("rounds and times must be more than 0, the files whole MiB")
	}
	if os.Geteuid() != 0 {
		return errors.New("peers run in namespaces of their own: only root can make them")
	}
	return nil
}

// notes are what a reader of the figures must know.
func notes() []string {
	return []string{
		"one system after the other: a system's figures are of raw fio in its own rounds; compare " +
			"ratios, not IOPS",
		"pstorage is driven by its own load generator inside the client, with the sizes and depths of " +
			"the fio jobs; the others by fio",
		"memory is that of the servers, at the end, and of a mount where there is one, without the " +
			"load generator",
	}
}

// Run measures the systems one after the other. One that isn't installed, or doesn't work here, is
// named in the report with the reason, and the others are measured.
func Run(ctx context.Context, o Options) (*perf.Report, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	unlock, err := perf.Lock(ctx, o.Progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	left, err := filepath.Glob(filepath.Join(o.Dir, prefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, path := range left { // by an interrupted run: nobody else measures
		if err := os.RemoveAll(path); err != nil {
			return nil, err
		}
	}
	report := &perf.Report{Time: time.Now(), Commit: perf.Commit(), Machine: perf.Machine(),
		Rounds: o.Rounds, Seconds: o.Each.Seconds(), Size: o.Size, Skipped: map[string]string{},
		Notes: notes()}
	names, _ := Names()
	for i, name := range names {
		if !slices.Contains(o.Only, name) {
			continue
		}
		var err error
		if name == Ours {
			err = o.measure(ctx, report, name, o.ours)
		} else if err = systems[i-1].absent(); err == nil {
			err = o.measure(ctx, report, name, systems[i-1].open(&o))
		}
		if ctx.Err() != nil {
			return nil, errors.Join(ctx.Err(), err)
		}
		if err != nil {
			report.Skipped[name] = err.Error()
			fmt.Fprintf(o.Progress, "%s: %v\n", name, err)
		}
	}
	if len(report.Figures) == 0 {
		return nil, fmt.Errorf("nothing could be measured: %v", slices.Sorted(maps.Values(
			report.Skipped)))
	}
	return report, nil
}

// absent says which programs of a system aren't there.
func (y *system) absent() error {
	for _, p := range y.programs {
		if _, err := exec.LookPath(p); err != nil {
			return fmt.Errorf("there is no %s here; as root: apt-get install %s", p,
				strings.Join(y.packages, " "))
		}
	}
	return nil
}

// started is a system that runs. Its file is laid out by the first run.
type started struct {
	run   perf.Runner
	pids  func() ([]int, error) // of its servers, and of its mount, if it has one
	close func() error          // also after an error; nil: nothing to do
}

// opener starts a system in an empty directory.
type opener func(ctx context.Context, dir string) (started, error)

// measure runs the plan for one system.
func (o *Options) measure(ctx context.Context, report *perf.Report, name string, open opener) (
	err error) {
	dir, err := os.MkdirTemp(o.Dir, prefix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	raw, home := filepath.Join(dir, "raw"), filepath.Join(dir, "home")
	if err := errors.Join(os.Mkdir(home, 0o755), perf.FioLayout(ctx, raw, o.Size)); err != nil {
		return err
	}
	fmt.Fprintf(o.Progress, "%s: starting it in %s\n", name, home)
	y, err := open(ctx, home)
	if y.close != nil {
		defer func() { err = errors.Join(err, y.close()) }()
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(o.Progress, "%s: writing %d MiB\n", name, o.Size>>20)
	lay := perf.Workload{RW: "write", BlockSize: 1 << 20, Depth: 8, Size: o.Size}
	if _, err := y.run(ctx, lay); err != nil {
		return fmt.Errorf("lay out the file: %w", err)
	}
	fronts := map[string]perf.Runner{name: y.run,
		perf.FrontRaw: func(ctx context.Context, w perf.Workload) (perf.Result, error) {
			syscall.Sync() // what is left in the page cache isn't to be written during the yardstick
			return perf.Fio(ctx, w, raw, "io_uring")
		}}
	figures, runs, err := perf.RunPlan(ctx, rows(name, o.Each, o.Size), o.Rounds, fronts,
		func(done, total int, what string) {
			fmt.Fprintf(o.Progress, "[%2d/%d] %s\n", done+1, total, what)
		})
	if err != nil {
		return err
	}
	report.Figures = append(report.Figures, figures...)
	report.Runs = append(report.Runs, runs...)
	return addMemory(report, name, y.pids)
}

// addMemory adds what a system's processes have resident.
func addMemory(report *perf.Report, name string, pids func() ([]int, error)) error {
	all, err := pids()
	if err != nil {
		return err
	}
	bytes := perf.RSS(all)
	if report.Memory == nil {
		report.Memory = map[string]int64{}
	}
	report.Memory[name] = bytes
	mb := float64(bytes) / 1e6
	report.Figures = append(report.Figures, perf.Figure{Name: name + "_memory_mb", Value: mb,
		Unit: "MB", Ours: []float64{mb},
		Note: fmt.Sprintf("resident memory of its %d processes", len(all))})
	return nil
}

// rows are the main figures of pstorage, for a system, without goals.
func rows(name string, each time.Duration, size int64) []perf.Row {
	all := perf.Rows(each, size, perf.Fronts{})
	for i := range all {
		row := &all[i]
		row.Name = name + "_" + row.Name
		row.Ours.Front = name
		row.Goal, row.Bar = 0, 0
	}
	return all
}

// ours starts a cluster of pstorage.
func (o *Options) ours(ctx context.Context, dir string) (y started, err error) {
	binary, err := perf.FindBinary("pstorage")
	if err != nil {
		return y, err
	}
	c, err := perf.StartCluster(ctx, perf.ClusterOptions{Binary: binary, Dir: dir, CS: 3,
		Args: []string{"--no-mount", "--log-size", "1G"}})
	if err != nil {
		return y, err
	}
	n, err := perf.OpenNative(ctx, perf.NativeOptions{Etc: filepath.Join(dir, "etc"),
		Cluster: "dev", Path: "/bench", PIDs: c.PIDs})
	if err != nil {
		return started{close: c.Stop}, err
	}
	return started{n.Run, c.PIDs, func() error { return errors.Join(n.Close(), c.Stop()) }}, nil
}

// open returns how the system is started.
func (y *system) open(o *Options) opener {
	return func(ctx context.Context, dir string) (started, error) {
		s, err := openSandbox(dir, y.own)
		if err != nil {
			return started{}, err
		}
		t, err := y.start(ctx, s, o.Size)
		run := func(ctx context.Context, w perf.Workload) (perf.Result, error) {
			return s.measure(ctx, t, w)
		}
		return started{run, s.pids, s.close}, err
	}
}

// measure runs fio inside; the servers' CPU time counts, too.
func (s *sandbox) measure(ctx context.Context, t target, w perf.Workload) (perf.Result, error) {
	w.Fsync = w.Write() && t.fsync
	pids, err := s.pids()
	if err != nil {
		return perf.Result{}, err
	}
	before, err := perf.SampleCPU(pids)
	if err != nil {
		return perf.Result{}, err
	}
	r, err := perf.FioOn(ctx, w, s.enter, t.args...)
	if err != nil {
		return r, err
	}
	after, err := perf.SampleCPU(pids)
	if err != nil {
		return r, err
	}
	r.CPUPerOp += float64(after.Since(before)) / 1000 / float64(r.Ops)
	return r, nil
}
