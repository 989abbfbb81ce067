package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// This file is the right to write a file: one client has it at a time. It is asked for when the
// file is opened for writing, or else by the first write; writes wait until it is there. The token
// of the grant travels with each write, and chunk servers refuse those of a grant that was taken
// away. All users of a file in this process share one lease.
//
//	none ---somebody wants to write---> asking ---granted---> held
//	  ^                                   | held by another for   | revoked, or
//	  |                                   v LeaseWait: EBUSY      v taken over
//	  +---last writer closed------------ none                   lost ---opened again---> none

// Leaser is the Metadata of a cluster that hands out write leases. Callbacks as in Metadata.
type Leaser interface {
	// AcquireLease asks for the lease on a file; token as in control.AcquireLeaseReq.
	AcquireLease(file dataplane.FileID, token uint64, cb func(*control.LeaseReply, error))
	// ReleaseLeases gives leases back. The slice is the callee's.
	ReleaseLeases(leases []control.FileLease, cb func(error))
	// RenewLeases says that this client lives. The slice is the callee's.
	RenewLeases(leases []control.FileLease, cb func(*control.RenewLeasesReply, error))
}

type leaseStatus uint8

const (
	leaseNone leaseStatus = iota
	leaseHeld
	leaseLost // taken away: writes fail until the file is opened anew
)

// lease is what a File knows of its lease. It belongs to the engine's thread.
type lease struct {
	status  leaseStatus
	token   uint64
	grants  uint32 // counted, for entry.proven
	writers int    // opens for writing
	right   Right
	unclean bool // a write of this token was given up without an answer
	asking  bool
	fencing uint64 // token that was promised, once the holder before is fenced
	refused int64  // since when another client is in the way, ns; 0: none is
	failed  int64  // when writes were last refused because of that; 0: never
	wait    opQueue
	timer   uring.Timer
	tries   int

	old      control.FileLease // that is given up for a new grant; none: token 0
	oldTimer uring.Timer
	dropped  bool // it was to be given back meanwhile
}

// leases is what an Engine knows of all leases.
type leases struct {
	meta Leaser // nil: no leases in this cluster
	held []*File
	// open are the files that asked and may have been promised a lease, or given one in an answer
	// that was lost. A file that is closed goes on until it knows, and gives the lease back; one
	// that is opened anew meanwhile, with a File of its own, waits: to the metadata servers both are
	// this client, and what the first gave back they would take from the second.
	open      map[dataplane.FileID]*File
	going     []control.FileLease // to be released
	releasing []control.FileLease // being released
	timer     uring.Timer         // of releases that failed
	tries     int
	renew     uring.Timer
}

// Right is an open's right to write, which ends when the client loses the lease. The zero Right is
// for users that don't tell opens apart: it is that of the moment.
type Right uint32

// mayWrite says whether op, a write, may go on. If not it waits, or has failed.
func (f *File) mayWrite(op *Op) bool {
	l := &f.lease
	switch {
	case f.eng.leases.meta == nil:
		return true
	case op.Right != 0 && op.Right != l.right+1 || l.status == leaseLost && op.Right == 0:
		f.eng.fail(op, f.lostError(op.Kind))
		return false
	case l.status == leaseHeld:
		op.token = l.token
		return true
	}
	op.state = opLeasing
	if now := f.eng.env.Now(); l.failed == 0 || now-l.failed >= int64(f.eng.opt.LeaseWait) {
		l.forgetRefusal()
	}
	l.wait.push(op)
	f.askLease()
	return false
}

// unproven says that a chunk is to be read at its head only. A write of the holder before may be in
// the log of some members: if their head was lost with that holder, it is there for all, or for
// nobody, only when the chunk was settled. A head that answers has done that; others may not have
// heard of it, and a write that they don't know of would appear after it wasn't there.
func (f *File) unproven(ent *entry) bool {
	return f.lease.status == leaseHeld && ent.proven != f.lease.grants
}

