package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/perf"
)

func newFlip() *cobra.Command {
	var dir, glob, pattern string
	var dryRun bool
	var most int
	var spread cli.Size
	cmd := &cobra.Command{
		Use:   "flip",
		Short: "Damage stored data on purpose: flip one bit of a pattern in files below a directory",
		Long: `Flip finds a pattern in the files below a directory and inverts the lowest bit of its first
byte, as a bad disk would. Stop the process that owns the files first. It fails if the pattern isn't
there.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			limit := most
			if spread > 0 {
				limit = 0 // the first ones may be too close to each other
			}
			places, err := perf.FindPattern(dir, glob, []byte(pattern), limit)
			if err != nil {
				return err
			}
			if len(places) == 0 {
				return fmt.Errorf("no %q in the files below %s", pattern, dir)
			}
			places = perf.Sparse(places, int64(spread))
			if most > 0 && len(places) > most {
				places = places[:most]
			}
			what := "would flip"
			if !dryRun {
				what = "flipped"
				if err := perf.Flip(places); err != nil {
					return err
				}
			}
			for _, p := range places {
				fmt.Fprintf(cmd.OutOrStdout(), "%s a bit of %s at %d\n", what, p.Path, p.Offset)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&dir, "dir", "", "`DIR` to search")
	flags.StringVar(&glob, "glob", "", "only files whose name matches this `PATTERN`")
	flags.StringVar(&pattern, "pattern", "", "`TEXT` to find, at least 8 bytes")
	flags.BoolVar(&dryRun, "dry-run", false, "only say where it is")
	flags.IntVar(&most, "max", 0, "at most this many places; 0: all")
	flags.Var(&spread, "spread", "only places at least this many bytes behind the one before")
	_ = cmd.MarkFlagRequired("dir")
	_ = cmd.MarkFlagRequired("pattern")
	return cmd
}
