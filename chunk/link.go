package chunk

import (
	"fmt"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
	"pstorage/uring"
)

// link is one connection that somebody made to us: a client, another chunk server, the command
// line. It is the session's handler.
type link struct {
	sh       *Shard
	c        *session.Conn
	role     dataplane.Role
	id       uint64
	inflight int  // requests not answered yet
	paused   bool // isn't read from
	open     bool
	arriving *request // the part that is being received, and has been passed on
}

// linkKey names who is at the other end.
type linkKey struct {
	role dataplane.Role
	id   uint64
}

// attach makes the session of an accepted connection.
func (sh *Shard) attach(c uring.Conn) uring.ConnHandler {
	l := &link{sh: sh}
	return sh.gate.Accept(c, sh.env, sh.pool, sh.cred, l)
}

// Open implements session.FrameHandler. An older connection of the same peer is closed before
// anything of the new one is served, so a delayed old write can't land after a newer one.
func (l *link) Open(c *session.Conn) {
	sh := l.sh
	p := c.Peer()
	l.c, l.role, l.id = c, p.Role, p.ID
	key := linkKey{l.role, l.id}
	switch {
	case l.role == dataplane.RoleNone || l.role > dataplane.RoleSupervisor:
		c.Close(dataplane.E("accept "+p.String(), dataplane.Denied, nil))
		return
	case sh.stopping:
		c.Close(dataplane.E("accept "+p.String(), dataplane.Closed, nil))
		return
	case l.role == dataplane.RoleAdmin:
		// Any number of them: they only look.
	default:
		if old := sh.links[key]; old != nil && !(sh.canary.KeepLinks && p.Role == dataplane.RoleClient) {
			old.c.Close(dataplane.E("connection of "+p.String(), dataplane.Closed,
				fmt.Errorf("replaced by a newer one from %s", c.RemoteAddr())))
			old.lost()
		}
		sh.links[key] = l
	}
	l.open = true
	sh.linkCount++
	if l.role == dataplane.RoleClient {
		sh.clients++
	}
}

// Closed implements session.FrameHandler.
func (l *link) Closed(_ *session.Conn, err error) {
	if l.open {
		l.sh.slog.Debug("connection closed", "peer", l.c.Peer().String(), "reason", err)
	}
	l.lost()
}

// lost ends the link. Requests that came over it go on, but nobody is told.
func (l *link) lost() {
	if !l.open {
		return
	}
	l.open = false
	sh := l.sh
	if q := l.arrived(); q != nil {
		sh.drop(q, dataplane.Closed)
	}
	sh.linkCount--
	if l.role == dataplane.RoleClient {
		sh.clients--
	}
	key := linkKey{l.role, l.id}
	if sh.links[key] == l {
		delete(sh.links, key)
	}
	if l.role == dataplane.RoleCS {
		sh.sealerLost(l)
	}
}

// Frame implements session.FrameHandler.
func (l *link) Frame(_ *session.Conn, h *dataplane.Header, crcs, payload []byte, buf *uring.Buf) {
	sh := l.sh
	if !l.open {
		return
	}
	if h.Flags&dataplane.FlagReply != 0 {
		l.c.Close(&dataplane.FrameError{Reason: "reply to nothing"})
		return
	}
	switch h.Op {
	case dataplane.OpRead:
		sh.clientRead(l, h)
	case dataplane.OpReplicate:
		if l.mustBe(h, dataplane.RoleCS) {
			sh.memberWrite(l, h, crcs, payload, buf)
		}
	case dataplane.OpWrite, dataplane.OpZero, dataplane.OpFlush:
		if h.Op == dataplane.OpFlush && h.Flags&dataplane.FlagRecovery != 0 {
			if l.mustBe(h, dataplane.RoleCS) {
				sh.memberFlush(l, h)
			}
			break
		}
		if l.mustBe(h, dataplane.RoleClient) {
			sh.clientWrite(l, h, crcs, payload, buf)
		}
	case dataplane.OpCommit:
		switch l.role {
		case dataplane.RoleCS:
			sh.memberCommit(h)
		case dataplane.RoleClient:
			sh.clientTells(h)
		}
	case dataplane.OpPing:
		l.reply(h, dataplane.OK)
	default:
		l.rareFrame(h, crcs, payload, buf)
	}
	l.throttle()
}

// rareFrame takes what is no I/O of users.
func (l *link) rareFrame(h *dataplane.Header, crcs, payload []byte, buf *uring.Buf) {
	sh := l.sh
	switch h.Op {
	case dataplane.OpSeal:
		if l.mustBe(h, dataplane.RoleCS) {
			sh.sealFrame(l, h)
		}
	case dataplane.OpPatch:
		if l.mustBe(h, dataplane.RoleCS) {
			sh.patchFrame(l, h, crcs, payload, buf)
		}
	case dataplane.OpActivate:
		if l.mustBe(h, dataplane.RoleCS) {
			sh.activateFrame(l, h, crcs, payload)
		}
	case dataplane.OpDigest:
		if l.mustBe(h, dataplane.RoleCS) {
			sh.digestFrame(l, h)
		}
	case dataplane.OpStat:
		l.stat(h)
	default:
		l.reply(h, dataplane.NotSupported)
	}
}

// mustBe refuses what the peer's role doesn't allow.
func (l *link) mustBe(h *dataplane.Header, role dataplane.Role) bool {
	if l.role == role {
		return true
	}
	l.reply(h, dataplane.Denied)
	return false
}

// reply answers a request that never became one of the slab.
func (l *link) reply(h *dataplane.Header, status dataplane.Kind) {
	if l.open {
		r := &l.sh.out
		*r = h.Reply(status)
		r.Seq = h.Seq
		l.c.Send(r, nil, nil)
	}
}

// refuse is reply for I/O: with the epoch that this server knows, if it is newer.
func (l *link) refuse(h *dataplane.Header, status dataplane.Kind) {
	if !l.open {
		return
	}
	r := &l.sh.out
	*r = h.Reply(status)
	r.Seq = h.Seq
	if status == dataplane.StaleEpoch {
		if c := l.sh.chunks[h.Chunk]; c != nil {
			r.Epoch = c.epoch
		}
	}
	l.c.Send(r, nil, nil)
}

// finish answers a request of the slab.
func (l *link) finish(h *dataplane.Header) {
	l.inflight--
	if l.open {
		l.c.Send(h, nil, nil)
	}
	if l.paused {
		l.throttle()
	}
}

// finishBuf answers with data.
func (l *link) finishBuf(h *dataplane.Header, crcs []byte, buf *uring.Buf, from, to int) {
	l.inflight--
	if l.open {
		l.c.SendBuf(h, crcs, buf, from, to)
	}
	if l.paused {
		l.throttle()
	}
}

// throttle stops reading from a peer that has too much in work or doesn't take its answers, or
// while the log has no room; and starts again at half of the bounds. Among chunk servers only the
// log's room counts: what they have in flight is bounded by the heads' windows, and stopping one
// for the other could make a circle.
func (l *link) throttle() {
	if !l.open {
		return
	}
	div := 1
	if l.paused {
		div = 2
	}
	want := l.sh.dead == nil && l.sh.tight()
	if l.role != dataplane.RoleCS {
		want = want || l.inflight > maxConnInflight/div || l.c.Queued() > maxConnQueued/div
	}
	if want == l.paused {
		return
	}
	l.paused = want
	if want {
		l.sh.pausedLinks = append(l.sh.pausedLinks, l)
		l.sh.pumpSoon()
	}
	l.c.PauseRecv(want)
}
