package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

const (
	scrubPoll = 500 * time.Millisecond // their words come with heartbeats
	// scrubAway is for how long a chunk server may be silent until it isn't waited for: after a
	// restart it goes on with its pass.
	scrubAway = 30 * time.Second
	// scrubAgain is when one that doesn't say that it is in a pass is asked again: it may have ended
	// before it had the first request on record.
	scrubAgain = 10 * time.Second
	// scrubMute is for how long no answer, as in an election, isn't the end.
	scrubMute = time.Minute
)

// scrubWatch follows the passes of chunk servers that were told to begin one. What a chunk server
// says is known only from its first heartbeat after a registration, or under a new leader, on:
// until then it counts as busy.
type scrubWatch struct {
	told  []uint32
	ended map[uint32]int64      // when its pass before this one ended; no entry: isn't known yet
	asked map[uint32]time.Time  // when it was last told
	said  map[uint32]scrubCSDoc // what it said last
	done  map[uint32]bool
}

// scrubStand is how the passes stand.
type scrubStand struct {
	busy        int
	done, total uint64   // bytes
	gone        []string // chunk servers that aren't waited for, and why
	ask         []uint32 // those to be told to begin, again
}

// newScrubWatch begins with what was known before anybody was told.
func newScrubWatch(before []scrubCSDoc) *scrubWatch {
	w := &scrubWatch{ended: map[uint32]int64{}, asked: map[uint32]time.Time{},
		said: map[uint32]scrubCSDoc{}, done: map[uint32]bool{}}
	for _, d := range before {
		if d.State != scrubUnknown {
			w.ended[d.ID] = d.FinishedNs
		}
	}
	return w
}

// begin says that a chunk server was told. If it isn't known when its last pass ended, the end of
// the next one couldn't be seen: it is told again then, which does no harm to one in such a pass.
func (w *scrubWatch) begin(id uint32, now time.Time) {
	w.asked[id] = now
	if d, ok := w.said[id]; ok {
		if _, ok := w.ended[id]; !ok {
			w.ended[id] = d.FinishedNs
		}
	}
}

// look takes what is known of the scrubbers now.
func (w *scrubWatch) look(list []scrubCSDoc, now time.Time) (s scrubStand) {
	for _, id := range w.told {
		d := scrubCSDoc{ID: id, Status: control.CSDropped, State: scrubUnknown}
		if i := slices.IndexFunc(list, func(d scrubCSDoc) bool { return d.ID == id }); i >= 0 {
			d = list[i]
		}
		ended, begun := w.ended[id]
		if d.State != scrubUnknown {
			w.said[id] = d
			w.done[id] = w.done[id] || begun && d.FinishedNs != ended
		}
		said := w.said[id]
		s.total += said.Total
		if w.done[id] {
			s.done += said.Total
			continue
		}
		if said.State == scrubAsked {
			s.done += said.Done
		}
		if why := scrubGone(&d); why != "" {
			s.gone = append(s.gone, fmt.Sprintf("cs %d (%s)", id, why))
			continue
		}
		s.busy++
		late := d.State != scrubAsked && now.Sub(w.asked[id]) >= scrubAgain
		if d.State != scrubUnknown && (!begun || late) {
			s.ask = append(s.ask, id)
		}
	}
	return s
}

// scrubGone says why a chunk server's pass can't be waited for, if that is so.
func scrubGone(d *scrubCSDoc) string {
	switch d.Status {
	case control.CSFailed, control.CSDropped, control.CSRefused:
		return d.Status
	case control.CSOffline, control.CSReleasing, control.CSInactive:
		if d.silent >= scrubAway {
			return control.CSOffline
		}
	}
	return ""
}

// scrubWait starts passes and waits for their ends.
func scrubWait(ctx context.Context, a *app, args control.ScrubArgs, out, messages io.Writer) error {
	conn, err := a.admin(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	const what = "scrub"
	before, err := conn.scrubs(ctx, what, args.CS)
	if err != nil {
		return err
	}
	watch := newScrubWatch(before.CS)
	var started control.ScrubDoc
	if err := conn.get(ctx, what, control.AdminScrubStart, args, &started); err != nil {
		return err
	}
	watch.told = started.Told
	for _, id := range started.Told {
		watch.begin(id, time.Now())
	}
	if len(started.Silent) > 0 {
		fmt.Fprintf(messages, "not reached, and not waited for: %s\n", csList(started.Silent))
	}
	shown := newProgress(messages, a.output == "json")
	defer shown.end()
	heard := time.Now()
	for {
		doc, err := conn.scrubs(ctx, what, args.CS)
		switch {
		case ctx.Err() != nil:
		case err == nil:
			heard = time.Now()
			stand := watch.look(doc.CS, heard)
			if stand.busy == 0 {
				shown.end()
				return scrubEnd(a, doc, stand.gone, out)
			}
			for _, id := range stand.ask {
				args := control.ScrubArgs{CS: id}
				if conn.get(ctx, what, control.AdminScrubStart, args, &control.ScrubDoc{}) == nil {
					watch.begin(id, time.Now())
				}
			}
			shown.bytes(fmt.Sprintf("scrub, %d of %d busy", stand.busy, len(started.Told)),
				int64(stand.done), int64(stand.total))
		case time.Since(heard) > scrubMute:
			return err
		}
		select {
		case <-ctx.Done():
			return cli.Failf("wait for the scrubbers", "interrupted",
				"they go on; see pstorage scrub status")
		case <-time.After(scrubPoll):
		}
	}
}

// scrubEnd prints how the passes stand when none is waited for any more.
func scrubEnd(a *app, doc scrubStatusDoc, gone []string, out io.Writer) error {
	err := a.print(out, doc, func(t *table) { showScrub(t, doc.CS) })
	if err != nil || len(gone) == 0 {
		return err
	}
	return cli.Failf("wait for the scrubbers", "not done: "+strings.Join(gone, ", "),
		"one that is offline goes on when it is back; see pstorage scrub status")
}
