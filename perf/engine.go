package perf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pstorage/perf/emulate"
)

// EngineOptions of Engine. Zero values mean the defaults.
type EngineOptions struct {
	Binary   string        // pstorage; default: beside this program, or on the PATH
	Dir      string        // on the disk that all emulated ones lie on; default: /var/tmp
	Rows     []string      // default: all, see EngineRows
	Rounds   int           // default 3
	Each     time.Duration // of one measurement; default 4 s
	HDD      uint64        // operations per second of the emulated HDD; default 200
	Log      int64         // bytes of the log in rows hdd and ssd; default 1 GiB
	Set      int64         // bytes of the working set in all rows but rss; default 1 GiB
	Fill     time.Duration // at most, to fill a log before a measurement; default 60 s
	Replay   int64         // bytes of the log in row replay; default 4 GiB
	Store    int64         // bytes in row rss; default 1 TiB
	Profile  string        // directory for profiles of the chunk server (perf record); empty: none
	Progress io.Writer     // nil: none
}

// engineRows are the rows in the order in which they run.
var engineRows = []struct {
	name    string
	about   string
	figures string // their names
	rig     bool   // needs emulated disks
	run     func(*engineRun, context.Context) error
}{
	{"hddread", "cold 4K random reads from an emulated HDD",
		"hdd_coldread_q32", true, (*engineRun).hddRead},
	{"hddwrite", "sustained 4K random writes, log on the same HDD",
		"hdd_write_sustained", true, (*engineRun).hddWrite},
	{"ssd", "4K random reads and writes in the log on an SSD before an HDD",
		"ssd_read_q128 ssd_write_q128", true, (*engineRun).ssd},
	{"hdds", "cold 4K random reads from 4 servers with 2 emulated HDDs each",
		"hdds_coldread_q64", true, (*engineRun).hdds},
	{"ssds", "the same with journals on SSDs that hold the data",
		"ssds_warmread_q64", true, (*engineRun).ssds},
	{"fast", "one chunk server on the disk as it is: writes, latency, CPU",
		"write_q32 write_q128 write_q1_latency cs_cpu_write_q128 cs_cpu_read_q128",
		false, (*engineRun).fast},
	{"sustain", "ten times what the log holds is written to the disk as it is",
		"sustained_q128 sustained_max_wait", false, (*engineRun).sustain},
	{"sustain_hdd", "the same, the log on an SSD before an emulated HDD",
		"sustained_hdd_q128 sustained_hdd_gap", true, (*engineRun).sustainHDD},
	{"rss", "memory of a chunk server with a sparse store",
		"rss_per_tib", true, (*engineRun).rss},
	{"replay", "start with a full log after a kill",
		"replay", true, (*engineRun).replay},
}

// EngineRows returns the names of the rows, each with what it is.
func EngineRows() (names, about []string) {
	for _, row := range engineRows {
		names, about = append(names, row.name), append(about, row.about)
	}
	return names, about
}

// chooseRows checks the rows that are asked for; none means all names.
func chooseRows(rows *[]string, names []string) error {
	if len(*rows) == 0 {
		*rows = names
	}
	for _, row := range *rows {
		if !slices.Contains(names, row) {
			return fmt.Errorf("no row %q; there are %s", row, strings.Join(names, ", "))
		}
	}
	return nil
}

// setPlaces sets the defaults that all measurements share.
func setPlaces(binary, dir *string, progress *io.Writer) (err error) {
	setDefault(dir, "/var/tmp")
	setDefault(progress, io.Discard)
	if *binary == "" {
		*binary, err = FindBinary("pstorage")
	}
	return err
}

