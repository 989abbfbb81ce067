package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sort"
	"time"

	"github.com/gdamore/tcell/v2"
	"github.com/rivo/tview"
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
		Long: `Watch the cluster: a full-screen view that refreshes. Keys: q quits, s changes the order
of the chunk servers, Space refreshes at once, the arrow keys scroll, Tab switches
between chunk servers and events. When the output isn't a terminal the view is printed
once.`,
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
	stat   control.StatDoc
	events []control.EventDoc // oldest first
}

// topDoc is what top -o json prints, once.
type topDoc struct {
	Stat   control.StatDoc    `json:"stat"`
	Events []control.EventDoc `json:"events"`
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
		return a.print(out, topDoc{view.stat, view.events}, nil)
	}
	if !ok || !term.IsTerminal(int(file.Fd())) || !term.IsTerminal(int(os.Stdin.Fd())) {
		_, err := out.Write(render(func(t *table) {
			showStat(t, view.stat)
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
	return v, err
}

// topOrders are the orders of chunk servers that the key s goes through.
var topOrders = []struct {
	name string
	less func(a, b *control.CSDoc) bool
}{
	{"id", func(a, b *control.CSDoc) bool { return a.ID < b.ID }},
	{"reads", func(a, b *control.CSDoc) bool { return a.ReadRate > b.ReadRate }},
	{"writes", func(a, b *control.CSDoc) bool { return a.WriteRate > b.WriteRate }},
	{"used", func(a, b *control.CSDoc) bool { return a.Used > b.Used }},
	{"status", func(a, b *control.CSDoc) bool { return a.Status > b.Status }},
}

// topScreen is the terminal. Its fields belong to tview's goroutine once it runs.
type topScreen struct {
	app    *tview.Application
	head   *tview.TextView
	cs     *tview.Table
	events *tview.TextView
	foot   *tview.TextView

	view  topView
	err   error // of the last refresh
	order int   // of topOrders
	again chan struct{}
}

func newTopScreen() *topScreen {
	// The terminal's own colours, so that it is readable on dark and on light ones. Parts of the
	// screen take them when they are made.
	tview.Styles.PrimitiveBackgroundColor = tcell.ColorDefault
	tview.Styles.PrimaryTextColor = tcell.ColorDefault
	s := &topScreen{app: tview.NewApplication(), head: tview.NewTextView(), cs: tview.NewTable(),
		events: tview.NewTextView(), foot: tview.NewTextView(), again: make(chan struct{}, 1)}
	s.head.SetDynamicColors(true)
	s.events.SetDynamicColors(true)
	s.foot.SetDynamicColors(true)
	s.events.SetWrap(false)
	s.cs.SetFixed(1, 1)
	page := tview.NewFlex().SetDirection(tview.FlexRow).
		AddItem(s.head, 6, 0, false).
		AddItem(s.cs, 0, 3, true).
		AddItem(s.events, 0, 2, false).
		AddItem(s.foot, 1, 0, false)
	s.app.SetRoot(page, true).SetFocus(s.cs).SetInputCapture(s.key)
	return s
}

// key handles the keys that aren't for scrolling.
func (s *topScreen) key(event *tcell.EventKey) *tcell.EventKey {
	switch {
	case event.Rune() == 'q' || event.Key() == tcell.KeyEscape:
		s.app.Stop()
	case event.Rune() == 's':
		s.order = (s.order + 1) % len(topOrders)
		s.draw()
	case event.Rune() == ' ':
		select {
		case s.again <- struct{}{}:
		default: // asked already
		}
	case event.Key() == tcell.KeyTab:
		if s.app.GetFocus() == s.cs {
			s.app.SetFocus(s.events)
		} else {
			s.app.SetFocus(s.cs)
		}
	default:
		return event
	}
	return nil
}

// run shows the screen until q, or until ctx ends.
func (s *topScreen) run(ctx context.Context, conn *adminConn, first topView,
	interval time.Duration) error {
	s.view = first
	s.draw()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, s.app.Stop)
	defer stop()
	go func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			case <-s.again:
			}
			view, err := conn.topView(ctx)
			if ctx.Err() != nil {
				return
			}
			s.app.QueueUpdateDraw(func() {
				if s.err = err; err == nil {
					s.view = view
				}
				s.draw()
			})
		}
	}()
	return cli.Fail("show the screen", s.app.Run(), "print once with: pstorage top | cat")
}

