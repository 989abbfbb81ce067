package nbd

import (
	"errors"
	"time"
)

// This file is how connections share the memory for payloads. What waits in a socket belongs to it:
// a client that is cut off or stopped holds that, however long.
//
//   - One connection may hold as much as is free after that, so a single one gets half of what
//     there is, two a third each, and those that come later always find something.
//   - When others wait, one that has taken nothing of its replies for stuckTime, or sent nothing
//     more of a WRITE's data, is closed. If nobody waits a client may be stopped for as long as
//     it likes; over TCP the kernel gives it up after two minutes.

const (
	stuckTime = int64(30 * time.Second)
	lookEvery = int64(time.Second)
)

var errStuck = errors.New("others wait for memory, and for 30 s the client has taken nothing of " +
	"its replies, or sent nothing more of a WRITE's data")

// still is a part of a connection in which the client has to do the next step.
type still struct {
	mark  uint64 // grows with each step
	since int64  // when it was last seen to grow, or there was nothing to do
}

// age is for how long the client has done nothing.
func (s *still) age(now int64, due bool, mark uint64) int64 {
	if !due || mark != s.mark {
		s.mark, s.since = mark, now
	}
	return now - s.since
}

// taken is how many bytes the client's socket has taken.
func (c *conn) taken() uint64 { return c.sent - uint64(c.uc.Queued()) }

// stuck is for how long the client has taken nothing, or sent nothing, that it should.
func (c *conn) stuck(now int64) int64 {
	return max(c.takes.age(now, c.uc.Queued() > 0, c.taken()),
		c.gives.age(now, c.recv != nil, c.came))
}

// hold is what of the memory for payloads the connection has.
func (c *conn) hold() int { return int(c.bytes) + c.uc.Queued() }

// wants notes that c waits for memory.
func (s *Server) wants(c *conn) {
	c.hungry = true
	if s.look.Armed() {
		return
	}
	now := s.env.Now()
	for o := range s.conns {
		o.takes.since, o.gives.since = now, now // nobody looked before
	}
	s.env.Arm(&s.look, lookEvery)
}

// lookAround closes connections that keep memory from others. It goes on as long as anybody waits.
func (s *Server) lookAround() {
	now := s.env.Now()
	hungry, needy := false, false
	for c := range s.conns {
		if c.closed || c.export == nil {
			continue
		}
		hungry = hungry || c.hungry
		// One that is stuck itself doesn't need more.
		needy = needy || c.hungry && c.stuck(now) <= 2*lookEvery
		c.hungry = false
	}
	if !hungry {
		return
	}
	for c := range s.conns {
		if needy && c.export != nil && c.stuck(now) >= stuckTime {
			c.drop(errStuck)
		}
	}
	s.env.Arm(&s.look, lookEvery)
}
