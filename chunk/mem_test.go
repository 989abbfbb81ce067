package chunk

import (
	"errors"
	"log/slog"
	"testing"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// The smallest machine that a shard runs on, without a kernel and without allocations: disks are
// memory, connections are pipes. For counting allocations and the CPU time of the logic alone.

type memWorld struct {
	t      testing.TB
	now    int64
	timers uring.TimerHeap
	turns  uring.TurnQueue
	rnd    uint64
	disks  []*memDisk
	conns  []*memConn
	ports  map[string]func(uring.Conn) uring.ConnHandler
	posted []func()
	dials  []func()
	chunks map[dataplane.ChunkID]*control.ChunkConfig
	addrs  map[dataplane.CSID]string // of all servers, if their chunks may get other members
	wild   bool                      // anything may happen
}

func (w *memWorld) Now() int64 { return w.now }
func (w *memWorld) Rand() uint64 {
	w.rnd += 0x9e3779b97f4a7c15
	return w.rnd * 0xbf58476d1ce4e5b9
}
func (w *memWorld) Arm(t *uring.Timer, d int64)  { w.timers.Arm(t, w.now+d) }
func (w *memWorld) Disarm(t *uring.Timer)        { w.timers.Disarm(t) }
func (w *memWorld) AtTurnEnd(e *uring.TurnEnder) { w.turns.Add(e) }

// turn runs everything that is due, once.
func (w *memWorld) turn() {
	w.now += 50_000
	for t := w.timers.Pop(w.now); t != nil; t = w.timers.Pop(w.now) {
		t.Fire()
	}
	for i := 0; i < len(w.posted); i++ {
		w.posted[i]()
	}
	w.posted = w.posted[:0]
	for i := 0; i < len(w.dials); i++ {
		w.dials[i]()
	}
	w.dials = w.dials[:0]
	for _, d := range w.disks {
		d.complete()
	}
	for i := 0; i < len(w.conns); i++ {
		w.conns[i].deliver()
	}
	w.turns.Run()
}

func (w *memWorld) until(what string, f func() bool) {
	for range 100000 {
		if f() {
			return
		}
		w.turn()
	}
	w.t.Fatalf("%s: never", what)
}

type memDisk struct {
	mem  []byte
	q, r []*uring.DiskOp
}

func newMemDisk(t testing.TB, size int64) *memDisk {
	m, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(m) })
	return &memDisk{mem: m}
}

func (d *memDisk) Submit(op *uring.DiskOp) { d.q = append(d.q, op) }
func (d *memDisk) Size() int64             { return int64(len(d.mem)) }
func (d *memDisk) Align() int              { return 4096 }
func (d *memDisk) Close() error            { return nil }

func (d *memDisk) complete() {
	d.q, d.r = d.r[:0], d.q
	for _, op := range d.r {
		at := op.Offset
		op.Err = nil
		for _, b := range op.Bufs {
			switch op.Kind {
			case uring.DiskRead:
				copy(b, d.mem[at:])
			case uring.DiskWrite, uring.DiskWriteSync:
				copy(d.mem[at:], b)
			}
			at += int64(len(b))
		}
		op.Done(op)
	}
}

// memConn is one end of a pipe: out is what this end sent and the other hasn't been given.
type memConn struct {
	w       *memWorld
	other   *memConn
	h       uring.ConnHandler
	out, in []byte
	bufs    []*uring.Buf
	into    []byte
	closed  bool
	paused  bool
}

func (c *memConn) Append(p []byte) { c.out = append(c.out, p...) }
func (c *memConn) Reserve(n int) []byte {
	at := len(c.out)
	for cap(c.out) < at+n {
		c.out = append(c.out[:cap(c.out)], 0)
	}
	c.out = c.out[:at+n]
	return c.out[at:]
}
func (c *memConn) AppendBuf(b *uring.Buf, from, to int) {
	// The copy stands for what a kernel does; the reference is kept until delivery.
	b.Retain()
	c.bufs = append(c.bufs, b)
	c.out = append(c.out, b.Bytes()[from:to]...)
}
func (c *memConn) Queued() int { return len(c.out) }
func (c *memConn) Close(err error) {
	if c.closed {
		return
	}
	c.closed, c.other.closed = true, true
	for _, e := range []*memConn{c, c.other} {
		c.w.posted = append(c.w.posted, func() {
			for _, b := range e.bufs {
				b.Release()
			}
			e.bufs, e.out, e.in = nil, nil, nil
			if e.h != nil {
				e.h.Closed(err)
			}
		})
	}
}
func (c *memConn) RemoteAddr() string   { return "mem" }
func (c *memConn) PauseRecv(pause bool) { c.paused = pause }

// deliver gives the other end what this one sent.
func (c *memConn) deliver() {
	o := c.other
	if len(c.out) == 0 || o.paused || o.h == nil || c.closed {
		return
	}
	for _, b := range c.bufs {
		b.Release()
	}
	c.bufs = c.bufs[:0]
	o.in = append(o.in, c.out...)
	c.out = c.out[:0]
	p := o.in
	for len(p) > 0 && !o.paused && !o.closed {
		if len(o.into) > 0 {
			n := copy(o.into, p)
			o.into, p = o.into[n:], p[n:]
			if len(o.into) == 0 {
				o.into = nil
				o.h.RecvDone()
			}
			continue
		}
		n, into := o.h.Recv(p)
		p = p[n:]
		if into != nil {
			o.into = into
		} else if n == 0 {
			break
		}
	}
	o.in = append(o.in[:0], p...)
}

