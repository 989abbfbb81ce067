package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

func cred(role dataplane.Role, id uint64) *session.Credentials {
	return &session.Credentials{Cluster: dataplane.ClusterID{1}, ClusterName: "test",
		Key: [32]byte{7}, Role: role, ID: id, Name: "host"}
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// request is what a handler was asked.
type request struct {
	peer *Peer
	id   uint64
	op   dataplane.Opcode
	p    []byte
}

// server is a metadata server on loopback whose handler is a function.
type server struct {
	t      testing.TB
	addr   string
	handle func(ctx context.Context, r request) (any, error)
	relay  func(ctx context.Context, nc *session.NetConn) // of connections that ask for it
	gone   atomic.Int32
	peers  sync.Map // *Peer -> true, while connected
	l      net.Listener
	cancel context.CancelFunc
	done   chan struct{}
}

func (s *server) Handle(ctx context.Context, peer *Peer, id uint64, op dataplane.Opcode,
	p []byte) (any, error) {
	s.peers.Store(peer, true)
	return s.handle(ctx, request{peer, id, op, p})
}

func (s *server) Gone(peer *Peer) {
	s.peers.Delete(peer)
	s.gone.Add(1)
}

// serve starts a server on addr ("127.0.0.1:0": any port); it is stopped at the end of the test.
func serve(t testing.TB, addr string, handle func(context.Context, request) (any, error)) *server {
	t.Helper()
	s := newServer(t, addr, handle)
	s.start()
	return s
}

// newServer listens, and start serves.
func newServer(t testing.TB, addr string,
	handle func(context.Context, request) (any, error)) *server {
	t.Helper()
	s := &server{t: t, handle: handle, done: make(chan struct{})}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s.l, s.addr = l, l.Addr().String()
	return s
}

func (s *server) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	o := &session.ServerOptions{Cred: cred(dataplane.RoleMDS, 1), Log: quiet()}
	go func() {
		defer close(s.done)
		err := session.Serve(ctx, s.l, o, func(nc *session.NetConn) {
			if nc.Peer().Service == session.ServiceRelay {
				s.relay(ctx, nc)
				return
			}
			ServeConn(ctx, nc, s)
		})
		if err != nil {
			s.t.Error(err)
		}
	}()
	s.t.Cleanup(s.stop)
}

func (s *server) stop() {
	s.cancel()
	<-s.done
}

func client(t testing.TB, o Options) *Client {
	t.Helper()
	if o.Cred == nil {
		o.Cred = cred(dataplane.RoleClient, 5)
	}
	if o.Log == nil {
		o.Log = quiet()
	}
	c, err := Dial(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// echoName answers a lookup with its name's length.
func echoName(_ context.Context, r request) (any, error) {
	var q LookupReq
	if err := Unmarshal(r.p, &q); err != nil {
		return nil, err
	}
	return &Attr{File: q.Parent, Target: q.Name}, nil
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// await fails the test if what isn't true soon.
func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still not: " + what)
		}
	}
}

func TestCallsConcurrently(t *testing.T) {
	s := serve(t, "127.0.0.1:0", echoName)
	c := client(t, Options{Addrs: FixedAddrs(s.addr)})
	var wg sync.WaitGroup
	for g := range 300 { // more than may be on their way at once
		wg.Go(func() {
			for i := range 10 {
				name := strings.Repeat(fmt.Sprint(g, "/", i, " "), 1+i*20)
				var a Attr
				err := c.Call(within(t, 10*time.Second), OpLookup,
					LookupReq{dataplane.FileID(g), name}, &a)
				if err != nil || a.File != dataplane.FileID(g) || a.Target != name {
					t.Errorf("%d/%d: %v %+v", g, i, err, a)
				}
			}
		})
	}
	wg.Wait()
	if c.Leader() != s.addr {
		t.Errorf("leader %q", c.Leader())
	}
	var peers []*Peer
	s.peers.Range(func(k, _ any) bool { peers = append(peers, k.(*Peer)); return true })
	if len(peers) != 1 || peers[0].ID != 5 || peers[0].Role != dataplane.RoleClient {
		t.Errorf("peers %v", peers)
	}
	c.Close()
	await(t, "peer gone", func() bool { return s.gone.Load() == 1 })
}

type leaderError struct{ addr string }

func (e leaderError) Error() string      { return "not the leader" }
func (e leaderError) LeaderAddr() string { return e.addr }

