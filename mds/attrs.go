package mds

import (
	"slices"
	"strings"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// chunksFor returns how many chunks a file of the given size spans.
func chunksFor(size uint64) uint32 {
	return uint32((size + dataplane.ChunkSize - 1) / dataplane.ChunkSize)
}

// cmdSetAttr changes attributes. A truncation that frees more chunks than one command may answers
// More after it made the file shorter by a part; sent again it goes on.
type cmdSetAttr struct {
	origin
	control.SetAttrReq
}

func (c *cmdSetAttr) op() uint8 { return opSetAttr }

func (c *cmdSetAttr) put(e *encoder) {
	c.origin.put(e)
	e.u64(uint64(c.File))
	e.u32(c.Mask)
	e.u32(c.Mode)
	e.u32(c.UID)
	e.u32(c.GID)
	e.u64(c.Size)
	e.i64(c.ATimeNs)
	e.i64(c.MTimeNs)
	putPolicy(e, c.Policy)
}

func (c *cmdSetAttr) get(d *decoder) {
	c.origin.get(d)
	c.File = dataplane.FileID(d.u64())
	c.Mask, c.Mode, c.UID, c.GID = d.u32(), d.u32(), d.u32(), d.u32()
	c.Size = d.u64()
	c.ATimeNs, c.MTimeNs = d.i64(), d.i64()
	c.Policy = getPolicy(d)
}

func putPolicy(e *encoder, p control.Policy) {
	e.u8(p.Replicas)
	e.u8(p.Minimum)
	e.u8(p.Domain)
	e.u8(p.Tier)
	e.bool(p.AckMemory)
}

func getPolicy(d *decoder) control.Policy {
	return control.Policy{Replicas: d.u8(), Minimum: d.u8(), Domain: d.u8(), Tier: d.u8(),
		AckMemory: d.bool()}
}

func (c *cmdSetAttr) apply(s *State, r *Result) {
	f := s.live(c.File)
	if f == nil {
		r.fail(dataplane.NotFound, "file %d", c.File)
		return
	}
	if c.Mask&control.SetPolicy != 0 {
		if msg := checkPolicy(c.Policy); msg != "" {
			r.fail(dataplane.Invalid, "%s", msg)
			return
		}
	}
	if c.Mask&control.SetSize != 0 && !c.resize(s, f, r) {
		return
	}
	f = s.files.edit(c.File)
	if c.Mask&control.SetMode != 0 {
		f.mode = c.Mode & 0o7777
	}
	if c.Mask&control.SetUID != 0 {
		f.uid = c.UID
	}
	if c.Mask&control.SetGID != 0 {
		f.gid = c.GID
	}
	if c.Mask&control.SetATime != 0 {
		f.atime = c.ATimeNs
	}
	if c.Mask&control.SetMTime != 0 {
		f.mtime = c.MTimeNs
	}
	if c.Mask&control.SetPolicy != 0 {
		f.policy = c.Policy
	}
	f.ctime = s.nowNs
	r.Attr = s.attr(f)
}

// resize sets the size; false: the result says why not, or that there is more to do.
func (c *cmdSetAttr) resize(s *State, f *file, r *Result) bool {
	switch {
	case f.typ == control.TypeDir:
		r.fail(dataplane.IsDir, "file %d", c.File)
		return false
	case f.typ != control.TypeFile:
		r.fail(dataplane.Invalid, "file %d has no size to set", c.File)
		return false
	case c.Size > MaxFileSize:
		r.fail(dataplane.TooLarge, "%d bytes, at most %d", c.Size, uint64(MaxFileSize))
		return false
	}
	lowest, more := s.freeTail(c.File, chunksFor(c.Size), freeStep, r)
	f = s.files.edit(c.File)
	defer s.recount(c.File, f.own())
	if more {
		f.size = min(f.size, uint64(lowest)*dataplane.ChunkSize)
		r.More = true
		return false
	}
	f.size, f.mtime = c.Size, s.nowNs
	return true
}

// cmdGrow makes a file at least Size bytes long.
type cmdGrow struct {
	origin
	control.GrowReq
}

func (c *cmdGrow) op() uint8 { return opGrow }

func (c *cmdGrow) put(e *encoder) {
	e.u64(uint64(c.File))
	e.u64(c.Size)
}

func (c *cmdGrow) get(d *decoder) {
	c.File = dataplane.FileID(d.u64())
	c.Size = d.u64()
}

func (c *cmdGrow) apply(s *State, r *Result) {
	f := s.live(c.File)
	switch {
	case f == nil:
		r.fail(dataplane.NotFound, "file %d", c.File)
	case f.typ == control.TypeDir:
		r.fail(dataplane.IsDir, "file %d", c.File)
	case f.typ != control.TypeFile:
		r.fail(dataplane.Invalid, "file %d has no size to set", c.File)
	case c.Size > MaxFileSize:
		r.fail(dataplane.TooLarge, "%d bytes, at most %d", c.Size, uint64(MaxFileSize))
	default:
		f = s.files.edit(c.File)
		before := f.own()
		f.size = max(f.size, c.Size)
		s.recount(c.File, before)
		f.mtime, f.ctime = s.nowNs, s.nowNs
		r.Attr = s.attr(f)
	}
}

// cmdSetXattr sets or removes an extended attribute.
type cmdSetXattr struct {
	origin
	control.XattrReq
}

// Flags of setxattr(2).
const (
	xattrCreate  = 1
	xattrReplace = 2
)

func (c *cmdSetXattr) op() uint8 { return opSetXattr }

func (c *cmdSetXattr) put(e *encoder) {
	c.origin.put(e)
	e.u64(uint64(c.File))
	e.str(c.Name)
	e.bytes(c.Value)
	e.bool(c.Remove)
	e.u32(c.Flags)
}

func (c *cmdSetXattr) get(d *decoder) {
	c.origin.get(d)
	c.File = dataplane.FileID(d.u64())
	c.Name = d.str()
	c.Value = d.bytes()
	c.Remove = d.bool()
	c.Flags = d.u32()
}

func (c *cmdSetXattr) apply(s *State, r *Result) {
	f := s.live(c.File)
	if f == nil {
		r.fail(dataplane.NotFound, "file %d", c.File)
		return
	}
	i, found := findXattr(f, c.Name)
	switch {
	case c.Name == "" || strings.ContainsRune(c.Name, 0):
		r.fail(dataplane.Invalid, "name of an extended attribute")
		return
	case len(c.Name) > dataplane.MaxNameLen:
		r.fail(dataplane.NameTooLong, "%d bytes, at most %d", len(c.Name), dataplane.MaxNameLen)
		return
	case len(c.Value) > MaxXattrValue:
		r.fail(dataplane.TooLarge, "%d bytes, at most %d", len(c.Value), MaxXattrValue)
		return
	case found && !c.Remove && c.Flags&xattrCreate != 0:
		r.fail(dataplane.Exists, "%q", c.Name)
		return
	case !found && (c.Remove || c.Flags&xattrReplace != 0):
		r.fail(dataplane.NoAttribute, "%q", c.Name)
		return
	}
	list := slices.Clone(f.xattrs)
	switch {
	case c.Remove:
		list = slices.Delete(list, i, i+1)
	case found:
		list[i] = xattr{c.Name, c.Value}
	default:
		list = slices.Insert(list, i, xattr{c.Name, c.Value})
	}
	total := 0
	for _, x := range list {
		total += len(x.name) + len(x.value)
	}
	if total > MaxXattrBytes && !c.Remove {
		r.fail(dataplane.TooLarge, "%d bytes of extended attributes, at most %d", total,
			MaxXattrBytes)
		return
	}
	f = s.files.edit(c.File)
	f.xattrs, f.ctime = list, s.nowNs
}

// findXattr returns where an attribute is, or would be.
func findXattr(f *file, name string) (int, bool) {
	return slices.BinarySearchFunc(f.xattrs, name, func(x xattr, name string) int {
		return strings.Compare(x.name, name)
	})
}
