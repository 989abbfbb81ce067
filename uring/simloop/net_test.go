package simloop

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"syscall"
	"testing"

	"pstorage/uring"
)

// echo answers frames of (length u32, that many bytes) with the same; large ones are received
// straight into a buffer.
type echo struct {
	t      testing.TB
	c      uring.Conn
	pool   *uring.Pool
	buf    *uring.Buf
	n      int
	closed error
	ends   int
}

func (e *echo) Recv(p []byte) (int, []byte) {
	done := 0
	for len(p)-done >= 4 {
		n := int(binary.LittleEndian.Uint32(p[done:]))
		if n >= 4096 {
			e.buf, e.n = e.pool.Get(n), n
			have := copy(e.buf.Bytes()[:n], p[done+4:])
			if have < n {
				e.buf.Bytes()[n-1] = 1
				return len(p), e.buf.Bytes()[have:n]
			}
			e.RecvDone()
		} else {
			if len(p)-done < 4+n {
				break
			}
			copy(e.c.Reserve(4), p[done:done+4])
			e.c.Append(p[done+4 : done+4+n])
		}
		done += 4 + n
	}
	return done, nil
}

func (e *echo) RecvDone() {
	binary.LittleEndian.PutUint32(e.c.Reserve(4), uint32(e.n))
	e.c.AppendBuf(e.buf, 0, e.n)
	e.buf.Release()
}

func (e *echo) Closed(err error) { e.closed = err; e.ends++ }

// sink gathers everything; or nothing, but for a pause when the receive window is full.
type sink struct {
	got    []byte
	closed error
	ends   int
	full   func()
}

func (s *sink) Recv(p []byte) (int, []byte) {
	if s.full != nil {
		if len(p) == uring.RecvWindow {
			s.full()
		}
		return 0, nil
	}
	s.got = append(s.got, p...)
	return len(p), nil
}
func (s *sink) RecvDone()        {}
func (s *sink) Closed(err error) { s.closed = err; s.ends++ }

