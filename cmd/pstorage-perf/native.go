package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/perf"
)

func newNative() *cobra.Command {
	var o perf.NativeOptions
	var asJSON, layout bool
	var seconds, warm float64
	w := perf.Workload{}
	size, block := cli.Size(1<<30), cli.Size(4096)
	cmd := &cobra.Command{
		Use:   "native",
		Short: "Load a file of a running cluster through the client library",
		Long: `Native keeps a number of operations on one file in flight, from inside the client's
event loop. A read of a file that isn't there, or is too short, writes it in full first.

CPU time per operation is that of this process alone.`,
		Example: `  pstorage-perf native -c prod --file /bench --size 4G --rw randread --bs 4k --qd 32`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w.Size, w.BlockSize = int64(size), int(block)
			w.Time = time.Duration(seconds * float64(time.Second))
			w.Warm = time.Duration(warm * float64(time.Second))
			if err := w.Validate(); err != nil {
				return cli.Usage("%v", err)
			}
			n, err := perf.OpenNative(cmd.Context(), o)
			if err != nil {
				return cli.Fail("", err, "")
			}
			defer n.Close()
			if layout || !w.Write() && n.Size() < w.Size {
				if _, err := n.Layout(cmd.Context(), w.Size); err != nil {
					return cli.Fail("lay out "+o.Path, err, "")
				}
			}
			r, err := n.Run(cmd.Context(), w)
			if err != nil {
				return cli.Fail("measure "+o.Path, err, "")
			}
			return printResult(cmd.OutOrStdout(), r, asJSON)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&o.Cluster, "cluster", "c", "", "`NAME` of the cluster")
	flags.StringVar(&o.Path, "file", "/bench", "`PATH` in the cluster; made if it isn't there")
	flags.Var(&size, "size", "of the part of the file that is used")
	flags.StringVar(&w.RW, "rw", "randread", "randread, randwrite, read or write")
	flags.Var(&block, "bs", "size of one operation")
	flags.IntVar(&w.Depth, "qd", 32, "operations in flight")
	flags.Float64Var(&seconds, "time", 10, "seconds; 0: one pass, for read and write")
	flags.Float64Var(&warm, "warm", 0, "seconds before those, which aren't counted")
	flags.BoolVar(&layout, "layout", false, "write the file in full first, in any case")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printResult(out io.Writer, r perf.Result, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	_, err := fmt.Fprintf(out, "%.0f IOPS, %.1f MB/s, %d operations in %.1f s\n"+
		"latency µs: mean %.0f, p50 %.0f, p99 %.0f, p99.9 %.0f, max %.0f\n"+
		"CPU of the client: %.1f µs per operation\n",
		r.IOPS, r.MBps, r.Ops, r.Seconds, r.Latency.Mean, r.Latency.P50, r.Latency.P99,
		r.Latency.P999, r.Latency.Max, r.CPUPerOp)
	return err
}
