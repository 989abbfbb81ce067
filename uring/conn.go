package uring

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// The life of received bytes:
//  1. flush (end of a turn) arms one RECV: into the free part of the window, or, after the handler
//     asked for it, straight into its memory.
//  2. complete notes what arrived; deliver gives the handler all unread bytes.
//  3. What the handler leaves stays in the window; the next RECV appends to it.
//
// While one payload after the other goes straight into the handler's memory, a receive into the
// window takes no more than recvPeek bytes: the header of the next payload, and little of the
// payload itself, which would have to be copied.
//
// The window begins with recvFirst bytes, so that idle connections are cheap, and grows as far as
// a busy peer fills it; it shrinks again when it is mostly empty.

const (
	recvFirst = 16 << 10
	recvPeek  = 1 << 10
	// recvShrinkAfter is how many receives in a row must fill less than an eighth of the window
	// before it shrinks.
	recvShrinkAfter = 64
)

// Tags of a connection's completions.
const (
	tagRecv uint8 = iota
	tagSend
	tagRelayIn
	tagRelayOut
)

// conn is a Conn over the ring.
type conn struct {
	l      *Loop
	h      ConnHandler
	file   File
	remote string
	index  int // in l.conns

	// receive
	win       *Buf
	from, to  int // unread part of win
	want      int // size of the next window
	small     int // receives in a row that left the window mostly empty
	into      []byte
	got       int // bytes of into
	intoDone  bool
	peek      bool // the last payload went straight to the handler, and nowhere else
	fresh     bool // something to deliver
	empty     bool // the socket was empty after the last receive
	paused    bool
	receiving bool

	out   sendQueue
	peer  localPeer // of a local socket
	relay *relay    // into is passed on by it

	dirty    bool // in l.dirty
	waiting  bool // in l.deferred
	closing  bool
	closeErr error
}

// A peer whose host has died says nothing any more, and neither need we: the kernel finds out, some
// two minutes later. It doesn't ask while we have sent something that isn't acknowledged, and would
// repeat that for a quarter of an hour; so that has the same time, and what a living peer doesn't
// take, too. Who waits for an answer has shorter times of his own.
const (
	keepIdle  = 60 // s without anything from the peer, until it is asked whether it is there ...
	keepEvery = 10 // ... and again, so many s later, ...
	keepCount = 6  // ... so many times

	takeTime = keepIdle + keepCount*keepEvery // s that the peer may take nothing of what is sent
)

// setTCP sets what our connections want of TCP; a unix socket has none of it.
func setTCP(fd int) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepIdle)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepEvery)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepCount)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 1000*takeTime)
}

// newConn takes over the connected socket fd.
func (l *Loop) newConn(fd int, remote string, attach func(Conn) ConnHandler) *conn {
	setTCP(fd)
	c := &conn{l: l, file: l.addFile(fd), remote: remote, want: recvFirst, empty: true}
	c.index = len(l.conns)
	l.conns = append(l.conns, c)
	if c.h = attach(c); c.h == nil {
		panic("uring: attach returned no handler")
	}
	c.touch()
	return c
}

// touch has the connection looked at when the turn ends.
func (c *conn) touch() {
	if !c.dirty {
		c.dirty = true
		c.l.dirty = append(c.l.dirty, c)
	}
}

// RemoteAddr implements Conn.
func (c *conn) RemoteAddr() string { return c.remote }

// PauseRecv implements Conn.
func (c *conn) PauseRecv(pause bool) {
	if c.paused == pause || c.closing {
		return
	}
	if c.paused = pause; !pause {
		if c.fresh || c.from < c.to {
			c.fresh = true
			c.wakeLater()
		}
		c.touch()
	}
}