// proves notes, when p is sent, whether an answer will show that its chunk is settled, which isn't
// known yet.
func (f *File) proves(p *part, ent *entry) {
	p.grant = 0
	if p.member == 0 && f.unproven(ent) {
		p.grant = f.lease.grants
	}
}

// proved notes that the head has answered p.
func (f *File) proved(p *part) {
	if p.grant == 0 {
		return
	}
	if ent, _ := f.entry(p.index); ent.chunk == p.chunk {
		ent.proven = p.grant
	}
}

func (f *File) lostError(k OpKind) error {
	return dataplane.E(f.what(k), dataplane.Fenced, errLeaseLost)
}

var errLeaseLost = errors.New("the right to write it was taken from this client; open it again")

// askLease asks for the lease if somebody waits for it, or if it may have been given already.
func (f *File) askLease() {
	l, e := &f.lease, f.eng
	if l.asking || l.timer.Armed() || l.status == leaseHeld || e.closed {
		return
	}
	asker := e.leases.open[f.id]
	switch {
	case asker != f && l.unwanted():
		return
	case asker != f && asker != nil || e.leases.pending(f.id):
		f.rearm(&l.timer, f.askLease, &l.tries) // first it must be given back
		return
	}
	f.askAnyway()
}

func (f *File) askAnyway() {
	f.lease.asking = true
	f.eng.leases.asks(f)
	f.eng.leases.meta.AcquireLease(f.id, f.lease.fencing, f.onLease)
}

// asks notes f in open.
func (ls *leases) asks(f *File) {
	if ls.open == nil {
		ls.open = make(map[dataplane.FileID]*File)
	}
	ls.open[f.id] = f
}

// renewGrant asks for a lease that is held once more. To the metadata servers it remains this
// client's meanwhile; writes wait. It is lost if somebody else had it, though it is free now.
func (f *File) renewGrant() {
	l, e := &f.lease, f.eng
	if l.status != leaseHeld || e.closed {
		return
	}
	e.leases.forget(f)
	l.old, l.dropped = control.FileLease{File: f.id, Token: l.token}, false
	l.status, l.token, l.asking = leaseNone, 0, true
	e.leases.asks(f)
	f.renewOld()
}

// renewOld asks whether the lease is still this client's.
func (f *File) renewOld() {
	l, e := &f.lease, f.eng
	e.leases.meta.RenewLeases([]control.FileLease{l.old}, func(r *control.RenewLeasesReply,
		err error) {
		switch {
		case e.closed:
		case err != nil && e.metaRetry(err, "the right to write a file", f):
			f.rearm(&l.oldTimer, f.renewOld, &l.tries)
		case err == nil && len(r.Lost) == 0:
			l.tries = 0
			f.askAnyway()
		default:
			delete(e.leases.open, f.id)
			l.status, l.token, l.asking = leaseHeld, l.old.Token, false
			l.old = control.FileLease{}
			by := ""
			if err == nil {
				by = r.Lost[0].By
			}
			f.loseLease(l.token, by)
			f.refuseWrites(f.lostError(Write))
		}
	})
}

// unwanted says that nobody waits for the lease or has the file open for writing.
func (l *lease) unwanted() bool { return l.wait.head == nil && l.writers == 0 }

