package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/session"
	"pstorage/mds"
	"pstorage/perf"
)

// mdsOptions are the flags of pstorage-perf mds.
type mdsOptions struct {
	chunks         uint64
	files, servers int
	dir            string
	keep           bool
	parts          []string
	seconds        float64
	gcSeconds      float64
	profile        string
	err            io.Writer
}

// mdsParts are what is measured, in this order; each works on what the ones before it left.
var mdsParts = []string{"state", "gc", "snapshot", "loss", "rates"}

func newMDS() *cobra.Command {
	o := mdsOptions{err: os.Stderr}
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "mds",
		Short: "Figures of the metadata server at a size given in chunks",
		Long: `Mds measures metadata servers, each in a process of its own, in parts:

  state      make a state of that size (nothing is measured)
  gc         pauses of the garbage collector beside a load of changes, each for --gc-seconds: as
             they come (own_gc_), and with one cycle after the other (gc_)
  snapshot   resident memory over that of an empty server; a snapshot beside a load of changes:
             how long the state is held at a time, when nobody reads or applies (_pause), and how
             long entries take to be applied, with waiting for a CPU (_apply); load_ is without it
  loss       restart from snapshot and log; the loss of one chunk server
  rates      three servers: look-ups, allocations and heartbeats of all chunk servers, per second
             of CPU time of the leader, how long calls took (_p50_ms, ...), and how long it takes
             until all chunk servers have connected and had an answer (connect_s). What the leader
             does without them is subtracted from heartbeat_leader_cores; heartbeat_added_cores is
             what as many more heartbeats take

Garbage collection pauses (gc_pause) have in them the time until all threads have stopped
(gc_stopping), and the time that the thread which starts them again is without a CPU because of
those that it has started; the percentiles are upper bounds of histogram buckets.

At 1 PiB (--chunks 16777216) each part takes about a minute; parts can be run one by one on a
directory that is kept (--dir, --keep).`,
		Example: `  pstorage-perf mds --chunks 1000000 --json
  pstorage-perf mds --chunks 16777216 --dir /var/tmp/mds --keep --parts state
  pstorage-perf mds --chunks 16777216 --dir /var/tmp/mds --keep --parts snapshot`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			figures, err := o.run(cmd.Context())
			if err != nil {
				return cli.Fail("measure the metadata server", err, "")
			}
			return writeFigures(cmd.OutOrStdout(), figures, asJSON)
		},
	}
	flags := cmd.Flags()
	o.stateFlags(cmd)
	flags.StringVar(&o.dir, "dir", "", "directory for everything (default: a temporary one)")
	flags.BoolVar(&o.keep, "keep", false, "leave the directory for further parts")
	flags.StringSliceVar(&o.parts, "parts", mdsParts, "`NAMES` of parts, separated by commas")
	flags.Float64Var(&o.seconds, "seconds", 3, "of one measurement of rates, at most 4")
	flags.StringVar(&o.profile, "profile", "", "write CPU profiles of the servers into `DIR`")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (o *mdsOptions) stateFlags(cmd *cobra.Command) {
	cmd.Flags().Uint64Var(&o.chunks, "chunks", 1<<20, "chunks")
	cmd.Flags().IntVar(&o.files, "files", 100000, "files that have them")
	cmd.Flags().IntVar(&o.servers, "servers", 1000, "chunk servers")
	cmd.Flags().Float64Var(&o.gcSeconds, "gc-seconds", 10, "of each measurement of gc")
}

func (o *mdsOptions) run(ctx context.Context) (f mds.Figures, err error) {
	for _, p := range o.parts {
		if !slices.Contains(mdsParts, p) {
			return nil, dataplane.E("part "+p, dataplane.Invalid,
				fmt.Errorf("parts are %s", strings.Join(mdsParts, ", ")))
		}
	}
	if o.servers < 3 || o.files < 1 || o.chunks < 1 || o.servers > 10000 {
		return nil, dataplane.E("size", dataplane.Invalid,
			fmt.Errorf("at least 1 chunk, 1 file, and 3 to 10,000 servers"))
	}
	if o.seconds <= 0 || o.seconds > 4 {
		// 30 s after its election a leader wants inventories, which are no part of this.
		return nil, dataplane.E("seconds", dataplane.Invalid, fmt.Errorf("at most 4 are possible"))
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("/var/tmp", "pstorage-mds-"); err != nil {
			return nil, err
		}
	}
	if !o.keep {
		defer os.RemoveAll(o.dir)
	}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return nil, err
	}
	all := mds.Figures{"chunks": float64(o.chunks)}
	steps := map[string]func(context.Context) (mds.Figures, error){"state": o.state,
		"gc": o.gc, "snapshot": o.snapshot, "loss": o.loss, "rates": o.rates}
	for _, p := range mdsParts {
		if !slices.Contains(o.parts, p) {
			continue
		}
		began := time.Now()
		f, err := steps[p](ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		maps.Copy(all, f)
		fmt.Fprintf(o.err, "%s: %.1f s\n", p, time.Since(began).Seconds())
	}
	return all, nil
}

// state makes the directory "one" of a server that is alone, and "empty".
func (o *mdsOptions) state(ctx context.Context) (mds.Figures, error) {
	for _, name := range []string{"one", "empty"} {
		if err := os.RemoveAll(filepath.Join(o.dir, name)); err != nil {
			return nil, err
		}
	}
	return o.child(ctx, "state")
}