func TestCallErrors(t *testing.T) {
	s := serve(t, "127.0.0.1:0", func(_ context.Context, r request) (any, error) {
		switch r.op {
		case OpCreate:
			return nil, dataplane.E("create a", dataplane.Exists, nil)
		case OpRename:
			return nil, fmt.Errorf("around: %w", dataplane.E("x", dataplane.NotEmpty, io.EOF))
		case OpUnlink:
			return nil, errors.New("foreign")
		case OpReadDir:
			return &ReadDirReply{Entries: make([]DirEntry, 20000)}, nil
		case OpGetMap:
			return nil, nil
		}
		return nil, dataplane.E("", dataplane.OK, nil)
	})
	c := client(t, Options{Addrs: FixedAddrs(s.addr)})
	for _, k := range []struct {
		op   dataplane.Opcode
		kind dataplane.Kind
		text string
	}{
		{OpCreate, dataplane.Exists, "create at " + s.addr + ": already exists: create a"},
		{OpRename, dataplane.NotEmpty, "around: x: directory not empty: EOF"},
		{OpUnlink, dataplane.Internal, "foreign"},
		{OpReadDir, dataplane.TooLarge, "bytes"},
		{OpGrow, dataplane.Internal, ""},
		{dataplane.OpRead, dataplane.NotSupported, "not a chunk server"},
	} {
		err := c.Call(within(t, 10*time.Second), k.op, Empty{}, nil)
		var e *dataplane.Error
		if !errors.As(err, &e) || e.Kind != k.kind || !strings.Contains(err.Error(), k.text) {
			t.Errorf("%s: %v", OpName(k.op), err)
		}
	}
	m := MapReply{Chunks: make([]ChunkMap, 1)}
	if err := c.Call(within(t, 10*time.Second), OpGetMap, nil, &m); err != nil || m.Chunks != nil {
		t.Errorf("empty reply: %v %+v", err, m)
	}
	err := c.Call(within(t, 10*time.Second), OpAdmin, AdminReq{Args: make([]byte, 1<<20)}, nil)
	if dataplane.KindOf(err) != dataplane.TooLarge {
		t.Errorf("large request: %v", err)
	}
}

// A server that is started again on its port gets the calls that were pending, with the same ids.
func TestCallServerRestarts(t *testing.T) {
	var mu sync.Mutex
	first := map[uint64]bool{}
	s := serve(t, "127.0.0.1:0", func(ctx context.Context, r request) (any, error) {
		mu.Lock()
		first[r.id] = true
		mu.Unlock()
		<-ctx.Done() // no answer before the crash
		return nil, ctx.Err()
	})
	connects := make(chan bool, 10)
	c := client(t, Options{Addrs: FixedAddrs(s.addr), OnConnect: func() { connects <- true }})
	const calls = 50
	errs := make(chan error, calls)
	for range calls {
		go func() {
			errs <- c.Call(within(t, 20*time.Second), OpLookup, LookupReq{Name: "n"}, nil)
		}()
	}
	await(t, "all calls at the server", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(first) == calls
	})
	s.stop()
	if s.gone.Load() != 1 {
		t.Fatal("Gone was not called")
	}
	var again atomic.Int32
	serve(t, s.addr, func(_ context.Context, r request) (any, error) {
		mu.Lock()
		defer mu.Unlock()
		if !first[r.id] {
			t.Errorf("new id %d", r.id)
		}
		again.Add(1)
		return Attr{}, nil
	})
	for range calls {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if again.Load() != calls || len(connects) != 2 {
		t.Errorf("%d calls repeated, %d connections", again.Load(), len(connects))
	}
}

// Two servers of which one leads; the leadership moves.
func TestCallFollowsLeader(t *testing.T) {
	var leads atomic.Int32
	var addrs [2]string
	var hint atomic.Bool
	var answered [2]atomic.Int32
	var servers [2]*server
	handler := func(me int32) func(context.Context, request) (any, error) {
		return func(_ context.Context, r request) (any, error) {
			if l := leads.Load(); l != me {
				if hint.Load() {
					return nil, leaderError{addrs[l]}
				}
				return nil, dataplane.E("", dataplane.NotLeader, nil)
			}
			answered[me].Add(1)
			return Attr{}, nil
		}
	}
	for i := range servers {
		servers[i] = serve(t, "127.0.0.1:0", handler(int32(i)))
		addrs[i] = servers[i].addr
	}
	for _, hints := range []bool{true, false} {
		hint.Store(hints)
		leads.Store(1)
		list := addrs[:1] // with hints one address is enough
		if !hints {
			list = addrs[:]
		}
		c := client(t, Options{Addrs: FixedAddrs(list...)})
		for round := range 6 {
			l := int32(round+1) % 2
			leads.Store(l)
			before := answered[l].Load()
			for range 10 {
				err := c.Call(within(t, 10*time.Second), OpLookup, LookupReq{}, nil)
				if err != nil {
					t.Fatal(err)
				}
			}
			if got := answered[l].Load() - before; got != 10 || c.Leader() != addrs[l] {
				t.Errorf("round %d: %d answers by the leader, leader %s", round, got, c.Leader())
			}
		}
		c.Close()
	}
}

