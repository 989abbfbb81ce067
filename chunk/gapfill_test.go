package chunk

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/ssdcache"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// gapWorld is a store with blocks 0 to 127 of a chunk in it, to which runs are written back.
type gapWorld struct {
	*world
	nd   *node
	st   *store
	slot uint32
	had  []byte // the blocks
}

func newGapWorld(t *testing.T, seed uint64) *gapWorld {
	w := settledInStore(t, seed)
	nd := w.nodes[1]
	w.read(chunkA, 0, 4096, 1)
	g := &gapWorld{world: w, nd: nd, st: nd.sh.store, slot: nd.sh.chunks[chunkA].slot}
	if isZero(nd.raw(chunkA, 0, 4096)) {
		t.Fatal("nothing in the store yet, the test shows nothing")
	}
	_, done := g.writeBack(1, 127) // its CRC page is in memory then
	g.must(func() bool { return *done }, 10*sec, "the write-back")
	g.had = nd.raw(chunkA, 0, 128*4096)
	return g
}

// writeBack begins to write the given blocks, all of one run, and returns what they get.
func (g *gapWorld) writeBack(tag uint64, blocks ...uint32) (data []byte, done *bool) {
	first, last := blocks[0], blocks[len(blocks)-1]
	buf := g.nd.pool.Get(len(blocks) * 4096)
	data = buf.Bytes()[:len(blocks)*4096]
	copy(data, pattern(tag, len(data)))
	done = new(bool)
	wb := &ssdcache.WriteBack{Slot: g.slot, Block: first, Blocks: int(last-first) + 1,
		CRCs: make([]byte, 4*(last-first+1))}
	for b := first; b <= last; b++ {
		i := slices.Index(blocks, b)
		if i < 0 {
			wb.Gaps[(b-first)/64] |= 1 << ((b - first) % 64)
			continue
		}
		wb.Data = append(wb.Data, data[i*4096:(i+1)*4096])
		binary.LittleEndian.PutUint32(wb.CRCs[4*(b-first):], dataplane.CRC(wb.Data[i]))
	}
	wb.Done = func(wb *ssdcache.WriteBack) {
		if wb.Err != nil {
			g.t.Error(wb.Err)
		}
		*done = true
		buf.Release()
	}
	g.nd.env.Do(func() { g.st.WriteBack(wb) })
	return slices.Clone(data), done
}

// write does all of it, with so many reads and writes, and compares.
func (g *gapWorld) write(tag uint64, reads, writes int, blocks ...uint32) {
	g.t.Helper()
	ops := g.nd.store.Ops
	r, w := ops[uring.DiskRead], ops[uring.DiskWrite]
	data, done := g.writeBack(tag, blocks...)
	g.must(func() bool { return *done }, 10*sec, "the write-back")
	ops = g.nd.store.Ops
	if r, w = ops[uring.DiskRead]-r, ops[uring.DiskWrite]-w; int(r) != reads || int(w) != writes {
		g.t.Errorf("blocks %v: %d reads and %d writes, not %d and %d", blocks, r, w, reads, writes)
	}
	g.note(data, blocks)
	g.check(blocks)
}

func (g *gapWorld) note(data []byte, blocks []uint32) {
	for i, b := range blocks {
		copy(g.had[b*4096:], data[i*4096:(i+1)*4096])
	}
}

// check compares the store, and the words, with what must be there.
func (g *gapWorld) check(blocks []uint32) {
	g.t.Helper()
	if got := g.nd.raw(chunkA, 0, 128*4096); !bytes.Equal(got, g.had) {
		for b := range 128 {
			if !bytes.Equal(got[b*4096:(b+1)*4096], g.had[b*4096:(b+1)*4096]) {
				g.t.Errorf("block %d has other contents", b)
			}
		}
	}
	for _, b := range blocks {
		p := g.st.cache.get(g.slot*pagesPerSlot + b/wordsPerPage)
		if p == nil || !wordMatches(p.word(b), dataplane.CRC(g.had[b*4096:(b+1)*4096])) {
			g.t.Errorf("the word of block %d doesn't match", b)
		}
	}
}

// Blocks that lie about go to the store with one read and one write, and change nothing else.
func TestGapsAreFilled(t *testing.T) {
	g := newGapWorld(t, 301)
	g.write(1, 1, 1, 0, 3, 7)
	g.write(2, 1, 1, 10, 11, 12, 70, 100, 127)
	g.write(3, 0, 1, 20, 21, 22)
}

