package client

import (
	"fmt"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/uring"
)

// This file is the connection to one chunk server: made when it is needed, bounded in what is in
// flight, watched while answers are outstanding, made again after it was lost.
//
//	idle ---want---> dialing ---Open---> up
//	  ^                 |                 | lost: closed, refused, silent for too long
//	  |                 v                 v
//	  +---nobody wants- cooling <---------+
//	                    | somebody wants, after a pause
//	                    +-----> dialing

type peerState uint8

const (
	peerIdle    peerState = iota
	peerDialing           // a connection is being made
	peerUp
	peerCooling // lost: a pause before the next attempt
)

// Times of the watch over a peer, besides those in Options.
const (
	tickEvery   = int64(250 * time.Millisecond)
	coolMax     = int64(500 * time.Millisecond)
	coolSoon    = int64(80 * time.Millisecond) // and in the first coolTries attempts
	coolTries   = 20
	reportEvery = int64(500 * time.Millisecond)
	reportMax   = 256 // chunks in one report; the others are told of with the next

	// connectSoon is how long a stream may take to come about in those attempts: the kernel repeats
	// a lost SYN after a second, and a link that was cut may be back long before.
	connectSoon = int64(300 * time.Millisecond)
)

// peer is one chunk server.
type peer struct {
	eng    *Engine
	id     dataplane.CSID
	addr   string // "ip:port"; empty: not known
	live   bool   // the MDS says that its lease is valid
	state  peerState
	fails  int  // attempts and connections lost since the last answer
	wanted bool // while cooling: somebody asked for it
	conn   *peerConn
	timer  uring.Timer // dialing: the attempt is over; up: tick; cooling: next attempt

	sent       partList // wait for answers, in the order of sending
	wait       partList // wait for the connection, or for room in flight
	pumping    bool     // in eng.pumps
	bytes      int      // of sent
	count      int      // of sent
	lastRecv   int64
	pinged     bool
	pingAt     int64
	pace       pace
	recent     recentAcks
	lostChunks []control.HeldChunk
	reportAt   int64 // not before
	refuses    bool  // has no lease or no disk: reported though it is connected
	reporting  uring.Timer
}

// peer returns what is known of a chunk server.
func (e *Engine) peer(id dataplane.CSID) *peer {
	pr := e.peers[id]
	if pr == nil {
		pr = &peer{eng: e, id: id, live: true}
		pr.sent.peer, pr.wait.peer = pr, pr
		pr.timer.Fire = pr.onTimer
		pr.reporting.Fire = pr.sendReport
		e.peers[id] = pr
		e.peerList = append(e.peerList, pr)
	}
	return pr
}

// usable says whether a part may be given to pr now: it is connected, or nothing is known against
// a first attempt.
func (pr *peer) usable() bool {
	switch pr.state {
	case peerUp:
		return true
	case peerCooling:
		return false
	}
	return pr.fails == 0 && pr.addr != ""
}

// want makes sure that a connection is made in time, though nothing is given to pr yet.
func (pr *peer) want() {
	pr.wanted = true
	if pr.state == peerIdle && pr.addr != "" {
		pr.connect()
	}
}

// take sends p, or keeps it until it can be sent.
func (pr *peer) take(p *part) {
	if pr.state == peerIdle {
		pr.connect()
	}
	if pr.state != peerUp || pr.wait.head != nil || !pr.room(p) {
		pr.wait.push(p)
		return
	}
	pr.send(p)
}

func (pr *peer) room(p *part) bool {
	o := &pr.eng.opt
	return pr.count == 0 || pr.count < o.PeerParts && pr.bytes+p.cost() <= o.PeerBytes
}

// send puts p on the wire.
func (pr *peer) send(p *part) {
	e := pr.eng
	now := e.env.Now()
	p.id += 1 << partIndexBits
	p.sentAt = now
	pr.sent.push(p)
	pr.count++
	pr.bytes += p.cost()
	e.stats.Parts++
	h := &e.hdr
	*h = dataplane.Header{Op: p.code, ReqID: p.id, Chunk: p.chunk, Epoch: p.epoch, Offset: p.off,
		Length: p.n, Seq: dataplane.Seq(p.op.token)}
	if p.op.FUA {
		h.Flags |= dataplane.FlagFUA
	}
	if p.code == dataplane.OpRead {
		h.Seq = p.acked()
		e.watchRead()
	}
	if p.code == dataplane.OpWrite {
		h.Flags |= dataplane.FlagData
		data := p.payload()
		n := dataplane.PutCRCs(e.crcs[:], p.off, data)
		pr.conn.session.Send(h, e.crcs[:n], data)
	} else {
		pr.conn.session.Send(h, nil, nil)
	}
	if !pr.timer.Armed() {
		e.env.Arm(&pr.timer, tickEvery)
	}
}