// While nobody leads calls wait; with a bad list, too, and the error says what was tried.
func TestCallNobodyLeads(t *testing.T) {
	s := serve(t, "127.0.0.1:0", func(context.Context, request) (any, error) {
		return nil, leaderError{}
	})
	c := client(t, Options{Addrs: FixedAddrs(s.addr)})
	err := c.Call(within(t, 200*time.Millisecond), OpLookup, LookupReq{}, nil)
	if k := dataplane.KindOf(err); k != dataplane.Unreachable && k != dataplane.TimedOut {
		t.Error(err)
	}
	err = c.CallOnce(within(t, 10*time.Second), OpLookup, LookupReq{}, nil)
	if dataplane.KindOf(err) != dataplane.NotLeader {
		t.Error(err)
	}
	s.stop()
	c = client(t, Options{Addrs: FixedAddrs(s.addr)})
	err = c.Call(within(t, 200*time.Millisecond), OpLookup, LookupReq{}, nil)
	if dataplane.KindOf(err) != dataplane.Unreachable || !strings.Contains(err.Error(), s.addr) ||
		!errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = c.Call(ctx, OpLookup, LookupReq{}, nil)
	if dataplane.KindOf(err) != dataplane.Closed || !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestCallOnceIsSentOnce(t *testing.T) {
	var asked atomic.Int32
	s := serve(t, "127.0.0.1:0", func(_ context.Context, r request) (any, error) {
		asked.Add(1)
		r.peer.Close()
		return nil, nil
	})
	c := client(t, Options{Addrs: FixedAddrs(s.addr)})
	err := c.CallOnce(within(t, 10*time.Second), OpHeartbeat, HeartbeatReq{}, nil)
	if dataplane.KindOf(err) != dataplane.Closed {
		t.Error(err)
	}
	await(t, "reconnected", func() bool { // by the next call
		err := c.CallOnce(within(t, 10*time.Second), OpHeartbeat, HeartbeatReq{}, nil)
		return dataplane.KindOf(err) == dataplane.Closed
	})
	if asked.Load() != 2 {
		t.Errorf("asked %d times", asked.Load())
	}
}

// A heartbeat gets through while all other calls that a client may have wait at the server.
func TestCallOncePassesWaitingCalls(t *testing.T) {
	var waiting atomic.Int32
	s := serve(t, "127.0.0.1:0", func(ctx context.Context, r request) (any, error) {
		if r.op == OpAllocate {
			waiting.Add(1)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return nil, nil
	})
	c := client(t, Options{Addrs: FixedAddrs(s.addr)})
	for range 2 * MaxConcurrent {
		go c.Call(t.Context(), OpAllocate, MapReq{}, nil)
	}
	await(t, "calls wait", func() bool { return waiting.Load() == maxInflight })
	if err := c.CallOnce(within(t, 5*time.Second), OpHeartbeat, HeartbeatReq{}, nil); err != nil {
		t.Error(err)
	}
}

func TestPushes(t *testing.T) {
	const pushes = 200
	s := serve(t, "127.0.0.1:0", func(_ context.Context, r request) (any, error) {
		for i := range pushes {
			m := ForgetPush{Chunks: []dataplane.ChunkID{dataplane.ChunkID(i)}}
			if err := r.peer.Push(OpForget, m); err != nil {
				return nil, err
			}
		}
		return RegisterCSReply{CS: 3}, nil
	})
	got := make(chan dataplane.ChunkID, pushes)
	var c *Client
	ready := make(chan struct{})
	registered := make(chan error, 1)
	c = client(t, Options{Addrs: FixedAddrs(s.addr),
		OnConnect: func() {
			<-ready
			var r RegisterCSReply
			registered <- c.Call(within(t, 10*time.Second), OpRegisterCS, RegisterCSReq{}, &r)
		},
		OnPush: func(op dataplane.Opcode, p []byte) {
			var m ForgetPush
			if err := Unmarshal(p, &m); err != nil || op != OpForget {
				t.Error(op, err)
				return
			}
			got <- m.Chunks[0]
		}})
	close(ready)
	if err := <-registered; err != nil {
		t.Fatal(err)
	}
	for i := range pushes {
		if id := <-got; id != dataplane.ChunkID(i) {
			t.Fatalf("push %v came as number %d", id, i)
		}
	}
}

// serveSilence is a server that hangs: it takes connections, and never says a word on them. It
// returns its address, and a channel on which each connection is told.
func serveSilence(t *testing.T) (addr string, hung <-chan struct{}) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan struct{}, 100)
	ended := make(chan struct{})
	var conns []net.Conn // kept: the garbage collector closes connections that nobody has
	t.Cleanup(func() {
		l.Close()
		<-ended
		for _, c := range conns {
			c.Close()
		}
	})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, conn)
			_, err = session.Server(conn, &session.ServerOptions{Cred: cred(dataplane.RoleMDS, 1),
				Log: quiet()})
			if err == nil {
				told <- struct{}{}
			}
		}
	}()
	return l.Addr().String(), told
}

