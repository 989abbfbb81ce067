package mds

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
)

const (
	recordsPerPage = 64
	pageSize       = recordsPerPage * RecordSize // 8 KiB
	pagesPerArena  = 256                         // 2 MiB mapped at a time
	maxSlots       = 1<<32 - 1                   // a file's list of slots is u32, 0 is none
	maxGeneration  = 1<<24 - 1
)

type page [recordsPerPage]Record

const _ = -(unsafe.Sizeof(page{}) ^ pageSize)

// Table is the flat array of chunk records: pages of 64 records in mapped memory outside the Go
// heap. A chunk id holds its slot, so a look-up is an index and a comparison.
//
// Logical pages are mapped to physical ones through an array of page numbers. A capture copies
// that array (4 bytes per 64 chunks); from then on the first change of a page goes to a fresh
// physical page, and the old one belongs to the capture until it is released.
//
// A Table isn't safe for concurrent use, except that a Capture may be read by one goroutine while
// the table changes.
type Table struct {
	arenas [][]page // mapped memory
	spare  []uint32 // free physical pages
	pages  []uint32 // logical page -> physical page
	shared []uint64 // bit per logical page: it belongs to the open capture too
	open   *Capture // nil: no capture

	slots    uint64 // slots ever used: [0, slots)
	freeHead uint64 // slot+1 of the first free record, 0 is none
	used     uint64
	free     uint64
}

// NewTable returns an empty table. Close releases its memory.
func NewTable() *Table { return &Table{} }

// Close unmaps the table's memory. No record of it may be used afterwards; with a capture open
// the memory goes when that is released.
func (t *Table) Close() {
	if t.open != nil {
		t.open.closeTable = true
		return
	}
	for _, a := range t.arenas {
		b := unsafe.Slice((*byte)(unsafe.Pointer(&a[0])), len(a)*pageSize)
		err := unix.Munmap(b)
		assert(err == nil, "munmap of a table arena", err)
	}
	t.arenas, t.spare, t.pages, t.shared = nil, nil, nil, nil
	t.slots, t.freeHead, t.used, t.free = 0, 0, 0, 0
}

// Len returns how many chunks exist.
func (t *Table) Len() uint64 { return t.used }

// Slots returns how many slots were ever used: [0, Slots) may hold records.
func (t *Table) Slots() uint64 { return t.slots }

// Lookup returns the record of a chunk, or nil if it doesn't exist (any more). The record must
// not be changed, nor be kept beyond the lock that guards the table. It allocates nothing.
func (t *Table) Lookup(id dataplane.ChunkID) *Record {
	slot := id.Slot()
	if slot >= t.slots {
		return nil
	}
	r := t.at(slot)
	if r.ID != id || r.State != stateUsed {
		return nil
	}
	return r
}

// NeverWas says that no chunk has had the id so far.
func (t *Table) NeverWas(id dataplane.ChunkID) bool {
	slot := id.Slot()
	return slot >= t.slots || id.Generation() > t.at(slot).ID.Generation()
}

// At returns the record in a slot below Slots, or nil if it is free.
func (t *Table) At(slot uint64) *Record {
	if slot >= t.slots { // rounds over the table come here: values for the message cost an allocation
		assert(false, "slot beyond the table", slot, t.slots)
	}
	r := t.at(slot)
	if r.State != stateUsed {
		return nil
	}
	return r
}

func (t *Table) at(slot uint64) *Record {
	p := t.pages[slot/recordsPerPage]
	return &t.arenas[p/pagesPerArena][p%pagesPerArena][slot%recordsPerPage]
}

func (t *Table) phys(p uint32) *page { return &t.arenas[p/pagesPerArena][p%pagesPerArena] }

// Edit returns the record of a chunk for changing, or nil. Call seal on it after the last change.
func (t *Table) Edit(id dataplane.ChunkID) *Record {
	if t.Lookup(id) == nil {
		return nil
	}
	return t.writable(id.Slot())
}

// Alloc takes a free slot and returns its record, used, with a new id and the rest zero. The
// order in which slots are taken depends only on the history of Alloc and Free. It returns an error
// when the table is full. When the system gives no memory the process ends: the other servers have
// some, so to go on without the record would mean to disagree with them.
func (t *Table) Alloc() (*Record, error) {
	if t.freeHead != 0 {
		slot := t.freeHead - 1
		r := t.writable(slot)
		assert(r.State == stateFree, "used record in the free list", slot, r.ID)
		t.freeHead = uint64(r.File)
		t.free--
		t.used++
		*r = Record{ID: dataplane.NewChunkID(r.ID.Generation()+1, slot), State: stateUsed}
		return r, nil
	}
	if t.slots >= maxSlots {
		return nil, dataplane.E("allocate chunk record", dataplane.NoSpace,
			fmt.Errorf("all %d records of the table are used", uint64(maxSlots)))
	}
	slot := t.slots
	if slot%recordsPerPage == 0 {
		err := t.addPage()
		assert(err == nil, "a page of chunk records", err)
	}
	t.slots++
	t.used++
	r := t.writable(slot)
	*r = Record{ID: dataplane.NewChunkID(1, slot), State: stateUsed}
	return r, nil
}

// Free gives the slot of an existing chunk back. Its id is never given out again.
func (t *Table) Free(id dataplane.ChunkID) {
	r := t.Edit(id)
	assert(r != nil, "free of a chunk that doesn't exist", id)
	*r = Record{ID: id, State: stateFree}
	t.used--
	t.free++
	if id.Generation() < maxGeneration { // otherwise the slot is worn out: it stays unused
		r.File = dataplane.FileID(t.freeHead)
		t.freeHead = id.Slot() + 1
	}
	r.seal()
}

