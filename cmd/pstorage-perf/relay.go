package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"pstorage/perf"
)

func newRelay() *cobra.Command {
	var asJSON bool
	var seconds float64
	rounds := 3
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Measure ways to pass parts of a write on: copy, SEND_ZC, splice and tee",
		Long: `Measure what it costs a chunk server in the middle of a chain to pass parts on to the
next one while it also gets them into its own memory, over the loopback interface: for
each size and method the throughput, and the CPU time of the hop per MiB (without
source and sink). Rounds are interleaved; the figures are medians.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var all []perf.RelayResult
			out := cmd.OutOrStdout()
			if !asJSON {
				fmt.Fprintf(out, "%9s  %-12s %10s %14s\n", "part", "method", "MB/s", "CPU µs/MiB")
			}
			for size := 4 << 10; size <= 1<<20; size *= 4 {
				results, err := perf.RelayRow(cmd.Context(), size, rounds,
					time.Duration(seconds*float64(time.Second)))
				if err != nil {
					return err
				}
				all = append(all, results...)
				if asJSON {
					continue
				}
				for _, r := range results {
					fmt.Fprintf(out, "%9d  %-12s %10.0f %14.0f\n", r.PartSize, r.Method, r.MBps, r.CPUPerMiB)
				}
			}
			if asJSON {
				return json.NewEncoder(out).Encode(all)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	flags.Float64Var(&seconds, "time", 0.3, "seconds for each method, size and round")
	flags.IntVar(&rounds, "rounds", rounds, "rounds")
	return cmd
}
