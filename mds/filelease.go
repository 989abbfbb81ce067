package mds

import (
	"cmp"
	"fmt"
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// This file is the replicated part of file leases: who may write a file, and which tokens chunk
// servers refuse. That a client still lives is soft state of the leader, see fencer.

// fileLease is what the cluster remembers of who may write a file; nil for a file that nobody
// holds and that was never fenced. It is replaced, never changed in place.
type fileLease struct {
	holder   uint64 // client id; 0: nobody
	token    uint64 // of the last grant
	fence    uint64 // smallest token that chunk servers take; 0: any
	fenceSeq uint64 // number of that fence; 0: none
	sinceNs  int64  // of the grant, since 1970
	unclean  bool   // released while writes may be on their way
	host     string
	mount    string
	lostBy   string // who revoked the last grant, for people; empty: nobody
}

// leaseState is what State keeps besides the leases in the files.
type leaseState struct {
	token    uint64 // last one given
	fenceSeq uint64 // last one given
	// fences is derived: the files that were fenced, and their fence's number.
	fences map[dataplane.FileID]uint64
}

// setLease replaces a file's lease.
func (s *State) setLease(id dataplane.FileID, l fileLease) {
	f := s.files.edit(id)
	if l.holder == 0 && l.fenceSeq == 0 && !l.unclean && l.lostBy == "" {
		f.lease = nil
		return
	}
	f.lease = &l
	s.noteFence(id, l.fenceSeq)
}

func (s *State) noteFence(id dataplane.FileID, seq uint64) {
	if seq == 0 {
		return
	}
	if s.leases.fences == nil {
		s.leases.fences = make(map[dataplane.FileID]uint64)
	}
	s.leases.fences[id] = seq
}

// leaseOf returns a file's lease; the zero one if there is none.
func (s *State) leaseOf(id dataplane.FileID) fileLease {
	if f := s.files.get(id); f != nil && f.lease != nil {
		return *f.lease
	}
	return fileLease{}
}

// fencesAfter returns the fences with numbers above seq, at most control.MaxFences.
func (s *State) fencesAfter(seq uint64) control.FencePush {
	p := control.FencePush{After: seq, Seq: max(seq, s.leases.fenceSeq)}
	if seq >= s.leases.fenceSeq {
		return p
	}
	type numbered struct {
		control.FileFence
		seq uint64
	}
	var list []numbered
	for id, n := range s.leases.fences {
		if n > seq {
			f := control.FileFence{File: id, Token: s.leaseOf(id).fence}
			list = append(list, numbered{f, n})
		}
	}
	slices.SortFunc(list, func(a, b numbered) int { return cmp.Compare(a.seq, b.seq) })
	if len(list) > control.MaxFences {
		list = list[:control.MaxFences]
		p.More, p.Seq = true, list[len(list)-1].seq
	}
	for i := range list {
		p.Fences = append(p.Fences, list[i].FileFence)
	}
	return p
}

// What a cmdLease does. They are in the log for ever: never renumber.
const (
	leaseGrant   = 1
	leaseRelease = 2
	leaseRevoke  = 3
)

// cmdLease changes who may write a file.
type cmdLease struct {
	origin
	Action  uint8
	File    dataplane.FileID
	Client  uint64
	Token   uint64 // grant: of the holder, silent for too long, that loses it; else of the lease
	Host    string // grant
	Mount   string // grant
	By      string // revoke: who did it
	Unclean bool   // release
}

func (c *cmdLease) op() uint8 { return opLease }

func (c *cmdLease) put(e *encoder) {
	e.u8(c.Action)
	e.u64(uint64(c.File))
	e.u64(c.Client)
	e.u64(c.Token)
	e.str(c.Host)
	e.str(c.Mount)
	e.str(c.By)
	e.bool(c.Unclean)
}

func (c *cmdLease) get(d *decoder) {
	c.Action = d.u8()
	c.File = dataplane.FileID(d.u64())
	c.Client, c.Token = d.u64(), d.u64()
	c.Host, c.Mount, c.By = d.str(), d.str(), d.str()
	c.Unclean = d.bool()
}

func (c *cmdLease) apply(s *State, r *Result) {
	f := s.live(c.File)
	switch {
	case f == nil:
		r.fail(dataplane.NotFound, "file %d", c.File)
		return
	case f.typ != control.TypeFile:
		r.fail(dataplane.IsDir, "only regular files have a writer")
		return
	}
	l := s.leaseOf(c.File)
	switch c.Action {
	case leaseGrant:
		c.grant(s, &l, r)
	case leaseRelease:
		if c.Client == l.holder && c.Token == l.token {
			l.holder, l.unclean, l.host, l.mount = 0, c.Unclean, "", ""
			s.setLease(c.File, l)
		}
	case leaseRevoke:
		c.revoke(s, &l)
	default:
		r.fail(dataplane.NotSupported, "lease action %d", c.Action)
	}
	r.Lease = l
}

// grant gives the lease to the client. A client that has it gets a new token, so that a release
// that was on its way since before takes nothing from it.
func (c *cmdLease) grant(s *State, l *fileLease, r *Result) {
	if l.holder != 0 && l.holder != c.Client && l.token != c.Token {
		r.fail(dataplane.LeaseHeld, "file %d: by client %x on %s", c.File, l.holder, l.host)
		return
	}
	fence := l.unclean || l.holder != 0 && l.holder != c.Client
	if l.holder != 0 && l.holder != c.Client {
		s.addEvent(control.Warning, "mds", "lease-expired", fmt.Sprintf("the right to write file "+
			"%d (%s) was taken from client %x on %s, which was silent, and given to %x on %s",
			c.File, s.pathOf(c.File), l.holder, l.host, c.Client, c.Host))
		l.lostBy = fmt.Sprintf("client %x on %s, after %v of silence", c.Client, c.Host,
			dataplane.FileLeaseTime)
	}
	s.leases.token++
	l.holder, l.token, l.sinceNs, l.unclean = c.Client, s.leases.token, s.nowNs, false
	l.host, l.mount = cutText(c.Host), cutText(c.Mount)
	if fence {
		c.raise(s, l, l.token)
	}
	s.setLease(c.File, *l)
}

// revoke takes the lease away from whoever has it.
func (c *cmdLease) revoke(s *State, l *fileLease) {
	if l.holder == 0 && !l.unclean || c.Client != 0 && c.Client != l.holder {
		return
	}
	if l.holder != 0 {
		l.lostBy = cutText(c.By)
		s.addEvent(control.Warning, "mds", "lease-revoked", fmt.Sprintf("the right to write file "+
			"%d (%s) was taken from client %x on %s by %s", c.File, s.pathOf(c.File), l.holder,
			l.host, l.lostBy))
	}
	s.leases.token++
	l.holder, l.unclean, l.host, l.mount = 0, false, "", ""
	c.raise(s, l, s.leases.token)
	s.setLease(c.File, *l)
}

// raise sets the file's fence: smaller tokens are refused.
func (c *cmdLease) raise(s *State, l *fileLease, token uint64) {
	s.leases.fenceSeq++
	l.fence, l.fenceSeq = token, s.leases.fenceSeq
}

func cutText(t string) string { return t[:min(len(t), maxEventText)] }

// pathOf returns the path of a file that has a name.
func (s *State) pathOf(id dataplane.FileID) string {
	path := ""
	for n := 0; id != dataplane.RootID && n < dataplane.MaxPathLen; n++ {
		f := s.files.get(id)
		if f == nil || f.parent == 0 {
			break
		}
		path = "/" + f.name + path
		id = f.parent
	}
	if path == "" {
		return "/"
	}
	return path
}

// putLease writes a file's lease to a snapshot.
func putLease(e *encoder, id dataplane.FileID, l *fileLease) {
	e.u64(uint64(id))
	e.u64(l.holder)
	e.u64(l.token)
	e.u64(l.fence)
	e.u64(l.fenceSeq)
	e.i64(l.sinceNs)
	e.bool(l.unclean)
	e.str(l.host)
	e.str(l.mount)
	e.str(l.lostBy)
}

// writeLeases writes the counters and the leases, if there ever was one.
func (sn *Snapshot) writeLeases(w *blockWriter) error {
	if sn.leases.token == 0 {
		return nil
	}
	l := listWriter{w: w, typ: blockLeaseHead}
	e := l.next()
	e.u64(sn.leases.token)
	e.u64(sn.leases.fenceSeq)
	if err := l.flush(0); err != nil {
		return err
	}
	l.typ = blockLeases
	for _, p := range sn.files {
		for i := range p {
			if p[i].id == 0 || p[i].lease == nil {
				continue
			}
			putLease(l.next(), p[i].id, p[i].lease)
			if err := l.flush(softBlock); err != nil {
				return err
			}
		}
	}
	return l.flush(0)
}

// readLease reads an element of a lease block. It is false if that contradicts the rest.
func (s *State) readLease(typ uint8, d *decoder) bool {
	if typ == blockLeaseHead {
		twice := s.leases.token != 0
		s.leases.token, s.leases.fenceSeq = d.u64(), d.u64()
		return !twice && s.leases.token != 0
	}
	id := dataplane.FileID(d.u64())
	l := fileLease{holder: d.u64(), token: d.u64(), fence: d.u64(), fenceSeq: d.u64(),
		sinceNs: d.i64(), unclean: d.bool(), host: d.str(), mount: d.str(), lostBy: d.str()}
	f := s.files.get(id)
	if d.bad || f == nil || f.lease != nil || l.token > s.leases.token ||
		l.fence > s.leases.token || l.fenceSeq > s.leases.fenceSeq {
		return false
	}
	s.files.edit(id).lease = &l
	s.noteFence(id, l.fenceSeq)
	return true
}
