package client

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// world is a cluster as the engine sees one, in a simulation: fake chunk servers that speak real
// sessions and frames and share one copy of the data, and a fake MDS.
type world struct {
	t      testing.TB
	sim    *simloop.Sim
	net    *simloop.Net
	env    *simloop.Env
	node   *simloop.Node
	pool   *uring.Pool
	cred   *session.Credentials
	eng    *Engine
	opt    Options
	meta   *fakeMeta
	cs     []*fakeCS // by id-1
	chunks map[dataplane.ChunkID]*fakeChunk
	rng    *rand.Rand
}

type fakeChunk struct {
	epoch   dataplane.Epoch
	members []dataplane.CSID
	data    []byte
	writes  int
}

func newWorld(t testing.TB, seed uint64, servers int, change ...func(*Options)) *world {
	w := &world{t: t, sim: simloop.New(seed), chunks: map[dataplane.ChunkID]*fakeChunk{},
		rng: rand.New(rand.NewPCG(seed, 1))}
	w.net = simloop.NewNet(w.sim, simloop.NetOptions{})
	w.env = w.sim.NewEnv("client")
	w.node = w.net.Node(w.env, "10.0.0.1")
	w.pool, _ = uring.NewPool(64 << 20)
	w.cred = &session.Credentials{ClusterName: "c", Role: dataplane.RoleClient, ID: 7}
	w.meta = &fakeMeta{w: w, files: map[dataplane.FileID]*fakeFile{}, delay: 200e3}
	for i := range servers {
		w.startCS(dataplane.CSID(i + 1))
	}
	w.opt = Options{Env: w.env, Net: w.node, Pool: w.pool, Cred: w.cred, Meta: w.meta}
	for _, f := range change {
		f(&w.opt)
	}
	w.eng = NewEngine(w.opt)
	return w
}

