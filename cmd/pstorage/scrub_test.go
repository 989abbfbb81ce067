package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane/control"
)

func TestScrubStatus(t *testing.T) {
	running := control.CSStats{ScrubRunning: true, ScrubDone: 1 << 30, ScrubTotal: 4 << 30,
		ScrubBad: 3, ScrubRepaired: 2, ScrubLost: 1}
	asked := running
	asked.ScrubManual = true
	rows := []scrubCSDoc{
		scrubOf(control.CSDoc{ID: 1, Status: control.CSActive, Stats: &running}),
		scrubOf(control.CSDoc{ID: 2, Status: control.CSActive, Stats: &asked}),
		scrubOf(control.CSDoc{ID: 3, Status: control.CSActive, Stats: &control.CSStats{}}),
		scrubOf(control.CSDoc{ID: 4, Status: control.CSOffline}),
	}
	began := time.Unix(1000, 0)
	for i := range rows[:2] {
		rows[i].StartedNs = began.UnixNano()
		rows[i].pace(began.Add(time.Duration(1024*(1+999*i)) * time.Second))
		rows[i].StartedNs = 0
	}
	rows[2].pace(began)
	rows[3].pace(began)
	text := string(render(func(t *table) { showScrub(t, rows) }))
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, want := range []string{
		"CS STATUS PASS DONE OF RATE LEFT READ BAD REPAIRED LOST DIFFER STARTED",
		"1 active scheduled 25.0% 4.0 GiB 1.0 MiB/s 51m 0 B 3 2 1 0 - -",
		"2 active asked 25.0% 4.0 GiB 1.0 KiB/s 35d 0 B",
		"3 active idle - 0 B - - 0 B", "4 offline unknown - 0 B - - 0 B"} {
		if len(lines) != 5 || !strings.HasPrefix(strings.Join(strings.Fields(lines[i]), " "), want) {
			t.Fatalf("line %d isn't %q:\n%s", i, want, text)
		}
	}
}

// TestScrubWatch: the wait ends with the passes, whatever isn't known of the servers meanwhile.
func TestScrubWatch(t *testing.T) {
	const old, fresh = 100, 200 // ends of passes
	at := time.Unix(1000, 0)
	cs := func(id uint32, state string, finished int64) scrubCSDoc {
		return scrubCSDoc{ID: id, Status: control.CSActive, State: state, FinishedNs: finished,
			Total: 10, Done: 5}
	}
	unknown := cs(2, scrubUnknown, 0)
	w := newScrubWatch([]scrubCSDoc{cs(1, "idle", old), unknown})
	w.told = []uint32{1, 2}
	for _, id := range w.told {
		w.begin(id, at)
	}
	look := func(what string, busy int, done uint64, ask []uint32, list ...scrubCSDoc) {
		t.Helper()
		s := w.look(list, at)
		if s.busy != busy || s.done != done || !slices.Equal(s.ask, ask) || len(s.gone) != 0 {
			t.Errorf("%s: %+v, want %d busy, %d done, ask %v", what, s, busy, done, ask)
		}
		for _, id := range s.ask {
			w.begin(id, at)
		}
	}
	look("at first", 2, 5, nil, cs(1, scrubAsked, old), unknown)
	look("one registered again", 2, 5, nil, cs(1, scrubUnknown, 0), unknown)
	look("the first word of the other", 2, 5, []uint32{2}, cs(1, scrubAsked, old), cs(2, "idle", old))
	look("both in their pass", 2, 10, nil, cs(1, scrubAsked, old), cs(2, scrubAsked, old))
	at = at.Add(scrubAgain)
	look("one lost the request", 2, 5, []uint32{1}, cs(1, "scheduled", old), cs(2, scrubAsked, old))
	look("one is done", 1, 15, nil, cs(1, "idle", fresh), cs(2, scrubAsked, old))
	look("a new leader", 1, 15, nil, cs(1, scrubUnknown, 0), unknown)
	look("both are done", 0, 20, nil, cs(1, scrubUnknown, 0), cs(2, "idle", fresh))
}

// TestScrubGone: what can't be waited for is named, and what is only restarted isn't.
func TestScrubGone(t *testing.T) {
	var list []scrubCSDoc
	w := newScrubWatch(nil)
	for i, c := range []struct {
		status string
		silent time.Duration
	}{{control.CSActive, 0}, {control.CSFailed, 0}, {control.CSRefused, 0},
		{control.CSOffline, scrubAway}, {control.CSReleasing, scrubAway}, {control.CSDropped, 0},
		{control.CSOffline, 5 * time.Second}, {control.CSInactive, time.Second},
		{control.CSReleasing, 0}, {control.CSIll, 0}} {
		id := uint32(i + 1)
		list = append(list, scrubCSDoc{ID: id, Status: c.status, State: scrubUnknown, silent: c.silent})
		w.told = append(w.told, id)
	}
	w.told = append(w.told, 11) // isn't listed any more
	s := w.look(list, time.Unix(1000, 0))
	want := "cs 2 (failed), cs 3 (refused), cs 4 (offline), cs 5 (offline), cs 6 (dropped), " +
		"cs 11 (dropped)"
	if got := strings.Join(s.gone, ", "); got != want || s.busy != 5 || len(s.ask) != 0 {
		t.Errorf("gone are %s, %d are busy, want %s", got, s.busy, want)
	}
	list[3].Status, list[3].silent = control.CSActive, 0
	if s := w.look(list, time.Unix(1001, 0)); s.busy != 6 {
		t.Errorf("one is back: %+v", s)
	}
}
