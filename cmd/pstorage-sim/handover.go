package main

import (
	"encoding/binary"
	"encoding/json"

	"pstorage/dataplane"
	dpclient "pstorage/dataplane/client"
	"pstorage/dataplane/control"
)

// In a part of the runs clients take write leases, as they do in a cluster, and at the end a file
// is given to another client while writes of the first are held back on their way (promise P5: none
// of them may land once the second may write).

// handoverPeer names the administrator.
const handoverPeer = 1<<40 + 1

// chooseLeases decides by a stream of its own. Clients that crash would keep their leases too long.
func (w *world) chooseLeases() {
	w.sc.leases = w.sim.Rand("leases").IntN(3) == 0 && w.sc.mortal == 0
}

// leasedMeta is clientMeta of a cluster with leases: a client.Leaser.
type leasedMeta struct{ clientMeta }

// AcquireLease implements client.Leaser.
func (m *leasedMeta) AcquireLease(file dataplane.FileID, token uint64,
	cb func(*control.LeaseReply, error)) {
	askFor(&m.clientMeta, control.OpAcquireLease, &control.AcquireLeaseReq{File: file, Token: token},
		cb)
}

// ReleaseLeases implements client.Leaser.
func (m *leasedMeta) ReleaseLeases(leases []control.FileLease, cb func(error)) {
	askFor(&m.clientMeta, control.OpReleaseLeases, &control.ReleaseLeasesReq{Leases: leases},
		func(_ *control.Empty, err error) { cb(err) })
}

// RenewLeases implements client.Leaser.
func (m *leasedMeta) RenewLeases(leases []control.FileLease,
	cb func(*control.RenewLeasesReply, error)) {
	askFor(&m.clientMeta, control.OpRenewLeases, &control.RenewLeasesReq{Leases: leases}, cb)
}

// fenced takes fences over; false: some are missing, and the lease that came along isn't given yet.
func (n *csNode) fenced(p *control.FencePush) bool {
	if p.Seq == 0 {
		return true
	}
	ok := n.shard.Fence(p, func() { n.env.Arm(&n.beat, 0) })
	return ok && !p.More
}

// handover gives the first file to the second client.
func (w *world) handover() {
	rng := w.sim.Rand("handover")
	f, old, next := w.files[0], w.cl[0], w.cl[1]
	until := w.sim.Now() + 50*ms + rng.Int64N(sec+sec/2)
	if rng.IntN(2) == 0 { // fences come late, too
		w.cutFences(true)
		w.sim.After(100*ms+rng.Int64N(800*ms), func() { w.cutFences(false) })
	}
	for _, n := range w.cs {
		w.net.Stall(old.ip, n.ip, until-w.sim.Now())
	}
	var offs []int64
	for i := range int64(4) {
		offs = append(offs, (4*i+rng.Int64N(4))*dataplane.BlockSize)
	}
	w.trace("client %d writes, and its packets are held back; file 1 is given to client %d",
		old.index+1, next.index+1)
	ended := 0
	old.env.Do(func() {
		for _, off := range offs {
			op := &dpclient.Op{Kind: dpclient.Write, File: old.handles[0], Offset: off,
				Buf: make([]byte, dataplane.BlockSize)}
			for i := 0; i < len(op.Buf); i += 8 {
				binary.LittleEndian.PutUint64(op.Buf[i:], 0xdead<<32|uint64(off))
			}
			op.Done = func(*dpclient.Op) { ended++ } // done, or fenced
			old.eng.Submit(op)
		}
	})
	w.sim.Run(func() bool { return false }, w.sim.Now()+rng.Int64N(20*ms))
	w.revoke("/f0")
	f.writer = 1
	for _, off := range offs {
		next.env.Do(func() { next.write(f, off, dataplane.BlockSize, false) })
	}
	if !w.wait(w.quiet, 60*sec, "writes of the new holder") {
		w.explainStuck()
		return
	}
	w.sim.Run(func() bool { return false }, max(until, w.sim.Now())+500*ms)
	w.lastReads()
	w.wait(func() bool { return ended == len(offs) }, 60*sec, "writes of the old holder end")
}

// cutFences stops what metadata servers say to chunk servers, or lets it through again.
func (w *world) cutFences(cut bool) {
	for _, from := range w.mds.ips {
		for _, n := range w.cs {
			w.net.Cut(from, n.ip, cut)
		}
	}
}

// revoke takes the lease on a file away.
func (w *world) revoke(path string) {
	args, err := json.Marshal(control.RevokeArgs{Path: path, By: "test"})
	if err != nil {
		panic(err)
	}
	for id, done := uint64(1), false; !done; id++ {
		w.wait(w.mds.sim.Leading, 60*sec, "a leader")
		answered := false
		w.mds.sim.Handle(dataplane.RoleAdmin, handoverPeer, id, control.OpAdmin,
			&control.AdminReq{Command: control.AdminRevoke, Args: args},
			func(_ []byte, err error) { answered, done = true, err == nil })
		if !w.wait(func() bool { return answered }, 60*sec, "revoke") {
			return
		}
		if id > 100 {
			w.violate("the file can't be taken away from its client")
			return
		}
	}
}
