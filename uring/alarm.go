package uring

import "golang.org/x/sys/unix"

// maxAlarms bounds the TIMEOUT entries in flight that a loop keeps count of.
const maxAlarms = 8

// alarms are the times (ns) at which TIMEOUT entries in flight fire, the earliest last. One that
// is forgotten, because there are too many, costs a turn when it fires.
type alarms struct {
	at [maxAlarms]int64
	n  int
}

// covers says whether one of them fires after now, but not after at.
func (a *alarms) covers(now, at int64) bool {
	for a.n > 0 && a.at[a.n-1] <= now {
		a.n--
	}
	return a.n > 0 && a.at[a.n-1] <= at
}

// add notes one that is earlier than all others.
func (a *alarms) add(at int64) {
	if a.n == len(a.at) {
		copy(a.at[:], a.at[1:]) // the latest
		a.n--
	}
	a.at[a.n] = at
	a.n++
}

// setAlarm has the loop woken in time by an entry that stays in the kernel over many sleeps. A
// timeout that is given to each sleep starts and stops a timer of the CPU each time, which on a
// virtual machine costs about as much as a system call, or several. It is false if there is no
// entry, and the sleep itself must end in time. One that fires too early, for a timer that was
// moved, only costs a turn.
func (l *Loop) setAlarm(timeout int64) bool {
	at := l.now + timeout
	if l.alarms.covers(l.now, at) {
		return true
	}
	s := l.sqe()
	if s == nil {
		// Submissions are stuck. Where a sleep can't end in time by itself, completions will end it.
		return !l.ring.HasTimeout()
	}
	l.ring.wait.time = unix.NsecToTimespec(timeout)
	PrepTimeout(s, &l.ring.wait.time)
	s.SetUserData(0)
	l.alarms.add(at)
	return true
}
