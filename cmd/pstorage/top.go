package main

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

const topEvents = 100 // kept on the screen, newest first

func newTop(a *app) *cobra.Command {
	interval := time.Second
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the cluster: a full-screen view that refreshes",
		Long: `Watch the cluster: a full-screen view that refreshes. The keys:

  c       clients in place of chunk servers, and back
  s, r    next order of the table; the other way round
  /       show only rows and events with this text (Enter: keep, Esc: all)
  e       all events, warnings and faults, or faults only
  Tab     from the table to events, for the arrow keys, and back
  Space   refresh at once
  q       quit

RD/s and WR/s are operations per second, READ and WRITE bytes. RLAT and WLAT are how long
the disk takes for a read, and the journal for a write; Q is how many requests haven't been
answered yet; HIT is the share of reads that came out of the journal or its read cache; LOG
how full it is. Of clients, WRITES is how many files they have the right to write, and IDLE
for how long they have asked the metadata server nothing. When the output
isn't a terminal the view is printed once.`,
		Example: `  pstorage top
  pstorage top --interval 5s`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < 100*time.Millisecond {
				return cli.Usage("--interval %v: at least 100ms are needed", interval)
			}
			return runTop(cmd.Context(), a, interval, cmd.OutOrStdout())
		},
	}
	cmd.Flags().DurationVarP(&interval, "interval", "i", interval, "time between two refreshes")
	a.addOutput(cmd)
	return cmd
}

// topView is what one refresh shows.
type topView struct {
	stat    control.StatDoc
	events  []control.EventDoc // oldest first
	clients control.ClientsDoc
}

// topDoc is what top -o json prints, once.
type topDoc struct {
	Stat    control.StatDoc     `json:"stat"`
	Events  []control.EventDoc  `json:"events"`
	Clients []control.ClientDoc `json:"clients"`
}

func runTop(ctx context.Context, a *app, interval time.Duration, out io.Writer) error {
	conn, err := a.admin(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	view, err := conn.topView(ctx) // errors before the screen is cleared
	if err != nil {
		return err
	}
	file, ok := out.(*os.File)
	if a.output == "json" {
		return a.print(out, topDoc{view.stat, view.events, view.clients.Clients}, nil)
	}
	if !ok || !term.IsTerminal(int(file.Fd())) || !term.IsTerminal(int(os.Stdin.Fd())) {
		_, err := out.Write(render(func(t *table) {
			showStat(t, view.stat)
			t.line("")
			showClients(t, view.clients)
			t.line("")
			showEvents(t, view.events, true)
		}))
		return cli.Fail("print", err, "")
	}
	s := newTopScreen()
	return s.run(ctx, conn, view, interval)
}

func (c *adminConn) topView(ctx context.Context) (topView, error) {
	var v topView
	err := c.get(ctx, "show the state", control.AdminStat, nil, &v.stat)
	if err != nil {
		return v, err
	}
	var doc control.EventsDoc
	err = c.get(ctx, "show events", control.AdminEvents,
		control.EventsArgs{Limit: topEvents, Last: true}, &doc)
	v.events = doc.Events
	if err != nil {
		return v, err
	}
	v.clients, err = c.clients(ctx)
	return v, err
}
