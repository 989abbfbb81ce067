package uring

import (
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"
)

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// startLoop runs a loop on its own thread until the test ends.
func startLoop(t testing.TB, o LoopOptions) *Loop {
	t.Helper()
	if o.PoolSize == 0 {
		o.PoolSize = 16 << 20
	}
	if o.Log == nil {
		o.Log = quiet
	}
	l, err := NewLoop(o)
	if err != nil {
		t.Fatal(err)
	}
	errs := make(chan error, 1)
	go func() { errs <- l.Run() }()
	t.Cleanup(func() {
		l.Stop()
		select {
		case err := <-errs:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("the loop doesn't stop: %+v", l.Stats())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// on runs fn on the loop's thread and waits for it.
func on(t testing.TB, l *Loop, fn func()) {
	t.Helper()
	done := make(chan struct{})
	l.Post(func() {
		defer close(done)
		fn()
	})
	await(t, done, "posted function")
}

func await[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("no %s", what)
		panic("unreachable")
	}
}

func TestLoopTimersFireInOrderAndNotEarly(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	type firing struct{ want, at int64 }
	fired := make(chan firing, 8)
	on(t, l, func() {
		for _, ms := range []int64{30, 1, 0, 10, 20} {
			d := ms * 1e6
			start := l.Now()
			tm := &Timer{}
			tm.Fire = func() { fired <- firing{start + d, l.Now()} }
			l.Arm(tm, d)
		}
		gone := &Timer{Fire: func() { t.Error("a disarmed timer fired") }}
		l.Arm(gone, 5e6)
		l.Disarm(gone)
	})
	last := int64(0)
	for range 5 {
		f := await(t, fired, "timer")
		if f.at < f.want || f.want < last {
			t.Errorf("fired at %d, due %d, previous due %d", f.at, f.want, last)
		}
		last = f.want
	}
}

func TestLoopTurnEnd(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	on(t, l, func() {})
	var calls []string
	done := make(chan struct{})
	l.Post(func() {
		var second, first TurnEnder
		second.TurnEnd = func() { calls = append(calls, "second"); close(done) }
		first.TurnEnd = func() { calls = append(calls, "first"); l.AtTurnEnd(&second) }
		l.AtTurnEnd(&first)
		l.AtTurnEnd(&first)
		l.Post(func() { calls = append(calls, "posted") })
	})
	await(t, done, "turn end")
	if len(calls) != 3 || calls[0] != "posted" || calls[1] != "first" || calls[2] != "second" {
		t.Errorf("calls %v", calls)
	}
}

func TestPostWorkFromManyThreads(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	const threads, each = 8, 20000
	var count, busy atomic.Int64
	done := make(chan struct{})
	for i := range threads {
		go func() {
			var w Work
			back := make(chan int, 1)
			last := -1
			n := 0
			w.Run = func(*Work) {
				if busy.Add(1) != 1 {
					t.Error("two callbacks at once")
				}
				busy.Add(-1)
				if n <= last {
					t.Errorf("thread %d: %d after %d", i, n, last)
				}
				last = n
				if count.Add(1) == threads*each {
					close(done)
				}
				back <- n
			}
			for ; n < each; n++ {
				l.PostWork(&w)
				<-back
			}
		}()
	}
	await(t, done, "last work")
}

func TestStopBeforeRun(t *testing.T) {
	l, err := NewLoop(LoopOptions{PoolSize: 1 << 20, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	l.Stop()
	if err := l.Run(); err != nil {
		t.Error(err)
	}
	select {
	case <-l.Done():
	default:
		t.Error("Done isn't closed")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// completeFunc is a completer.
type completeFunc func()

func (f completeFunc) complete(uint8, int32, uint32) { f() }

// TestClockOfWhatCameInATurn: an operation that ends, and work that is posted, while a turn goes on
// see a clock that was read later than that. A process may be stopped within a turn for longer than
// its lease.
func TestClockOfWhatCameInATurn(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	for what, begin := range map[string]func(then func()){
		"a completion": func(then func()) {
			s := l.sqe()
			PrepNop(s)
			l.start(s, completeFunc(then), 0)
			l.submitEarly()
		},
		"posted work": l.Post,
	} {
		for try := 0; ; try++ {
			var turn, laterTurn uint64
			var now, laterNow int64
			done := make(chan struct{})
			l.Post(func() {
				turn = l.turns
				for now <= l.Now() { // the time, at which this turn has looked before
					now = l.clock.now()
				}
				begin(func() {
					laterTurn, laterNow = l.turns, l.Now()
					close(done)
				})
			})
			await(t, done, what)
			if try == 1000 {
				t.Fatalf("%s never comes while a turn goes on", what)
			}
			if laterTurn == turn {
				if laterNow < now {
					t.Errorf("%s sees a clock of %d ns before it", what, now-laterNow)
				}
				break
			}
		}
	}
}
