package chunk

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/ssdcache"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// A small cluster in the simulator: chunk servers, metadata servers reduced to a table, a client
// that retries.

const (
	ms  = int64(1e6)
	sec = int64(1e9)
)

type world struct {
	t     testing.TB
	sim   *simloop.Sim
	net   *simloop.Net
	nodes []*node
	md    *fakeMD
	cl    *testClient
	log   *slog.Logger
	slots uint32
	cache int64 // bytes of the log
	crcs  int   // bytes of CRC pages in memory
	same  bool  // logs are written back as on the disk of their store

	frames int // ShardOptions.CRCFrames
	bypass int // ShardOptions.BypassFrom
	canary Canary
}

type node struct {
	w      *world
	cs     dataplane.CSID
	ip     string
	env    *simloop.Env
	store  *simloop.Disk
	cache  *simloop.Disk
	pool   *uring.Pool
	sh     *Shard
	failed error
	diedAt int64
	boots  int
	lapsed bool // gets no lease
}

var simKey = [32]byte{1, 2, 3}

func simCred(role dataplane.Role, id uint64) *session.Credentials {
	return &session.Credentials{Cluster: dataplane.ClusterID{7}, Key: simKey, Role: role, ID: id}
}

func newWorld(t testing.TB, seed uint64, n int) *world {
	return newWorldWith(t, seed, n, 32<<20, 1<<20)
}

func newWorldWith(t testing.TB, seed uint64, n int, cache int64, crcs int) *world {
	return newWorldSlots(t, seed, n, 8, cache, crcs)
}

func newWorldSlots(t testing.TB, seed uint64, n int, slots uint32, cache int64, crcs int) *world {
	w := &world{t: t, sim: simloop.New(seed), slots: slots, cache: cache, crcs: crcs}
	w.net = simloop.NewNet(w.sim, simloop.NetOptions{})
	out := io.Discard
	if os.Getenv("CHUNK_TEST_LOG") != "" {
		out = os.Stderr
	}
	w.log = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.md = &fakeMD{w: w, chunks: map[dataplane.ChunkID]*control.ChunkConfig{},
		former: map[dataplane.ChunkID][]dataplane.CSID{}}
	for i := range n {
		nd := &node{w: w, cs: dataplane.CSID(i + 1), ip: fmt.Sprintf("10.0.0.%d", i+1)}
		w.nodes = append(w.nodes, nd)
		nd.newEnv()
		sb := newSuperblock(w.slots)
		nd.store = simloop.NewDisk(nd.env, sb.size(), 4096, simloop.DiskOptions{})
		nd.cache = simloop.NewDisk(nd.env, w.cache, 4096, simloop.DiskOptions{})
		nd.format()
		nd.open()
	}
	for _, nd := range w.nodes {
		w.must(func() bool { return nd.sh != nil }, 10*sec, "open")
	}
	w.beat()
	w.cl = newTestClient(w)
	return w
}

func (w *world) must(until func() bool, within int64, what string) {
	w.t.Helper()
	if !w.sim.Run(until, w.sim.Now()+within) {
		w.dump()
		w.t.Fatalf("%s: not reached within %d ms (now %d ms)", what, within/ms, w.sim.Now()/ms)
	}
}

// dump says where everything stands, for a test that got stuck.
func (w *world) dump() {
	for _, nd := range w.nodes {
		if nd.sh == nil {
			continue
		}
		for _, id := range w.md.order {
			r := nd.sh.chunks[id]
			if r == nil {
				continue
			}
			w.t.Logf("cs %d chunk %v: %v epoch %d seq %d/%d/%d "+
				"queue %d reads %d flight %d busy %d broken %v",
				nd.cs, id, r.state, r.epoch, r.commit, r.durable, r.last, r.queue.n, r.reads.n, r.flight.n,
				r.busy, r.broken)
			if s := r.settler; s != nil {
				w.t.Logf("  settling: attempt %d tries %d pending %d copying %d err %v armed %v lost %v",
					s.attempt, s.tries, s.pending, s.copying, s.stepErr, s.retry.Armed(), s.lost)
			}
		}
		for _, p := range nd.sh.peerList {
			w.t.Logf("  peer %d: open %v dialing %v calls %d redial %v", p.cs, p.open, p.dialing,
				len(p.calls), p.redial.Armed())
		}
	}
}

