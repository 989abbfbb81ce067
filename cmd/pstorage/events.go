package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

type eventOptions struct {
	after  uint64
	limit  int
	follow bool
}

const (
	eventPage  = 1000        // events of one answer
	followPoll = time.Second // between two questions
)

func newGetEvent(a *app) *cobra.Command {
	var o eventOptions
	cmd := &cobra.Command{
		Use:   "get-event",
		Short: "Show the cluster's events",
		Example: `  pstorage get-event -n 20
  pstorage get-event --follow`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.limit < 1 || o.limit > eventPage {
				return cli.Usage("-n %d: 1 to %d are possible", o.limit, eventPage)
			}
			return getEvents(cmd.Context(), a, o, cmd.Flags().Changed("after"), cmd.OutOrStdout(),
				cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.IntVarP(&o.limit, "number", "n", 100, "show at most `N` events, the newest")
	flags.Uint64Var(&o.after, "after", 0, "only events with a number above `ID`, the oldest first")
	flags.BoolVarP(&o.follow, "follow", "f", false,
		"go on with new events as they come, until interrupted (with json: one per line)")
	a.addOutput(cmd)
	return cmd
}

// getEvents prints events. One that follows them sees elections and restarts of metadata servers
// through; a refusal is the end, as it doesn't change by itself.
func getEvents(ctx context.Context, a *app, o eventOptions, after bool,
	out, messages io.Writer) error {
	conn, err := a.admin(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	args := control.EventsArgs{Limit: o.limit, Last: !after, After: o.after}
	var doc control.EventsDoc
	if err := conn.get(ctx, "show events", control.AdminEvents, args, &doc); err != nil {
		return err
	}
	if !o.follow {
		return a.print(out, doc, func(t *table) { showEvents(t, doc.Events, true) })
	}
	header, silent := true, false
	for {
		if err := a.printFollowed(out, doc.Events, header); err != nil {
			return err
		}
		header = header && len(doc.Events) == 0
		if n := len(doc.Events); n > 0 {
			o.after = doc.Events[n-1].ID
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(followPoll):
		}
		doc = control.EventsDoc{}
		args = control.EventsArgs{After: o.after, Limit: eventPage}
		err := conn.get(ctx, "show events", control.AdminEvents, args, &doc)
		switch {
		case ctx.Err() != nil:
			return nil
		case dataplane.KindOf(err) == dataplane.Denied,
			dataplane.KindOf(err) == dataplane.WrongCluster:
			return err
		case err != nil && !silent:
			fmt.Fprintf(messages, "no answer, trying again: %s\n", cli.OneLine(err))
		}
		silent = err != nil
	}
}

// printFollowed prints events as they come: rows, or with json one document per line.
func (a *app) printFollowed(out io.Writer, events []control.EventDoc, header bool) error {
	if a.output != "json" {
		_, err := out.Write(render(func(t *table) { showEvents(t, events, header) }))
		return cli.Fail("print", err, "")
	}
	encoder := json.NewEncoder(out)
	for _, e := range events {
		if err := encoder.Encode(e); err != nil {
			return cli.Fail("print", err, "")
		}
	}
	return nil
}

func showEvents(t *table, events []control.EventDoc, header bool) {
	if header && len(events) > 0 {
		t.row("ID", "TIME", "SEVERITY", "SOURCE", "CODE", "MESSAGE")
	}
	for _, e := range events {
		t.row(e.ID, when(e.TimeNs), e.Severity, e.Source, e.Code, e.Message)
	}
}
