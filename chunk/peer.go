package chunk

import (
	"errors"
	"fmt"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
	"pstorage/uring"
)

// peer is another chunk server and our connection to it, over which we ask and it answers. (What
// it asks comes over the connection that it made to us.)
type peer struct {
	sh      *Shard
	cs      dataplane.CSID
	addr    string
	c       *session.Conn // nil: not connected
	open    bool
	dialing bool
	gen     uint32 // counts connections
	backoff int64
	tries   int // attempts since it was connected last
	redial  uring.Timer
	heard   int64 // when it said something last
	gauge   peerGauge
	calls   []*call // not answered yet; those before the connection is open are unsent
	err     error   // why there is no connection
}

// call is one request of a coordinator or a repair to a peer.
type call struct {
	p       *peer
	id      uint64
	h       dataplane.Header
	crcs    []byte
	payload []byte
	sent    bool
	timer   uring.Timer
	// done gets the answer; crcs and payload are valid during the call. err: none came.
	done func(h *dataplane.Header, crcs, payload []byte, buf *uring.Buf, err error)
}

// Request ids: replicated writes have the slab's index and a count; calls have the top bit.
const (
	callBit     = 1 << 63
	callGenMask = 1<<31 - 1
)

// peer returns the peer cs, known to be at addr now; empty: where it was.
func (sh *Shard) peer(cs dataplane.CSID, addr string) *peer {
	p := sh.peers[cs]
	if p == nil {
		p = &peer{sh: sh, cs: cs, addr: addr, backoff: int64(redialFirst)}
		p.redial.Fire = p.dial
		sh.peers[cs] = p
		sh.peerList = append(sh.peerList, p)
	}
	if addr != "" && p.addr != addr {
		p.addr = addr
		p.backoff, p.tries = int64(redialFirst), 0
		if p.open {
			p.c.Close(dataplane.E(p.String(), dataplane.Closed, errors.New("it moved to "+addr)))
		}
	}
	return p
}

func (p *peer) String() string { return fmt.Sprintf("cs %d at %s", p.cs, p.addr) }

// send queues a frame that needs no call: replication and commit marks. If the connection is lost
// the chunk is settled, so frames that can't be sent are dropped.
func (p *peer) send(h *dataplane.Header, crcs, payload []byte, buf *uring.Buf) {
	if !p.open {
		return
	}
	if buf != nil && len(payload) >= session.DirectSize {
		p.c.SendBuf(h, crcs, buf, 0, len(payload))
		return
	}
	p.c.Send(h, crcs, payload)
}

// call asks the peer; done is called later, once.
func (p *peer) call(h dataplane.Header, crcs, payload []byte,
	done func(*dataplane.Header, []byte, []byte, *uring.Buf, error)) {
	p.callWithin(settleTimeout, h, crcs, payload, done)
}

// callBuf is call over an open connection with a part in buf, which may go on return, as crcs.
func (p *peer) callBuf(h dataplane.Header, crcs []byte, buf *uring.Buf,
	done func(*dataplane.Header, []byte, []byte, *uring.Buf, error)) {
	c := p.newCall(settleTimeout, h, done)
	c.sent = true
	p.c.SendBuf(&c.h, crcs, buf, 0, int(h.Length))
}

func (p *peer) callWithin(limit time.Duration, h dataplane.Header, crcs, payload []byte,
	done func(*dataplane.Header, []byte, []byte, *uring.Buf, error)) {
	c := p.newCall(limit, h, done)
	c.crcs, c.payload = crcs, payload
	if p.open {
		c.send()
	} else {
		p.dial()
	}
}

func (p *peer) newCall(limit time.Duration, h dataplane.Header,
	done func(*dataplane.Header, []byte, []byte, *uring.Buf, error)) *call {
	sh := p.sh
	sh.nextCall++
	c := &call{p: p, id: callBit | sh.nextCall, h: h, done: done}
	c.h.ReqID = c.id
	c.timer.Fire = func() {
		p.end(c, nil, nil, nil, nil, dataplane.E("ask "+p.String(), dataplane.TimedOut, nil))
	}
	sh.env.Arm(&c.timer, int64(limit))
	p.calls = append(p.calls, c)
	return c
}

func (c *call) send() {
	c.sent = true
	c.p.c.Send(&c.h, c.crcs, c.payload)
}

func (p *peer) end(c *call, h *dataplane.Header, crcs, payload []byte, buf *uring.Buf, err error) {
	for i, o := range p.calls {
		if o == c {
			p.calls = append(p.calls[:i], p.calls[i+1:]...)
			p.sh.env.Disarm(&c.timer)
			c.done(h, crcs, payload, buf, err)
			return
		}
	}
}

