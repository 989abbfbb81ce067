package uring

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// A thread that wakes takes the CPU from whoever runs there, if all CPUs are busy. With many
// requests under way that is bad for everybody: each message is handled by itself, and the log's
// batches and the packets stay small. A loop that is deep in work is therefore scheduled as a batch
// thread (SCHED_BATCH): it waits until the running one sleeps, and finds more to do. With few
// requests a wait only makes them slower, so it is an ordinary thread then.
//
// Only SCHED_OTHER is changed, and given back when the loop ends: a policy that somebody else chose
// stays. Nice values and slices stay in any case.

// A loop is deep from a mean of deepFrom requests on, until it is at deepUntil or fewer; they are
// counted before every depthEvery-th sleep, and the last count makes up a 4th of the mean.
const (
	depthEvery = 16
	deepFrom   = 8
	deepUntil  = 4
)

// schedule is a loop's choice of its thread's policy.
type schedule struct {
	depth  func() int
	sleeps uint
	mean   int // of depth, times 16
	deep   bool
	off    bool // the policy isn't ours to change
}

// SetDepth tells the loop how to learn how many requests its user has under way. It must be called
// before Run or on the loop's thread. f is called on that thread.
func (l *Loop) SetDepth(f func() int) { l.sched.depth = f }

// choose changes the policy if the depth has changed for some time. It is called before each sleep.
func (s *schedule) choose() {
	if s.sleeps++; s.depth == nil || s.off || s.sleeps%depthEvery != 0 {
		return
	}
	s.mean += (s.depth()*16 - s.mean) / 4
	switch {
	case !s.deep && s.mean >= deepFrom*16:
		s.set(unix.SCHED_NORMAL, unix.SCHED_BATCH)
	case s.deep && s.mean <= deepUntil*16:
		s.set(unix.SCHED_BATCH, unix.SCHED_NORMAL)
	}
}

// end gives the thread back as it was.
func (s *schedule) end() {
	if s.deep && !s.off {
		s.set(unix.SCHED_BATCH, unix.SCHED_NORMAL)
	}
	s.off = true
}

// set changes the policy of the calling thread from one to another. If it is a third one, or may
// not be changed, it never will be.
func (s *schedule) set(from, to uintptr) {
	policy, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, 0, 0, 0)
	if errno == 0 && policy == from {
		var priority int32 // must be 0 for both
		_, _, errno = unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, to,
			uintptr(unsafe.Pointer(&priority)))
	}
	if errno != 0 || policy != from {
		s.off = true
		return
	}
	s.deep = to == unix.SCHED_BATCH
}
