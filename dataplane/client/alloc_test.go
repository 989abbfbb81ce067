package client

import (
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/uring"
)

// pipeEnv is a reactor without kernel and without allocations: connections are pairs of byte
// slices, moved by turn.
type pipeEnv struct {
	now    int64
	rand   uint64
	timers uring.TimerHeap
	turns  uring.TurnQueue
	posted []func()
	conns  []*pipeConn
	accept func(uring.Conn) uring.ConnHandler
}

func (e *pipeEnv) Now() int64                   { return e.now }
func (e *pipeEnv) Rand() uint64                 { e.rand++; return mix(e.rand) }
func (e *pipeEnv) Arm(t *uring.Timer, d int64)  { e.timers.Arm(t, e.now+d) }
func (e *pipeEnv) Disarm(t *uring.Timer)        { e.timers.Disarm(t) }
func (e *pipeEnv) AtTurnEnd(t *uring.TurnEnder) { e.turns.Add(t) }
func (e *pipeEnv) Listen(string, func(uring.Conn) uring.ConnHandler) (string, func(), error) {
	panic("not here")
}

func (e *pipeEnv) Dial(addr string, attach func(uring.Conn) uring.ConnHandler,
	done func(uring.Conn, error)) {
	e.posted = append(e.posted, func() {
		a, b := &pipeConn{}, &pipeConn{}
		a.peer, b.peer = b, a
		e.conns = append(e.conns, a, b)
		b.h = e.accept(b)
		a.h = attach(a)
		done(a, nil)
	})
}

// turn does everything that can be done now.
func (e *pipeEnv) turn() {
	e.now += 1000
	for len(e.posted) > 0 {
		f := e.posted[0]
		e.posted = e.posted[1:]
		f()
	}
	for _, c := range e.conns {
		c.deliver()
	}
	for t := e.timers.Pop(e.now); t != nil; t = e.timers.Pop(e.now) {
		t.Fire()
	}
	e.turns.Run()
}

type pipeConn struct {
	peer *pipeConn
	h    uring.ConnHandler
	out  []byte // to the peer
	in   []byte // being read
	into []byte
}

func (c *pipeConn) Append(p []byte) { c.out = append(c.out, p...) }
func (c *pipeConn) Reserve(n int) []byte {
	for range n {
		c.out = append(c.out, 0)
	}
	return c.out[len(c.out)-n:]
}
func (c *pipeConn) AppendBuf(b *uring.Buf, from, to int) { c.Append(b.Bytes()[from:to]) }
func (c *pipeConn) Queued() int                          { return len(c.out) }
func (c *pipeConn) Close(error)                          {}
func (c *pipeConn) RemoteAddr() string                   { return "pipe" }
func (c *pipeConn) PauseRecv(bool)                       {}

func (c *pipeConn) deliver() {
	c.in = append(c.in, c.peer.out...)
	c.peer.out = c.peer.out[:0]
	used := 0
	for used < len(c.in) {
		if c.into != nil {
			k := copy(c.into, c.in[used:])
			used += k
			if c.into = c.into[k:]; len(c.into) == 0 {
				c.into = nil
				c.h.RecvDone()
			}
			continue
		}
		k, into := c.h.Recv(c.in[used:])
		used, c.into = used+k, into
		if k == 0 && into == nil {
			break
		}
	}
	c.in = c.in[:copy(c.in, c.in[used:])]
}

// pipeCS answers everything at once.
type pipeCS struct {
	data  [dataplane.PartSize]byte
	crcs  [4 * 17]byte
	reply dataplane.Header
}

func (cs *pipeCS) Open(*session.Conn)          {}
func (cs *pipeCS) Closed(*session.Conn, error) {}
func (cs *pipeCS) Frame(c *session.Conn, h *dataplane.Header, _, _ []byte, _ *uring.Buf) {
	reply := &cs.reply
	*reply = h.Reply(dataplane.OK)
	if h.Op != dataplane.OpRead {
		c.Send(reply, nil, nil)
		return
	}
	reply.Flags |= dataplane.FlagData
	reply.Length = h.Length
	n := dataplane.PutCRCs(cs.crcs[:], h.Offset, cs.data[:h.Length])
	c.Send(reply, cs.crcs[:n], cs.data[:h.Length])
}

// pipeMeta knows one file, all of whose chunks are on one server.
type pipeMeta struct{ env *pipeEnv }