// dial connects, unless that is under way or the last attempt was only just now.
func (p *peer) dial() {
	if p.open || p.dialing || p.redial.Armed() || p.sh.stopping {
		return
	}
	if p.addr == "" {
		p.sh.env.Arm(&p.redial, int64(redialMax))
		p.failCalls(errors.New("its address is not known"))
		return
	}
	p.dialing = true
	p.sh.net.Dial(p.addr, func(c uring.Conn) uring.ConnHandler {
		p.c = session.NewConn(c, p.sh.env, p.sh.pool, p.sh.cred, true, p)
		return p.c
	}, func(c uring.Conn, err error) {
		if err != nil {
			p.down(err)
		}
	})
}

// Open implements session.FrameHandler.
func (p *peer) Open(c *session.Conn) {
	who := c.Peer()
	if c != p.c {
		c.Close(nil)
		return
	}
	if who.Role != dataplane.RoleCS || dataplane.CSID(who.ID) != p.cs {
		c.Close(dataplane.E("connect to "+p.String(), dataplane.Unreachable,
			fmt.Errorf("%v answers there", who)))
		return
	}
	p.gen++
	p.open, p.dialing, p.backoff, p.err = true, false, int64(redialFirst), nil
	p.tries = 0
	p.heard = p.sh.env.Now()
	for _, k := range p.calls {
		k.send()
	}
	p.sh.peerBack(p)
}

// Closed implements session.FrameHandler.
func (p *peer) Closed(c *session.Conn, err error) {
	if c == p.c {
		p.down(err)
	}
}

// down: the connection was lost, or couldn't be made. Chunks that we are the head of, with this
// peer as a member, have to be settled before the next write.
func (p *peer) down(err error) {
	sh := p.sh
	was := p.open
	p.c, p.open, p.dialing, p.err = nil, false, false, err
	if sh.stopping {
		return
	}
	sh.env.Arm(&p.redial, p.backoff)
	p.backoff = min(2*p.backoff, int64(redialMax))
	if p.tries++; p.tries <= redialTries {
		p.backoff = min(p.backoff, int64(redialSoon))
	}
	p.failCalls(err)
	if was {
		sh.slog.Info("connection to a chunk server lost", "cs", p.cs, "addr", p.addr, "reason", err)
		sh.linkLost(p)
		sh.peerLost(p)
	}
}

func (p *peer) failCalls(err error) {
	calls := p.calls
	p.calls = nil
	for _, c := range calls {
		c := c
		p.sh.env.Disarm(&c.timer)
		// Later: a caller isn't called back from inside its call.
		p.sh.later(func() {
			c.done(nil, nil, nil, nil, dataplane.E("ask "+p.String(), dataplane.Unreachable, err))
		})
	}
}

// Frame implements session.FrameHandler: an answer.
func (p *peer) Frame(c *session.Conn, h *dataplane.Header, crcs, payload []byte, buf *uring.Buf) {
	if c != p.c || !p.open {
		return
	}
	p.heard = p.sh.env.Now()
	if h.Flags&dataplane.FlagReply == 0 {
		c.Close(&dataplane.FrameError{Reason: "request on a connection for answers"})
		return
	}
	if h.ReqID&callBit == 0 {
		if h.Op == dataplane.OpReplicate {
			p.sh.memberAnswered(p, h)
		}
		return
	}
	for _, k := range p.calls {
		if k.id == h.ReqID {
			p.end(k, h, crcs, payload, buf, nil)
			return
		}
	}
}

// peerLost marks the chunks that this server heads together with p; those with work are settled
// now, the others before their next write.
func (sh *Shard) peerLost(p *peer) {
	for _, r := range sh.store.owners {
		if sh.canary.DeafHead || r == nil || !r.isHead() || r.state != active || r.broken {
			continue
		}
		for _, m := range r.members {
			if m.peer == p {
				r.broken = true
				if r.last != r.commit || r.queue.n > 0 {
					sh.settle(r, nil)
				}
				break
			}
		}
	}
}

// peerBack settles the chunks that were left alone while p was away: until then it can't serve
// reads of them.
func (sh *Shard) peerBack(p *peer) {
	for _, r := range sh.store.owners {
		if r == nil || !r.broken || !r.isHead() || r.state != active || r.settler != nil {
			continue
		}
		for _, m := range r.members {
			if m.peer == p {
				sh.settle(r, nil)
				break
			}
		}
	}
}

// ping asks a silent peer whether it is there; one that doesn't answer loses the connection.
func (p *peer) ping(now int64) {
	switch silent := now - p.heard; {
	case !p.open || silent < int64(pingAfter):
	case silent > int64(peerSilence):
		p.c.Close(dataplane.E("wait for "+p.String(), dataplane.TimedOut, nil))
	default:
		p.c.Send(&dataplane.Header{Op: dataplane.OpPing}, nil, nil)
	}
}
