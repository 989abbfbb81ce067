package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

func newScrub(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "scrub",
		Short: "Compare what is stored with its checksums, and copies with each other",
		Long: `Compare what is stored with its checksums, and copies with each other. Each chunk server
does that by itself, once in 14 days (pstorage-csd --scrub-period) and at low priority: it
reads its whole store, and fetches damaged blocks from another copy. See also: pstorage get-event.`,
		Example: `  pstorage scrub start        # all chunk servers, now
  pstorage scrub status`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cli.Usage("start or status? see %s --help", cmd.CommandPath())
		},
	}
	cmd.AddCommand(newScrubStart(a), newScrubStatus(a))
	return cmd
}

func addCS(cmd *cobra.Command, cs *uint32) {
	cmd.Flags().Uint32Var(cs, "cs", 0, "only chunk server number `N`")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("cs") && *cs == 0 { // 0 would stand for all
			return cli.Usage("--cs 0: it isn't the number of a chunk server; " +
				"pstorage list-services has them")
		}
		return nil
	}
}

func newScrubStart(a *app) *cobra.Command {
	var args control.ScrubArgs
	wait := false
	cmd := &cobra.Command{
		Use:   "start",
		Short: "Have chunk servers begin a pass over their stores now",
		Long: `Have chunk servers begin a pass over their stores now, at up to 64 MiB/s each; they give
way to clients. One that is in such a pass goes on with it. A pass goes on after a
restart.`,
		Example: `  pstorage scrub start
  pstorage -c prod scrub start --cs 3 --wait`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wait {
				return scrubWait(cmd.Context(), a, args, cmd.OutOrStdout(), cmd.ErrOrStderr())
			}
			return show(cmd, a, "start to scrub", control.AdminScrubStart, args, showScrubStart)
		},
	}
	addCS(cmd, &args.CS)
	cmd.Flags().BoolVarP(&wait, "wait", "w", false,
		"wait until they are done, show how far it is, and print what scrub status prints; "+
			"status 1 if one of them is lost meanwhile")
	a.addOutput(cmd)
	return cmd
}

func showScrubStart(t *table, doc control.ScrubDoc) {
	if len(doc.Told) > 0 {
		t.line("Told to scrub: %s. How far they are: pstorage scrub status", csList(doc.Told))
	}
	if len(doc.Silent) > 0 {
		t.line("Not reached (not running, or their disk failed): %s", csList(doc.Silent))
	}
	if len(doc.Told)+len(doc.Silent) == 0 {
		t.line("No chunk server yet: make one with pstorage make-cs.")
	}
}

func csList(ids []uint32) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = fmt.Sprintf("cs %d", id)
	}
	return strings.Join(names, ", ")
}

// Two of the states of a scrubber in scrubCSDoc.State.
const (
	scrubUnknown = "unknown" // it hasn't told since it, or the leader, began
	scrubAsked   = "asked"   // it is in a pass that somebody asked for
)

// scrubStatusDoc is what scrub status -o json prints.
type scrubStatusDoc struct {
	CS []scrubCSDoc `json:"cs"`
}

// scrubCSDoc is the scrubber of one chunk server: its pass that is under way, or the last one.
type scrubCSDoc struct {
	ID         uint32 `json:"id"`
	Status     string `json:"status"` // of the chunk server
	State      string `json:"state"`  // "unknown", "idle", "scheduled", "asked"
	Done       uint64 `json:"done"`   // bytes of chunks, holes included
	Total      uint64 `json:"total"`
	Read       uint64 `json:"read"` // bytes
	Bad        uint64 `json:"bad"`  // blocks
	Repaired   uint64 `json:"repaired"`
	Lost       uint64 `json:"lost"`       // not repaired
	Mismatches uint64 `json:"mismatches"` // parts of 64 KiB in which copies differed
	StartedNs  int64  `json:"started_ns"`
	FinishedNs int64  `json:"finished_ns"` // the last complete pass; 0: never
	Rate       uint64 `json:"rate"`        // bytes per second so far; 0: no pass is under way
	LeftS      int64  `json:"left_s"`      // seconds to its end at that rate; -1: not known

	silent time.Duration // since its last heartbeat
}

// pace fills in how fast the pass is, holes included, and how long it will take.
func (d *scrubCSDoc) pace(now time.Time) {
	d.LeftS = -1
	took := now.Sub(time.Unix(0, d.StartedNs)).Seconds()
	if d.State != "scheduled" && d.State != scrubAsked || d.StartedNs == 0 || took < 1 || d.Done == 0 {
		return
	}
	rate := float64(d.Done) / took
	d.Rate = uint64(rate)
	d.LeftS = int64(float64(d.Total-min(d.Done, d.Total))/rate + 0.5)
}

