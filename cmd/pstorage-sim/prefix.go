package main

import (
	"pstorage/chunk"
	"pstorage/dataplane"
)

// Within one activation of a chunk (an epoch, and a term of it) all members begin with the same
// history, and what each has later is a prefix of what the head has (I2). So all of them must have
// the same seq and the same content at the moment at which they are activated, and whenever one
// looks none is ahead of the head, and none lacks what the head says is committed (I1).

// activation is how the first member was activated, and who was since.
type activation struct {
	by    uint64 // bit per server
	epoch dataplane.Epoch
	term  uint16
	seq   dataplane.Seq
	cs    dataplane.CSID
	words []uint32 // of the blocks in use
	known []bool
}

// activated compares a member with the first one of the same activation.
func (w *world) activated(n *csNode, id dataplane.ChunkID) {
	r, ok := n.shard.SimReplica(id)
	if !ok {
		w.violate("I2: cs %d has activated chunk %v and doesn't have it", n.id, id)
		return
	}
	if n.image { // others asked before it was refused: what it has is of no use to anybody
		if n.shard.Leased() {
			w.violate("I8: cs %d serves chunk %v from an old image of its directory", n.id, id)
		}
		return
	}
	w.counts.activations++
	now := activation{epoch: r.Epoch, term: r.Term, seq: r.Last, cs: n.id}
	w.eachWord(n, id, &now)
	first, bit := w.begun[id], uint64(1)<<n.id
	// Terms have 16 bits and are drawn: two settlings of an epoch may have the same one. But each
	// activates a member once.
	if first == nil || first.epoch != r.Epoch || first.term != r.Term || first.by&bit != 0 {
		now.by = bit
		w.begun[id] = &now
		return
	}
	first.by |= bit
	if first.seq != now.seq {
		w.violate("I2: chunk %v is activated at epoch %d, term %d with seq %d at cs %d and %d at cs %d",
			id, r.Epoch, r.Term, first.seq, first.cs, now.seq, n.id)
		return
	}
	for i, word := range now.words {
		if !now.known[i] || i >= len(first.known) || !first.known[i] {
			continue
		}
		w.counts.compared++
		if word != first.words[i] {
			w.violate("I2: chunk %v is activated at epoch %d, term %d, seq %d with different contents at "+
				"cs %d and cs %d: block %d of those in use has checksums %x and %x", id, r.Epoch, r.Term,
				now.seq, first.cs, n.id, i, first.words[i], word)
			return
		}
	}
	w.prefixes(id)
}

// eachWord notes what stands for the contents of the blocks in use.
func (w *world) eachWord(n *csNode, id dataplane.ChunkID, a *activation) {
	c := w.config(id)
	if c == nil {
		return
	}
	for _, u := range w.usedOf(c.Index) {
		from := (u.off - int64(c.Index)*dataplane.ChunkSize) / dataplane.BlockSize
		for b := from; b < from+u.length/dataplane.BlockSize; b++ {
			word, ok := n.shard.SimWord(id, uint32(b))
			a.words, a.known = append(a.words, word), append(a.known, ok)
		}
	}
}

// prefixes compares the members of a chunk with its head, as they are now.
func (w *world) prefixes(id dataplane.ChunkID) {
	c := w.config(id)
	if c == nil {
		return
	}
	head, there := w.replicaAt(c.Members[0].CS, id)
	if !there || !head.Head {
		return
	}
	for _, m := range c.Members[1:] {
		r, ok := w.replicaAt(m.CS, id)
		if !ok || r.Epoch != head.Epoch || r.Term != head.Term {
			continue
		}
		w.counts.prefixes++
		if r.Last > head.Last || r.Last < head.Commit {
			w.violate("I2: chunk %v at epoch %d, term %d: cs %d has seq %d, the head, cs %d, has %d, "+
				"committed %d", id, r.Epoch, r.Term, m.CS, r.Last, c.Members[0].CS, head.Last, head.Commit)
		}
	}
}

// replicaAt is an active replica of a living process.
func (w *world) replicaAt(cs dataplane.CSID, id dataplane.ChunkID) (r chunk.SimReplica, ok bool) {
	n := w.cs[cs-1]
	if n.shard == nil || n.env.Dead() {
		return r, false
	}
	r, ok = n.shard.SimReplica(id)
	return r, ok && r.Active
}