func (f *File) onLease(r *control.LeaseReply, err error) {
	l, e := &f.lease, f.eng
	l.asking = false
	if e.closed {
		return
	}
	switch {
	case err != nil:
		if e.metaRetry(err, "the right to write a file", f) {
			f.rearm(&l.timer, f.askLease, &l.tries)
			return
		}
		delete(e.leases.open, f.id)
		f.refuseWrites(err)
	case r.Granted:
		delete(e.leases.open, f.id)
		// Users without an open for writing keep it until the file is closed.
		unwanted := l.unwanted() && (l.old.Token == 0 || l.dropped)
		e.leases.held = append(e.leases.held, f)
		l.status, l.token = leaseHeld, r.Token
		l.grants++
		// A grant of what was released so has fenced older writes; one that is renewed has not.
		l.unclean = l.unclean && l.old.Token != 0
		l.old = control.FileLease{}
		l.tries, l.refused, l.fencing = 0, 0, 0
		e.leases.keepAlive(e)
		f.doubt()
		waiting := l.wait.take()
		for op := waiting.pop(); op != nil; op = waiting.pop() {
			op.state = opReady
			e.ready.push(op)
		}
		e.env.AtTurnEnd(&e.turn)
		if unwanted {
			f.dropLease() // closed meanwhile
		}
	case r.Fencing:
		l.fencing, l.refused = r.Token, 0
		if l.tries > 8 && e.mayLog(quietMeta) {
			e.log.Warn("waiting until the last writer of a file is fenced", "file", f.name,
				"id", f.id)
		}
		f.rearm(&l.timer, f.askLease, &l.tries)
	default:
		delete(e.leases.open, f.id)
		f.heldByOther(r)
	}
}

// heldByOther: another client has the lease. Writes wait for a while: in a live migration the
// source is about to close the file.
func (f *File) heldByOther(r *control.LeaseReply) {
	l, e := &f.lease, f.eng
	l.fencing = 0
	if l.wait.head == nil {
		return // it was only opened: the first write asks again
	}
	now := e.env.Now()
	if l.refused == 0 {
		l.refused, l.tries = now, 0
		e.log.Info("a write waits: another client writes the file", "file", f.name, "id", f.id,
			"client", fmt.Sprintf("%x", r.Holder), "host", r.HolderHost, "mount", r.HolderMount)
	}
	if now-l.refused < int64(e.opt.LeaseWait) {
		f.rearm(&l.timer, f.askLease, &l.tries)
		return
	}
	// l.refused stays, so that further writes don't wait as long again, while there are any.
	l.failed = now
	err := fmt.Errorf("by client %x on %s (%s)", r.Holder, r.HolderHost, r.HolderMount)
	e.log.Warn("a write is refused: another client writes the file", "file", f.name, "id", f.id,
		"client", fmt.Sprintf("%x", r.Holder), "host", r.HolderHost, "mount", r.HolderMount,
		"waited", time.Duration(now-l.refused), "advice",
		"close it there; if that host is lost: pstorage revoke")
	f.refuseWrites(dataplane.E(f.what(Write), dataplane.LeaseHeld, err))
}

// refuseWrites fails the writes that wait for the lease.
func (f *File) refuseWrites(err error) {
	f.lease.tries = 0
	waiting := f.lease.wait.take()
	for op := waiting.pop(); op != nil; op = waiting.pop() {
		op.state = opRunning
		f.eng.fail(op, err)
	}
}

// OpenForWrite begins a use of the file that may write, and returns its right. CloseForWrite ends
// it. Any thread may call both.
func (f *File) OpenForWrite() Right {
	c := f.client
	if c == nil || c.eng.leases.meta == nil {
		return 0
	}
	var right Right
	if c.onLoop(func() {
		right = f.openForWrite()
		f.askLease()
	}) != nil {
		return 0
	}
	return right
}

// CloseForWrite ends what OpenForWrite began. The last one gives the lease back.
func (f *File) CloseForWrite() {
	if f.client == nil || f.client.eng.leases.meta == nil {
		return
	}
	f.client.loop.Post(f.closeForWrite)
}

// OpenForWrite begins a use of f that may write or may not, as far as is known yet: the first write
// asks for the lease, so one who only reads is in nobody's way. CloseForWrite ends it.
func (e *Engine) OpenForWrite(f *File) Right {
	if e.leases.meta == nil {
		return 0
	}
	return f.openForWrite()
}