// forget takes p out of the account of what is in flight. What waits for that is sent at the end of
// the turn at the latest: p may have been called off, and nothing else may come of this peer.
func (pr *peer) forget(p *part) {
	pr.count--
	pr.bytes -= p.cost()
	if pr.count < 0 || pr.bytes < 0 {
		panic(fmt.Sprintf("client: cs %d has %d parts, %d bytes in flight", pr.id, pr.count, pr.bytes))
	}
	if e := pr.eng; pr.wait.head != nil && !pr.pumping {
		pr.pumping = true
		e.pumps = append(e.pumps, pr)
		e.env.AtTurnEnd(&e.turn)
	}
}

// pump sends what waited for room.
func (pr *peer) pump() {
	for pr.state == peerUp && pr.wait.head != nil && pr.room(pr.wait.head) {
		pr.send(pr.wait.pop())
	}
}

// connect starts an attempt.
func (pr *peer) connect() {
	e := pr.eng
	if e.closed {
		return
	}
	pr.state, pr.wanted = peerDialing, false
	pr.conn = &peerConn{peer: pr}
	pr.conn.until = e.env.Now() + int64(e.opt.DialTimeout)
	limit := int64(e.opt.DialTimeout)
	if pr.fails < coolTries {
		limit = min(limit, connectSoon)
	}
	e.env.Arm(&pr.timer, limit)
	pr.conn.dial(pr.addr)
}

// move: the server has another address now.
func (pr *peer) move(addr string) {
	old := pr.addr
	pr.addr = addr
	if old == "" {
		return
	}
	pr.eng.log.Info("chunk server moved", "cs", pr.id, "from", old, "to", addr)
	switch pr.state {
	case peerUp, peerDialing:
		pr.drop(fmt.Errorf("it moved to %s", addr))
	}
	pr.fails = 0
	if pr.state == peerCooling {
		pr.state = peerIdle
		pr.eng.env.Disarm(&pr.timer)
	}
}

// onTimer is what the peer's one timer is for in its state.
func (pr *peer) onTimer() {
	switch pr.state {
	case peerDialing:
		if left := pr.conn.until - pr.eng.env.Now(); pr.conn.session != nil && left > 0 {
			pr.eng.env.Arm(&pr.timer, left) // for the handshake
			return
		}
		pr.drop(dataplane.E("connect", dataplane.TimedOut, nil))
	case peerCooling:
		pr.state = peerIdle
		if pr.wanted {
			pr.connect()
		}
	case peerUp:
		pr.tick()
	}
}

// tick watches a connection with answers outstanding. A server that says nothing is pinged, then
// given up; one that is alive but sits on a read loses the read to another member.
func (pr *peer) tick() {
	e := pr.eng
	first := pr.sent.head
	if first == nil && !pr.pinged {
		return
	}
	now := e.env.Now()
	since := pr.pingAt
	if first != nil && (!pr.pinged || first.sentAt < since) {
		since = first.sentAt
	}
	silent := now - max(pr.lastRecv, since)
	if silent >= int64(e.opt.PeerTimeout) {
		pr.drop(dataplane.E("wait for an answer", dataplane.TimedOut, nil))
		return
	}
	if silent >= int64(e.opt.PingAfter) && !pr.pinged {
		pr.ping()
	}
	for p := first; p != nil && now-p.sentAt >= int64(e.opt.ReadTimeout); {
		slow := p
		p = p.next
		if slow.code == dataplane.OpRead && e.hasOther(slow) {
			pr.sent.remove(slow)
			pr.forget(slow)
			pr.answered(slow)
			slow.why = dataplane.TimedOut
			e.otherMember(slow, false)
		}
	}
	pr.pump()
	e.env.Arm(&pr.timer, tickEvery)
}

// hasOther says whether a member that wasn't tried yet can be reached.
func (e *Engine) hasOther(p *part) bool {
	ent, _ := p.file.entry(p.index)
	if ent.chunk != p.chunk || ent.epoch != p.epoch {
		return true // the map changed: look again
	}
	for i := 0; i < int(ent.n); i++ {
		if p.tried&(1<<i) == 0 && i != int(p.member) && e.peer(ent.members[i]).usable() {
			return true
		}
	}
	return false
}

// drop gives the connection or the attempt up.
func (pr *peer) drop(err error) {
	pc := pr.conn
	pr.lost(err)
	pc.close(err)
}

// lost: there is no connection any more. Everything that was given to pr goes elsewhere or waits.
func (pr *peer) lost(err error) {
	e := pr.eng
	pr.conn = nil
	pr.state, pr.pinged, pr.pace.stalled = peerCooling, false, false
	pr.fails++
	if pr.fails <= 1 {
		e.log.Warn("connection to a chunk server lost", "cs", pr.id, "addr", pr.addr, "err", err)
	}
	e.stats.ConnsLost++
	cool := min(int64(e.opt.MinBackoff)<<min(pr.fails-1, 10), coolMax)
	if pr.fails <= coolTries { // a process that crashed is back within a second
		cool = min(cool, coolSoon)
	}
	e.env.Arm(&pr.timer, cool)
	pr.tellAcked()
	var parts partList
	pr.sent.takeAll(&parts)
	pr.wait.takeAll(&parts)
	pr.count, pr.bytes = 0, 0
	if parts.head != nil {
		pr.wanted = true
	}
	for p := parts.pop(); p != nil; p = parts.pop() {
		e.lost(p, pr)
	}
}

