package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

// rmCSOptions are the arguments of rm-cs.
type rmCSOptions struct {
	control.RmCSArgs
	wait bool
}

func newRmCS(a *app) *cobra.Command {
	var o rmCSOptions
	cmd := &cobra.Command{
		Use:   "rm-cs CSID...",
		Short: "Remove chunk servers from the cluster, after their chunks were moved to others",
		Long: `Remove chunk servers from the cluster, after their chunks were moved to others. They take
nothing new from now on (state releasing) and serve what they have until it is elsewhere;
then they are dropped, their processes end, and their directories may be deleted. That
goes on whatever happens to this command. If there is no place for the chunks it waits
until there is: add chunk servers, or call it off with --cancel. A copy that is missing
is restored before anything is moved.

With --force they are dropped at once, and their chunks are restored from other copies.
That is refused if a chunk had no other copy that is available.`,
		Example: `  pstorage rm-cs 3               # begin, and see how far it is with pstorage stat
  pstorage rm-cs 3 --wait        # wait until it is done
  pstorage rm-cs 3 --cancel      # call it off
  pstorage rm-cs 3 4 --force     # they are lost anyway`,
		Args: func(cmd *cobra.Command, args []string) error { return o.parse(args) },
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runRmCS(cmd.Context(), a, o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.wait, "wait", "w", false, "wait until they are dropped, and show how far it is")
	f.BoolVar(&o.Cancel, "cancel", false, "call a removal off; what was moved stays where it is")
	f.BoolVarP(&o.Force, "force", "f", false,
		"drop them at once: there are fewer copies until those are restored")
	f.BoolVar(&o.LoseData, "accept-data-loss", false,
		"with --force: also if that makes the last available copies unavailable")
	a.addOutput(cmd)
	return cmd
}

func (o *rmCSOptions) parse(args []string) error {
	if len(args) == 0 {
		return cli.Usage("which chunk server? give its number; pstorage list-services has them")
	}
	var err error
	if o.CS, err = parseCSIDs(args); err != nil {
		return err
	}
	switch {
	case o.Cancel && o.Force:
		return cli.Usage("--cancel and --force exclude each other")
	case o.Cancel && o.wait:
		return cli.Usage("--cancel has nothing to --wait for")
	case o.LoseData && !o.Force:
		return cli.Usage("--accept-data-loss goes with --force")
	}
	return nil
}

// parseCSIDs reads the numbers of chunk servers: 3, or cs3.
func parseCSIDs(args []string) (ids []uint32, err error) {
	for _, arg := range args {
		id, err := strconv.ParseUint(strings.TrimPrefix(arg, "cs"), 10, 32)
		if err != nil || id == 0 {
			return nil, cli.Usage("%q is not the number of a chunk server; pstorage list-services has "+
				"them", arg)
		}
		ids = append(ids, uint32(id))
	}
	return ids, nil
}

func runRmCS(ctx context.Context, a *app, o rmCSOptions, out io.Writer) error {
	conn, err := a.admin(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	what := "remove " + csList(o.CS)
	var doc control.RmCSDoc
	if err := conn.get(ctx, what, control.AdminRmCS, o.RmCSArgs, &doc); err != nil {
		return err
	}
	if !o.wait {
		return a.print(out, doc, func(t *table) { showRmCS(t, doc, o) })
	}
	progress := &rmProgress{waitLine: newWaitLine(out, a.output == "json")}
	for !dropped(doc) {
		progress.show(time.Now(), doc)
		select {
		case <-ctx.Done():
			progress.end()
			return cli.Failf("wait for the removal", "interrupted",
				"it goes on; see pstorage stat, or call it off with pstorage rm-cs --cancel")
		case <-time.After(rmPoll):
		}
		o.Query = true
		next := control.RmCSDoc{}
		if err := conn.get(ctx, what, control.AdminRmCS, control.RmCSArgs{CS: o.CS, Query: true},
			&next); err != nil {
			if ctx.Err() == nil && progress.patient(time.Now(), err) {
				continue // a leader may be being elected
			}
			if ctx.Err() == nil {
				progress.end()
				return err
			}
			continue
		}
		progress.failing = time.Time{}
		doc = next
		if left := cancelled(doc); left != "" {
			progress.end()
			return cli.Failf(what, left+" was called off by somebody else", "")
		}
	}
	progress.end()
	return a.print(out, doc, func(t *table) { showRmCS(t, doc, o) })
}

const (
	rmPoll     = 500 * time.Millisecond
	rmPatience = 30 * time.Second // without an answer of the metadata servers
)

func dropped(doc control.RmCSDoc) bool {
	for _, c := range doc.CS {
		if c.Status != control.CSDropped {
			return false
		}
	}
	return true
}

// cancelled names a server that isn't being removed any more.
func cancelled(doc control.RmCSDoc) string {
	for _, c := range doc.CS {
		if c.Drain == nil && c.Status != control.CSDropped && c.Status != control.CSFailed {
			return fmt.Sprintf("the removal of cs %d", c.ID)
		}
	}
	return ""
}

func showRmCS(t *table, doc control.RmCSDoc, o rmCSOptions) {
	for _, c := range doc.CS {
		switch {
		case c.Status == control.CSDropped && o.Force:
			t.line("cs %d is dropped. Its chunks are restored from other copies: see pstorage stat.", c.ID)
		case c.Status == control.CSDropped:
			t.line("cs %d is removed: nothing is left on it; its directory %s on %s may be deleted.", c.ID,
				clean(c.Path), clean(c.Host))
		case o.Cancel:
			t.line("cs %d stays: it is %s.", c.ID, clean(csStatus(c)))
		default:
			t.line("cs %d: %s", c.ID, drainLine(c))
		}
	}
}

// drainLine is how far a removal is, in one line.
func drainLine(c control.CSDoc) string {
	d := c.Drain
	if d == nil {
		return clean(c.Status)
	}
	text := fmt.Sprintf("%d chunks left, %d being moved", d.Left, d.Moving)
	if d.Rate > 0 {
		text += fmt.Sprintf(", %.1f/s", d.Rate)
	}
	if d.ETAMs > 0 {
		text += ", about " + (time.Duration(d.ETAMs) * time.Millisecond).Round(time.Second).String() +
			" left"
	}
	if d.Waiting > 0 {
		text += fmt.Sprintf("; %d must be restored first", d.Waiting)
	}
	if d.NoPlace > 0 {
		text += fmt.Sprintf("; no place for %d: they wait until a chunk server is added", d.NoPlace)
	}
	return text
}

// rmProgress shows how far a removal is.
type rmProgress struct {
	waitLine
	failing time.Time // since when the metadata servers don't answer
}

func (p *rmProgress) show(now time.Time, doc control.RmCSDoc) {
	var parts []string
	for _, c := range doc.CS {
		parts = append(parts, fmt.Sprintf("cs %d: %s", c.ID, drainLine(c)))
	}
	p.waitLine.show(now, strings.Join(parts, " | "))
}

// patient says whether to go on after an error.
func (p *rmProgress) patient(now time.Time, _ error) bool {
	if p.failing.IsZero() {
		p.failing = now
	}
	return now.Sub(p.failing) < rmPatience
}
