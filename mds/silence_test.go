package mds

import (
	"testing"
	"time"
)

// TestSilence says when a follower gives its leader up.
func TestSilence(t *testing.T) {
	const timeout = 400 * time.Millisecond
	for range 100 {
		s := newSilence()
		last := time.Unix(100, 0)
		at := func(d time.Duration) bool { return s.over(last.Add(d), last, timeout) }
		if at(0) || at(timeout-1) {
			t.Fatal("too early")
		}
		when := timeout
		for ; !at(when); when += time.Millisecond {
			if when > timeout*3/2 {
				t.Fatal("too late")
			}
		}
		// Raft tries by itself; it is told again after as long only.
		if at(when+1) || at(when+timeout-1) {
			t.Fatal("again too early")
		}
		if !at(when + timeout*3/2) {
			t.Fatal("not again")
		}
	}
}