type world struct {
	sim  *Sim
	net  *Net
	a, b *Env
	na   *Node
	nb   *Node
	pool *uring.Pool
	srv  []*echo
	addr string
	stop func()
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{sim: New(seed)}
	w.net = NewNet(w.sim, NetOptions{})
	w.a, w.b = w.sim.NewEnv("a"), w.sim.NewEnv("b")
	w.na, w.nb = w.net.Node(w.a, "10.0.0.1"), w.net.Node(w.b, "10.0.0.2")
	w.pool, _ = uring.NewPool(64 << 20)
	var err error
	w.addr, w.stop, err = w.nb.Listen(":0", func(c uring.Conn) uring.ConnHandler {
		e := &echo{t: t, c: c, pool: w.pool}
		w.srv = append(w.srv, e)
		return e
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) dial(t testing.TB, s *sink) (uring.Conn, error) {
	t.Helper()
	var conn uring.Conn
	var fail error
	w.a.Do(func() {
		w.na.Dial(w.addr, func(uring.Conn) uring.ConnHandler { return s },
			func(c uring.Conn, err error) { conn, fail = c, err })
	})
	if !w.sim.Run(func() bool { return conn != nil || fail != nil }, w.sim.Now()+5e9) {
		t.Fatal("Dial never answered")
	}
	return conn, fail
}

// stream sends n frames of mixed sizes and returns what must come back.
func (w *world) stream(c uring.Conn, n int) []byte {
	var want []byte
	for i := range n {
		size := []int{0, 1, 100, 4000, 4096, 70000, 300000}[w.a.Rand()%7]
		f := make([]byte, 4+size)
		binary.LittleEndian.PutUint32(f, uint32(size))
		for j := range size {
			f[4+j] = byte(i + j)
		}
		c.Append(f)
		want = append(want, f...)
	}
	return want
}

func TestNetEcho(t *testing.T) {
	hash := func(seed uint64) uint64 {
		w := newWorld(t, seed)
		s := &sink{}
		c, err := w.dial(t, s)
		if err != nil {
			t.Fatal(err)
		}
		var want []byte
		w.a.Do(func() { want = w.stream(c, 30) })
		if !w.sim.Run(func() bool { return len(s.got) >= len(want) }, 60e9) || c.Queued() != 0 {
			t.Fatalf("%d of %d bytes came back", len(s.got), len(want))
		}
		if !bytes.Equal(s.got, want) {
			t.Fatal("bytes changed on the way")
		}
		w.a.Do(func() { c.Close(io.ErrNoProgress) })
		w.sim.Run(func() bool { return s.ends > 0 && w.srv[0].ends > 0 }, 60e9)
		if s.closed != io.ErrNoProgress || s.ends != 1 || w.srv[0].ends != 1 || w.pool.InUse() != 0 {
			t.Fatal(s.closed, s.ends, w.srv[0].ends, w.pool.InUse())
		}
		return w.sim.Hash()
	}
	for seed := uint64(0); seed < 10; seed++ {
		if first, again := hash(seed), hash(seed); first != again {
			t.Fatalf("seed %d: two histories", seed)
		}
	}
}

func TestNetPauseAndCut(t *testing.T) {
	w := newWorld(t, 5)
	s := &sink{}
	c, _ := w.dial(t, s)
	var want []byte
	w.a.Do(func() { c.PauseRecv(true); want = w.stream(c, 60) })
	w.sim.Run(func() bool { return false }, w.sim.Now()+1e9)
	if len(s.got) != 0 || len(want) < 2*sockBuf || w.srv[0].c.Queued() == 0 {
		t.Fatal("a paused connection received, or pushed back on nobody")
	}
	w.net.Cut("10.0.0.2", "10.0.0.1", true)
	w.a.Do(func() { c.PauseRecv(false) })
	w.sim.Run(func() bool { return false }, w.sim.Now()+1e9)
	if len(s.got) == len(want) {
		t.Fatal("a cut way let everything through")
	}
	w.net.Cut("10.0.0.2", "10.0.0.1", false)
	if !w.sim.Run(func() bool { return bytes.Equal(s.got, want) }, w.sim.Now()+10e9) {
		t.Fatalf("%d of %d bytes after healing", len(s.got), len(want))
	}
}

// TestNetFullWindow: a handler may leave a full window unread if it pauses, as one does that has no
// memory for what comes. Else the connection is closed.
func TestNetFullWindow(t *testing.T) {
	for _, pauses := range []bool{true, false} {
		w := newWorld(t, 7)
		s := &sink{}
		c, _ := w.dial(t, s)
		fulls := 0
		s.full = func() {
			if fulls++; pauses {
				c.PauseRecv(true)
			}
		}
		var want []byte
		w.a.Do(func() { want = w.stream(c, 60) })
		w.sim.Run(func() bool { return false }, w.sim.Now()+1e9)
		if fulls == 0 || (s.ends == 0) != pauses {
			t.Fatalf("pauses %v: the window was full %d times, %d ends: %v", pauses, fulls, s.ends, s.closed)
		}
		if !pauses {
			continue
		}
		s.full = nil
		w.a.Do(func() { c.PauseRecv(false) })
		if !w.sim.Run(func() bool { return bytes.Equal(s.got, want) }, w.sim.Now()+10e9) {
			t.Fatalf("%d of %d bytes after the pause", len(s.got), len(want))
		}
	}
}

func TestNetEnds(t *testing.T) {
	w := newWorld(t, 6)
	s := &sink{}
	c, _ := w.dial(t, s)
	w.net.Reset("10.0.0.1", "10.0.0.2")
	w.sim.Run(func() bool { return s.ends == 1 && w.srv[0].ends == 1 }, 10e9)
	if !errors.Is(s.closed, syscall.ECONNRESET) || !errors.Is(w.srv[0].closed, syscall.ECONNRESET) {
		t.Fatal(s.closed)
	}
	c.Append([]byte("x")) // on a dead connection: ignored

	s = &sink{}
	w.dial(t, s)
	w.b.Kill()
	w.sim.Run(func() bool { return s.ends == 1 }, w.sim.Now()+10e9)
	if !errors.Is(s.closed, syscall.ECONNRESET) {
		t.Fatal("peer killed:", s.closed)
	}
	if _, err := w.dial(t, &sink{}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatal("nobody listens:", err)
	}
	w.net.Isolate("10.0.0.2", true)
	if _, err := w.dial(t, &sink{}); !errors.Is(err, syscall.ETIMEDOUT) {
		t.Fatal("cut off:", err)
	}
}
