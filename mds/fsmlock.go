package mds

import (
	"runtime"
	"sync"
)

// stateLock guards the state machine. Everybody holds it for microseconds, so nobody should sleep
// for it: who is woken waits for the scheduler, which takes milliseconds on a busy machine. Worse,
// a sync.RWMutex hands itself over to readers that sleep when a writer is done, and applying the
// next entry then waits until each of them has run. So writers look again for a while, and readers
// let others run and come back: whoever holds the lock is running.
type stateLock struct{ sync.RWMutex }

// How often it is tried before one waits in line after all, which bounds the wait.
const (
	readTries  = 128
	writeTries = 4096 // some 20 µs, a few times as long as most readers need
)

// RLock locks for reading.
func (l *stateLock) RLock() {
	for range readTries {
		if l.RWMutex.TryRLock() {
			return
		}
		runtime.Gosched()
	}
	l.RWMutex.RLock()
}

// Lock locks for writing.
func (l *stateLock) Lock() {
	for range writeTries {
		if l.RWMutex.TryLock() {
			return
		}
	}
	l.RWMutex.Lock()
}