// writable returns the record in a slot after making sure that its page isn't shared.
func (t *Table) writable(slot uint64) *Record {
	lp := slot / recordsPerPage
	if t.open != nil && t.shared[lp/64]&(1<<(lp%64)) != 0 {
		old := t.pages[lp]
		p, err := t.takePage()
		// Without memory for one page of 8 KiB the process is at its end anyway.
		assert(err == nil, "copy of a shared page", err)
		*t.phys(p) = *t.phys(old)
		t.pages[lp] = p
		t.shared[lp/64] &^= 1 << (lp % 64)
		t.open.retired = append(t.open.retired, old)
	}
	return t.at(slot)
}

// addPage appends a zeroed logical page.
func (t *Table) addPage() error {
	p, err := t.takePage()
	if err != nil {
		return err
	}
	*t.phys(p) = page{}
	lp := len(t.pages)
	t.pages = append(t.pages, p)
	if lp/64 >= len(t.shared) {
		t.shared = append(t.shared, 0)
	}
	return nil
}

// mmap is replaced by tests.
var mmap = unix.Mmap

// takePage returns a physical page with any content.
func (t *Table) takePage() (uint32, error) {
	if len(t.spare) == 0 {
		b, err := mmap(-1, 0, pagesPerArena*pageSize, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			return 0, dataplane.E("map memory for chunk records", dataplane.NoSpace, err)
		}
		first := uint32(len(t.arenas) * pagesPerArena)
		t.arenas = append(t.arenas, unsafe.Slice((*page)(unsafe.Pointer(&b[0])), pagesPerArena))
		for i := uint32(pagesPerArena); i > 0; i-- {
			t.spare = append(t.spare, first+i-1)
		}
	}
	p := t.spare[len(t.spare)-1]
	t.spare = t.spare[:len(t.spare)-1]
	return p, nil
}

// Capture is the table as it was at one moment. Pages may be read while the table changes.
type Capture struct {
	table      *Table
	arenas     [][]page
	pages      []uint32
	retired    []uint32 // physical pages that only the capture still uses
	slots      uint64
	freeHead   uint64
	closeTable bool
}

// Capture remembers the table as it is. Only one capture may be open at a time; nil says that one
// is. It costs a copy of 4 bytes and a bit per 64 slots.
func (t *Table) Capture() *Capture {
	if t.open != nil {
		return nil
	}
	c := &Capture{table: t, arenas: append([][]page(nil), t.arenas...),
		pages: append([]uint32(nil), t.pages...), slots: t.slots, freeHead: t.freeHead}
	for i := range t.shared {
		t.shared[i] = ^uint64(0)
	}
	// Pages added from now on aren't part of the capture; their bits must start at zero.
	if n := len(t.pages); n%64 != 0 {
		t.shared[n/64] = 1<<(n%64) - 1
	}
	t.open = c
	return c
}

// Pages returns how many pages the capture has.
func (c *Capture) Pages() int { return len(c.pages) }

// Page returns page i of the capture. It must not be changed.
func (c *Capture) Page(i int) *page {
	p := c.pages[i]
	return &c.arenas[p/pagesPerArena][p%pagesPerArena]
}

// Release ends the capture and gives its pages back to the table. Call it under the lock that
// guards the table.
func (c *Capture) Release() {
	t := c.table
	if t == nil {
		return
	}
	assert(t.open == c, "release of a capture that isn't open")
	t.spare = append(t.spare, c.retired...)
	t.open = nil
	for i := range t.shared {
		t.shared[i] = 0
	}
	c.table, c.pages, c.arenas = nil, nil, nil
	if c.closeTable {
		t.Close()
	}
}

// load appends a page read from a snapshot, in a layout of that version, and returns what is behind
// it. Every record is checked: slot, checksum, sense.
func (t *Table) load(raw []byte, version uint8, slots uint64) (rest []byte, err error) {
	if n := uint64(len(t.pages)) * recordsPerPage; n >= slots {
		return nil, errCorrupt("chunk page from record %d on, behind the end %d", n, slots)
	}
	if err := t.addPage(); err != nil {
		return nil, err
	}
	lp := uint64(len(t.pages) - 1)
	pg := t.phys(t.pages[lp])
	switch {
	case version == 2:
		if rest, err = unpackPage(pg, raw); err != nil {
			return nil, err
		}
	case len(raw) < pageSize:
		return nil, errCorrupt("chunk page of %d bytes", len(raw))
	default:
		copy(unsafe.Slice((*byte)(unsafe.Pointer(pg)), pageSize), raw[:pageSize])
		rest = raw[pageSize:]
	}
	for i := range pg {
		slot := lp*recordsPerPage + uint64(i)
		r := &pg[i]
		switch {
		case !r.intact():
			return nil, errCorrupt("checksum of chunk record %d", slot)
		case slot >= slots && *r != Record{}:
			return nil, errCorrupt("chunk record %d behind the end %d", slot, slots)
		case slot < slots && (r.ID == 0 || !r.valid(slot)):
			return nil, errCorrupt("chunk record %d makes no sense", slot)
		case slot >= slots:
			continue
		}
		t.slots++
		if r.State == stateUsed {
			t.used++
		} else {
			t.free++
		}
	}
	return rest, nil
}

// setFreeList installs the head of the free list of a loaded table and walks the list.
func (t *Table) setFreeList(head uint64) error {
	steps := uint64(0)
	for h := head; h != 0; steps++ {
		if h > t.slots || steps > t.free {
			return errCorrupt("free list of the chunk table")
		}
		r := t.at(h - 1)
		if r.State != stateFree {
			return errCorrupt("used record %d in the free list", h-1)
		}
		h = uint64(r.File)
	}
	t.freeHead = head
	return nil
}