// shut closes the connection for good; nothing is in flight.
func (pr *peer) shut() {
	pr.eng.env.Disarm(&pr.timer)
	pr.eng.env.Disarm(&pr.reporting)
	pr.state = peerIdle
	if pc := pr.conn; pc != nil {
		pr.conn = nil
		pc.close(errEngineClosed)
	}
}

// report tells the MDS that pr doesn't answer for a chunk that should be written.
func (pr *peer) report(chunk dataplane.ChunkID, epoch dataplane.Epoch) {
	for i := len(pr.lostChunks) - 1; i >= 0; i-- {
		if pr.lostChunks[i].Chunk == chunk {
			pr.lostChunks[i].Epoch = epoch
			return
		}
	}
	if len(pr.lostChunks) == reportMax {
		return
	}
	pr.lostChunks = append(pr.lostChunks, control.HeldChunk{Chunk: chunk, Epoch: epoch})
	if !pr.reporting.Armed() {
		pr.eng.env.Arm(&pr.reporting, max(0, pr.reportAt-pr.eng.env.Now()))
	}
}

func (pr *peer) reportIfDown(chunk dataplane.ChunkID, epoch dataplane.Epoch) {
	if !pr.usable() {
		pr.report(chunk, epoch)
	}
}

func (pr *peer) sendReport() {
	e := pr.eng
	chunks := pr.lostChunks
	pr.lostChunks = nil
	pr.reportAt = e.env.Now() + reportEvery
	if (pr.state != peerUp || pr.refuses) && len(chunks) > 0 && !e.closed {
		e.meta.Unreachable(pr.id, chunks)
	}
	pr.refuses = false
}

// peerConn is one attempt and what comes of it. A peer may have lost interest in it meanwhile.
type peerConn struct {
	peer    *peer
	session *session.Conn // nil until the stream is there
	until   int64         // when the attempt is over at the latest
	dead    bool
}

func (pc *peerConn) dial(addr string) {
	e := pc.peer.eng
	e.opt.Net.Dial(addr, func(c uring.Conn) uring.ConnHandler {
		pc.session = session.NewConn(c, e.env, e.opt.Pool, e.opt.Cred, true, pc)
		return pc.session
	}, func(c uring.Conn, err error) {
		if err != nil {
			pc.Closed(nil, err)
		} else if pc.dead {
			c.Close(errAbandoned)
		}
	})
}

var errAbandoned = dataplane.E("connect", dataplane.Closed, fmt.Errorf("not wanted any more"))

func (pc *peerConn) close(err error) {
	pc.dead = true
	if pc.session != nil {
		pc.session.Close(err)
	}
}

// Open implements session.FrameHandler.
func (pc *peerConn) Open(c *session.Conn) {
	pr := pc.peer
	if pc.dead {
		c.Close(errAbandoned)
		return
	}
	if role := c.Peer().Role; role != dataplane.RoleCS {
		pr.drop(dataplane.E("connect", dataplane.Denied, fmt.Errorf("%v is a %v, not a chunk server",
			c.RemoteAddr(), role)))
		return
	}
	e := pr.eng
	e.env.Disarm(&pr.timer)
	if pr.fails > 0 {
		e.log.Info("connected to a chunk server again", "cs", pr.id, "addr", pr.addr)
	}
	pr.state = peerUp
	pr.lastRecv = e.env.Now()
	pr.pump()
}

// Frame implements session.FrameHandler.
func (pc *peerConn) Frame(c *session.Conn, h *dataplane.Header, crcs, payload []byte,
	_ *uring.Buf) {
	pr := pc.peer
	if pc.dead {
		return
	}
	e := pr.eng
	pr.lastRecv, pr.pinged, pr.fails = e.env.Now(), false, 0
	pr.pace.stalled = false
	if h.Op == dataplane.OpPing {
		if h.Flags&dataplane.FlagReply == 0 {
			e.hdr = h.Reply(dataplane.OK)
			c.Send(&e.hdr, nil, nil)
		}
		return
	}
	p := e.partOf(h.ReqID)
	if h.Flags&dataplane.FlagReply == 0 || p != nil && p.list == &pr.sent && !p.fits(h) {
		pr.drop(dataplane.E("receive", dataplane.Malformed, fmt.Errorf("unexpected %v", h)))
		return
	}
	if p == nil || p.list != &pr.sent {
		e.stats.Late++
		return
	}
	pr.sent.remove(p)
	pr.forget(p)
	pr.answered(p)
	e.answer(p, pr, h, crcs, payload)
	pr.pump()
}

// Closed implements session.FrameHandler.
func (pc *peerConn) Closed(_ *session.Conn, err error) {
	if pc.dead {
		return
	}
	pc.dead = true
	pc.peer.lost(err)
}
