package uring

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSettled: a loop isn't settled while a completion waits to be taken.
func TestSettled(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	if l.Ring().Flags()&SetupDeferTaskrun == 0 {
		t.Skip("the kernel may work at any time")
	}
	var nothing, before, after bool
	var ended, left int
	done := make(chan struct{})
	l.Post(func() {
		for nothing = l.Settled(); l.Ring().Ready() > 0; nothing = l.Settled() {
			l.reap(false)
		}
		s := l.sqe()
		PrepNop(s)
		l.start(s, completeFunc(func() { ended++ }), 0)
		before = l.Settled()
		left = l.Ring().Unsubmitted()
		l.reap(false)
		after = l.Settled()
		close(done)
	})
	await(t, done, "end")
	if !nothing || before || left != 0 || ended != 1 || !after {
		t.Errorf("with nothing to do %v; an operation ended: %v, %d not submitted; it was taken: %v, %d",
			nothing, before, left, after, ended)
	}
}

// A poll is done when its file can be read; one that never will be doesn't keep the loop from
// stopping, and isn't told of it.
func TestPoll(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	l, err := NewLoop(LoopOptions{PoolSize: 1 << 20, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.Run() }()
	events := make(chan int32, 2)
	p := &Poll{Events: unix.POLLIN, Done: func(_ *Poll, e int32) { events <- e }}
	on(t, l, func() {
		p.File = l.AddFile(fds[0])
		l.Poll(p)
	})
	select {
	case e := <-events:
		t.Fatalf("an empty pipe: %#x", e)
	default:
	}
	if _, err := unix.Write(fds[1], []byte{1}); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-events:
		if e&unix.POLLIN == 0 {
			t.Errorf("events %#x", e)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("never told of a byte")
	}
	on(t, l, func() {
		var b [1]byte
		if n, err := unix.Read(fds[0], b[:]); n != 1 || err != nil {
			t.Errorf("read: %d, %v", n, err)
		}
		l.Poll(p)
	})
	l.Stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("the loop waits for a poll: %+v", l.Stats())
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if len(events) != 0 {
		t.Error("the second poll was done, with nothing to read")
	}
}

// Goroutines have as many processors left as there are CPUs, however many loops there are.
func TestMayKeep(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 2))
	if !mayKeep(1) || !mayKeep(2) || mayKeep(3) {
		t.Errorf("two spare: %v %v %v", mayKeep(1), mayKeep(2), mayKeep(3))
	}
	runtime.GOMAXPROCS(runtime.NumCPU())
	if mayKeep(1) {
		t.Error("none is spare")
	}
}
