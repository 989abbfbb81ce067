package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/cluster"
)

// pstorage dev, from top to bottom:
//
//  1. lock the directory; make the cluster in it, or find it there (devstate.go);
//  2. clear away what an earlier run left: daemons that live on, a dead mount (devproc.go);
//  3. start the daemons, each a process of its own, and wait until all are ready;
//  4. mount, print what to try;
//  5. wait: a daemon that ends is reported, not started again;
//  6. stop in the reverse order.
const (
	devCluster     = "dev"
	devStartWithin = 30 * time.Second // for one daemon to get ready
	devStopWithin  = 15 * time.Second // from SIGTERM to SIGKILL
)

type devOptions struct {
	dir      string
	mount    string
	noMount  bool
	options  string // of the mount
	mds      int
	cs       int
	mode     string // of a new cluster
	secure   bool
	mdsGiven bool
	csGiven  bool
	logSize  cli.Size
	size     cli.Size
}

func newDev(a *app) *cobra.Command {
	o := devOptions{logSize: 256 << 20}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole cluster in one directory, to try things out",
		Long: `Run a whole cluster in one directory, in the foreground, until Ctrl-C: a metadata
server, chunk servers and a mount, each a process of its own, so that one can be killed
to see what happens. Started again with the same directory it finds its data again.`,
		Example: `  pstorage dev
  pstorage dev --dir /var/tmp/play --mount /mnt/play --cs 5`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.mdsGiven, o.csGiven = cmd.Flags().Changed("mds"), cmd.Flags().Changed("cs")
			if a.cluster != "" {
				return cli.Usage("dev: -c isn't used; the cluster is called %s, in the "+
					"directory given with --dir", devCluster)
			}
			return runDev(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.dir, "dir", "pstorage-dev", "`DIR` that everything is kept in")
	flags.StringVar(&o.mount, "mount", "", "mount on `DIR` (default: mnt in the cluster's directory)")
	flags.BoolVar(&o.noMount, "no-mount", false, "don't mount")
	flags.StringVar(&o.options, "mount-options", "", "`OPTIONS` of pstorage-mount -o")
	flags.IntVar(&o.mds, "mds", 1, "`NUMBER` of metadata servers: 1, 3 or 5")
	flags.IntVar(&o.cs, "cs", 3, "`NUMBER` of chunk servers")
	flags.StringVar(&o.mode, "mode", "crc", modeHelp)
	flags.Var(&o.logSize, "log-size", "journal of each new chunk server")
	flags.Var(&o.size, "capacity",
		"most bytes for chunks on each new chunk server (default: its share of what is free)")
	return cmd
}

func (o *devOptions) check() (err error) {
	if o.secure, err = parseMode(o.mode); err != nil {
		return err
	}
	switch {
	case o.mds != 1 && o.mds != 3 && o.mds != 5:
		return cli.Usage("--mds %d: 1, 3 or 5 are possible", o.mds)
	case o.cs < 1 || o.cs > 100:
		return cli.Usage("--cs %d: 1 to 100 are possible", o.cs)
	case o.noMount && o.mount != "":
		return cli.Usage("--mount and --no-mount exclude each other")
	}
	for _, path := range []*string{&o.dir, &o.mount} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return cli.Fail("find "+*path, err, "")
		}
		*path = abs
	}
	if o.mount == "" {
		o.mount = filepath.Join(o.dir, "mnt")
	}
	return cli.Fail("", cluster.CheckDir(o.dir), "choose another directory with --dir")
}

func runDev(ctx context.Context, o devOptions, out io.Writer) error {
	started := time.Now()
	if err := o.check(); err != nil {
		return err
	}
	programs, err := findPrograms()
	if err != nil {
		return err
	}
	d, err := openDev(o, out)
	if err != nil {
		return err
	}
	defer d.close()
	group := newDevGroup(d, programs, out)
	if err := group.sweep(); err != nil {
		return err
	}
	defer group.stop()
	if err := d.ensure(ctx, o); err != nil {
		return err
	}
	if err := group.startDaemons(ctx); err != nil {
		return err
	}
	if err := d.setPolicy(ctx); err != nil {
		return err
	}
	whyNot := group.mount(ctx, o)
	if ctx.Err() != nil {
		return nil // Ctrl-C while starting
	}
	d.welcome(out, o, whyNot, time.Since(started))
	cli.Notify("READY=1")
	group.watch(ctx)
	fmt.Fprintln(out, "stopping")
	return nil
}

// welcome prints what runs and what to try. Its first line begins with "ready", for scripts.
func (d *dev) welcome(out io.Writer, o devOptions, whyNot string, took time.Duration) {
	mounted := "mounted on " + o.mount
	if whyNot != "" {
		mounted = "not mounted"
	}
	fmt.Fprintf(out, "ready: %d MDS, %d CS, %s (%.1f s)\n", len(d.mds), len(d.cs), mounted,
		took.Seconds())
	if whyNot != "" {
		fmt.Fprintf(out, "  no mount: %s\n", whyNot)
	}
	self, err := os.Executable()
	if err != nil {
		self = "pstorage"
	}
	at := func(program string) string { return filepath.Join(filepath.Dir(self), program) }
	var b strings.Builder
	fmt.Fprintf(&b, "\nTry, in another terminal:\n  export %s=%s\n", cluster.EtcEnv, quoted(d.etc))
	fmt.Fprintf(&b, "  %s stat            # health and space\n", quoted(at("pstorage")))
	fmt.Fprintf(&b, "  %s top             # the same, live\n", quoted(at("pstorage")))
	if whyNot == "" {
		image := quoted(filepath.Join(o.mount, "disk.img"))
		fmt.Fprintf(&b, "  truncate -s 4G %s && mkfs.ext4 %s   # a disk image, three copies\n",
			image, image)
		fmt.Fprintf(&b, "  %s file-info /disk.img\n", quoted(at("pstorage")))
	}
	victim := d.cs[len(d.cs)-1].name
	fmt.Fprintf(&b, "  kill -9 $(cat %s)   # lose a chunk server\n", quoted(d.pidFile(victim)))
	fmt.Fprintf(&b, "\nThe data, logs (%s) and the password are in %s.\n"+
		"Ctrl-C stops the cluster; the same command starts it again.\n",
		filepath.Join(d.dir, "log"), d.dir)
	io.WriteString(out, b.String())
}

// quoted returns text for a shell's command line.
func quoted(text string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			strings.ContainsRune("/._-+=:@", r)
	}
	if text != "" && strings.IndexFunc(text, func(r rune) bool { return !plain(r) }) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