// startCS starts (again) the chunk server id, on an address of its own.
func (w *world) startCS(id dataplane.CSID) *fakeCS {
	cs := &fakeCS{w: w, id: id, ip: fmt.Sprintf("10.0.1.%d", id)}
	cs.env = w.sim.NewEnv(fmt.Sprintf("cs%d", id))
	node := w.net.Node(cs.env, cs.ip)
	cred := &session.Credentials{ClusterName: "c", Role: dataplane.RoleCS, ID: uint64(id)}
	var err error
	cs.env.Do(func() {
		cs.addr, _, err = node.Listen(cs.ip+":3000", func(c uring.Conn) uring.ConnHandler {
			return session.NewConn(c, cs.env, w.pool, cred, false, cs)
		})
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if int(id) <= len(w.cs) {
		w.cs[id-1] = cs
	} else {
		w.cs = append(w.cs, cs)
	}
	return cs
}

// file makes a file of the given size in the MDS and opens it.
func (w *world) file(size uint64) *File {
	id := dataplane.FileID(100 + len(w.meta.files))
	w.meta.files[id] = &fakeFile{size: size, chunks: map[uint32]dataplane.ChunkID{}}
	f, err := w.eng.OpenFile(&control.Attr{File: id, Type: control.TypeFile, Size: size}, "f")
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

// run submits the ops, and runs the world until they are done. It gives up after 100 s.
func (w *world) run(ops ...*Op) {
	w.t.Helper()
	done := w.start(ops...)
	if !w.sim.Run(func() bool { return *done == len(ops) }, w.sim.Now()+100e9) {
		w.t.Fatalf("%d of %d ops done after 100 s; engine: %d pending, %+v", *done, len(ops),
			w.eng.Pending(), w.eng.stats)
	}
	w.check()
}

// start submits the ops; the counter says how many are done.
func (w *world) start(ops ...*Op) *int {
	done := new(int)
	w.env.Do(func() {
		for _, op := range ops {
			op.Done = func(*Op) { *done++ }
			w.eng.Submit(op)
		}
	})
	return done
}

// check compares the engine's accounts with each other while nothing is to be done.
func (w *world) check() {
	w.t.Helper()
	if w.eng.Pending() != 0 {
		return
	}
	free := 0
	for p := w.eng.free; p != nil; p = p.next {
		free++
	}
	if free != len(w.eng.parts) {
		w.t.Errorf("%d of %d parts are free when nothing is pending", free, len(w.eng.parts))
	}
	for id, pr := range w.eng.peers {
		if pr.count != 0 || pr.bytes != 0 || pr.sent.head != nil || pr.wait.head != nil {
			w.t.Errorf("cs %d: %d parts, %d bytes in flight when nothing is pending", id, pr.count,
				pr.bytes)
		}
	}
}

// ok fails the test if an op failed.
func (w *world) ok(ops ...*Op) {
	w.t.Helper()
	for _, op := range ops {
		if op.Err != nil {
			w.t.Fatalf("%v at %d: %v", op.Kind, op.Offset, op.Err)
		}
	}
}

func (w *world) write(f *File, off int64, p []byte) {
	w.t.Helper()
	op := &Op{Kind: Write, File: f, Offset: off, Buf: p}
	w.run(op)
	w.ok(op)
	if op.N != len(p) {
		w.t.Fatalf("write of %d bytes: N is %d", len(p), op.N)
	}
}

func (w *world) read(f *File, off int64, n int) []byte {
	w.t.Helper()
	op := &Op{Kind: Read, File: f, Offset: off, Buf: bytes.Repeat([]byte{0xee}, n)}
	w.run(op)
	w.ok(op)
	return op.Buf[:op.N]
}

func (w *world) random(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(w.rng.Uint32())
	}
	return p
}

// fakeCS is a chunk server. refuse, if set, may answer a request instead of it: OK lets it pass.
type fakeCS struct {
	w        *world
	env      *simloop.Env
	id       dataplane.CSID
	ip       string
	addr     string
	refuse   func(h *dataplane.Header) dataplane.Kind
	corrupt  bool                   // flips a bit in what it reads
	silent   bool                   // takes requests and doesn't answer anything
	stuck    bool                   // the same, but answers pings
	hold     int64                  // ns by which the answer to the next read comes later
	delay    int64                  // ns by which all answers to reads come later
	late     func(off uint32) int64 // nil, or ns by which the answer to a read at off comes later
	lastRead int64                  // when it was asked to read
	claim    dataplane.Seq          // of the last read: what the client says was acknowledged to it
	told     []dataplane.Header     // what clients said by themselves
	life     uint32                 // Aux of its answers to writes and flushes
	conns    int
	served   map[dataplane.Opcode]int
	largest  uint32
	crcs     [128]byte
}

func (cs *fakeCS) Open(*session.Conn)          { cs.conns++ }
func (cs *fakeCS) Closed(*session.Conn, error) { cs.conns-- }

func (cs *fakeCS) Frame(c *session.Conn, h *dataplane.Header, crcs, payload []byte, _ *uring.Buf) {
	if cs.silent || cs.stuck && h.Op != dataplane.OpPing {
		return
	}
	if h.Op == dataplane.OpCommit {
		cs.told = append(cs.told, *h)
		return
	}
	if cs.served == nil {
		cs.served = map[dataplane.Opcode]int{}
	}
	cs.served[h.Op]++
	status := dataplane.OK
	if cs.refuse != nil {
		status = cs.refuse(h)
	}
	if status == dataplane.OK {
		status = cs.check(h, crcs, payload)
	}
	reply := h.Reply(status)
	if status != dataplane.OK {
		c.Send(&reply, nil, nil)
		return
	}
	cs.serve(c, h, &reply, payload)
}

// check is what a chunk server has to check before it serves.
func (cs *fakeCS) check(h *dataplane.Header, crcs, payload []byte) dataplane.Kind {
	if h.Op == dataplane.OpPing {
		return dataplane.OK
	}
	ch := cs.w.chunks[h.Chunk]
	switch {
	case ch == nil || !slices.Contains(ch.members, cs.id):
		return dataplane.UnknownChunk
	case ch.epoch != h.Epoch:
		return dataplane.StaleEpoch
	case h.Op != dataplane.OpRead && ch.members[0] != cs.id:
		return dataplane.NotHead
	case h.Op == dataplane.OpWrite && dataplane.CheckCRCs(crcs, h.Offset, payload) >= 0:
		return dataplane.BadCRC
	case h.Op == dataplane.OpZero && (h.Offset|h.Length)%dataplane.BlockSize != 0:
		return dataplane.Invalid
	}
	return dataplane.OK
}

func (cs *fakeCS) serve(c *session.Conn, h, reply *dataplane.Header, payload []byte) {
	ch := cs.w.chunks[h.Chunk]
	switch h.Op {
	case dataplane.OpRead:
		cs.lastRead, cs.claim = cs.w.sim.Now(), h.Seq
		reply.Flags |= dataplane.FlagData
		reply.Length = h.Length
		data := ch.data[h.Offset : h.Offset+h.Length]
		n := dataplane.PutCRCs(cs.crcs[:], h.Offset, data)
		if cs.corrupt {
			data = bytes.Clone(data)
			data[len(data)/2] ^= 4
		}
		delay := max(cs.hold, cs.delay)
		if cs.late != nil {
			delay = max(delay, cs.late(h.Offset))
		}
		if delay > 0 {
			late, crcs, data := *reply, bytes.Clone(cs.crcs[:n]), bytes.Clone(data)
			cs.w.sim.After(delay, func() {
				cs.env.Post(func() { c.Send(&late, crcs, data) })
			})
			cs.hold = 0
			return
		}
		c.Send(reply, cs.crcs[:n], data)
		return
	case dataplane.OpWrite:
		cs.largest = max(cs.largest, h.Length)
		copy(ch.data[h.Offset:], payload)
		ch.writes++
		reply.Seq, reply.Aux = dataplane.Seq(ch.writes), cs.life
	case dataplane.OpZero:
		clear(ch.data[h.Offset : h.Offset+h.Length])
		ch.writes++
		reply.Seq, reply.Aux = dataplane.Seq(ch.writes), cs.life
	case dataplane.OpFlush:
		reply.Aux = cs.life
	}
	c.Send(reply, nil, nil)
}

// fakeMeta is the MDS.
type fakeMeta struct {
	w       *world
	files   map[dataplane.FileID]*fakeFile
	delay   int64 // ns
	fail    func(what string) error
	calls   map[string]int
	reports []dataplane.CSID
	ask     int // chunks in the last GetMap or Allocate
	next    int // chunks made
}

type fakeFile struct {
	size    uint64
	chunks  map[uint32]dataplane.ChunkID
	deleted bool
}

// later runs f at the MDS and its answer on the client, both after a delay.
func (m *fakeMeta) later(what string, file dataplane.FileID, f func(*fakeFile) func(),
	fail func(error)) {
	if m.calls == nil {
		m.calls = map[string]int{}
	}
	m.calls[what]++
	m.w.sim.After(m.delay, func() {
		var answer func()
		ff := m.files[file]
		var err error
		if m.fail != nil {
			err = m.fail(what)
		}
		if err == nil && (ff == nil || ff.deleted) {
			err = dataplane.E(what, dataplane.NotFound, nil)
		}
		if err != nil {
			answer = func() { fail(err) }
		} else {
			answer = f(ff)
		}
		m.w.sim.After(m.delay, func() { m.w.env.Post(answer) })
	})
}

func (m *fakeMeta) mapOf(f *fakeFile, first, count uint32) *control.MapReply {
	m.ask = int(count)
	r := &control.MapReply{}
	for i := first; i < first+count; i++ {
		id, ok := f.chunks[i]
		if !ok {
			continue
		}
		ch := m.w.chunks[id]
		r.Chunks = append(r.Chunks, control.ChunkMap{Index: i, Chunk: id, Epoch: ch.epoch,
			Members: slices.Clone(ch.members)})
	}
	for _, cs := range m.w.cs {
		r.Servers = append(r.Servers, control.CSAddr{CS: cs.id, Addr: cs.addr,
			Live: !cs.env.Dead()})
	}
	return r
}

func (m *fakeMeta) GetMap(file dataplane.FileID, first, count uint32,
	cb func(*control.MapReply, error)) {
	m.later("map", file, func(f *fakeFile) func() {
		r := m.mapOf(f, first, count)
		return func() { cb(r, nil) }
	}, func(err error) { cb(nil, err) })
}

func (m *fakeMeta) Allocate(file dataplane.FileID, first, count uint32,
	cb func(*control.MapReply, error)) {
	m.later("allocate", file, func(f *fakeFile) func() {
		for i := first; i < first+count; i++ {
			m.make(f, i)
		}
		r := m.mapOf(f, first, count)
		return func() { cb(r, nil) }
	}, func(err error) { cb(nil, err) })
}

// make allocates chunk i of f, with up to three members.
func (m *fakeMeta) make(f *fakeFile, i uint32) *fakeChunk {
	if id, ok := f.chunks[i]; ok {
		return m.w.chunks[id]
	}
	m.next++
	id := dataplane.NewChunkID(1, uint64(m.next))
	ch := &fakeChunk{epoch: 1, data: make([]byte, dataplane.ChunkSize)}
	for j := range min(3, len(m.w.cs)) {
		ch.members = append(ch.members, dataplane.CSID((m.next+j)%len(m.w.cs)+1))
	}
	f.chunks[i], m.w.chunks[id] = id, ch
	return ch
}

func (m *fakeMeta) Grow(file dataplane.FileID, size, _ uint64, cb func(*control.Attr, error)) {
	m.later("grow", file, func(f *fakeFile) func() {
		f.size = max(f.size, size)
		a := &control.Attr{File: file, Type: control.TypeFile, Size: f.size}
		return func() { cb(a, nil) }
	}, func(err error) { cb(nil, err) })
}

func (m *fakeMeta) GetAttr(file dataplane.FileID, cb func(*control.Attr, error)) {
	m.later("attr", file, func(f *fakeFile) func() {
		a := &control.Attr{File: file, Type: control.TypeFile, Size: f.size}
		return func() { cb(a, nil) }
	}, func(err error) { cb(nil, err) })
}

func (m *fakeMeta) Unreachable(cs dataplane.CSID, chunks []control.HeldChunk) {
	m.reports = append(m.reports, cs)
}

// exclude removes a member from a chunk, as a reconfiguration does.
func (c *fakeChunk) exclude(cs dataplane.CSID) {
	c.members = slices.DeleteFunc(slices.Clone(c.members),
		func(m dataplane.CSID) bool { return m == cs })
	c.epoch++
}