// Zeros, and blocks that aren't what they should be, stay as they are; so does everything if it
// can't be read.
func TestGapsThatStay(t *testing.T) {
	g := newGapWorld(t, 302)
	g.zero(chunkA, 5*4096, 4096)
	g.must(g.punched, 10*sec, "the punch")
	clear(g.had[5*4096 : 6*4096])
	g.write(1, 1, 2, 0, 3, 7)    // [0, 4) and 7
	g.write(2, 0, 2, 4, 6)       // nothing to fill
	g.write(3, 1, 2, 4, 6, 8, 9) // 4, [6, 10)

	g.nd.store.FlipBit(g.st.sb.block(g.slot, 40)+100, 3)
	g.had[40*4096+100] ^= 1 << 3
	g.write(4, 1, 2, 36, 38, 42, 44) // [36, 39), [42, 45)

	g.nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
		if op.Kind == uring.DiskRead {
			f.Err = unix.EIO
		}
		return f
	}
	g.write(5, 1, 3, 50, 52, 60)
	g.nd.store.Fault = nil
}

// What is written in a gap meanwhile is what stays there; a block that is zeroed meanwhile reads as
// zeros, and its space is given back.
func TestGapsThatChange(t *testing.T) {
	g := newGapWorld(t, 303)
	slow := uring.DiskWrite
	g.nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
		if op.Kind == slow {
			f.Delay = 300 * ms
		}
		return f
	}
	older, first := g.writeBack(1, 4, 5)
	newer, second := g.writeBack(2, 2, 3, 7, 9)
	g.must(func() bool { return *first && *second }, 10*sec, "both")
	g.note(older, []uint32{4, 5})
	g.note(newer, []uint32{2, 3, 7, 9})
	g.check([]uint32{2, 3, 4, 5, 7, 9})

	slow = uring.DiskRead
	_, third := g.writeBack(3, 20, 24)
	g.nd.env.Do(func() {
		g.st.zero(&zeroing{slot: g.slot, block: 22, end: 23, done: func(*zeroing) {}})
	})
	if *third {
		t.Fatal("too early for the test")
	}
	g.must(func() bool { return *third && g.punched() }, 10*sec, "the write-back and the punch")
	if !isZero(g.nd.raw(chunkA, 22*4096, 4096)) {
		t.Error("the space of a zeroed block wasn't given back")
	}
	if p := g.st.cache.get(g.slot * pagesPerSlot); p.word(22) != wordZeros {
		t.Error("a zeroed block doesn't read as zeros")
	}
}

// The page of one who waited stays where it is until all who waited have been served, also if the
// first of them asks for another page, and no other frame is free.
func TestPageStaysForWaiters(t *testing.T) {
	g := newGapWorld(t, 305)
	c := g.st.cache
	page, other := g.slot*pagesPerSlot+3, g.slot*pagesPerSlot+4
	served := 0
	var pinned []*crcPage
	g.nd.env.Do(func() {
		g.st.onDamaged = nil
		for _, n := range []int{3, 4} {
			g.st.entries[g.slot].pages[n] = word(12345, false) // they aren't zeros, so they are loaded
		}
		c.max = len(c.frames)
		for _, p := range c.frames[1:] {
			p.pins++
			pinned = append(pinned, p)
		}
		p := c.frames[0]
		if p.id != noPage {
			c.index[p.id] = -1
		}
		p.id, p.dirty = noPage, false
		there := func(p *crcPage) {
			if served++; p.id != page || p.loading {
				t.Errorf("waiter %d of page %d gets page %d, loading: %v", served, page, p.id, p.loading)
			}
		}
		c.want(&pageWait{page: page, ready: func(p *crcPage) {
			if there(p); c.get(page) != p {
				t.Error("who is served doesn't find the page")
			}
			p.hot, p.dirty = false, false
			c.feed() // as when a page is given back
		}})
		c.frames[0].wait(&pageWait{page: page, ready: there})
		c.want(&pageWait{page: other, ready: func(p *crcPage) {
			if p.id != other || p.loading {
				t.Errorf("the waiter of page %d gets page %d, loading: %v", other, p.id, p.loading)
			}
		}})
		if c.starved == nil {
			t.Error("the other page has a frame: the test shows nothing")
		}
	})
	g.must(func() bool { return served == 2 && c.starved == nil && !c.frames[0].loading }, 10*sec,
		"both pages")
	g.nd.env.Do(func() {
		for _, p := range pinned {
			p.pins--
		}
	})
}

