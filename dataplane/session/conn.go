package session

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"pstorage/dataplane"
	"pstorage/uring"
)

// This file is the reactor flavour of a session. The path of a frame that comes in:
//
//  1. Recv gets the unread bytes of the stream from the loop.
//  2. The header is decoded and validated; a bad one closes the connection.
//  3. A small body (payload below DirectSize) is handed to the handler where it lies.
//  4. For a large payload a buffer is taken out of the pool, the CRCs and what has already come of
//     the payload are copied, and the rest is received straight into the buffer.
//  5. Frame is called; then the next frame in the same bytes, until they end.

// DirectSize is from how many bytes on a payload is received into a pool buffer of its own, with
// its first byte at the start of a page.
const DirectSize = 16 << 10

const (
	poolRetryNs = 1e6   // how soon an exhausted pool is asked again
	starvedWarn = 2000  // after so many times somebody should know
	lingerNs    = 100e6 // how long a refusal may take to reach the peer before the close
)

var (
	errTagged      = &dataplane.FrameError{Reason: "authentication tag that wasn't agreed on"}
	errNoHandshake = errors.New("the handshake took too long")
	errGone        = dataplane.E("handshake", dataplane.Closed,
		errors.New("the peer closed the connection in the middle of it"))
)

// FrameHandler is told what happens on a Conn, on the loop's thread. One handler may serve many
// connections.
type FrameHandler interface {
	// Open is called when both ends have proved themselves: the peer is known, frames may be sent.
	Open(c *Conn)
	// Frame is called for each frame. h, crcs and payload are valid during the call only. Payloads
	// of DirectSize and more lie at the start of buf (page-aligned); then the handler may Retain
	// buf to keep the payload. For smaller ones buf is nil. The header is valid; the CRCs of the
	// payload have not been checked: whoever uses the data does that (dataplane.CheckCRCs).
	// c.Close and c.PauseRecv may be called: no other frame is delivered then.
	Frame(c *Conn, h *dataplane.Header, crcs, payload []byte, buf *uring.Buf)
	// Closed is the last call, once for every Conn, also when the handshake failed and Open never
	// was called. err is io.EOF when the peer closed in an orderly way between two frames.
	Closed(c *Conn, err error)
}

type connState uint8

const (
	connHandshake connState = iota
	connOpen
	connRefused // a refusal is on its way out, then the connection is closed
	connClosed
)

// Conn is one authenticated connection of a loop. It implements uring.ConnHandler. All calls are
// made on the loop's thread.
type Conn struct {
	// Data is the handler's own.
	Data any

	conn    uring.Conn
	env     uring.Env
	pool    *uring.Pool
	handler FrameHandler
	state   connState
	shake   *Handshake
	session [32]byte
	peer    Peer
	timer   uring.Timer // end of the handshake; later: time to ask the pool again
	failure error       // why a refused connection is closed
	gate    *Gate       // of the listener; nil: none
	older   *Conn       // in the gate's list of unproven connections
	newer   *Conn

	ring   *Ring   // nil: the keys don't change
	keys   *KeySet // that admit the peer
	sealed *sealed // encrypted; nil: it isn't
	tagged *tagged // headers are authenticated; nil: they aren't

	userPause bool // PauseRecv(true) by the handler
	poolPause bool // the pool is exhausted
	starved   int  // how often in a row the pool had nothing

	header  dataplane.Header
	direct  *uring.Buf // the payload of header is being received into it
	partial bool       // unread bytes are left of a frame that isn't complete
	passing passing
	crcs    [4 * (dataplane.MaxControlPayload / dataplane.BlockSize)]byte
}

// NewConn attaches a session to c and starts the handshake: as the dialer, which asks for
// ServiceRPC, or as the acceptor. It is what a uring.Net's attach function returns. pool is where
// large payloads go.
func NewConn(c uring.Conn, env uring.Env, pool *uring.Pool, cred *Credentials, dialer bool,
	h FrameHandler) *Conn {
	return newConn(c, env, pool, cred, dialer, nil, h)
}

func newConn(c uring.Conn, env uring.Env, pool *uring.Pool, cred *Credentials, dialer bool,
	gate *Gate, h FrameHandler) *Conn {
	var nonce [32]byte
	for i := 0; i < len(nonce); i += 8 {
		binary.LittleEndian.PutUint64(nonce[i:], env.Rand())
	}
	s := &Conn{conn: c, env: env, pool: pool, ring: cred.Ring, gate: gate, handler: h}
	s.timer.Fire = s.tick
	env.Arm(&s.timer, int64(HandshakeTime))
	if !dialer {
		s.shake = NewAcceptor(cred, nonce)
		return s
	}
	s.shake = NewDialer(cred, ServiceRPC, nonce)
	_, out, _, err := s.shake.Step(nil)
	c.Append(out)
	if err != nil {
		s.Close(err)
	}
	return s
}

