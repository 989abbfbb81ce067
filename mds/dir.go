package mds

import (
	"slices"
	"strings"

	"pstorage/dataplane"
)

// dirEntry is one name in a directory. The name's memory is shared with the file's own.
type dirEntry struct {
	name string
	id   dataplane.FileID
}

// dirBlock is how many entries a block of a directory holds before it is split in two.
const dirBlock = 512

// dirIndex holds a directory's entries in the order of names (bytewise), in blocks of bounded
// size, so that look-up is two binary searches and a change moves at most one block's memory.
type dirIndex struct {
	blocks [][]dirEntry // none is empty
	n      int
	below  usage
}

func cmpEntry(e dirEntry, name string) int { return strings.Compare(e.name, name) }

// block returns the index of the block that holds name or should; 0 for an empty directory.
func (d *dirIndex) block(name string) int {
	i, found := slices.BinarySearchFunc(d.blocks, name, func(b []dirEntry, name string) int {
		return strings.Compare(b[0].name, name)
	})
	if found || i == 0 {
		return i
	}
	return i - 1
}

// find returns the id under name, or 0.
func (d *dirIndex) find(name string) dataplane.FileID {
	if d.n == 0 {
		return 0
	}
	b := d.blocks[d.block(name)]
	i, found := slices.BinarySearchFunc(b, name, cmpEntry)
	if !found {
		return 0
	}
	return b[i].id
}

// insert adds a name that isn't there.
func (d *dirIndex) insert(name string, id dataplane.FileID) {
	d.n++
	if len(d.blocks) == 0 {
		d.blocks = append(d.blocks, []dirEntry{{name, id}})
		return
	}
	bi := d.block(name)
	b := d.blocks[bi]
	i, found := slices.BinarySearchFunc(b, name, cmpEntry)
	assert(!found, "name is already in the directory", name)
	b = slices.Insert(b, i, dirEntry{name, id})
	if len(b) <= dirBlock {
		d.blocks[bi] = b
		return
	}
	half := len(b) / 2
	d.blocks[bi] = slices.Clone(b[:half])
	d.blocks = slices.Insert(d.blocks, bi+1, slices.Clone(b[half:]))
}

// remove takes out a name that is there.
func (d *dirIndex) remove(name string) {
	bi := d.block(name)
	b := d.blocks[bi]
	i, found := slices.BinarySearchFunc(b, name, cmpEntry)
	assert(found, "name isn't in the directory", name)
	d.n--
	b = slices.Delete(b, i, i+1)
	if len(b) == 0 {
		d.blocks = slices.Delete(d.blocks, bi, bi+1)
		return
	}
	d.blocks[bi] = b
}

// after calls f for the entries behind name, in order, until it returns false.
func (d *dirIndex) after(name string, f func(e *dirEntry) bool) {
	if d.n == 0 {
		return
	}
	bi := d.block(name)
	i, found := slices.BinarySearchFunc(d.blocks[bi], name, cmpEntry)
	if found {
		i++
	}
	for ; bi < len(d.blocks); bi++ {
		for b := d.blocks[bi]; i < len(b); i++ {
			if !f(&b[i]) {
				return
			}
		}
		i = 0
	}
}

// slotsPerPage is how many chunk slots a page of a slotMap holds.
const slotsPerPage = 1024

// slotMap maps the index of a chunk in its file to the chunk's slot in the table. It costs 4
// bytes per chunk, and next to nothing for the holes of a sparse file.
type slotMap struct {
	pages [][]uint32 // slot+1, 0 is a hole; a page may be nil or short
}

// get returns slot+1 of chunk i, or 0.
func (m *slotMap) get(i uint32) uint32 {
	p, k := int(i/slotsPerPage), int(i%slotsPerPage)
	if p >= len(m.pages) || k >= len(m.pages[p]) {
		return 0
	}
	return m.pages[p][k]
}

// set stores slot+1 of chunk i; 0 makes a hole.
func (m *slotMap) set(i, v uint32) {
	p, k := int(i/slotsPerPage), int(i%slotsPerPage)
	if p >= len(m.pages) {
		m.pages = append(m.pages, make([][]uint32, p+1-len(m.pages))...)
	}
	pg := m.pages[p]
	if k >= len(pg) {
		// By a quarter at least: most files grow, and their slots are most of the heap.
		n := max(4, len(pg)+len(pg)/4, k+1)
		bigger := make([]uint32, min((n+3)&^3, slotsPerPage))
		copy(bigger, pg)
		pg = bigger
		m.pages[p] = pg
	}
	pg[k] = v
}

// descend calls f for the chunks at or above index from, highest first, with slot+1, until it
// returns false. f may clear the entry it was called for.
func (m *slotMap) descend(from uint32, f func(i, v uint32) bool) {
	for p := len(m.pages) - 1; p >= int(from/slotsPerPage); p-- {
		for k := len(m.pages[p]) - 1; k >= 0; k-- {
			i := uint32(p*slotsPerPage + k)
			if i < from {
				return
			}
			if v := m.pages[p][k]; v != 0 && !f(i, v) {
				return
			}
		}
	}
}

// trim gives memory back that only describes holes at or above chunk index from.
func (m *slotMap) trim(from uint32) {
	keep := int((from + slotsPerPage - 1) / slotsPerPage)
	if keep == 0 {
		m.pages = nil
		return
	}
	if keep < len(m.pages) {
		m.pages = slices.Clone(m.pages[:keep])
	}
}
