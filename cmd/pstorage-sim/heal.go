package main

import (
	"bytes"
	"fmt"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// heal ends all faults. Then everything must converge: all operations end, all members of each
// chunk are active in the committed epoch with the same content, which is what was written last.
func (w *world) heal() {
	w.trace("healing")
	w.calm, w.stopLoad = true, true
	w.net.Heal()
	for _, n := range w.cs {
		n.store.Fault = nil
		if !n.gone {
			n.cache.Fault = nil
		}
		n.start(true)
	}
	for _, c := range w.cl {
		if c.env.Dead() {
			// Its restart is on its way.
			w.wait(func() bool { return !c.env.Dead() }, sec, "client started")
		}
	}
	if !w.enough() {
		w.sim.Run(func() bool { return len(w.violations) > 0 }, w.sim.Now()+10*sec)
		w.trace("over budget: too few members are left to go on")
		w.histories()
		return
	}
	healed := w.sim.Now()
	if !w.wait(w.quiet, 60*sec, "all operations done after healing") {
		w.explainStuck()
		return
	}
	w.stuck = w.sim.Now() - healed
	w.lastWrites()
	w.lastReads()
	if w.sc.leases && w.cfg.scene == nil && len(w.violations) == 0 {
		w.handover()
	}
	if len(w.violations) > 0 {
		return
	}
	if !w.wait(w.replicated, 120*sec, "full replication") {
		w.explainStuck()
		return
	}
	w.sim.Run(func() bool { return false }, w.sim.Now()+2*sec)
	w.sim.Run(w.atRest, w.sim.Now()+60*sec) // a move may be on its way; compare says what is wrong
	for _, c := range w.mds.sim.Chunks() {
		if c.Created { // others were allocated ahead of a writer
			w.compareChunk(c.Chunk)
		}
	}
	w.histories()
}

// replicated says whether every chunk has as many members as it should and there are servers for.
func (w *world) replicated() bool {
	there := 0
	for _, n := range w.cs {
		if !n.gone && !n.drained {
			there++
		}
	}
	for _, c := range w.mds.sim.Degraded() {
		present := 0
		for _, m := range c.Members {
			if !w.cs[m.CS-1].gone {
				present++
			}
		}
		if c.Created && present < min(there, int(w.mds.sim.Wanted(c.Chunk))) {
			return false
		}
	}
	return true
}

func (w *world) histories() {
	for _, f := range w.files {
		f.checkHistories()
	}
}

// enough says whether every chunk has the members it needs for writes.
func (w *world) enough() bool {
	for _, c := range w.mds.sim.Chunks() {
		there := 0
		for _, m := range c.Members {
			if !w.cs[m.CS-1].gone {
				there++
			}
		}
		if there < int(c.Minimum) {
			return false
		}
	}
	return true
}

func (w *world) quiet() bool {
	for _, c := range w.cl {
		if c.running > 0 {
			return false
		}
	}
	return true
}

// explainStuck says who waits for what.
func (w *world) explainStuck() {
	for _, c := range w.cl {
		if c.running > 0 {
			w.violations = append(w.violations, fmt.Sprintf("client %d: %d operations wait; %+v",
				c.index+1, c.running, c.eng.Stats()))
		}
	}
	for _, c := range w.mds.sim.Chunks() {
		text := fmt.Sprintf("chunk %v file %d index %d epoch %d created %v:", c.Chunk, c.File, c.Index,
			c.Epoch, c.Created)
		for _, m := range c.Members {
			n := w.cs[m.CS-1]
			text += fmt.Sprintf(" cs %d", m.CS)
			if n.shard == nil || n.env.Dead() {
				text += " (down)"
				continue
			}
			r, ok := n.shard.SimReplica(c.Chunk)
			text += fmt.Sprintf(" (leased %v, has it %v %+v)", n.shard.Leased(), ok, r)
		}
		w.violations = append(w.violations, text)
	}
}

// lastWrites writes to every chunk, so that its members have to agree.
func (w *world) lastWrites() {
	for i, f := range w.files {
		c := w.cl[i]
		c.env.Do(func() {
			for _, off := range []int64{0, dataplane.ChunkSize - 4096, dataplane.ChunkSize} {
				c.write(f, off, 4096, false)
			}
		})
	}
	if !w.wait(w.quiet, 60*sec, "last writes") {
		w.explainStuck()
	}
}

// lastReads reads everything, by two clients each.
func (w *world) lastReads() {
	for i, f := range w.files {
		for _, c := range []*client{w.cl[i], w.cl[(i+1)%len(w.cl)]} {
			c.env.Do(func() {
				for _, a := range w.areas {
					for off := a.off; off < a.off+a.length; off += 64 << 10 {
						c.read(f, off, int(min(64<<10, a.off+a.length-off)))
					}
				}
			})
		}
	}
	if !w.wait(w.quiet, 60*sec, "last reads") {
		w.explainStuck()
	}
}

// config is a chunk's configuration now.
func (w *world) config(id dataplane.ChunkID) *control.ChunkConfig {
	for _, c := range w.mds.sim.Chunks() {
		if c.Chunk == id {
			return &c
		}
	}
	return nil
}

// compareChunk compares the members of a chunk with each other and with what was written. Chunks
// may be moved meanwhile: then once more.
func (w *world) compareChunk(id dataplane.ChunkID) {
	for range 10 {
		var c *control.ChunkConfig
		why := ""
		agree := func() bool {
			c = w.config(id)
			why = w.disagree(c)
			return why == ""
		}
		if !w.sim.Run(agree, w.sim.Now()+sec) {
			if len(w.usedOf(c.Index)) == 0 {
				return // nobody asks for it
			}
			// A head that left with a move, and whoever couldn't exclude a member that came back, leave
			// the rest to the next who writes.
			w.wake(c)
			if !w.sim.Run(agree, w.sim.Now()+30*sec) {
				w.violate("%s", why)
				return
			}
		}
		if w.compare(c) {
			return
		}
	}
	w.violate("chunk %v is moved again and again", id)
}

// wake writes to a chunk, so that its head gets its members ready.
func (w *world) wake(c *control.ChunkConfig) {
	for i, f := range w.files {
		if used := w.usedOf(c.Index); f.id == c.File && len(used) > 0 {
			c := w.cl[i]
			if f.writer != 0 {
				c = w.cl[f.writer]
			}
			c.env.Do(func() { c.write(f, used[0].off, dataplane.BlockSize, false) })
		}
	}
	w.wait(w.quiet, 60*sec, "write to a chunk that was moved")
}

// disagree says how the members of a chunk aren't one: "" if they are.
func (w *world) disagree(c *control.ChunkConfig) string {
	var was [3]uint64
	for i, m := range c.Members {
		n := w.cs[m.CS-1]
		if n.shard == nil || n.env.Dead() || n.gone {
			return fmt.Sprintf("chunk %v: cs %d is a member and isn't there", c.Chunk, m.CS)
		}
		r, ok := n.shard.SimReplica(c.Chunk)
		is := [3]uint64{uint64(r.Epoch), uint64(r.Last), uint64(r.Commit)}
		if i == 0 {
			was = is
		}
		if ok && !r.Active && r.Last == 0 && c.Epoch == 1 {
			return "" // never written to, and not asked for since its server started
		}
		if !ok || !r.Active || r.Epoch != c.Epoch || r.Last != r.Commit || is != was {
			return fmt.Sprintf("chunk %v at epoch %d: cs %d has %+v, the first member %v", c.Chunk,
				c.Epoch, m.CS, r, was)
		}
	}
	return ""
}

// compare compares content. It is false if the chunk's members changed meanwhile.
func (w *world) compare(c *control.ChunkConfig) bool {
	var first []byte
	var differ []string
	for i, m := range c.Members {
		n := w.cs[m.CS-1]
		if r, ok := n.shard.SimReplica(c.Chunk); ok && !r.Active {
			return r.Last == 0
		}
		data := w.replica(n, c)
		if data == nil {
			break
		}
		if i == 0 {
			first = data
			defer w.bufs.Put(data)
			continue
		}
		if !bytes.Equal(first, data) {
			differ = append(differ, fmt.Sprintf("chunk %v: cs %d and cs %d differ%s", c.Chunk,
				c.Members[0].CS, m.CS, firstDifference(first, data)))
		}
		w.bufs.Put(data)
	}
	if now := w.config(c.Chunk); now.Epoch != c.Epoch {
		return false
	}
	switch {
	case len(differ) > 0:
		w.violate("%s", differ[0])
	case w.unread != "":
		w.violate("%s", w.unread)
	default:
		w.compareWritten(c, first)
	}
	return true
}

func firstDifference(a, b []byte) string {
	for i := range a {
		if a[i] != b[i] {
			i -= i % sectorSize
			return fmt.Sprintf(" in piece %d: %x and %x", i/dataplane.BlockSize, a[i:i+8], b[i:i+8])
		}
	}
	return ""
}

// usedOf lists the parts of a chunk that are used, in 64 KiB or less.
func (w *world) usedOf(index uint32) (list []area) {
	start := int64(index) * dataplane.ChunkSize
	for _, a := range w.areas {
		from, to := max(a.off, start), min(a.off+a.length, start+dataplane.ChunkSize)
		for ; from < to; from += dataplane.PartSize {
			list = append(list, area{from, min(to-from, dataplane.PartSize)})
		}
	}
	return list
}

// replica reads the used parts of a member's replica; damaged blocks get time to be repaired.
func (w *world) replica(n *csNode, c *control.ChunkConfig) (all []byte) {
	w.unread = ""
	size := int64(0)
	for _, a := range w.areas {
		size += a.length
	}
	all = w.bufs.Get(int(size))[:0]
	for _, a := range w.usedOf(c.Index) {
		off := uint32(a.off - int64(c.Index)*dataplane.ChunkSize)
		for try := 0; ; try++ {
			var got []byte
			var err error
			done := false
			n.env.Do(func() {
				n.shard.SimPeek(c.Chunk, off, uint32(a.length), func(p []byte, e error) {
					got, err, done = w.bufs.Get(int(a.length)), e, true
					copy(got, p)
				})
			})
			if !w.wait(func() bool { return done }, 20*sec, "replica read") {
				return nil
			}
			if err == nil {
				all = append(all, got...)
				w.bufs.Put(got)
				break
			}
			if try == 20 || w.config(c.Chunk).Epoch != c.Epoch {
				w.unread = fmt.Sprintf("chunk %v: cs %d can't read its replica at %d: %v", c.Chunk, n.id, off,
					err)
				return nil
			}
			w.sim.Run(func() bool { return false }, w.sim.Now()+500*ms)
		}
	}
	return all
}

// compareWritten compares content with the newest versions, where these are known.
func (w *world) compareWritten(c *control.ChunkConfig, p []byte) {
	for _, f := range w.files {
		if f.id != c.File || f.whole {
			continue
		}
		for _, a := range w.usedOf(c.Index) {
			for off := a.off; off < a.off+a.length; off += dataplane.BlockSize {
				b := f.blocks[off]
				newest := b.versions[len(b.versions)-1].content
				if w.sc.memory {
					newest = b.versions[b.floor].content // the last reads told
				}
				for s := range sectors {
					tag, ok := sectorTag(p[:sectorSize])
					p = p[sectorSize:]
					if !ok || tag != newest[s] {
						w.violate("block at %d of file %d is %x and should be %x in sector %d", off, f.index+1,
							tag, newest[s], s)
						return
					}
				}
			}
		}
	}
}
