package mds

import (
	"fmt"
	"slices"
	"strings"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// checkName says whether name may be an entry of a directory.
func checkName(name string) (dataplane.Kind, string) {
	switch {
	case len(name) > dataplane.MaxNameLen:
		return dataplane.NameTooLong, fmt.Sprintf("%d bytes, at most %d", len(name),
			dataplane.MaxNameLen)
	case name == "" || name == "." || name == "..":
		return dataplane.Invalid, fmt.Sprintf("%q can't be a file's name", name)
	case strings.ContainsAny(name, "/\x00"):
		return dataplane.Invalid, "a name has no slash and no NUL"
	}
	return dataplane.OK, ""
}

// checkPolicy says what is wrong with a policy, or "".
func checkPolicy(p control.Policy) string {
	switch {
	case p.Replicas < 1 || p.Replicas > dataplane.MaxReplicas:
		return fmt.Sprintf("replicas=%d: 1 to %d", p.Replicas, dataplane.MaxReplicas)
	case p.Minimum < 1 || p.Minimum > p.Replicas:
		return fmt.Sprintf("minimum=%d: 1 to the number of replicas, %d", p.Minimum, p.Replicas)
	case p.Domain > DomainRoom:
		return fmt.Sprintf("failure domain %d: 0 (disk) to 4 (room)", p.Domain)
	case p.Tier > 3:
		return fmt.Sprintf("tier=%d: 0 to 3", p.Tier)
	}
	return ""
}

// parentDir returns the directory that a command works in, or fails the result.
func (s *State) parentDir(id dataplane.FileID, r *Result) *file {
	p := s.files.get(id)
	switch {
	case p == nil || s.isOrphan(p):
		r.fail(dataplane.NotFound, "directory %d", id)
		return nil
	case p.typ != control.TypeDir:
		r.fail(dataplane.NotDir, "file %d", id)
		return nil
	}
	return p
}

// isOrphan says whether f was removed and only waits for its chunks to be freed.
func (s *State) isOrphan(f *file) bool { return f.parent == 0 && f.id != dataplane.RootID }

// live returns a file that has a name, or nil.
func (s *State) live(id dataplane.FileID) *file {
	f := s.files.get(id)
	if f == nil || s.isOrphan(f) {
		return nil
	}
	return f
}

// touchDir notes a change of a directory's entries.
func (s *State) touchDir(id dataplane.FileID) *file {
	d := s.files.edit(id)
	d.mtime, d.ctime = s.nowNs, s.nowNs
	return d
}

// cmdCreate makes an entry.
type cmdCreate struct {
	origin
	control.CreateReq
}

func (c *cmdCreate) op() uint8 { return opCreate }

func (c *cmdCreate) put(e *encoder) {
	c.origin.put(e)
	e.u64(uint64(c.Parent))
	e.str(c.Name)
	e.u8(uint8(c.Type))
	e.u32(c.Mode)
	e.u32(c.UID)
	e.u32(c.GID)
	e.str(c.Target)
	e.bool(c.Exclusive)
}

func (c *cmdCreate) get(d *decoder) {
	c.origin.get(d)
	c.Parent = dataplane.FileID(d.u64())
	c.Name = d.str()
	c.Type = control.FileType(d.u8())
	c.Mode, c.UID, c.GID = d.u32(), d.u32(), d.u32()
	c.Target = d.str()
	c.Exclusive = d.bool()
}

func (c *cmdCreate) apply(s *State, r *Result) {
	parent := s.parentDir(c.Parent, r)
	if parent == nil {
		return
	}
	if kind, msg := checkName(c.Name); kind != dataplane.OK {
		r.fail(kind, "%s", msg)
		return
	}
	if c.Type < control.TypeFile || c.Type > control.TypeSymlink {
		r.fail(dataplane.Invalid, "file type %d", c.Type)
		return
	}
	isLink := c.Type == control.TypeSymlink
	if isLink && (c.Target == "" || len(c.Target) > dataplane.MaxPathLen) {
		r.fail(dataplane.Invalid, "symlink target of %d bytes: 1 to %d", len(c.Target),
			dataplane.MaxPathLen)
		return
	}
	if id := parent.dir.find(c.Name); id != 0 {
		c.existing(s, s.files.get(id), r)
		return
	}
	f := file{id: s.nextFile, parent: c.Parent, name: c.Name, typ: c.Type, mode: c.Mode & 0o7777,
		uid: c.UID, gid: c.GID, atime: s.nowNs, mtime: s.nowNs, ctime: s.nowNs,
		policy: parent.policy}
	if parent.mode&0o2000 != 0 { // setgid directory: the group is inherited
		f.gid = parent.gid
	}
	switch c.Type {
	case control.TypeDir:
		f.dir = &dirIndex{}
		f.mode |= parent.mode & 0o2000
	case control.TypeSymlink:
		f.target, f.size = c.Target, uint64(len(c.Target))
	}
	s.nextFile++
	s.files.add(f)
	s.link(f.id, c.Parent, c.Name)
	r.Attr = s.attr(s.files.get(f.id))
}

// existing answers a create whose name is taken.
func (c *cmdCreate) existing(s *State, f *file, r *Result) {
	switch {
	case !c.Exclusive && f.typ == c.Type && f.target == c.Target:
		r.Attr = s.attr(f)
	case !c.Exclusive && f.typ == control.TypeDir:
		r.fail(dataplane.IsDir, "%q", c.Name)
	default:
		r.fail(dataplane.Exists, "%q", c.Name)
	}
}

// link enters a file that exists and has no name under a free name.
func (s *State) link(id, parent dataplane.FileID, name string) {
	f := s.files.edit(id)
	f.parent, f.name = parent, name
	isDir := f.typ == control.TypeDir
	d := s.touchDir(parent)
	d.dir.insert(name, id)
	if isDir {
		d.subdirs++
	}
	s.account(parent, s.files.get(id).whole())
}

// unlink takes a file's name away.
func (s *State) unlink(id dataplane.FileID) {
	f := s.files.edit(id)
	s.account(f.parent, f.whole().negated())
	parent, name, isDir := f.parent, f.name, f.typ == control.TypeDir
	f.parent, f.name, f.ctime = 0, "", s.nowNs
	d := s.touchDir(parent)
	d.dir.remove(name)
	if isDir {
		d.subdirs--
	}
}

// destroy removes a file that has no name: at once, or by cmdReap when it has many chunks.
func (s *State) destroy(id dataplane.FileID, r *Result) {
	if s.files.get(id).chunks <= freeStep {
		s.freeTail(id, 0, freeStep, r)
		delete(s.leases.fences, id)
		s.files.remove(id)
		return
	}
	i, _ := slices.BinarySearch(s.orphans, id)
	s.orphans = slices.Insert(s.orphans, i, id)
}

// freeTail frees up to limit chunks of a file, from the end, down to index from. It returns the
// lowest index freed and whether some are left.
func (s *State) freeTail(id dataplane.FileID, from uint32, limit int, r *Result) (uint32, bool) {
	f := s.files.edit(id)
	defer s.recount(id, f.own())
	lowest, more := from, false
	f.slots.descend(from, func(i, v uint32) bool {
		if limit == 0 {
			more = true
			return false
		}
		limit--
		lowest = i
		rec := s.table.at(uint64(v - 1))
		assert(rec.File == id && rec.Index == i, "file and record disagree", id, i, rec.ID)
		s.countMembers(rec, false)
		if r != nil {
			r.Freed = append(r.Freed, freedChunk{rec.ID, rec.Replicas})
		}
		s.table.Free(rec.ID)
		f.slots.set(i, 0)
		f.chunks--
		return true
	})
	if !more {
		f.slots.trim(from)
		return from, false
	}
	f.slots.trim(lowest)
	return lowest, true
}

// cmdReap frees chunks of removed files.
type cmdReap struct{ origin }

func (c *cmdReap) op() uint8 { return opReap }

func (c *cmdReap) apply(s *State, r *Result) {
	if len(s.orphans) == 0 {
		return
	}
	id := s.orphans[0]
	if _, more := s.freeTail(id, 0, freeStep, r); !more {
		delete(s.leases.fences, id)
		s.files.remove(id)
		s.orphans = slices.Delete(s.orphans, 0, 1)
	}
}

// cmdUnlink removes a name.
type cmdUnlink struct {
	origin
	control.UnlinkReq
}

func (c *cmdUnlink) op() uint8 { return opUnlink }

func (c *cmdUnlink) put(e *encoder) {
	c.origin.put(e)
	e.u64(uint64(c.Parent))
	e.str(c.Name)
	e.bool(c.Dir)
}

func (c *cmdUnlink) get(d *decoder) {
	c.origin.get(d)
	c.Parent = dataplane.FileID(d.u64())
	c.Name = d.str()
	c.Dir = d.bool()
}

func (c *cmdUnlink) apply(s *State, r *Result) {
	parent := s.parentDir(c.Parent, r)
	if parent == nil {
		return
	}
	id := parent.dir.find(c.Name)
	if id == 0 {
		r.fail(dataplane.NotFound, "%.80q", c.Name)
		return
	}
	f := s.files.get(id)
	switch {
	case c.Dir && f.typ != control.TypeDir:
		r.fail(dataplane.NotDir, "%q", c.Name)
	case !c.Dir && f.typ == control.TypeDir:
		r.fail(dataplane.IsDir, "%q", c.Name)
	case c.Dir && f.dir.n > 0:
		r.fail(dataplane.NotEmpty, "%q has %d entries", c.Name, f.dir.n)
	default:
		s.unlink(id)
		s.destroy(id, r)
	}
}

// cmdRename moves an entry.
type cmdRename struct {
	origin
	control.RenameReq
}

// op: a server that doesn't know of files that are kept must not remove them, but stop.
func (c *cmdRename) op() uint8 {
	if c.Keep != "" {
		return opRenameKeep
	}
	return opRename
}

func (c *cmdRename) put(e *encoder) {
	c.origin.put(e)
	e.u64(uint64(c.FromParent))
	e.str(c.FromName)
	e.u64(uint64(c.ToParent))
	e.str(c.ToName)
	e.bool(c.NoReplace)
	if c.Keep != "" {
		e.str(c.Keep)
		e.u64(uint64(c.Kept))
	}
}

func (c *cmdRename) get(d *decoder) {
	c.origin.get(d)
	c.FromParent = dataplane.FileID(d.u64())
	c.FromName = d.str()
	c.ToParent = dataplane.FileID(d.u64())
	c.ToName = d.str()
	c.NoReplace = d.bool()
	if len(d.b) > 0 { // since replaced files are kept
		c.Keep = d.str()
		c.Kept = dataplane.FileID(d.u64())
	}
}

func (c *cmdRename) apply(s *State, r *Result) {
	from := s.parentDir(c.FromParent, r)
	if from == nil {
		return
	}
	to := s.parentDir(c.ToParent, r)
	if to == nil {
		return
	}
	id := from.dir.find(c.FromName)
	if id == 0 {
		r.fail(dataplane.NotFound, "%.80q", c.FromName)
		return
	}
	if kind, msg := checkName(c.ToName); kind != dataplane.OK {
		r.fail(kind, "%s", msg)
		return
	}
	f, old := s.files.get(id), to.dir.find(c.ToName)
	switch {
	case old != 0 && c.NoReplace:
		r.fail(dataplane.Exists, "%q", c.ToName)
		return
	case old == id:
		return
	case f.typ == control.TypeDir && s.within(c.ToParent, id):
		r.fail(dataplane.Invalid, "%q can't be moved into itself", c.FromName)
		return
	}
	if old != 0 && !c.replaceable(f, s.files.get(old), r) {
		return
	}
	keep := old != 0 && c.Keep != "" && old == c.Kept && s.files.get(old).typ != control.TypeDir
	if keep {
		if kind, msg := checkName(c.Keep); kind != dataplane.OK {
			r.fail(kind, "%s", msg)
			return
		}
		if s.files.get(dataplane.RootID).dir.find(c.Keep) != 0 {
			r.fail(dataplane.Exists, "%q", c.Keep)
			return
		}
	}
	if old != 0 {
		s.unlink(old)
	}
	switch {
	case keep:
		s.link(old, dataplane.RootID, c.Keep)
	case old != 0:
		s.destroy(old, r)
	}
	s.unlink(id)
	s.link(id, c.ToParent, c.ToName)
}

// replaceable says whether old may be replaced by f, and fails the result if not.
func (c *cmdRename) replaceable(f, old *file, r *Result) bool {
	isDir, oldDir := f.typ == control.TypeDir, old.typ == control.TypeDir
	switch {
	case isDir && !oldDir:
		r.fail(dataplane.NotDir, "%q", c.ToName)
	case !isDir && oldDir:
		r.fail(dataplane.IsDir, "%q", c.ToName)
	case oldDir && old.dir.n > 0:
		r.fail(dataplane.NotEmpty, "%q has %d entries", c.ToName, old.dir.n)
	default:
		return true
	}
	return false
}

// within says whether directory id is root or below it.
func (s *State) within(id, root dataplane.FileID) bool {
	for id != 0 {
		if id == root {
			return true
		}
		id = s.files.get(id).parent
	}
	return false
}