func (m pipeMeta) GetMap(_ dataplane.FileID, first, count uint32,
	cb func(*control.MapReply, error)) {
	r := &control.MapReply{Servers: []control.CSAddr{{CS: 1, Addr: "pipe", Live: true}}}
	for i := first; i < first+count; i++ {
		r.Chunks = append(r.Chunks, control.ChunkMap{Index: i, Epoch: 1,
			Chunk: dataplane.NewChunkID(1, uint64(i)), Members: []dataplane.CSID{1}})
	}
	m.env.posted = append(m.env.posted, func() { cb(r, nil) })
}
func (m pipeMeta) Allocate(dataplane.FileID, uint32, uint32, func(*control.MapReply, error)) {
	panic("not here")
}
func (m pipeMeta) Grow(dataplane.FileID, uint64, uint64, func(*control.Attr, error)) {
	panic("not here")
}
func (m pipeMeta) GetAttr(dataplane.FileID, func(*control.Attr, error)) { panic("not here") }
func (m pipeMeta) Unreachable(dataplane.CSID, []control.HeldChunk)      { panic("not here") }

// pipeBench is an engine and a server on one pipeEnv, with QD ops.
type pipeBench struct {
	env  *pipeEnv
	eng  *Engine
	ops  []*Op
	done int
}

func newPipeBench(t testing.TB, kind OpKind, size, depth int) *pipeBench {
	env := &pipeEnv{now: 1}
	pool, err := uring.NewPool(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	cs := &pipeCS{}
	server := &session.Credentials{ClusterName: "c", Role: dataplane.RoleCS, ID: 1}
	env.accept = func(c uring.Conn) uring.ConnHandler {
		return session.NewConn(c, env, pool, server, false, cs)
	}
	b := &pipeBench{env: env}
	b.eng = NewEngine(Options{Env: env, Net: env, Pool: pool, Meta: pipeMeta{env},
		Cred: &session.Credentials{ClusterName: "c", Role: dataplane.RoleClient, ID: 7}})
	f, err := b.eng.OpenFile(&control.Attr{File: 5, Type: control.TypeFile, Size: 1 << 32}, "f")
	if err != nil {
		t.Fatal(err)
	}
	count := func(*Op) { b.done++ }
	for i := range depth {
		b.ops = append(b.ops, &Op{Kind: kind, File: f, Offset: int64(i * size),
			Buf: make([]byte, size), Done: count})
	}
	b.round(t)
	return b
}

// round does all ops once.
func (b *pipeBench) round(t testing.TB) {
	b.done = 0
	for _, op := range b.ops {
		op.Offset = (op.Offset + 37<<20) & (1<<32 - 1)
		b.eng.Submit(op)
	}
	for i := 0; b.done < len(b.ops); i++ {
		b.env.turn()
		if i > 10000 {
			t.Fatal("not done")
		}
	}
	for _, op := range b.ops {
		if op.Err != nil {
			t.Fatal(op.Err)
		}
	}
}

// TestNoAllocations: in steady state an operation allocates nothing (client and session).
func TestNoAllocations(t *testing.T) {
	for _, kind := range []OpKind{Read, Write} {
		for _, size := range []int{512, 4096, 64 << 10, 1 << 20} {
			b := newPipeBench(t, kind, size, 16)
			for range 10 {
				b.round(t)
			}
			if n := testing.AllocsPerRun(100, func() { b.round(t) }); n != 0 {
				t.Errorf("%v of %d bytes: %.2f allocations per 16 ops", kind, size, n)
			}
		}
	}
}

func benchmark(b *testing.B, kind OpKind, size int) {
	p := newPipeBench(b, kind, size, 32)
	b.ReportAllocs()
	b.SetBytes(int64(size))
	b.ResetTimer()
	for range (b.N + 31) / 32 {
		p.round(b)
	}
}

// The cost of client, sessions, and a server that does nothing, without a kernel.
func BenchmarkRead4K(b *testing.B)  { benchmark(b, Read, 4096) }
func BenchmarkWrite4K(b *testing.B) { benchmark(b, Write, 4096) }
func BenchmarkRead1M(b *testing.B)  { benchmark(b, Read, 1<<20) }
func BenchmarkWrite1M(b *testing.B) { benchmark(b, Write, 1<<20) }
