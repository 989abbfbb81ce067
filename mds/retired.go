package mds

import (
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// A former member of a chunk keeps what it holds, unserved, as long as the record names it: if it
// becomes a member again only what changed is copied. When its place is taken it is asked for its
// inventory, and told to forget.

// wasMember says whether cs is a former member whose place is free.
func (r *Record) wasMember(cs dataplane.CSID) bool {
	return slices.ContainsFunc(r.former(), func(m Replica) bool { return m.CS == cs })
}

// formerOf lists the former members that may still hold what they had of a chunk, for who lacks a
// block. Both locks are held.
func (l *leader) formerOf(s *State, rec *Record, nowNs int64) (list []control.CSAddr) {
	for _, m := range rec.former() {
		c := s.server(m.CS)
		if c != nil && !c.Dropped && c.Failed == "" && !l.leases.at(m.CS).failed {
			list = append(list, l.addr(s, m.CS, nowNs))
		}
	}
	return list
}

// stillRetired asks for the inventory once more if one of the chunks that cs was told to keep, in
// the registration that just ended, has found another member meanwhile. mu is held.
func (l *leader) stillRetired(cs dataplane.CSID, retired []dataplane.ChunkID) {
	f := l.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, id := range retired {
		if rec := f.s.table.Lookup(id); rec == nil || !rec.wasMember(cs) {
			l.leases.at(cs).relist = true
			return
		}
	}
}

// recordOf copies a chunk's record; the zero value: there is none.
func (l *leader) recordOf(id dataplane.ChunkID) (rec Record) {
	f := l.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	if p := f.s.table.Lookup(id); p != nil {
		rec = *p
	}
	return rec
}

// displaced asks the former members of before whose place is taken now for their inventories.
// mu is held.
func (l *leader) displaced(before, now *Record) {
	for _, m := range before.former() {
		if !now.has(m.CS) && !now.wasMember(m.CS) {
			l.leases.at(m.CS).relist = true
		}
	}
}
