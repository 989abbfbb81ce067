package uring

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// A relay passes on a piece of what one connection receives as a piece of what another one sends,
// without a copy of its own in this program, and gives it to the receiver's handler as well:
//
//	           splice          read
//	src socket -----> pipe a ---------> memory (the handler's into)
//	                    | tee
//	                    v    splice
//	                  pipe b -----> dst socket
//
// All of it is system calls that don't block, on the loop's thread; the ring only says when a
// socket is ready. (SPLICE and TEE of io_uring always go to threads of the kernel, which costs
// more than it saves: pstorage-perf relay.)
//
// dst's queue has a segment for the relay, so what is queued before and after keeps its place. The
// piece is sent as it arrives. If src ends in the middle, dst can't be sent the rest: it is closed.
// If dst ends, src goes on receiving. If the pipes can't hold what came (many tiny segments), or a
// call is refused, the rest is received as usual and sent from memory.

// Relayer is a Conn that may be able to relay.
type Relayer interface {
	// CanRelay says whether Relay may be called now.
	CanRelay(dst Conn) bool
	// Relay is called by a handler inside Recv, which then returns b.Bytes()[from:to] as into. What
	// is received into it becomes the next bytes of dst's stream, too, a connection of the same
	// loop. The connections retain b.
	Relay(dst Conn, b *Buf, from, to int)
}

var _ Relayer = (*conn)(nil)

const (
	maxRelays     = 32        // of a loop at a time: four file descriptors each
	relayPipeSize = 256 << 10 // bytes; the kernel counts pages
)

// relay is one piece under way.
type relay struct {
	l        *Loop
	src, dst *conn // nil: that side is done with it
	buf      *Buf
	from, n  int
	got      int  // bytes in memory
	piped    int  // of them, through pipe b; the others are sent from memory
	sent     int  // by dst
	copying  bool // nothing goes through pipe b any more
	a, b     [2]int
}

// relayPool keeps the pipes of relays that have ended.
type relayPool struct {
	free []*relay
	made int
	off  bool // pipes can't be had

	piped, copied uint64 // bytes that dsts have sent, by way
}

// ready makes sure that there is a relay with empty pipes, if possible.
func (p *relayPool) ready(l *Loop) bool {
	if len(p.free) > 0 {
		return true
	}
	if p.off || p.made == maxRelays {
		return false
	}
	r := &relay{l: l, a: [2]int{-1, -1}, b: [2]int{-1, -1}}
	for _, pipe := range []*[2]int{&r.a, &r.b} {
		err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK)
		if err == nil {
			_, err = unix.FcntlInt(uintptr(pipe[0]), unix.F_SETPIPE_SZ, relayPipeSize)
		}
		if err != nil {
			l.log.Warn("no pipes for relaying; data is copied instead", "error", err)
			p.off = true
			r.closePipes()
			return false
		}
	}
	p.made++
	p.free = append(p.free, r)
	return true
}

func (r *relay) closePipes() {
	for _, fd := range []int{r.a[0], r.a[1], r.b[0], r.b[1]} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// close closes the pipes of all relays that have ended.
func (p *relayPool) close() {
	for _, r := range p.free {
		r.closePipes()
	}
	p.free = nil
}

// CanRelay implements Relayer.
func (c *conn) CanRelay(dst Conn) bool {
	d, ok := dst.(*conn)
	return ok && d.l == c.l && d != c && !d.closing && !c.closing && c.relay == nil &&
		c.l.relays.ready(c.l)
}

// Relay implements Relayer.
func (c *conn) Relay(dst Conn, b *Buf, from, to int) {
	if from < 0 || from >= to || to > len(b.mem) || !c.CanRelay(dst) {
		panic(fmt.Sprintf("uring: Relay of [%d, %d) out of %d bytes from %s to %s", from, to, len(b.mem),
			c.remote, dst.RemoteAddr()))
	}
	p, d := &c.l.relays, dst.(*conn)
	r := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	b.Retain()
	r.src, r.dst, r.buf, r.from, r.n = c, d, b, from, to-from
	r.got, r.piped, r.sent, r.copying = 0, 0, 0, false
	c.relay = r
	d.out.push(segment{relay: r, to: r.n})
	d.out.queued += r.n
	d.touch()
}

// ended puts the relay away when both sides are done with it.
func (r *relay) ended() {
	if r.src != nil || r.dst != nil {
		return
	}
	r.buf.Release()
	r.buf = nil
	if r.sent >= r.piped {
		r.l.relays.free = append(r.l.relays.free, r)
		return
	}
	r.closePipes() // bytes are left in it
	r.l.relays.made--
}

// received is called when more of the piece is in memory.
func (r *relay) received(got int) {
	r.got = got
	if r.dst != nil && !r.dst.closing {
		r.dst.touch()
	}
	if r.got == r.n {
		r.src.relay, r.src = nil, nil
		r.ended()
	}
}

// sourceLost: the rest of the piece never comes.
func (r *relay) sourceLost(err error) {
	d := r.dst
	r.src.relay, r.src = nil, nil
	if d != nil {
		d.Close(fmt.Errorf("what was being passed on to %s was cut off: %w", d.remote, err))
	}
	r.ended()
}

// taken is called when dst has sent k bytes more, or has given them up.
func (r *relay) taken(sent int, lost bool) {
	if !lost {
		r.l.relays.piped += uint64(min(sent, r.piped) - min(r.sent, r.piped))
		r.l.relays.copied += uint64(max(sent, r.piped) - max(r.sent, r.piped))
	}
	if r.sent = sent; r.sent < r.n && !lost {
		return
	}
	if lost {
		r.sent, r.copying = 0, true // what is left in pipe b goes nowhere
	}
	r.dst = nil
	r.ended()
}

// armRelay waits until src has something to receive.
func (c *conn) armRelay() {
	s := c.l.sqe()
	if s == nil {
		c.touch()
		return
	}
	PrepPoll(s, c.file, unix.POLLIN)
	c.l.start(s, c, tagRelayIn)
	c.receiving = true
}

// relayIn is the completion of armRelay: it takes what is there.
func (c *conn) relayIn() {
	c.receiving = false
	if c.closing {
		c.finishClose()
		return
	}
	c.touch()
	r := c.relay
	for c.relay == r && !r.copying {
		k, err := r.pull(int(c.file.fd))
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			return
		case err != nil:
			c.Close(err)
			return
		case k > 0:
			c.got += k
			r.received(c.got)
		}
	}
	if c.got == len(c.into) {
		c.intoDone, c.fresh = true, true
		c.deliver()
	}
}