func (w *world) run(d int64) { w.sim.Run(func() bool { return false }, w.sim.Now()+d) }

// beat renews the leases of the living, as heartbeats do.
func (w *world) beat() {
	for _, nd := range w.nodes {
		if nd.sh != nil && !nd.env.Dead() && !nd.lapsed {
			nd.sh.SetLease(nd.env.Now() + int64(dataplane.LeaseTime))
		}
	}
	w.md.sweep()
	w.sim.After(500*ms, w.beat)
}

func (nd *node) newEnv() {
	nd.boots++
	nd.env = nd.w.sim.NewEnv(fmt.Sprintf("cs%d.%d", nd.cs, nd.boots))
	var err error
	if nd.pool, err = uring.NewPool(64 << 20); err != nil {
		nd.w.t.Fatal(err)
	}
}

func (nd *node) format() {
	sb := newSuperblock(nd.w.slots)
	sb.disk, sb.log = uuid{byte(nd.cs)}, uuid{100, byte(nd.cs)}
	b := make([]byte, superSize)
	sb.put(b)
	nd.store.WriteAt(b, 0)
	ok := false
	nd.env.Do(func() {
		ssdcache.Format(ssdcache.FormatOptions{Disk: nd.cache, Env: nd.env, Pool: nd.pool,
			Owner: ownerOf(sb.log)}, func(err error) {
			if err != nil {
				nd.w.t.Fatal(err)
			}
			ok = true
		})
	})
	nd.w.must(func() bool { return ok }, 60*sec, "format")
}

func (nd *node) open() {
	w := nd.w
	nd.sh, nd.failed = nil, nil
	nd.env.Do(func() {
		Open(ShardOptions{Env: nd.env, Net: w.net.Node(nd.env, nd.ip), Pool: nd.pool,
			Store: nd.store, Cache: nd.cache, Cred: simCred(dataplane.RoleCS, uint64(nd.cs)),
			Metadata: &nodeMD{nd, nd.env}, ID: nd.cs, Log: w.log.With("cs", nd.cs),
			CRCBudget: w.crcs, CRCFrames: w.frames, SameDisk: w.same, WallClock: w.sim.Now,
			BypassFrom: w.bypass, Canary: w.canary,
			OnFail: func(err error) { nd.failed = err }},
			func(sh *Shard, err error) {
				if err != nil {
					w.t.Fatalf("cs %d: %v", nd.cs, err)
				}
				if _, err := sh.Listen(nd.ip + ":2600"); err != nil {
					w.t.Fatal(err)
				}
				nd.sh = sh
				sh.SetLease(nd.env.Now() + int64(dataplane.LeaseTime))
			})
	})
}

func (nd *node) addr() string { return nd.ip + ":2600" }

func (nd *node) kill() {
	nd.env.Kill()
	nd.diedAt = nd.w.sim.Now()
}

// restart starts a new process on the node's disks, after a power cut if cut is set.
func (nd *node) restart(cut bool) {
	if !nd.env.Dead() {
		nd.kill()
	}
	if cut {
		nd.store.PowerCut()
		nd.cache.PowerCut()
	}
	nd.newEnv()
	nd.store.Attach(nd.env)
	nd.cache.Attach(nd.env)
	nd.diedAt = 0
	nd.open()
	nd.w.must(func() bool { return nd.sh != nil }, 60*sec, "restart")
}

// fakeMD is what is left of the metadata servers: a table.
type fakeMD struct {
	w        *world
	chunks   map[dataplane.ChunkID]*control.ChunkConfig
	order    []dataplane.ChunkID
	former   map[dataplane.ChunkID][]dataplane.CSID // members that were excluded
	reported []dataplane.CSID
	events   []control.Event
	rng      *rand.Rand // of a test
	refuse   bool       // exclusions
	// hold, if set, may keep a Reconfigure from being taken: it is called instead.
	hold func(req *control.ReconfigureReq, cb func(*control.ChunkConfig, error)) bool
}

