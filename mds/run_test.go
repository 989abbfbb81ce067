package mds

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// testCluster is a set of metadata servers in this process, on loopback.
type testCluster struct {
	t     *testing.T
	node  testNode
	addrs []string
	dirs  []string
	stops []func() error
	leads []*atomic.Bool
	nodes []*server // those that run, or ran last
	tune  func(*raft.Config)
	// servers is Options.Servers of what is started.
	servers func() []string
}

// freeAddrs returns n addresses of loopback at which nobody listens.
func freeAddrs(t *testing.T, n int) (addrs []string) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

// newTestCluster makes and starts n servers.
func newTestCluster(t *testing.T, n int) *testCluster {
	t.Helper()
	c := prepareTestCluster(t, n)
	for i := range c.addrs {
		c.start(i)
	}
	return c
}

// testNode is what the nodes of a cluster without certificates have in common.
type testNode struct {
	Cluster     dataplane.ClusterID
	ClusterName string
	Key         [32]byte
}

// prepareTestCluster makes n servers.
func prepareTestCluster(t *testing.T, n int) *testCluster {
	t.Helper()
	c := &testCluster{t: t, addrs: freeAddrs(t, n), stops: make([]func() error, n),
		leads: make([]*atomic.Bool, n), nodes: make([]*server, n)}
	for i := range c.leads {
		c.leads[i] = new(atomic.Bool)
	}
	rand.Read(c.node.Cluster[:])
	rand.Read(c.node.Key[:])
	c.node.ClusterName = "test"
	var peers []Peer
	for i, a := range c.addrs {
		peers = append(peers, Peer{uint32(i + 1), a})
	}
	for i, a := range c.addrs {
		dir := filepath.Join(t.TempDir(), "mds")
		c.dirs = append(c.dirs, dir)
		err := Format(dir, FormatOptions{Cluster: c.node.Cluster, ClusterName: "test", Addr: a,
			Node: uint32(i + 1), Peers: peers})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for i := range c.addrs {
			c.stop(i)
		}
	})
	return c
}

func (c *testCluster) cred(role dataplane.Role, id uint64) *session.Credentials {
	return &session.Credentials{Cluster: c.node.Cluster, ClusterName: c.node.ClusterName,
		Key: c.node.Key, Role: role, ID: id, Name: "test"}
}

func testLog() *slog.Logger {
	if os.Getenv("MDS_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// start runs server i.
func (c *testCluster) start(i int) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, done, leads := make(chan string, 1), make(chan error, 1), c.leads[i]
	go func() {
		done <- Run(ctx, Options{Dir: c.dirs[i], Cred: c.cred(dataplane.RoleMDS, uint64(i+1)),
			Log: testLog().With("node", i+1), Ready: func(a string) { ready <- a }, tune: c.tune,
			Leading: leads.Store, Servers: c.servers, OnObserver: func(o *Observer) { c.nodes[i] = o.s }})
	}()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		c.t.Fatalf("server %d: %v", i, err)
	}
	c.stops[i] = func() error {
		cancel()
		return <-done
	}
}

// stop stops server i, if it runs, and fails the test on an error.
func (c *testCluster) stop(i int) {
	c.t.Helper()
	if c.stops[i] == nil {
		return
	}
	if err := c.stops[i](); err != nil {
		c.t.Errorf("server %d stopped: %v", i, err)
	}
	c.stops[i] = nil
}

// leader waits for a leader and returns its index.
func (c *testCluster) leader() int {
	c.t.Helper()
	var found int
	eventually(c.t, "a leader", func() bool {
		for i := range c.leads {
			if c.leads[i].Load() && c.stops[i] != nil {
				found = i
				return true
			}
		}
		return false
	})
	return found
}

// eventually polls a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// client is a control.Client with short calls.
type client struct {
	*control.Client
	t *testing.T
}

func (c *testCluster) client(role dataplane.Role, id uint64,
	onPush func(dataplane.Opcode, []byte)) *client {
	c.t.Helper()
	k, err := control.Dial(context.Background(), control.Options{Log: testLog(),
		Addrs: control.FixedAddrs(c.addrs...), Cred: c.cred(role, id), OnPush: onPush})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { k.Close() })
	return &client{k, c.t}
}

func (c *client) try(op dataplane.Opcode, req, reply any) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return c.Call(ctx, op, req, reply)
}

