package chunk

import (
	"fmt"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// This file is write-ack=memory: a write is acknowledged when all members hold it, durable or not;
// FLUSH makes durable what was acknowledged before it. Two marks take the place of one:
//
//	commit <= shown <= last;  commit <= durable <= last
//
// Up to shown all members hold every write: those are acknowledged, and may be read. Up to commit
// they are durable on all members, which is what commit means with write-ack=disk, too: so what a
// settling decides on, and what slot table and log keep, is the same in both modes, and a member
// that restarts without its last unflushed writes has lost nothing that it owed.
//
//  1. Members answer an OpReplicate when they have taken it (early), and only then log it; with
//     FlagFUA when it is durable. The head advances shown, and answers.
//  2. The commit mark moves by rounds: OpFlush to all members, which answer when they have
//     everything up to its Seq durable. There is one when a client flushes, when many writes
//     are above the mark, and after a millisecond of silence.
//  3. The shown mark travels where otherwise the commit mark does; the commit mark in the Aux of
//     OpFlush and OpCommit.
//
// As long as one member's process lives it has every acknowledged write, and a settling gives them
// to the others. If all processes end, unflushed writes may be gone, and a client whose own
// process lives must learn of it: an activation carries a number, the life, which goes on
// as long as a member has been there since it began, and is drawn anew otherwise. Every answer has
// it in Aux. A client that wrote in one life and flushes in another gets an error (EIO), once.

// flushAt is how many writes above the commit mark start a round.
const flushAt = dataplane.MaxInflightPerChunk / 4

// memoryAck is what a replica keeps for write-ack=memory.
type memoryAck struct {
	memory bool
	shown  dataplane.Seq
	life   uint16 // 0: this process hasn't been there since the last activation

	// Head: the commit mark as the members know it, and the round that is under way.
	toldCommit dataplane.Seq
	round      int // counts rounds, so that answers of earlier ones are known
	goal       dataplane.Seq
	pending    int // members that haven't answered; 0: no round
	flushes    requestList

	// Member: rounds that wait for the log.
	syncs []syncWait
}

type syncWait struct {
	l   *link
	hdr dataplane.Header
}

// visible is the last seq that may be read.
func (r *replica) visible() dataplane.Seq {
	if r.memory {
		return max(r.shown, r.commit)
	}
	return r.commit
}

// barrier returns the last seq that may not be read yet and touches the range; 0 if none does.
func (r *replica) barrier(off, length uint32) dataplane.Seq {
	return r.above(r.visible(), off, length)
}

// showTo moves the shown mark, and says whether it moved.
func (r *replica) showTo(seq dataplane.Seq) bool {
	seq = min(seq, r.last)
	if seq <= r.visible() {
		return false
	}
	r.shown = seq
	return true
}

// markTo takes the mark up to which the head has answered clients.
func (r *replica) markTo(seq dataplane.Seq) bool {
	if r.memory {
		return r.showTo(seq)
	}
	return r.commitTo(seq)
}

// early says that q is answered before it is durable here. Zeros aren't: until their record is
// durable the words of the blocks say what lies in the store, and the log has nothing newer.
func (q *request) early() bool {
	return q.r.memory && q.hdr.Flags&(dataplane.FlagFUA|dataplane.FlagZero) == 0 &&
		(q.hdr.Op == dataplane.OpReplicate || q.hdr.Op == dataplane.OpWrite)
}

// held says that this server has done its part of q, so that it may be answered.
func (q *request) held() bool { return q.local == 0 || q.early() }

// advanceMark moves the mark of a head over q, the next write.
func (r *replica) advanceMark(q *request) {
	if !r.memory {
		if !r.commitTo(q.seq) {
			panic("chunk: a write was committed before it was durable here")
		}
		return
	}
	if !r.showTo(q.seq) {
		panic("chunk: a write was answered before its turn")
	}
	if !q.early() {
		r.commitTo(q.seq) // all members have it durable, and so all before it
	}
}

// allTold says that the members know the marks, and that no round is needed.
func (r *replica) allTold() bool {
	return r.told >= r.visible() && (!r.memory || r.toldCommit >= r.commit && r.commit >= r.visible())
}

// untold says that the members have to learn of the commit mark, though writes don't cease: those
// with FUA need no rounds, and tell only what is shown. A member takes writes only up to some way
// above the mark that it knows.
func (r *replica) untold() bool { return r.memory && r.commit-r.toldCommit >= flushAt }

// clientFlush answers an OpFlush when everything acknowledged is durable.
func (sh *Shard) clientFlush(q *request) {
	r := q.r
	if !r.memory || r.commit >= r.visible() {
		sh.drop(q, dataplane.OK)
		return
	}
	q.seq = r.visible()
	r.flushes.push(q)
	sh.flushRound(r)
}

// flushRound starts a round, unless one is under way.
func (sh *Shard) flushRound(r *replica) {
	if r.pending > 0 || r.state != active || !r.isHead() || r.broken || r.commit >= r.visible() {
		return
	}
	r.round++
	r.toldCommit = r.commit
	r.goal = r.visible()
	r.pending = len(r.members)
	h := dataplane.Header{Op: dataplane.OpFlush, Flags: dataplane.FlagRecovery, Chunk: r.id,
		Epoch: r.epoch, Seq: r.goal, Aux: uint32(r.term)<<16 | uint32(r.goal-r.commit)}
	round := r.round
	for _, m := range r.members[1:] {
		m.peer.call(h, nil, nil, func(a *dataplane.Header, _, _ []byte, _ *uring.Buf, err error) {
			if err == nil && a.Status != dataplane.OK {
				err = dataplane.E("flush a member", a.Status, nil)
			}
			sh.roundAnswered(r, round, err)
		})
	}
	if r.durable >= r.goal {
		sh.roundAnswered(r, round, nil)
	}
}

// roundAnswered counts a member that has everything up to the goal durable.
func (sh *Shard) roundAnswered(r *replica, round int, err error) {
	if r.round != round || r.pending == 0 {
		return
	}
	if err != nil {
		r.pending = 0
		sh.slog.Info("member didn't flush", "chunk", r.id, "err", err)
		if r.state == active {
			sh.settle(r, nil) // after it everything is durable on all members that stay
		}
		return
	}
	if r.pending--; r.pending > 0 || r.state != active {
		return
	}
	if r.commitTo(r.goal) {
		sh.store.touch(r.slot)
	}
	sh.flushed(r)
	if r.flushes.n > 0 || r.last-r.commit >= flushAt {
		sh.flushRound(r)
	} else {
		sh.tellSoon(r)
	}
	if r.queue.n > 0 {
		sh.pumpWrites(r)
	}
}

// flushed answers the clients whose writes are durable.
func (sh *Shard) flushed(r *replica) {
	for q := r.flushes.first; q != nil && q.seq <= r.commit; q = r.flushes.first {
		r.flushes.remove(nil, q)
		sh.drop(q, dataplane.OK)
	}
}

// refuseFlushes ends the waits of a chunk that isn't ours to settle: the clients ask again.
func (sh *Shard) refuseFlushes(r *replica, status dataplane.Kind) {
	sh.endRound(r)
	for q := r.flushes.cut(); q != nil; {
		next := q.next
		sh.drop(q, status)
		q = next
	}
}

// endRound gives up the round: a settling begins, and does what it was for.
func (sh *Shard) endRound(r *replica) {
	r.round++
	r.pending = 0
	for _, w := range r.syncs {
		w.l.reply(&w.hdr, dataplane.NotReady)
	}
	r.syncs = r.syncs[:0]
}

// logged is called when the durable mark of a chunk has moved up from before.
func (sh *Shard) logged(r *replica, before dataplane.Seq) {
	if r.pending > 0 && r.isHead() && r.durable >= r.goal && before < r.goal {
		sh.roundAnswered(r, r.round, nil)
	}
	keep := r.syncs[:0]
	for _, w := range r.syncs {
		if w.hdr.Seq > r.durable {
			keep = append(keep, w)
			continue
		}
		w.l.reply(&w.hdr, dataplane.OK)
	}
	r.syncs = keep
}

// maxSyncs is how many rounds may wait at a member: the head has one at a time, and gives up those
// of before a settling.
const maxSyncs = 4

// memberFlush takes an OpFlush of the head.
func (sh *Shard) memberFlush(l *link, h *dataplane.Header) {
	r := sh.chunks[h.Chunk]
	switch {
	case sh.dead != nil:
		l.reply(h, dataplane.IOError)
		return
	case r == nil:
		l.reply(h, dataplane.UnknownChunk)
		return
	case r.state != active || h.Epoch != r.epoch || r.isHead() || h.Aux>>16 != uint32(r.term) ||
		h.Seq > r.last || len(r.syncs) >= maxSyncs:
		l.reply(h, dataplane.NotReady)
		return
	}
	if r.commitTo(h.Seq - min(behind(h), h.Seq)) {
		sh.markMoved(r)
	}
	if h.Seq <= r.durable || sh.canary.FlushEarly {
		l.reply(h, dataplane.OK)
		return
	}
	r.syncs = append(r.syncs, syncWait{l, *h})
}

// lifeOf is the life of the history that begins: that of a member that was there all the time, or a
// new one. It is never 0. epoch is the winner's; head is the index of the member that leads in that
// epoch, -1: not known.
//
// If the head was there all the time, but only up to the epoch before, the winner's began and
// nobody wrote in it: the head is activated last. So it has all that was acknowledged, and the
// winner's life, which may be forgotten, was its life.
func lifeOf(epoch dataplane.Epoch, tails []memberTail, head int, random uint64) uint16 {
	for i := range tails {
		if t := &tails[i]; !t.unknown && t.epoch == epoch && t.life != 0 {
			return t.life
		}
	}
	if head >= 0 {
		if t := &tails[head]; !t.unknown && t.epoch+1 == epoch && t.life != 0 {
			return t.life
		}
	}
	return uint16(random%0xffff) + 1
}

// lifeFor is lifeOf for what the settler has found.
func (s *settler) lifeFor() uint16 {
	if s.cfg.Ack == 0 {
		return 0
	}
	if s.sh.canary.KeepLife {
		return 1
	}
	if s.life == 0 {
		s.life = lifeOf(s.tails[s.verdict.winner].epoch, s.tails, s.head, s.sh.env.Rand())
	}
	return s.life // one for the attempt
}

// checkLife says whether an activation's mode and life make sense.
func checkLife(cfg *control.ChunkConfig, life uint16) error {
	switch {
	case cfg.Ack > 1:
		return fmt.Errorf("write-ack mode %d is not known", cfg.Ack)
	case (cfg.Ack == 1) != (life != 0):
		return fmt.Errorf("write-ack mode %d with life %d", cfg.Ack, life)
	}
	return nil
}

// live takes mode and life of an activation.
func (r *replica) live(cfg *control.ChunkConfig, life uint16) {
	r.memory, r.life = cfg.Ack == 1, life
	r.shown, r.toldCommit = r.commit, r.commit
}
