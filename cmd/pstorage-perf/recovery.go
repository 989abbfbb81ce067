package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/perf"
)

func newRecovery() *cobra.Command {
	o := perf.RecoveryOptions{Progress: os.Stderr}
	var asJSON bool
	var mbps, outage float64
	data, written, span := cli.Size(4<<30), cli.Size(1<<30), cli.Size(64<<30)
	fill := cli.Size(16 << 20)
	cmd := &cobra.Command{
		Use:   "recovery",
		Short: "How fast lost copies are made anew, on slow disks, and what clients notice of it",
		Long: `Recovery starts chunk servers on disks of a chosen speed (loop devices behind the kernel's
block I/O throttle, as root), takes one of the servers away, and measures until every chunk has all
its copies again. A disk of 100 MB/s reads 50 and writes 50 MB/s at the same time. The yardstick is
what fio gets out of the disks that are left, all of them reading and writing: each copied byte is
read once and written once.

Rows, each with a cluster of its own:
` + rowList(perf.RecoveryRows()),
		Example: `  pstorage-perf recovery --json
  pstorage-perf recovery --rows idle --config recovery.per-server=4
  pstorage-perf recovery --rows resync --written 128M --span 8G --outage 10`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Disk, o.Data, o.Fill = uint64(mbps*1e6), int64(data), int64(fill)
			o.Outage = time.Duration(outage * float64(time.Second))
			o.Written, o.Span = int64(written), int64(span)
			report, err := perf.Recovery(cmd.Context(), o)
			return finishReport(cmd, report, asJSON, "measure recovery", err)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&o.Rows, "rows", nil, "`NAMES` of rows, separated by commas (default all)")
	flags.StringVar(&o.Dir, "dir", "", "directory for everything (default /var/tmp)")
	flags.IntVar(&o.CS, "cs", 8, "chunk servers in rows idle and load")
	flags.Float64Var(&mbps, "mbps", 100, "MB per second of each disk, reads and writes together")
	flags.Var(&data, "data", "user data in rows idle and load, three copies of each")
	flags.Var(&fill, "fill", "of them in each chunk")
	flags.IntVar(&o.Depth, "qd", 32, "reads of the client in flight in row load")
	flags.Float64Var(&outage, "outage", 30, "seconds, at least, in row resync")
	flags.Var(&written, "written", "in the outage, in blocks of 4K")
	flags.Var(&span, "span", "of the file that they are spread over")
	flags.StringToStringVar(&o.Config, "config", nil, "`KEY=VALUE` of the cluster's configuration")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
