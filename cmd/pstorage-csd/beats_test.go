package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"pstorage/chunk"
	"pstorage/cmd/metrics"
	"pstorage/dataplane/cluster"
)

func testBeat(t *testing.T) string {
	t.Helper()
	o := chunk.Observation{CS: 3, Boot: 2, Capacity: 1 << 40, Lease: true, FromLog: 7}
	o.Stats.Reads = 41
	o.LogWait.Counts[2], o.LogWait.SumNs = 5, 150_000
	text, err := json.Marshal(&o)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestMetricsOfChildren: what a child said is what the endpoint says, in a form that parses.
func TestMetricsOfChildren(t *testing.T) {
	var b beats
	p, q := place{"c1", cluster.Daemon{Dir: "/a"}}, place{"c1", cluster.Daemon{Dir: "/b"}}
	b.started(p)
	b.started(q)
	b.take(p, testBeat(t))
	b.take(q, "{broken")
	scrape := func() metrics.Families {
		t.Helper()
		var text metrics.Text
		if err := b.collect(context.Background(), &text); err != nil {
			t.Fatal(err)
		}
		got, err := metrics.Parse(text.Bytes())
		if err != nil {
			t.Fatalf("%v\n%s", err, text.Bytes())
		}
		return got
	}
	got := scrape()
	for _, c := range []struct {
		family string
		labels []string
		want   float64
	}{
		{"pstorage_cs_up", []string{"dir", "/a"}, 1},
		{"pstorage_cs_up", []string{"dir", "/b"}, 0},
		{"pstorage_cs_starts", []string{"dir", "/b"}, 1},
		{"pstorage_cs_reads", []string{"cs", "3", "cluster", "c1"}, 41},
		{"pstorage_cs_cache_hit_blocks", nil, 7},
		{"pstorage_cs_capacity_bytes", nil, 1 << 40},
		{"pstorage_cs_lease", nil, 1},
		{"pstorage_cs_log_write_seconds", []string{"le", "+Inf"}, 5},
	} {
		if v, ok := got.Value(c.family, c.labels...); !ok || v != c.want {
			t.Errorf("%s %v: %v (%v), want %v", c.family, c.labels, v, ok, c.want)
		}
	}
	b.ended(p)
	b.forget(q)
	b.ended(q) // its child ends after the line is gone
	got = scrape()
	if v, _ := got.Value("pstorage_cs_up"); v != 0 || len(got["pstorage_cs_up"]) != 1 ||
		len(got["pstorage_cs_reads"]) != 0 {
		t.Errorf("after the end: %+v", got)
	}
}

// TestHungChildIsEnded: one that spoke and went silent is ended, one that never spoke isn't.
func TestHungChildIsEnded(t *testing.T) {
	var b beats
	p := place{"c1", cluster.Daemon{Dir: "/a"}}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	// Stopped, it can't even take the first signal.
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// A signal that comes before it has stopped would be taken first.
	eventually(t, "it is stopped", func() bool { return stopped(cmd.Process.Pid) })
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	b.started(p)
	for range 2 * killAfter {
		b.watchChild(log, p, cmd)
	}
	b.take(p, testBeat(t))
	for range killAfter - 1 {
		b.watchChild(log, p, cmd)
	}
	b.take(p, testBeat(t))
	for range killAfter - 1 {
		b.watchChild(log, p, cmd)
	}
	if !alive(cmd.Process.Pid) {
		t.Fatal("it was killed too early")
	}
	b.watchChild(log, p, cmd)
	if err := cmd.Wait(); err == nil {
		t.Error("it ended by itself")
	}
}

// TestPing: the supervisor answers while its loop turns, and only then.
func TestPing(t *testing.T) {
	s := testSupervisor(t, func() ([]place, error) { return nil, nil })
	pings := make(chan chan struct{})
	s.pings = pings
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := ping(short, pings); err == nil {
		t.Error("an answer without a supervisor")
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	for range 3 {
		if err := ping(ctx, pings); err != nil {
			t.Error(err)
		}
	}
	stop()
	<-ended
}

// stopped says whether a process is, by a signal.
func stopped(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(text), ") ")
	return err == nil && strings.HasPrefix(rest, "T")
}
