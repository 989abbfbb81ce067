package uring

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// peer is a ConnHandler made of functions.
type peer struct {
	c        Conn
	recv     func(p []byte) (int, []byte)
	recvDone func()
	closed   func(error)
	closes   int
}

func (p *peer) Recv(b []byte) (int, []byte) {
	if p.recv == nil {
		return len(b), nil
	}
	return p.recv(b)
}

func (p *peer) RecvDone() {
	if p.recvDone != nil {
		p.recvDone()
	}
}

func (p *peer) Closed(err error) {
	p.closes++
	if p.closed != nil {
		p.closed(err)
	}
}

// echo answers with what it gets.
func echo(c Conn) ConnHandler {
	p := &peer{c: c}
	p.recv = func(b []byte) (int, []byte) {
		c.Append(b)
		return len(b), nil
	}
	return p
}

func listen(t testing.TB, l *Loop, attach func(Conn) ConnHandler) string {
	t.Helper()
	var addr string
	var err error
	on(t, l, func() { addr, _, err = l.Listen("127.0.0.1:0", attach) })
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// dialTo connects and returns the handler.
func dialTo(t testing.TB, l *Loop, addr string, p *peer) *peer {
	t.Helper()
	done := make(chan error, 1)
	l.Post(func() {
		l.Dial(addr, func(c Conn) ConnHandler { p.c = c; return p },
			func(_ Conn, err error) { done <- err })
	})
	if err := await(t, done, "connection"); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConnEchoLargeAndSmall(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(addr, func(t *testing.T) { testEcho(t, addr) })
	}
}

func testEcho(t *testing.T, addr string) {
	server, client := startLoop(t, LoopOptions{}), startLoop(t, LoopOptions{})
	var err error
	on(t, server, func() { addr, _, err = server.Listen(addr, echo) })
	if err != nil {
		t.Skip(err)
	}
	rng := rand.New(rand.NewSource(2))
	sent := make([]byte, 5<<20)
	rng.Read(sent)
	var got []byte
	done := make(chan struct{})
	p := &peer{}
	p.recv = func(b []byte) (int, []byte) {
		n := len(b)
		if len(got)%3 == 1 && n > 100 && len(got)+n < len(sent) {
			n -= 57 // leave some: it must come again
		}
		got = append(got, b[:n]...)
		if len(got) == len(sent) {
			close(done)
		}
		return n, nil
	}
	dialTo(t, client, addr, p)
	for rest := sent; len(rest) > 0; {
		n := min(1+rng.Intn(40), len(rest))
		if rng.Intn(3) == 0 {
			n = min(1+rng.Intn(200000), len(rest))
		}
		piece := rest[:n]
		rest = rest[n:]
		client.Post(func() {
			switch {
			case n <= 40 && n%2 == 0:
				copy(p.c.Reserve(n), piece)
			case n <= 65536 && n > 4096:
				b := client.Pool().Get(n)
				for b == nil {
					p.c.Append(piece)
					return
				}
				copy(b.Bytes(), piece)
				p.c.AppendBuf(b, 0, n/2)
				p.c.AppendBuf(b, n/2, n)
				b.Release()
			default:
				p.c.Append(piece)
			}
		})
	}
	await(t, done, "echo")
	on(t, client, func() {
		if !bytes.Equal(got, sent) {
			t.Error("the echo differs")
		}
		if p.c.Queued() != 0 {
			t.Errorf("%d bytes queued", p.c.Queued())
		}
	})
}

// TestConnPartialSends makes the peer read slowly from a small socket buffer.
func TestConnPartialSends(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := dialTo(t, l, ln.Addr().String(), &peer{})
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.(*net.TCPConn).SetReadBuffer(64 << 10)
	const total = 12 << 20
	on(t, l, func() {
		b := l.Pool().Get(1 << 20)
		defer b.Release()
		for i := range b.Bytes() {
			b.Bytes()[i] = byte(i * 7)
		}
		for n := 0; n < total; n += 1 << 20 {
			p.c.AppendBuf(b, 0, 1<<20)
		}
	})
	buf := make([]byte, 30011)
	for n := 0; n < total; {
		k, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range buf[:k] {
			if v != byte((n+i)*7) {
				t.Fatalf("byte %d is %d", n+i, v)
			}
		}
		n += k
	}
	on(t, l, func() {})
	on(t, l, func() {
		if l.Pool().InUse() != 0 {
			t.Errorf("%d bytes of buffers held after sending", l.Pool().InUse())
		}
	})
}

func TestConnCloseInFlight(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	why := errors.New("enough")
	closed := make(chan error, 1)
	p := &peer{closed: func(err error) { closed <- err }}
	dialTo(t, l, ln.Addr().String(), p)
	on(t, l, func() {
		b := l.Pool().Get(1 << 20)
		for range 40 {
			p.c.AppendBuf(b, 0, 1<<20) // nobody reads: the send stays in flight
		}
		b.Release()
	})
	on(t, l, func() {})
	on(t, l, func() {
		p.c.Close(why)
		if p.closes != 0 {
			t.Error("Closed from inside Close")
		}
		p.c.Close(io.EOF)
		p.c.Append([]byte("x"))
		p.c.Reserve(5)[4] = 1
		if p.c.Queued() != 0 && l.inFlight == 0 {
			t.Error("bytes queued on a closed connection")
		}
	})
	if err := await(t, closed, "close"); err != why {
		t.Errorf("closed with %v", err)
	}
	on(t, l, func() {
		if p.closes != 1 || len(l.conns) != 0 || l.Pool().InUse() != 0 {
			t.Errorf("%d closes, %d connections, %d bytes held",
				p.closes, len(l.conns), l.Pool().InUse())
		}
	})
}

func TestConnPeerCloses(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	closed := make(chan error, 1)
	addr := listen(t, l, func(c Conn) ConnHandler {
		return &peer{closed: func(err error) { closed <- err }}
	})
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = nc.Write([]byte("bye"))
	nc.Close()
	if err := await(t, closed, "orderly close"); err != io.EOF {
		t.Errorf("closed with %v", err)
	}
	if nc, err = net.Dial("tcp", addr); err != nil {
		t.Fatal(err)
	}
	_ = nc.(*net.TCPConn).SetLinger(0)
	nc.Close()
	if err := await(t, closed, "reset"); err == nil || err == io.EOF {
		t.Errorf("closed with %v after a reset", err)
	}
}

func TestDialErrors(t *testing.T) {
	l := startLoop(t, LoopOptions{DialTimeout: 200 * time.Millisecond})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := ln.Addr().String()
	ln.Close()
	for _, c := range []struct{ addr, want string }{
		{"nonsense", "ip:port"}, {"localhost:80", "ip:port"}, {free, "refused"},
		{"[fe80::1%nosuchif]:1", "zone"},
	} {
		inside := true
		done := make(chan error, 1)
		on(t, l, func() {
			l.Dial(c.addr, func(Conn) ConnHandler { panic("attached") }, func(_ Conn, err error) {
				if inside {
					t.Error("done from inside Dial")
				}
				done <- err
			})
			inside = false
		})
		if err := await(t, done, "answer"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.addr, err)
		}
	}
	for _, addr := range []string{"nonsense", "192.0.2.1:1"} {
		on(t, l, func() {
			if _, _, err := l.Listen(addr, echo); err == nil {
				t.Errorf("listening on %s", addr)
			}
		})
	}
}

