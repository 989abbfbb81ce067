package chunk

import "pstorage/dataplane"

// A head answers a write before the other members know that it is committed: they learn of it with
// the next write, or after a millisecond or two of silence (tellCommit). If the head falls silent
// in between, only the client that got the answer knows, and every other member would hold reads of
// that block back until the chunk is settled. So the client says it: with its reads (Seq of
// OpRead), and by itself when the head is silent (OpCommit). What it says moves a mark of its own:
//
//	claimed <= durable: up to it some client had writes acknowledged in this epoch
//
// Why reads may rely on it: a head answers a write OK when all members of its epoch have it and all
// before it durable, and nothing undoes that. Within an epoch every settling takes all members, and
// none of them loses it; so no other write gets its seq. A later epoch goes on above it. The mark
// ends with the activation. Not with write-ack=memory: what isn't durable can be lost and its
// seq given to another write, in the same epoch.
//
// What a client says is believed for reads only. Commit mark, log, slot table, settling and copies
// don't know of it, so a client that lies can have reads, of chunks that it knows and until the
// next activation, see durable writes of others that may yet be undone; no replica suffers.

// clientTells takes OpCommit from a client.
func (sh *Shard) clientTells(h *dataplane.Header) {
	if r := sh.chunks[h.Chunk]; r != nil && h.Epoch == r.epoch {
		sh.claim(r, h.Seq)
	}
}

// claim takes the seq of a write that a client was told to be committed, in the epoch of r.
func (sh *Shard) claim(r *replica, seq dataplane.Seq) {
	if r.state != active || r.memory || r.isHead() {
		return // a head knows better
	}
	if sh.canary.ClaimAll && seq > 0 {
		r.commitTo(r.durable)
	}
	seq = min(seq, r.durable)
	if seq <= max(r.claimed, r.commit) {
		return
	}
	r.claimed = seq
	sh.claims++
	if r.reads.n > 0 {
		sh.pumpReads(r)
	}
}

// hidden returns the last seq that touches the range and may not be read yet; 0 if none does.
func (r *replica) hidden(off, length uint32) dataplane.Seq {
	return r.above(max(r.visible(), r.claimed), off, length)
}