func (m *fakeMD) add(id dataplane.ChunkID, minimum uint8, members ...dataplane.CSID) {
	cfg := &control.ChunkConfig{Chunk: id, Epoch: 1, Minimum: minimum,
		Wanted: uint8(len(members))}
	for _, cs := range members {
		cfg.Members = append(cfg.Members, control.CSAddr{CS: cs, Addr: m.w.nodes[cs-1].addr()})
	}
	m.chunks[id] = cfg
	m.order = append(m.order, id)
}

func (m *fakeMD) get(id dataplane.ChunkID) (*control.ChunkConfig, error) {
	c := m.chunks[id]
	if c == nil {
		return nil, dataplane.E("get chunk", dataplane.NotFound, nil)
	}
	cp := *c
	cp.Members = append([]control.CSAddr(nil), c.Members...)
	for _, cs := range m.former[id] {
		cp.Former = append(cp.Former, control.CSAddr{CS: cs, Addr: m.w.nodes[cs-1].addr()})
	}
	return &cp, nil
}

func (m *fakeMD) reconfigure(req *control.ReconfigureReq) (*control.ChunkConfig, error) {
	c := m.chunks[req.Chunk]
	if c == nil || c.Epoch != req.Epoch {
		return nil, dataplane.E("reconfigure", dataplane.Conflict, nil)
	}
	if req.SetCreated {
		c.Created = true
		return m.get(req.Chunk)
	}
	if m.refuse {
		return nil, dataplane.E("reconfigure", dataplane.NotReady, nil)
	}
	var stay []control.CSAddr
	for _, cs := range req.Members {
		stay = append(stay, control.CSAddr{CS: cs, Addr: m.w.nodes[cs-1].addr()})
	}
	m.former[req.Chunk] = slices.DeleteFunc(m.former[req.Chunk], func(cs dataplane.CSID) bool {
		return slices.Contains(req.Members, cs)
	})
	for _, old := range c.Members {
		if !slices.Contains(req.Members, old.CS) {
			m.former[req.Chunk] = append(m.former[req.Chunk], old.CS)
		}
	}
	c.Members = stay
	c.Epoch++
	return m.get(req.Chunk)
}

// sweep has chunks settled without members that were reported and whose lease ran out.
func (m *fakeMD) sweep() {
	limit := int64(dataplane.LeaseTime + dataplane.LeaseMargin)
	for _, dead := range m.reported {
		nd := m.w.nodes[dead-1]
		if nd.diedAt == 0 || m.w.sim.Now()-nd.diedAt < limit {
			continue
		}
		for _, id := range m.order {
			c := m.chunks[id]
			has, live := false, dataplane.CSID(0)
			for _, mem := range c.Members {
				has = has || mem.CS == dead
				if live == 0 && m.w.nodes[mem.CS-1].diedAt == 0 {
					live = mem.CS
				}
			}
			if !has || live == 0 {
				continue
			}
			cfg, _ := m.get(id)
			to := m.w.nodes[live-1]
			to.env.Post(func() {
				if to.sh != nil {
					to.sh.SettlePush(&control.SettlePush{Chunks: []control.ChunkConfig{*cfg},
						Lost: []dataplane.CSID{dead}})
				}
			})
		}
	}
}

func (m *fakeMD) event(code string) int {
	n := 0
	for _, e := range m.events {
		if e.Code == code {
			n++
		}
	}
	return n
}

// nodeMD is fakeMD as one process sees it, 300 µs away.
type nodeMD struct {
	nd  *node
	env *simloop.Env
}

func (m *nodeMD) after(f func()) {
	m.nd.w.sim.After(300_000, func() {
		if !m.env.Dead() {
			m.env.Post(f)
		}
	})
}

func (m *nodeMD) GetChunk(id dataplane.ChunkID, cb func(*control.ChunkConfig, error)) {
	m.after(func() { cb(m.nd.w.md.get(id)) })
}

