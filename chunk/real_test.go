package chunk

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// The server on the real ring, against a metadata server reduced to a table.

type tableMDS struct {
	mu     sync.Mutex
	addr   string
	nextCS dataplane.CSID
	addrs  map[dataplane.CSID]string
	boots  map[dataplane.CSID]uint64
	starts map[dataplane.CSID]uint64
	chunks map[dataplane.ChunkID]*control.ChunkConfig
	events []control.Event
	failed string
}

var realCluster = dataplane.ClusterID{9, 9}

func realCred(role dataplane.Role, id uint64) *session.Credentials {
	return &session.Credentials{Cluster: realCluster, ClusterName: "t", Key: simKey, Role: role,
		ID: id}
}

func startTableMDS(t testing.TB) *tableMDS {
	m := &tableMDS{addrs: map[dataplane.CSID]string{}, boots: map[dataplane.CSID]uint64{},
		starts: map[dataplane.CSID]uint64{},
		chunks: map[dataplane.ChunkID]*control.ChunkConfig{}}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				nc, err := session.Server(c, &session.ServerOptions{Cred: realCred(dataplane.RoleMDS, 1)})
				if err == nil {
					control.ServeConn(ctx, nc, m)
				}
			})
		}
	})
	t.Cleanup(func() { cancel(); ln.Close(); wg.Wait() })
	return m
}

func (m *tableMDS) Gone(*control.Peer) {}

func (m *tableMDS) Handle(_ context.Context, _ *control.Peer, _ uint64, op dataplane.Opcode,
	payload []byte) (any, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch op {
	case control.OpRegisterCS:
		var q control.RegisterCSReq
		if err := control.Unmarshal(payload, &q); err != nil {
			return nil, err
		}
		if q.CS == 0 {
			m.nextCS++
			q.CS = m.nextCS
		}
		if start := m.starts[q.CS]; q.Boot <= m.boots[q.CS] ||
			start != 0 && !slices.Contains(q.Starts, start) {
			return nil, dataplane.E("register", dataplane.Conflict, errors.New("boot counter went back"))
		}
		m.boots[q.CS], m.addrs[q.CS] = q.Boot, q.Addr
		m.starts[q.CS] = q.Starts[len(q.Starts)-1]
		return &control.RegisterCSReply{CS: q.CS, LeaseNs: int64(dataplane.LeaseTime)}, nil
	case control.OpHeartbeat:
		var q control.HeartbeatReq
		if err := control.Unmarshal(payload, &q); err != nil {
			return nil, err
		}
		m.failed = q.Failed
		return &control.HeartbeatReply{LeaseNs: int64(dataplane.LeaseTime)}, nil
	case control.OpGetChunk:
		var q control.GetChunkReq
		if err := control.Unmarshal(payload, &q); err != nil {
			return nil, err
		}
		return m.config(q.Chunk)
	case control.OpReconfigure:
		var q control.ReconfigureReq
		if err := control.Unmarshal(payload, &q); err != nil {
			return nil, err
		}
		c := m.chunks[q.Chunk]
		if c == nil || c.Epoch != q.Epoch || !q.SetCreated {
			return nil, dataplane.E("reconfigure", dataplane.Conflict, nil)
		}
		c.Created = true
		return m.config(q.Chunk)
	case control.OpAddEvent:
		var e control.Event
		if err := control.Unmarshal(payload, &e); err != nil {
			return nil, err
		}
		m.events = append(m.events, e)
		return nil, nil
	case control.OpUnreachable:
		return nil, nil
	}
	return nil, dataplane.E("handle", dataplane.NotSupported, nil)
}

func (m *tableMDS) config(id dataplane.ChunkID) (any, error) {
	c := m.chunks[id]
	if c == nil {
		return nil, dataplane.E("get chunk", dataplane.NotFound, nil)
	}
	cp := *c
	cp.Members = append([]control.CSAddr(nil), c.Members...)
	for i := range cp.Members {
		cp.Members[i].Addr = m.addrs[cp.Members[i].CS]
	}
	return &cp, nil
}

