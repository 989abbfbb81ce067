package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// bin is where TestMain built the programs.
var bin string

// TestMain builds all programs once: these tests run them as a person would.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "pstorage-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	build := exec.Command("go", "build", "-o", dir, "pstorage/cmd/pstorage",
		"pstorage/cmd/pstorage-mdsd", "pstorage/cmd/pstorage-csd", "pstorage/cmd/pstorage-mount")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		os.Exit(1)
	}
	bin = dir
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// node is a machine with its own configuration directory.
type node struct {
	t   *testing.T
	dir string // for everything
	etc string
	bin string // of its programs; empty: those of this tree
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, dir: dir, etc: filepath.Join(dir, "etc")}
	err := os.Mkdir(n.etc, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(n.etc, "discovery"), []byte("list\n"), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

func (n *node) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(cmp.Or(n.bin, bin), program), args...)
	cmd.Env = append(os.Environ(), "PSTORAGE_ETC="+n.etc)
	cmd.Dir = n.dir
	return cmd
}

type result struct {
	status         int
	stdout, stderr string
}

// run runs a program to its end; a hanging one is killed after a minute.
func (n *node) run(stdin, program string, args ...string) result {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := n.command(ctx, program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		n.t.Fatalf("%s %v: %v", program, args, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// ok runs pstorage, which must succeed, and returns what it printed.
func (n *node) ok(stdin string, args ...string) string {
	n.t.Helper()
	r := n.run(stdin, "pstorage", args...)
	if r.status != 0 {
		n.t.Fatalf("pstorage %s: status %d: %s", strings.Join(args, " "), r.status, r.stderr)
	}
	return r.stdout
}

// refused runs pstorage, which must fail with the status and one line that has all of says, and
// must change nothing.
func (n *node) refused(stdin string, status int, says []string, args ...string) {
	n.t.Helper()
	before := n.snapshot()
	r := n.run(stdin, "pstorage", args...)
	name := "pstorage " + strings.Join(args, " ")
	if r.status != status {
		n.t.Errorf("%s: status %d, want %d (stderr %q)", name, r.status, status, r.stderr)
	}
	if !strings.HasPrefix(r.stderr, "pstorage: ") || strings.Count(r.stderr, "\n") != 1 {
		n.t.Errorf("%s: stderr isn't one line of \"pstorage: ...\": %q", name, r.stderr)
	}
	for _, text := range says {
		if !strings.Contains(r.stderr, text) {
			n.t.Errorf("%s: stderr %q doesn't say %q", name, r.stderr, text)
		}
	}
	if r.stdout != "" {
		n.t.Errorf("%s: stdout %q, want none", name, r.stdout)
	}
	if after := n.snapshot(); after != before {
		n.t.Errorf("%s changed something:\nbefore:\n%s\nafter:\n%s", name, before, after)
	}
}

// snapshot describes all files of the node: names, modes, sizes, times of change.
func (n *node) snapshot() string {
	var b strings.Builder
	filepath.WalkDir(n.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return nil
		}
		fmt.Fprintf(&b, "%s %v", path, info.Mode())
		if !entry.IsDir() {
			fmt.Fprintf(&b, " %d %v", info.Size(), info.ModTime())
		}
		b.WriteByte('\n')
		return nil
	})
	return b.String()
}

// drawnPorts are those that freePort has returned: whoever got one may not listen yet.
var drawnPorts struct {
	sync.Mutex
	used map[netip.AddrPort]bool
}

// freePort returns a loopback port at which nothing listens, each one once.
func freePort(t *testing.T) string {
	t.Helper()
	d := &drawnPorts
	d.Lock()
	defer d.Unlock()
	addr, err := freeAddr(d.used)
	if err != nil {
		t.Fatal(err)
	}
	if d.used == nil {
		d.used = make(map[netip.AddrPort]bool)
	}
	d.used[addr] = true
	return addr.String()
}

// daemon is a program that runs in the background of a test.
type daemon struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *watched
	done chan struct{}
}

// start starts a daemon; at the end of the test it is stopped if it hasn't been.
func (n *node) start(program string, args ...string) *daemon {
	n.t.Helper()
	d := &daemon{t: n.t, cmd: n.command(context.Background(), program, args...),
		out: newWatched(), done: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	if err := d.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	go func() {
		d.cmd.Wait()
		close(d.done)
		d.out.end()
	}()
	n.t.Cleanup(func() {
		d.stop()
		if n.t.Failed() {
			n.t.Logf("%s %v said:\n%s", program, args, d.out.text())
		}
	})
	return d
}

// stop asks the daemon to stop and waits until it has.
func (d *daemon) stop() {
	d.t.Helper()
	d.cmd.Process.Signal(os.Interrupt)
	select {
	case <-d.done:
	case <-time.After(30 * time.Second):
		d.t.Errorf("%s doesn't stop", d.cmd.Path)
		d.cmd.Process.Kill()
		<-d.done
	}
}

// waitFor waits until the daemon has printed a line with text in it, and returns that line.
func (d *daemon) waitFor(text string) string {
	d.t.Helper()
	line, ok := d.out.waitFor(text, 30*time.Second)
	if !ok {
		d.t.Fatalf("%s never said %q; it said:\n%s", filepath.Base(d.cmd.Path), text, d.out.text())
	}
	return line
}

// listening makes something listen, so that the address is in use.
func listening(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener.Addr().String()
}
