package hwflush

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Bounds of a server.
const (
	maxConns = 64
	maxNames = 256
	// sendWithin bounds how long a client that doesn't read is waited for.
	sendWithin = 30 * time.Second
)

// Server remembers the last number that each client's disk acknowledged.
type Server struct {
	print func(format string, args ...any)

	mu    sync.Mutex // guards all below
	runs  map[string]*run
	conns map[net.Conn]bool
}

// run is what is known of the client of a name.
type run struct {
	session  Session
	slots    uint64
	window   uint64
	last     uint64 // highest number reported
	lastAt   time.Time
	verified bool
	conn     net.Conn // that reports; nil: none
}

// NewServer returns a server that tells what happens by print, one line a call.
func NewServer(print func(format string, args ...any)) *Server {
	return &Server{print: print, runs: map[string]*run{}, conns: map[net.Conn]bool{}}
}

// Serve answers clients that connect to l until ctx ends; it closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() {
		l.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			c.Close()
		}
	})
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		full := len(s.conns) >= maxConns
		if !full {
			s.conns[c] = true
		}
		s.mu.Unlock()
		if full {
			c.Close()
			continue
		}
		wg.Go(func() { s.serve(c) })
	}
}

// serve answers one client.
func (s *Server) serve(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		// A machine that lost its power says nothing: find out within 20 s.
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second,
			Interval: 5 * time.Second, Count: 3})
	}
	var name string // whose run this connection reports to
	defer func() {
		c.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
		if r := s.runs[name]; r != nil && r.conn == c {
			r.conn = nil
			s.print("%s: connection lost; its disk has acknowledged everything up to %d", name, r.last)
		}
	}()
	for {
		m, err := receive(c)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				s.print("%s: %v", c.RemoteAddr(), err)
			}
			return
		}
		answer, ok := s.handle(c, &name, &m)
		if !ok {
			s.print("%s: a message of type %d that makes no sense here", c.RemoteAddr(), m.kind)
			return
		}
		_ = c.SetWriteDeadline(time.Now().Add(sendWithin))
		if err := answer.send(c); err != nil {
			return
		}
	}
}

// handle answers one message. name is that of the run the connection has begun.
func (s *Server) handle(c net.Conn, name *string, m *message) (answer message, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.runs[m.name]
	switch m.kind {
	case msgBegin:
		if *name != "" || m.name == "" || m.slots < minSlots || m.slots > maxSlots ||
			m.window < 1 || m.window > m.slots/2 {
			return message{}, false
		}
		return s.begin(c, name, m), true
	case msgReport:
		if r = s.runs[*name]; r == nil || r.conn != c || r.session != m.session || m.number < r.last {
			return message{}, false
		}
		r.last, r.lastAt = m.number, time.Now()
		return message{kind: msgOK, number: m.number}, true
	case msgAsk:
		if r == nil {
			return message{kind: msgRefused, number: refusedUnknown}, true
		}
		return message{kind: msgState, session: r.session, number: r.last, slots: r.slots,
			window: r.window, name: m.name}, true
	case msgVerdict:
		if r == nil || r.session != m.session {
			return message{kind: msgRefused, number: refusedUnknown}, true
		}
		r.verified = true
		if m.slots > 0 {
			s.print("%s: LOST %d acknowledged records of those up to %d (reported %s)", m.name, m.slots,
				r.last, r.lastAt.Format(time.DateTime))
		} else {
			s.print("%s: nothing lost up to %d", m.name, r.last)
		}
		return message{kind: msgOK, number: m.number}, true
	}
	return message{}, false
}

// begin makes a new run, unless a client of that name is connected.
func (s *Server) begin(c net.Conn, name *string, m *message) message {
	old := s.runs[m.name]
	if old == nil && len(s.runs) >= maxNames {
		return message{kind: msgRefused, number: refusedFull}
	}
	if old != nil && old.conn != nil {
		return message{kind: msgRefused, number: refusedBusy}
	}
	if old != nil && !old.verified && old.last > 0 {
		s.print("%s: begins anew; its earlier run, up to %d, was never verified", m.name, old.last)
	}
	*name = m.name
	s.runs[m.name] = &run{session: m.session, slots: m.slots, window: m.window, conn: c,
		lastAt: time.Now()}
	s.print("%s: begins, from %s, %s in turn", m.name, c.RemoteAddr(),
		fmt.Sprintf("%d records", m.slots))
	return message{kind: msgOK}
}