// HungUp implements HangupSeer.
func (c *conn) HungUp() bool {
	p := [1]unix.PollFd{{Fd: c.file.fd, Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p[:], 0)
	return err == nil && n == 1
}

func (c *conn) wakeLater() {
	if !c.waiting {
		c.waiting = true
		c.l.later(c)
	}
}

// runDeferred implements runner: what PauseRecv and Close have started.
func (c *conn) runDeferred() {
	c.waiting = false
	if c.closing {
		c.finishClose()
		return
	}
	c.touch() // when all is delivered there may be nothing else that has the next receive armed
	c.deliver()
}

// flush submits what there is to receive and to send.
func (c *conn) flush() {
	if c.closing {
		return
	}
	if !c.receiving && !c.paused && !c.fresh {
		c.armRecv()
	}
	if !c.out.sending && c.out.queued > 0 {
		c.armSend()
	}
}

func (c *conn) armRecv() {
	if c.relay != nil && !c.relay.copying {
		c.armRelay()
		return
	}
	p, flags := c.into[c.got:], uint32(unix.MSG_WAITALL)
	if c.into == nil {
		p, flags = c.room(), 0
		if c.peek {
			p = p[:min(len(p), recvPeek)]
		}
	}
	s := c.l.sqe()
	if s == nil {
		c.touch()
		return
	}
	PrepRecv(s, c.file, addrOf(p), uint32(len(p)), flags, c.empty && c.l.ring.ops.has519)
	c.l.start(s, c, tagRecv)
	c.receiving = true
}

// room returns the free end of the window, making, moving or growing it as needed.
func (c *conn) room() []byte {
	unread := c.to - c.from
	if c.win == nil || unread > len(c.win.mem)/2 && c.want <= len(c.win.mem) {
		c.want = max(c.want, min(2*unread, RecvWindow))
	}
	if c.win == nil || c.want > len(c.win.mem) || unread == 0 && c.want < len(c.win.mem) {
		old := c.win
		c.win = c.l.mem.get(c.want)
		c.want = len(c.win.mem)
		if old != nil {
			copy(c.win.mem, old.mem[c.from:c.to])
			old.Release()
		}
		c.from, c.to = 0, unread
	}
	if unread == 0 {
		c.from, c.to = 0, 0
	} else if c.from > 0 && len(c.win.mem)-c.to < len(c.win.mem)/2 {
		copy(c.win.mem, c.win.mem[c.from:c.to])
		c.from, c.to = 0, unread
	}
	return c.win.mem[c.to:]
}

// complete implements completer.
func (c *conn) complete(tag uint8, res int32, flags uint32) {
	switch tag {
	case tagSend:
		c.completeSend(res)
		return
	case tagRelayIn:
		c.relayIn()
		return
	case tagRelayOut:
		c.relayOut()
		return
	}
	c.receiving = false
	if c.closing {
		c.finishClose()
		return
	}
	c.touch()
	switch {
	case res == -int32(unix.EINTR) || res == -int32(unix.EAGAIN) || res == -int32(unix.ENOBUFS):
		return
	case res < 0:
		c.Close(fmt.Errorf("receive from %s: %w", c.remote, unix.Errno(-res)))
		return
	case res == 0:
		c.Close(io.EOF)
		return
	}
	c.empty = flags&CQESockNonempty == 0
	if c.peer.pid != 0 {
		c.peer.recvs++
		c.l.gatherer.recvs++
	}
	if c.into != nil {
		c.got += int(res)
		if c.relay != nil {
			c.relay.received(c.got)
		}
		if c.got < len(c.into) {
			return
		}
		c.intoDone = true
	} else {
		if !c.peek {
			c.adapt(int(res))
		}
		c.to += int(res)
	}
	c.fresh = true
	c.deliver()
}

// adapt chooses the size of the next window by how much of this one was filled.
func (c *conn) adapt(n int) {
	size := len(c.win.mem)
	switch {
	case c.to+n == size:
		c.want = min(size*4, RecvWindow)
		c.small = 0
	case n >= size/8:
		c.small = 0
	case size > recvFirst:
		if c.small++; c.small >= recvShrinkAfter {
			c.want = max(size/4&^(recvFirst-1), recvFirst) // the pool rounds up
			c.small = 0
		}
	}
}

// deliver gives the handler what has arrived.
func (c *conn) deliver() {
	if c.paused || c.closing || !c.fresh {
		return
	}
	c.fresh = false
	for {
		if c.intoDone {
			c.into, c.got, c.intoDone = nil, 0, false
			c.h.RecvDone()
			return // no byte behind it has been received yet
		}
		p := c.win.mem[c.from:c.to:c.to]
		n, into := c.h.Recv(p)
		if c.closing {
			return
		}
		if n < 0 || n > len(p) || into != nil && n != len(p) {
			panic(fmt.Sprintf("uring: handler of %s consumed %d of %d bytes (direct: %v)",
				c.remote, n, len(p), into != nil))
		}
		if c.relay != nil && c.relay.n != len(into) {
			panic(fmt.Sprintf("uring: handler of %s relays %d bytes and receives %d", c.remote, c.relay.n,
				len(into)))
		}
		if c.from += n; n == 0 && len(p) >= RecvWindow && !c.paused {
			c.Close(errRecvStuck)
			return
		}
		c.peek = into != nil && c.relay == nil
		if into == nil {
			return
		}
		c.into, c.got, c.intoDone = into, 0, len(into) == 0
		if len(into) > 0 {
			return
		}
	}
}

var errRecvStuck = errors.New("the receive window is full and nothing of it was consumed")

// Close implements Conn.
func (c *conn) Close(err error) {
	if c.closing {
		return
	}
	c.closing, c.closeErr = true, err
	// Ends what is in flight; the memory is let go when that has completed.
	_ = unix.Shutdown(int(c.file.fd), unix.SHUT_RDWR)
	if c.relay != nil {
		c.relay.sourceLost(io.ErrUnexpectedEOF)
	}
	c.wakeLater()
}

// finishClose ends the connection when nothing of it is in flight any more.
func (c *conn) finishClose() {
	if c.receiving || c.out.sending || c.waiting {
		return
	}
	l := c.l
	if c.win != nil {
		c.win.Release()
		c.win = nil
	}
	c.into = nil
	c.out.release(l)
	if err := l.closeFile(c.file); err != nil {
		l.log.Error("close a connection", "peer", c.remote, "error", err)
	}
	last := len(l.conns) - 1
	l.conns[c.index] = l.conns[last]
	l.conns[c.index].index = c.index
	l.conns[last] = nil
	l.conns = l.conns[:last]
	c.h.Closed(c.closeErr)
}

// connMem is where connections take their own buffers from: a pool of its own, so that the user's
// pool can't run dry by idle connections, then the Go heap, whose memory doesn't move either.
type connMem struct {
	pool *Pool
	heap Pool
}

func (m *connMem) get(n int) *Buf {
	if b := m.pool.Get(n); b != nil {
		return b
	}
	return &Buf{mem: make([]byte, n), refs: 1, class: heapClass, pool: &m.heap}
}
