package uring

// The arena of a pool is cut into buffers as they are asked for, and one that comes back stays what
// it is: most likely the next one asked for is like it. When all is cut, and none of a size is
// left, free ones of other sizes are cut anew. Otherwise memory that many small requests have
// needed at the same time, once, would be lost to large ones for good.

// recut is what a pool keeps for it.
type recut struct {
	first []*Buf // of each page that is cut: the buffer that begins there
	from  int    // the page where the last look for memory ended
	vain  bool   // it found none
	since int    // bytes that have come back since, or were asked for
}

// recutShare is which part of the arena must have come back, or have been asked for, before it is
// looked through again after a look in vain, which takes time.
const recutShare = 16

// put notes a new buffer at an offset of the arena.
func (r *recut) put(b *Buf, at int) {
	page, end := at/BufAlign, (at+len(b.mem))/BufAlign
	for len(r.first) < end {
		r.first = append(r.first, nil)
	}
	clear(r.first[page:end])
	r.first[page] = b
}

// split makes a buffer of the class c of a larger one that is free, and others of the rest.
func (p *Pool) split(c int) *Buf {
	for k := c + 1; k < len(bufClasses); k++ {
		if b := p.free[k]; b != nil {
			p.unlink(b)
			at := int(addrOf(b.mem) - addrOf(p.arena))
			p.share(at+bufClasses[c], at+len(b.mem), c)
			return p.cut(at, c)
		}
	}
	return nil
}

// share makes free buffers of a piece of the arena, of the class c as far as it goes.
func (p *Pool) share(from, to, c int) {
	for from < to {
		for bufClasses[c] > to-from {
			c--
		}
		p.link(p.cut(from, c))
		from += bufClasses[c]
	}
}

// join makes a buffer of the class c of smaller ones that are free and lie side by side.
func (p *Pool) join(c int) *Buf {
	r, size := &p.recut, bufClasses[c]
	if len(p.arena)-p.inUse < size {
		return nil
	}
	if r.since += size; r.vain && r.since < len(p.arena)/recutShare {
		return nil
	}
	from, to, ok := p.look(r.from, size)
	if !ok {
		from, to, ok = p.look(0, size)
	}
	r.from, r.vain, r.since = to/BufAlign, !ok, 0
	if !ok {
		return nil
	}
	for page := from / BufAlign; page < to/BufAlign; {
		b := r.first[page]
		page += len(b.mem) / BufAlign
		p.unlink(b)
	}
	b := p.cut(from, c)
	p.share(from+size, to, c)
	return b
}

// look finds free buffers side by side with at least size bytes, the last of them with what was
// never cut. They lie at [from, to) of the arena. ok is false if there are none from a page on.
func (p *Pool) look(page, size int) (from, to int, ok bool) {
	first := p.recut.first
	for run := 0; page < len(first); {
		b := first[page]
		if b == nil { // in the middle of one that was made since
			page++
			continue
		}
		page += len(b.mem) / BufAlign
		if b.refs > 0 {
			run = 0
			continue
		}
		run += len(b.mem)
		if to = page * BufAlign; to == p.brk {
			size -= len(p.arena) - to
		}
		if run >= size {
			return to - run, to, true
		}
	}
	return 0, 0, false
}
