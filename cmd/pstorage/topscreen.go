package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/gdamore/tcell/v2"
	"github.com/rivo/tview"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

// topOrders are the orders of chunk servers that the key s goes through.
var topOrders = []struct {
	name string
	less func(a, b *control.CSDoc) bool
}{
	{"id", func(a, b *control.CSDoc) bool { return a.ID < b.ID }},
	{"latency", func(a, b *control.CSDoc) bool { return slowest(a) > slowest(b) }},
	{"reads", func(a, b *control.CSDoc) bool { return a.ReadRate > b.ReadRate }},
	{"writes", func(a, b *control.CSDoc) bool { return a.WriteRate > b.WriteRate }},
	{"used", func(a, b *control.CSDoc) bool { return a.Used > b.Used }},
	{"status", func(a, b *control.CSDoc) bool { return a.Status > b.Status }},
}

// clientOrders are those of clients.
var clientOrders = []struct {
	name string
	less func(a, b *control.ClientDoc) bool
}{
	{"host", func(a, b *control.ClientDoc) bool { return a.Host < b.Host }},
	{"writes", func(a, b *control.ClientDoc) bool { return a.Writes > b.Writes }},
	{"idle", func(a, b *control.ClientDoc) bool { return a.IdleMs > b.IdleMs }},
	{"age", func(a, b *control.ClientDoc) bool { return a.AgeMs > b.AgeMs }},
}

// topScreen is the terminal. Its fields belong to tview's goroutine once it runs.
type topScreen struct {
	app    *tview.Application
	page   *tview.Flex
	head   *tview.TextView
	cs     *tview.Table
	events *tview.TextView
	foot   *tview.TextView
	ask    *tview.InputField // in place of foot while a filter is typed

	view     topView
	last     map[uint32]control.CSStats // of each chunk server, at the refresh before
	pace     recoveryPace
	err      error // of the last refresh
	order    int   // of topOrders
	clients  bool  // the table shows them, in the order byClient of clientOrders
	byClient int
	reverse  bool
	filter   string // in small letters
	least    int    // severity of events, of topSeverities
	again    chan struct{}
}

// topSeverities are those of events, from which on they are shown.
var topSeverities = []string{"info", "warning", "fault"}

func slowest(c *control.CSDoc) int64 {
	if c.Stats == nil {
		return 0
	}
	return max(c.Stats.LogWaitNs, c.Stats.ReadWaitNs)
}

func newTopScreen() *topScreen {
	// The terminal's own colours, so that it is readable on dark and on light ones. Parts of the
	// screen take them when they are made.
	tview.Styles.PrimitiveBackgroundColor = tcell.ColorDefault
	tview.Styles.PrimaryTextColor = tcell.ColorDefault
	s := &topScreen{app: tview.NewApplication(), head: tview.NewTextView(), cs: tview.NewTable(),
		events: tview.NewTextView(), foot: tview.NewTextView(), ask: tview.NewInputField(),
		again: make(chan struct{}, 1)}
	s.head.SetDynamicColors(true)
	s.events.SetDynamicColors(true)
	s.foot.SetDynamicColors(true)
	s.events.SetWrap(false)
	s.cs.SetFixed(1, 1)
	s.ask.SetLabel("Show only: ").SetDoneFunc(s.filtered)
	s.ask.SetFieldBackgroundColor(tcell.ColorDefault).SetFieldTextColor(tcell.ColorDefault)
	s.page = tview.NewFlex().SetDirection(tview.FlexRow).
		AddItem(s.head, 7, 0, false).
		AddItem(s.cs, 0, 3, true).
		AddItem(s.events, 0, 2, false).
		AddItem(s.foot, 1, 0, false)
	s.app.SetRoot(s.page, true).SetFocus(s.cs).SetInputCapture(s.key)
	return s
}

// key handles the keys that aren't for scrolling.
func (s *topScreen) key(event *tcell.EventKey) *tcell.EventKey {
	if s.ask.HasFocus() {
		return event
	}
	switch {
	case event.Rune() == 'q' || event.Key() == tcell.KeyEscape && s.filter == "":
		s.app.Stop()
	case event.Key() == tcell.KeyEscape:
		s.filter = ""
		s.draw()
	case event.Rune() == 's':
		if s.clients {
			s.byClient = (s.byClient + 1) % len(clientOrders)
		} else {
			s.order = (s.order + 1) % len(topOrders)
		}
		s.draw()
	case event.Rune() == 'c':
		s.clients = !s.clients
		s.cs.ScrollToBeginning()
		s.draw()
	case event.Rune() == 'r':
		s.reverse = !s.reverse
		s.draw()
	case event.Rune() == 'e':
		s.least = (s.least + 1) % len(topSeverities)
		s.draw()
	case event.Rune() == '/':
		s.ask.SetText(s.filter)
		s.page.RemoveItem(s.foot).AddItem(s.ask, 1, 0, true)
		s.app.SetFocus(s.ask)
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

// filtered takes what was typed as the filter.
func (s *topScreen) filtered(key tcell.Key) {
	s.filter = strings.ToLower(strings.TrimSpace(s.ask.GetText()))
	if key == tcell.KeyEscape {
		s.filter = ""
	}
	s.page.RemoveItem(s.ask).AddItem(s.foot, 1, 0, false)
	s.app.SetFocus(s.cs)
	s.draw()
}

// wants says whether the filter shows something with these texts.
func (s *topScreen) wants(texts ...string) bool {
	return s.filter == "" || strings.Contains(strings.ToLower(strings.Join(texts, " ")), s.filter)
}

// take takes a new view.
func (s *topScreen) take(v topView) {
	s.last = map[uint32]control.CSStats{}
	for _, c := range s.view.stat.CS {
		if c.Stats != nil {
			s.last[c.ID] = *c.Stats
		}
	}
	s.view = v
	s.pace.add(&v.stat)
}

// run shows the screen until q, or until ctx ends.
func (s *topScreen) run(ctx context.Context, conn *adminConn, first topView,
	interval time.Duration) error {
	s.take(first)
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
					s.take(view)
				}
				s.draw()
			})
		}
	}()
	return cli.Fail("show the screen", s.app.Run(), "print once with: pstorage top | cat")
}

