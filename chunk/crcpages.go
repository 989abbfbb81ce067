package chunk

import (
	"encoding/binary"
	"fmt"

	"pstorage/dataplane"
	"pstorage/uring"
)

// crcPage is one CRC page in memory: the words of 1024 blocks.
type crcPage struct {
	id      uint32 // slot*pagesPerSlot + 0..15, or noPage: the frame is free
	mem     []byte
	loading bool
	dirty   bool // differs from the store
	hot     bool // used since the clock hand passed
	pins    int32
	first   *pageWait // who waits for loading, in order
	last    *pageWait
	op      uring.DiskOp
}

const noPage = ^uint32(0)

func (p *crcPage) word(block uint32) uint32 {
	return binary.LittleEndian.Uint32(p.mem[block%wordsPerPage*4:])
}

func (p *crcPage) setWord(block, w uint32) {
	b := p.mem[block%wordsPerPage*4:]
	if binary.LittleEndian.Uint32(b) != w {
		binary.LittleEndian.PutUint32(b, w)
		p.dirty = true
	}
}

// pageWait is somebody who waits for a page. ready is set once; it is called with the page in
// memory, before anybody who came later for the same page.
type pageWait struct {
	page  uint32
	ready func(*crcPage)
	next  *pageWait
}

// crcCache keeps CRC pages in a bounded number of frames. Dirty and pinned pages stay; the others
// are replaced by the clock algorithm.
type crcCache struct {
	st      *store
	index   []int32 // page id -> frame, or -1
	frames  []*crcPage
	max     int
	hand    int
	starved *pageWait // waiting for a frame, in order
	starvTo *pageWait
	blocks  []*uring.Buf // memory of the frames
	spare   []byte       // of the last block, not yet a frame's
	evicted uint64       // pages that made room for others
	short   uint64       // times somebody had to wait as every frame was in use
}

// minFrames keeps all that is under way at the same time from waiting for each other's pages all
// the time; it gets on with a few, too (ShardOptions.CRCFrames).
const minFrames = 64

func newCRCCache(st *store, frames int) *crcCache {
	c := &crcCache{st: st, max: frames}
	c.index = make([]int32, int(st.sb.slots)*pagesPerSlot)
	for i := range c.index {
		c.index[i] = -1
	}
	c.more() // so that there are some pages even if others then use up the pool
	return c
}

// more takes memory for frames from the pool. False: there is none.
func (c *crcCache) more() bool {
	b := c.st.pool.Get(256 << 10)
	if b == nil {
		return false
	}
	c.blocks = append(c.blocks, b)
	c.spare = b.Bytes()
	return true
}

// close gives the memory back. No page may be in use.
func (c *crcCache) close() {
	for _, b := range c.blocks {
		b.Release()
	}
	c.blocks, c.frames = nil, nil
}

// get returns a page if it is in memory, otherwise nil: then want it.
func (c *crcCache) get(page uint32) *crcPage {
	i := c.index[page]
	if i < 0 {
		return nil
	}
	p := c.frames[i]
	if p.loading {
		return nil
	}
	p.hot = true
	return p
}

// want calls w.ready as soon as the page w.page is in memory, in the order of the calls for the
// same page. It may call it at once.
func (c *crcCache) want(w *pageWait) {
	if p := c.get(w.page); p != nil && p.first == nil && c.starved == nil {
		w.ready(p)
		return
	}
	if i := c.index[w.page]; i >= 0 && c.frames[i].waited() && c.starved == nil {
		c.frames[i].wait(w)
		return
	} // otherwise: not before those who came earlier for the same page, and wait for a frame
	w.next = nil
	if c.starved == nil {
		c.starved = w
	} else {
		c.starvTo.next = w
	}
	c.starvTo = w
	c.feed()
}

// waited says whether the page isn't there yet, or somebody who waited for it isn't served yet.
func (p *crcPage) waited() bool { return p.loading || p.first != nil }

func (p *crcPage) wait(w *pageWait) {
	w.next = nil
	if p.first == nil {
		p.first = w
	} else {
		p.last.next = w
	}
	p.last = w
}

// feed serves those who wait for a frame, in order, as long as there are frames.
func (c *crcCache) feed() {
	for c.starved != nil {
		w := c.starved
		p := c.frameFor(w.page)
		if p == nil {
			c.short++
			if c.anyDirty() {
				c.st.flush(nil) // feed is called again after it
			}
			return // otherwise: after the next unpin
		}
		c.starved = w.next
		if p.waited() {
			p.wait(w)
			continue
		}
		w.ready(p)
	}
}

