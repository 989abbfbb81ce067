package simloop

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"pstorage/uring"
)

// Conn is one end of a simulated stream. It implements uring.Conn.
type Conn struct {
	net     *Net
	node    *Node
	peer    *Conn
	remote  string
	handler uring.ConnHandler // nil until attached

	out     []piece // queued by the user
	queued  int
	flusher uring.TurnEnder

	wire    []segment // on the way to this end, in order
	last    int64     // arrival of the wire's last segment
	credit  int       // bytes on the way to this end or unread here
	in      []byte    // arrived, not consumed: the end of inMem
	inMem   []byte
	offered int    // length of in that Recv left unconsumed: it is called again with more
	into    []byte // being filled, see uring.ConnHandler
	got     int
	paused  bool
	feeding bool
	end     error // the peer's end was reached, once all of in was offered
	closed  bool

	// What happens to it again and again, so that not every event allocates.
	arrived, fed, flushed doer
}

var _ uring.Conn = (*Conn)(nil)

// piece is a part of the outgoing stream.
type piece struct {
	data []byte
	all  []byte     // memory of the net, of which data is what isn't sent yet; or nil
	buf  *uring.Buf // whose memory data is, or nil
	sum  uint64     // of data when queued, if buf isn't nil
}

type segment struct {
	at    int64
	data  []byte
	fin   bool
	reset bool
}

// errGreedy is why a connection of a broken handler is closed.
var errGreedy = errors.New("handler consumed nothing of a full receive window")

// Append implements uring.Conn.
func (c *Conn) Append(p []byte) { copy(c.reserve(len(p)), p) }

// Reserve implements uring.Conn.
func (c *Conn) Reserve(n int) []byte {
	if n > uring.MaxReserve {
		panic(fmt.Sprintf("simloop: Reserve of %d bytes", n))
	}
	return c.reserve(n)
}

func (c *Conn) reserve(n int) []byte {
	b := c.net.mem.Get(n)
	c.add(piece{data: b, all: b})
	return b
}

// AppendBuf implements uring.Conn.
func (c *Conn) AppendBuf(b *uring.Buf, from, to int) {
	if c.closed {
		return
	}
	b.Retain()
	data := b.Bytes()[from:to]
	c.add(piece{data: data, buf: b, sum: digest(0, data)})
}

func (c *Conn) add(p piece) {
	if c.closed || len(p.data) == 0 {
		if p.buf != nil {
			p.buf.Release()
		}
		return
	}
	c.out = append(c.out, p)
	c.queued += len(p.data)
	c.node.env.AtTurnEnd(&c.flusher)
}

// Queued implements uring.Conn.
func (c *Conn) Queued() int { return c.queued }

// RemoteAddr implements uring.Conn.
func (c *Conn) RemoteAddr() string { return c.remote }

// Close implements uring.Conn. The peer gets what was sent before, then sees the end; sometimes a
// reset, as when bytes arrive at a closed socket.
func (c *Conn) Close(err error) {
	if c.closed {
		return
	}
	if len(c.in) > 0 || len(c.wire) > 0 || c.net.rng.IntN(4) == 0 {
		c.peer.send(segment{reset: true})
	} else {
		c.peer.send(segment{fin: true})
	}
	c.shut(err)
}

// fail ends the connection on both sides.
func (c *Conn) fail(err error) {
	if !c.closed {
		c.peer.send(segment{reset: true})
		c.shut(err)
	}
}

// shut ends this side: the handler is told later.
func (c *Conn) shut(err error) {
	c.closed = true
	for _, p := range c.out {
		if p.buf != nil {
			p.buf.Release()
		}
	}
	c.net.mem.Put(c.inMem)
	c.out, c.queued, c.wire, c.in, c.inMem, c.into = nil, 0, nil, nil, nil, nil
	c.net.drop(c)
	c.node.env.Post(func() {
		if c.handler != nil {
			c.handler.Closed(err)
		}
	})
}

// PauseRecv implements uring.Conn.
func (c *Conn) PauseRecv(pause bool) {
	if c.paused && !pause {
		c.offered = 0 // what it left because of the pause it takes now, also if no more comes
		c.net.sim.push(c.net.sim.now, c.node.env, c.fed)
	}
	c.paused = pause
}