// A server that hangs (stopped, cut off) is left for another one.
func TestCallLeavesSilentServer(t *testing.T) {
	silent, hung := serveSilence(t)
	s := serve(t, "127.0.0.1:0", echoName)
	c := client(t, Options{Addrs: FixedAddrs(silent, s.addr),
		silence: 500 * time.Millisecond})
	if err := c.Call(within(t, 10*time.Second), OpLookup, LookupReq{}, nil); err != nil {
		t.Fatal(err)
	}
	if len(hung) == 0 {
		t.Error("the silent server was not tried")
	}
	// A living one is not left, however long a call takes.
	s2 := serve(t, "127.0.0.1:0", func(context.Context, request) (any, error) {
		time.Sleep(1500 * time.Millisecond)
		return nil, nil
	})
	// Long enough that a busy machine answers pings within it.
	c = client(t, Options{Addrs: FixedAddrs(s2.addr), silence: 500 * time.Millisecond})
	if err := c.CallOnce(within(t, 10*time.Second), OpLookup, LookupReq{}, nil); err != nil {
		t.Error(err)
	}
}

// A call that isn't answered in time casts doubt on its connection: one over which nothing comes is
// dropped at once, and one whose server is only slow is kept.
func TestUnansweredCallCastsDoubt(t *testing.T) {
	silent, hung := serveSilence(t)
	// Silence alone would take far longer than this test.
	c := client(t, Options{Addrs: FixedAddrs(silent), silence: time.Hour})
	<-hung
	err := c.CallOnce(within(t, 200*time.Millisecond), OpLookup, LookupReq{}, nil)
	if dataplane.KindOf(err) != dataplane.TimedOut {
		t.Fatal(err)
	}
	select {
	case <-hung: // it has connected again
	case <-time.After(10 * time.Second):
		t.Error("a connection over which nothing comes is kept")
	}
	connected := make(chan struct{}, 100)
	release := make(chan struct{})
	s := serve(t, "127.0.0.1:0", func(context.Context, request) (any, error) {
		<-release
		return nil, nil
	})
	c = client(t, Options{Addrs: FixedAddrs(s.addr), silence: time.Hour,
		OnConnect: func() { connected <- struct{}{} }})
	<-connected
	err = c.CallOnce(within(t, 200*time.Millisecond), OpLookup, LookupReq{}, nil)
	if dataplane.KindOf(err) != dataplane.TimedOut {
		t.Fatal(err)
	}
	close(release)
	if err := c.CallOnce(within(t, 10*time.Second), OpLookup, LookupReq{}, nil); err != nil {
		t.Fatal(err)
	}
	if len(connected) > 0 {
		t.Error("the connection to a slow server was dropped")
	}
}

