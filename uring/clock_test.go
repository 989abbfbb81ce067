package uring

import (
	"testing"
	"time"
)

// TestClockOfSuspension: the clock goes on while the host is suspended, and doesn't move when the
// wall clock is set.
func TestClockOfSuspension(t *testing.T) {
	c := newClock()
	var suspended, set int64
	asked := 0
	c.bootAhead = func() int64 { asked++; return c.ahead + suspended }
	c.wallOf = func(t time.Time) int64 { // in step with the other
		return c.base.UnixNano() + int64(t.Sub(c.base)) + suspended + set
	}
	read := func(want int64) {
		t.Helper()
		before := int64(time.Since(c.base))
		got := c.now() - c.baseNs
		if after := int64(time.Since(c.base)); got < before+want || got > after+want {
			t.Errorf("%d ns after %d to %d ns and %d ns of suspension", got, before, after, want)
		}
	}
	read(0)
	suspended = 3600e9
	read(3600e9)
	suspended += 2e9
	read(3602e9)
	before := asked
	for range 1000 {
		read(3602e9)
	}
	if asked != before {
		t.Errorf("the kernel was asked %d times in 1000 readings", asked-before)
	}
	for _, set = range []int64{-7200e9, 7200e9, 0} {
		read(3602e9)
	}
	suspended += clockStep / 2
	read(3602e9)
	suspended += clockStep // short ones count together
	read(3602e9 + clockStep*3/2)
}

// TestBoottime: what other threads read is the loop's clock.
func TestBoottime(t *testing.T) {
	c := newClock()
	before := Boottime()
	now := c.now()
	after := Boottime()
	// newClock may have been interrupted between its two clocks.
	if now < before || now > after+int64(10*time.Second) {
		t.Errorf("%d, Boottime %d before and %d after it", now, before, after)
	}
}

// TestTimersAfterSuspension: timers are due by the clock that goes on in a suspension, though the
// kernel's that wake the loop stand still in it.
func TestTimersAfterSuspension(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	fired := make(chan struct{})
	late := make(chan int64, 1)
	on(t, l, func() {
		// An alarm for the long one, which wakes in an hour, and again after it.
		l.Arm(&Timer{Fire: func() { close(fired) }}, 3600e9)
	})
	on(t, l, func() {
		suspended := int64(3600e9 - 20e6)
		l.clock.bootAhead = func() int64 { return l.clock.ahead + suspended }
		l.clock.wallOf = func(t time.Time) int64 { return t.UnixNano() + suspended }
	})
	on(t, l, func() {
		due := l.Now() + 5e6
		l.Arm(&Timer{Fire: func() { late <- l.Now() - due }}, 5e6)
	})
	if await(t, late, "timer after the suspension") < 0 {
		t.Error("it fired early")
	}
	await(t, fired, "timer of before the suspension")
}