// pull moves what is there of the piece. 0 bytes and no error: the rest has to be copied.
func (r *relay) pull(fd int) (int, error) {
	if r.dst == nil || r.dst.closing {
		r.copying = true
		return 0, nil
	}
	k, err := spliceNow(fd, fd, r.a[1], r.n-r.got)
	switch {
	case err == unix.EINVAL || err == unix.ENOMEM: // not this kind of socket, no memory for it
		r.copying = true
		return 0, nil
	case err != nil:
		return 0, err
	case k == 0:
		return 0, io.ErrUnexpectedEOF
	}
	doubled, err := unix.Tee(r.a[0], r.b[1], k, unix.SPLICE_F_NONBLOCK)
	if err != nil {
		doubled = 0 // pipe b is full
	}
	r.piped += int(doubled)
	r.copying = int(doubled) < k
	for p := r.buf.mem[r.from+r.got : r.from+r.got+k]; len(p) > 0; {
		n, err := unix.Read(r.a[0], p)
		if err != nil || n == 0 {
			return 0, errors.Join(err, errors.New("a pipe lost what was put into it"))
		}
		p = p[n:]
	}
	return k, nil
}

// sendRelay sends what is there of the piece at the front of the queue, and says whether it was
// sent as a whole.
func (c *conn) sendRelay(r *relay) bool {
	for r.sent < r.piped {
		k, err := spliceNow(int(c.file.fd), r.b[0], int(c.file.fd), r.piped-r.sent)
		switch {
		case err == unix.EAGAIN:
			c.armWritable()
			return false
		case err == unix.EINTR:
		case err != nil:
			c.Close(fmt.Errorf("send to %s: %w", c.remote, err))
			return false
		default:
			whole := r.sent+k == r.n
			c.out.pop(k)
			if whole {
				return true
			}
		}
	}
	if r.copying && r.sent < r.got {
		s := c.l.sqe()
		if s == nil {
			c.touch()
			return false
		}
		p := r.buf.mem[r.from+r.sent : r.from+r.got]
		PrepSend(s, c.file, addrOf(p), uint32(len(p)), unix.MSG_NOSIGNAL|unix.MSG_WAITALL)
		c.l.start(s, c, tagSend)
		c.out.sending = true
	}
	return false
}

// spliceNow moves bytes between a pipe and a socket, in either direction, without waiting. The flag
// of splice is for the pipe only (TCP waits for data and for room all the same), so the socket is
// made one that doesn't block, for the moment.
func spliceNow(socket, from, to, n int) (int, error) {
	_, err := unix.FcntlInt(uintptr(socket), unix.F_SETFL, unix.O_RDWR|unix.O_NONBLOCK)
	if err != nil {
		return 0, err
	}
	k, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
	if _, e := unix.FcntlInt(uintptr(socket), unix.F_SETFL, unix.O_RDWR); e != nil && err == nil {
		err = e
	}
	return int(k), err
}

// armWritable waits until dst takes more.
func (c *conn) armWritable() {
	s := c.l.sqe()
	if s == nil {
		c.touch()
		return
	}
	PrepPoll(s, c.file, unix.POLLOUT)
	c.l.start(s, c, tagRelayOut)
	c.out.sending = true
}

// relayOut is the completion of armWritable.
func (c *conn) relayOut() {
	c.out.sending = false
	if c.closing {
		c.finishClose()
		return
	}
	c.touch()
}
