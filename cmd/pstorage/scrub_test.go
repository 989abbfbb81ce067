package main

import (
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