// frameFor returns the frame with the page in it, or a frame into which it is being loaded; nil if
// every frame is in use.
func (c *crcCache) frameFor(page uint32) *crcPage {
	if i := c.index[page]; i >= 0 {
		return c.frames[i]
	}
	i := c.victim()
	if i < 0 {
		return nil
	}
	p := c.frames[i]
	if p.id != noPage {
		c.index[p.id] = -1
		c.evicted++
	}
	p.id, p.hot, p.dirty = page, true, false
	c.index[page] = int32(i)
	if c.st.entries[page/pagesPerSlot].pages[page%pagesPerSlot] == wordZeros {
		clear(p.mem)
		return p
	}
	p.loading = true
	p.op.Kind, p.op.Offset, p.op.Low = uring.DiskRead, c.st.sb.crcPage(page), false
	c.st.disk.Submit(&p.op)
	return p
}

// victim returns a frame that may be used for another page, or -1.
func (c *crcCache) victim() int {
	if len(c.frames) < c.max {
		if p := c.newFrame(); p != nil {
			c.frames = append(c.frames, p)
			return len(c.frames) - 1
		}
		if len(c.frames) == 0 {
			return -1
		}
	}
	for range 2 * len(c.frames) {
		c.hand = (c.hand + 1) % len(c.frames)
		p := c.frames[c.hand]
		if p.id == noPage {
			return c.hand
		}
		if p.loading || p.dirty || p.pins > 0 {
			continue
		}
		if p.hot {
			p.hot = false
			continue
		}
		return c.hand
	}
	return -1
}

func (c *crcCache) anyDirty() bool {
	for _, p := range c.frames {
		if p.dirty && p.id != noPage {
			return true
		}
	}
	return false
}

// busy says whether a page of the slot is in use, or somebody waits for one.
func (c *crcCache) busy(slot uint32) bool {
	for n := range uint32(pagesPerSlot) {
		if i := c.index[slot*pagesPerSlot+n]; i >= 0 {
			if p := c.frames[i]; p.pins > 0 || p.loading {
				return true
			}
		}
	}
	for w := c.starved; w != nil; w = w.next {
		if w.page/pagesPerSlot == slot {
			return true
		}
	}
	return false
}

func (c *crcCache) newFrame() *crcPage {
	if len(c.spare) == 0 && !c.more() {
		return nil
	}
	p := &crcPage{id: noPage, mem: c.spare[:dataplane.BlockSize:dataplane.BlockSize]}
	c.spare = c.spare[dataplane.BlockSize:]
	p.op.Bufs = [][]byte{p.mem}
	p.op.Done = func(*uring.DiskOp) { c.loaded(p) }
	return p
}

// loaded checks a page that was read. One that isn't what was written (its own checksum is in the
// slot table), or can't be read, loses all its words: every block that it covers must come from
// another member.
func (c *crcCache) loaded(p *crcPage) {
	c.st.moved = c.st.env.Now()
	slot, n := p.id/pagesPerSlot, p.id%pagesPerSlot
	switch w := c.st.entries[slot].pages[n]; {
	case p.op.Err != nil:
		c.st.log.Warn("read failed", "crc-page", n, "slot", slot, "err", p.op.Err)
		c.forgetWords(p)
		c.st.damagedPage(slot, n)
	case !wordMatches(w, dataplane.CRC(p.mem)):
		c.forgetWords(p)
		c.st.damagedPage(slot, n)
	}
	p.loading = false
	p.pins++ // who is served may want other pages at once, and this frame is the others' still
	for p.first != nil {
		w := p.first
		p.first = w.next
		w.ready(p)
	}
	p.last = nil
	p.pins--
	c.feed()
}

func (c *crcCache) forgetWords(p *crcPage) {
	for b := range uint32(wordsPerPage) {
		binary.LittleEndian.PutUint32(p.mem[4*b:], wordUnknown)
	}
	p.dirty = true
}

// dropSlot forgets the pages of a slot that is given to a new chunk: they read as zeros. Nobody
// uses the slot any more, so none of them is pinned or loading.
func (c *crcCache) dropSlot(slot uint32) {
	for n := range uint32(pagesPerSlot) {
		id := slot*pagesPerSlot + n
		c.st.entries[slot].pages[n] = wordZeros
		i := c.index[id]
		if i < 0 {
			continue
		}
		p := c.frames[i]
		if p.pins > 0 || p.loading {
			panic(fmt.Sprintf("chunk: page %d of free slot %d in use (pins %d)", n, slot, p.pins))
		}
		p.id, p.dirty = noPage, false
		c.index[id] = -1
	}
}