// Peer is who is at the other end; valid from Open on.
func (c *Conn) Peer() Peer { return c.peer }

// SessionKey is the secret that both ends derived; valid from Open on.
func (c *Conn) SessionKey() [32]byte { return c.session }

// RemoteAddr is for people.
func (c *Conn) RemoteAddr() string { return c.conn.RemoteAddr() }

// Queued is how many bytes wait to be sent or are being sent.
func (c *Conn) Queued() int { return c.conn.Queued() }

// Send queues a frame; crcs and payload are copied. Their lengths must be what the header says.
// After Close it does nothing.
func (c *Conn) Send(h *dataplane.Header, crcs, payload []byte) {
	if !c.sendHeader(h, crcs, len(payload)) {
		return
	}
	switch {
	case c.sealed != nil:
		c.sealPayload(payload)
	case len(payload) > 0:
		c.conn.Append(payload)
	}
}

// SendBuf queues a frame whose payload is b.Bytes()[from:to], without copying it: the connection
// retains b until it is sent. h and crcs are copied. After Close it does nothing.
func (c *Conn) SendBuf(h *dataplane.Header, crcs []byte, b *uring.Buf, from, to int) {
	if !c.sendHeader(h, crcs, to-from) {
		return
	}
	switch {
	case c.sealed != nil:
		c.sealPayload(b.Bytes()[from:to])
	case to > from:
		c.conn.AppendBuf(b, from, to)
	}
}

func (c *Conn) sendHeader(h *dataplane.Header, crcs []byte, payload int) bool {
	if len(crcs) != h.CRCBytes() || payload != h.DataBytes() {
		panic(fmt.Sprintf("session: frame with %d bytes of CRCs and %d of payload: %v",
			len(crcs), payload, h))
	}
	if c.state != connOpen {
		if c.state == connHandshake {
			panic("session: frame sent before the session was open")
		}
		return false
	}
	if c.sealed != nil {
		c.sealHeader(h, crcs)
		return true
	}
	out := c.conn.Reserve(dataplane.HeaderSize + len(crcs))
	h.Put(out)
	copy(out[dataplane.HeaderSize:], crcs)
	if c.tagged != nil {
		c.tagged.sign(out)
	}
	return true
}

// Close drops the connection; what is queued is lost. Closed is called later with err. It may be
// called at any time, more than once; the first counts.
func (c *Conn) Close(err error) {
	if c.state == connClosed {
		return
	}
	c.state = connClosed
	c.env.Disarm(&c.timer)
	c.gate.leave(c)
	c.conn.Close(err)
}

// PauseRecv stops and starts the delivery of frames.
func (c *Conn) PauseRecv(pause bool) {
	c.userPause = pause
	c.setPause()
}

func (c *Conn) setPause() {
	if c.state != connClosed {
		c.conn.PauseRecv(c.userPause || c.poolPause)
	}
}

// tick is the timer: the handshake is overdue, a refusal had its time, or the pool is asked again.
func (c *Conn) tick() {
	switch c.state {
	case connHandshake:
		c.warn(errNoHandshake)
		c.Close(dataplane.E("handshake with "+c.RemoteAddr(), dataplane.TimedOut, errNoHandshake))
	case connRefused:
		c.Close(c.failure)
	case connOpen:
		c.poolPause = false
		c.setPause()
	}
}

func (c *Conn) warn(err error) {
	slog.Warn("connection closed", "peer", c.RemoteAddr(), "reason", err)
}

// Recv implements uring.ConnHandler.
func (c *Conn) Recv(p []byte) (consumed int, into []byte) {
	n := 0
	for c.state == connHandshake {
		k, more := c.handshake(p[n:])
		n += k
		if !more {
			break
		}
	}
	for c.state == connOpen && !c.userPause && !c.poolPause {
		k, into := c.frame(p[n:])
		n += k
		if into != nil {
			c.partial = false // c.direct says it
			return n, into
		}
		if k == 0 {
			break
		}
	}
	if c.state == connRefused || c.state == connClosed {
		return len(p), nil // nobody reads it any more
	}
	c.partial = n < len(p)
	return n, nil
}

