package session

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pstorage/dataplane"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// listen serves o on a loopback port until the test ends.
func listen(t testing.TB, o *ServerOptions, handle func(*NetConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if o.Log == nil {
		o.Log = quiet()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, o, handle) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func echo(nc *NetConn) {
	defer nc.Close()
	for {
		var h dataplane.Header
		p, err := nc.ReadFrame(&h, nil)
		if err != nil {
			return
		}
		r := h.Reply(dataplane.OK)
		if nc.WriteFrame(&r, p) != nil {
			return
		}
	}
}

func TestNetFrames(t *testing.T) {
	addr := listen(t, &ServerOptions{Cred: testCred(dataplane.RoleMDS, 1)}, echo)
	nc, err := Client(t.Context(), dial(t, addr), testCred(dataplane.RoleClient, 9), ServiceRPC)
	if err != nil {
		t.Fatal(err)
	}
	if p := nc.Peer(); p.Role != dataplane.RoleMDS || p.ID != 1 || p.Name != "host-mds" {
		t.Errorf("peer %+v", p)
	}
	const writers, each = 4, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 0))
			for i := range each {
				p := bytes.Repeat([]byte{byte(w)}, rng.IntN(20000))
				h := dataplane.Header{Op: dataplane.OpControlBase, ReqID: uint64(w)<<32 | uint64(i)}
				if err := nc.WriteFrame(&h, p); err != nil {
					t.Error(err)
				}
			}
		})
	}
	buf := make([]byte, 0, 32<<10)
	for range writers * each {
		var h dataplane.Header
		p, err := nc.ReadFrame(&h, buf)
		if err != nil {
			t.Fatal(err)
		}
		if len(p) > 0 && p[0] != byte(h.ReqID>>32) {
			t.Fatalf("payload of another frame: %v", &h)
		}
	}
	wg.Wait()
}

func TestNetPayloadCRC(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	got := make(chan error, 1)
	go func() {
		nc, err := Server(b, &ServerOptions{Cred: testCred(dataplane.RoleMDS, 1), Log: quiet()})
		if err == nil {
			_, err = nc.ReadFrame(new(dataplane.Header), nil)
		}
		got <- err
	}()
	if _, err := Client(t.Context(), a, testCred(dataplane.RoleClient, 9), ServiceRPC); err != nil {
		t.Fatal(err)
	}
	f := AppendFrame(nil, &dataplane.Header{Op: dataplane.OpControlBase}, []byte("payload"))
	f[len(f)-1] ^= 1
	go a.Write(f)
	var fe *dataplane.FrameError
	if err := <-got; !errors.As(err, &fe) {
		t.Fatal(err)
	}
}

func TestNetRefusals(t *testing.T) {
	addr := listen(t, &ServerOptions{Cred: testCred(dataplane.RoleMDS, 1)}, echo)
	for name, c := range map[string]struct {
		change func(*Credentials)
		kind   dataplane.Kind
	}{
		"wrong key":     {func(c *Credentials) { c.Key[3]++ }, dataplane.Denied},
		"wrong cluster": {func(c *Credentials) { c.Cluster[3]++ }, dataplane.WrongCluster},
	} {
		cred := testCred(dataplane.RoleClient, 1)
		c.change(cred)
		conn := dial(t, addr)
		_, err := Client(t.Context(), conn, cred, ServiceRPC)
		if dataplane.KindOf(err) != c.kind || !strings.Contains(err.Error(), addr) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: the connection was left open: %v", name, err)
		}
	}
}

// Whoever is no member of the cluster is closed, and learns no more than a refusal.
func TestNetStrangers(t *testing.T) {
	const limit = 200 * time.Millisecond
	addr := listen(t, &ServerOptions{Cred: testCred(dataplane.RoleMDS, 1), Deadline: limit}, echo)
	hello := func() []byte {
		_, out, _, _ := NewDialer(testCred(dataplane.RoleClient, 1), ServiceRPC, nonceOf(1)).Step(nil)
		return out
	}()
	for name, in := range map[string][]byte{
		"garbage":    bytes.Repeat([]byte("garbage!"), 1000),
		"half":       hello[:20],
		"silence":    nil,
		"no proof":   hello,
		"long":       []byte("PSHK\x01\x01\xff\xff"),
		"frame":      AppendFrame(nil, &dataplane.Header{Op: dataplane.OpControlBase}, []byte("x")),
		"password":   append([]byte("PSPW\x01\x01\x42\x00"), make([]byte, 0x42)...),
		"half a key": []byte("PSPW\x01"),
	} {
		conn := dial(t, addr)
		start := time.Now()
		conn.SetDeadline(start.Add(5 * time.Second))
		conn.Write(in)
		out, err := io.ReadAll(conn)
		if isDeadline(err) {
			t.Errorf("%s: not closed within %v", name, time.Since(start))
		}
		if len(out) > chalSize {
			t.Errorf("%s: was told %d bytes", name, len(out))
		}
	}
	// One byte now and then doesn't stretch the deadline.
	conn := dial(t, addr)
	start := time.Now()
	conn.SetDeadline(start.Add(5 * time.Second))
	go func() {
		for _, b := range hello {
			conn.Write([]byte{b})
			time.Sleep(limit / 20)
		}
	}()
	if _, err := io.ReadAll(conn); isDeadline(err) {
		t.Errorf("slow: not closed within %v", time.Since(start))
	}
}

