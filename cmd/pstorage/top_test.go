package main

import (
	"strings"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"

	"pstorage/dataplane/control"
)

func TestShort(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 999: "999", 1000: "1.0K", 1 << 20: "1.0M",
		900 << 20: "900M", 10 << 40: "10T"} {
		if got := short(n); got != want || len(got) > 5 {
			t.Errorf("short(%v) = %q, want %q", n, got, want)
		}
	}
}

// TestTopScreen draws on a simulated terminal of 80x24: everything has its place.
func TestTopScreen(t *testing.T) {
	terminal := tcell.NewSimulationScreen("UTF-8")
	if err := terminal.Init(); err != nil {
		t.Fatal(err)
	}
	terminal.SetSize(80, 24)
	s := newTopScreen()
	s.app.SetScreen(terminal)
	s.view = topView{
		stat: control.StatDoc{Cluster: "test", Health: "degraded", Reasons: []string{"cs 2 is silent"},
			MDS: []control.MDSDoc{{ID: "1", Leader: true}},
			CS: []control.CSDoc{{ID: 1, Status: "active", Addr: "127.0.0.1:2520", ReadRate: 10},
				{ID: 2, Status: "offline", Addr: "127.0.0.1:2521", ReadRate: 20}}},
		events: []control.EventDoc{{Severity: "fault", Source: "cs 2",
			Message: "[red]bad\x1b[31m"}},
	}
	s.draw()
	done := make(chan error, 1)
	go func() { done <- s.app.Run() }()
	// The screen belongs to the application's goroutine.
	screen := func() (text string) {
		s.app.QueueUpdate(func() { text = screenText(terminal) })
		return text
	}
	shown := func(text string) bool { return strings.Contains(screen(), text) }
	for _, text := range []string{"Cluster test: degraded", "cs 2 is silent", "127.0.0.1:2521",
		"offline", "EVENTS", "[red]bad?[31m", "q quit"} {
		eventually(t, "the screen shows "+text, func() bool { return shown(text) })
	}
	first := func() string { return strings.TrimSpace(strings.Split(screen(), "\n")[7]) }
	if !strings.HasPrefix(first(), "1") {
		t.Errorf("first chunk server: %q", first())
	}
	terminal.InjectKey(tcell.KeyRune, 's', 0)
	eventually(t, "sorted by reads", func() bool { return strings.HasPrefix(first(), "2") })
	terminal.InjectKey(tcell.KeyRune, 'q', 0)
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("q doesn't quit")
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func screenText(terminal tcell.SimulationScreen) string {
	cells, width, height := terminal.GetContents()
	var b strings.Builder
	for y := range height {
		for x := range width {
			if runes := cells[y*width+x].Runes; len(runes) > 0 {
				b.WriteRune(runes[0])
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}