func (o *mdsOptions) snapshot(ctx context.Context) (mds.Figures, error) {
	empty, err := o.child(ctx, "empty")
	if err != nil {
		return nil, err
	}
	f, err := o.child(ctx, "snapshot")
	if err != nil {
		return nil, err
	}
	f["rss_empty_bytes"] = empty["rss_bytes"]
	f["bytes_per_chunk"] = (f["rss_bytes"] - empty["rss_bytes"]) / float64(o.chunks)
	f["bytes_per_chunk_started"] = (f["rss_started_bytes"] - empty["rss_bytes"]) /
		float64(o.chunks)
	return f, nil
}

func (o *mdsOptions) gc(ctx context.Context) (mds.Figures, error) {
	return o.child(ctx, "gc")
}

func (o *mdsOptions) loss(ctx context.Context) (mds.Figures, error) {
	return o.child(ctx, "loss")
}

// command is this program as a child that does one thing.
func (o *mdsOptions) command(ctx context.Context, what string, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	all := append([]string{"mds-child", what, o.dir, "--chunks", fmt.Sprint(o.chunks), "--files",
		fmt.Sprint(o.files), "--servers", fmt.Sprint(o.servers), "--gc-seconds",
		fmt.Sprint(o.gcSeconds)}, args...)
	if o.profile != "" {
		all = append(all, "--profile", o.profile)
	}
	cmd := exec.CommandContext(ctx, self, all...)
	cmd.Stderr = o.err
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	return cmd, nil
}

// child measures in a process of its own.
func (o *mdsOptions) child(ctx context.Context, what string) (mds.Figures, error) {
	cmd, err := o.command(ctx, what)
	if err != nil {
		return nil, err
	}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("process that measures %s: %w", what, err)
	}
	f := mds.Figures{}
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&f); err != nil {
		return nil, fmt.Errorf("process that measures %s: %w", what, err)
	}
	return f, nil
}

// mdsCred are credentials of the cluster that is measured. It is on loopback and for minutes.
func mdsCred(role dataplane.Role, id uint64) *session.Credentials {
	return &session.Credentials{Cluster: dataplane.ClusterID{'p', 'e', 'r', 'f'},
		ClusterName: "perf", Role: role, ID: id, Name: "perf"}
}

// newMDSChild is what command runs.
func newMDSChild() *cobra.Command {
	o := mdsOptions{err: os.Stderr}
	var node int
	cmd := &cobra.Command{Use: "mds-child WHAT DIR", Hidden: true, Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.dir = args[1]
			mds.TuneRuntime() // as pstorage-mdsd does
			stop, err := o.startProfile(args[0], node)
			if err != nil {
				return err
			}
			f, err := o.runChild(cmd.Context(), args[0], node)
			stop()
			if err != nil || f == nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(f)
		}}
	o.stateFlags(cmd)
	cmd.Flags().IntVar(&node, "node", 0, "number of the server")
	cmd.Flags().StringVar(&o.profile, "profile", "", "write a CPU profile into `DIR`")
	return cmd
}

func (o *mdsOptions) runChild(ctx context.Context, what string, node int) (mds.Figures, error) {
	one, empty := filepath.Join(o.dir, "one"), filepath.Join(o.dir, "empty")
	mo := mds.MeasureOptions{Cred: mdsCred(dataplane.RoleMDS, 1), Chunks: o.chunks, Files: o.files,
		Servers: o.servers, Loss: 2 * time.Second}
	alone := []mds.Peer{{Node: 1, Addr: "127.0.0.1:1"}}
	switch what {
	case "state":
		if err := mds.MeasureState([]string{one}, alone, mo); err != nil {
			return nil, err
		}
		return mds.Figures{}, mds.Format(empty, mds.FormatOptions{Cluster: mo.Cred.Cluster,
			ClusterName: mo.Cred.ClusterName, Addr: alone[0].Addr})
	case "empty":
		return mds.MeasureEmpty(ctx, empty, mo)
	case "gc":
		mo.Loss = time.Duration(o.gcSeconds * float64(time.Second))
		return mds.MeasureGC(ctx, one, mo)
	case "snapshot":
		return mds.MeasureSnapshot(ctx, one, mo)
	case "loss":
		return mds.MeasureLoss(ctx, one, mo)
	case "rates-state":
		var peers []mds.Peer
		if err := readJSON(filepath.Join(o.dir, "peers.json"), &peers); err != nil {
			return nil, err
		}
		return mds.Figures{}, mds.MeasureState(o.rateDirs(len(peers)), peers, mo)
	case "server":
		return nil, mds.Run(ctx, mds.Options{Dir: o.rateDirs(node)[node-1], Log: quietLog(),
			Cred: mdsCred(dataplane.RoleMDS, uint64(node)), Offline: time.Hour})
	}
	return nil, fmt.Errorf("nothing is called %s", what)
}

// quietLog drops everything: what matters comes as an error, and servers that start and stop one
// after the other miss each other.
func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// writeFigures writes one JSON object, or lines for people.
func writeFigures(out io.Writer, f mds.Figures, asJSON bool) error {
	if asJSON {
		doc := map[string]any{"commit": perf.Commit(), "machine": perf.Machine()}
		for name, v := range f {
			doc[name] = v
		}
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(doc)
	}
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if _, err := fmt.Fprintf(out, "%-32s %14.3f\n", name, f[name]); err != nil {
			return err
		}
	}
	return nil
}
