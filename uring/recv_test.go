package uring

import (
	"encoding/binary"
	"errors"
	"math/rand"
	"net"
	"testing"
	"time"
)

// framed receives frames of a 4-byte length and a payload straight into pool buffers.
type framed struct {
	t      testing.TB
	l      *Loop
	c      Conn
	buf    *Buf
	n      int
	frames int
	copied int // bytes of payloads that came by the window
	done   chan struct{}
	want   int
}

func (f *framed) Recv(p []byte) (int, []byte) {
	consumed := 0
	for len(p) >= 4 {
		n := int(binary.LittleEndian.Uint32(p))
		f.buf, f.n = f.l.Pool().Get(n), n
		k := copy(f.buf.Bytes()[:n], p[4:])
		consumed += 4 + k
		f.copied += k
		if p = p[4+k:]; k < n {
			return consumed, f.buf.Bytes()[k:n]
		}
		f.frame()
	}
	return consumed, nil
}

func (f *framed) RecvDone() { f.frame() }

func (f *framed) frame() {
	for i, v := range f.buf.Bytes()[:f.n] {
		if v != byte(f.frames+i) {
			f.t.Fatalf("frame %d of %d bytes: byte %d is %d", f.frames, f.n, i, v)
		}
	}
	f.buf.Release()
	f.buf = nil
	if f.frames++; f.frames == f.want {
		close(f.done)
	}
}

func (f *framed) Closed(error) {
	if f.buf != nil {
		f.buf.Release()
	}
}

func TestConnDirectReceive(t *testing.T) {
	server, client := startLoop(t, LoopOptions{}), startLoop(t, LoopOptions{})
	const frames = 300
	f := &framed{t: t, l: server, done: make(chan struct{}), want: frames}
	addr := listen(t, server, func(c Conn) ConnHandler { f.c = c; return f })
	p := dialTo(t, client, addr, &peer{})
	rng := rand.New(rand.NewSource(3))
	for i := range frames {
		n := 1 + rng.Intn(70000)
		b := make([]byte, 4+n)
		binary.LittleEndian.PutUint32(b, uint32(n))
		for j := range n {
			b[4+j] = byte(i + j)
		}
		client.Post(func() { p.c.Append(b) })
	}
	await(t, f.done, "last frame")
}

// TestConnPeeks: of a stream of large payloads little comes by the window, though all of it could.
func TestConnPeeks(t *testing.T) {
	server, client := startLoop(t, LoopOptions{}), startLoop(t, LoopOptions{})
	const frames, size = 200, 64 << 10
	f := &framed{t: t, l: server, done: make(chan struct{}), want: frames}
	addr := listen(t, server, func(c Conn) ConnHandler { f.c = c; return f })
	p := dialTo(t, client, addr, &peer{})
	for i := range frames {
		b := make([]byte, 4+size)
		binary.LittleEndian.PutUint32(b, size)
		for j := range size {
			b[4+j] = byte(i + j)
		}
		client.Post(func() { p.c.Append(b) })
	}
	await(t, f.done, "last frame")
	if most := RecvWindow + frames*recvPeek; f.copied > most {
		t.Errorf("%d of %d bytes came by the window, at most %d should", f.copied, frames*size, most)
	}
}

func TestConnPauseRecvPushesBack(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	received := 0
	var p *peer
	more := make(chan int, 1000)
	addr := listen(t, l, func(c Conn) ConnHandler {
		p = &peer{c: c}
		p.recv = func(b []byte) (int, []byte) {
			received += len(b)
			more <- received
			c.PauseRecv(true)
			return len(b) - len(b)/4, nil
		}
		return p
	})
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_ = nc.(*net.TCPConn).SetWriteBuffer(64 << 10)
	data := make([]byte, 64<<20) // may take longer than the deadline leaves on a busy machine
	_ = nc.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	sent, err := nc.Write(data)
	if err == nil {
		t.Fatalf("all %d bytes were taken from a paused connection's peer", sent)
	}
	await(t, more, "first bytes")
	on(t, l, func() {
		if len(more) != 0 {
			t.Error("Recv of a paused connection")
		}
		p.c.PauseRecv(false) // the quarter that was left comes at once
	})
	await(t, more, "bytes after the pause")
	on(t, l, func() {
		p.recv = func(b []byte) (int, []byte) { received += len(b); return len(b), nil }
		p.c.PauseRecv(false)
	})
	_ = nc.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := nc.Write(make([]byte, 4<<20)); err != nil {
		t.Error(err)
	}
}

func TestConnStuckHandlerIsClosed(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	closed := make(chan error, 1)
	addr := listen(t, l, func(c Conn) ConnHandler {
		return &peer{recv: func(b []byte) (int, []byte) { return 0, nil },
			closed: func(err error) { closed <- err }}
	})
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_, _ = nc.Write(make([]byte, RecvWindow+100))
	if err := await(t, closed, "close"); !errors.Is(err, errRecvStuck) {
		t.Errorf("closed with %v", err)
	}
}

