package main

import (
	"encoding/json"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"pstorage/chunk"
)

// A child that serves tells every second what it measured. The answer comes from the loop that
// does its I/O, so a child that says nothing doesn't serve either: it has lost its lease long
// before it is ended here. Seconds are counted by ticks of this process, so that a machine that
// was suspended isn't taken for a child that hangs.
const (
	beatTick   = time.Second
	hungAfter  = 30 // ticks without a sign of life until the child gets SIGABRT
	killAfter  = 35 // and SIGKILL
	beatPrefix = "beat "
)

// beats is what the children said last.
type beats struct {
	mu   sync.Mutex
	last map[place]*beat
}

// beat is what is known of the child in one place.
type beat struct {
	place  place
	starts uint64
	up     bool // a child runs and has said something
	seen   chunk.Observation
	at     time.Time
	silent int // ticks since it said something; 0 as well if it never did
}

// started notes a new child.
func (b *beats) started(p place) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == nil {
		b.last = make(map[place]*beat)
	}
	e := b.last[p]
	if e == nil {
		e = &beat{place: p}
		b.last[p] = e
	}
	e.starts++
	e.up, e.silent = false, 0
}

// ended notes that the child is gone.
func (b *beats) ended(p place) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.last[p]; e != nil {
		e.up = false
	}
}

// forget is for a place that is no longer in the list.
func (b *beats) forget(p place) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.last, p)
}

// take reads what a child says. What isn't an observation is of another version: it is not shown.
func (b *beats) take(p place, text string) {
	var seen chunk.Observation
	if json.Unmarshal([]byte(text), &seen) != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if e := b.last[p]; e != nil {
		e.up, e.silent, e.seen, e.at = true, 0, seen, time.Now()
	}
}

// tick counts one more tick without a sign of life, if there was one ever, and returns how many
// that are.
func (b *beats) tick(p place) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.last[p]
	if e == nil || !e.up {
		return 0
	}
	e.silent++
	return e.silent
}

// all returns what is known, in the order of clusters and directories.
func (b *beats) all() []beat {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []beat
	for _, e := range b.last {
		list = append(list, *e)
	}
	slices.SortFunc(list, func(x, y beat) int {
		if c := strings.Compare(x.place.cluster, y.place.cluster); c != 0 {
			return c
		}
		return strings.Compare(x.place.daemon.Dir, y.place.daemon.Dir)
	})
	return list
}

// watchChild ends a child that gives no sign of life. It is called with every tick.
func (b *beats) watchChild(log *slog.Logger, p place, cmd *exec.Cmd) {
	switch b.tick(p) {
	case hungAfter:
		log.Error("the chunk server's loop doesn't answer: ending it", "pid", cmd.Process.Pid,
			"seconds", hungAfter)
		cmd.Process.Signal(syscall.SIGABRT)
	case killAfter:
		cmd.Process.Kill()
	}
}
