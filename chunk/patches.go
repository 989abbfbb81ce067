package chunk

import (
	"fmt"
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// Parts that a settling reads from the winner and sends to members, with patience for full logs: an
// append that finds no room fails the whole chunk server.

// copyMore keeps some parts under way from the winner to those who miss them.
func (s *settler) copyMore() {
	for s.stepErr == nil && s.copying < maxCopies && s.nextCopy < len(s.verdict.copies) {
		c := s.verdict.copies[s.nextCopy]
		off := c.off + s.copyAt
		n := min(c.length-s.copyAt, dataplane.PartSize)
		if s.copyAt += n; s.copyAt == c.length {
			s.nextCopy, s.copyAt = s.nextCopy+1, 0
		}
		s.copying++
		s.copyPart(c.to, off, n)
	}
	if s.copying > 0 {
		return
	}
	if s.stepErr != nil {
		s.again("copy what members miss", s.stepErr)
		return
	}
	s.exclude()
}

func (s *settler) copied(at int, err error) {
	if s.attempt != at {
		return
	}
	s.copying--
	if err != nil && s.stepErr == nil {
		s.stepErr = err
	}
	s.copyMore()
}

// copyPart moves up to 64 KiB from the winner to another member. A part that is damaged there is
// tried again block by block, and the damaged blocks are taken from elsewhere.
func (s *settler) copyPart(to int, off, n uint32) {
	at := s.attempt
	s.readFrom(s.verdict.winner, off, n, func(crcs, payload []byte, buf *uring.Buf, err error) {
		switch {
		case s.attempt != at || err == nil:
		case dataplane.KindOf(err) != dataplane.BadCRC:
		case n > dataplane.BlockSize:
			for end := off + n; off < end; off += dataplane.BlockSize {
				s.verdict.copies = append(s.verdict.copies, tailCopy{to, off, dataplane.BlockSize})
			}
			s.copied(at, nil)
			return
		default:
			s.rescue(to, off, rescuers(s.verdict.winner, s.tails, off, s.cfg.Ack != 0), err)
			return
		}
		if err != nil || s.attempt != at {
			s.copied(at, err)
			return
		}
		s.sendPart(at, to, off, crcs, payload, buf)
	})
}

// readFrom reads a part of a sealed member's replica; done is called once, and what it is given is
// valid during the call.
func (s *settler) readFrom(from int, off, n uint32,
	done func(crcs, payload []byte, buf *uring.Buf, err error)) {
	m := s.stay[from]
	if m.CS == s.sh.id {
		s.sh.readPart(s.r, off, n, func(crcs []byte, buf *uring.Buf, err error) {
			if err != nil {
				done(nil, nil, nil, err)
				return
			}
			done(crcs, buf.Bytes()[:n], buf, nil)
		})
		return
	}
	h := dataplane.Header{Op: dataplane.OpRead, Flags: dataplane.FlagRecovery, Chunk: s.r.id,
		Epoch: s.cfg.Epoch, Offset: off, Length: n}
	s.sh.peer(m.CS, m.Addr).call(h, nil, nil,
		func(a *dataplane.Header, crcs, payload []byte, buf *uring.Buf, err error) {
			switch {
			case err != nil:
			case a.Status != dataplane.OK:
				err = dataplane.E("read a member", a.Status, nil)
			case a.Offset != off || len(payload) != int(n) ||
				dataplane.CheckCRCs(crcs, off, payload) >= 0:
				err = dataplane.E("read a member", dataplane.BadCRC, nil)
			}
			done(crcs, payload, buf, err)
		})
}

// rescue brings everybody, the winner too, to one good content of a block that is damaged at the
// winner: that of the first of the given members that can read it. What it may have besides was
// never served.
func (s *settler) rescue(to int, off uint32, list []rescuer, why error) {
	at := s.attempt
	if len(list) == 0 {
		s.copied(at, why)
		return
	}
	from := list[0]
	s.readFrom(from.member, off, dataplane.BlockSize,
		func(crcs, payload []byte, buf *uring.Buf, err error) {
			if s.attempt != at {
				return
			}
			if err != nil {
				s.rescue(to, off, list[1:], why)
				return
			}
			if from.older && s.r.isHead() {
				// A write in flight is lost on this block: its client has to write again.
				s.sh.abandonFlight(s.r, dataplane.NotReady)
			}
			s.sh.event(control.Warning, "block-rescued", fmt.Sprintf(
				"chunk %v: the block at byte %d is damaged on cs %d; cs %d has it", s.r.id, off,
				s.stay[s.verdict.winner].CS, s.stay[from.member].CS))
			var others []int
			for i := range s.stay {
				// Also who gives it, unless it has all: else nothing says later that it missed a write
				// only up to here, and it would pass for one that lost data.
				if (i != from.member || s.tails[i].last < s.verdict.last) &&
					!slices.Contains(s.verdict.lost, i) {
					others = append(others, i)
				}
			}
			if to >= len(s.stay) {
				others = append(others, to) // the new member
			}
			s.copying += len(others) - 1 // each answers for itself
			for _, i := range others {
				if s.attempt == at {
					s.sendPart(at, i, off, crcs, payload, buf)
				}
			}
		})
}

// sendPart patches a member.
func (s *settler) sendPart(at, to int, off uint32, crcs, payload []byte, buf *uring.Buf) {
	var m control.CSAddr
	switch c := s.join; {
	case to < len(s.stay):
		m = s.stay[to]
	case c == nil || !c.connected():
		s.copied(at, dataplane.E("patch the new member", dataplane.Closed, nil))
		return
	default:
		m = c.target
	}
	if m.CS == s.sh.id {
		if s.sh.choked(s.r) {
			s.patchSelf(at, off, slices.Clone(crcs), slices.Clone(payload), 0)
			return
		}
		s.sh.patchHere(s.r, s, off, crcs, payload, buf, func(err error) { s.copied(at, err) })
		return
	}
	h := dataplane.Header{Op: dataplane.OpPatch, Flags: dataplane.FlagData, Chunk: s.r.id,
		Epoch: s.cfg.Epoch, Offset: off, Length: uint32(len(payload))}
	// The call may be sent later than now, and more than what is here: it keeps copies.
	s.patch(at, s.sh.peer(m.CS, m.Addr), h, slices.Clone(crcs), s.sh.keepPart(payload), 0)
}

// maxKept bounds the memory that a shard keeps for copies of parts: 4 MiB.
const maxKept = 64

// keepPart returns a copy of p, of at most a part's length, in memory that dropPart takes back. The
// bytes of a whole chunk go through here when it is copied: as garbage they would cost more than
// the copying.
func (sh *Shard) keepPart(p []byte) []byte {
	n := len(sh.kept)
	if n == 0 {
		return append(make([]byte, 0, dataplane.PartSize), p...)
	}
	b := sh.kept[n-1]
	sh.kept = sh.kept[:n-1]
	return append(b[:0], p...)
}

// dropPart takes back what keepPart returned; nobody uses it any more.
func (sh *Shard) dropPart(b []byte) {
	if len(sh.kept) < maxKept {
		sh.kept = append(sh.kept, b)
	}
}

// patch sends a part, again and again if the member's log is full. payload is from keepPart.
func (s *settler) patch(at int, p *peer, h dataplane.Header, crcs, payload []byte, tries int) {
	p.call(h, crcs, payload, func(a *dataplane.Header, _, _ []byte, _ *uring.Buf, err error) {
		if err == nil && a.Status == dataplane.Overloaded && tries < patchTries {
			s.after(at, func() { s.patch(at, p, h, crcs, payload, tries+1) })
			return
		}
		s.sh.dropPart(payload) // sent, or never to be: the call has ended
		if err == nil && a.Status != dataplane.OK {
			err = dataplane.E("patch", a.Status, nil)
		}
		s.copied(at, err)
	})
}

// patchSelf is patch for this server.
func (s *settler) patchSelf(at int, off uint32, crcs, payload []byte, tries int) {
	s.sh.patchHere(s.r, s, off, crcs, payload, nil, func(err error) {
		if dataplane.KindOf(err) == dataplane.Overloaded && tries < patchTries {
			s.after(at, func() { s.patchSelf(at, off, crcs, payload, tries+1) })
			return
		}
		s.copied(at, err)
	})
}

// after calls f a little later, if the attempt still goes on.
func (s *settler) after(at int, f func()) {
	t := &uring.Timer{}
	t.Fire = func() {
		if s.attempt == at {
			f()
		}
	}
	s.sh.env.Arm(t, int64(copyPause))
}

// choked says whether a patch has to wait for the log: appends to a full log fail, for good. Those
// of a copy leave some of it to writes.
func (sh *Shard) choked(r *replica) bool {
	return !sh.log.Room() || r.copying() && sh.log.Pressure() >= pressureHard
}
