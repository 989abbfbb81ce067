package cli

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestWatchdog: the service manager hears of a process as long as alive says so, and not longer.
func TestWatchdog(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "80000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	var stuck atomic.Bool
	alive := func(ctx context.Context) error {
		if stuck.Load() {
			<-ctx.Done()
			return errors.New("the loop\ndoesn't answer")
		}
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		Watchdog(ctx, slog.New(slog.NewTextHandler(io.Discard, nil)), alive)
		close(ended)
	}()
	receive := func() string {
		t.Helper()
		buf := make([]byte, 4096)
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	for range 3 {
		if got := receive(); got != "WATCHDOG=1" {
			t.Fatalf("told %q", got)
		}
	}
	stuck.Store(true)
	for got := receive(); !strings.HasPrefix(got, "STATUS="); got = receive() {
		if got != "WATCHDOG=1" { // some may have been on their way
			t.Fatalf("told %q", got)
		}
	}
	for range 3 {
		if got := receive(); got != "STATUS=not alive: the loop doesn't answer" {
			t.Fatalf("told %q while the loop is stuck", got)
		}
	}
	cancel()
	<-ended
}

func TestWatchdogInterval(t *testing.T) {
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0}, {"x", "", 0}, {"-1", "", 0}, {"99999999999999", "", 0},
		{"1000000", "", time.Second}, {"1000000", "1", 0},
		{"1000000", strconv.Itoa(os.Getpid()), time.Second},
	} {
		t.Setenv("WATCHDOG_USEC", c.usec)
		t.Setenv("WATCHDOG_PID", c.pid)
		if got := watchdogInterval(); got != c.want {
			t.Errorf("%q %q: %v, want %v", c.usec, c.pid, got, c.want)
		}
	}
}
