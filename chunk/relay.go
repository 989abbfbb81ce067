package chunk

import (
	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

// A link of a chain may pass a part on while it arrives (session.Relayer). The rules are those of
// memberWrite and take; only the order is another one:
//
//  1. Relay: the header has come. If the part would be taken next and the next member is
//     connected, a request is made for it, whose id the next member answers to.
//  2. The next member may get the part, and answer, before it is complete here: local holds the
//     request back.
//  3. memberWrite: the part has come, is checked as ever, and takes the request that is there.
//
// A part that isn't taken in the end (a wrong checksum, a seal meanwhile) may have been taken by
// the next member: it is at the head, too, and not acknowledged, like any write that some members
// have and others don't when a settling begins.

// NeverRelay is the threshold from which nothing is relayed: the default. At the 64 KiB of a part
// splice and tee take as much time as a copy and give less throughput; they save a sixth of the
// CPU at 1 MiB (pstorage-perf relay).
const NeverRelay = 0

// Relay implements session.Relayer.
func (l *link) Relay(c *session.Conn, h *dataplane.Header, _ []byte, rest int) {
	sh := l.sh
	const chained = dataplane.FlagChain | dataplane.FlagData
	if sh.relayFrom == NeverRelay || rest < sh.relayFrom || !l.open || l.role != dataplane.RoleCS ||
		h.Op != dataplane.OpReplicate || h.Flags&(chained|dataplane.FlagReply) != chained {
		return
	}
	r := sh.chunks[h.Chunk]
	if sh.checkPlace(r, h) != dataplane.OK || h.Seq != r.last+1 || r.self+1 >= len(r.members) {
		return
	}
	next := r.members[r.self+1].peer
	if !next.open {
		return
	}
	q := sh.newRequest(l, h, r)
	out := &sh.out
	*out = *h
	out.ReqID = q.id()
	if !c.PassOn(next.c, out) {
		q.link = nil
		l.inflight--
		sh.free(q)
		return
	}
	q.seq, q.phase, q.local, q.relayed = h.Seq, phaseMember, 1, true
	q.waiting, q.behind = 1, next
	sh.relayed++
	l.arriving = q
}

// arrived returns the request of a part that has been passed on already, or nil.
func (l *link) arrived() *request {
	q := l.arriving
	l.arriving = nil
	return q
}