// TestDialTimeout meets a listener whose backlog is full, so that nobody answers.
func TestDialTimeout(t *testing.T) {
	l := startLoop(t, LoopOptions{DialTimeout: 100 * time.Millisecond})
	addr := deafListener(t)
	errs := make(chan error, 64)
	const dials = 8
	l.Post(func() {
		for range dials {
			l.Dial(addr, func(c Conn) ConnHandler { return &peer{} },
				func(_ Conn, err error) { errs <- err })
		}
	})
	late := 0
	for range dials {
		if err := await(t, errs, "answer"); err != nil {
			if !strings.Contains(err.Error(), "no answer") {
				t.Error(err)
			}
			late++
		}
	}
	if late == 0 {
		t.Error("nothing timed out")
	}
}

func TestListenCloser(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	var addr string
	on(t, l, func() {
		a, closer, err := l.Listen("127.0.0.1:0", echo)
		if err != nil {
			t.Fatal(err)
		}
		addr = a
		l.Post(func() { closer(); closer() })
	})
	on(t, l, func() {})
	for deadline := time.Now().Add(5 * time.Second); ; {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			break
		}
		nc.Close()
		if time.Now().After(deadline) {
			t.Fatal("still accepting")
		}
	}
	on(t, l, func() {
		if len(l.socks) != 0 {
			t.Errorf("%d listeners left", len(l.socks))
		}
	})
}

