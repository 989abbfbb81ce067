package chunk

import (
	"encoding/binary"
	"fmt"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// Replicas are compared by what their blocks' checksums are, so without reading any data: the
// head of a chunk asks the members for digests at one commit seq and compares them with its own.
// A part in which they differ is reported, not changed: each copy is what some write put there, and
// which of them it should be can't be known from here.

// A digest of a chunk: 1024 checksums of 4 bytes, one per part of 64 KiB, over the words of its 16
// blocks; 0: a checksum in it is lost, so the part isn't compared.
const (
	digestSize = dataplane.BlocksPerChunk / partBlocks * 4
	partBlocks = dataplane.PartSize / dataplane.BlockSize

	maxDigests    = 4  // being computed at a time
	digestRetries = 10 // for a chunk that is written to
)

// digesting computes the digest of a replica.
type digesting struct {
	sh   *Shard
	r    *replica
	id   activation
	next uint32 // page
	cold bool
	out  []byte
	wait pageWait
	done func(digest []byte) // nil: the chunk isn't at rest at that seq
}

// activation tells whether a chunk is still what it was: the same members at the same seq.
type activation struct {
	epoch dataplane.Epoch
	term  uint16
	seq   dataplane.Seq
}

// atRest says that every write of the chunk is committed and in place, and none under way.
func (r *replica) atRest() bool {
	return r.state == active && r.settler == nil && !r.gone && r.last == r.commit &&
		r.durable == r.commit && r.busy == 0
}

func (r *replica) activation() activation { return activation{r.epoch, r.term, r.commit} }

// digest computes r's digest. done is called later, once.
func (sh *Shard) digest(r *replica, done func(digest []byte)) {
	if !r.atRest() || sh.digests >= maxDigests || sh.dead != nil || sh.stopping {
		sh.later(func() { done(nil) })
		return
	}
	d := &digesting{sh: sh, r: r, id: r.activation(), out: make([]byte, digestSize), done: done}
	d.wait.ready = d.page
	sh.digests++
	r.refs++
	sh.later(d.step)
}

func (d *digesting) step() {
	sh, r := d.sh, d.r
	ok := r.atRest() && r.activation() == d.id && sh.dead == nil && !sh.stopping
	if ok && d.next < pagesPerSlot {
		d.load()
		return
	}
	sh.digests--
	sh.release(r)
	if !ok {
		d.out = nil
	}
	d.done(d.out)
}

func (d *digesting) load() {
	st, slot := d.sh.store, d.r.slot
	if slot == noSlot {
		d.page(nil)
		return
	}
	d.wait.page = slot*pagesPerSlot + d.next
	d.cold = st.cache.index[d.wait.page] < 0
	if d.cold && st.entries[slot].pages[d.next] == wordZeros {
		d.page(nil)
		return
	}
	st.cache.want(&d.wait)
}

// page adds the parts that a CRC page covers; nil: the page is all zeros.
func (d *digesting) page(p *crcPage) {
	if p != nil && d.cold {
		p.hot = false
	}
	var words [4 * partBlocks]byte
	for first := d.next * wordsPerPage; first < (d.next+1)*wordsPerPage; first += partBlocks {
		known := true
		for i := range uint32(partBlocks) {
			w := d.word(p, first+i)
			known = known && w != wordUnknown
			binary.LittleEndian.PutUint32(words[4*i:], w)
		}
		if known {
			binary.LittleEndian.PutUint32(d.out[first/partBlocks*4:], dataplane.CRC(words[:]))
		}
	}
	d.next++
	d.sh.later(d.step)
}

// word is what stands for a block's content, the same on every member.
func (d *digesting) word(p *crcPage, block uint32) uint32 {
	if d.r.slot == noSlot {
		return wordZeros
	}
	if pos, ok := d.sh.log.Lookup(d.r.slot, block); ok {
		return plainWord(d.sh.log.CRC(pos) ^ zeroCRC)
	}
	if p == nil {
		return wordZeros
	}
	w := p.word(block)
	if w == wordUnknown {
		return w
	}
	return plainWord(w)
}

// plainWord merges words of which one may stand for what the other stands for.
func plainWord(w uint32) uint32 {
	switch w {
	case wordZeros + 1:
		return wordZeros
	case wordUnknown:
		return wordUnknown + 1
	}
	return w
}

// digestFrame takes OpDigest.
func (sh *Shard) digestFrame(l *link, h *dataplane.Header) {
	r := sh.chunks[h.Chunk]
	if r == nil {
		l.refuse(h, dataplane.UnknownChunk)
		return
	}
	if r.epoch != h.Epoch || r.commit != h.Seq || h.Aux != uint32(r.term) {
		l.refuse(h, dataplane.NotReady)
		return
	}
	a := h.Reply(dataplane.OK)
	sh.digest(r, func(digest []byte) {
		if !l.open {
			return
		}
		if a.Seq = h.Seq; digest == nil {
			a.Status = dataplane.NotReady
			l.c.Send(&a, nil, nil)
			return
		}
		a.Flags |= dataplane.FlagData
		a.Offset, a.Length = 0, digestSize
		l.c.Send(&a, crcsOf(digest), digest)
	})
}

// comparison is what the scrubber does at the end of a chunk.
type comparison struct {
	s       *scrubber
	r       *replica
	slot    uint32
	id      activation
	tries   int
	wokenAt int64
	mine    bool // this server is the head
	pending int
	bad     bool // some answer didn't come
	own     []byte
	asked   [dataplane.MaxReplicas]dataplane.CSID // they may not be members any more
	theirs  [dataplane.MaxReplicas][]byte
}

// chunkDone is reached when all blocks of a chunk were compared with their checksums: its head
// compares the replicas. A chunk that nobody used since the start is settled for that.
func (s *scrubber) chunkDone(r *replica) {
	c := &comparison{s: s, r: r, slot: r.slot}
	s.comparing = true
	if r.state == active {
		c.mine = r.isHead() && len(r.members) > 1
		c.attempt()
		return
	}
	sh, id := s.sh, r.id
	c.wokenAt = sh.env.Now()
	sh.md.GetChunk(id, func(cfg *control.ChunkConfig, err error) {
		if s.ended() {
			return
		}
		c.mine = err == nil && len(cfg.Members) > 1 && cfg.Members[0].CS == sh.id
		if c.mine && r.state != active && !r.gone {
			sh.settle(r, nil)
		}
		c.attempt()
	})
}

// attempt asks all members for their digests, when the chunk is at rest.
func (c *comparison) attempt() {
	s, r := c.s, c.r
	sh := s.sh
	switch {
	case s.ended():
		return
	case !c.mine || r.gone || c.tries == digestRetries:
		c.end()
		return
	case r.state != active && sh.env.Now()-c.wokenAt < int64(scrubPatience):
		s.after(int64(scrubRetry), c.attempt)
		return
	case !r.atRest() || !r.isHead() || r.broken:
		c.tries++
		s.after(int64(scrubRetry), c.attempt)
		return
	}
	c.tries++
	c.id, c.bad, c.own = r.activation(), false, nil
	c.theirs = [dataplane.MaxReplicas][]byte{}
	c.pending = len(r.members)
	sh.digest(r, func(digest []byte) {
		c.own = digest
		c.answered(digest != nil)
	})
	h := dataplane.Header{Op: dataplane.OpDigest, Chunk: r.id, Epoch: c.id.epoch, Seq: c.id.seq,
		Aux: uint32(c.id.term)}
	for i, m := range r.members[1:] {
		c.asked[i+1] = m.cs
		m.peer.call(h, nil, nil,
			func(a *dataplane.Header, crcs, payload []byte, _ *uring.Buf, err error) {
				ok := err == nil && a.Status == dataplane.OK && len(payload) == digestSize &&
					dataplane.CheckCRCs(crcs, a.Offset, payload) < 0
				if ok {
					c.theirs[i+1] = append([]byte{}, payload...)
				}
				c.answered(ok)
			})
	}
}

func (c *comparison) answered(ok bool) {
	s, r := c.s, c.r
	c.bad = c.bad || !ok
	if c.pending--; c.pending > 0 || s.ended() {
		return
	}
	if c.bad {
		s.after(int64(scrubRetry), c.attempt)
		return
	}
	for i, digest := range c.theirs {
		n, first := differ(c.own, digest)
		if n == 0 {
			continue
		}
		s.rec.mismatches += uint64(n)
		s.sh.event(control.Fault, "replica-mismatch", fmt.Sprintf(
			"cs %d: %d parts of 64 KiB of chunk %v differ from what cs %d has, the first at byte %d; "+
				"their checksums are right on both, so nothing was changed", s.sh.id, n, r.id,
			c.asked[i], first*dataplane.PartSize))
	}
	c.end()
}

// differ counts the parts in which two digests differ, of those that both know.
func differ(a, b []byte) (n, first int) {
	for i := 0; i+4 <= len(a) && i+4 <= len(b); i += 4 {
		x, y := binary.LittleEndian.Uint32(a[i:]), binary.LittleEndian.Uint32(b[i:])
		if x != y && x != 0 && y != 0 {
			if n++; n == 1 {
				first = i / 4
			}
		}
	}
	return n, first
}

// end goes on with the next chunk, unless a new pass began meanwhile.
func (c *comparison) end() {
	s := c.s
	s.comparing = false
	if s.rec.slot == c.slot && s.rec.block == dataplane.BlocksPerChunk {
		s.rec.slot, s.rec.block = s.rec.slot+1, 0
	}
	s.after(0, s.tick)
}
