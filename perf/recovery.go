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

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/perf/emulate"
)

// RecoveryOptions of Recovery. Zero values mean the defaults.
type RecoveryOptions struct {
	Binary   string            // pstorage; default: beside this program, or on the PATH
	Dir      string            // on the disk that all emulated ones lie on; default: /var/tmp
	Rows     []string          // default: all, see RecoveryRows
	CS       int               // chunk servers, one of which is lost; default 8
	Disk     uint64            // bytes per second of each disk, reads and writes; default 100 MB
	Data     int64             // bytes of user data, three copies; default 4 GiB
	Fill     int64             // of them in each chunk; default 16 MiB
	Depth    int               // of the clients' reads in row load; default 32
	Each     time.Duration     // of a measurement beside the recovery; default 4 s
	Outage   time.Duration     // row resync; default 30 s
	Written  int64             // bytes written in the outage; default 1 GiB
	Span     int64             // bytes of the file that they are spread over; default 64 GiB
	Config   map[string]string // entries of the cluster's configuration, to try them out
	Progress io.Writer         // nil: none
}

// recoveryRows are the rows in the order in which they run.
var recoveryRows = []struct {
	name, about, figures string
	run                  func(*recoveryRun, context.Context) error
}{
	{"idle", "one of the chunk servers is lost, nobody reads or writes",
		"rate_idle_ratio begin_seconds", (*recoveryRun).idle},
	{"load", "the same while a client reads 4K blocks at random",
		"client_iops_ratio rate_load_ratio", (*recoveryRun).load},
	{"resync", "a chunk server is away while random 4K blocks are written",
		"resync_bytes_ratio resync_seconds", (*recoveryRun).resync},
}

// RecoveryRows returns the names of the rows, each with what it is.
func RecoveryRows() (names, about []string) {
	for _, row := range recoveryRows {
		names, about = append(names, row.name), append(about, row.about)
	}
	return names, about
}

func (o *RecoveryOptions) setDefaults() error {
	names, _ := RecoveryRows()
	err := errors.Join(setPlaces(&o.Binary, &o.Dir, &o.Progress), chooseRows(&o.Rows, names))
	if err != nil {
		return err
	}
	setDefault(&o.CS, 8)
	setDefault(&o.Disk, 100e6)
	setDefault(&o.Data, 4<<30)
	setDefault(&o.Fill, 16<<20)
	setDefault(&o.Depth, 32)
	setDefault(&o.Each, 4*time.Second)
	setDefault(&o.Outage, 30*time.Second)
	setDefault(&o.Written, 1<<30)
	setDefault(&o.Span, 64<<30)
	const chunk = dataplane.ChunkSize
	if o.CS < 4 || o.Data < chunk || o.Data%chunk != 0 || o.Span < chunk || o.Span%chunk != 0 ||
		o.Fill < 1<<20 || o.Fill > chunk || o.Fill%(1<<20) != 0 || o.Data%o.Fill != 0 {
		return errors.New("at least 4 chunk servers are needed, data in steps of 64 MiB, and 1 to 64 " +
			"whole MiB of it in each chunk")
	}
	return nil
}

// Recovery measures how a cluster with slow disks gets its copies back. Each row makes its own
// disks and servers and removes them again. Beside an error there is a report all the same, with
// what the other rows gave.
func Recovery(ctx context.Context, o RecoveryOptions) (*Report, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	unlock, err := Lock(ctx, o.Progress)
	if err != nil {
		return nil, err
	}
	defer unlock()
	report := &Report{Time: time.Now(), Commit: Commit(), Machine: Machine()}
	var rows []rowRun
	for _, row := range recoveryRows {
		if slices.Contains(o.Rows, row.name) {
			rows = append(rows, rowRun{name: row.name, figures: strings.Fields(row.figures),
				lacks: emulate.Available(), run: func() ([]Figure, error) {
					return runRecoveryRow(ctx, o, row.name, row.run)
				}})
		}
	}
	return report, report.measure(ctx, rows)
}

const recoveryPrefix = "pstorage-recovery-" // of temporary directories