// handshake takes one message; more says that there may be another one in what follows.
func (c *Conn) handshake(p []byte) (consumed int, more bool) {
	n, out, done, err := c.shake.Step(p)
	if len(out) > 0 {
		c.conn.Append(out)
	}
	if err == nil && done && c.shake.Peer().Service != ServiceRPC {
		err = denied("a service that this port does not have")
	}
	switch {
	case err != nil:
		c.gate.failed(c, err)
		c.refuse(err, len(out) > 0)
	case done:
		c.env.Disarm(&c.timer)
		c.gate.leave(c)
		c.protect(c.shake)
		c.shake = nil
		c.state = connOpen
		c.handler.Open(c)
	}
	return n, n > 0
}

// refuse closes the connection, after some time for a refusal to be sent.
func (c *Conn) refuse(err error, linger bool) {
	if !linger {
		c.Close(err)
		return
	}
	c.state, c.failure = connRefused, err
	c.env.Arm(&c.timer, lingerNs)
}

// frame delivers the first frame of p. consumed is 0 if it isn't complete, or if the connection
// was closed or has to wait.
func (c *Conn) frame(p []byte) (consumed int, into []byte) {
	if c.ring != nil && c.ring.Load() != c.keys && !c.admitted() {
		return 0, nil
	}
	if c.sealed != nil {
		return c.sealedFrame(p), nil
	}
	if len(p) < dataplane.HeaderSize {
		return 0, nil
	}
	h := &c.header
	err := h.Decode(p)
	if err == nil && h.Tag != 0 && c.tagged == nil {
		err = errTagged
	}
	if err != nil {
		return c.bad(err), nil
	}
	crcs, size := h.CRCBytes(), h.DataBytes()
	body := dataplane.HeaderSize + crcs
	if len(p) < body || size < DirectSize && len(p) < body+size {
		return 0, nil
	}
	if size >= DirectSize && !c.directBuf(size) {
		return 0, nil
	}
	if c.tagged != nil && !c.tagged.check(h, p[:body]) {
		return c.bad(errTag), nil
	}
	if size >= DirectSize {
		return c.directFrame(p, body, size)
	}
	c.handler.Frame(c, h, p[dataplane.HeaderSize:body:body], p[body:body+size:body+size], nil)
	return body + size, nil
}

// bad closes the connection for a frame that breaks the rules.
func (c *Conn) bad(err error) int {
	c.warn(err)
	c.Close(err)
	return 0
}

// directBuf takes a buffer for a large payload. False: there is none now, and it is tried again.
func (c *Conn) directBuf(size int) bool {
	c.direct = c.pool.Get(size)
	if c.direct == nil {
		if c.starved++; c.starved == starvedWarn {
			slog.Warn("connection waits for receive buffers", "peer", c.RemoteAddr(),
				"wanted", size, "in_use", c.pool.InUse())
		}
		c.poolPause = true
		c.setPause()
		c.env.Arm(&c.timer, poolRetryNs)
		return false
	}
	c.starved = 0
	return true
}

// directFrame takes a frame with a large payload, which starts at p[body], into c.direct.
func (c *Conn) directFrame(p []byte, body, size int) (consumed int, into []byte) {
	buf := c.direct
	copy(c.crcs[:], p[dataplane.HeaderSize:body])
	have := copy(buf.Bytes()[:size], p[body:])
	if have < size {
		c.offer(have, size)
		return body + have, buf.Bytes()[have:size]
	}
	c.deliverDirect()
	return body + have, nil
}

// RecvDone implements uring.ConnHandler: the rest of a large payload has arrived.
func (c *Conn) RecvDone() {
	if c.state == connOpen {
		c.deliverDirect()
	}
}

func (c *Conn) deliverDirect() {
	h, buf := &c.header, c.direct
	c.direct = nil
	c.handler.Frame(c, h, c.crcs[:h.CRCBytes()], buf.Bytes()[:h.DataBytes()], buf)
	buf.Release()
}

// Closed implements uring.ConnHandler.
func (c *Conn) Closed(err error) {
	if err == io.EOF && c.state != connClosed {
		switch {
		case c.state == connRefused:
			err = c.failure
		case c.state == connHandshake:
			err = errGone
		case c.partial || c.direct != nil || c.sealed != nil && c.sealed.payload:
			err = io.ErrUnexpectedEOF
		}
	}
	c.state = connClosed
	c.env.Disarm(&c.timer)
	c.gate.leave(c)
	if c.direct != nil {
		c.direct.Release()
		c.direct = nil
	}
	c.handler.Closed(c, err)
}
