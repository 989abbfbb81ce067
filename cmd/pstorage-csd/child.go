package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"pstorage/dataplane"
)

// A child tells its supervisor about itself through a pipe, its file descriptor statusFD:
//
//	id CS BOOT     before it registers: this process will act as this incarnation
//	ready ADDR     it serves
//	beat JSON      every second, while its loop turns: a chunk.Observation
//	refuse CS TEXT it won't serve this directory, and why; CS is 0 if it doesn't know whose it is
const statusFD = 3

// runChild starts a child for p, waits until it has exited, and returns who it was (zero if it
// didn't get as far as knowing that) and how it ended. When ctx ends it is asked to stop.
func (s *supervisor) runChild(ctx context.Context, log *slog.Logger, p place,
	ready func()) (incarnation, error) {
	if ctx.Err() != nil {
		return incarnation{}, ctx.Err()
	}
	r, w, err := os.Pipe()
	if err != nil {
		return incarnation{}, err
	}
	defer r.Close()
	cmd := s.command(p)
	cmd.ExtraFiles = []*os.File{w}
	err = s.spawner.Start(cmd, syscall.SIGKILL)
	w.Close()
	if err != nil {
		return incarnation{}, fmt.Errorf("start the chunk server: %w", err)
	}
	log.Debug("child started", "pid", cmd.Process.Pid)
	status := make(chan incarnation, 1)
	s.beats.started(p)
	defer s.beats.ended(p)
	go func() { status <- readStatus(r, ready, func(text string) { s.beats.take(p, text) }) }()
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	err = s.waitChild(ctx, log, p, cmd, exited)
	return <-status, err // the pipe's other end is closed: the child has no children
}

// waitChild waits until the child has exited; it is stopped when ctx ends, or when it hangs.
func (s *supervisor) waitChild(ctx context.Context, log *slog.Logger, p place, cmd *exec.Cmd,
	exited <-chan error) error {
	tick := time.NewTicker(beatTick)
	defer tick.Stop()
	for {
		select {
		case err := <-exited:
			return err
		case <-ctx.Done():
			return stopChild(log, cmd, exited)
		case <-tick.C:
			s.beats.watchChild(log, p, cmd)
		}
	}
}

// stopChild asks the child to stop, and kills it if that takes too long.
func stopChild(log *slog.Logger, cmd *exec.Cmd, exited <-chan error) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		return <-exited
	}
	select {
	case err := <-exited:
		return err
	case <-time.After(stopWithin):
		log.Warn("the chunk server didn't stop in time: killing it", "pid", cmd.Process.Pid)
		cmd.Process.Kill()
		return <-exited
	}
}

// readStatus reads what a child tells until the pipe closes.
func readStatus(r io.Reader, ready func(), beat func(string)) incarnation {
	var who incarnation
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), beatPrefix); ok {
			beat(text)
			continue
		}
		var cs dataplane.CSID
		var boot uint64
		if n, _ := fmt.Sscanf(lines.Text(), "id %d %d", &cs, &boot); n == 2 {
			who = incarnation{CS: cs, Boot: boot}
			continue
		}
		var addr string
		if n, _ := fmt.Sscanf(lines.Text(), "ready %s", &addr); n == 1 {
			ready()
			continue
		}
		if rest, ok := strings.CutPrefix(lines.Text(), "refuse "); ok {
			number, reason, _ := strings.Cut(rest, " ")
			if n, _ := fmt.Sscan(number, &cs); n == 1 {
				who.Refusal, who.RefusedCS = reason, cs
			}
		}
	}
	return who
}
