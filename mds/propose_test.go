package mds

import (
	"context"
	"errors"
	"testing"
	"time"

	"pstorage/dataplane"
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