func (o *EngineOptions) setDefaults() error {
	names, _ := EngineRows()
	err := errors.Join(setPlaces(&o.Binary, &o.Dir, &o.Progress), chooseRows(&o.Rows, names))
	if err != nil {
		return err
	}
	setDefault(&o.Rounds, 3)
	setDefault(&o.Each, 4*time.Second)
	setDefault(&o.HDD, 200)
	setDefault(&o.Log, 1<<30)
	setDefault(&o.Set, 1<<30)
	setDefault(&o.Fill, 60*time.Second)
	setDefault(&o.Replay, 4<<30)
	setDefault(&o.Store, 1<<40)
	if o.Rounds < 0 || o.Each < 0 || o.Set < 16<<20 || o.Store < 1<<30 {
		return errors.New("rounds and times must be more than 0, the working set at least 16 MiB, " +
			"the store at least 1 GiB")
	}
	if o.Profile != "" {
		return os.MkdirAll(o.Profile, 0o755)
	}
	return nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Engine measures what the storage engine of one chunk server does with its disks. Each row makes
// its own disks and servers and removes them again. Beside an error there is a report all the same,
// with what the other rows gave.
func Engine(ctx context.Context, o EngineOptions) (*Report, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	unlock, err := Lock(ctx, o.Progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	report := &Report{Time: time.Now(), Commit: Commit(), Machine: Machine(), Rounds: o.Rounds,
		Seconds: o.Each.Seconds(), Size: o.Set}
	return report, engine(ctx, o, report)
}

// engine is Engine for whoever has the lock: it adds to a report.
func engine(ctx context.Context, o EngineOptions, report *Report) error {
	if err := o.setDefaults(); err != nil {
		return err
	}
	if err := sweepEngine(o.Dir); err != nil { // it takes space, no more
		fmt.Fprintf(o.Progress, "not all that an interrupted run left could be removed: %v\n", err)
	}
	lacks := emulate.Available()
	var rows []rowRun
	for _, row := range engineRows {
		if !slices.Contains(o.Rows, row.name) {
			continue
		}
		run := rowRun{name: row.name, figures: strings.Fields(row.figures),
			run: func() ([]Figure, error) {
				return runEngineRow(ctx, o, row.name, row.rig, row.run)
			}}
		if row.rig {
			run.lacks = lacks
		}
		rows = append(rows, run)
	}
	return report.measure(ctx, rows)
}

// sweepEngine removes what killed runs left. Nobody else measures: the caller has the lock.
func sweepEngine(dir string) error {
	if emulate.Available() == nil {
		if _, err := emulate.Sweep(); err != nil { // mounts first
			return err
		}
	}
	return sweep(dir, enginePrefix)
}

const enginePrefix = "pstorage-engine-" // of temporary directories

// engineRun is one row while it runs.
type engineRun struct {
	o       EngineOptions
	name    string
	dir     string       // temporary
	rig     *emulate.Rig // nil if the row needs none
	servers *Servers
	native  *Native
	begun   time.Time
	figures []Figure
}

func runEngineRow(ctx context.Context, o EngineOptions, name string, needsRig bool,
	run func(*engineRun, context.Context) error) (figures []Figure, err error) {
	dir, err := os.MkdirTemp(o.Dir, enginePrefix)
	if err != nil {
		return nil, err
	}
	r := &engineRun{o: o, name: name, dir: dir, begun: time.Now()}
	defer func() { err = r.end(err) }()
	if needsRig {
		if r.rig, err = emulate.Open(fmt.Sprintf("engine%d", os.Getpid()), dir); err != nil {
			return nil, err
		}
	}
	err = run(r, ctx)
	return r.figures, err
}

func (r *engineRun) home() string { return filepath.Join(r.dir, "home") }

func (r *engineRun) say(format string, args ...any) {
	fmt.Fprintf(r.o.Progress, "[%s, %3.0f s] %s\n", r.name, time.Since(r.begun).Seconds(),
		fmt.Sprintf(format, args...))
}

// end stops and removes everything. err is what the row gave.
func (r *engineRun) end(err error) error {
	if err != nil {
		err = errors.Join(err, logTails(r.home()))
		r.abort()
	}
	return errors.Join(err, r.close(), os.RemoveAll(r.dir))
}

// abort fails what is under way: an orderly end would wait for servers that are stuck.
func (r *engineRun) abort() {
	if r.native != nil {
		_ = r.native.client.Close() // it has failed already
		r.native = nil
	}
}

func (r *engineRun) close() error {
	var errs []error
	if r.native != nil {
		errs = append(errs, r.native.Close())
	}
	if r.servers != nil {
		errs = append(errs, r.servers.Stop())
	}
	if r.rig != nil {
		errs = append(errs, r.rig.Close())
	}
	return errors.Join(errs...)
}

func (r *engineRun) add(f Figure) {
	f.Value = finite(f.Value)
	r.figures = append(r.figures, f)
}

// disk makes an emulated disk; with mounted, a file system on it, and returns where.
func (r *engineRun) disk(label string, size int64, mounted bool) (*emulate.Disk, string, error) {
	d, err := r.rig.Add(label, size)
	if err != nil || !mounted {
		return d, "", err
	}
	dir := filepath.Join(r.dir, label)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, "", err
	}
	return d, dir, d.Mount(dir)
}

// hdd are the limits of the emulated HDD.
func (r *engineRun) hdd() emulate.Limits {
	return emulate.Limits{ReadIOPS: r.o.HDD, WriteIOPS: r.o.HDD, ReadBytes: 150e6, WriteBytes: 150e6}
}

// start starts servers with one chunk server and opens a file on them.
func (r *engineRun) start(ctx context.Context, disk ServerDisk) (err error) {
	o := ServersOptions{Binary: r.o.Binary, Home: r.home(), CS: []ServerDisk{disk}}
	if r.rig != nil {
		o.Wrap = r.rig.Wrap
	}
	r.say("starting servers, log of %d MiB", disk.LogSize>>20)
	if r.servers, err = StartServers(ctx, o); err != nil {
		return err
	}
	return r.openNative(ctx)
}

// openNative opens the file that is measured, through the client library.
func (r *engineRun) openNative(ctx context.Context) (err error) {
	r.native, err = OpenNative(ctx, NativeOptions{Etc: r.servers.Etc(), Cluster: serversCluster,
		Path: "/bench", PIDs: r.servers.CSPIDs, Log: slog.New(slog.DiscardHandler)})
	return err
}
