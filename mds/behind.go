package mds

import (
	"fmt"
	"runtime"
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// What a majority of the metadata servers has agreed on is on record with every later leader. So a
// leader of whose record a chunk server has seen more than there is has an older copy of it: one
// that was put back, or what a disk kept that lost confirmed writes. It must not go on. Chunks
// that are newer than its record would be deleted, and their ids given to others; and members that
// were excluded would serve again.
//
// Chunk servers bring two proofs: the highest index of the record in the answers to this process
// (the entries that each leadership begins with may hide it if only few are lost), and, when they
// register, chunks and epochs that are not in the record yet. As long as this leader leads it gives
// no leases then, and does nothing by itself.

// index is how far the record goes that this server has applied.
func (r *replica) index() uint64 {
	if r.sim != nil {
		return r.sim.applied
	}
	return r.raft.AppliedIndex()
}

// checkSeen refuses if a chunk server has seen more of the record than there is, or if that was
// found before. The leader's mu is held.
func (c *call) checkSeen(cs dataplane.CSID, seen uint64) error {
	if have := c.r.index(); c.l.behind == "" && seen > have {
		c.l.fallBehind(fmt.Sprintf("CS %d has seen entry %d of the metadata servers' record, which "+
			"ends at %d", cs, seen, have))
	}
	return c.notBehind()
}

// checkRecord refuses a registration that shows that the record is an older copy.
func (c *call) checkRecord(cs dataplane.CSID, req *control.RegisterCSReq) error {
	c.l.mu.Lock()
	err := c.checkSeen(cs, req.Seen)
	c.l.mu.Unlock()
	if err != nil {
		return err
	}
	return c.checkHeld(cs, req.Chunks)
}

// checkHeld refuses if an inventory has chunks or epochs that the record doesn't have yet.
func (c *call) checkHeld(cs dataplane.CSID, held []control.HeldChunk) error {
	f, why := c.r.fsm, ""
	for piece := range slices.Chunk(held, heldStep) {
		f.mu.RLock()
		for _, h := range piece {
			if f.s.table.NeverWas(h.Chunk) {
				why = fmt.Sprintf("CS %d has chunk %v, which isn't in the metadata servers' record yet", cs,
					h.Chunk)
			} else if rec := f.s.table.Lookup(h.Chunk); rec != nil && h.Epoch > rec.Epoch {
				why = fmt.Sprintf("CS %d has chunk %v at epoch %d, in the metadata servers' record it is "+
					"at %d", cs, h.Chunk, h.Epoch, rec.Epoch)
			}
		}
		f.mu.RUnlock()
		if why != "" {
			break
		}
		runtime.Gosched()
	}
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if why != "" && c.l.behind == "" {
		c.l.fallBehind(why)
	}
	return c.notBehind()
}

// notBehind is an error if the record is an older copy. The leader's mu is held.
func (c *call) notBehind() error {
	if c.l.behind == "" {
		return nil
	}
	return c.fail(dataplane.Internal, "%s", c.l.behind)
}

// fallBehind notes that the record is an older copy. mu is held.
func (l *leader) fallBehind(why string) {
	l.behind = why + ": an older copy of their data was put back, or their disks lost what they had " +
		"confirmed. No chunk server gets a lease, as chunks that are newer would be deleted. Put the " +
		"right data back"
	l.event(control.Fault, "mds", "mds-rolled-back", l.behind)
}

// isBehind says whether the record is an older copy.
func (l *leader) isBehind() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.behind != ""
}
