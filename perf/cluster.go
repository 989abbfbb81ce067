package perf

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ClusterOptions say what cluster to start.
type ClusterOptions struct {
	Binary string   // path of pstorage; the other binaries lie beside it
	Dir    string   // where everything goes: an empty directory on the disk to be measured
	CS     int      // chunk servers
	Mount  string   // empty: no mount
	Args   []string // more arguments of pstorage dev
}

// Cluster is a program with its children that runs while something is measured: a whole cluster in
// one directory, run by `pstorage dev`, or one of its daemons.
type Cluster struct {
	cmd    *exec.Cmd
	exited chan struct{}
	silent chan struct{} // closed when no process can print any more
	mu     sync.Mutex    // guards output
	output []string      // the last lines it printed
}

// Limits of starting and stopping a cluster.
const (
	startLimit   = 60 * time.Second
	stopLimit    = 20 * time.Second
	outputLines  = 40
	readyMessage = "ready"
)

// StartCluster starts a cluster and returns when it is ready. After an error nothing of it runs.
func StartCluster(ctx context.Context, o ClusterOptions) (*Cluster, error) {
	args := []string{"dev", "--dir", o.Dir, "--cs", strconv.Itoa(o.CS)}
	if o.Mount != "" {
		args = append(args, "--mount", o.Mount)
	}
	return launch(ctx, exec.Command(o.Binary, append(args, o.Args...)...), readyMessage)
}

// launch starts a program and returns when a line of its output has the word ready. It gets SIGTERM
// if this process ends.
func launch(ctx context.Context, cmd *exec.Cmd, ready string) (*Cluster, error) {
	c := &Cluster{cmd: cmd, exited: make(chan struct{}), silent: make(chan struct{})}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	// Stopped by us alone: a Ctrl-C at the terminal must not reach it before the measuring stops.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	cmd.Stdout, cmd.Stderr = w, w
	started := make(chan error)
	go func() {
		// The death signal is sent when the thread that forked ends: keep it for as long.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is told by what it printed
			close(c.exited)
		}
	}()
	err = <-started
	w.Close()
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	if err := c.await(ctx, r, ready); err != nil {
		return nil, err
	}
	return c, nil
}

// await returns when the program is ready, or has been stopped because it isn't.
func (c *Cluster) await(ctx context.Context, output io.ReadCloser, word string) error {
	ready := make(chan struct{})
	go c.read(output, word, ready)
	name := filepath.Base(c.cmd.Path)
	var err error
	select {
	case <-ready:
		return nil
	case <-c.exited:
		select {
		case <-c.silent:
		case <-time.After(time.Second): // a child that lives on holds the pipe
		}
		return fmt.Errorf("%s did not start: %s", name, c.lastLines())
	case <-time.After(startLimit):
		err = fmt.Errorf("%s isn't ready after %v: %s", name, startLimit, c.lastLines())
	case <-ctx.Done():
		err = ctx.Err()
	}
	return errors.Join(err, c.Stop())
}

// read keeps the last lines of the output and closes ready at the first one with the word.
func (c *Cluster) read(r io.ReadCloser, word string, ready chan struct{}) {
	defer close(c.silent)
	defer r.Close()
	lines := bufio.NewScanner(r)
	isReady := false
	for lines.Scan() {
		c.mu.Lock()
		c.output = append(c.output, lines.Text())
		c.output = c.output[max(0, len(c.output)-outputLines):]
		c.mu.Unlock()
		if !isReady && strings.Contains(strings.ToLower(lines.Text()), word) {
			isReady = true
			close(ready)
		}
	}
	_, _ = io.Copy(io.Discard, r) // a line too long for the scanner must not block the cluster
}

func (c *Cluster) lastLines() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.output, " | ")
}

// PIDs returns the program's processes that are alive.
func (c *Cluster) PIDs() ([]int, error) { return ProcessTree(c.cmd.Process.Pid) }

// Stop stops the program in an orderly way, or kills it if that takes too long.
func (c *Cluster) Stop() error {
	pids, err := c.PIDs()
	if err != nil {
		return err
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-c.exited:
		return nil
	case <-time.After(stopLimit):
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-c.exited
	return fmt.Errorf("%s didn't stop in %v and was killed: %s", filepath.Base(c.cmd.Path), stopLimit,
		c.lastLines())
}

// FindBinary returns the path of a pstorage binary: beside this program, or on the PATH.
func FindBinary(name string) (string, error) {
	self, err := os.Executable()
	if err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("no %s beside this program or on the PATH: build it with make build",
			name)
	}
	return path, nil
}
