package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/perf/peers"
)

func newPeers() *cobra.Command {
	o := peers.Options{Progress: os.Stderr}
	var asJSON bool
	var seconds float64
	size := cli.Size(512 << 20)
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "Other storage systems beside pstorage: same workloads, same disk, three copies",
		Long: `Peers measures pstorage and other storage systems with the same workloads, each beside raw
fio on the same disk in the same rounds. The systems run one after the other, so ratios compare, not
IOPS; fio drives the others, pstorage has its own load generator. All servers of a system are on
this machine, in namespaces of its own (as root); nothing of it is left behind. One whose Debian
packages aren't installed (make peers-install) is named with the reason, and the others are
measured.

Systems, and what each is measured as:
` + rowList(peers.Names()),
		Example: `  pstorage-perf peers
  pstorage-perf peers --only pstorage,moosefs --json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Each, o.Size = time.Duration(seconds*float64(time.Second)), int64(size)
			report, err := peers.Run(cmd.Context(), o)
			if err != nil {
				return cli.Fail("measure other storage systems", err, "")
			}
			return printReport(cmd, report, asJSON)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&o.Only, "only", nil, "`NAMES` of systems, separated by commas (default all)")
	flags.StringVar(&o.Dir, "dir", "", "directory on the disk to be measured (default /var/tmp)")
	flags.IntVar(&o.Rounds, "rounds", 3, "interleaved rounds")
	flags.Float64Var(&seconds, "seconds", 1, "of one measurement")
	flags.Var(&size, "size", "of the files")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
