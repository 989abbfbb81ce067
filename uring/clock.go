package uring

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// clock is CLOCK_BOOTTIME, which goes on while the host is suspended: a lease must run out then.
// Asking the kernel for it is a system call; the monotonic and the wall clock are read without. At
// the end of a suspension the wall clock is set ahead of the monotonic one. So the kernel is only
// asked when these two have moved against each other, by that or by whoever sets the time.
//
// A virtual machine that is paused, or restored, has no clock that knows of it.
type clock struct {
	base   time.Time
	baseNs int64 // CLOCK_BOOTTIME then
	ahead  int64 // of the monotonic clock, then
	wall   int64 // the wall clock less the monotonic one since base, as it was seen last
	slept  int64 // how long the host has been suspended since base

	bootAhead func() int64 // tests have others
	wallOf    func(time.Time) int64
}

// clockStep is by how much two clocks have to move against each other to be noticed, in ns. They
// are read one after the other, so they seem to move all the time.
const clockStep = int64(time.Millisecond)

func newClock() clock {
	// base comes first: that this clock is ahead ends leases early, never late.
	c := clock{base: time.Now(), bootAhead: bootAhead, wallOf: time.Time.UnixNano}
	c.baseNs, c.ahead, c.wall = Boottime(), bootAhead(), c.base.UnixNano()
	return c
}

func (c *clock) now() int64 {
	t := time.Now()
	ns := int64(t.Sub(c.base))
	if wall := c.wallOf(t) - ns; wall-c.wall > clockStep || c.wall-wall > clockStep {
		c.wall = wall
		c.slept = max(c.slept, c.bootAhead()-c.ahead)
	}
	return c.baseNs + ns + c.slept
}

// bootAhead is how long the host has been suspended since it was started.
func bootAhead() int64 {
	ahead := int64(math.MaxInt64)
	for range 3 { // the least disturbed one
		monotonic := readClock(unix.CLOCK_MONOTONIC)
		ahead = min(ahead, Boottime()-monotonic)
	}
	return ahead
}

// Boottime is the clock of loops, by a system call, for other threads.
func Boottime() int64 { return readClock(unix.CLOCK_BOOTTIME) }

func readClock(id int32) int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		panic(fmt.Sprintf("uring: clock_gettime(%d): %v", id, err)) // Linux has both since 2.6.39
	}
	return ts.Nano()
}