// flush moves queued bytes to the wire as far as the peer's socket has room: at the turn's end.
func (c *Conn) flush() {
	for len(c.out) > 0 && !c.closed && c.peer.credit < sockBuf {
		p := &c.out[0]
		if p.buf != nil && digest(0, p.data) != p.sum {
			panic("simloop: memory given to AppendBuf changed before it was sent")
		}
		n := min(len(p.data), sockBuf-c.peer.credit)
		if c.net.rng.IntN(4) == 0 {
			n = 1 + c.net.rng.IntN(n) // streams come in any pieces
		}
		data := p.all
		if len(p.all) != n { // otherwise all of it goes, memory too
			data = c.net.mem.Get(n)
			copy(data, p.data)
		} else {
			p.all = nil
		}
		c.peer.send(segment{data: data})
		c.queued -= n
		p.data = p.data[n:]
		if p.buf != nil && len(p.data) > 0 {
			p.sum = digest(0, p.data)
		}
		if len(p.data) == 0 {
			if p.buf != nil {
				p.buf.Release()
			}
			c.net.mem.Put(p.all)
			c.out = c.out[1:]
		}
	}
}

// send puts s on the way to this end.
func (c *Conn) send(s segment) {
	if c.closed {
		return
	}
	s.at = max(c.last, c.net.sim.now+c.net.delay(len(s.data))+
		c.net.extra(c.peer.node.ip, c.node.ip))
	c.last = s.at
	c.credit += len(s.data)
	c.wire = append(c.wire, s)
	c.net.sim.push(s.at, c.node.env, c.arrived)
}

// arrive takes from the wire what is due, unless the way is cut.
func (c *Conn) arrive() {
	for len(c.wire) > 0 && c.wire[0].at <= c.net.sim.now && !c.closed {
		if c.net.isCut(c.peer.node.ip, c.node.ip) {
			return
		}
		s := c.wire[0]
		c.wire = c.wire[1:]
		c.net.sim.Note(uint64(len(s.data)))
		switch {
		case s.reset:
			c.shut(syscall.ECONNRESET)
			return
		case s.fin:
			c.end = io.EOF
		default:
			c.take(s.data)
		}
	}
	c.feed()
}

// take adds to what has arrived.
func (c *Conn) take(data []byte) {
	switch {
	case len(c.in) == 0:
		c.net.mem.Put(c.inMem)
		c.in, c.inMem = data, data
		return
	case len(c.in)+len(data) <= cap(c.in):
	case len(c.in)+len(data) <= cap(c.inMem):
		c.in = c.inMem[:copy(c.inMem[:cap(c.inMem)], c.in)]
	default:
		old := c.inMem
		c.inMem = c.net.mem.Get(max(2*cap(old), len(c.in)+len(data)))
		c.in = c.inMem[:copy(c.inMem, c.in)]
		c.net.mem.Put(old)
	}
	c.in = append(c.in, data...)
	c.net.mem.Put(data)
}

// feed gives the handler what it is due.
func (c *Conn) feed() {
	if c.feeding || c.handler == nil {
		return
	}
	c.feeding = true
	before := c.credit
	for !c.closed && !c.paused && c.feedOnce() {
	}
	c.feeding = false
	if c.credit < before && !c.peer.closed {
		peer := c.peer // window update
		c.net.sim.push(c.net.sim.now+c.net.delay(0), peer.node.env, peer.flushed)
	}
	if !c.closed && !c.paused && c.end != nil {
		c.shut(c.end)
	}
}

// feedOnce makes one call of the handler and says whether there may be another one.
func (c *Conn) feedOnce() bool {
	if c.into != nil {
		n := copy(c.into[c.got:], c.in)
		c.in, c.got, c.credit = c.in[n:], c.got+n, c.credit-n
		if c.got < len(c.into) {
			return false
		}
		c.into = nil
		c.handler.RecvDone()
		return true
	}
	give := min(len(c.in), uring.RecvWindow)
	if give <= c.offered {
		return false
	}
	mem, in := c.inMem, c.in
	c.inMem = nil // lent: closing the connection doesn't free it
	n, into := c.handler.Recv(in[:give:give])
	spoil(in[:min(max(n, 0), give)]) // valid only during the call
	if c.closed {
		c.net.mem.Put(mem)
		return false
	}
	c.inMem = mem
	if n < 0 || n > give || into != nil && (n != give || len(into) == 0) {
		panic(fmt.Sprintf("simloop: Recv consumed %d of %d and wants %d bytes", n, give, len(into)))
	}
	c.in, c.credit, c.offered = c.in[n:], c.credit-n, give-n
	if n == 0 && give == uring.RecvWindow && !c.paused {
		c.Close(errGreedy)
		return false
	}
	if into != nil {
		c.into, c.got, c.offered = into, 0, 0
	}
	return true
}

// newConn returns one end of a stream; its peer is still to be set.
func newConn(n *Net, node *Node, remote string) *Conn {
	c := &Conn{net: n, node: node, remote: remote}
	c.arrived, c.fed, c.flushed = doFunc(c.arrive), doFunc(c.feed), doFunc(c.flush)
	c.flusher.TurnEnd = c.flush
	return c
}