func (c *client) must(op dataplane.Opcode, req, reply any) {
	c.t.Helper()
	if err := c.try(op, req, reply); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) wantKind(kind dataplane.Kind, op dataplane.Opcode, req any) {
	c.t.Helper()
	if err := c.try(op, req, nil); dataplane.KindOf(err) != kind {
		c.t.Errorf("%s %+v: %v, want kind %v", control.OpName(op), req, err, kind)
	}
}

func (c *client) create(parent dataplane.FileID, name string, typ control.FileType) control.Attr {
	c.t.Helper()
	var a control.Attr
	c.must(control.OpCreate, &control.CreateReq{Parent: parent, Name: name, Type: typ, Mode: 0o644,
		Exclusive: true}, &a)
	return a
}

func (c *client) admin(command string, args, doc any) {
	c.t.Helper()
	b, err := json.Marshal(args)
	if err != nil {
		c.t.Fatal(err)
	}
	var reply control.AdminReply
	c.must(control.OpAdmin, &control.AdminReq{Command: command, Args: b}, &reply)
	if err := json.Unmarshal(reply.Doc, doc); err != nil {
		c.t.Fatalf("%s: %v in %s", command, err, reply.Doc)
	}
}

// testCS plays a chunk server.
type testCS struct {
	*client
	reg     control.RegisterCSReq
	id      dataplane.CSID
	settle  chan control.SettlePush
	recover chan control.RecoverPush
	forget  chan control.ForgetPush
	scrub   chan struct{}
}

func (c *testCluster) newCS(n byte) *testCS {
	c.t.Helper()
	s := &testCS{settle: make(chan control.SettlePush, 100),
		forget:  make(chan control.ForgetPush, 100),
		recover: make(chan control.RecoverPush, 100), scrub: make(chan struct{}, 100)}
	s.reg = control.RegisterCSReq{Disk: [16]byte{n}, Boot: 1, Marks: true,
		Addr: fmt.Sprintf("127.0.0.1:%d", 3000+int(n)), Host: fmt.Sprintf("host%d", n),
		Path: fmt.Sprintf("/cs%d", n), Capacity: 100 * dataplane.ChunkSize,
		Instance: uint64(n)<<8 + 1}
	s.client = c.client(dataplane.RoleCS, 1000+uint64(n), func(op dataplane.Opcode, p []byte) {
		switch op {
		case control.OpSettle:
			var m control.SettlePush
			if err := control.Unmarshal(p, &m); err != nil {
				c.t.Error(err)
			}
			s.settle <- m
		case control.OpRecover:
			var m control.RecoverPush
			if err := control.Unmarshal(p, &m); err != nil {
				c.t.Error(err)
			}
			s.recover <- m
		case control.OpScrub:
			s.scrub <- struct{}{}
		case control.OpForget:
			var m control.ForgetPush
			if err := control.Unmarshal(p, &m); err != nil {
				c.t.Error(err)
			}
			s.forget <- m
		}
	})
	s.register()
	return s
}

func (s *testCS) register() control.RegisterCSReply {
	s.t.Helper()
	var r control.RegisterCSReply
	s.must(control.OpRegisterCS, &s.reg, &r)
	if r.LeaseNs != int64(dataplane.LeaseTime) || s.id != 0 && r.CS != s.id {
		s.t.Fatalf("registered as %+v, had id %d", r, s.id)
	}
	s.id = r.CS
	s.reg.CS = r.CS
	return r
}

func (s *testCS) beat() error {
	return s.try(control.OpHeartbeat, &control.HeartbeatReq{CS: s.id, Boot: s.reg.Boot,
		Capacity: s.reg.Capacity, Instance: s.reg.Instance}, &control.HeartbeatReply{})
}

// keepAlive sends heartbeats until the returned function is called.
func (s *testCS) keepAlive() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-time.After(dataplane.HeartbeatEvery / 2):
			}
			if err := s.beat(); err != nil {
				s.t.Errorf("heartbeat of cs %d: %v", s.id, err)
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}