// CloseForWrite ends what OpenForWrite began. The last one gives the lease back.
func (e *Engine) CloseForWrite(f *File) {
	if e.leases.meta != nil {
		f.closeForWrite()
	}
}

func (f *File) openForWrite() Right {
	f.lease.writers++
	f.reopened()
	return f.lease.right + 1
}

func (f *File) closeForWrite() {
	f.lease.writers--
	if f.lease.writers == 0 {
		f.dropLease()
	}
}

// reopened: somebody opened the file, so it may be asked for again, and the first write waits: in a
// live migration the source is about to close it, though it was in the way long ago, too.
func (f *File) reopened() {
	if f.lease.status == leaseLost {
		f.lease.status = leaseNone
	}
	f.lease.forgetRefusal()
}

// forgetRefusal has the next write that another client is in the way of wait anew, unless writes
// wait already.
func (l *lease) forgetRefusal() {
	if l.wait.head == nil {
		l.refused = 0
	}
}

// dropLease gives the lease back, if it is held.
func (f *File) dropLease() {
	l, e := &f.lease, f.eng
	l.dropped = true
	if l.status != leaseHeld || e.closed {
		return
	}
	for op := e.newest; op != nil && !l.unclean; op = op.older {
		l.unclean = op.File == f && op.token != 0 && op.live > 0 // the grant may be newer than it
	}
	ls := &e.leases
	ls.forget(f)
	ls.going = append(ls.going, control.FileLease{File: f.id, Token: l.token, Unclean: l.unclean})
	l.status, l.token = leaseNone, 0
	e.release()
}

// forget takes f out of the list of those held.
func (ls *leases) forget(f *File) {
	for i, o := range ls.held {
		if o == f {
			ls.held[i] = ls.held[len(ls.held)-1]
			ls.held[len(ls.held)-1] = nil
			ls.held = ls.held[:len(ls.held)-1]
			return
		}
	}
}

// pending says whether a lease on the file is still to be given back.
func (ls *leases) pending(id dataplane.FileID) bool {
	for _, list := range [...][]control.FileLease{ls.going, ls.releasing} {
		for i := range list {
			if list[i].File == id {
				return true
			}
		}
	}
	return false
}

// release gives back what is to be given back, one message at a time.
func (e *Engine) release() {
	ls := &e.leases
	if len(ls.releasing) > 0 || len(ls.going) == 0 || ls.timer.Armed() || e.closed {
		return
	}
	n := min(len(ls.going), control.MaxRenew/16)
	ls.releasing, ls.going = ls.going[:n:n], ls.going[n:]
	ls.meta.ReleaseLeases(ls.releasing, func(err error) {
		if err != nil && e.closed {
			return // it was called off: leftLeases has them
		}
		if err != nil && dataplane.KindOf(err).Retry() {
			ls.going = append(ls.releasing, ls.going...)
			ls.releasing = nil
			ls.tries++
			ls.timer.Fire = e.release
			e.env.Arm(&ls.timer, e.backoff(ls.tries))
			return
		}
		ls.releasing, ls.tries = nil, 0
		e.release()
	})
}

// keepAlive has the leases renewed from now on.
func (ls *leases) keepAlive(e *Engine) {
	if ls.renew.Armed() {
		return
	}
	ls.renew.Fire = func() {
		if len(ls.held) > 0 && !e.closed {
			e.renewLeases(ls.held)
			ls.keepAlive(e)
		}
	}
	e.env.Arm(&ls.renew, int64(dataplane.RenewEvery))
}

