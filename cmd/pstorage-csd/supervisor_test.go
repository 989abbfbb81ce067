package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pstorage/cmd/cli"
	"pstorage/dataplane/cluster"
)

// TestMain lets the test binary be the supervisor's child: FAKE_CHILD says how it behaves, and
// its directory counts its starts.
func TestMain(m *testing.M) {
	switch os.Getenv("FAKE_CHILD") {
	case "":
		os.Exit(m.Run())
	case "serve":
		fakeServe()
	case "crash":
		fakeIdentify()
		os.Exit(1)
	case "refuse":
		fakeBoot()
		os.Exit(cli.ExitRefuse)
	case "deaf":
		signal.Ignore(syscall.SIGTERM)
		fakeServe()
	case "parent":
		fakeParent()
	}
	os.Exit(99)
}

// fakeBoot appends this process's id to the file "boots" and returns how many lines there are.
func fakeBoot() int {
	path := filepath.Join(os.Getenv("FAKE_DIR"), "boots")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		os.Exit(98)
	}
	fmt.Fprintln(f, os.Getpid())
	f.Close()
	text, _ := os.ReadFile(path)
	return strings.Count(string(text), "\n")
}

func fakeIdentify() *os.File {
	status := os.NewFile(statusFD, "status")
	fmt.Fprintf(status, "id 7 %d\n", fakeBoot())
	return status
}

func fakeServe() {
	stop := make(chan os.Signal, 1)
	if os.Getenv("FAKE_CHILD") != "deaf" {
		signal.Notify(stop, syscall.SIGTERM)
	}
	fmt.Fprintln(fakeIdentify(), "ready 127.0.0.1:1")
	<-stop
	os.Exit(0)
}

// fakeParent is a supervisor that the test kills.
func fakeParent() {
	p := place{"c1", cluster.Daemon{Dir: os.Getenv("FAKE_DIR")}}
	s := testSupervisor(nil, func() ([]place, error) { return []place{p}, nil })
	s.ready = func() { fmt.Println("ready") }
	s.run(context.Background())
}

type testing1 interface{ Output() io.Writer }

func testSupervisor(t testing1, list func() ([]place, error)) *supervisor {
	out := io.Discard
	if t != nil {
		out = t.Output()
	}
	return &supervisor{
		spawner: cli.NewSpawner(),
		log:     slog.New(slog.NewTextHandler(out, nil)),
		list:    list,
		certify: func(context.Context, place, incarnation, bool) {},
		ready:   func() {},
		command: func(p place) *exec.Cmd {
			cmd := exec.Command(os.Args[0])
			mode, err := os.ReadFile(filepath.Join(p.daemon.Dir, "mode"))
			if err != nil {
				mode = []byte("serve")
			}
			cmd.Env = append(os.Environ(), "FAKE_CHILD="+string(mode), "FAKE_DIR="+p.daemon.Dir)
			return cmd
		},
	}
}

// fakeCS makes a directory whose child behaves as mode says.
func fakeCS(t *testing.T, mode string) place {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mode"), []byte(mode), 0o644); err != nil {
		t.Fatal(err)
	}
	return place{"c1", cluster.Daemon{Dir: dir}}
}

// pids returns the process ids of the starts so far.
func pids(p place) []int {
	text, _ := os.ReadFile(filepath.Join(p.daemon.Dir, "boots"))
	var all []int
	for line := range strings.Lines(string(text)) {
		var pid int
		fmt.Sscan(line, &pid)
		all = append(all, pid)
	}
	return all
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(rest, "Z")
}

