package session

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"unsafe"

	"pstorage/dataplane"
	"pstorage/uring"
)

// got is a frame that a handler was given, copied.
type got struct {
	h             dataplane.Header
	crcs, payload []byte
}

// collector is a FrameHandler that keeps everything.
type collector struct {
	t       testing.TB
	opened  int
	frames  []got
	closed  int
	err     error
	onFrame func(c *Conn)
}

func (k *collector) Open(c *Conn) { k.opened++ }

func (k *collector) Frame(c *Conn, h *dataplane.Header, crcs, payload []byte, buf *uring.Buf) {
	if k.opened != 1 || k.closed != 0 {
		k.t.Fatalf("frame after %d Open and %d Closed", k.opened, k.closed)
	}
	if len(payload) >= DirectSize {
		if buf == nil || &buf.Bytes()[0] != &payload[0] ||
			uintptr(unsafe.Pointer(&payload[0]))%uring.BufAlign != 0 {
			k.t.Fatalf("payload of %d bytes isn't at the start of a buffer", len(payload))
		}
	} else if buf != nil {
		k.t.Fatalf("payload of %d bytes has a buffer", len(payload))
	}
	k.frames = append(k.frames, got{*h, bytes.Clone(crcs), bytes.Clone(payload)})
	if k.onFrame != nil {
		k.onFrame(c)
	}
}

func (k *collector) Closed(c *Conn, err error) { k.closed++; k.err = err }

// pair is a dialer and an acceptor with a pool each.
type pair struct {
	env    *fakeEnv
	pool   *uring.Pool
	dc, ac *fakeConn
	d, a   *Conn
	dh, ah *collector
	dcred  *Credentials
	acred  *Credentials
	older  bool // the acceptor is of a version that can protect nothing
}

// protections are the ways in which a connection is protected: as with a peer of an older version,
// with authenticated headers, encrypted.
const (
	plain = iota
	withTags
	encrypted
	protections
)

// openedAs returns a pair that is protected in one of these ways.
func openedAs(t testing.TB, poolSize, protection int) *pair {
	t.Helper()
	p := newPair(t, poolSize, func(p *pair) {
		p.older = protection == plain
		if protection == encrypted {
			for _, c := range []*Credentials{p.dcred, p.acred} {
				keys := LegacyKeys(c.Key)
				keys.Secure = true
				c.Ring = NewRing(&keys, nil)
			}
		}
	})
	if p.dh.opened != 1 || p.ah.opened != 1 || (p.a.tagged != nil) != (protection == withTags) ||
		(p.a.sealed != nil) != (protection == encrypted) || p.a.Peer().Secure != p.d.Peer().Secure {
		t.Fatalf("protection %d: dialer %v, acceptor %v, %+v", protection, p.dh.err, p.ah.err,
			p.a.Peer())
	}
	return p
}

func newPair(t testing.TB, poolSize int, change func(p *pair)) *pair {
	t.Helper()
	pool, err := uring.NewPool(poolSize)
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{env: newFakeEnv(7), pool: pool, dc: &fakeConn{t: t}, ac: &fakeConn{t: t},
		dh: &collector{t: t}, ah: &collector{t: t},
		dcred: testCred(dataplane.RoleClient, 1), acred: testCred(dataplane.RoleCS, 2)}
	t.Cleanup(func() {
		if n := pool.InUse(); n != 0 {
			t.Errorf("%d bytes of the pool were not released", n)
			return
		}
		pool.Close()
	})
	if change != nil {
		change(p)
	}
	p.d = NewConn(p.dc, p.env, pool, p.dcred, true, p.dh)
	p.a = NewConn(p.ac, p.env, pool, p.acred, false, p.ah)
	p.dc.handler, p.ac.handler = p.d, p.a
	if p.older {
		p.a.shake.offer = p.acred.Features
	}
	link(p.dc, p.ac)
	return p
}

func opened(t testing.TB, poolSize int) *pair {
	p := newPair(t, poolSize, nil)
	if p.dh.opened != 1 || p.ah.opened != 1 || p.a.Peer().ID != 1 || p.d.Peer().ID != 2 {
		t.Fatalf("not open: dialer %v, acceptor %v", p.dh.err, p.ah.err)
	}
	if p.d.SessionKey() != p.a.SessionKey() {
		t.Fatal("session keys differ")
	}
	return p
}

// makeFrame makes a frame with size bytes of payload; 0 is without.
func makeFrame(rng *rand.Rand, op dataplane.Opcode, off uint32, size int) got {
	g := got{h: dataplane.Header{Op: op, ReqID: rng.Uint64(), Offset: off, Length: uint32(size)}}
	if size > 0 {
		g.h.Flags = dataplane.FlagData
		g.payload = make([]byte, size)
		for i := 0; i < size; i += 8 {
			x := rng.Uint64()
			for j := i; j < min(i+8, size); j++ {
				g.payload[j] = byte(x)
				x >>= 8
			}
		}
		g.crcs = make([]byte, g.h.CRCBytes())
		dataplane.PutCRCs(g.crcs, off, g.payload)
	}
	return g
}

func randomFrame(rng *rand.Rand) got {
	switch rng.IntN(6) {
	case 0:
		return makeFrame(rng, dataplane.OpRead, 4096*rng.Uint32N(100), 0)
	case 1:
		return makeFrame(rng, dataplane.OpControlBase, 0, 1+rng.IntN(600<<10))
	case 2:
		return makeFrame(rng, dataplane.OpWrite, rng.Uint32N(1<<20), dataplane.PartSize)
	case 3:
		return makeFrame(rng, dataplane.OpWrite, 512*rng.Uint32N(100), DirectSize-1+rng.IntN(3))
	default:
		return makeFrame(rng, dataplane.OpWrite, 512*rng.Uint32N(100), 1+rng.IntN(8192))
	}
}

func same(a, b []got) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].h != b[i].h || !bytes.Equal(a[i].crcs, b[i].crcs) ||
			!bytes.Equal(a[i].payload, b[i].payload) {
			return false
		}
	}
	return true
}

// Any split of the stream gives the same frames, also when the handler pauses and when the pool is
// exhausted now and then.
func TestConnAnySplit(t *testing.T) {
	for seed := range uint64(90) {
		rng := rand.New(rand.NewPCG(seed, 2))
		p := openedAs(t, 4<<20, int(seed%protections))
		for _, n := range []int{1 << 20, 256 << 10, 16 << 10} { // one of each class is sure
			b := p.pool.Get(n)
			b.Release()
		}
		var want []got
		for range 1 + rng.IntN(30) {
			want = append(want, randomFrame(rng))
		}
		p.ah.onFrame = func(c *Conn) {
			if rng.IntN(4) == 0 {
				c.PauseRecv(true)
			}
		}
		for _, g := range want {
			p.d.Send(&g.h, g.crcs, g.payload)
		}
		stream := p.dc.out
		p.dc.out = nil
		var hog []*uring.Buf
		for len(stream) > 0 || len(p.ah.frames) < len(want) {
			if rng.IntN(20) == 0 { // somebody takes the whole pool
				for b := p.pool.Get(1 << 20); b != nil; b = p.pool.Get(1 << 20) {
					hog = append(hog, b)
				}
				for b := p.pool.Get(64 << 10); b != nil; b = p.pool.Get(64 << 10) {
					hog = append(hog, b)
				}
			} else if rng.IntN(3) == 0 || len(stream) == 0 {
				for _, b := range hog {
					b.Release()
				}
				hog = nil
			}
			n := min(len(stream), 1+rng.IntN(100<<10)>>rng.IntN(16))
			p.ac.feed(stream[:n])
			stream = stream[n:]
			p.env.advance(2e6)
			if rng.IntN(3) == 0 || len(stream) == 0 {
				p.a.PauseRecv(false)
			}
			p.ac.pump()
			if p.ac.closed {
				t.Fatalf("seed %d: closed: %v", seed, p.ac.err)
			}
		}
		for _, b := range hog {
			b.Release()
		}
		if !same(p.ah.frames, want) {
			t.Fatalf("seed %d: %d frames differ from %d sent", seed, len(p.ah.frames), len(want))
		}
		p.ac.end(io.EOF)
		if p.ah.err != io.EOF || p.ah.closed != 1 {
			t.Fatalf("seed %d: end: %v, %d times", seed, p.ah.err, p.ah.closed)
		}
	}
}

func TestConnSendBuf(t *testing.T) {
	p := opened(t, 1<<20)
	g := makeFrame(rand.New(rand.NewPCG(1, 1)), dataplane.OpWrite, 0, 20000)
	b := p.pool.Get(32 << 10)
	copy(b.Bytes()[4096:], g.payload)
	p.a.SendBuf(&g.h, g.crcs, b, 4096, 4096+20000)
	b.Release()
	link(p.dc, p.ac)
	if !same(p.dh.frames, []got{g}) || p.ac.bufs != 1 {
		t.Fatal("frame differs")
	}
}

// Several frames in one Recv: closing in the callback of one stops the others.
func TestConnCloseInFrame(t *testing.T) {
	for _, size := range []int{0, 4096, DirectSize} {
		for _, split := range []bool{false, true} {
			p := opened(t, 1<<20)
			why := errors.New("enough")
			p.ah.onFrame = func(c *Conn) {
				if len(p.ah.frames) == 2 {
					c.Close(why)
					c.Close(errors.New("again"))
					c.Send(&dataplane.Header{Op: dataplane.OpPing}, nil, nil)
				}
			}
			rng := rand.New(rand.NewPCG(3, 3))
			for range 5 {
				g := makeFrame(rng, dataplane.OpWrite, 0, size)
				p.d.Send(&g.h, g.crcs, g.payload)
			}
			if split {
				for _, b := range p.dc.out {
					p.ac.feed([]byte{b})
				}
			} else {
				p.ac.feed(p.dc.out)
			}
			p.ac.end(nil)
			if len(p.ah.frames) != 2 || p.ah.err != why || p.ah.closed != 1 {
				t.Errorf("size %d: %d frames, closed %d times by %v", size, len(p.ah.frames),
					p.ah.closed, p.ah.err)
			}
		}
	}
}

// A large payload finds a buffer also where small ones have once needed all of the pool.
func TestConnPoolCutSmall(t *testing.T) {
	p := opened(t, 1<<20)
	var small []*uring.Buf
	for b := p.pool.Get(4096); b != nil; b = p.pool.Get(4096) {
		small = append(small, b)
	}
	g := makeFrame(rand.New(rand.NewPCG(3, 3)), dataplane.OpWrite, 0, dataplane.PartSize)
	p.d.Send(&g.h, g.crcs, g.payload)
	link(p.dc, p.ac)
	if len(p.ah.frames) != 0 {
		t.Fatal("the pool isn't used up: the test tests nothing")
	}
	for _, b := range small {
		b.Release()
	}
	for range 1000 {
		p.env.advance(poolRetryNs)
		p.ac.pump()
	}
	if !same(p.ah.frames, []got{g}) {
		t.Errorf("%d frames a second after the pool was given back, %d bytes of it in use",
			len(p.ah.frames), p.pool.InUse())
	}
}

// A connection that is lost while a large payload comes in gives its buffer back.
func TestConnLostInPayload(t *testing.T) {
	p := opened(t, 1<<20)
	g := makeFrame(rand.New(rand.NewPCG(3, 3)), dataplane.OpWrite, 0, dataplane.PartSize)
	p.d.Send(&g.h, g.crcs, g.payload)
	p.ac.feed(p.dc.out[:40000])
	if p.pool.InUse() == 0 {
		t.Fatal("no buffer is in use: the test tests nothing")
	}
	p.ac.end(io.EOF)
	if p.ah.err != io.ErrUnexpectedEOF || len(p.ah.frames) != 0 {
		t.Fatalf("%d frames, %v", len(p.ah.frames), p.ah.err)
	}
}

func TestConnMalformed(t *testing.T) {
	for name, spoil := range map[string]func(h *dataplane.Header, b []byte){
		"checksum": func(h *dataplane.Header, b []byte) { b[20] ^= 1 },
		"magic":    func(h *dataplane.Header, b []byte) { b[0] ^= 1 },
		"length":   func(h *dataplane.Header, b []byte) { h.Length = 1 << 30; h.Put(b) },
		"tag":      func(h *dataplane.Header, b []byte) { h.Tag = 1; h.Put(b) },
	} {
		p := opened(t, 1<<20)
		p.d.Send(&dataplane.Header{Op: dataplane.OpPing}, nil, nil)
		h := dataplane.Header{Op: dataplane.OpWrite}
		var b [dataplane.HeaderSize]byte
		h.Put(b[:])
		spoil(&h, b[:])
		p.ac.feed(append(p.dc.out, b[:]...))
		var fe *dataplane.FrameError
		if !p.ac.closed || !errors.As(p.ac.err, &fe) || len(p.ah.frames) != 1 {
			t.Errorf("%s: %d frames, closed %v: %v", name, len(p.ah.frames), p.ac.closed, p.ac.err)
		}
	}
}

func TestConnHandshakeFails(t *testing.T) {
	p := newPair(t, 1<<20, func(p *pair) { p.dcred.Key[0]++ })
	p.env.advance(lingerNs)
	link(p.dc, p.ac)
	if !p.dc.closed || dataplane.KindOf(p.dc.err) != dataplane.Denied || p.dh.opened != 0 {
		t.Errorf("dialer: closed %v: %v", p.dc.closed, p.dc.err)
	}
	if p.ah.closed != 1 || dataplane.KindOf(p.ah.err) != dataplane.Denied || p.ah.opened != 0 {
		t.Errorf("acceptor: %d times closed: %v", p.ah.closed, p.ah.err)
	}
	p.dc.end(nil)
	if _, armed := p.env.nextTimer(); armed || p.dh.closed != 1 {
		t.Errorf("timer armed %v, %d times closed", armed, p.dh.closed)
	}

	p = newPair(t, 1<<20, func(p *pair) {
		p.acred.Role = dataplane.RoleMDS
		p.dcred.Role = dataplane.RoleNone
	})
	if p.ah.opened+p.dh.opened != 0 {
		t.Error("open without a role")
	}
}

func TestConnStrangers(t *testing.T) {
	for name, in := range map[string][]byte{
		"http":       []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"zeros":      make([]byte, 100000),
		"a frame":    func() []byte { b := make([]byte, 64); (&dataplane.Header{}).Put(b); return b }(),
		"password":   append([]byte("PSPW\x01\x01"), make([]byte, 70)...),
		"long hello": []byte("PSHK\x01\x01\xff\x7f"),
	} {
		p := &fakeConn{t: t}
		h := &collector{t: t}
		env := newFakeEnv(1)
		c := NewConn(p, env, nil, testCred(dataplane.RoleCS, 1), false, h)
		p.handler = c
		p.feed(in)
		if !p.closed || len(p.out) != 0 || h.opened != 0 {
			t.Errorf("%s: closed %v, answered %q", name, p.closed, p.out)
		}
	}
}

func TestConnSlowHandshake(t *testing.T) {
	p := &fakeConn{t: t}
	env := newFakeEnv(1)
	c := NewConn(p, env, nil, testCred(dataplane.RoleCS, 1), false, &collector{t: t})
	p.handler = c
	p.feed([]byte("PSHK"))
	env.advance(int64(HandshakeTime) - 1)
	if p.closed {
		t.Fatal("closed too early")
	}
	env.advance(1)
	if !p.closed || dataplane.KindOf(p.err) != dataplane.TimedOut {
		t.Fatalf("closed %v: %v", p.closed, p.err)
	}
}

func TestConnAllocs(t *testing.T) {
	for protection := range protections {
		testConnAllocs(t, openedAs(t, 4<<20, protection))
	}
}

func testConnAllocs(t *testing.T, p *pair) {
	p.ah.onFrame = nil
	count := &counter{}
	p.a.handler = count
	rng := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{0, 4096, DirectSize, dataplane.PartSize} {
		g := makeFrame(rng, dataplane.OpWrite, 0, size)
		turn := func() {
			p.dc.out = p.dc.out[:0]
			p.d.Send(&g.h, g.crcs, g.payload)
			p.ac.feed(p.dc.out[:len(p.dc.out)/3])
			p.ac.feed(p.dc.out[len(p.dc.out)/3:])
			if p.ac.closed {
				t.Fatal(p.ac.err)
			}
		}
		turn()
		if n := testing.AllocsPerRun(100, turn); n != 0 {
			t.Errorf("%v allocations per frame of %d bytes", n, size)
		}
	}
	if count.frames != 4*102 {
		t.Errorf("%d frames", count.frames)
	}
}

type counter struct{ frames, bytes int }

func (k *counter) Open(*Conn)          {}
func (k *counter) Closed(*Conn, error) {}
func (k *counter) Frame(_ *Conn, _ *dataplane.Header, _, payload []byte, _ *uring.Buf) {
	k.frames++
	k.bytes += len(payload)
}

// FuzzFrames feeds arbitrary bytes behind the handshake, in two different splits.
func FuzzFrames(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 1))
	p := openedAs(f, 1<<20, plain)
	for _, size := range []int{0, 100, 20000} {
		g := makeFrame(rng, dataplane.OpWrite, 512, size)
		p.d.Send(&g.h, g.crcs, g.payload)
	}
	f.Add(p.dc.out, uint16(7))
	f.Fuzz(func(t *testing.T, in []byte, chop uint16) {
		var results [2][]got
		var closed [2]bool
		for i, step := range []int{len(in) + 1, int(chop) + 1} {
			p := openedAs(t, 4<<20, plain)
			for rest := in; len(rest) > 0; {
				n := min(step, len(rest))
				p.ac.feed(rest[:n])
				rest = rest[n:]
			}
			closed[i] = p.ac.closed
			p.ac.end(io.EOF)
			results[i] = p.ah.frames
		}
		if closed[0] != closed[1] || !same(results[0], results[1]) {
			t.Fatalf("split matters: %d and %d frames, closed %v", len(results[0]),
				len(results[1]), closed)
		}
	})
}

// BenchmarkConn is a frame sent and received, without a kernel in between.
func BenchmarkConn(b *testing.B) {
	for protection, name := range []string{"plain", "tagged", "encrypted"} {
		for _, size := range []int{0, 4096, dataplane.PartSize} {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) { benchConn(b, protection, size) })
		}
	}
}

func benchConn(b *testing.B, protection, size int) {
	p := openedAs(b, 4<<20, protection)
	p.a.handler = &counter{}
	g := makeFrame(rand.New(rand.NewPCG(1, 1)), dataplane.OpWrite, 0, size)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		p.dc.out = p.dc.out[:0]
		p.d.Send(&g.h, g.crcs, g.payload)
		p.ac.feed(p.dc.out)
	}
}
