package uring

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// The life of sent bytes:
//  1. Append and Reserve write into the last chunk of the stream, AppendBuf refers to a buffer:
//     both make segments at the end of the queue.
//  2. flush (end of a turn) submits one SEND or SENDMSG over the first segments.
//  3. completeSend takes the sent bytes off the front and releases their buffers. New bytes may
//     have been appended meanwhile, also to the last segment: the queue counts bytes, so nothing
//     in flight is disturbed.

const (
	// sendChunk is the size of the pieces that small writes are collected in, in bytes.
	sendChunk = 16 << 10
	// maxSend bounds one send, in bytes, so that buffers come back while more is sent.
	maxSend = 1 << 20
)

// sendRec is the message header of a send in flight and its iovecs: just under a page.
type sendRec struct {
	hdr unix.Msghdr
	iov [252]unix.Iovec
}

// segment is a piece of the outgoing stream. Each segment holds a reference of its buffer.
type segment struct {
	buf      *Buf
	from, to int
	relay    *relay // instead of buf: these bytes come from another connection
}

// sendQueue is the outgoing stream: a ring of segments.
type sendQueue struct {
	segs    []segment // length is a power of two
	head, n int
	queued  int  // bytes
	chunk   *Buf // where small writes go; its last segment holds the reference
	fill    int  // bytes of chunk used
	sending bool
	rec     *sendRec
}

func (q *sendQueue) at(i int) *segment { return &q.segs[(q.head+i)&(len(q.segs)-1)] }

func (q *sendQueue) push(s segment) {
	if q.n == len(q.segs) {
		bigger := make([]segment, max(16, 2*len(q.segs)))
		for i := range q.n {
			bigger[i] = *q.at(i)
		}
		q.segs, q.head = bigger, 0
	}
	*q.at(q.n) = s
	q.n++
}

// extend returns n more bytes of the stream to be written at once, all in one chunk.
func (q *sendQueue) extend(l *Loop, n int) []byte {
	if q.chunk == nil || q.fill+n > len(q.chunk.mem) {
		q.chunk, q.fill = l.mem.get(sendChunk), 0
		q.push(segment{buf: q.chunk})
	}
	last := q.at(q.n - 1)
	if last.buf != q.chunk || last.to != q.fill {
		q.chunk.Retain()
		q.push(segment{buf: q.chunk, from: q.fill, to: q.fill})
		last = q.at(q.n - 1)
	}
	p := q.chunk.mem[q.fill : q.fill+n : q.fill+n]
	q.fill += n
	last.to += n
	q.queued += n
	return p
}

// pop takes n sent bytes off the front.
func (q *sendQueue) pop(n int) { q.drop(n, false) }

// drop takes n bytes off the front: sent, or lost with the connection.
func (q *sendQueue) drop(n int, lost bool) {
	q.queued -= n
	for q.n > 0 {
		s := q.at(0)
		k := min(n, s.to-s.from)
		s.from += k
		n -= k
		r, sent, buf, whole := s.relay, s.from, s.buf, s.from == s.to
		if whole {
			if r == nil && buf == q.chunk && s.to == q.fill {
				q.chunk = nil // it is sent to its end: begin a new one
			}
			*s = segment{}
			q.head = (q.head + 1) & (len(q.segs) - 1)
			q.n--
		}
		if r != nil && k > 0 {
			r.taken(sent, lost)
		}
		if !whole {
			break
		}
		if buf != nil {
			buf.Release()
		}
	}
	if n != 0 || q.queued < 0 {
		panic(fmt.Sprintf("uring: %d bytes sent that weren't queued (queued %d)", n, q.queued))
	}
}

func (q *sendQueue) release(l *Loop) {
	q.drop(q.queued, true)
	if q.rec != nil {
		l.sends.put(q.rec)
		q.rec = nil
	}
}

// Queued implements Conn.
func (c *conn) Queued() int { return c.out.queued }

// Append implements Conn.
func (c *conn) Append(p []byte) {
	if c.closing {
		return
	}
	for len(p) > 0 {
		// Fill the chunk to its end before taking a new one.
		n := min(len(p), sendChunk)
		if c.out.chunk != nil && c.out.fill < len(c.out.chunk.mem) {
			n = min(len(p), len(c.out.chunk.mem)-c.out.fill)
		}
		copy(c.out.extend(c.l, n), p)
		p = p[n:]
	}
	c.touch()
}

// Reserve implements Conn.
func (c *conn) Reserve(n int) []byte {
	if n < 0 || n > MaxReserve {
		panic(fmt.Sprintf("uring: Reserve of %d bytes", n))
	}
	if c.closing || n == 0 {
		return make([]byte, n) // goes nowhere
	}
	c.touch()
	return c.out.extend(c.l, n)
}

// AppendBuf implements Conn.
func (c *conn) AppendBuf(b *Buf, from, to int) {
	if from < 0 || to < from || to > len(b.mem) {
		panic(fmt.Sprintf("uring: AppendBuf of [%d, %d) out of %d bytes", from, to, len(b.mem)))
	}
	if c.closing || from == to {
		return
	}
	b.Retain()
	c.out.push(segment{buf: b, from: from, to: to})
	c.out.queued += to - from
	c.touch()
}

// armSend submits the front of the queue.
func (c *conn) armSend() {
	for c.out.n > 0 && c.out.at(0).relay != nil {
		if !c.sendRelay(c.out.at(0).relay) {
			return
		}
	}
	if c.out.queued == 0 {
		return
	}
	s := c.l.sqe()
	if s == nil {
		c.touch()
		return
	}
	const flags = unix.MSG_NOSIGNAL | unix.MSG_WAITALL
	q := &c.out
	if first := q.at(0); q.n == 1 || first.to-first.from >= maxSend {
		n := min(first.to-first.from, maxSend)
		PrepSend(s, c.file, addrOf(first.buf.mem[first.from:]), uint32(n), flags)
	} else {
		if q.rec == nil {
			q.rec = c.l.sends.get()
		}
		PrepSendmsg(s, c.file, q.fillRec(), flags)
	}
	c.l.start(s, c, tagSend)
	q.sending = true
}

// fillRec makes a message of the first segments.
func (q *sendQueue) fillRec() *unix.Msghdr {
	r := q.rec
	total, k := 0, 0
	for k < len(r.iov) && k < q.n && total < maxSend && q.at(k).relay == nil {
		s := q.at(k)
		r.iov[k].Base = &s.buf.mem[s.from]
		r.iov[k].Len = uint64(s.to - s.from)
		total += s.to - s.from
		k++
	}
	r.hdr = unix.Msghdr{Iov: &r.iov[0]}
	r.hdr.Iovlen = uint64(k)
	return &r.hdr
}

func (c *conn) completeSend(res int32) {
	q := &c.out
	q.sending = false
	if c.closing {
		c.finishClose()
		return
	}
	switch {
	case res == -int32(unix.EINTR) || res == -int32(unix.EAGAIN) || res == -int32(unix.ENOBUFS):
	case res < 0:
		c.Close(fmt.Errorf("send to %s: %w", c.remote, unix.Errno(-res)))
		return
	default:
		q.pop(int(res))
	}
	if q.queued > 0 {
		c.touch()
		return
	}
	if q.rec != nil {
		c.l.sends.put(q.rec)
		q.rec = nil
	}
}