func (m *nodeMD) Reconfigure(r *control.ReconfigureReq, cb func(*control.ChunkConfig, error)) {
	if h := m.nd.w.md.hold; h != nil && h(r, func(c *control.ChunkConfig, err error) {
		m.after(func() { cb(c, err) })
	}) {
		return
	}
	m.after(func() { cb(m.nd.w.md.reconfigure(r)) })
}

func (m *nodeMD) Unreachable(r *control.UnreachableReq) {
	m.nd.w.md.report(r.CS)
}

func (m *fakeMD) report(cs dataplane.CSID) {
	if !slices.Contains(m.reported, cs) {
		m.reported = append(m.reported, cs)
	}
}

func (m *nodeMD) Event(e *control.Event) { m.nd.w.md.events = append(m.nd.w.md.events, *e) }

// testClient writes and reads with retries.
type testClient struct {
	w       *world
	env     *simloop.Env
	nd      *simloop.Node
	pool    *uring.Pool
	conns   map[dataplane.CSID]*clientConn
	nextID  uint64
	retries int
	aux     uint32 // of the last answer
}

type clientConn struct {
	cl      *testClient
	cs      dataplane.CSID
	c       *session.Conn
	open    bool
	waiting []func()
	calls   map[uint64]func(h *dataplane.Header, payload []byte)
}

func newTestClient(w *world) *testClient {
	env := w.sim.NewEnv("client")
	pool, err := uring.NewPool(16 << 20)
	if err != nil {
		w.t.Fatal(err)
	}
	return &testClient{w: w, env: env, nd: w.net.Node(env, "10.0.0.99"), pool: pool,
		conns: map[dataplane.CSID]*clientConn{}}
}

func (cl *testClient) conn(cs dataplane.CSID) *clientConn {
	k := cl.conns[cs]
	if k != nil {
		return k
	}
	k = &clientConn{cl: cl, cs: cs, calls: map[uint64]func(*dataplane.Header, []byte){}}
	cl.conns[cs] = k
	cl.nd.Dial(cl.w.nodes[cs-1].addr(), func(c uring.Conn) uring.ConnHandler {
		k.c = session.NewConn(c, cl.env, cl.pool, simCred(dataplane.RoleClient, 4711), true, k)
		return k.c
	}, func(c uring.Conn, err error) {
		if err != nil {
			k.Closed(nil, err)
		}
	})
	return k
}

func (k *clientConn) Open(*session.Conn) {
	k.open = true
	for _, f := range k.waiting {
		f()
	}
	k.waiting = nil
}

func (k *clientConn) Frame(_ *session.Conn, h *dataplane.Header, crcs, payload []byte,
	_ *uring.Buf) {
	if f := k.calls[h.ReqID]; f != nil {
		delete(k.calls, h.ReqID)
		if h.Flags&dataplane.FlagData != 0 && dataplane.CheckCRCs(crcs, h.Offset, payload) >= 0 {
			k.cl.w.t.Errorf("answer with wrong checksums: %v", h)
		}
		f(h, payload)
	}
}

func (k *clientConn) Closed(_ *session.Conn, err error) {
	k.cl.w.log.Debug("client connection lost", "cs", k.cs, "err", err)
	if k.cl.conns[k.cs] != k {
		return
	}
	delete(k.cl.conns, k.cs)
	for _, f := range k.waiting {
		f()
	}
	k.waiting = nil
	ids := make([]uint64, 0, len(k.calls))
	for id := range k.calls {
		ids = append(ids, id)
	}
	for i := range ids { // in the order of the calls
		for j := i + 1; j < len(ids); j++ {
			if ids[j] < ids[i] {
				ids[i], ids[j] = ids[j], ids[i]
			}
		}
		k.calls[ids[i]](&dataplane.Header{Status: dataplane.Closed}, nil)
	}
}

