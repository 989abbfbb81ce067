package session

import (
	"pstorage/dataplane"
	"pstorage/uring"
)

// Relayer is a FrameHandler that may pass large payloads on to another connection while they
// arrive (uring.Relayer), before anything of them could be checked: the next one checks them, as
// everybody does. Payloads must look the same on both connections: with encryption PassOn refuses.
type Relayer interface {
	// Relay is called when a frame's header and checksums have arrived and rest bytes of its payload
	// have not. It may call c.PassOn, once. Frame is called later, in any case, unless the
	// connection ends before.
	Relay(c *Conn, h *dataplane.Header, crcs []byte, rest int)
}

// passing is the frame that Relay is asked about.
type passing struct {
	now        bool // inside Relay
	buf        *uring.Buf
	crcs       []byte
	have, size int
}

// PassOn sends the frame that Relay is asked about over another connection of the same loop, with
// the header h. The payload follows as it arrives; if it doesn't in full, next is closed. False:
// that isn't possible now, and nothing was sent.
func (c *Conn) PassOn(next *Conn, h *dataplane.Header) bool {
	p := &c.passing
	if !p.now {
		panic("session: PassOn outside of Relay")
	}
	from, ok := c.conn.(uring.Relayer)
	if !ok || next.state != connOpen || c.state != connOpen || !from.CanRelay(next.conn) ||
		next.sealed != nil || c.sealed != nil {
		return false
	}
	p.now = false
	next.sendHeader(h, p.crcs, p.size)
	if p.have > 0 {
		next.conn.AppendBuf(p.buf, 0, p.have)
	}
	from.Relay(next.conn, p.buf, p.have, p.size)
	return true
}

// offer asks the handler whether it wants to pass on the frame that is being received into direct.
func (c *Conn) offer(have, size int) {
	r, ok := c.handler.(Relayer)
	if !ok {
		return
	}
	c.passing = passing{now: true, buf: c.direct, crcs: c.crcs[:c.header.CRCBytes()], have: have,
		size: size}
	r.Relay(c, &c.header, c.passing.crcs, size-have)
	c.passing = passing{}
}
