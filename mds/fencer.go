package mds

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// This file is the leader's part of file leases: which clients live, which chunk servers have which
// fences in force, and the requests about both. Requests never wait for chunk servers: the asker is
// told to ask again.

// fencer is soft state of a leader: empty at first. All clients are then believed to live, for as
// long as a silent one keeps its leases, and no chunk server to have any fence.
type fencer struct {
	acked   map[dataplane.CSID]uint64 // fences up to this number are in force there
	clients map[uint64]int64          // when a client was heard of last, ns
	pruneNs int64
	hasty   bool // a canary of simulations: no chunk server is waited for
	// revoked is what requests to revoke have taken away: one that is repeated, as its answer was
	// lost, takes nothing from who has got the file since. order has the oldest first.
	revoked map[revocation]bool
	order   fifo[revocation]
}

// revocation is a file whose lease a request takes away.
type revocation struct {
	origin
	file dataplane.FileID
}

// maxRevoked is how many revocations are remembered.
const maxRevoked = 16 << 10

// revokes notes what a request is about to take away. mu is held.
func (f *fencer) revokes(r revocation) {
	if f.revoked == nil {
		f.revoked, f.order.max = make(map[revocation]bool), maxRevoked
	}
	f.revoked[r] = true
	if old, forgot := f.order.push(r); forgot {
		delete(f.revoked, old)
	}
}

// ack notes what a chunk server says it has in force. mu is held.
func (l *leader) fenceAck(cs dataplane.CSID, seq uint64) {
	if l.fence.acked == nil {
		l.fence.acked = make(map[dataplane.CSID]uint64)
	}
	l.fence.acked[cs] = seq // also down: a new process has none
}

// heard notes that a client lives. mu is held.
func (l *leader) heard(client uint64) {
	f, now := &l.fence, l.now()
	if f.clients == nil {
		f.clients = make(map[uint64]int64)
	}
	f.clients[client] = now
	if now-f.pruneNs < int64(dataplane.FileLeaseTime) {
		return
	}
	f.pruneNs = now
	for id, at := range f.clients {
		if now-at > 10*int64(dataplane.FileLeaseTime) {
			delete(f.clients, id) // its leases, if any, are free since long
		}
	}
}

// silent is for how long a client wasn't heard of. mu is held.
func (l *leader) silent(client uint64) time.Duration {
	at, ok := l.fence.clients[client]
	if !ok {
		at = l.leases.sinceNs
	}
	return time.Duration(l.now() - at)
}

// unfencedBy lists the chunk servers that may serve and don't have the fence in force. mu is held.
func (l *leader) unfencedBy(s *State, seq uint64) (waiting []dataplane.CSID) {
	if seq == 0 || l.fence.hasty {
		return nil
	}
	now := l.now()
	for _, c := range s.cs {
		if c == nil {
			continue
		}
		e := l.leases.at(c.ID)
		gone := e.exitedBoot != 0 || now-e.answeredNs >= int64(leaseOut)
		if !gone && l.fence.acked[c.ID] < seq {
			waiting = append(waiting, c.ID)
		}
	}
	return waiting
}

// pushFences tells the chunk servers that don't have all fences. Both locks are held.
func (l *leader) pushFences(s *State) {
	missing := make(map[uint64]control.FencePush) // by what they have: most have the same
	for _, c := range s.cs {
		if c == nil || l.fence.acked[c.ID] >= s.leases.fenceSeq {
			continue
		}
		if k := l.cs[c.ID]; k != nil && k.peer != nil {
			p, known := missing[l.fence.acked[c.ID]]
			if !known {
				p = s.fencesAfter(l.fence.acked[c.ID])
				missing[l.fence.acked[c.ID]] = p
			}
			l.push(c.ID, control.OpFence, &p)
		}
	}
}

// locked calls f with the state and the leader's own.
func (c *call) locked(f func(s *State)) {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	fsm := c.r.fsm
	fsm.mu.RLock()
	defer fsm.mu.RUnlock()
	f(fsm.s)
}