func (m *tableMDS) add(id dataplane.ChunkID, members ...dataplane.CSID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &control.ChunkConfig{Chunk: id, Epoch: 1, Minimum: 1}
	for _, cs := range members {
		c.Members = append(c.Members, control.CSAddr{CS: cs})
	}
	m.chunks[id] = c
}

func (m *tableMDS) addrOf(cs dataplane.CSID) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.addrs[cs]
}

func formatReal(t testing.TB, dir string) {
	t.Helper()
	if err := Format(dir, FormatOptions{Cluster: realCluster, ClusterName: "t", Addr: "127.0.0.1",
		LogSize: 32 << 20, Capacity: 4 * dataplane.ChunkSize}); err != nil {
		t.Fatal(err)
	}
}

type running struct {
	stop context.CancelFunc
	done chan error
	id   dataplane.CSID
	addr string
}

func runReal(t testing.TB, dir string, m *tableMDS) *running {
	t.Helper()
	return runRealWith(t, Options{Dir: dir}, m)
}

func runRealWith(t testing.TB, o Options, m *tableMDS) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{stop: cancel, done: make(chan error, 1)}
	ready, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		o.Cred = realCred(dataplane.RoleCS, 0)
		o.MDS = func() []string { return []string{m.addr} }
		o.OnReady = func(id dataplane.CSID, addr string) {
			r.id, r.addr = id, addr
			close(ready)
		}
		r.done <- Run(ctx, o)
	}()
	select {
	case <-ready:
	case err := <-r.done:
		t.Fatalf("Run: %v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("not ready after 20 s")
	}
	t.Cleanup(func() { // its files are removed after that
		cancel()
		<-ended
	})
	return r
}

