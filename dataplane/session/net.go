package session

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"pstorage/dataplane"
)

// This file is the blocking flavour of a session: one goroutine reads, any number write.

// ErrAuthDone is what Server returns for a connection that came for the password handshake and was
// served completely. The connection is closed.
var ErrAuthDone = errors.New("password handshake served")

var errPayloadCRC = &dataplane.FrameError{Reason: "payload checksum mismatch"}

const readBuffer = 64 << 10

// NetConn is an authenticated net.Conn. Read and ReadFrame belong to one goroutine; Write,
// WriteFrame, Close and the deadlines may be called by any.
type NetConn struct {
	net.Conn
	peer    Peer
	session [32]byte
	in      *bufio.Reader
	head    [dataplane.HeaderSize]byte // the reader's
	ring    *Ring                      // nil: the keys don't change
	keys    *KeySet                    // the reader's: they admit the peer
	receive *openStream                // nil: not encrypted

	writeMu sync.Mutex
	out     []byte      // guarded by writeMu
	send    *sealStream // guarded by writeMu; nil: not encrypted
}

// Peer is who is at the other end.
func (c *NetConn) Peer() Peer { return c.peer }

// SessionKey is the secret that both ends derived.
func (c *NetConn) SessionKey() [32]byte { return c.session }

// Read reads from the stream behind the handshake. It fails when the keys of now don't admit the
// peer any more.
func (c *NetConn) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if err == nil {
		err = c.admitted()
	}
	if err != nil {
		return 0, err // what came is nobody's any more
	}
	return n, nil
}

func (c *NetConn) admitted() error {
	if c.ring == nil || c.ring.Load() == c.keys {
		return nil
	}
	keys := c.ring.Load()
	if err := keys.admits(&c.peer); err != nil {
		c.Close()
		return err
	}
	c.keys = keys
	return nil
}

// Write writes p as a whole: concurrent writers don't mix.
func (c *NetConn) Write(p []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	return c.write(p, 0)
}

// write is Write while writeMu is held. An encrypted record ends after the first cut bytes.
func (c *NetConn) write(p []byte, cut int) (int, error) {
	if c.send == nil {
		return c.Conn.Write(p)
	}
	return c.send.write(c.Conn, p, cut)
}

// ReadFrame reads the next frame into h, and its payload into buf if that is large enough (or else
// into new memory). The payload's CRCs are checked. io.EOF means that the peer closed between two
// frames. After a *dataplane.FrameError the connection must be closed.
func (c *NetConn) ReadFrame(h *dataplane.Header, buf []byte) ([]byte, error) {
	if _, err := io.ReadFull(c.in, c.head[:]); err != nil {
		return nil, err
	}
	if err := c.admitted(); err != nil {
		return nil, err
	}
	if err := h.Decode(c.head[:]); err != nil {
		return nil, err
	}
	if h.Tag != 0 {
		return nil, errTagged
	}
	crcs, size := h.CRCBytes(), h.DataBytes()
	if size == 0 {
		return nil, nil
	}
	if cap(buf) < crcs+size {
		buf = make([]byte, crcs+size)
	}
	buf = buf[:crcs+size]
	if _, err := io.ReadFull(c.in, buf); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	payload := buf[crcs:]
	if dataplane.CheckCRCs(buf[:crcs], h.Offset, payload) >= 0 {
		return nil, errPayloadCRC
	}
	return payload, nil
}

// AppendFrame appends the encoded frame to dst. If payload isn't empty FlagData and Length are set
// in the frame (not in h) and the CRCs are made.
func AppendFrame(dst []byte, h *dataplane.Header, payload []byte) []byte {
	f := *h
	if len(payload) > 0 {
		f.Flags |= dataplane.FlagData
		f.Length = uint32(len(payload))
	}
	if f.DataBytes() != len(payload) {
		panic(fmt.Sprintf("session: frame with %d bytes of payload: %v", len(payload), &f))
	}
	crcs := f.CRCBytes()
	at := len(dst)
	dst = append(dst, make([]byte, dataplane.HeaderSize+crcs)...)
	f.Put(dst[at:])
	dataplane.PutCRCs(dst[at+dataplane.HeaderSize:], f.Offset, payload)
	return append(dst, payload...)
}

// WriteFrame sends a frame with one write. See AppendFrame for what it does to the header.
func (c *NetConn) WriteFrame(h *dataplane.Header, payload []byte) error {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.out = AppendFrame(c.out[:0], h, payload)
	_, err := c.write(c.out, len(c.out)-len(payload))
	if cap(c.out) > readBuffer {
		c.out = nil
	}
	return err
}

// Client proves cred over conn, which it has dialed, and asks for a service. It ends with ctx or
// after HandshakeTime. On an error conn is closed.
func Client(ctx context.Context, conn net.Conn, cred *Credentials, service uint8) (
	*NetConn, error) {
	defer closeOnDone(ctx, conn)()
	conn.SetDeadline(time.Now().Add(HandshakeTime))
	nc, err := run(conn, NewDialer(cred, service, newNonce()).forStream(), nil)
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = dataplane.E("", dataplane.TimedOut, ctx.Err())
		}
		return nil, at("connect to "+conn.RemoteAddr().String(), err)
	}
	return nc, nil
}

// closeOnDone closes conn when ctx ends; the returned function ends the watch.
func closeOnDone(ctx context.Context, conn net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	return func() { stop() }
}

// at names what was tried, and keeps the kind of err.
func at(op string, err error) error {
	kind := dataplane.Unreachable
	var e *dataplane.Error
	var timeout net.Error
	switch {
	case errors.As(err, &e):
		kind = e.Kind
		if e.Err != nil {
			err = e.Err
		}
	case errors.As(err, &timeout) && timeout.Timeout():
		kind, err = dataplane.TimedOut, errNoHandshake
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		err = errors.New("the peer closed the connection during the handshake")
	}
	return dataplane.E(op, kind, err)
}

func newNonce() (n [32]byte) {
	rand.Read(n[:]) // never fails
	return n
}

// run drives a handshake over conn, which has a deadline. first is the message that was read
// already, or nil.
func run(conn net.Conn, k *Handshake, first []byte) (*NetConn, error) {
	for msg := first; ; {
		_, out, done, err := k.Step(msg)
		if len(out) > 0 {
			if _, werr := conn.Write(out); err == nil {
				err = werr
			}
		}
		if err == nil && done {
			err = conn.SetDeadline(time.Time{})
		}
		if err != nil {
			return nil, err
		}
		if done {
			return newNetConn(conn, k), nil
		}
		if msg, err = readMessage(conn, keyMagic, MaxMessage); err != nil {
			return nil, err
		}
	}
}

func newNetConn(conn net.Conn, k *Handshake) *NetConn {
	c := &NetConn{Conn: conn, peer: k.Peer(), session: k.SessionKey(), ring: k.cred.Ring,
		keys: k.set}
	var in io.Reader = conn
	size := readBuffer
	if c.peer.Secure {
		send, receive := directions(&c.session, k.dialer)
		c.send = &sealStream{d: send}
		c.receive = newOpenStream(receive, conn)
		in, size = c.receive, 4096 // the records are buffered already
	}
	c.in = bufio.NewReaderSize(in, size)
	return c
}

// readMessage reads exactly one handshake message, at most so many bytes. With an empty magic it
// takes any of the two.
func readMessage(conn net.Conn, magic string, most int) ([]byte, error) {
	m := make([]byte, headSize, 128)
	if _, err := io.ReadFull(conn, m); err != nil {
		return nil, err
	}
	if magic == "" {
		magic = keyMagic
		if string(m[:len(passMagic)]) == passMagic {
			magic = passMagic
		}
	}
	if _, err := cutMessage(m, magic, most); err != nil {
		return nil, err
	}
	m = append(m, make([]byte, binary.LittleEndian.Uint16(m[6:]))...)
	_, err := io.ReadFull(conn, m[headSize:])
	return m, err
}

// ServerOptions is what Server needs. It is not changed while in use.
type ServerOptions struct {
	Cred     *Credentials
	Auth     *PasswordAuth // nil: the password handshake is refused
	Fails    *Failures     // of keys, shared by all connections of a listener; nil: no limit
	Log      *slog.Logger  // nil: slog.Default()
	Deadline time.Duration // for the handshake; 0: HandshakeTime
}

func (o *ServerOptions) log() *slog.Logger {
	if o.Log != nil {
		return o.Log
	}
	return slog.Default()
}

// Server takes the handshake on conn, which was accepted. A connection that came for the password
// handshake is served completely and ErrAuthDone returned. With any error conn is closed, and the
// reason is logged.
func Server(conn net.Conn, o *ServerOptions) (*NetConn, error) {
	limit := o.Deadline
	if limit == 0 {
		limit = HandshakeTime
	}
	conn.SetDeadline(time.Now().Add(limit))
	k := NewAcceptor(o.Cred, newNonce()).forStream()
	k.quiet = o.Fails.quiet(conn.RemoteAddr().String())
	nc, err := serve(conn, k, o)
	if err == nil {
		return nc, nil
	}
	conn.Close()
	if err == ErrAuthDone {
		return nil, err
	}
	remote := conn.RemoteAddr().String()
	err = at("handshake with "+remote, err)
	if o.Fails != nil && !o.Fails.ended(remote, err, k.named) {
		return nil, err
	}
	o.log().Warn("connection refused", "peer", remote, "reason", err)
	return nil, err
}

func serve(conn net.Conn, k *Handshake, o *ServerOptions) (*NetConn, error) {
	first, err := readMessage(conn, "", MaxMessage)
	if err != nil {
		return nil, err
	}
	if string(first[:len(passMagic)]) == passMagic {
		if err := servePassword(conn, first, o); err != nil {
			return nil, err
		}
		return nil, ErrAuthDone
	}
	return run(conn, k, first)
}
