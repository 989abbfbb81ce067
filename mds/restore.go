package mds

import (
	"bufio"
	"fmt"
	"io"
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// restorer builds a state from the blocks of a snapshot. Nothing it reads is trusted: damage, and
// contents that contradict each other, give an error.
type restorer struct {
	s        *State
	counts   [5]uint64
	slots    uint64
	freeHead uint64
}

// Restore reads a snapshot. An error means that it is damaged or of a newer version.
func Restore(in io.Reader) (*State, error) {
	r := &restorer{s: newEmptyState()}
	if err := r.run(&blockReader{r: bufio.NewReaderSize(in, 1<<20)}); err != nil {
		r.s.Close()
		return nil, err
	}
	return r.s, nil
}

func (r *restorer) run(blocks *blockReader) error {
	b, err := blocks.next()
	if err != nil {
		return err
	}
	if b.typ != blockHead {
		return errCorrupt("snapshot begins with a block of type %d", b.typ)
	}
	if err := r.head(b.payload); err != nil {
		return err
	}
	for last := uint8(blockHead); ; last = b.typ {
		if b, err = blocks.next(); err != nil {
			return err
		}
		if b.typ < last || b.typ == blockHead {
			return errCorrupt("snapshot block of type %d behind one of type %d", b.typ, last)
		}
		d := &decoder{b: b.payload}
		switch b.typ {
		case blockFiles, blockCS, blockConfig, blockEvents, blockDedupe, blockLeaseHead,
			blockLeases:
			for range d.count(1) {
				if err := r.element(b.typ, d); err != nil {
					return err
				}
			}
		case blockPages:
			err = r.pages(d, b.version)
		case blockEnd:
			return r.end(d)
		default:
			return dataplane.E("read snapshot", dataplane.NotSupported,
				fmt.Errorf("block of type %d is unknown to this program", b.typ))
		}
		if err != nil {
			return err
		}
		if !d.ok() {
			return errCorrupt("snapshot block of type %d", b.typ)
		}
	}
}

func (r *restorer) head(b []byte) error {
	d := &decoder{b: b}
	if string(d.take(len(snapMagic))) != snapMagic {
		return errCorrupt("this is no snapshot of a metadata server")
	}
	if v := d.u32(); v != snapVersion {
		return dataplane.E("read snapshot", dataplane.NotSupported,
			fmt.Errorf("version %d; this program knows %d", v, snapVersion))
	}
	s := r.s
	copy(s.clusterID[:], d.take(len(s.clusterID)))
	s.clusterName = d.str()
	s.nowNs = d.i64()
	s.nextFile = dataplane.FileID(d.u64())
	s.nextEvent = d.u64()
	s.configVer = d.u64()
	r.slots = d.u64()
	r.freeHead = d.u64()
	if !d.ok() || r.slots > maxSlots {
		return errCorrupt("head of a snapshot")
	}
	return nil
}

// element reads one element of a list block.
func (r *restorer) element(typ uint8, d *decoder) error {
	s := r.s
	bad := false
	switch typ {
	case blockFiles:
		r.counts[0]++
		f := getFile(d)
		bad = f.id == 0 || f.id >= s.nextFile || s.files.get(f.id) != nil ||
			f.typ < control.TypeFile || f.typ > control.TypeSymlink ||
			f.typ != control.TypeFile && f.parent == 0 && f.id != dataplane.RootID
		if !bad && !d.bad {
			s.files.add(f)
		}
	case blockCS:
		r.counts[1]++
		c := getCS(d)
		_, twice := s.byDisk[c.Disk]
		bad = c.ID == 0 || int(c.ID) > MaxCS || twice || s.server(c.ID) != nil
		if !bad && !d.bad {
			for int(c.ID) >= len(s.cs) {
				s.cs = append(s.cs, nil)
				s.csLoad = append(s.csLoad, 0)
			}
			s.cs[c.ID] = &c
			s.byDisk[c.Disk] = c.ID
		}
	case blockConfig:
		c := configEntry{d.str(), d.str(), d.u64()}
		n := len(s.config)
		bad = n >= MaxConfigKeys || n > 0 && s.config[n-1].key >= c.key
		s.config = append(s.config, c)
	case blockEvents:
		r.counts[2]++
		s.events.push(control.Event{ID: d.u64(), TimeNs: d.i64(),
			Severity: control.Severity(d.u8()), Source: d.str(), Code: d.str(), Message: d.str()})
	case blockDedupe:
		r.counts[3]++
		s.remember(dedupeEntry{key: dedupeKey{d.u64(), d.u64()}, kind: dataplane.Kind(d.u16()),
			msg: d.str(), file: dataplane.FileID(d.u64())})
	case blockLeaseHead, blockLeases:
		bad = !s.readLease(typ, d)
	}
	if bad || d.bad {
		return errCorrupt("element of a snapshot block of type %d", typ)
	}
	return nil
}

// pages reads chunk records and enters them in their files.
func (r *restorer) pages(d *decoder, version uint8) error {
	s := r.s
	first := d.u64()
	if d.bad || first != r.counts[4] || first*recordsPerPage >= r.slots {
		return errCorrupt("chunk pages in a snapshot are out of order")
	}
	for raw := d.take(len(d.b)); len(raw) > 0; r.counts[4]++ {
		from := s.table.Slots()
		rest, err := s.table.load(raw, version, r.slots)
		if err != nil {
			return err
		}
		raw = rest
		for slot := from; slot < s.table.Slots(); slot++ {
			if err := r.link(slot); err != nil {
				return err
			}
		}
	}
	return nil
}

// link enters the record in a slot in its file and with its servers.
func (r *restorer) link(slot uint64) error {
	s := r.s
	rec := s.table.At(slot)
	if rec == nil {
		return nil
	}
	f := s.files.get(rec.File)
	if f == nil || f.typ != control.TypeFile || f.slots.get(rec.Index) != 0 {
		return errCorrupt("chunk %v belongs to no file, or twice to file %d", rec.ID, rec.File)
	}
	for _, m := range rec.members() {
		if s.server(m.CS) == nil {
			return errCorrupt("chunk %v is on CS %d, which doesn't exist", rec.ID, m.CS)
		}
	}
	f.slots.set(rec.Index, uint32(slot)+1)
	f.chunks++
	s.countMembers(rec, true)
	return nil
}

// end checks that everything is there and builds the directories.
func (r *restorer) end(d *decoder) error {
	for i, n := range r.counts {
		if d.u64() != n {
			return errCorrupt("snapshot lacks blocks: list %d has %d elements", i, n)
		}
	}
	s := r.s
	if !d.ok() || s.table.Slots() != r.slots {
		return errCorrupt("end of a snapshot")
	}
	if err := s.table.setFreeList(r.freeHead); err != nil {
		return err
	}
	root := s.files.get(dataplane.RootID)
	if root == nil || root.typ != control.TypeDir || root.parent != 0 {
		return errCorrupt("snapshot without a root directory")
	}
	for id := range s.files.byID {
		if err := r.enter(id); err != nil {
			return err
		}
	}
	slices.Sort(s.orphans)
	if err := r.checkTree(); err != nil {
		return err
	}
	for id := range s.files.byID {
		f := s.files.get(id)
		s.account(f.parent, f.own())
	}
	return nil
}

// enter links a file under its parent.
func (r *restorer) enter(id dataplane.FileID) error {
	s := r.s
	f := s.files.get(id)
	if f.parent == 0 {
		if id != dataplane.RootID {
			s.orphans = append(s.orphans, id)
		}
		return nil
	}
	parent := s.files.get(f.parent)
	if kind, _ := checkName(f.name); kind != dataplane.OK || parent == nil ||
		parent.typ != control.TypeDir || parent.dir.find(f.name) != 0 {
		return errCorrupt("file %d has no place in the tree", id)
	}
	parent.dir.insert(f.name, id)
	if f.typ == control.TypeDir {
		parent.subdirs++
	}
	return nil
}

// checkTree says whether every directory can be reached from the root.
func (r *restorer) checkTree() error {
	s := r.s
	reached := uint64(1)
	todo := []dataplane.FileID{dataplane.RootID}
	for len(todo) > 0 {
		f := s.files.get(todo[len(todo)-1])
		todo = todo[:len(todo)-1]
		f.dir.after("", func(e *dirEntry) bool {
			reached++
			if s.files.get(e.id).typ == control.TypeDir {
				todo = append(todo, e.id)
			}
			return true
		})
	}
	if reached+uint64(len(s.orphans)) != r.counts[0] {
		return errCorrupt("%d files can't be reached from the root", r.counts[0]-reached)
	}
	return nil
}