// recoveryRun is one row while it runs.
type recoveryRun struct {
	engineRun
	ro    RecoveryOptions
	disks []*emulate.Disk
	dirs  []string // where they are mounted
	admin *control.Client
}

func runRecoveryRow(ctx context.Context, o RecoveryOptions, name string,
	run func(*recoveryRun, context.Context) error) (figures []Figure, err error) {
	left, err := filepath.Glob(filepath.Join(o.Dir, recoveryPrefix+"*"))
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(o.Dir, recoveryPrefix)
	if err != nil {
		return nil, err
	}
	r := &recoveryRun{ro: o}
	r.engineRun = engineRun{o: EngineOptions{Binary: o.Binary, Progress: o.Progress}, name: name,
		dir: dir, begun: time.Now()}
	defer func() {
		if r.admin != nil {
			r.admin.Close()
		}
		err = r.end(err)
	}()
	if r.rig, err = emulate.Open("recovery", dir); err != nil { // takes away what is mounted
		return nil, err
	}
	for _, path := range left { // by an interrupted run: nobody else measures
		if err := os.RemoveAll(path); err != nil {
			return nil, err
		}
	}
	err = run(r, ctx)
	return r.figures, err
}

// cluster makes n disks of the given size, with a chunk server on each, and opens a file.
func (r *recoveryRun) cluster(ctx context.Context, n int, size, journal int64) error {
	o := ServersOptions{Binary: r.ro.Binary, Home: r.home(), Wrap: r.rig.Wrap}
	for i := range n {
		d, dir, err := r.disk(fmt.Sprint("disk", i), size, true)
		if err != nil {
			return err
		}
		r.disks, r.dirs = append(r.disks, d), append(r.dirs, dir)
		o.CS = append(o.CS, ServerDisk{Dir: filepath.Join(dir, "cs"), LogSize: journal})
	}
	r.say("starting %d chunk servers", n)
	var err error
	if r.servers, err = StartServers(ctx, o); err != nil {
		return err
	}
	if r.admin, err = dialAdmin(ctx, r.servers.Etc(), serversCluster); err != nil {
		return err
	}
	config := map[string]string{control.ConfigRebalance: "off"}
	for key, value := range r.ro.Config {
		config[key] = value
	}
	for key, value := range config {
		err := r.admin.Admin(ctx, control.AdminSetConfig,
			control.SetConfigArgs{Key: key, Value: value, Any: true}, nil)
		if err != nil {
			return fmt.Errorf("set %s to %s: %w", key, value, err)
		}
	}
	return r.openNative(ctx)
}

// stat asks for the state of the cluster.
func (r *recoveryRun) stat(ctx context.Context) (*control.StatDoc, error) {
	doc := new(control.StatDoc)
	return doc, r.admin.Admin(ctx, control.AdminStat, nil, doc)
}

// healed says when the copies of a lost server were made anew.
type healed struct {
	doc        *control.StatDoc // the answer that said so
	begin, end time.Time        // the first copy seen under way; when that answer was asked for
}

// whole waits until every chunk has all its copies, none of them on the server gone (0: no matter).
func (r *recoveryRun) whole(ctx context.Context, gone uint32) (h healed, err error) {
	begun, said := time.Now(), time.Now()
	for {
		asked := time.Now()
		doc, err := r.stat(ctx)
		if err != nil {
			return h, err
		}
		if h.begin.IsZero() && doc.Recovery.Copying > 0 {
			h.begin = asked
		}
		if doc.Chunks.Healthy == doc.Chunks.Total && doc.Chunks.Total > 0 &&
			!slices.ContainsFunc(doc.CS, func(c control.CSDoc) bool {
				return c.ID == gone && c.Chunks > 0
			}) {
			h.doc, h.end = doc, asked
			return h, nil
		}
		if time.Since(said) > time.Second {
			said = time.Now()
			r.say("%+v", doc.Recovery)
		}
		if time.Since(begun) > wholeWithin {
			return h, fmt.Errorf("not whole after %v: %+v, %q", wholeWithin, doc.Recovery,
				doc.Reasons)
		}
		select {
		case <-ctx.Done():
			return h, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}
