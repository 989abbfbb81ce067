package session

import (
	"errors"
	"log/slog"

	"pstorage/dataplane"
	"pstorage/uring"
)

// MaxUnproven is how many connections of one listener may be in their handshake at once. When
// there are more the oldest of them is closed: a peer that has a key needs milliseconds, so
// strangers that connect and say nothing can't keep it out.
const MaxUnproven = 256

var errCrowded = errors.New("too many others were waiting to prove themselves")

// Gate bounds the unproven connections of one listener on a loop, and the failures of each
// address. It belongs to the loop's thread.
type Gate struct {
	oldest, newest *Conn
	n              int
	fails          *Failures
	crowded        int // connections closed since the last line in the log
	loggedNs       int64
}

// NewGate returns the gate of a listener. env is its clock.
func NewGate(env uring.Env) *Gate { return &Gate{fails: NewFailures(env.Now)} }

// Accept attaches a session, as the acceptor, to a connection that came in. It is NewConn for
// listeners that strangers can reach.
func (g *Gate) Accept(c uring.Conn, env uring.Env, pool *uring.Pool, cred *Credentials,
	h FrameHandler) *Conn {
	s := newConn(c, env, pool, cred, false, g, h)
	s.shake.quiet = g.fails.quiet(c.RemoteAddr())
	if g.n >= MaxUnproven {
		g.crowd(env.Now())
	}
	s.older, g.newest = g.newest, s
	if s.older != nil {
		s.older.newer = s
	} else {
		g.oldest = s
	}
	g.n++
	return s
}

// crowd closes the oldest unproven connection.
func (g *Gate) crowd(now int64) {
	c := g.oldest
	g.crowded++
	if now-g.loggedNs > logEvery {
		slog.Warn("connections closed before they proved themselves: too many at once",
			"count", g.crowded, "last", c.RemoteAddr())
		g.crowded, g.loggedNs = 0, now
	}
	c.Close(dataplane.E("handshake with "+c.RemoteAddr(), dataplane.Overloaded, errCrowded))
}

// leave takes a connection that has proved itself, or was closed, out of the list. g may be nil.
func (g *Gate) leave(c *Conn) {
	if g == nil || c.older == nil && c.newer == nil && g.oldest != c {
		return
	}
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		g.oldest = c.newer
	}
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		g.newest = c.older
	}
	c.older, c.newer = nil, nil
	g.n--
}

// failed counts a handshake that failed, and says so unless that was said too often. g may be nil.
func (g *Gate) failed(c *Conn, err error) {
	if g == nil || g.fails.ended(c.RemoteAddr(), err, c.shake.named) {
		c.warn(err)
	}
}
