package control

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

// follower starts a server that names hint as the leader and passes connections on to leader.
func follower(t testing.TB, hint, leader string, passed *atomic.Int32) *server {
	t.Helper()
	s := newServer(t, "127.0.0.1:0", func(context.Context, request) (any, error) {
		return nil, leaderError{hint}
	})
	s.relay = func(ctx context.Context, nc *session.NetConn) {
		passed.Add(1)
		if err := Relay(ctx, nc, leader); err != nil {
			nc.Close()
		}
	}
	s.start()
	return s
}

// freeAddr is an address where nobody listens.
func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A client that can't connect to the leader reaches it through the follower that named it, with
// calls and pushes, and goes to the leader itself when that works again.
func TestRelay(t *testing.T) {
	var direct atomic.Bool
	var asked [2]atomic.Int32 // through the follower, directly
	handle := func(ctx context.Context, r request) (any, error) {
		i := 0
		if direct.Load() {
			i = 1
		}
		asked[i].Add(1)
		if err := r.peer.Push(OpMapChanged, MapPush{}); err != nil {
			return nil, err
		}
		return echoName(ctx, r)
	}
	leader := serve(t, "127.0.0.1:0", handle)
	hidden := freeAddr(t)
	var passed, pushed atomic.Int32
	f := follower(t, hidden, leader.addr, &passed)
	c := client(t, Options{Addrs: FixedAddrs(f.addr), direct: 50 * time.Millisecond,
		OnPush: func(dataplane.Opcode, []byte) { pushed.Add(1) }})
	for i := range 20 {
		var a Attr
		err := c.Call(within(t, 10*time.Second), OpLookup, LookupReq{Name: "x"}, &a)
		if err != nil || a.Target != "x" {
			t.Fatalf("call %d: %v, %+v", i, err, a)
		}
	}
	await(t, "all pushes came", func() bool { return pushed.Load() == 20 })
	if n := passed.Load(); n != 1 || c.Leader() != hidden {
		t.Errorf("%d connections passed on, leader %s; want 1 and %s", n, c.Leader(), hidden)
	}
	// Now the leader takes connections itself; the old way still works.
	direct.Store(true)
	serve(t, hidden, handle)
	await(t, "the relay is left", func() bool {
		var peers int
		leader.peers.Range(func(any, any) bool { peers++; return true })
		return peers == 0
	})
	if err := c.Call(within(t, 10*time.Second), OpLookup, LookupReq{}, nil); err != nil {
		t.Error(err)
	}
	if asked[0].Load() != 20 || asked[1].Load() != 1 || passed.Load() != 1 {
		t.Errorf("asked %d and %d, %d passed on", asked[0].Load(), asked[1].Load(), passed.Load())
	}
}

// Relay ends both connections when one ends, or when nobody says anything any more, and says when
// the leader can't be reached.
func TestRelayEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	silent := l.Addr().String()
	var passed atomic.Int32
	f := follower(t, "", silent, &passed)
	dial := func() *session.NetConn {
		conn, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		nc, err := session.Client(t.Context(), conn, cred(dataplane.RoleClient, 5),
			session.ServiceRelay)
		if err != nil {
			t.Fatal(err)
		}
		return nc
	}
	begin := time.Now()
	nc := dial()
	defer nc.Close()
	if n, err := nc.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes from a silent server", n)
	}
	if d := time.Since(begin); d < silenceLimit/2 || d > 3*silenceLimit {
		t.Errorf("a silent connection was ended after %v", d)
	}
	if n := passed.Load(); n != 1 {
		t.Errorf("%d connections were passed on", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Relay(ctx, dial(), silent); err == nil {
		t.Error("passed on although the server stops")
	}
	if err := Relay(t.Context(), dial(), freeAddr(t)); dataplane.KindOf(err) !=
		dataplane.Unreachable {
		t.Errorf("no leader there: %v", err)
	}
}
