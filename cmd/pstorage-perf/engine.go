package main

import (
	"os"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/perf"
)

func newEngine() *cobra.Command {
	o := perf.EngineOptions{Progress: os.Stderr}
	var asJSON bool
	var seconds, fill float64
	log, set := cli.Size(1<<30), cli.Size(1<<30)
	replay, store := cli.Size(4<<30), cli.Size(1<<40)
	cmd := &cobra.Command{
		Use:   "engine",
		Short: "Figures of the storage engine on emulated disks, beside raw fio on the same ones",
		Long: `Engine measures one chunk server and its disks, each figure beside fio on the same disk in
the same minutes. An HDD is emulated by a loop device with a limit on its operations, an SSD by one
without (root is needed for all rows but fast). Each row makes its own disks and servers in a
temporary directory, takes one to two minutes with default sizes, and leaves nothing behind.

Rows:
` + rowList(perf.EngineRows()),
		Example: `  pstorage-perf engine --rows fast
  pstorage-perf engine --rows hddwrite --log 256M --set 256M
  pstorage-perf engine --rows replay --replay-log 1G --rounds 1
  pstorage-perf engine --rows fast --profile /tmp/profiles    # then: perf report -i FILE`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Each = time.Duration(seconds * float64(time.Second))
			o.Fill = time.Duration(fill * float64(time.Second))
			o.Log, o.Set, o.Replay, o.Store = int64(log), int64(set), int64(replay), int64(store)
			report, err := perf.Engine(cmd.Context(), o)
			return finishReport(cmd, report, asJSON, "measure the storage engine", err)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&o.Rows, "rows", nil, "`NAMES` of rows, separated by commas (default all)")
	flags.StringVar(&o.Dir, "dir", "", "directory for everything (default /var/tmp)")
	flags.IntVar(&o.Rounds, "rounds", 3, "interleaved rounds")
	flags.Float64Var(&seconds, "seconds", 4, "of one measurement")
	flags.Uint64Var(&o.HDD, "hdd-iops", 200, "operations per second of the emulated HDD")
	flags.Var(&log, "log", "of the chunk server, in all rows but replay")
	flags.Var(&set, "set", "working set, in all rows but rss and replay")
	flags.Float64Var(&fill, "fill", 60, "most seconds to fill a log before a measurement")
	flags.Var(&replay, "replay-log", "log in row replay")
	flags.Var(&store, "store", "sparse store in row rss")
	flags.StringVar(&o.Profile, "profile", "", "record profiles of the chunk server in `DIR`")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
