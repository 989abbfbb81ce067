package uring

import (
	"testing"
	"time"
)

func TestAlarms(t *testing.T) {
	var a alarms
	if a.covers(0, 1<<62) {
		t.Fatal("covered without an entry")
	}
	a.add(100)
	for _, c := range []struct {
		now, at int64
		want    bool
	}{{0, 100, true}, {0, 500, true}, {0, 99, false}, {99, 100, true}} {
		if got := a.covers(c.now, c.at); got != c.want {
			t.Errorf("now %d: covers(%d) = %v", c.now, c.at, got)
		}
	}
	// A busy time with a short timer before the long one doesn't have the long one set anew.
	a.add(50)
	if !a.covers(50, 300) || a.n != 1 {
		t.Errorf("the later entry is forgotten when the earlier one fired: %+v", a)
	}
	if a.covers(100, 300) || a.n != 0 {
		t.Errorf("an entry counts that has fired: %+v", a)
	}
	// Too many: the latest is forgotten, the earliest never.
	for at := int64(1000); at > 1000-2*maxAlarms; at-- {
		if a.covers(100, at) {
			t.Fatalf("covers(%d): %+v", at, a)
		}
		a.add(at)
	}
	if a.n != maxAlarms || !a.covers(100, 1001-2*maxAlarms) || a.covers(1000-maxAlarms, 999) {
		t.Errorf("%+v", a)
	}
}

// TestLoopTimersOverManySleeps has sleeps end by completions all the time: timers fire
// nevertheless, and few entries are made for them.
func TestLoopTimersOverManySleeps(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	fired := make(chan int64, 1)
	short, long := &Timer{}, &Timer{}
	var due int64
	long.Fire = func() { fired <- l.Now() - due }
	short.Fire = func() {}
	on(t, l, func() {
		due = l.Now() + 30e6
		l.Arm(long, 30e6)
	})
	giveUp := time.After(20 * time.Second)
	for {
		on(t, l, func() { l.Arm(short, 1e6); l.Disarm(short) }) // wakes the loop
		on(t, l, func() { l.Arm(short, 1e6) })
		select {
		case <-giveUp:
			t.Fatal("the timer doesn't fire")
		case late := <-fired:
			if late < 0 {
				t.Errorf("fired %d ns early", -late)
			}
			on(t, l, func() {
				if l.alarms.n > 2 {
					t.Errorf("%d entries in flight for two timers", l.alarms.n)
				}
			})
			return
		default:
		}
	}
}