func TestSupervisorRestartsAndCertifies(t *testing.T) {
	p := fakeCS(t, "serve")
	s := testSupervisor(t, func() ([]place, error) { return []place{p}, nil })
	ready := make(chan struct{})
	s.ready = func() { close(ready) }
	exits := make(chan incarnation, 10)
	var stopping atomic.Bool
	s.certify = func(_ context.Context, at place, who incarnation, planned bool) {
		if at != p || planned != stopping.Load() {
			t.Errorf("exit of %v reported for %v, planned %v", p, at, planned)
		}
		exits <- who
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	<-ready
	first := pids(p)[0]
	killed := time.Now()
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if who := <-exits; who != (incarnation{CS: 7, Boot: 1}) {
		t.Errorf("certified %v, want cs 7 boot 1", who)
	}
	if alive(first) {
		t.Error("an exit was certified while the process lives")
	}
	eventually(t, "a second child", func() bool { return len(pids(p)) == 2 })
	if took := time.Since(killed); took > 3*time.Second {
		t.Errorf("the first restart took %v", took)
	}
	stopping.Store(true)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	select {
	case <-exits:
	default:
		t.Error("a planned stop wasn't certified when run returned")
	}
	if pid := pids(p)[1]; alive(pid) {
		t.Errorf("child %d outlives run", pid)
	}
}

func TestSupervisorRefusal(t *testing.T) {
	bad, good := fakeCS(t, "refuse"), fakeCS(t, "serve")
	s := testSupervisor(t, func() ([]place, error) { return []place{bad, good}, nil })
	ready, wake := make(chan struct{}), make(chan struct{})
	s.ready, s.wake = func() { close(ready) }, wake
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	<-ready // one refuses, the other serves: nothing is left to wait for
	for range 3 {
		if _, err := s.list(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(watchEvery / 2)
	}
	if n := len(pids(bad)); n != 1 {
		t.Errorf("a child that refuses was started %d times", n)
	}
	wake <- struct{}{}
	eventually(t, "another try after the wake-up", func() bool { return len(pids(bad)) == 2 })
	if n := len(pids(good)); n != 1 {
		t.Errorf("the wake-up restarted a good child (%d starts)", n)
	}
	cancel()
	<-done
}

// TestSupervisorReadyWithoutOne: a child that ends again and again doesn't keep the others' service
// from being ready, whose manager would stop them all.
func TestSupervisorReadyWithoutOne(t *testing.T) {
	bad, good := fakeCS(t, "crash"), fakeCS(t, "serve")
	s := testSupervisor(t, func() ([]place, error) { return []place{bad, good}, nil })
	ready := make(chan struct{})
	s.ready = func() { close(ready) }
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	select {
	case <-ready:
	case <-time.After(15 * time.Second):
		t.Error("not ready")
	}
	eventually(t, "the other is started again", func() bool { return len(pids(bad)) > 1 })
	cancel()
	<-done
}

func TestSupervisorFollowsTheList(t *testing.T) {
	a, b := fakeCS(t, "serve"), fakeCS(t, "serve")
	var places atomic.Pointer[[]place]
	places.Store(&[]place{a})
	s := testSupervisor(t, func() ([]place, error) {
		if list := places.Load(); list != nil {
			return *list, nil
		}
		return nil, errors.New("the list is broken")
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.run(ctx) }()
	eventually(t, "a runs", func() bool { return len(pids(a)) == 1 })
	places.Store(&[]place{a, b})
	added := time.Now()
	eventually(t, "b runs", func() bool { return len(pids(b)) == 1 })
	if took := time.Since(added); took > time.Second {
		t.Errorf("a new line was picked up after %v, want 1 s", took)
	}
	places.Store(nil) // what runs goes on
	time.Sleep(watchEvery + watchEvery/4)
	if !alive(pids(a)[0]) || !alive(pids(b)[0]) {
		t.Error("a broken list stops children")
	}
	places.Store(&[]place{}) // nor does one that is just being written
	time.Sleep(watchEvery + watchEvery/4)
	places.Store(&[]place{a, b})
	time.Sleep(goneAfter)
	if !alive(pids(a)[0]) || !alive(pids(b)[0]) {
		t.Error("a list that is empty for a moment stops children")
	}
	places.Store(&[]place{b})
	eventually(t, "a is stopped", func() bool { return !alive(pids(a)[0]) })
	if !alive(pids(b)[0]) {
		t.Error("b was stopped too")
	}
	cancel()
	<-done
}

func TestSupervisorBackoff(t *testing.T) {
	var delays []time.Duration
	for delay := time.Duration(0); len(delays) < 9; delay = nextDelay(delay) {
		delays = append(delays, delay)
	}
	if delays[0] != 0 || delays[1] != firstDelay || delays[8] != maxDelay {
		t.Errorf("delays: %v", delays)
	}
	p := fakeCS(t, "crash")
	s := testSupervisor(t, func() ([]place, error) { return []place{p}, nil })
	ctx, cancel := context.WithTimeout(context.Background(), 1200*time.Millisecond)
	defer cancel()
	s.run(ctx)
	// Starts at about 0, 0, 0.1, 0.3, 0.7 s, so a few; never a loop that eats the machine.
	if n := len(pids(p)); n < 3 || n > 6 {
		t.Errorf("%d starts in 1.2 s", n)
	}
}

func TestSupervisorFirstListFails(t *testing.T) {
	s := testSupervisor(t, func() ([]place, error) { return nil, errors.New("no list") })
	if err := s.run(context.Background()); err == nil {
		t.Error("run goes on without a list")
	}
}

// TestChildrenDieWithTheSupervisor: kill -9 of the supervisor takes its children away.
func TestChildrenDieWithTheSupervisor(t *testing.T) {
	p := fakeCS(t, "deaf")
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), "FAKE_CHILD=parent", "FAKE_DIR="+p.daemon.Dir)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	child := pids(p)[0]
	if !alive(child) {
		t.Fatal("the child isn't running before the kill")
	}
	parent.Process.Kill()
	parent.Wait()
	eventually(t, "the child is gone", func() bool { return !alive(child) })
}
