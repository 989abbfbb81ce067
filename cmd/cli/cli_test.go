package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"pstorage/dataplane"
)

func TestRun(t *testing.T) {
	newRoot := func() *cobra.Command {
		root := &cobra.Command{Use: "prog"}
		add := func(name string, err error) {
			root.AddCommand(&cobra.Command{Use: name, Args: NoArgs,
				RunE: func(*cobra.Command, []string) error { return err }})
		}
		add("fine", nil)
		add("bare", errors.New("no luck"))
		add("told", Failf("open x", "it is locked\nby y", "stop y"))
		add("refuse", &Error{Why: errors.New("damaged"), Status: ExitRefuse})
		add("usage", Usage("-a is missing"))
		return root
	}
	tests := []struct {
		args   string
		status int
		line   string
	}{
		{"fine", 0, ""},
		{"bare", 1, "prog: no luck\n"},
		{"told", 1, "prog: open x: it is locked by y; stop y\n"},
		{"refuse", 78, "prog: damaged\n"},
		{"usage", 2, "prog: -a is missing\n"},
		{"fine extra", 2, "prog: unexpected argument \"extra\"; see prog fine --help\n"},
		{"fine --what", 2, "prog: unknown flag: --what; see prog fine --help\n"},
		{"nonsense", 2, "prog: unknown command \"nonsense\" for \"prog\"; see prog --help\n"},
	}
	for _, test := range tests {
		var stderr bytes.Buffer
		status := Run(context.Background(), newRoot(), strings.Fields(test.args), &stderr)
		if status != test.status || stderr.String() != test.line {
			t.Errorf("%s: status %d, stderr %q; want %d, %q",
				test.args, status, stderr.String(), test.status, test.line)
		}
	}
}

func TestFailKeepsInnermostAdvice(t *testing.T) {
	inner := Failf("a", "b", "c")
	if err := Fail("outer", fmt.Errorf("wrapped: %w", inner), "other"); !errors.Is(err, inner) ||
		strings.Contains(err.Error(), "other") {
		t.Errorf("got %v", err)
	}
	if err := Fail("open x", errors.New("open x: locked"), ""); err.Error() != "open x: locked" {
		t.Errorf("said twice: %v", err)
	}
	if Fail("x", nil, "y") != nil {
		t.Error("an error out of nothing")
	}
}

func TestPlainAndRefusal(t *testing.T) {
	_, err := os.Open("/no/such/file")
	if got := Plain(err).Error(); got != "no such file or directory" {
		t.Errorf("Plain: %q", got)
	}
	if !Refusal(dataplane.E("x", dataplane.WrongCluster, nil)) ||
		Refusal(dataplane.E("x", dataplane.Unreachable, nil)) || Refusal(fs.ErrClosed) {
		t.Error("Refusal confuses permanent and passing failures")
	}
}

func TestSize(t *testing.T) {
	good := map[string]uint64{
		"0": 0, "1": 1, "4096": 4096, "4k": 4096, "256M": 256 << 20, "1.5G": 3 << 29,
		"10GiB": 10 << 30, "2TB": 2 << 40, "1P": 1 << 50, "0.5K": 512, "15E": 15 << 60, "7b": 7,
	}
	for text, want := range good {
		var s Size
		if err := s.Set(text); err != nil || uint64(s) != want {
			t.Errorf("%q: %d, %v; want %d", text, s, err, want)
		}
		var again Size
		if err := again.Set(s.String()); err != nil || again != s {
			t.Errorf("%q: String gives %q, which reads as %d, %v", text, s.String(), again, err)
		}
	}
	for _, text := range []string{"", "G", "-1", "1X", "1e3", "0x10", "inf", "NaN", "16E",
		"1 G G", "99E"} {
		var s Size
		if err := s.Set(text); err == nil {
			t.Errorf("%q is accepted as %d", text, s)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB",
		1<<20 - 1: "1.0 MiB", 3 << 29: "1.5 GiB", 1 << 63: "8.0 EiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestLogAndPIDFile(t *testing.T) {
	dir := t.TempDir()
	flags := LogFlags{File: filepath.Join(dir, "log"), PIDFile: filepath.Join(dir, "pid")}
	log, err := flags.Open(nil)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("hello")
	log.Debug("too much")
	text, _ := os.ReadFile(flags.File)
	if !strings.Contains(string(text), "msg=hello") || strings.Contains(string(text), "too much") {
		t.Errorf("log: %q", text)
	}
	remove, err := flags.WritePID()
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(flags.PIDFile); string(text) != fmt.Sprintln(os.Getpid()) {
		t.Errorf("PID file: %q", text)
	}
	remove()
	if _, err := os.Stat(flags.PIDFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("PID file is left: %v", err)
	}
	flags.File = filepath.Join(dir, "none", "log")
	if _, err := flags.Open(nil); err == nil || !strings.Contains(err.Error(), "--log") {
		t.Errorf("log in no directory: %v", err)
	}
}

func TestNotify(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify("READY=1"); err != nil {
		t.Errorf("without a manager: %v", err)
	}
	name := fmt.Sprintf("@pstorage-test-%d", os.Getpid())
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	if err := Notify("READY=1"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Errorf("the manager got %q, %v", buf[:n], err)
	}
}
