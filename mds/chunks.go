package mds

import (
	"fmt"
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// placed is one new chunk in a cmdAllocate: where the leader decided to put it.
type placed struct {
	index    uint32
	fallback bool // in a finer failure domain than asked for
	n        uint8
	members  [dataplane.MaxReplicas]dataplane.CSID
}

// cmdAllocate makes chunks of a file. An index that has a chunk already keeps it, so a repeated
// allocation is harmless. An index whose servers can't be used (any more) is skipped; the leader
// places it again.
type cmdAllocate struct {
	origin
	File   dataplane.FileID
	Chunks []placed
}

func (c *cmdAllocate) op() uint8 { return opAllocate }

func (c *cmdAllocate) put(e *encoder) {
	e.u64(uint64(c.File))
	e.u32(uint32(len(c.Chunks)))
	for i := range c.Chunks {
		p := &c.Chunks[i]
		e.u32(p.index)
		e.bool(p.fallback)
		e.cs(p.members[:p.n])
	}
}

func (c *cmdAllocate) get(d *decoder) {
	c.File = dataplane.FileID(d.u64())
	n := d.count(6)
	if n > control.MaxMapRange {
		d.bad = true
		return
	}
	c.Chunks = make([]placed, n)
	for i := range c.Chunks {
		p := &c.Chunks[i]
		p.index = d.u32()
		p.fallback = d.bool()
		p.n = uint8(len(d.cs(p.members[:0])))
	}
}

func (c *cmdAllocate) apply(s *State, r *Result) {
	f := s.live(c.File)
	switch {
	case f == nil:
		r.fail(dataplane.NotFound, "file %d", c.File)
		return
	case f.typ != control.TypeFile:
		r.fail(dataplane.Invalid, "file %d has no chunks", c.File)
		return
	}
	f = s.files.edit(c.File)
	defer s.recount(c.File, f.own())
	for i := range c.Chunks {
		p := &c.Chunks[i]
		if p.index >= MaxFileChunks {
			r.fail(dataplane.TooLarge, "chunk %d of a file, at most %d", p.index, MaxFileChunks)
			return
		}
		if f.slots.get(p.index) != 0 || !s.placeable(p.members[:p.n]) {
			continue
		}
		rec, err := s.table.Alloc()
		if err != nil {
			r.fail(dataplane.KindOf(err), "%v", err)
			return
		}
		rec.File, rec.Index, rec.Epoch, rec.ChangedNs = c.File, p.index, 1, s.nowNs
		rec.Wanted, rec.Minimum = f.policy.Replicas, f.policy.Minimum
		rec.Domain, rec.Tier = f.policy.Domain, f.policy.Tier
		if f.policy.AckMemory {
			rec.Ack = 1
		}
		if p.fallback {
			rec.Flags |= flagFallback
		}
		rec.setMembers(p.members[:p.n])
		rec.seal()
		s.countMembers(rec, true)
		f.slots.set(p.index, uint32(rec.ID.Slot())+1)
		f.chunks++
	}
}

// placeable says whether the members can be a chunk's first configuration.
func (s *State) placeable(members []dataplane.CSID) bool {
	for i, m := range members {
		if !s.usable(m) {
			return false
		}
		for _, other := range members[:i] {
			if other == m {
				return false
			}
		}
	}
	return len(members) > 0
}

// cmdReconfigure replaces a chunk's members by compare-and-set on the epoch (invariant I3), or
// marks it as created.
type cmdReconfigure struct {
	origin
	Chunk      dataplane.ChunkID
	Epoch      dataplane.Epoch
	Members    []dataplane.CSID
	SetCreated bool
	// Moved: who leaves was sealed by the head, which asks for this, so it needn't register again.
	Moved bool
	// Handover: the only member leaves; the one that is added has its copy on record (held).
	Handover bool
	// Fresh: the chunk was never written to and all of its members are gone: others begin it anew.
	Fresh bool
	space [dataplane.MaxReplicas]dataplane.CSID
}

// op: a server that doesn't know of changes of all members must not refuse them, but stop.
func (c *cmdReconfigure) op() uint8 {
	if c.Handover || c.Fresh {
		return opReplace
	}
	return opReconfigure
}

func (c *cmdReconfigure) put(e *encoder) {
	e.u64(uint64(c.Chunk))
	e.u32(uint32(c.Epoch))
	e.cs(c.Members)
	e.bool(c.SetCreated)
	e.bool(c.Moved)
	if c.Handover || c.Fresh {
		e.bool(c.Handover)
		e.bool(c.Fresh)
	}
}

func (c *cmdReconfigure) get(d *decoder) {
	c.Chunk = dataplane.ChunkID(d.u64())
	c.Epoch = dataplane.Epoch(d.u32())
	c.Members = d.cs(c.space[:0])
	c.SetCreated = d.bool()
	if len(d.b) > 0 { // since there are moves
		c.Moved = d.bool()
	}
	if len(d.b) > 0 { // since only copies are moved
		c.Handover = d.bool()
	}
	if len(d.b) > 0 { // since chunks that were never written to are begun anew
		c.Fresh = d.bool()
	}
}

func (c *cmdReconfigure) apply(s *State, r *Result) {
	rec := s.table.Lookup(c.Chunk)
	if rec == nil {
		r.fail(dataplane.NotFound, "chunk %v", c.Chunk)
		return
	}
	created := rec.Flags&flagCreated != 0
	switch {
	case rec.Epoch == c.Epoch+1 && len(c.Members) > 0 && rec.sameMembers(c.Members) &&
		(created || !c.SetCreated):
		r.Rec = *rec // applied before: the asker tries again after a lost reply
		return
	case rec.Epoch != c.Epoch:
		r.Rec = *rec
		r.fail(dataplane.Conflict, "chunk %v is at epoch %d with members %s, not at %d", c.Chunk,
			rec.Epoch, memberList(rec), c.Epoch)
		return
	case len(c.Members) == 0 && !c.SetCreated:
		r.fail(dataplane.Invalid, "nothing to change at chunk %v", c.Chunk)
		return
	}
	if len(c.Members) > 0 {
		if msg := s.checkMembers(rec, c); msg != "" {
			r.Rec = *rec
			r.fail(dataplane.Invalid, "%s", msg)
			return
		}
	}
	if len(c.Members) == 0 && created {
		r.Rec = *rec
		return
	}
	rec = s.table.Edit(c.Chunk)
	if c.SetCreated {
		rec.Flags |= flagCreated
	}
	if len(c.Members) > 0 {
		s.countMembers(rec, false)
		for _, m := range rec.members() {
			if !c.Moved {
				s.fence(m.CS, rec, c.Members)
			}
		}
		rec.changeMembers(c.Members)
		rec.Epoch++
		s.countMembers(rec, true)
		s.judgeSpread(rec)
	}
	rec.ChangedNs = s.nowNs
	rec.seal()
	r.Rec = *rec
}

// checkMembers says what is wrong with a new list of members, or "". At least one member of the
// current epoch stays (invariant I7), unless the only one hands its copy over, or there is nothing
// that it could hold: a head serves only once its chunk is marked as created. Those that stay keep
// their order, but for one that becomes the head.
func (s *State) checkMembers(rec *Record, c *cmdReconfigure) string {
	members, last, stay := c.Members, -1, 0
	if len(members) > max(int(rec.Wanted), int(rec.Present)) {
		return fmt.Sprintf("members %v of chunk %v: %d are wanted", members, rec.ID, rec.Wanted)
	}
	for k, m := range members {
		if slices.Contains(members[:k], m) {
			return fmt.Sprintf("members %v of chunk %v: twice the same", members, rec.ID)
		}
		i := slices.IndexFunc(rec.members(), func(old Replica) bool { return old.CS == m })
		switch {
		case i < 0 && !s.usable(m):
			return fmt.Sprintf("members %v of chunk %v: CS %d is unknown or dropped", members,
				rec.ID, m)
		case i < 0:
		case k == 0:
			stay++ // it may have been further behind
		case i < last:
			return fmt.Sprintf("members %v of chunk %v: the order changed", members, rec.ID)
		default:
			last, stay = i, stay+1
		}
	}
	handover := c.Handover && rec.Present == 1 && len(members) == 1
	fresh := c.Fresh && rec.Flags&flagCreated == 0
	if stay == 0 && !handover && !fresh {
		return fmt.Sprintf("chunk %v must keep a member of epoch %d, one of %s", rec.ID, rec.Epoch,
			memberList(rec))
	}
	return ""
}

// fence notes that cs, a member of rec so far, isn't one of the new members: its lease may not be
// renewed before it registered again and so learned what to forget.
func (s *State) fence(cs dataplane.CSID, rec *Record, members []dataplane.CSID) {
	for _, m := range members {
		if m == cs {
			return
		}
	}
	c := s.server(cs)
	if c == nil || c.Fenced {
		return
	}
	clone := *c
	clone.Fenced = true
	s.cs[cs] = &clone
	s.addEvent(control.Warning, fmt.Sprintf("cs %d", cs), "cs-excluded", fmt.Sprintf(
		"excluded from chunk %v at epoch %d (more chunks may follow); it registers again before "+
			"it serves", rec.ID, rec.Epoch+1))
}

// memberList is "1,2,3" for messages.
func memberList(r *Record) string {
	text := ""
	for i, m := range r.members() {
		if i > 0 {
			text += ","
		}
		text += fmt.Sprint(m.CS)
	}
	return text
}