// renewLeases says that this client lives and learns of leases that it has lost.
func (e *Engine) renewLeases(files []*File) {
	for len(files) > 0 {
		n := min(len(files), control.MaxRenew)
		list := make([]control.FileLease, n)
		byID := make(map[dataplane.FileID]*File, n)
		for i, f := range files[:n] {
			list[i] = control.FileLease{File: f.id, Token: f.lease.token}
			byID[f.id] = f
		}
		files = files[n:]
		e.leases.meta.RenewLeases(list, func(r *control.RenewLeasesReply, err error) {
			if err != nil || e.closed {
				return // the next one comes soon; no file is given away without a fence
			}
			for i := range r.Lost {
				lost := &r.Lost[i]
				if f := byID[lost.File]; f != nil {
					f.loseLease(lost.Token, lost.By)
				}
			}
		})
	}
}

// fenced: a chunk server refused a write of the token.
func (e *Engine) fenced(f *File, token uint64) {
	if e.leases.meta == nil || f.lease.status != leaseHeld || f.lease.token != token {
		return
	}
	list := []control.FileLease{{File: f.id, Token: token}}
	f.loseLease(token, "") // who did it is asked for
	e.leases.meta.RenewLeases(list, func(r *control.RenewLeasesReply, err error) {
		if err == nil && len(r.Lost) == 1 && r.Lost[0].By != "" && !e.closed {
			e.log.Error("the write lease of "+f.name+" was revoked by "+r.Lost[0].By, "file", f.id)
		}
	})
}

// loseLease: the lease was taken away. Writes that are under way fail; the others have to be
// preceded by a new open.
func (f *File) loseLease(token uint64, by string) {
	l, e := &f.lease, f.eng
	if l.status != leaseHeld || l.token != token {
		return
	}
	if by == "" {
		e.log.Error("this client may not write a file any more: it was fenced", "file", f.id,
			"name", f.name)
	} else {
		e.log.Error("the write lease of "+f.name+" was revoked by "+by, "file", f.id)
	}
	l.status, l.token = leaseLost, 0
	l.right++
	e.leases.forget(f)
	for op := e.newest; op != nil; op = op.older {
		if op.File == f && op.token == token {
			e.abort(op, f.lostError(op.Kind))
		}
	}
}

// leftLeases are those that a closed engine didn't give back.
func (e *Engine) leftLeases() []control.FileLease {
	ls := &e.leases
	left := append(ls.releasing, ls.going...)
	for _, f := range ls.held {
		left = append(left, control.FileLease{File: f.id, Token: f.lease.token,
			Unclean: f.lease.unclean || e.ops > 0}) // some are left if the loop has failed
	}
	return left
}

// AcquireLease implements Leaser.
func (m *rpcMeta) AcquireLease(file dataplane.FileID, token uint64,
	cb func(*control.LeaseReply, error)) {
	ask(m, control.OpAcquireLease, &control.AcquireLeaseReq{File: file, Token: token, Host: m.host,
		Mount: m.mount}, cb)
}

// ReleaseLeases implements Leaser.
func (m *rpcMeta) ReleaseLeases(leases []control.FileLease, cb func(error)) {
	ask(m, control.OpReleaseLeases, &control.ReleaseLeasesReq{Leases: leases},
		func(_ *control.Empty, err error) { cb(err) })
}

// RenewLeases implements Leaser.
func (m *rpcMeta) RenewLeases(leases []control.FileLease,
	cb func(*control.RenewLeasesReply, error)) {
	ask(m, control.OpRenewLeases, &control.RenewLeasesReq{Leases: leases}, cb)
}

// lastRelease is how long Close tries to give leases back. Otherwise they run out.
const lastRelease = time.Second

// releaseRest gives back what a closing client still has.
func (c *Client) releaseRest(left []control.FileLease) {
	if len(left) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastRelease)
	defer cancel()
	for len(left) > 0 {
		n := min(len(left), control.MaxRenew/16)
		req := &control.ReleaseLeasesReq{Leases: left[:n]}
		if err := c.ctl.Call(ctx, control.OpReleaseLeases, req, nil); err != nil {
			c.log.Warn("write leases not given back; they run out", "files", len(left), "after",
				dataplane.FileLeaseTime, "err", err)
			return
		}
		left = left[n:]
	}
}
