package chunk

import (
	"pstorage/dataplane"
	"pstorage/uring"
)

// Parts that a settling sends to members, with patience for full logs: an append that finds no room
// fails the whole chunk server.

// patch sends a part, again and again if the member's log is full.
func (s *settler) patch(at int, p *peer, h dataplane.Header, crcs, payload []byte, tries int) {
	p.call(h, crcs, payload, func(a *dataplane.Header, _, _ []byte, _ *uring.Buf, err error) {
		if err == nil && a.Status == dataplane.Overloaded && tries < patchTries {
			s.after(at, func() { s.patch(at, p, h, crcs, payload, tries+1) })
			return
		}
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