// TestConnWindowFollowsThePeer grows under a busy peer and shrinks for a quiet one.
func TestConnWindowFollowsThePeer(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	var c *conn
	got := 0
	arrived := make(chan int, 100000)
	addr := listen(t, l, func(cn Conn) ConnHandler {
		c = cn.(*conn)
		return &peer{recv: func(b []byte) (int, []byte) {
			got += len(b)
			arrived <- got
			return len(b), nil
		}}
	})
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	window := func() (n int) {
		on(t, l, func() {
			if c != nil && c.win != nil {
				n = len(c.win.mem)
			}
		})
		return n
	}
	send := func(n, total int) {
		for sent := 0; sent < total; sent += n {
			if _, err := nc.Write(make([]byte, n)); err != nil {
				t.Fatal(err)
			}
			if n < 100 { // one receive each
				await(t, arrived, "bytes")
			}
		}
	}
	send(10, 10)
	if w := window(); w != recvFirst {
		t.Errorf("window of %d bytes for a quiet peer, want %d", w, recvFirst)
	}
	on(t, l, func() { got = 0 })
	const much = 32 << 20
	send(1<<20, much)
	for n := 0; n < much; {
		n = await(t, arrived, "many bytes")
	}
	if w := window(); w != RecvWindow {
		t.Errorf("window of %d bytes for a busy peer, want %d", w, RecvWindow)
	}
	send(10, 10*4*recvShrinkAfter)
	if w := window(); w != recvFirst {
		t.Errorf("window of %d bytes for a quiet peer, want %d", w, recvFirst)
	}
}

// TestConnPauseInDirectReceive pauses while a payload is under way: RecvDone waits.
func TestConnPauseInDirectReceive(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	var c Conn
	var buf *Buf
	events := make(chan string, 10)
	addr := listen(t, l, func(cn Conn) ConnHandler {
		c = cn
		return &peer{
			recv: func(b []byte) (int, []byte) {
				events <- string(b)
				if len(b) == 4 {
					buf = l.Pool().Get(4096)
					return 4, buf.Bytes()[:5]
				}
				return len(b), nil
			},
			recvDone: func() {
				events <- "done " + string(buf.Bytes()[:5])
				buf.Release()
				c.PauseRecv(true)
			},
			closed: func(err error) { events <- err.Error() },
		}
	})
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	write := func(s string) {
		if _, err := nc.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(want string) {
		t.Helper()
		if got := await(t, events, want); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	write("head")
	expect("head")
	on(t, l, func() { c.PauseRecv(true) })
	write("12345")
	write("behind")
	on(t, l, func() {
		if len(events) != 0 {
			t.Errorf("%q while paused", <-events)
		}
		c.PauseRecv(false)
		c.PauseRecv(true)
		c.PauseRecv(false)
	})
	expect("done 12345") // and is paused again
	on(t, l, func() { c.PauseRecv(false) })
	expect("behind")
	nc.Close()
	expect("EOF")
}

// TestConnCloseInsideCallbacks closes from Recv, RecvDone and attach.
func TestConnCloseInsideCallbacks(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	for _, where := range []string{"attach", "recv", "recvDone", "dial done"} {
		why := errors.New(where)
		closed := make(chan error, 1)
		began := make(chan struct{}, 10)
		var buf *Buf
		addr := listen(t, l, func(c Conn) ConnHandler {
			p := &peer{closed: func(err error) {
				if buf != nil {
					buf.Release()
				}
				closed <- err
			}}
			p.recv = func(b []byte) (int, []byte) {
				if where == "recv" {
					c.Close(why)
				}
				buf = l.Pool().Get(10)
				began <- struct{}{}
				n := copy(buf.Bytes()[:10], b)
				if n == 10 {
					return len(b), nil
				}
				return len(b), buf.Bytes()[n:10]
			}
			p.recvDone = func() { c.Close(why) }
			if where == "attach" {
				c.Close(why)
			}
			return p
		})
		if where == "dial done" {
			l.Post(func() {
				l.Dial(addr, func(Conn) ConnHandler {
					return &peer{closed: func(err error) { closed <- err }}
				}, func(c Conn, err error) {
					if err != nil {
						closed <- err
						return
					}
					c.Append([]byte("x"))
					c.Close(why)
				})
			})
			if err := await(t, closed, "close"); err != why {
				t.Errorf("%s: closed with %v", where, err)
			}
			continue
		}
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = nc.Write([]byte("12345"))
		if where == "recvDone" {
			await(t, began, "first half")
			_, _ = nc.Write([]byte("67890"))
		}
		if err := await(t, closed, "close"); err != why {
			t.Errorf("%s: closed with %v", where, err)
		}
		nc.Close()
	}
}
