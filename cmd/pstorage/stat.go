package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

func newStat(a *app) *cobra.Command {
	wait, patience := false, time.Duration(0)
	cmd := &cobra.Command{
		Use:   "stat",
		Short: "Show the cluster's health, space, servers and chunks",
		Long: `Show the cluster's health, space, servers and chunks. With --wait, wait until it is
healthy: all metadata servers answer and vote, all chunk servers serve, every chunk has its copies.
What is waited for is shown meanwhile, with the rate of recovery and the time left.`,
		Example: `  pstorage stat
  pstorage stat --wait --timeout 10m      # before the next node is restarted
  pstorage -c test_cluster stat -o json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !wait && cmd.Flags().Changed("timeout") {
				return cli.Usage("--timeout goes with --wait")
			}
			if wait {
				return waitHealthy(cmd.Context(), a, patience, cmd.OutOrStdout(), cmd.ErrOrStderr())
			}
			return show(cmd, a, "show the state", control.AdminStat, nil, showStat)
		},
	}
	cmd.Flags().BoolVarP(&wait, "wait", "w", false, "wait until the cluster is healthy")
	cmd.Flags().DurationVar(&patience, "timeout", 0, "with --wait: fail after so long; 0: never")
	a.addOutput(cmd)
	return cmd
}

func showStat(t *table, doc control.StatDoc) {
	t.line("Cluster %s: %s", clean(doc.Cluster), doc.Health)
	for _, reason := range doc.Reasons {
		t.line("  %s", clean(reason))
	}
	t.line("Space: %s of %s free for data (%s of %s on disks)",
		size(doc.Space.LogicalFree), size(doc.Space.LogicalTotal),
		size(doc.Space.Free), size(doc.Space.Total))
	if doc.Space.Limit > 0 {
		t.line("Capacity limit: %s of %s allocated", size(doc.Space.Allocated), size(doc.Space.Limit))
	}
	t.line("Files: %d", doc.Files)
	t.line("Chunks: %s", chunkLine(doc))
	t.line("")
	showMDS(t, doc.MDS)
	t.line("")
	showCS(t, doc.CS)
}

// chunkLine names the number of chunks and what is wrong with how many.
func chunkLine(doc control.StatDoc) string {
	c := doc.Chunks
	parts := []string{fmt.Sprintf("%d, %d healthy", c.Total, c.Healthy)}
	for _, state := range []struct {
		n    uint64
		name string
	}{
		{c.Degraded, "degraded"}, {c.BelowMinimum, "below the minimum (writes wait)"},
		{c.Urgent, "urgent (one copy left)"}, {c.Offline, "offline"},
		{c.Recovering, "being copied"}, {doc.Moves.Active, "being moved"},
		{c.Fallback, "in a finer failure domain than asked for"},
	} {
		if state.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", state.n, state.name))
		}
	}
	return strings.Join(parts, ", ")
}

func showMDS(t *table, servers []control.MDSDoc) {
	t.row("MDS", "ADDRESS", "ROLE")
	for _, m := range servers {
		role := "follower"
		switch {
		case m.Leader:
			role = "leader"
		case m.Down:
			role = "down"
		case !m.Voter:
			role = "joining"
		}
		t.row(m.ID, m.Addr, role)
	}
}

func showCS(t *table, servers []control.CSDoc) {
	if len(servers) == 0 {
		t.line("No chunk server yet: make one with pstorage make-cs.")
		return
	}
	t.row("CS", "STATUS", "ADDRESS", "HOST", "TIER", "USED", "CAPACITY", "CHUNKS", "READ/s",
		"WRITE/s", "JOURNAL", "DIRECTORY")
	for _, c := range servers {
		t.row(c.ID, csState(c), c.Addr, c.Host, c.Tier, size(c.Used), size(c.Capacity), c.Chunks,
			rate(c.ReadRate), rate(c.WriteRate), journalFill(c), c.Path)
	}
	for _, c := range servers { // not in the table, whose columns they would push off the screen
		if c.Failed != "" {
			t.line("cs %d %s: %s", c.ID, c.Status, clean(c.Failed))
		}
	}
}

// csState is a chunk server's status in a word or three.
func csState(c control.CSDoc) string {
	c.Failed = ""
	return csStatus(c)
}

// csStatus is the status with what failed.
func csStatus(c control.CSDoc) string {
	switch {
	case c.Failed != "":
		return c.Status + ": " + c.Failed
	case c.Status == control.CSReleasing && c.Drain != nil:
		return fmt.Sprintf("%s: %d left", c.Status, c.Drain.Left)
	}
	return c.Status
}

func rate(perSecond float64) string { return fmt.Sprintf("%.0f", perSecond) }

// journalFill is how full a chunk server's log is.
func journalFill(c control.CSDoc) string {
	if c.Stats == nil || c.Stats.LogSize == 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", 100*c.Stats.LogUsed/c.Stats.LogSize)
}