// draw fills the parts of the screen from s.view.
func (s *topScreen) draw() {
	s.head.SetText(topHead(s.view.stat, s.pace.text(&s.view.stat), s.err))
	order, other := topOrders[s.order].name, "clients"
	if s.clients {
		order, other = clientOrders[s.byClient].name, "servers"
		s.drawClients()
	} else {
		s.drawCS()
	}
	s.events.SetText(s.eventLines())
	if s.reverse {
		order += ", reversed"
	}
	only := ""
	if s.filter != "" {
		only = ": " + escape(s.filter)
	}
	s.foot.SetText(fmt.Sprintf("[::r] q quit  c %s  s sort (%s)  r reverse  / filter%s  "+
		"e events (%s) [::-]", other, order, only, topSeverities[s.least]))
}

// topHead is the text above the table: at most 7 lines.
func topHead(d control.StatDoc, recovery string, err error) string {
	color := map[string]string{"healthy": "green", "degraded": "yellow", "critical": "red"}[d.Health]
	if color == "" {
		color = "default"
	}
	text := fmt.Sprintf("Cluster %s: [%s::b]%s[-::-]   %s\n", escape(d.Cluster), color,
		escape(d.Health), when(d.TimeNs))
	text += fmt.Sprintf("Space   %s of %s free for data, %d files\n", size(d.Space.LogicalFree),
		size(d.Space.LogicalTotal), d.Files)
	text += "Chunks  " + chunkLine(d) + "\n"
	text += "Copies  " + recovery + "\n"
	text += "MDS     "
	for _, m := range d.MDS {
		switch {
		case m.Leader:
			text += "[::b]" + escape(m.ID) + "*[::-] "
		case m.Down:
			text += "[red]" + escape(m.ID) + " (down)[-] "
		default:
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

// topColumns are as wide as their titles, so that they fit 80 columns.
var topColumns = []string{"CS", "STATUS", "HOST", "RD/s", "WR/s", "READ", "WRITE", "RLAT",
	"WLAT", "Q", "HIT", "USED", "LOG", "ADDRESS", "OF", "CHUNKS", "CLIENTS", "CRC"}

// topText are the columns that aren't numbers.
var topText = []string{"STATUS", "HOST", "ADDRESS", "CLIENT", "MOUNTS"}

var clientColumns = []string{"CLIENT", "HOST", "WRITES", "IDLE", "SINCE", "ADDRESS", "REQUESTS",
	"MOUNTS"}

func (s *topScreen) drawCS() {
	var list []control.CSDoc
	for _, c := range s.view.stat.CS {
		if s.wants(fmt.Sprint("cs ", c.ID), csStatus(c), c.Host, c.Addr, c.Path, c.Location) {
			list = append(list, c)
		}
	}
	less := topOrders[s.order].less
	sort.SliceStable(list, func(i, j int) bool {
		if s.reverse {
			i, j = j, i
		}
		return less(&list[i], &list[j])
	})
	s.header(topColumns)
	for row, c := range list {
		s.fill(row+1, topColumns, s.row(c), csColor(c))
	}
}

// header empties the table and gives it its first row.
func (s *topScreen) header(columns []string) {
	s.cs.Clear()
	for i, name := range columns {
		cell := tview.NewTableCell(name).SetAttributes(tcell.AttrReverse).SetSelectable(false).
			SetTextColor(tcell.ColorDefault)
		s.cs.SetCell(0, i, cell)
	}
}

func (s *topScreen) fill(row int, columns, texts []string, color tcell.Color) {
	for i, text := range texts {
		cell := tview.NewTableCell(escape(text)).SetTextColor(color)
		if !slices.Contains(topText, columns[i]) {
			cell.SetAlign(tview.AlignRight)
		}
		s.cs.SetCell(row, i, cell)
	}
}

func (s *topScreen) drawClients() {
	var list []control.ClientDoc
	for _, c := range s.view.clients.Clients {
		if s.wants("client", c.ID, c.Host, c.Addr, strings.Join(c.Mounts, " ")) {
			list = append(list, c)
		}
	}
	less := clientOrders[s.byClient].less
	sort.SliceStable(list, func(i, j int) bool {
		if s.reverse {
			i, j = j, i
		}
		return less(&list[i], &list[j])
	})
	s.header(clientColumns)
	for row := range list {
		c := &list[row]
		color := tcell.ColorDefault
		if !c.Connected {
			color = tcell.ColorYellow
		}
		host, _, _ := strings.Cut(c.Host, ".")
		s.fill(row+1, clientColumns, []string{c.ID, host, fmt.Sprint(c.Writes), span(c.IdleMs),
			since(c), cmp.Or(c.Addr, "gone"), fmt.Sprint(c.Requests), strings.Join(c.Mounts, " ")}, color)
	}
	if more := s.view.clients.More; more > 0 {
		s.fill(len(list)+1, clientColumns, []string{fmt.Sprintf("and %d more", more)},
			tcell.ColorDefault)
	}
}

// row are the cells of a chunk server.
func (s *topScreen) row(c control.CSDoc) []string {
	crc, clients, rlat, wlat, hit, queue := "-", "-", "-", "-", "-", "-"
	if st := c.Stats; st != nil {
		crc, clients = fmt.Sprint(st.CRCErrors), fmt.Sprint(st.Clients)
		rlat, wlat = latency(st.ReadWaitNs), latency(st.LogWaitNs)
		queue = fmt.Sprint(st.Queue)
		hit = hitRate(s.last[c.ID], *st)
	}
	host, _, _ := strings.Cut(c.Host, ".")
	return []string{fmt.Sprint(c.ID), csState(c), host, rate(c.ReadRate), rate(c.WriteRate),
		short(c.ReadSpeed), short(c.WriteSpeed), rlat, wlat, queue, hit,
		fmt.Sprintf("%d%%", 100*c.Used/max(c.Capacity, 1)), journalFill(c), c.Addr,
		short(float64(c.Capacity)), fmt.Sprint(c.Chunks), clients, crc}
}

// latency is a time in at most 5 characters.
func latency(ns int64) string {
	switch {
	case ns <= 0:
		return "-"
	case ns < 1e6:
		return fmt.Sprintf("%dus", ns/1000)
	case ns < 1e9:
		return fmt.Sprintf("%dms", ns/1e6)
	}
	return fmt.Sprintf("%ds", ns/1e9)
}

// hitRate is the share of the blocks read since before that came out of the journal.
func hitRate(before, now control.CSStats) string {
	if now.FromLog < before.FromLog || now.FromStore < before.FromStore {
		before = control.CSStats{} // its process was started since
	}
	hits, misses := now.FromLog-before.FromLog, now.FromStore-before.FromStore
	if hits+misses == 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", 100*hits/(hits+misses))
}

// recoveryPace is how fast copies are made: what the last refreshes saw.
type recoveryPace struct {
	seen []struct {
		at   int64 // ns
		done uint64
	}
}

const paceOver = 30 * time.Second

func (p *recoveryPace) add(d *control.StatDoc) {
	done := d.Chunks.Recovered + d.Moves.Done
	if n := len(p.seen); n > 0 && done < p.seen[n-1].done {
		p.seen = nil // another leader counts anew
	}
	p.seen = append(p.seen, struct {
		at   int64
		done uint64
	}{d.TimeNs, done})
	for len(p.seen) > 1 && d.TimeNs-p.seen[0].at > int64(paceOver) {
		p.seen = p.seen[1:]
	}
}

// text says what is copied, how fast, and how long it will take.
func (p *recoveryPace) text(d *control.StatDoc) string {
	var parts []string
	left := d.Chunks.Degraded
	for _, c := range d.CS {
		if c.Drain != nil {
			left += c.Drain.Left
		}
	}
	r := &d.Recovery
	for _, state := range []struct {
		n    uint64
		name string
	}{{r.Copying, "being made"}, {r.Queued, "queued"}, {r.Waiting, "wait for a server"},
		{r.NoPlace, "without a place"}, {d.Moves.Active, "being moved"}} {
		if state.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", state.n, state.name))
		}
	}
	if len(p.seen) > 1 {
		first, last := p.seen[0], p.seen[len(p.seen)-1]
		perSecond := float64(last.done-first.done) / (float64(last.at-first.at) / 1e9)
		if perSecond > 0 {
			parts = append(parts, fmt.Sprintf("%.1f/s", perSecond))
		}
		if perSecond > 0 && left > 0 {
			wait := time.Duration(float64(left) / perSecond * 1e9)
			parts = append(parts, fmt.Sprintf("about %v left", wait.Round(time.Second)))
		}
	}
	if len(parts) == 0 {
		return "all there"
	}
	return strings.Join(parts, ", ")
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

// eventLines lists the events that are wanted, newest first.
func (s *topScreen) eventLines() string {
	text := "[::r]EVENTS (newest first)[::-]\n"
	for i := len(s.view.events) - 1; i >= 0; i-- {
		e := s.view.events[i]
		if slices.Index(topSeverities, e.Severity) < s.least || !s.wants(e.Source, e.Code, e.Message) {
			continue
		}
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
