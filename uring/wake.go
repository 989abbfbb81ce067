package uring

import (
	"fmt"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Done is closed when Run has returned: what was posted and didn't run by then never will.
func (l *Loop) Done() <-chan struct{} { return l.done }

// Work is something to do on a loop's thread. Its owner embeds it, sets Run once, and posts it
// again only after it ran.
type Work struct {
	Run  func(*Work)
	next *Work
}

// wakeup lets other threads reach the loop: an intrusive list and an eventfd that is only written
// when the loop sleeps.
type wakeup struct {
	list     atomic.Pointer[Work] // newest first
	sleeping atomic.Bool
	stop     atomic.Bool
	fd       int
	mem      []byte // what is read from fd
	armed    bool
	userData uint64 // of the read of fd
}

func (w *wakeup) init(l *Loop) error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	w.fd, w.mem = fd, mustMap(4096)
	// A thread that posts may be about to write to fd when the loop ends. So it is closed only
	// when nobody can have the loop in hand any more.
	runtime.AddCleanup(l, func(fd int) { _ = unix.Close(fd) }, fd)
	return nil
}

func (w *wakeup) close() {
	if w.mem != nil {
		_ = unix.Munmap(w.mem)
		w.mem = nil
	}
}

// Stop ends Run soon. It may be called from any thread, also before Run and more than once.
func (l *Loop) Stop() {
	l.wake.stop.Store(true)
	l.wake.kick()
	runtime.KeepAlive(l)
}

// Post runs fn on the loop's thread. It may be called from any thread and never blocks. It
// allocates: for the control plane.
func (l *Loop) Post(fn func()) {
	l.PostWork(&Work{Run: func(*Work) { fn() }})
}

// PostWork runs w.Run(w) on the loop's thread, in the order of posting. It may be called from any
// thread, allocates nothing, and makes a system call only if the loop sleeps.
func (l *Loop) PostWork(w *Work) {
	for {
		head := l.wake.list.Load()
		w.next = head
		if l.wake.list.CompareAndSwap(head, w) {
			break
		}
	}
	l.wake.kick()
	runtime.KeepAlive(l)
}

// kick wakes the loop if it sleeps or is about to.
func (w *wakeup) kick() {
	if !w.sleeping.Load() || !w.sleeping.CompareAndSwap(true, false) {
		return
	}
	one := [8]byte{1} // any count wakes; the byte order doesn't matter
	for {
		_, err := unix.Write(w.fd, one[:])
		if err != unix.EINTR {
			return // EAGAIN can't be: the counter is far from full
		}
	}
}

// prepareSleep says whether the loop may sleep. From here on posting makes a system call.
func (w *wakeup) prepareSleep() bool {
	w.sleeping.Store(true)
	if w.list.Load() != nil || w.stop.Load() {
		w.sleeping.Store(false)
		return false
	}
	return true
}

func (w *wakeup) awake() { w.sleeping.Store(false) }

// run runs what was posted, oldest first.
func (w *wakeup) run(l *Loop) int {
	if w.list.Load() == nil {
		return 0
	}
	var first *Work
	for p := w.list.Swap(nil); p != nil; {
		next := p.next
		p.next = first
		first, p = p, next
	}
	l.updateNow() // after it was posted, see turn
	n := 0
	for p := first; p != nil; n++ {
		next := p.next
		p.next = nil // before Run: it may post itself again
		p.Run(p)
		p = next
	}
	return n
}

// arm reads the eventfd.
func (w *wakeup) arm(l *Loop) {
	if w.armed {
		return
	}
	s := l.sqe()
	if s == nil {
		l.later(w.rearm(l))
		return
	}
	PrepRead(s, FD(w.fd), addrOf(w.mem), 8, 0)
	w.userData = l.start(s, w.rearm(l), 0)
	w.armed = true
}

// disarm cancels the reading.
func (w *wakeup) disarm(l *Loop) {
	if w.armed && w.userData != 0 && l.cancel(w.userData) {
		w.userData = 0
	}
}

func (w *wakeup) rearm(l *Loop) *rearmer { return (*rearmer)(l) }

// rearmer is the loop in its role as reader of its own eventfd.
type rearmer Loop

func (r *rearmer) complete(uint8, int32, uint32) {
	r.wake.armed = false
	r.runDeferred()
}

func (r *rearmer) runDeferred() {
	if r.state == loopRunning {
		r.wake.arm((*Loop)(r))
	}
}