func TestSingleServer(t *testing.T) {
	c := newTestCluster(t, 1)
	k := c.client(dataplane.RoleClient, 7, nil)
	dir := k.create(dataplane.RootID, "images", control.TypeDir)
	f := k.create(dir.File, "disk.img", control.TypeFile)
	k.wantKind(dataplane.NoSpace, control.OpAllocate, &control.MapReq{File: f.File, Count: 1})
	var servers []*testCS
	for n := range byte(3) {
		servers = append(servers, c.newCS(n+1))
	}
	var m, again control.MapReply
	k.must(control.OpAllocate, &control.MapReq{File: f.File, First: 2, Count: 3}, &m)
	if len(m.Chunks) != 3 || len(m.Servers) != 3 || m.Chunks[0].Index != 2 {
		t.Fatalf("allocated %+v", m)
	}
	for _, ch := range m.Chunks {
		if len(ch.Members) != 3 || ch.Epoch != 1 || ch.Chunk == 0 {
			t.Errorf("chunk %+v", ch)
		}
	}
	k.must(control.OpGrow, &control.GrowReq{File: f.File, Size: 5 * dataplane.ChunkSize}, nil)
	k.must(control.OpAllocate, &control.MapReq{File: f.File, First: 2, Count: 3}, &again)
	if again.Chunks[1].Chunk != m.Chunks[1].Chunk {
		t.Errorf("allocated twice: %v and %v", m.Chunks[1], again.Chunks[1])
	}
	k.wantKind(dataplane.Denied, control.OpHeartbeat, &control.HeartbeatReq{CS: 1, Boot: 1})

	// Everything is there after a restart, and the servers' heartbeats go on.
	c.stop(0)
	c.start(0)
	k.must(control.OpGetMap, &control.MapReq{File: f.File, Count: 1000}, &again)
	if len(again.Chunks) != 3 || again.Chunks[2].Chunk != m.Chunks[2].Chunk {
		t.Errorf("after the restart: %+v", again)
	}
	var a control.Attr
	k.must(control.OpLookup, &control.LookupReq{Parent: dir.File, Name: "disk.img"}, &a)
	if a.File != f.File || a.Size != 5*dataplane.ChunkSize || a.Allocated != 3 {
		t.Errorf("after the restart: %+v", a)
	}
	for _, s := range servers {
		if err := s.beat(); err != nil {
			t.Errorf("heartbeat after the restart: %v", err)
		}
	}

	// A removed file's chunks are to be forgotten.
	k.must(control.OpUnlink, &control.UnlinkReq{Parent: dir.File, Name: "disk.img"}, nil)
	for _, s := range servers {
		got := <-s.forget
		if len(got.Chunks) != 3 {
			t.Errorf("cs %d was told to forget %v", s.id, got.Chunks)
		}
	}
	// The connection over which that was said is lost: the inventory is asked for.
	s := servers[0]
	s.Close()
	s.client = c.client(dataplane.RoleCS, 1001, nil)
	eventually(t, "a heartbeat that is told to register again", func() bool {
		return dataplane.KindOf(s.beat()) == dataplane.NotFound
	})
	s.register()
	if err := s.beat(); err != nil {
		t.Error(err)
	}
	testAdmin(t, c)
}

// testAdmin asks for the documents, on a cluster with three servers and the directory /images.
func testAdmin(t *testing.T, c *testCluster) {
	k := c.client(dataplane.RoleAdmin, 9, nil)
	var stat control.StatDoc
	k.admin(control.AdminStat, nil, &stat)
	if stat.Cluster != "test" || stat.Health != "healthy" || len(stat.CS) != 3 ||
		stat.CS[0].Status != control.CSActive || len(stat.MDS) != 1 || !stat.MDS[0].Leader ||
		stat.Files != 1 || stat.Chunks.Total != 0 ||
		stat.Space.Total != 300*dataplane.ChunkSize ||
		stat.Space.LogicalFree != 100*dataplane.ChunkSize {
		t.Errorf("stat: %+v", stat)
	}
	var attr control.AttrDoc
	two, one, disk := 2, 1, "disk"
	k.admin(control.AdminSetAttr, control.SetAttrArgs{Path: "/images", Replicas: &two, Minimum: &one,
		FailureDomain: &disk}, &attr)
	want := control.PolicyDoc{Replicas: 2, Minimum: 1, FailureDomain: "disk", WriteAck: "disk"}
	if attr.Policy != want {
		t.Errorf("set-attr: %+v", attr)
	}
	var lookup control.Attr
	k.must(control.OpLookup, &control.LookupReq{Parent: 1, Name: "images"}, &lookup)
	f := k.create(lookup.File, "two", control.TypeFile)
	k.must(control.OpAllocate, &control.MapReq{File: f.File, Count: 1}, nil)
	var info control.FileInfoDoc
	k.admin(control.AdminFileInfo, control.PathArgs{Path: "/images/two"}, &info)
	if len(info.List) != 1 || len(info.List[0].Members) != 2 || info.Policy != want {
		t.Errorf("file-info: %+v", info)
	}
	var events control.EventsDoc
	k.admin(control.AdminEvents, control.EventsArgs{Limit: 2, After: 2}, &events)
	if e := events.Events; len(e) != 2 || e[0].ID != 3 ||
		e[0].Code != "cs-new" && e[1].Code != "cs-new" { // the other: no space, before there was any
		t.Errorf("events: %+v", events)
	}
	var conf control.ConfigDoc
	k.admin(control.AdminSetConfig, control.SetConfigArgs{Key: "user.a", Value: "1"}, &conf)
	if len(conf.Entries) != 1 || conf.Entries[0].Version != 1 {
		t.Errorf("set-config: %+v", conf)
	}
	k.wantKind(dataplane.Conflict, control.OpAdmin, &control.AdminReq{
		Command: control.AdminSetConfig, Args: []byte(`{"key":"user.a","value":"2"}`)})
	k.wantKind(dataplane.NotFound, control.OpAdmin, &control.AdminReq{
		Command: control.AdminFileInfo, Args: []byte(`{"path":"/none"}`)})
	k.wantKind(dataplane.NotFound, control.OpAdmin, &control.AdminReq{
		Command: control.AdminRmCS, Args: []byte(`{"cs":[99]}`)})
}