func TestManyConnections(t *testing.T) {
	testManyConnections(t, startLoop(t, LoopOptions{}), startLoop(t, LoopOptions{}), 200, 50)
}

// testManyConnections has each of conns connections play ping-pong.
func testManyConnections(t *testing.T, server, client *Loop, conns, rounds int) {
	addr := listen(t, server, echo)
	done := make(chan error, conns)
	client.Post(func() {
		for i := range conns {
			p := &peer{}
			n := 0
			msg := []byte(fmt.Sprintf("message of %d", i))
			p.recv = func(b []byte) (int, []byte) {
				if len(b) < len(msg) {
					return 0, nil
				}
				if !bytes.Equal(b, msg) {
					done <- fmt.Errorf("connection %d got %q", i, b)
				}
				if n++; n == rounds {
					p.c.Close(nil)
				} else {
					p.c.Append(msg)
				}
				return len(msg), nil
			}
			p.closed = func(err error) { done <- err }
			client.Dial(addr, func(c Conn) ConnHandler { p.c = c; return p },
				func(c Conn, err error) {
					if err != nil {
						done <- err
						return
					}
					c.Append(msg)
				})
		}
	})
	for range conns {
		if err := await(t, done, "connection's end"); err != nil {
			t.Error(err)
		}
	}
}

// TestHungUp: the end of the peer is seen while nothing is received, also behind bytes that wait.
func TestHungUp(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	accepted := make(chan Conn, 1)
	addr := listen(t, l, func(c Conn) ConnHandler {
		c.PauseRecv(true)
		accepted <- c
		return &peer{c: c}
	})
	other, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := (<-accepted).(HangupSeer)
	hungUp := func() (is bool) {
		on(t, l, func() { is = c.HungUp() })
		return is
	}
	if _, err := other.Write([]byte("wait")); err != nil || hungUp() {
		t.Fatalf("write: %v; hung up: %v", err, hungUp())
	}
	other.Close()
	for end := time.Now().Add(5 * time.Second); !hungUp(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it isn't seen")
		}
	}
}

// TestKeepAlive: the kernel finds out that the host of a silent peer has died, whoever dialed, also
// when there is something on its way to it.
func TestKeepAlive(t *testing.T) {
	l := startLoop(t, LoopOptions{NoLocal: true})
	accepted := make(chan Conn, 1)
	addr := listen(t, l, func(c Conn) ConnHandler {
		accepted <- c
		return &peer{c: c}
	})
	dialed := dialTo(t, l, addr, &peer{})
	for _, c := range []Conn{dialed.c, <-accepted} {
		for name, want := range map[[2]int]int{{unix.SOL_SOCKET, unix.SO_KEEPALIVE}: 1,
			{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE}:     keepIdle,
			{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}: 120e3} {
			var got int
			var err error
			on(t, l, func() {
				got, err = unix.GetsockoptInt(int(c.(*conn).file.fd), name[0], name[1])
			})
			if err != nil || got != want {
				t.Errorf("option %d is %d, want %d (%v)", name, got, want, err)
			}
		}
	}
}
