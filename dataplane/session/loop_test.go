package session

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// Here sessions run over the kernel's sockets and over the simulated network.

// echoer sends every frame back, large ones without a copy. It keeps nothing.
type echoer struct {
	open   int
	closed []error
}

func (e *echoer) Open(*Conn)                { e.open++ }
func (e *echoer) Closed(_ *Conn, err error) { e.closed = append(e.closed, err) }
func (e *echoer) Frame(c *Conn, h *dataplane.Header, crcs, p []byte, buf *uring.Buf) {
	r := *h
	r.Flags |= dataplane.FlagReply
	if buf != nil {
		c.SendBuf(&r, crcs, buf, 0, len(p))
	} else {
		c.Send(&r, crcs, p)
	}
}

func startLoop(t *testing.T) *uring.Loop {
	t.Helper()
	l, err := uring.NewLoop(uring.LoopOptions{PoolSize: 32 << 20})
	if err != nil {
		t.Skipf("no ring on this kernel: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Run() }()
	t.Cleanup(func() {
		l.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// on runs f on the loop's thread and waits for it.
func on(l *uring.Loop, f func()) {
	done := make(chan struct{})
	l.Post(func() { f(); close(done) })
	<-done
}

func echoServer(t *testing.T, l *uring.Loop, h FrameHandler) (addr string) {
	t.Helper()
	var err error
	on(l, func() {
		addr, _, err = l.Listen("127.0.0.1:0", func(c uring.Conn) uring.ConnHandler {
			return NewConn(c, l, l.Pool(), testCred(dataplane.RoleCS, 2), false, h)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// client is a FrameHandler that sends frames when open, a few at a time, and keeps the answers.
type client struct {
	collector
	send []got
	next int
	done func()
}

const clientWindow = 8

func (k *client) Open(c *Conn) {
	k.collector.Open(c)
	for range clientWindow {
		k.more(c)
	}
}

func (k *client) more(c *Conn) {
	if k.next < len(k.send) {
		g := &k.send[k.next]
		k.next++
		c.Send(&g.h, g.crcs, g.payload)
	}
}

func (k *client) Frame(c *Conn, h *dataplane.Header, crcs, p []byte, buf *uring.Buf) {
	k.collector.Frame(c, h, crcs, p, buf)
	if k.more(c); len(k.frames) == len(k.send) {
		c.Close(io.EOF)
	}
}

func (k *client) Closed(c *Conn, err error) {
	k.collector.Closed(c, err)
	k.done()
}

func newClient(t testing.TB, seed uint64, frames int, done func()) *client {
	k := &client{collector: collector{t: t}, done: done}
	rng := rand.New(rand.NewPCG(seed, 5))
	for range frames {
		k.send = append(k.send, randomFrame(rng))
	}
	return k
}

// check compares what came back with what was sent.
func (k *client) check() {
	k.t.Helper()
	for i := range k.frames {
		k.frames[i].h.Flags &^= dataplane.FlagReply
	}
	if k.err != io.EOF || !same(k.frames, k.send) {
		k.t.Fatalf("%d of %d frames came back right; %v", len(k.frames), len(k.send), k.err)
	}
}

func TestLoopFrames(t *testing.T) {
	l := startLoop(t)
	server := &echoer{}
	addr := echoServer(t, l, server)
	const clients = 3
	ended := make(chan bool, clients)
	var ks []*client
	for i := range uint64(clients) {
		ks = append(ks, newClient(t, i, 100, func() { ended <- true }))
	}
	on(l, func() {
		for i, k := range ks {
			l.Dial(addr, func(c uring.Conn) uring.ConnHandler {
				return NewConn(c, l, l.Pool(), testCred(dataplane.RoleClient, uint64(i)), true, k)
			}, func(_ uring.Conn, err error) {
				if err != nil {
					t.Error(err)
					ended <- false
				}
			})
		}
	})
	for range ks {
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Fatal("frames did not come back")
		}
	}
	on(l, func() {
		for _, k := range ks {
			k.check()
		}
	})
}

// The two flavours speak the same language.
func TestLoopAndNet(t *testing.T) {
	l := startLoop(t)
	addr := echoServer(t, l, &echoer{})
	nc, err := Client(t.Context(), dial(t, addr), testCred(dataplane.RoleAdmin, 7), ServiceRPC)
	if err != nil {
		t.Fatal(err)
	}
	if p := nc.Peer(); p.Role != dataplane.RoleCS || p.ID != 2 {
		t.Errorf("peer %+v", p)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 50 {
		g := randomFrame(rng)
		if err := nc.WriteFrame(&g.h, g.payload); err != nil {
			t.Fatal(err)
		}
		var h dataplane.Header
		p, err := nc.ReadFrame(&h, nil)
		if err != nil || h.ReqID != g.h.ReqID || !bytes.Equal(p, g.payload) {
			t.Fatal(err, &h)
		}
	}
}

// Strangers at a chunk server's port are refused while members are served.
func TestLoopStrangers(t *testing.T) {
	l := startLoop(t)
	server := &echoer{}
	addr := echoServer(t, l, server)
	wrong := testCred(dataplane.RoleClient, 7)
	wrong.Key[0]++
	_, err := Client(t.Context(), dial(t, addr), wrong, ServiceRPC)
	if dataplane.KindOf(err) != dataplane.Denied {
		t.Errorf("wrong key: %v", err)
	}
	wrong = testCred(dataplane.RoleClient, 7)
	wrong.Cluster[0]++
	_, err = Client(t.Context(), dial(t, addr), wrong, ServiceRPC)
	if dataplane.KindOf(err) != dataplane.WrongCluster {
		t.Errorf("wrong cluster: %v", err)
	}
	mds := testCred(dataplane.RoleMDS, 7)
	if _, err = Client(t.Context(), dial(t, addr), mds, ServiceRaft); err == nil {
		t.Error("a chunk server speaks Raft")
	}
	_, err = AuthNode(t.Context(), dial(t, addr), "test", "password", "host", AllRoles)
	if err == nil {
		t.Error("a chunk server gives keys away")
	}
	for _, in := range []string{"GET / HTTP/1.1\r\n\r\n", "PSHK\x01\x01\xff\xff"} {
		conn := dial(t, addr)
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		conn.Write([]byte(in))
		if out, err := io.ReadAll(conn); isDeadline(err) || len(out) != 0 {
			t.Errorf("%q: %v, answer %q", in, err, out)
		}
	}
	on(l, func() {
		if server.open != 0 {
			t.Errorf("%d strangers are in", server.open)
		}
	})
}

// A pool that is dry for a while delays large frames, and loses none.
func TestLoopPoolExhausted(t *testing.T) {
	l := startLoop(t)
	addr := echoServer(t, l, &echoer{})
	nc, err := Client(t.Context(), dial(t, addr), testCred(dataplane.RoleClient, 7), ServiceRPC)
	if err != nil {
		t.Fatal(err)
	}
	var hog []*uring.Buf
	on(l, func() {
		for _, n := range []int{1 << 20, 256 << 10, 64 << 10, 16 << 10, 4096} {
			for b := l.Pool().Get(n); b != nil; b = l.Pool().Get(n) {
				hog = append(hog, b)
			}
		}
	})
	g := makeFrame(rand.New(rand.NewPCG(1, 1)), dataplane.OpWrite, 0, dataplane.PartSize)
	if err := nc.WriteFrame(&g.h, g.payload); err != nil {
		t.Fatal(err)
	}
	var h dataplane.Header
	nc.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err = nc.ReadFrame(&h, nil)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("an answer without a buffer: %v", err)
	}
	on(l, func() {
		for _, b := range hog {
			b.Release()
		}
	})
	nc.SetReadDeadline(time.Now().Add(10 * time.Second))
	if p, err := nc.ReadFrame(&h, nil); err != nil || !bytes.Equal(p, g.payload) {
		t.Fatal(err)
	}
}

// Over the simulated network, which cuts streams anywhere: all frames come back, and the same seed
// gives the same history.
func TestSimFrames(t *testing.T) {
	history := func(seed uint64) uint64 {
		sim := simloop.New(seed)
		network := simloop.NewNet(sim, simloop.NetOptions{})
		a, b := sim.NewEnv("a"), sim.NewEnv("b")
		na, nb := network.Node(a, "10.0.0.1"), network.Node(b, "10.0.0.2")
		pool, err := uring.NewPool(64 << 20)
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		server := &echoer{}
		addr, stop, err := nb.Listen(":0", func(c uring.Conn) uring.ConnHandler {
			return NewConn(c, b, pool, testCred(dataplane.RoleCS, 2), false, server)
		})
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		ended := false
		k := newClient(t, seed, 40, func() { ended = true })
		a.Do(func() {
			na.Dial(addr, func(c uring.Conn) uring.ConnHandler {
				return NewConn(c, a, pool, testCred(dataplane.RoleClient, 1), true, k)
			}, func(_ uring.Conn, err error) {
				if err != nil {
					t.Error(err)
				}
			})
		})
		if !sim.Run(func() bool { return ended && len(server.closed) > 0 }, 600e9) {
			t.Fatalf("seed %d: %d of %d frames came back", seed, len(k.frames), len(k.send))
		}
		k.check()
		return sim.Hash()
	}
	for seed := range uint64(8) {
		if first, again := history(seed), history(seed); first != again {
			t.Errorf("seed %d has two histories", seed)
		}
	}
}

// gateServer is echoServer behind a gate.
func gateServer(t *testing.T, l *uring.Loop, gate *Gate) (addr string) {
	t.Helper()
	var err error
	h := &echoer{}
	on(l, func() {
		addr, _, err = l.Listen("127.0.0.1:0", func(c uring.Conn) uring.ConnHandler {
			return gate.Accept(c, l, l.Pool(), testCred(dataplane.RoleCS, 2), h)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return addr
}
