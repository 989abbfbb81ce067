package mds

import (
	"fmt"
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// domainNames are the failure domains by level, for people.
var domainNames = []string{"disk", "host", "rack", "row", "room"}

// ackNames are the write-ack modes, for people.
var ackNames = []string{"disk", "memory"}

func policyDoc(p control.Policy) control.PolicyDoc {
	d := control.PolicyDoc{Replicas: int(p.Replicas), Minimum: int(p.Minimum), Tier: int(p.Tier),
		FailureDomain: domainNames[min(p.Domain, DomainRoom)], WriteAck: ackNames[0]}
	if p.AckMemory {
		d.WriteAck = ackNames[1]
	}
	return d
}

func attrDoc(path string, f *file) control.AttrDoc {
	types := map[control.FileType]string{control.TypeFile: "file",
		control.TypeDir: "directory", control.TypeSymlink: "symlink"}
	doc := control.AttrDoc{Path: path, File: uint64(f.id), Type: types[f.typ], Size: f.size,
		Chunks: uint64(f.chunks), Policy: policyDoc(f.policy)}
	if f.typ == control.TypeDir {
		u := &f.dir.below
		doc.Usage = &control.UsageDoc{Files: u.files, Dirs: u.dirs, Size: u.bytes,
			Chunks: u.chunks, Allocated: u.chunks * dataplane.ChunkSize}
	}
	return doc
}

// fileInfoMax is how many chunks a FileInfoDoc lists.
const fileInfoMax = 1024

func (c *call) fileInfo(args *control.PathArgs) (any, error) {
	l, fsm := c.l, c.r.fsm
	l.mu.Lock()
	defer l.mu.Unlock()
	fsm.mu.RLock()
	defer fsm.mu.RUnlock()
	f, err := fsm.s.lookupPath(args.Path)
	if err != nil {
		return nil, err
	}
	doc := &control.FileInfoDoc{AttrDoc: attrDoc(args.Path, f), List: []control.ChunkDoc{},
		Writer: l.leaseDoc(fsm.s, f)}
	now := l.now()
	for i := uint32(0); int(i) < len(f.slots.pages)*slotsPerPage; i++ {
		slot := f.slots.get(i)
		if slot == 0 {
			continue
		}
		if len(doc.List) == fileInfoMax {
			break
		}
		rec := fsm.s.table.At(uint64(slot - 1))
		d := control.ChunkDoc{Index: i, Chunk: rec.ID.String(), Epoch: uint32(rec.Epoch),
			Created: rec.Flags&flagCreated != 0}
		for _, m := range rec.members() {
			d.Members = append(d.Members, uint32(m.CS))
			d.Live = append(d.Live, l.leases.live(m.CS, now))
		}
		doc.List = append(doc.List, d)
	}
	return doc, nil
}

func (c *call) getPolicy(args *control.PathArgs) (any, error) {
	fsm := c.r.fsm
	fsm.mu.RLock()
	defer fsm.mu.RUnlock()
	f, err := fsm.s.lookupPath(args.Path)
	if err != nil {
		return nil, err
	}
	return attrDoc(args.Path, f), nil
}

func (c *call) setPolicy(args *control.SetAttrArgs) (any, error) {
	fsm := c.r.fsm
	fsm.mu.RLock()
	f, err := fsm.s.lookupPath(args.Path)
	var id dataplane.FileID
	var p control.Policy
	if err == nil {
		id, p = f.id, f.policy
	}
	fsm.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	if p, err = changePolicy(p, args); err != nil {
		return nil, err
	}
	_, err = c.change(&cmdSetAttr{c.from, control.SetAttrReq{File: id, Mask: control.SetPolicy,
		Policy: p}})
	if err == nil && args.Recursive {
		err = c.setPolicyBelow(id, args)
	}
	if err != nil {
		return nil, err
	}
	return c.getPolicy(&control.PathArgs{Path: args.Path})
}

// changePolicy applies what args says to p. A minimum above a new, smaller number of replicas goes
// down with it unless it was given too.
func changePolicy(p control.Policy, args *control.SetAttrArgs) (control.Policy, error) {
	invalid := func(format string, a ...any) (control.Policy, error) {
		return p, dataplane.E("set attributes of "+args.Path, dataplane.Invalid,
			fmt.Errorf(format, a...))
	}
	for _, n := range []*int{args.Replicas, args.Minimum, args.Tier} {
		if n != nil && (*n < 0 || *n > 255) {
			return invalid("%d is out of range", *n)
		}
	}
	if args.Replicas != nil {
		p.Replicas = uint8(*args.Replicas)
		p.Minimum = min(p.Minimum, p.Replicas)
	}
	if args.Minimum != nil {
		p.Minimum = uint8(*args.Minimum)
	}
	if args.Tier != nil {
		p.Tier = uint8(*args.Tier)
	}
	if args.FailureDomain != nil {
		i := slices.Index(domainNames, *args.FailureDomain)
		if i < 0 {
			return invalid("failure domain %.40q: one of %v", *args.FailureDomain, domainNames)
		}
		p.Domain = uint8(i)
	}
	if args.WriteAck != nil {
		i := slices.Index(ackNames, *args.WriteAck)
		if i < 0 {
			return invalid("write-ack %.40q: one of %v", *args.WriteAck, ackNames)
		}
		p.AckMemory = i == 1
	}
	if msg := checkPolicy(p); msg != "" {
		return invalid("%s", msg)
	}
	return p, nil
}