// A ZERO waits for a CRC page, and a newer write to what it covers is written back meanwhile: it
// stays, whether its page is the one that is waited for or another one, and isn't punched.
func TestNewerWriteBackStays(t *testing.T) {
	const slow, there = 3, 4 // pages
	for name, block := range map[string]uint32{"page that is read": slow*wordsPerPage + 5,
		"page in memory": there*wordsPerPage + 7} {
		t.Run(name, func(t *testing.T) {
			g := newGapWorld(t, 304)
			g.nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
				if op.Kind == uring.DiskRead {
					f.Delay = 300 * ms
				}
				return f
			}
			g.st.onDamaged = nil
			g.st.entries[g.slot].pages[slow] = word(12345, false) // it isn't zeros, so it is read
			zeroed := false
			g.nd.env.Do(func() {
				g.st.zero(&zeroing{slot: g.slot, block: slow * wordsPerPage, end: (there + 1) * wordsPerPage,
					done: func(*zeroing) { zeroed = true }})
			})
			data, done := g.writeBack(4, block)
			if zeroed {
				t.Fatal("too early for the test")
			}
			g.must(func() bool { return zeroed && *done && g.punched() }, 10*sec, "both and the punch")
			p := g.st.cache.get(g.slot*pagesPerSlot + block/wordsPerPage)
			if p.word(block) == wordZeros || p.word(block+1) != wordZeros {
				t.Error("the newer block reads as zeros, or the next one doesn't")
			}
			if !bytes.Equal(g.nd.raw(chunkA, block*4096, 4096), data) {
				t.Error("the newer block isn't in the store")
			}
		})
	}
}

// The torture with a log on the disk of its store, which seeks: write-back goes over gaps while
// they are written, zeroed, punched and read, and while the power is cut.
func TestTortureGaps(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	filled := uint64(0)
	for seed := range seeds {
		w := newWorldWith(t, seed+700, 3, ssdcache.MinSize, 1<<20)
		w.same = true
		for _, nd := range w.nodes {
			nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
				if op.Kind != uring.DiskDiscard {
					f.Delay = 6 * ms
				}
				return f
			}
			nd.restart(false)
		}
		x := &torture{w: w}
		x.run(t, seed+700)
		for _, nd := range w.nodes {
			filled += nd.sh.store.filled
		}
	}
	if filled == 0 {
		t.Error("no gap was filled: the test shows nothing")
	}
	t.Logf("%d blocks in gaps written by the last processes", filled)
}

// Who waits for a CRC page gets it in the order of asking, also if some of them wait for the page
// to be loaded and some for a frame: a ZERO that passed an older write-back would be undone by it.
func TestPageWaitersStayInOrder(t *testing.T) {
	g := newGapWorld(t, 99)
	c := g.st.cache
	page := g.slot*pagesPerSlot + 3
	var order []string
	wait := func(who string, page uint32) {
		c.want(&pageWait{page: page, ready: func(*crcPage) { order = append(order, who) }})
	}
	var pinned []*crcPage
	g.nd.env.Do(func() {
		g.st.onDamaged = nil
		g.st.entries[g.slot].pages[3] = word(12345, false) // it isn't zeros, so it is loaded
		c.max = len(c.frames)
		for _, p := range c.frames {
			p.pins++
			pinned = append(pinned, p)
		}
		wait("first", page)
		wait("another page's", page+1)
		wait("write-back", page)
		pinned[0].pins--
		pinned[0].id, pinned[0].dirty = noPage, false
		c.feed()
		if c.starved == nil || c.index[page] < 0 {
			t.Error("the first doesn't load, or the others don't wait for a frame: nothing is shown")
		}
		wait("zero", page)
	})
	g.must(func() bool { return len(order) > 0 }, sec, "the page")
	g.nd.env.Do(func() {
		for _, p := range pinned[1:] {
			p.pins--
		}
		c.feed()
	})
	g.must(func() bool { return len(order) == 4 }, sec, "all of them")
	if slices.Index(order, "write-back") > slices.Index(order, "zero") {
		t.Errorf("served in the order %q", order)
	}
}