func TestRunRefuses(t *testing.T) {
	c := newTestCluster(t, 1)
	id := filepath.Join(c.dirs[0], identityFile)
	before, err := os.ReadFile(id)
	if err != nil {
		t.Fatal(err)
	}
	run := func(o Options) error { o.Log = testLog(); return Run(context.Background(), o) }
	other := c.cred(dataplane.RoleMDS, 1)
	other.Cluster[0]++
	for name, tc := range map[string]struct {
		err  error
		kind dataplane.Kind
		text string
	}{
		"other cluster": {run(Options{Dir: c.dirs[0], Cred: other}), dataplane.WrongCluster,
			"belongs to"},
		"role": {run(Options{Dir: c.dirs[0], Cred: c.cred(dataplane.RoleClient, 1)}),
			dataplane.Invalid, "credentials"},
		"running": {run(Options{Dir: c.dirs[0], Cred: c.cred(dataplane.RoleMDS, 1)}),
			dataplane.Exists, "running"},
		"nothing there": {run(Options{Dir: t.TempDir(), Cred: c.cred(dataplane.RoleMDS, 1)}),
			dataplane.NotFound, "no metadata server"},
		"format again": {Format(c.dirs[0], FormatOptions{Cluster: c.node.Cluster,
			ClusterName: "test", Addr: "127.0.0.1:1"}), dataplane.Exists, "of cluster test"},
		"format bad name": {Format(t.TempDir(), FormatOptions{Cluster: c.node.Cluster,
			ClusterName: "a b", Addr: "127.0.0.1:1"}), dataplane.Invalid, "cluster name"},
		"format bad address": {Format(t.TempDir(), FormatOptions{Cluster: c.node.Cluster,
			ClusterName: "ab", Addr: "nowhere"}), dataplane.Invalid, "ip:port"},
	} {
		if dataplane.KindOf(tc.err) != tc.kind || !strings.Contains(tc.err.Error(), tc.text) ||
			strings.Contains(tc.err.Error(), "\n") {
			t.Errorf("%s: %v, want %v with %q", name, tc.err, tc.kind, tc.text)
		}
	}
	after, err := os.ReadFile(id)
	if err != nil || string(after) != string(before) {
		t.Errorf("the identity changed: %s, %v", after, err)
	}
	if st, err := os.Stat(id); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("identity: %v, %v", st.Mode(), err)
	}
}

func TestLeaderChange(t *testing.T) {
	c := newTestCluster(t, 3)
	k := c.client(dataplane.RoleClient, 7, nil)
	defer c.newCS(1).keepAlive()() // its heartbeats go on, without a new registration
	for i := range 20 {
		k.create(dataplane.RootID, fmt.Sprint("before", i), control.TypeFile)
	}
	old := c.leader()
	c.stop(old)
	start := time.Now()
	for i := range 20 {
		k.create(dataplane.RootID, fmt.Sprint("after", i), control.TypeFile)
	}
	t.Logf("first changes after the leader stopped: %v", time.Since(start))
	c.start(old)
	// With another one away the one that came back is needed, and has caught up.
	c.stop(c.leader())
	k.create(dataplane.RootID, "last", control.TypeFile)
	var list control.ReadDirReply
	k.must(control.OpReadDir, &control.ReadDirReq{Dir: dataplane.RootID}, &list)
	if len(list.Entries) != 41 {
		t.Errorf("%d entries, want 41", len(list.Entries))
	}
}
