package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/perf/hwflush"
)

const hwflushPort = 2530

type hwflushOptions struct {
	listen  string
	verify  bool
	seconds float64
	size    cli.Size
	sync    string
	client  hwflush.Options
}

func newHWFlushCheck() *cobra.Command {
	o := hwflushOptions{size: 64 << 20, sync: string(hwflush.Fdatasync)}
	cmd := &cobra.Command{
		Use:   "hwflush-check",
		Short: "Check that a disk keeps what it acknowledged through a power cut",
		Long: `Check that a disk keeps what it acknowledged through a power cut. Many disks, controllers
and hypervisors confirm a flush before the data is safe; a replica on such a disk loses
acknowledged writes.

A server (-l) runs on a machine that keeps its power. The client (-s, -d) writes numbered
records to the disk under test, one at a time, flushes each, and reports those that the
disk acknowledged. Cut the power of the client's machine (pull the plug: a reboot or a kill
proves nothing), start it again, and run the client with --verify: what the server knows
of and the disk hasn't got was lost, and the exit status is 1.

Do it several times, and with other load on the disk. The client also says how many
records a second became durable: a number that no such disk can reach means that flushes
aren't carried out, unless a cache with a battery explains it. What it writes in DIR, the file
hwflush-check.data, stays there: delete it when you are done.`,
		Example: `  pstorage hwflush-check -l 10.30.100.9                       # on another machine
  pstorage hwflush-check -s 10.30.100.9 -d /pstorage/disk1   # on the machine under test
  # pull its plug while that runs; switch it on again; then:
  pstorage hwflush-check -s 10.30.100.9 -d /pstorage/disk1 --verify`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return hwflushCheck(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	host, _ := os.Hostname()
	flags := cmd.Flags()
	flags.StringVarP(&o.listen, "listen", "l", "",
		fmt.Sprintf("be the server, at `ADDR[:PORT]` (default port %d)", hwflushPort))
	flags.StringVarP(&o.client.Server, "server", "s", "", "be a client of the server at `ADDR[:PORT]`")
	flags.StringVarP(&o.client.Path, "disk", "d", "",
		"`DIR` on the disk under test, or an empty block device")
	flags.BoolVar(&o.verify, "verify", false, "after the power cut: compare the disk with the server")
	flags.StringVar(&o.client.Name, "name", "",
		"`NAME` by which the server knows this disk (default: this host's name and -d)")
	flags.Var(&o.size, "size", "of the area that is written, round and round")
	flags.StringVar(&o.sync, "sync", o.sync, "`HOW` a record is made durable: fdatasync or dsync")
	flags.Float64Var(&o.seconds, "time", 0, "stop after so many `SECONDS`; 0: when interrupted")
	cmd.PreRun = func(*cobra.Command, []string) {
		if o.client.Name == "" {
			o.client.Name = defaultName(host, o.client.Path)
		}
	}
	return cmd
}

// defaultName names a disk under test, in the 64 bytes that a name may have.
func defaultName(host, path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	name := host + ":" + path
	return name[max(0, len(name)-64):]
}

func hwflushCheck(ctx context.Context, o hwflushOptions, out io.Writer) error {
	isClient := o.client.Server != "" || o.client.Path != "" || o.verify
	switch {
	case o.listen != "" && isClient:
		return cli.Usage("-l is for the server; -s, -d and --verify are for the client")
	case o.listen != "":
		return hwflushServe(ctx, withPort(o.listen), out)
	case o.client.Server == "" || o.client.Path == "":
		return cli.Usage("give -l ADDR for the server, or -s ADDR and -d DIR for the client")
	case o.seconds < 0:
		return cli.Usage("--time %g: must not be negative", o.seconds)
	}
	if o.sync != string(hwflush.Fdatasync) && o.sync != string(hwflush.Dsync) {
		return cli.Usage("--sync %s: it is fdatasync or dsync", o.sync)
	}
	o.client.Server = withPort(o.client.Server)
	o.client.Size, o.client.Sync = int64(o.size), hwflush.Sync(o.sync)
	o.client.Time = time.Duration(o.seconds * float64(time.Second))
	if o.verify {
		return hwflushVerify(ctx, o.client, out)
	}
	return hwflushWrite(ctx, o.client, out)
}

// withPort adds the port if addr has none.
func withPort(addr string) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	return net.JoinHostPort(addr, strconv.Itoa(hwflushPort))
}

func hwflushServe(ctx context.Context, addr string, out io.Writer) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return cli.Fail("listen at "+addr, cli.Plain(rootCause(err)), advice(err))
	}
	fmt.Fprintf(out, "waiting for clients at %s; Ctrl-C ends it, and forgets what it knows\n",
		l.Addr())
	s := hwflush.NewServer(func(format string, args ...any) {
		// Names come from the network.
		line := clean(fmt.Sprintf(format, args...))
		fmt.Fprintf(out, "%s %s\n", time.Now().Format(time.TimeOnly), line)
	})
	return cli.Fail("serve at "+addr, s.Serve(ctx, l), "")
}

func hwflushWrite(ctx context.Context, o hwflush.Options, out io.Writer) error {
	o.Progress = func(s hwflush.Stats) {
		fmt.Fprintf(out, "%6.0f s: %d records acknowledged by the disk, %.0f/s\n", s.Seconds,
			s.Acknowledged, s.Rate)
	}
	fmt.Fprintf(out, "writing to %s as %q; cut the power at any time, Ctrl-C ends it\n", o.Path,
		o.Name)
	stats, err := hwflush.Run(ctx, o)
	if err != nil {
		return cli.Fail("check "+o.Path, err, hwflushAdvice(err))
	}
	fmt.Fprintf(out, "%d records in %.1f s, %.0f/s, %d confirmed by the server\n",
		stats.Acknowledged, stats.Seconds, stats.Rate, stats.Reported)
	disks, _ := disksOf(hostSystem, o.Path)
	for _, d := range disks {
		if why := hwflush.Implausible(stats.Rate, d.rotating && !d.virtual); why != "" {
			fmt.Fprintf(out, "warning: %s (%s): are flushes carried out? Only a power cut tells\n", why,
				d.name)
			break
		}
	}
	return nil
}

func hwflushVerify(ctx context.Context, o hwflush.Options, out io.Writer) error {
	v, err := hwflush.Verify(ctx, o)
	if err != nil {
		return cli.Fail("verify "+o.Path, err, hwflushAdvice(err))
	}
	fmt.Fprintf(out, "acknowledged up to record %d; newest on the disk: %d; compared: %d\n", v.Last,
		v.Newest, v.Compared)
	if v.Lost == 0 {
		fmt.Fprintf(out, "OK: nothing that %s acknowledged is lost\n", o.Path)
		return nil
	}
	return cli.Fail("verify "+o.Path, errors.New(lossText(v)),
		"don't keep data on this disk as it is: turn its write cache off (hdparm -W 0, or the "+
			"controller's or hypervisor's setting) and check again")
}

// hwflushAdvice says what to do when the client can't work.
func hwflushAdvice(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return "start it on a machine that keeps its power: pstorage hwflush-check -l ADDR"
	}
	return advice(err)
}

// lossText describes a loss for people.
func lossText(v hwflush.Verdict) string {
	text := fmt.Sprintf("LOST: %d of %d records that it acknowledged aren't there, from record %d on",
		v.Lost, v.Compared, v.First)
	if v.Damaged > 0 {
		text += fmt.Sprintf(" (in %d places there is no intact record)", v.Damaged)
	}
	return text
}