// draw fills the parts of the screen from s.view.
func (s *topScreen) draw() {
	s.head.SetText(topHead(s.view.stat, s.err))
	s.drawCS()
	s.events.SetText(topEventLines(s.view.events))
	s.foot.SetText(fmt.Sprintf("[::r] q quit  s sort (by %s)  Space refresh  "+
		"Tab chunk servers/events [::-]", topOrders[s.order].name))
}

// topHead is the text above the table: at most 6 lines.
func topHead(d control.StatDoc, err error) string {
	color := map[string]string{"healthy": "green", "degraded": "yellow", "critical": "red"}[d.Health]
	if color == "" {
		color = "default"
	}
	text := fmt.Sprintf("Cluster %s: [%s::b]%s[-::-]   %s\n", escape(d.Cluster), color,
		escape(d.Health), when(d.TimeNs))
	text += fmt.Sprintf("Space   %s of %s free for data, %d files\n", size(d.Space.LogicalFree),
		size(d.Space.LogicalTotal), d.Files)
	text += "Chunks  " + chunkLine(d) + "\n"
	text += "MDS     "
	for _, m := range d.MDS {
		if m.Leader {
			text += "[::b]" + escape(m.ID) + "*[::-] "
		} else {
			text += escape(m.ID) + " "
		}
	}
	text += "(*: leader)\n"
	switch {
	case err != nil:
		text += "[red]no answer: " + escape(cli.OneLine(err)) + "[-]"
	case len(d.Reasons) > 0:
		text += "[yellow]" + escape(d.Reasons[0]) + "[-]"
	}
	return text
}

func escape(text string) string { return tview.Escape(clean(text)) }

var topColumns = []string{"CS", "STATUS", "READ/s", "WRITE/s", "READ", "WRITE", "USED", "OF", "LOG",
	"CHUNKS", "CRC", "ADDRESS"}

func (s *topScreen) drawCS() {
	list := make([]control.CSDoc, len(s.view.stat.CS))
	copy(list, s.view.stat.CS)
	less := topOrders[s.order].less
	sort.SliceStable(list, func(i, j int) bool { return less(&list[i], &list[j]) })
	s.cs.Clear()
	for i, name := range topColumns {
		cell := tview.NewTableCell(name).SetAttributes(tcell.AttrReverse).SetSelectable(false).
			SetTextColor(tcell.ColorDefault)
		s.cs.SetCell(0, i, cell)
	}
	for row, c := range list {
		for i, text := range topRow(c) {
			cell := tview.NewTableCell(escape(text)).SetTextColor(csColor(c))
			if i != 1 && i != len(topColumns)-1 {
				cell.SetAlign(tview.AlignRight)
			}
			s.cs.SetCell(row+1, i, cell)
		}
	}
}

func topRow(c control.CSDoc) []string {
	crc := "-"
	if c.Stats != nil {
		crc = fmt.Sprint(c.Stats.CRCErrors)
	}
	return []string{fmt.Sprint(c.ID), csStatus(c), rate(c.ReadRate), rate(c.WriteRate),
		short(c.ReadSpeed), short(c.WriteSpeed), short(float64(c.Used)), short(float64(c.Capacity)),
		journalFill(c), fmt.Sprint(c.Chunks), crc, c.Addr}
}

// short is a number of bytes in at most 5 characters.
func short(n float64) string {
	const units = " KMGTPE"
	unit := 0
	for n >= 1000 && unit < len(units)-1 {
		n, unit = n/1024, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%.0f", n)
	}
	if n < 10 {
		return fmt.Sprintf("%.1f%c", n, units[unit])
	}
	return fmt.Sprintf("%.0f%c", n, units[unit])
}

func csColor(c control.CSDoc) tcell.Color {
	switch c.Status {
	case control.CSActive:
		return tcell.ColorDefault
	case control.CSInactive, control.CSDropped, control.CSReleasing:
		return tcell.ColorYellow
	}
	return tcell.ColorRed
}

// topEventLines lists events, newest first.
func topEventLines(events []control.EventDoc) string {
	text := "[::r]EVENTS (newest first)[::-]\n"
	for i := len(events) - 1; i >= 0; i-- {
		e := events[i]
		color := map[string]string{"warning": "yellow", "fault": "red"}[e.Severity]
		if color == "" {
			color = "default"
		}
		clock := time.Unix(0, e.TimeNs).Local().Format("15:04:05")
		text += fmt.Sprintf("[%s]%s %-7s %s: %s[-]\n", color, clock, escape(e.Severity),
			escape(e.Source), escape(e.Message))
	}
	return text
}
