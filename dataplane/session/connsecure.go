package session

import (
	"encoding/binary"

	"pstorage/dataplane"
	"pstorage/uring"
)

// This file is how a Conn protects what it sends and checks what it receives, as the handshake has
// decided: see seal.go.

const headMax = dataplane.HeaderSize + 4*(dataplane.MaxControlPayload/dataplane.BlockSize)

// sealed is the state of an encrypted Conn.
type sealed struct {
	send, receive *direction
	plain         [headMax]byte // header and checksums that were received
	payload       bool          // they were, and the payload of Conn.header hasn't
	have          int           // bytes of it in Conn.direct
}

// tagged is the state of a Conn whose headers are authenticated.
type tagged struct {
	send, receive *direction
	head          [headMax]byte
}

// protect takes over what the handshake has agreed on.
func (c *Conn) protect(k *Handshake) {
	c.peer, c.session, c.keys = k.Peer(), k.SessionKey(), k.set
	switch {
	case c.peer.Secure:
		c.sealed = &sealed{}
		c.sealed.send, c.sealed.receive = directions(&c.session, k.dialer)
	case c.peer.Features&FeatureTag != 0:
		c.tagged = &tagged{}
		c.tagged.send, c.tagged.receive = directions(&c.session, k.dialer)
	}
}

// admitted asks the keys of now about the peer, and closes the connection if they refuse it.
func (c *Conn) admitted() bool {
	keys := c.ring.Load()
	if err := keys.admits(&c.peer); err != nil {
		c.bad(err)
		return false
	}
	c.keys = keys
	return true
}

// sign puts the tag into an encoded header, behind which its checksums lie.
func (t *tagged) sign(out []byte) {
	binary.LittleEndian.PutUint32(out[60:], 0)
	dataplane.PutTag(out, t.send.mac(out))
}

// check compares the tag of a decoded header with its bytes and checksums.
func (t *tagged) check(h *dataplane.Header, p []byte) bool {
	head := t.head[:copy(t.head[:], p)]
	binary.LittleEndian.PutUint64(head[48:], 0)
	binary.LittleEndian.PutUint32(head[60:], 0)
	tag := h.Tag
	h.Tag = 0 // it was for this connection only
	return tag == t.receive.mac(head)
}

// sealHeader queues the record of a header and its checksums.
func (c *Conn) sealHeader(h *dataplane.Header, crcs []byte) {
	n := dataplane.HeaderSize + len(crcs)
	out := c.conn.Reserve(recordHead + n + gcmTag)
	plain := out[recordHead : recordHead+n]
	h.Put(plain)
	copy(plain[dataplane.HeaderSize:], crcs)
	c.sealed.send.seal(out, plain)
}

// sealPayload queues the records of a payload: it is encrypted on its way to where it is sent from.
func (c *Conn) sealPayload(p []byte) {
	if c.state != connOpen {
		return
	}
	for len(p) > 0 {
		n := min(len(p), maxRecord)
		size := recordHead + n + gcmTag
		if size <= uring.MaxReserve {
			c.sealed.send.seal(c.conn.Reserve(size), p[:n])
		} else if b := c.pool.Get(size); b != nil {
			c.sealed.send.seal(b.Bytes()[:size], p[:n])
			c.conn.AppendBuf(b, 0, size)
			b.Release()
		} else {
			out := make([]byte, size) // what is sent is bounded by others
			c.sealed.send.seal(out, p[:n])
			c.conn.Append(out)
		}
		p = p[n:]
	}
}

// sealedFrame takes the next record. consumed is 0 if it isn't complete, or if the connection was
// closed or has to wait.
func (c *Conn) sealedFrame(p []byte) (consumed int) {
	if c.sealed.payload {
		return c.sealedPayload(p)
	}
	s, h := c.sealed, &c.header
	rec, err := cutRecord(p, dataplane.HeaderSize, headMax)
	if rec == nil {
		if err != nil {
			c.bad(err)
		}
		return 0
	}
	plain, err := s.receive.open(s.plain[:0], rec)
	if err == nil {
		if err = h.Decode(plain); err == nil && h.Tag != 0 {
			err = errTagged
		}
	}
	if err == nil && len(plain) != dataplane.HeaderSize+h.CRCBytes() {
		err = errRecord
	}
	if err != nil {
		return c.bad(err)
	}
	if h.DataBytes() > 0 {
		s.payload, s.have = true, 0
		return len(rec)
	}
	c.handler.Frame(c, h, nil, nil, nil)
	return len(rec)
}

// sealedPayload takes a record of the payload of c.header: a small one is decrypted where it lies,
// a large one into a buffer of its own.
func (c *Conn) sealedPayload(p []byte) (consumed int) {
	s, h := c.sealed, &c.header
	size := h.DataBytes()
	least := min(size-s.have, maxRecord)
	rec, err := cutRecord(p, least, least)
	if rec == nil {
		if err != nil {
			c.bad(err)
		}
		return 0
	}
	crcs := s.plain[dataplane.HeaderSize : dataplane.HeaderSize+h.CRCBytes()]
	if size < DirectSize {
		plain, err := s.receive.open(rec[recordHead:recordHead], rec)
		if err != nil {
			return c.bad(err)
		}
		s.payload = false
		c.handler.Frame(c, h, crcs, plain[:size:size], nil)
		return len(rec)
	}
	if c.direct == nil && !c.directBuf(size) {
		return 0
	}
	if _, err := s.receive.open(c.direct.Bytes()[s.have:s.have], rec); err != nil {
		return c.bad(err)
	}
	if s.have += least; s.have == size {
		s.payload = false
		copy(c.crcs[:], crcs)
		c.deliverDirect()
	}
	return len(rec)
}