func isDeadline(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// When there are too many strangers the oldest goes; members are served meanwhile.
func TestNetManyStrangers(t *testing.T) {
	addr := listen(t, &ServerOptions{Cred: testCred(dataplane.RoleMDS, 1)}, echo)
	var conns []net.Conn
	for range MaxUnproven {
		conns = append(conns, dial(t, addr))
	}
	nc, err := Client(t.Context(), dial(t, addr), testCred(dataplane.RoleClient, 9), ServiceRPC)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	conns[0].SetDeadline(time.Now().Add(HandshakeTime / 2))
	if _, err := io.ReadAll(conns[0]); isDeadline(err) {
		t.Fatal("the oldest was not closed")
	}
}

// A server that says nothing costs a dialer its patience only.
func TestNetClientCanceled(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	go io.Copy(io.Discard, b)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Client(ctx, a, testCred(dataplane.RoleClient, 9), ServiceRPC)
	if dataplane.KindOf(err) != dataplane.TimedOut || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

const password = "correct horse battery staple"

func passwordAuth(t testing.TB) *PasswordAuth {
	v, err := NewVerifier(password)
	if err != nil {
		t.Fatal(err)
	}
	// It survives being stored.
	doc, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	a := &PasswordAuth{}
	if err := json.Unmarshal(doc, &a.Verifier); err != nil {
		t.Fatal(err)
	}
	cred := testCred(dataplane.RoleMDS, 1)
	keys := LegacyKeys(cred.Key)
	a.Cluster, a.ClusterName, a.Ring = cred.Cluster, cred.ClusterName, NewRing(&keys, nil)
	a.Grant = func(context.Context, *NodeRequest) (*KeySet, error) { return &keys, nil }
	return a
}

func TestPassword(t *testing.T) {
	auth := passwordAuth(t)
	addr := listen(t, &ServerOptions{Cred: testCred(dataplane.RoleMDS, 1), Auth: auth}, echo)
	k, err := AuthNode(t.Context(), dial(t, addr), "test", password, "host", AllRoles)
	if err != nil {
		t.Fatal(err)
	}
	if k.Cluster != auth.Cluster || k.ClusterName != "test" || len(k.Keys.Generations) != 1 ||
		k.Keys.Generations[0].Key != testCred(dataplane.RoleMDS, 1).Key {
		t.Fatalf("got %+v", k)
	}
	for name, c := range map[string]struct {
		cluster, password string
		kind              dataplane.Kind
		text              string
	}{
		"wrong password": {"test", "correct horse", dataplane.Denied, "wrong password"},
		"wrong cluster":  {"other", password, dataplane.WrongCluster, "not of the cluster"},
		"no password":    {"test", "", dataplane.Invalid, "password"},
		"no cluster":     {"", password, dataplane.Invalid, "name"},
	} {
		_, err := AuthNode(t.Context(), dial(t, addr), c.cluster, c.password, "host", AllRoles)
		if dataplane.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewVerifier(""); dataplane.KindOf(err) != dataplane.Invalid {
		t.Errorf("empty password: %v", err)
	}
}

func TestPasswordNotServed(t *testing.T) {
	addr := listen(t, &ServerOptions{Cred: testCred(dataplane.RoleMDS, 1)}, echo)
	_, err := AuthNode(t.Context(), dial(t, addr), "test", password, "host", AllRoles)
	if dataplane.KindOf(err) != dataplane.NotSupported {
		t.Fatal(err)
	}
}

func TestPasswordRateLimit(t *testing.T) {
	auth := passwordAuth(t)
	var mu sync.Mutex
	var now int64
	auth.Limit = NewPasswordFailures(func() int64 {
		mu.Lock()
		defer mu.Unlock()
		return now
	})
	auth.Limit.burst = 2
	var leaderless atomic.Bool
	grant := auth.Grant
	auth.Grant = func(ctx context.Context, req *NodeRequest) (*KeySet, error) {
		if leaderless.Load() {
			return nil, dataplane.E("make a node", dataplane.NotReady, nil)
		}
		return grant(ctx, req)
	}
	addr := listen(t, &ServerOptions{Cred: testCred(dataplane.RoleMDS, 1), Auth: auth}, echo)
	try := func(pw string) dataplane.Kind {
		_, err := AuthNode(t.Context(), dial(t, addr), "test", pw, "host", AllRoles)
		return dataplane.KindOf(err)
	}
	want := func(pw string, k dataplane.Kind) {
		t.Helper()
		if got := try(pw); got != k {
			t.Fatalf("got %v, want %v", got, k)
		}
	}
	want(password, dataplane.OK) // what succeeds costs nothing
	want(password, dataplane.OK)
	want(password, dataplane.OK)
	leaderless.Store(true) // nor does what fails for another reason than the password
	want(password, dataplane.NotReady)
	want(password, dataplane.NotReady)
	want(password, dataplane.NotReady)
	leaderless.Store(false)
	want("x", dataplane.Denied)
	want("x", dataplane.Denied)
	want(password, dataplane.Overloaded)
	mu.Lock()
	now += passEvery
	mu.Unlock()
	want(password, dataplane.OK)
	want("x", dataplane.Denied)
	want("x", dataplane.Overloaded)
}

// A server without the verifier can't make a node take its key.
func TestPasswordFalseServer(t *testing.T) {
	auth := passwordAuth(t)
	false1 := *auth
	false1.Verifier.ServerKey = bytes.Repeat([]byte{1}, 32) // knows the proof, not the server's key
	addr := listen(t, &ServerOptions{Cred: testCred(dataplane.RoleMDS, 1), Auth: &false1}, echo)
	_, err := AuthNode(t.Context(), dial(t, addr), "test", password, "host", AllRoles)
	if dataplane.KindOf(err) != dataplane.Denied || !strings.Contains(err.Error(), "not trusted") {
		t.Fatal(err)
	}
}

// Somebody in the middle who puts a public key of his own in fails, in either direction.
func TestPasswordMiddle(t *testing.T) {
	auth := passwordAuth(t)
	addr := listen(t, &ServerOptions{Cred: testCred(dataplane.RoleMDS, 1), Auth: auth}, echo)
	for message := range 4 {
		node, middle := net.Pipe()
		server := dial(t, addr)
		go func() {
			defer middle.Close()
			for i := range 4 {
				from, to := middle, server
				if i%2 == 1 {
					from, to = server, middle
				}
				m, err := readMessage(from, passMagic, maxKeys)
				if err != nil {
					return
				}
				if i == message {
					m[8] ^= 1
				}
				if _, err := to.Write(m); err != nil {
					return
				}
			}
		}()
		_, err := AuthNode(t.Context(), node, "test", password, "host", AllRoles)
		server.Close()
		if k := dataplane.KindOf(err); k != dataplane.Denied {
			t.Errorf("message %d: %v", message, err)
		}
	}
}

// A server that asks for few iterations, to try passwords faster, gets no proof.
func TestPasswordFewIterations(t *testing.T) {
	node, server := net.Pipe()
	sawProof := make(chan bool, 1)
	go func() {
		readMessage(server, passMagic, maxKeys)
		m := message(passMagic, msgSalt, passVersion, saltLen)
		for i := range 32 {
			m[8+i] = byte(i + 1)
		}
		m[104] = 1
		server.Write(m)
		_, err := readMessage(server, passMagic, maxKeys)
		sawProof <- err == nil
	}()
	_, err := AuthNode(t.Context(), node, "test", password, "host", AllRoles)
	if dataplane.KindOf(err) != dataplane.Denied || !strings.Contains(err.Error(), "iterations") {
		t.Error(err)
	}
	if <-sawProof {
		t.Error("the proof was given away")
	}
}

func FuzzPassword(f *testing.F) {
	auth := passwordAuth(f)
	ask := message(passMagic, msgAsk, passVersion, askFixed+4)
	ask[8], ask[72] = 9, 4
	copy(ask[askFixed:], "test")
	ask[5] = 1
	f.Add(append(ask, message(passMagic, msgPass, 1, passLen)...))
	ask = message(passMagic, msgAsk, passVersion, askFixed+4+askNode+1)
	ask[8], ask[72] = 9, 4
	copy(ask[askFixed:], "test")
	ask[askFixed+4+33] = 1
	f.Add(append(ask, message(passMagic, msgPass, passVersion, passLen)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		conn := &scriptConn{in: bytes.NewReader(in)}
		_, err := Server(conn, &ServerOptions{Cred: testCred(dataplane.RoleMDS, 1), Auth: auth,
			Log: quiet()})
		if err == nil || err == ErrAuthDone || !conn.closed || conn.out > 2*MaxMessage {
			t.Fatalf("%v, closed %v, told %d bytes", err, conn.closed, conn.out)
		}
	})
}

// scriptConn is a net.Conn with a fixed input.
type scriptConn struct {
	net.Conn
	in     *bytes.Reader
	out    int
	closed bool
}

func (c *scriptConn) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *scriptConn) Write(p []byte) (int, error)      { c.out += len(p); return len(p), nil }
func (c *scriptConn) Close() error                     { c.closed = true; return nil }
func (c *scriptConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }
