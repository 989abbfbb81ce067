package uring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand"
	"net"
	"testing"
	"time"
)

// relayWorld is a loop between a source and a sink, which are ordinary sockets. What the source
// sends are pieces, each after its length in 4 bytes; the sink gets the length, the piece, and
// "tail", which is queued while the piece is still under way.
type relayWorld struct {
	t      *testing.T
	l      *Loop
	source net.Conn
	sink   net.Conn
	dst    *peer
	srcEnd chan error
	dstEnd chan error
	seen   chan []byte // pieces as the handler got them
	held   *Buf        // of the piece under way
}

const relayTail = "tail"

func newRelayWorld(t *testing.T) *relayWorld {
	w := &relayWorld{t: t, l: startLoop(t, LoopOptions{PoolSize: 512 << 20}),
		srcEnd: make(chan error, 1), dstEnd: make(chan error, 1), seen: make(chan []byte, 10000)}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	w.dst = dialTo(t, w.l, listener.Addr().String(),
		&peer{closed: func(err error) { w.dstEnd <- err }})
	if w.sink, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.sink.Close() })
	addr := listen(t, w.l, w.attach)
	if w.source, err = net.Dial("tcp", addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.source.Close() })
	return w
}

// attach makes the handler of the connection from the source.
func (w *relayWorld) attach(c Conn) ConnHandler {
	p := &peer{c: c}
	var buf *Buf
	size := 0
	p.recv = func(b []byte) (int, []byte) {
		if len(b) < 4 {
			return 0, nil
		}
		size = int(binary.LittleEndian.Uint32(b))
		buf = w.l.Pool().Get(max(size, 1))
		if buf == nil {
			panic("the pool is empty")
		}
		w.held = buf
		w.dst.c.Append(b[:4])
		have := copy(buf.Bytes()[:size], b[4:])
		w.dst.c.AppendBuf(buf, 0, have)
		rest := buf.Bytes()[have:size]
		if len(rest) == 0 {
			p.recvDone()
			return 4 + have, nil
		}
		if relayer := c.(Relayer); relayer.CanRelay(w.dst.c) {
			relayer.Relay(w.dst.c, buf, have, size)
			w.dst.c.Append([]byte(relayTail))
			p.recvDone = func() { w.pieceDone(buf, size) }
		} else {
			p.recvDone = func() {
				w.dst.c.AppendBuf(buf, have, size)
				w.dst.c.Append([]byte(relayTail))
				w.pieceDone(buf, size)
			}
		}
		return 4 + have, rest
	}
	p.recvDone = func() {
		w.dst.c.Append([]byte(relayTail))
		w.pieceDone(buf, size)
	}
	one, whole := p.recv, p.recvDone
	p.recv = func(b []byte) (n int, into []byte) {
		for {
			p.recvDone = whole
			k, into := one(b[n:])
			if n += k; k == 0 || into != nil {
				return n, into
			}
		}
	}
	p.closed = func(err error) {
		if w.held != nil {
			w.held.Release()
			w.held = nil
		}
		w.srcEnd <- err
	}
	return p
}

func (w *relayWorld) pieceDone(buf *Buf, size int) {
	w.held = nil
	w.seen <- bytes.Clone(buf.Bytes()[:size])
	buf.Release()
}

// message is a piece as the source sends it.
func message(p []byte) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(p))), p...)
}

// expect reads a piece at the sink.
func (w *relayWorld) expect(want []byte) {
	w.t.Helper()
	w.sink.SetReadDeadline(time.Now().Add(20 * time.Second))
	got := make([]byte, 4+len(want)+len(relayTail))
	if n, err := io.ReadFull(w.sink, got); err != nil {
		w.t.Fatalf("the sink got %d of %d bytes: %v", n, len(got), err)
	}
	if !bytes.Equal(got, append(message(want), relayTail...)) {
		w.t.Fatalf("the sink got something else than the piece of %d bytes", len(want))
	}
	if p := await(w.t, w.seen, "piece at the handler"); !bytes.Equal(p, want) {
		w.t.Fatalf("the handler got %d bytes that aren't the piece of %d", len(p), len(want))
	}
}

func randomPiece(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	rng.Read(p)
	return p
}

// TestRelay: pieces of all sizes, sent in portions of all sizes, come through whole and in order,
// at the sink and at the handler.
func TestRelay(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Log("seed", seed)
	rng := rand.New(rand.NewSource(seed))
	w := newRelayWorld(t)
	var pieces [][]byte
	for range 300 {
		pieces = append(pieces, randomPiece(rng, rng.Intn(1<<(1+rng.Intn(17)))))
	}
	go func() {
		var stream []byte
		for _, p := range pieces {
			stream = append(stream, message(p)...)
		}
		r := rand.New(rand.NewSource(seed + 1))
		for len(stream) > 0 {
			n := min(len(stream), 1+r.Intn(1<<(1+r.Intn(18))))
			if _, err := w.source.Write(stream[:n]); err != nil {
				return // the sink will miss something
			}
			stream = stream[n:]
			if r.Intn(20) == 0 {
				time.Sleep(time.Millisecond) // so that pieces arrive in parts
			}
		}
	}()
	for _, p := range pieces {
		w.expect(p)
	}
	if s := statsOf(t, w.l); s.RelayPiped == 0 {
		t.Error("nothing went through a pipe")
	} else {
		t.Logf("%d bytes through pipes, %d copied", s.RelayPiped, s.RelayCopied)
	}
}

// TestRelayTrickle: while the sink takes nothing, pieces in tiny segments fill the pipes: what
// doesn't fit is copied.
func TestRelayTrickle(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	w := newRelayWorld(t)
	var pieces [][]byte
	for range 200 { // more than all socket buffers and pipes hold
		pieces = append(pieces, randomPiece(rng, 100<<10))
	}
	go func() {
		for i, p := range pieces {
			m := message(p)
			step := len(m)
			if i >= len(pieces)-50 {
				step = 500
			}
			for len(m) > 0 {
				n := min(step, len(m))
				if _, err := w.source.Write(m[:n]); err != nil {
					return
				}
				m = m[n:]
			}
		}
	}()
	deadline := time.Now().Add(20 * time.Second)
	for len(w.seen) < 40 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond) // the sink reads nothing meanwhile
	}
	for _, p := range pieces {
		w.expect(p)
	}
	s := statsOf(t, w.l)
	t.Logf("%d bytes through pipes, %d copied", s.RelayPiped, s.RelayCopied)
	if s.RelayPiped == 0 {
		t.Error("nothing went through a pipe")
	}
}

// TestRelayWaits: the loop goes on with other work while the rest of a piece isn't there yet.
func TestRelayWaits(t *testing.T) {
	w := newRelayWorld(t)
	p := randomPiece(rand.New(rand.NewSource(1)), 400<<10)
	m := message(p)
	go func() {
		_, _ = w.source.Write(m[:4+200<<10]) // what is missing shows at the sink
	}()
	for end := time.Now().Add(20 * time.Second); statsOf(t, w.l).RelayPiped == 0; {
		if time.Now().After(end) {
			t.Fatal("nothing went through a pipe")
		}
		time.Sleep(time.Millisecond)
	}
	for range 20 { // until all that was sent has been taken, and after it
		time.Sleep(5 * time.Millisecond)
		statsOf(t, w.l)
	}
	go func() {
		_, _ = w.source.Write(m[4+200<<10:])
	}()
	w.expect(p)
}

// TestRelaySourceLost: a piece whose rest never comes ends the connection that it was for.
func TestRelaySourceLost(t *testing.T) {
	w := newRelayWorld(t)
	whole := []byte("a whole piece that goes first, larger than what one receive brings")
	m := append(message(whole), message(make([]byte, 100<<10))[:4+60<<10]...)
	if _, err := w.source.Write(m); err != nil {
		t.Fatal(err)
	}
	w.expect(whole)
	sent := make([]byte, 1000) // the piece is under way
	if _, err := io.ReadFull(w.sink, sent); err != nil {
		t.Fatal(err)
	}
	w.source.Close()
	if err := await(t, w.srcEnd, "end of the source"); err == nil {
		t.Error("no reason")
	}
	if err := await(t, w.dstEnd, "end of the next"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the next connection ended with %v", err)
	}
	w.sink.SetReadDeadline(time.Now().Add(20 * time.Second))
	rest, err := io.ReadAll(w.sink)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Fatal("the sink's connection isn't closed")
	}
	if bytes.Contains(rest, []byte(relayTail)) {
		t.Error("the frame behind the cut piece was sent")
	}
}

// TestRelaySinkLost: the handler gets its pieces though nobody takes what is passed on.
func TestRelaySinkLost(t *testing.T) {
	rng := rand.New(rand.NewSource(1))
	w := newRelayWorld(t)
	first := randomPiece(rng, 50<<10)
	if _, err := w.source.Write(message(first)); err != nil {
		t.Fatal(err)
	}
	w.expect(first)
	half := randomPiece(rng, 100<<10)
	m := message(half)
	if _, err := w.source.Write(m[:50<<10]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(w.sink, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	w.sink.Close()
	await(t, w.dstEnd, "end of the next")
	if _, err := w.source.Write(m[50<<10:]); err != nil {
		t.Fatal(err)
	}
	if p := await(t, w.seen, "the rest of the piece"); !bytes.Equal(p, half) {
		t.Error("the handler got something else")
	}
	after := randomPiece(rng, 70<<10)
	if _, err := w.source.Write(message(after)); err != nil {
		t.Fatal(err)
	}
	if p := await(t, w.seen, "the next piece"); !bytes.Equal(p, after) {
		t.Error("the handler got something else after the loss")
	}
}