func TestCallRefusedByStranger(t *testing.T) {
	for name, change := range map[string]func(*session.Credentials){
		"wrong key":     func(c *session.Credentials) { c.Key[0]++ },
		"wrong cluster": func(c *session.Credentials) { c.Cluster[0]++ },
	} {
		s := serve(t, "127.0.0.1:0", echoName)
		cr := cred(dataplane.RoleClient, 5)
		change(cr)
		c := client(t, Options{Addrs: FixedAddrs(s.addr), Cred: cr})
		err := c.Call(within(t, 200*time.Millisecond), OpLookup, LookupReq{}, nil)
		if err == nil || !strings.Contains(err.Error(), "handshake") &&
			!strings.Contains(err.Error(), "cluster") && !strings.Contains(err.Error(), "key") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCloseEndsCalls(t *testing.T) {
	before := runtime.NumGoroutine()
	s := serve(t, "127.0.0.1:0", func(ctx context.Context, _ request) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	c := client(t, Options{Addrs: FixedAddrs(s.addr)})
	errs := make(chan error)
	go func() { errs <- c.Call(context.Background(), OpLookup, LookupReq{}, nil) }()
	await(t, "call at the server", func() bool {
		n := 0
		s.peers.Range(func(any, any) bool { n++; return true })
		return n == 1
	})
	c.Close()
	if err := <-errs; dataplane.KindOf(err) != dataplane.Closed {
		t.Error(err)
	}
	err := c.Call(context.Background(), OpLookup, LookupReq{}, nil)
	if dataplane.KindOf(err) != dataplane.Closed {
		t.Error(err)
	}
	s.stop()
	await(t, "all goroutines ended", func() bool { return runtime.NumGoroutine() <= before })
}

// raw connects without a Client.
func raw(t testing.TB, addr string) *session.NetConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := session.Client(t.Context(), conn, cred(dataplane.RoleClient, 8), session.ServiceRPC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

// One connection can't have more than MaxConcurrent requests running.
func TestServerBounded(t *testing.T) {
	var running, most atomic.Int32
	release := make(chan struct{})
	s := serve(t, "127.0.0.1:0", func(context.Context, request) (any, error) {
		n := running.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		<-release
		running.Add(-1)
		return nil, nil
	})
	nc := raw(t, s.addr)
	const n = MaxConcurrent + 50
	for i := range n {
		if err := nc.WriteFrame(&dataplane.Header{Op: OpLookup, ReqID: uint64(i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "handlers at the bound", func() bool { return running.Load() == MaxConcurrent })
	close(release)
	seen := map[uint64]bool{}
	for range n {
		var h dataplane.Header
		if _, err := nc.ReadFrame(&h, nil); err != nil || h.Flags != dataplane.FlagReply {
			t.Fatal(err, &h)
		}
		seen[h.ReqID] = true
	}
	if len(seen) != n || most.Load() != MaxConcurrent {
		t.Errorf("%d replies, at most %d at once", len(seen), most.Load())
	}
}

// A peer that doesn't read fills a bounded queue only.
func TestPushToSlowPeer(t *testing.T) {
	full := make(chan error, 1)
	s := serve(t, "127.0.0.1:0", func(_ context.Context, r request) (any, error) {
		var err error
		for i := 0; err == nil && i < 1000; i++ {
			err = r.peer.Push(OpForget, ForgetPush{Chunks: make([]dataplane.ChunkID, 10000)})
		}
		full <- err
		r.peer.Close()
		return nil, nil
	})
	nc := raw(t, s.addr)
	if err := nc.WriteFrame(&dataplane.Header{Op: OpLookup}, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-full; dataplane.KindOf(err) != dataplane.Overloaded {
		t.Fatal(err)
	}
}

// What breaks the protocol is closed; others are served on.
func TestServerGarbage(t *testing.T) {
	s := serve(t, "127.0.0.1:0", echoName)
	for name, f := range map[string][]byte{
		"garbage": make([]byte, 64),
		"reply":   frame(dataplane.Header{Op: OpLookup, Flags: dataplane.FlagReply}, nil),
		"push":    frame(dataplane.Header{Op: OpLookup, Flags: dataplane.FlagPush}, nil),
		"bad payload": func() []byte {
			f := frame(dataplane.Header{Op: OpLookup}, []byte("payload"))
			f[len(f)-1]++
			return f
		}(),
	} {
		nc := raw(t, s.addr)
		nc.Write(f)
		nc.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := nc.ReadFrame(new(dataplane.Header), nil); err == nil || isTimeout(err) {
			t.Errorf("%s: not closed: %v", name, err)
		}
	}
	// A payload that is no message is the handler's business.
	nc := raw(t, s.addr)
	nc.WriteFrame(&dataplane.Header{Op: OpLookup, ReqID: 3}, []byte("payload"))
	var h dataplane.Header
	if _, err := nc.ReadFrame(&h, nil); err != nil || h.Status != dataplane.Malformed || h.ReqID != 3 {
		t.Error(err, &h)
	}
}

func frame(h dataplane.Header, p []byte) []byte { return session.AppendFrame(nil, &h, p) }

func BenchmarkCall(b *testing.B) {
	s := serve(b, "127.0.0.1:0", echoName)
	c := client(b, Options{Addrs: FixedAddrs(s.addr)})
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			var a Attr
			if err := c.Call(context.Background(), OpLookup, LookupReq{1, "name"}, &a); err != nil {
				b.Fatal(err)
			}
		}
	})
}
