package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/perf"
)

func newQuick() *cobra.Command {
	o := perf.QuickOptions{Progress: os.Stderr}
	var asJSON bool
	var seconds float64
	var least map[string]string
	size := cli.Size(1 << 30)
	cmd := &cobra.Command{
		Use:   "quick",
		Short: "The main figures in under a minute, beside raw fio on the same disk",
		Long: `Quick starts a cluster of its own (one metadata server, three chunk servers) in a
temporary directory, lays out a file, and measures 4 KiB random reads and writes at depths 1, 32 and
128 through the client library, in turns with raw fio (io_uring, O_DIRECT) on a file beside it. It
prints medians and their ratios.`,
		Example: `  pstorage-perf quick
  pstorage-perf quick --json --rounds 5
  pstorage-perf quick --min randread_q32=0.4 --min randwrite_q32=0.2`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			bounds, err := parseLeast(least)
			if err != nil {
				return err
			}
			o.Each = time.Duration(seconds * float64(time.Second))
			o.Size = int64(size)
			report, err := perf.Quick(cmd.Context(), o)
			if err != nil {
				return cli.Fail("measure", err, "")
			}
			write := report.WriteTable
			if asJSON {
				write = report.WriteJSON
			}
			if err := write(cmd.OutOrStdout()); err != nil {
				return err
			}
			lines, ok := report.Check(bounds)
			for _, line := range lines {
				fmt.Fprintln(cmd.ErrOrStderr(), line)
			}
			if !ok {
				return cli.Failf("compare with what was asked for", "too low", "")
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Dir, "dir", "", "directory on the disk to be measured (default /var/tmp)")
	flags.IntVar(&o.Rounds, "rounds", 3, "interleaved rounds")
	flags.IntVar(&o.CS, "cs", 3, "chunk servers")
	flags.Float64Var(&seconds, "seconds", 0.9, "of one measurement")
	flags.Var(&size, "size", "of the file")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	flags.StringArrayVar(&o.DevArgs, "dev-arg", nil,
		"one more `ARGUMENT` of pstorage dev (default there: --log-size 1G)")
	flags.StringToStringVar(&least, "min", nil, "`FIGURE=VALUE`: fail if the figure is lower")
	return cmd
}

func parseLeast(texts map[string]string) (map[string]float64, error) {
	least := map[string]float64{}
	for name, text := range texts {
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, cli.Usage("--min %s=%s: not a number", name, text)
		}
		least[name] = value
	}
	return least, nil
}
