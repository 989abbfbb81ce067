package mds

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestGaveUp: one that waits for a change when the leadership ends is sent to the next leader, and
// one whose own time is over is told that.
func TestGaveUp(t *testing.T) {
	r := &replica{sim: &Sim{}} // whose notLeader asks no raft
	l := &leader{}
	l.begin()
	ofLeader, free := context.WithTimeout(l.ctx, time.Hour)
	defer free()
	l.stop()
	late, free := context.WithTimeout(context.Background(), -1)
	defer free()
	for _, c := range []struct {
		why  string
		ctx  context.Context
		next bool // the next leader is to be asked
	}{
		{"the leadership ended", l.ctx, true},
		{"the leadership ended, below it", ofLeader, true},
		{"the time is over", late, false},
	} {
		err := r.gaveUp(c.ctx, "metadata change")
		var moved *notLeader
		if errors.As(err, &moved) != c.next ||
			!c.next && dataplane.KindOf(err) != dataplane.TimedOut {
			t.Errorf("%s: %v", c.why, err)
		}
	}
}

// TestProposeTooLate: what a leadership decided isn't proposed after its end. The next one may be
// this server's, too, and have given leases that the decision doesn't know of.
func TestProposeTooLate(t *testing.T) {
	c := newTestCluster(t, 1)
	r := c.nodes[0].r
	eventually(t, "a leader", func() bool { return c.nodes[0].lead.Load() != nil })
	l := &leader{}
	l.begin()
	l.stop()
	for i := range 64 {
		_, err := r.propose(l.ctx, &cmdAddEvent{Code: fmt.Sprint("late", i)})
		if moved := new(*notLeader); !errors.As(err, moved) {
			t.Fatal(err)
		}
	}
	// One that waits for its turn when the leadership ends.
	l.begin()
	p := &proposal{ctx: l.ctx, cmd: &cmdAddEvent{Code: "late, queued"}, done: make(chan struct{})}
	l.stop()
	r.proposals <- p
	if _, err := r.propose(t.Context(), &cmdAddEvent{Code: "last"}); err != nil {
		t.Fatal(err)
	}
	<-p.done
	r.fsm.mu.RLock()
	defer r.fsm.mu.RUnlock()
	r.fsm.s.events.each(func(e *control.Event) bool {
		if strings.HasPrefix(e.Code, "late") {
			t.Errorf("%q was proposed after the end of its leadership", e.Code)
			return false
		}
		return true
	})
}