func (r *running) end(t testing.TB) {
	t.Helper()
	r.stop()
	select {
	case err := <-r.done:
		if err != nil {
			t.Fatalf("stop: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("did not stop")
	}
}

// dialReal connects as a client.
func dialReal(t testing.TB, addr string, role dataplane.Role) *session.NetConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := session.Client(context.Background(), c, realCred(role, 77), session.ServiceRPC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	return nc
}

func ask(t testing.TB, nc *session.NetConn, h dataplane.Header, payload []byte) (dataplane.Kind,
	[]byte) {
	t.Helper()
	if err := nc.WriteFrame(&h, payload); err != nil {
		t.Fatal(err)
	}
	nc.SetReadDeadline(time.Now().Add(20 * time.Second))
	var a dataplane.Header
	got, err := nc.ReadFrame(&a, nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.ReqID != h.ReqID || a.Flags&dataplane.FlagReply == 0 {
		t.Fatalf("answer %v to %v", &a, &h)
	}
	return a.Status, got
}

func TestRealServer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cs")
	formatReal(t, dir)
	m := startTableMDS(t)
	r := runReal(t, dir, m)
	m.add(chunkA, r.id)
	nc := dialReal(t, r.addr, dataplane.RoleClient)
	type rec struct {
		off  uint32
		data []byte
	}
	var recs []rec
	for i, n := range []int{4096, 65536, 512, 12288, 1000, 32768} {
		d := make([]byte, n)
		rand.Read(d)
		off := uint32(i) * 1 << 20
		if n%4096 != 0 {
			off += 300
		}
		h := dataplane.Header{Op: dataplane.OpWrite, ReqID: uint64(i), Chunk: chunkA, Epoch: 1,
			Offset: off}
		if st, _ := ask(t, nc, h, d); st != dataplane.OK {
			t.Fatalf("write of %d bytes: %v", n, st)
		}
		recs = append(recs, rec{off, d})
	}
	check := func(nc *session.NetConn) {
		t.Helper()
		for _, rc := range recs {
			h := dataplane.Header{Op: dataplane.OpRead, ReqID: 5, Chunk: chunkA, Epoch: 1, Offset: rc.off,
				Length: uint32(len(rc.data))}
			st, got := ask(t, nc, h, nil)
			if st != dataplane.OK || !bytes.Equal(got, rc.data) {
				t.Fatalf("read of %d bytes at %d: %v, equal %v", len(rc.data), rc.off, st,
					bytes.Equal(got, rc.data))
			}
		}
	}
	check(nc)
	zero := dataplane.Header{Op: dataplane.OpZero, ReqID: 9, Chunk: chunkA, Epoch: 1, Offset: 1 << 20,
		Length: 8192}
	if st, _ := ask(t, nc, zero, nil); st != dataplane.OK {
		t.Fatalf("zero: %v", st)
	}
	clear(recs[1].data[:8192])
	check(nc)
	flush := dataplane.Header{Op: dataplane.OpFlush, Chunk: chunkA, Epoch: 1}
	if st, _ := ask(t, nc, flush, nil); st != dataplane.OK {
		t.Fatalf("flush: %v", st)
	}
	st, doc := ask(t, nc, dataplane.Header{Op: dataplane.OpStat}, nil)
	var d statDoc
	if st != dataplane.OK || json.Unmarshal(doc, &d) != nil || d.Writes != 7 || d.Active != 1 {
		t.Fatalf("stat: %v %s", st, doc)
	}
	if err := Run(context.Background(), Options{Dir: dir, Cred: realCred(dataplane.RoleCS, 0),
		MDS: func() []string { return nil }}); dataplane.KindOf(err) != dataplane.Exists {
		t.Fatalf("second process: %v", err)
	}
	r.end(t)
	r = runReal(t, dir, m)
	check(dialReal(t, r.addr, dataplane.RoleClient))
	r.end(t)
}

func TestRealRefusals(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cs")
	formatReal(t, dir)
	before, _ := os.ReadFile(filepath.Join(dir, identityFile))
	for _, c := range []struct {
		cluster dataplane.ClusterID
		kind    dataplane.Kind
	}{{realCluster, dataplane.Exists}, {dataplane.ClusterID{1}, dataplane.WrongCluster}} {
		err := Format(dir, FormatOptions{Cluster: c.cluster, ClusterName: "u"})
		if dataplane.KindOf(err) != c.kind {
			t.Fatalf("Format of a used directory: %v", err)
		}
	}
	after, _ := os.ReadFile(filepath.Join(dir, identityFile))
	if !bytes.Equal(before, after) {
		t.Fatal("a refused Format changed the identity")
	}
	run := func(cred *session.Credentials) error {
		return Run(context.Background(), Options{Dir: dir, Cred: cred,
			MDS: func() []string { return []string{"127.0.0.1:1"} }})
	}
	foreign := realCred(dataplane.RoleCS, 0)
	foreign.Cluster = dataplane.ClusterID{1}
	if err := run(foreign); dataplane.KindOf(err) != dataplane.WrongCluster {
		t.Fatalf("foreign key: %v", err)
	}
	other := filepath.Join(t.TempDir(), "other")
	formatReal(t, other)
	swap := func(name string) {
		a, b := filepath.Join(dir, name), filepath.Join(other, name)
		os.Rename(a, a+".x")
		os.Rename(b, a)
		os.Rename(a+".x", b)
	}
	for _, name := range []string{storeFile, cacheFile} {
		swap(name)
		if err := run(realCred(dataplane.RoleCS, 0)); dataplane.KindOf(err) != dataplane.Invalid {
			t.Fatalf("swapped %s: %v", name, err)
		} else {
			t.Log(err)
		}
		swap(name)
		os.Rename(filepath.Join(dir, name), filepath.Join(dir, "away"))
		err := run(realCred(dataplane.RoleCS, 0))
		if dataplane.KindOf(err) != dataplane.Invalid || !strings.Contains(err.Error(), "missing") {
			t.Fatalf("missing %s: %v", name, err)
		}
		os.Rename(filepath.Join(dir, "away"), filepath.Join(dir, name))
	}
}
