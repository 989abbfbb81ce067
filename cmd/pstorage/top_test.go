package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
			MDS:    []control.MDSDoc{{ID: "1", Leader: true}, {ID: "2", Voter: true, Down: true}},
			Chunks: control.ChunksDoc{Total: 9, Healthy: 5, Degraded: 4}, Recovery: control.RecoveryDoc{
				Copying: 1, Queued: 3},
			CS: []control.CSDoc{{ID: 1, Status: "active", Addr: "127.0.0.1:2520", ReadRate: 10, Host: "a",
				Capacity: 100, Used: 25, Stats: &control.CSStats{ReadWaitNs: 250e3, LogWaitNs: 12e6,
					FromLog: 3, FromStore: 1}},
				{ID: 2, Status: "offline", Addr: "127.0.0.1:2521", ReadRate: 20, Host: "b"}}},
		clients: control.ClientsDoc{Clients: []control.ClientDoc{{ID: "c1ie47", Host: "a.b",
			Addr: "127.0.0.1:9", Mounts: []string{"/mnt/a"}, Writes: 2, Connected: true, AgeMs: 9e3},
			{ID: "dead", Host: "z", Writes: 3, IdleMs: 40e3}}},
		events: []control.EventDoc{{Severity: "fault", Source: "cs 2",
			Message: "[red]bad\x1b[31m"}, {Severity: "info", Source: "cs 1", Message: "all is well"}},
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
		"offline", "EVENTS", "[red]bad?[31m", "q quit", "all is well", "250us", "12ms", "75%", "25%",
		"1 being made, 3 queued", "1* 2 (down) (*: leader)"} {
		eventually(t, "the screen shows "+text, func() bool { return shown(text) })
	}
	first := func() string { return strings.TrimSpace(strings.Split(screen(), "\n")[8]) }
	if !strings.HasPrefix(first(), "1") {
		t.Errorf("first chunk server: %q", first())
	}
	terminal.InjectKey(tcell.KeyRune, 's', 0)
	terminal.InjectKey(tcell.KeyRune, 's', 0)
	eventually(t, "sorted by reads", func() bool { return strings.HasPrefix(first(), "2") })
	terminal.InjectKey(tcell.KeyRune, 'r', 0)
	eventually(t, "the other way round", func() bool { return strings.HasPrefix(first(), "1") })
	terminal.InjectKey(tcell.KeyRune, 'e', 0)
	terminal.InjectKey(tcell.KeyRune, 'e', 0)
	eventually(t, "faults only", func() bool { return !shown("all is well") && shown("bad?") })
	terminal.InjectKey(tcell.KeyRune, 'c', 0)
	eventually(t, "clients in place of servers", func() bool {
		return shown("CLIENT") && shown("c1ie47") && shown("/mnt/a") && shown("gone") &&
			!shown("127.0.0.1:2520") && strings.HasPrefix(first(), "dead") // in reverse still
	})
	terminal.InjectKey(tcell.KeyRune, 's', 0)
	eventually(t, "clients in another order", func() bool {
		return strings.HasPrefix(first(), "c1ie47") && shown("s sort (writes, reversed)")
	})
	terminal.InjectKey(tcell.KeyRune, 'c', 0)
	eventually(t, "servers again", func() bool { return shown("127.0.0.1:2520") && !shown("CLIENT ") })
	for _, c := range "/OFFL" {
		terminal.InjectKey(tcell.KeyRune, c, 0)
	}
	terminal.InjectKey(tcell.KeyEnter, 0, 0)
	eventually(t, "the filter is on", func() bool {
		return strings.HasPrefix(first(), "2") && !shown("127.0.0.1:2520") && shown("filter: offl")
	})
	terminal.InjectKey(tcell.KeyEscape, 0, 0)
	eventually(t, "the filter is off", func() bool { return shown("127.0.0.1:2520") })
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

func TestRecoveryPace(t *testing.T) {
	var p recoveryPace
	var d control.StatDoc
	if got := p.text(&d); got != "all there" {
		t.Errorf("%q", got)
	}
	for i := range 60 {
		d.TimeNs, d.Chunks.Recovered, d.Chunks.Degraded = int64(i)*1e9, uint64(2*i), uint64(200-2*i)
		p.add(&d)
	}
	if got := p.text(&d); got != "2.0/s, about 41s left" || len(p.seen) > 31 {
		t.Errorf("%q, %d seen", got, len(p.seen))
	}
	d.Chunks.Recovered = 0 // another leader
	p.add(&d)
	if got := p.text(&d); got != "all there" {
		t.Errorf("%q", got)
	}
}

func TestHitRate(t *testing.T) {
	at := func(hits, misses uint64) control.CSStats {
		return control.CSStats{FromLog: hits, FromStore: misses}
	}
	for _, c := range []struct {
		before, now control.CSStats
		want        string
	}{{at(0, 0), at(0, 0), "-"}, {at(5, 5), at(8, 6), "75%"}, {at(100, 100), at(1, 0), "100%"}} {
		if got := hitRate(c.before, c.now); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// TestTopInTerminal runs top in a real terminal of 80x24, tmux, on a real cluster.
// PSTORAGE_SHOTS names a directory where what was seen is kept.
func TestTopInTerminal(t *testing.T) {
	tmux, err := exec.LookPath("tmux")
	if err != nil {
		t.Skip("tmux isn't installed")
	}
	n := newNode(t)
	n.makeCluster(3)
	csd := n.start("pstorage-csd")
	for range 3 {
		csd.waitFor("ready on")
	}
	eventually(t, "three chunk servers are active", func() bool { return n.active() == 3 })
	l := n.startLoad()
	guest := fmt.Sprintf("%x", l.client.ID())
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(tmux, append([]string{"-S", n.path("tmux"), "-f", "/dev/null"}, args...)...)
		cmd.Env = append(os.Environ(), "PSTORAGE_ETC="+n.etc, "TERM=xterm-256color", "LC_ALL=C.UTF-8")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("tmux %v: %v %s", args, err, out)
		}
		return string(out)
	}
	run("new-session", "-d", "-x", "80", "-y", "24", "-s", "top", filepath.Join(bin, "pstorage")+
		" -c c1 top --interval 200ms; echo ended with $?; sleep 60")
	t.Cleanup(func() { exec.Command(tmux, "-S", n.path("tmux"), "kill-server").Run() })
	keep := func(name, screen string) {
		if dir := os.Getenv("PSTORAGE_SHOTS"); dir != "" {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(screen), 0o644); err != nil {
				t.Error(err)
			}
		}
	}
	screen := ""
	shows := func(what string, texts ...string) {
		t.Helper()
		defer func() {
			if t.Failed() {
				t.Logf("the screen:\n%s", screen)
			}
		}()
		eventually(t, what, func() bool {
			screen = run("capture-pane", "-p", "-t", "top")
			for _, text := range texts {
				if !strings.Contains(screen, text) {
					return false
				}
			}
			return true
		})
		keep("top-"+strings.ReplaceAll(what, " ", "-")+".txt", screen)
	}
	shows("first", "Cluster c1: healthy", "CS STATUS", " Q ", "ADDRESS", "EVENTS", "q quit",
		"all there")
	lines := strings.Split(strings.TrimRight(screen, "\n"), "\n")
	if len(lines) != 24 || strings.Count(screen, " active ") != 3 || !strings.HasPrefix(
		strings.TrimSpace(lines[23]), "q quit") {
		t.Errorf("%d lines:\n%s", len(lines), screen)
	}
	run("send-keys", "-t", "top", "s")
	shows("sorted", "s sort (latency)")
	run("send-keys", "-t", "top", "/", "c", "s", " ", "2", "Enter")
	shows("filtered", "filter: cs 2")
	if strings.Count(screen, " active ") != 1 {
		t.Errorf("the filter leaves\n%s", screen)
	}
	run("send-keys", "-t", "top", "Escape")
	shows("unfiltered", "/ filter  e")
	run("send-keys", "-t", "top", "c")
	shows("clients", "CLIENT", "IDLE", "c servers", guest)
	if strings.Contains(screen, " active ") {
		t.Errorf("servers among the clients\n%s", screen)
	}
	run("send-keys", "-t", "top", "c")
	run("resize-window", "-t", "top", "-x", "120", "-y", "30")
	shows("wide", "CHUNKS", "CLIENTS")
	run("send-keys", "-t", "top", "q")
	shows("ended", "ended with 0")
}
