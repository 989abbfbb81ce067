package session

import (
	"io"
	"math/rand/v2"
	"testing"

	"pstorage/uring"
)

// fakeEnv is a clock, timers and seeded randomness.
type fakeEnv struct {
	now    int64
	timers uring.TimerHeap
	turn   uring.TurnQueue
	rng    *rand.Rand
}

func newFakeEnv(seed uint64) *fakeEnv { return &fakeEnv{rng: rand.New(rand.NewPCG(seed, 1))} }

func (e *fakeEnv) Now() int64                     { return e.now }
func (e *fakeEnv) Rand() uint64                   { return e.rng.Uint64() }
func (e *fakeEnv) Arm(t *uring.Timer, d int64)    { e.timers.Arm(t, e.now+d) }
func (e *fakeEnv) Disarm(t *uring.Timer)          { e.timers.Disarm(t) }
func (e *fakeEnv) AtTurnEnd(t *uring.TurnEnder)   { e.turn.Add(t) }
func (e *fakeEnv) nextTimer() (at int64, ok bool) { return e.timers.Next() }

// advance moves the clock and fires what is due.
func (e *fakeEnv) advance(d int64) {
	e.now += d
	for t := e.timers.Pop(e.now); t != nil; t = e.timers.Pop(e.now) {
		t.Fire()
	}
}

// fakeConn is a uring.Conn that keeps what is sent, and gives what the test feeds it to its
// handler by the rules of uring.ConnHandler.
type fakeConn struct {
	t       testing.TB
	handler uring.ConnHandler
	out     []byte
	bufs    int // AppendBuf calls

	unread []byte
	into   []byte
	paused bool
	closed bool
	err    error
}

func (c *fakeConn) Append(p []byte) { c.out = append(c.out, p...) }
func (c *fakeConn) Reserve(n int) []byte {
	at := len(c.out)
	for cap(c.out) < at+n {
		c.out = append(c.out[:cap(c.out)], 0)
	}
	c.out = c.out[:at+n]
	return c.out[at:]
}
func (c *fakeConn) AppendBuf(b *uring.Buf, from, to int) {
	c.bufs++
	c.out = append(c.out, b.Bytes()[from:to]...)
}
func (c *fakeConn) Queued() int        { return len(c.out) }
func (c *fakeConn) RemoteAddr() string { return "127.0.0.1:9" }
func (c *fakeConn) PauseRecv(p bool)   { c.paused = p }
func (c *fakeConn) Close(err error) {
	if !c.closed {
		c.closed, c.err = true, err
	}
}

// feed delivers p as one receive.
func (c *fakeConn) feed(p []byte) {
	for len(c.into) > 0 && len(p) > 0 && !c.closed {
		n := copy(c.into, p)
		c.into, p = c.into[n:], p[n:]
		if len(c.into) == 0 {
			c.into = nil
			c.handler.RecvDone()
		}
	}
	c.unread = append(c.unread, p...)
	c.pump()
}

// pump gives unread bytes to the handler until it wants no more.
func (c *fakeConn) pump() {
	for len(c.unread) > 0 && !c.paused && !c.closed && c.into == nil {
		window := c.unread[:min(len(c.unread), uring.RecvWindow)]
		n, into := c.handler.Recv(window)
		if into != nil && n != len(window) {
			c.t.Fatalf("into with %d of %d bytes consumed", n, len(window))
		}
		if n == 0 && into == nil {
			if len(window) == uring.RecvWindow && !c.paused && !c.closed {
				c.t.Fatal("handler is stuck on a full window")
			}
			return
		}
		c.unread = c.unread[:copy(c.unread, c.unread[n:])]
		if into != nil {
			k := copy(into, c.unread)
			c.unread = c.unread[:copy(c.unread, c.unread[k:])]
			if c.into = into[k:]; len(c.into) == 0 {
				c.into = nil
				c.handler.RecvDone()
			}
		}
	}
}

// end tells the handler that the connection is gone.
func (c *fakeConn) end(err error) {
	if c.closed {
		err = c.err
	}
	c.closed = true
	c.handler.Closed(err)
}

// link carries bytes between two fake connections until nothing moves.
func link(a, b *fakeConn) {
	for len(a.out)+len(b.out) > 0 {
		x, y := a.out, b.out
		a.out, b.out = nil, nil
		if len(x) > 0 && !b.closed {
			b.feed(x)
		}
		if len(y) > 0 && !a.closed {
			a.feed(y)
		}
	}
	if a.closed != b.closed {
		if a.closed {
			b.end(io.EOF)
		} else {
			a.end(io.EOF)
		}
	}
}