func (c *call) acquireLease(req *control.AcquireLeaseReq) (any, error) {
	if err := c.l.valid(c.ctx); err != nil {
		return nil, err
	}
	if len(req.Host) > dataplane.MaxPathLen || len(req.Mount) > dataplane.MaxPathLen {
		return nil, c.fail(dataplane.Invalid, "text too long")
	}
	me := c.from.Peer
	var lease fileLease
	reply := &control.LeaseReply{}
	ask := false
	c.locked(func(s *State) {
		c.l.heard(me)
		lease = s.leaseOf(req.File)
		switch {
		case lease.holder == me && lease.token == req.Token:
			reply.Token = lease.token
			reply.Granted = len(c.l.unfencedBy(s, lease.fenceSeq)) == 0
			reply.Fencing = !reply.Granted
		case lease.holder == 0 || lease.holder == me:
			ask = true
		case c.l.silent(lease.holder) >= dataplane.FileLeaseTime:
			ask = true
		default:
			reply.Holder = dataplane.ClientID(lease.holder)
			reply.HolderHost, reply.HolderMount = lease.host, lease.mount
		}
	})
	if !ask {
		return reply, nil
	}
	res, err := c.change(&cmdLease{Action: leaseGrant, File: req.File, Client: me,
		Token: lease.token, Host: req.Host, Mount: req.Mount})
	if dataplane.KindOf(err) == dataplane.LeaseHeld {
		return &control.LeaseReply{Holder: dataplane.ClientID(res.Lease.holder),
			HolderHost: res.Lease.host, HolderMount: res.Lease.mount}, nil
	}
	if err != nil {
		return nil, err
	}
	c.locked(func(s *State) {
		reply = &control.LeaseReply{Token: res.Lease.token}
		reply.Fencing = len(c.l.unfencedBy(s, res.Lease.fenceSeq)) > 0
		reply.Granted = !reply.Fencing
		if reply.Fencing {
			c.l.pushFences(s)
		}
	})
	return reply, nil
}

// mayResize refuses a change of a file's size under a lease that its client doesn't have any more:
// a request may have waited for longer than a silent client keeps its leases, and somebody else
// have written the file since.
func (c *call) mayResize(file dataplane.FileID, token uint64) error {
	if token == 0 {
		return nil
	}
	f := c.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	l := f.s.leaseOf(file)
	if f.s.live(file) != nil && (l.holder != c.from.Peer || l.token != token) {
		return c.fail(dataplane.Fenced, "the right to write file %d was taken from client %x before "+
			"its size was changed", file, c.from.Peer)
	}
	return nil
}

func (c *call) releaseLeases(req *control.ReleaseLeasesReq) (any, error) {
	if len(req.Leases) > control.MaxRenew {
		return nil, c.fail(dataplane.Invalid, "%d leases", len(req.Leases))
	}
	for _, f := range req.Leases {
		_, err := c.change(&cmdLease{Action: leaseRelease, File: f.File, Client: c.from.Peer,
			Token: f.Token, Unclean: f.Unclean})
		if err != nil && dataplane.KindOf(err) != dataplane.NotFound {
			return nil, err
		}
	}
	return nil, nil
}

// lostBytes is what a LostLease takes in a message, besides By.
const lostBytes = 24

func (c *call) renewLeases(req *control.RenewLeasesReq) (any, error) {
	if err := c.l.valid(c.ctx); err != nil {
		return nil, err
	}
	if len(req.Leases) > control.MaxRenew {
		return nil, c.fail(dataplane.Invalid, "%d leases", len(req.Leases))
	}
	reply := &control.RenewLeasesReply{}
	bytes := 0
	c.locked(func(s *State) {
		c.l.heard(c.from.Peer)
		for _, f := range req.Leases {
			if bytes > maxReadDirBytes {
				break // it is told of the others when it asks again
			}
			l := s.leaseOf(f.File)
			if l.holder == c.from.Peer {
				continue
			}
			by := l.lostBy
			if s.live(f.File) == nil {
				by = "the removal of the file"
			}
			reply.Lost = append(reply.Lost, control.LostLease{File: f.File, Token: f.Token, By: by})
			bytes += lostBytes + len(by)
		}
	})
	return reply, nil
}

// leaseDoc describes who may write a file; nil: nobody. Both locks are held.
func (l *leader) leaseDoc(s *State, f *file) *control.LeaseDoc {
	if f.lease == nil || f.lease.holder == 0 {
		return nil
	}
	return &control.LeaseDoc{File: uint64(f.id), Path: s.pathOf(f.id), Client: f.lease.holder,
		Host: f.lease.host, Mount: f.lease.mount, SinceNs: f.lease.sinceNs,
		SilentMs: l.silent(f.lease.holder).Milliseconds(),
		LeaseMs:  dataplane.FileLeaseTime.Milliseconds()}
}

