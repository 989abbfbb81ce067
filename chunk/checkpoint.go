package chunk

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"pstorage/dataplane"
	"pstorage/uring"
)

// This file makes the store's tables durable: the checkpoint after which the log may forget. In
// rounds of up to stageRound pages:
//
//  1. Images of CRC pages that changed, and of the pages of the slot table that hold those pages'
//     checksums or entries that changed, are written to the staging area in one write.
//  2. Sync. It also covers the data that was destaged before.
//  3. The same images are written in place.
//  4. Sync.
//
// A power cut before 2 ends leaves a staging area that isn't intact, and the tables untouched. One
// after it is completed by restage at the next start. What the images say is never ahead of what
// is durable in the log: entries hold the last durable seq.

// stageRound is how many pages one round takes: together with the head they fill one buffer.
const stageRound = 240

type flusher struct {
	st      *store
	running bool
	dirty   bool // somebody asked while a pass was running: another pass
	waiting []func(error)
	serving []func(error)
	todo    []uint32 // CRC pages of this pass, ascending
	tables  []int    // pages of the slot table of this pass, ascending
	atTodo  int      // how many of them have been staged
	atTable int
	// unstamped: the stamp of this pass hasn't been staged yet.
	unstamped bool
	pinned    []*crcPage
	staged    []stagedPage
	round     uint64
	buf       *uring.Buf
	one       [1][]byte
	op        uring.DiskOp
	inPlace   [stageRound]uring.DiskOp
	order     [stageRound]placement // of the staged pages, by target
	bufs      [stageRound][]byte
	left      int
	err       error
	next      func()
	steps     struct{ synced, place, placed, finish func() } // of next, made once
}

func (f *flusher) init(st *store) {
	f.st = st
	f.steps.finish, f.steps.place = f.finish, f.place
	f.steps.synced = func() {
		f.st.unsynced = false
		f.sync(f.steps.place)
	}
	f.steps.placed = func() {
		f.unpin()
		f.st.cache.feed()
		f.stage()
	}
	f.op.Done = func(op *uring.DiskOp) {
		st.moved = st.env.Now()
		if op.Err != nil {
			f.fail(fmt.Errorf("checkpoint: %w", op.Err))
			return
		}
		f.next()
	}
	for i := range f.inPlace {
		f.inPlace[i].Kind = uring.DiskWrite
		f.inPlace[i].Done = f.placed
	}
}

// reserve gives the flusher its memory, for good: a checkpoint mustn't depend on what is left of
// the pool when it is due. It takes over the reference.
func (f *flusher) reserve(buf *uring.Buf) { f.buf = buf }

func (f *flusher) close() {
	if f.buf != nil {
		f.buf.Release()
		f.buf = nil
	}
}

// Checkpoint implements ssdcache.Backing: everything that was destaged, and all that the log knows
// about chunks, becomes durable in the store.
func (st *store) Checkpoint(done func(error)) {
	st.zeroing.checkpoint(func() { st.flush(done) })
}

// flush starts a checkpoint; done (may be nil) is called when all that had changed before the call
// is durable.
func (st *store) flush(done func(error)) {
	f := &st.flushing
	if done != nil {
		f.waiting = append(f.waiting, done)
	}
	if f.running {
		f.dirty = f.dirty || done != nil
		return
	}
	f.begin()
}

// begin starts a pass over all that is dirty now.
func (f *flusher) begin() {
	f.running, f.dirty, f.err = true, false, nil
	f.serving, f.waiting = f.waiting, nil
	f.todo, f.tables, f.atTodo, f.atTable = f.todo[:0], f.tables[:0], 0, 0
	f.unstamped = true
	f.st.nextStamp()
	for i, w := range f.st.touched {
		for ; w != 0; w &= w - 1 {
			f.tables = append(f.tables, i*64+bits.TrailingZeros64(w))
		}
	}
	for _, p := range f.st.cache.frames {
		if p.id != noPage && p.dirty && !p.loading {
			f.todo = append(f.todo, p.id)
		}
	}
	slices.Sort(f.todo)
	f.stage()
}

// stage fills the buffer with the next round and writes it to the staging area.
func (f *flusher) stage() {
	if f.st.dead != nil {
		f.fail(f.st.dead)
		return
	}
	f.fill()
	if len(f.staged) == 0 {
		if !f.st.unsynced {
			f.finish()
			return
		}
		f.st.unsynced = false
		f.sync(f.steps.finish)
		return
	}
	f.round++
	b := f.buf.Bytes()
	putStage(b, f.round, f.staged)
	f.one[0] = b[:stageHeadSize+len(f.staged)*dataplane.BlockSize]
	f.op.Kind, f.op.Offset, f.op.Bufs = uring.DiskWrite, f.st.sb.stage, f.one[:]
	f.next = f.steps.synced
	f.st.disk.Submit(&f.op)
}

func (f *flusher) sync(next func()) {
	f.op.Kind, f.op.Bufs, f.next = uring.DiskSync, nil, next
	f.st.disk.Submit(&f.op)
}