func (d *scrubCSDoc) rate() string {
	if d.Rate == 0 {
		return "-"
	}
	return size(d.Rate) + "/s"
}

// left is the time to the end of the pass, coarse as it is.
func (d *scrubCSDoc) left() string {
	left := time.Duration(d.LeftS) * time.Second
	switch {
	case d.LeftS < 0:
		return "-"
	case left < 2*time.Minute:
		return fmt.Sprintf("%ds", d.LeftS)
	case left < 2*time.Hour:
		return fmt.Sprintf("%dm", int(left.Minutes()))
	case left < 48*time.Hour:
		return fmt.Sprintf("%dh", int(left.Hours()))
	}
	return fmt.Sprintf("%dd", int(left.Hours()/24))
}

func newScrubStatus(a *app) *cobra.Command {
	var cs uint32
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how far each chunk server's pass is and what it found",
		Long: `Show how far each chunk server's pass is and what it found. BAD are blocks of 4 KiB that
didn't match their checksums, LOST those of them that no other copy could mend; DIFFER are
parts of 64 KiB in which the copies of a chunk differ although their checksums are right.
RATE is that of the whole pass so far, LEFT what is left at that rate. A pass by schedule
is spread over the whole period, so it is slow on purpose.`,
		Example: `  pstorage scrub status
  pstorage scrub status --cs 3 -o json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return scrubStatus(cmd.Context(), a, cs, cmd.OutOrStdout())
		},
	}
	addCS(cmd, &cs)
	a.addOutput(cmd)
	return cmd
}

func scrubStatus(ctx context.Context, a *app, only uint32, out io.Writer) error {
	conn, err := a.admin(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	const what = "show how scrubbing stands"
	doc, err := conn.scrubs(ctx, what, only)
	if err != nil {
		return err
	}
	if only != 0 && len(doc.CS) == 0 {
		return cli.Fail(what, errors.New("there is no chunk server "+fmt.Sprint(only)),
			"pstorage list-services has their numbers")
	}
	return a.print(out, doc, func(t *table) { showScrub(t, doc.CS) })
}

// scrubs asks for the scrubbers of all chunk servers, or of one.
func (c *adminConn) scrubs(ctx context.Context, what string, only uint32) (scrubStatusDoc, error) {
	doc := scrubStatusDoc{CS: []scrubCSDoc{}}
	var services control.ServicesDoc
	if err := c.get(ctx, what, control.AdminListServices, nil, &services); err != nil {
		return doc, err
	}
	for _, c := range services.CS {
		if (only == 0 && c.Status != control.CSDropped) || only == c.ID {
			d := scrubOf(c)
			d.pace(time.Now())
			doc.CS = append(doc.CS, d)
		}
	}
	return doc, nil
}

func scrubOf(c control.CSDoc) scrubCSDoc {
	d := scrubCSDoc{ID: c.ID, Status: c.Status, State: scrubUnknown,
		silent: time.Duration(c.SilentMs) * time.Millisecond}
	s := c.Stats
	if s == nil {
		return d
	}
	switch {
	case s.ScrubRunning && s.ScrubManual:
		d.State = scrubAsked
	case s.ScrubRunning:
		d.State = "scheduled"
	default:
		d.State = "idle"
	}
	d.Done, d.Total, d.Read, d.Bad = s.ScrubDone, s.ScrubTotal, s.ScrubRead, s.ScrubBad
	d.Repaired, d.Lost, d.Mismatches = s.ScrubRepaired, s.ScrubLost, s.ScrubMismatches
	d.StartedNs, d.FinishedNs = s.ScrubStartedNs, s.ScrubFinishedNs
	return d
}

func showScrub(t *table, servers []scrubCSDoc) {
	if len(servers) == 0 {
		t.line("No chunk server yet: make one with pstorage make-cs.")
		return
	}
	t.row("CS", "STATUS", "PASS", "DONE", "OF", "RATE", "LEFT", "READ", "BAD", "REPAIRED", "LOST",
		"DIFFER", "STARTED", "LAST COMPLETE")
	for _, s := range servers {
		t.row(s.ID, s.Status, s.State, percent(s.Done, s.Total), size(s.Total), s.rate(), s.left(),
			size(s.Read), s.Bad, s.Repaired, s.Lost, s.Mismatches, when(s.StartedNs), when(s.FinishedNs))
	}
}

func percent(part, whole uint64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(part)/float64(whole))
}