// revokeStep is how many files one revoke command takes on.
const revokeStep = 1000

// revoke takes leases away; see control.RevokeArgs.
func (c *call) revoke(args *control.RevokeArgs) (any, error) {
	doc := &control.RevokeDoc{Revoked: []control.LeaseDoc{}, Waiting: []uint32{}}
	var todo []dataplane.FileID
	var err error
	c.locked(func(s *State) {
		var ids []dataplane.FileID
		if ids, err = s.revocable(args); err != nil {
			return
		}
		for _, id := range ids {
			f := s.files.get(id)
			d := c.l.leaseDoc(s, f)
			switch {
			case uint64(id) <= args.After && args.After != 0:
				continue
			case d == nil && (f.lease == nil || !f.lease.unclean),
				c.l.fence.revoked[revocation{c.from, id}]:
				// Taken away already, as by a request that is being repeated; it may not be in
				// force everywhere yet.
				if f.lease != nil {
					doc.Seq = max(doc.Seq, f.lease.fenceSeq)
				}
				doc.Free++
				continue
			case args.Client != 0 && (d == nil || d.Client != args.Client):
				continue
			case len(todo) == revokeStep:
				doc.Next = uint64(todo[len(todo)-1])
				return
			}
			todo = append(todo, id)
			c.l.fence.revokes(revocation{c.from, id})
			if d != nil {
				doc.Revoked = append(doc.Revoked, *d)
			}
		}
	})
	if err != nil {
		return nil, err
	}
	for _, id := range todo {
		res, err := c.change(&cmdLease{Action: leaseRevoke, File: id, Client: args.Client,
			By: args.By})
		if err != nil && dataplane.KindOf(err) != dataplane.NotFound {
			return nil, err
		}
		doc.Seq = max(doc.Seq, res.Lease.fenceSeq)
	}
	c.locked(func(s *State) {
		c.l.pushFences(s)
		for _, id := range c.l.unfencedBy(s, doc.Seq) {
			doc.Waiting = append(doc.Waiting, uint32(id))
		}
	})
	return doc, nil
}

// revokeWait says which chunk servers are waited for.
func (c *call) revokeWait(args *control.RevokeWaitArgs) (any, error) {
	doc := &control.RevokeDoc{Revoked: []control.LeaseDoc{}, Waiting: []uint32{}, Seq: args.Seq}
	c.locked(func(s *State) {
		for _, id := range c.l.unfencedBy(s, args.Seq) {
			doc.Waiting = append(doc.Waiting, uint32(id))
		}
	})
	return doc, nil
}

// revocable lists the files that a revoke is about, ascending by id.
func (s *State) revocable(args *control.RevokeArgs) (ids []dataplane.FileID, err error) {
	const what = "revoke"
	if args.All {
		if args.Client == 0 {
			return nil, dataplane.E(what, dataplane.Invalid,
				errors.New("all files of which client?"))
		}
		for id := range s.files.byID {
			if f := s.files.get(id); f.lease != nil && f.lease.holder == args.Client {
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		return ids, nil
	}
	f, err := s.lookupPath(args.Path)
	switch {
	case err != nil:
		return nil, err
	case f.typ == control.TypeFile:
		return []dataplane.FileID{f.id}, nil
	case f.typ != control.TypeDir:
		return nil, dataplane.E(what, dataplane.Invalid, fmt.Errorf("%s is a symlink", args.Path))
	case !args.Recursive:
		return nil, dataplane.E(what, dataplane.IsDir, fmt.Errorf("%s; for all files below it "+
			"revoke recursively", args.Path))
	}
	todo := []dataplane.FileID{f.id}
	for len(todo) > 0 {
		dir := s.files.get(todo[len(todo)-1])
		todo = todo[:len(todo)-1]
		dir.dir.after("", func(e *dirEntry) bool {
			switch s.files.get(e.id).typ {
			case control.TypeDir:
				todo = append(todo, e.id)
			case control.TypeFile:
				ids = append(ids, e.id)
			}
			return true
		})
	}
	slices.Sort(ids)
	return ids, nil
}