// ask sends one request to a chunk server; cb gets the answer, or status Closed.
func (cl *testClient) ask(cs dataplane.CSID, h dataplane.Header, payload []byte,
	cb func(h *dataplane.Header, payload []byte)) {
	k := cl.conn(cs)
	cl.nextID++
	h.ReqID = cl.nextID
	send := func() {
		if !k.open || cl.conns[cs] != k {
			cb(&dataplane.Header{Status: dataplane.Closed}, nil)
			return
		}
		k.calls[h.ReqID] = cb
		var crcs []byte
		if payload != nil {
			h.Flags |= dataplane.FlagData
			h.Length = uint32(len(payload))
			crcs = make([]byte, h.CRCBytes())
			dataplane.PutCRCs(crcs, h.Offset, payload)
		}
		k.c.Send(&h, crcs, payload)
	}
	if k.open {
		send()
	} else {
		k.waiting = append(k.waiting, send)
	}
}

// do repeats a request until it succeeds; members: which member to ask, by attempt.
func (cl *testClient) do(id dataplane.ChunkID, h dataplane.Header, payload []byte, member int,
	cb func(payload []byte)) {
	cfg, err := cl.w.md.get(id)
	if err != nil {
		cl.w.t.Fatal(err)
	}
	h.Chunk, h.Epoch = id, cfg.Epoch
	cs := cfg.Members[member%len(cfg.Members)].CS
	cl.ask(cs, h, payload, func(a *dataplane.Header, p []byte) {
		if a.Status == dataplane.OK {
			cl.aux = a.Aux
			cb(p)
			return
		}
		if a.Status != dataplane.Closed && !a.Status.Retry() {
			cl.w.t.Fatalf("%v: answered %v", &h, a.Status)
		}
		cl.w.log.Debug("retry", "h", &h, "status", a.Status, "t", cl.w.sim.Now())
		cl.retries++
		if a.Status == dataplane.Closed {
			cl.w.md.report(cs)
		}
		next := 0 // writes: the head; reads: any that is there
		if h.Op == dataplane.OpRead {
			next = cl.retries
		}
		t := &uring.Timer{}
		t.Fire = func() { cl.do(id, h, payload, next, cb) }
		cl.env.Arm(t, 20*ms)
	})
}

func (w *world) write(id dataplane.ChunkID, off uint32, data []byte, done *bool) {
	w.cl.env.Do(func() {
		w.cl.do(id, dataplane.Header{Op: dataplane.OpWrite, Offset: off}, data, 0,
			func([]byte) { *done = true })
	})
}

func (w *world) mustWrite(id dataplane.ChunkID, off uint32, data []byte) {
	w.t.Helper()
	ok := false
	w.write(id, off, data, &ok)
	w.must(func() bool { return ok }, 30*sec, "write")
}

func (w *world) read(id dataplane.ChunkID, off, n uint32, member int) []byte {
	w.t.Helper()
	var got []byte
	w.cl.env.Do(func() {
		w.cl.do(id, dataplane.Header{Op: dataplane.OpRead, Offset: off, Length: n}, nil, member,
			func(p []byte) { got = append([]byte{}, p...) })
	})
	w.must(func() bool { return got != nil }, 30*sec, "read")
	return got
}

// pattern fills n bytes with a tag that tells writes apart.
func pattern(tag uint64, n int) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], tag<<20|uint64(i/8))
	}
	return b
}

// contents reads a whole range of one server's replica, straight out of log and store.
func (nd *node) contents(id dataplane.ChunkID, off, n uint32) []byte {
	nd.w.t.Helper()
	var out []byte
	for ; n > 0; n, off = n-dataplane.PartSize, off+dataplane.PartSize {
		done := false
		nd.env.Do(func() {
			r := nd.sh.chunks[id]
			if r == nil {
				nd.w.t.Fatalf("cs %d has no chunk %v", nd.cs, id)
			}
			nd.sh.readPart(r, off, dataplane.PartSize, func(_ []byte, b *uring.Buf, err error) {
				if err != nil {
					nd.w.t.Fatalf("cs %d: %v", nd.cs, err)
				}
				out = append(out, b.Bytes()[:dataplane.PartSize]...)
				done = true
			})
		})
		nd.w.must(func() bool { return done }, sec, "read of a replica")
	}
	return out
}