func (w *memWorld) pipe() (a, b *memConn) {
	a, b = &memConn{w: w}, &memConn{w: w}
	a.other, b.other = b, a
	w.conns = append(w.conns, a, b)
	return a, b
}

func (w *memWorld) Listen(addr string, attach func(uring.Conn) uring.ConnHandler) (string, func(),
	error) {
	w.ports[addr] = attach
	return addr, func() { delete(w.ports, addr) }, nil
}

func (w *memWorld) Dial(addr string, attach func(uring.Conn) uring.ConnHandler,
	done func(uring.Conn, error)) {
	w.dials = append(w.dials, func() {
		if w.ports[addr] == nil {
			done(nil, errors.New("nobody listens"))
			return
		}
		a, b := w.pipe()
		b.h = w.ports[addr](b)
		a.h = attach(a)
		done(a, nil)
	})
}

// Metadata.

func (w *memWorld) GetChunk(id dataplane.ChunkID, cb func(*control.ChunkConfig, error)) {
	w.posted = append(w.posted, func() {
		if w.chunks[id] == nil {
			cb(nil, dataplane.E("get chunk", dataplane.NotFound, nil))
			return
		}
		c := *w.chunks[id]
		cb(&c, nil)
	})
}
func (w *memWorld) Reconfigure(r *control.ReconfigureReq, cb func(*control.ChunkConfig, error)) {
	w.posted = append(w.posted, func() {
		if w.addrs != nil && w.reconfigured(r) {
			c := *w.chunks[r.Chunk]
			cb(&c, nil)
			return
		}
		if w.chunks[r.Chunk] == nil || !r.SetCreated {
			cb(nil, dataplane.E("reconfigure", dataplane.Conflict, nil))
			return
		}
		w.chunks[r.Chunk].Created = true
		c := *w.chunks[r.Chunk]
		cb(&c, nil)
	})
}
func (w *memWorld) Unreachable(*control.UnreachableReq) {}
func (w *memWorld) Event(e *control.Event) {
	if !w.wild {
		w.t.Errorf("event: %s", e.Message)
	}
}

// memClient counts answers.
type memClient struct {
	t       testing.TB
	c       *session.Conn
	open    bool
	answers int
}

func (k *memClient) Open(*session.Conn) { k.open = true }
func (k *memClient) Frame(_ *session.Conn, h *dataplane.Header, _, _ []byte, _ *uring.Buf) {
	if h.Status != dataplane.OK {
		k.t.Fatalf("answer %v", h)
	}
	k.answers++
}
func (k *memClient) Closed(_ *session.Conn, err error) { k.t.Errorf("closed: %v", err) }

// newMemWorld starts n servers with one chunk on all of them, and a client of the first.
func newMemWorld(t testing.TB, n int) (*memWorld, []*Shard, *memClient) {
	return newMemWorldOf(t, n, 256<<20)
}

// newMemWorldOf is newMemWorld with caches of so many bytes: a start reads all of them.
func newMemWorldOf(t testing.TB, n int, cacheSize int64) (*memWorld, []*Shard, *memClient) {
	w := &memWorld{t: t, now: 1e12, ports: map[string]func(uring.Conn) uring.ConnHandler{},
		chunks: map[dataplane.ChunkID]*control.ChunkConfig{}}
	cfg := &control.ChunkConfig{Chunk: chunkA, Epoch: 1, Minimum: 1}
	var shards []*Shard
	quiet := slog.New(slog.DiscardHandler)
	for i := range n {
		addr := string(rune('a' + i))
		cfg.Members = append(cfg.Members, control.CSAddr{CS: dataplane.CSID(i + 1), Addr: addr})
		pool, err := uring.NewPool(128 << 20)
		if err != nil {
			t.Fatal(err)
		}
		sb := newSuperblock(4)
		store, cache := newMemDisk(t, sb.size()), newMemDisk(t, cacheSize)
		sb.put(store.mem)
		w.disks = append(w.disks, store, cache)
		formatted := false
		ssdcache.Format(ssdcache.FormatOptions{Disk: cache, Env: w, Pool: pool, Owner: ownerOf(sb.log)},
			func(err error) { formatted = err == nil })
		w.until("format", func() bool { return formatted })
		var sh *Shard
		Open(ShardOptions{Env: w, Net: w, Pool: pool, Store: store, Cache: cache, Metadata: w,
			Cred: simCred(dataplane.RoleCS, 0), ID: dataplane.CSID(i + 1), CRCBudget: 1 << 20, Log: quiet},
			func(s *Shard, err error) {
				if err != nil {
					t.Fatal(err)
				}
				sh = s
			})
		w.until("open", func() bool { return sh != nil })
		sh.SetLease(1 << 62)
		sh.Listen(addr)
		shards = append(shards, sh)
	}
	w.chunks[chunkA] = cfg
	k := &memClient{t: t}
	pool, _ := uring.NewPool(16 << 20)
	w.Dial("a", func(c uring.Conn) uring.ConnHandler {
		k.c = session.NewConn(c, w, pool, simCred(dataplane.RoleClient, 5), true, k)
		return k.c
	}, func(uring.Conn, error) {})
	w.until("connect", func() bool { return k.open })
	return w, shards, k
}