// fill takes CRC pages and the table pages above them, as many as fit.
func (f *flusher) fill() {
	st := f.st
	f.staged = f.staged[:0]
	if f.unstamped {
		f.unstamped = false
		b := f.image(0)
		st.stamp.put(b)
		f.staged = append(f.staged, stagedPage{stampOffset, dataplane.CRC(b)})
	}
	lastTable := -1
	// Each turn adds a page, perhaps the table page of the one before, and needs room for its own.
	for ; f.atTodo < len(f.todo) && len(f.staged)+3 <= stageRound; f.atTodo++ {
		id := f.todo[f.atTodo]
		p := st.cache.get(id)
		if p == nil || !p.dirty {
			continue // dropped with its chunk
		}
		crc := dataplane.CRC(p.mem)
		st.entries[id/pagesPerSlot].pages[id%pagesPerSlot] = wordOf(crc, p.mem)
		st.touch(id / pagesPerSlot)
		copy(f.image(len(f.staged)), p.mem)
		f.staged = append(f.staged, stagedPage{st.sb.crcPage(id), crc})
		p.dirty = false
		p.pins++ // it must not be read back before it is in place
		f.pinned = append(f.pinned, p)
		if t := int(id / pagesPerSlot / entriesInPage); t != lastTable {
			if lastTable >= 0 {
				f.stageTable(lastTable)
			}
			lastTable = t
		}
	}
	if lastTable >= 0 {
		f.stageTable(lastTable)
	}
	for ; f.atTable < len(f.tables) && len(f.staged) < stageRound; f.atTable++ {
		t := f.tables[f.atTable]
		if st.touched[t/64]&(1<<(t%64)) != 0 { // otherwise: written meanwhile
			f.stageTable(t)
		}
	}
}

func (f *flusher) image(i int) []byte {
	at := stageHeadSize + i*dataplane.BlockSize
	return f.buf.Bytes()[at : at+dataplane.BlockSize]
}

// stageTable adds a page of the slot table, as it is now.
func (f *flusher) stageTable(page int) {
	st := f.st
	b := f.image(len(f.staged))
	clear(b)
	for i := range entriesInPage {
		slot := page*entriesInPage + i
		if slot >= len(st.entries) {
			break
		}
		e := &st.entries[slot]
		if r := st.owners[slot]; r != nil {
			r.fillEntry(e)
		}
		if e.chunk != 0 {
			e.put(b[i*entrySize:], uint32(slot))
		}
	}
	st.touched[page/64] &^= 1 << (page % 64)
	f.staged = append(f.staged, stagedPage{st.sb.tablePage(uint32(page * entriesInPage)),
		dataplane.CRC(b)})
}

// placement says where image i of the staging area belongs.
type placement struct {
	target int64
	i      int
}

// place writes the images where they belong, neighbours together.
func (f *flusher) place() {
	order := f.order[:len(f.staged)]
	for i := range f.staged {
		order[i] = placement{f.staged[i].target, i}
	}
	slices.SortFunc(order, func(a, b placement) int { return cmp.Compare(a.target, b.target) })
	f.left = 0
	for i, j := 0, 0; i < len(order); i = j {
		for j = i; j < len(order) && j-i < uring.MaxDiskBufs &&
			order[j].target == order[i].target+int64(j-i)*dataplane.BlockSize; j++ {
			f.bufs[j] = f.image(order[j].i)
		}
		op := &f.inPlace[f.left]
		op.Offset, op.Bufs = order[i].target, f.bufs[i:j]
		f.left++
	}
	for i, n := 0, f.left; i < n; i++ {
		f.st.disk.Submit(&f.inPlace[i])
	}
}

func (f *flusher) placed(op *uring.DiskOp) {
	f.st.moved = f.st.env.Now()
	if op.Err != nil {
		f.err = op.Err
	}
	if f.left--; f.left > 0 {
		return
	}
	if f.err != nil {
		f.fail(fmt.Errorf("checkpoint: write tables: %w", f.err))
		return
	}
	f.sync(f.steps.placed)
}

func (f *flusher) unpin() {
	for i, p := range f.pinned {
		p.pins--
		f.pinned[i] = nil
	}
	f.pinned = f.pinned[:0]
}

func (f *flusher) fail(err error) {
	f.unpin()
	f.st.failed(err)
	all := append(f.serving, f.waiting...)
	f.running, f.serving, f.waiting = false, nil, nil
	for _, done := range all {
		done(err)
	}
}

// finish ends a pass, starts another one for those who asked during it, and tells those whom this
// one served.
func (f *flusher) finish() {
	served := f.serving
	f.running, f.serving = false, nil
	f.st.marked = f.st.stamp.nr
	if f.dirty {
		f.begin()
	}
	for _, done := range served {
		done(nil)
	}
	f.st.cache.feed()
}

// restage completes, at the start, a round that a power cut interrupted: b is the staging area.
// It returns the pages that must be written in place, as ranges of b, with their targets.
func restage(b []byte, sb *superblock) (round uint64, pages []stagedPage, images [][]byte) {
	round, pages, ok := decodeStage(b, sb)
	if !ok || len(b) < stageHeadSize+len(pages)*dataplane.BlockSize {
		return 0, nil, nil
	}
	for i, p := range pages {
		at := stageHeadSize + i*dataplane.BlockSize
		img := b[at : at+dataplane.BlockSize : at+dataplane.BlockSize]
		if dataplane.CRC(img) != p.crc {
			return 0, nil, nil // step 1 wasn't finished: nothing was changed in place
		}
		images = append(images, img)
	}
	return round, pages, images
}
