package chunk

import (
	"pstorage/dataplane"
)

// This file is for simulations of whole clusters: making disks without files, deliberate faults,
// and a look inside.

// Canary are deliberate faults. Each breaks a promise that a simulation checks; a simulation that
// doesn't find them proves nothing. The zero value is none.
type Canary struct {
	NoFileFence      bool // writes with tokens below the file's fence are taken
	AckEarly         bool // the head answers before the other members have the write
	AckVolatile      bool // a member answers before the write is durable
	NoLease          bool // serves without a lease
	NoPatches        bool // settling copies nothing
	ForgetSealed     bool // a chunk that is sealed when its coordinator's connection ends is forgotten
	VolatileActivate bool // an activation is confirmed before it is durable
	DeafHead         bool // the head doesn't notice that it lost a member's connection
	ReadAbove        bool // reads don't wait for the commit mark
	ClaimAll         bool // what a client says of one write moves the commit mark over all others
	NoCRC            bool // blocks aren't compared with their checksums
	NoDirty          bool // a copy to a new member misses what is written meanwhile
	AckChain         bool // a link of a chain answers before the next one has
	SealEarly        bool // a SEAL is answered before what was accepted is durable
	ServeUnsettled   bool // chunks in doubt are read before their members have settled
	KeepLinks        bool // a client's older connection is served on beside its new one
	NoExclude        bool // lost members are left out without a new epoch
	TrustPartial     bool // a copy over a returned member's replica passes for it; and ForgetAsked
	ForgetAsked      bool // that a member was asked for isn't on record
	OldEpoch         bool // members take writes of any epoch and activation
	RecordFirst      bool // the record of a write around the log doesn't wait for its data
	NoHold           bool // a move is asked for before its target's copy outlives its process
	NoHoldAdded      bool // the same for additions, not for moves
	NoSalvage        bool // a damaged block isn't looked for at former members
	SalvageAny       bool // whatever a former member has is taken for a damaged block
	FlushEarly       bool // a member answers a flush before the writes are durable
	KeepLife         bool // clients aren't told that all members have ended
	NoHistory        bool // a dirty map misses what was written since the exclusion
}

// SimStore returns the first block and the size of a new store of the given number of slots, all
// zeros behind the block, and the owner of the log that belongs to it. tag tells stores apart.
func SimStore(slots uint32, tag byte) (super []byte, size int64, owner uint64) {
	sb := newSuperblock(slots)
	sb.disk, sb.log = uuid{tag}, uuid{100, tag}
	super = make([]byte, superSize)
	sb.put(super)
	return super, sb.size(), ownerOf(sb.log)
}

// SimData is where the slots of a store begin: what lies before are its tables.
func SimData(slots uint32) int64 {
	sb := newSuperblock(slots)
	return sb.data
}

// SimReplica is what a server knows of a chunk.
type SimReplica struct {
	Active       bool
	Head         bool
	Epoch        dataplane.Epoch
	Term         uint16 // of the activation
	Last, Commit dataplane.Seq
	Members      []dataplane.CSID
}

// SimReplica describes the replica of a chunk; false: there is none.
func (sh *Shard) SimReplica(id dataplane.ChunkID) (s SimReplica, ok bool) {
	r := sh.chunks[id]
	if r == nil || r.slot == noSlot {
		return s, false
	}
	s = SimReplica{Active: r.state == active, Head: r.isHead(), Epoch: r.epoch, Term: r.term,
		Last: r.last, Commit: r.commit}
	for _, m := range r.members {
		s.Members = append(s.Members, m.cs)
	}
	return s, true
}

// SimPeek reads a part (n <= 64 KiB, whole blocks) of a replica as it stands, in any state, and has
// damaged blocks repaired. done is called once; p is valid during the call.
func (sh *Shard) SimPeek(id dataplane.ChunkID, off, n uint32, done func(p []byte, err error)) {
	r := sh.chunks[id]
	if r == nil || r.slot == noSlot {
		done(nil, dataplane.E("peek", dataplane.UnknownChunk, nil))
		return
	}
	buf := sh.pool.Get(int(n))
	if buf == nil {
		done(nil, dataplane.E("peek", dataplane.Overloaded, nil))
		return
	}
	b := &blockRead{sh: sh}
	b.wait.ready = func(*crcPage) { b.round() }
	b.done = func(b *blockRead) {
		if b.bad != 0 {
			sh.damaged(r, b.from, b)
			done(nil, dataplane.E("peek", dataplane.BadCRC, nil))
		} else {
			done(buf.Bytes()[:n], nil)
		}
		buf.Release()
	}
	b.start(r, off/dataplane.BlockSize, int(n/dataplane.BlockSize), buf.Bytes()[:n])
}

// SimBlockAt is where in the store a block of a chunk lies. It is false if the chunk isn't here, or
// the block's current content is in the log.
func (sh *Shard) SimBlockAt(id dataplane.ChunkID, block uint32) (off int64, ok bool) {
	r := sh.chunks[id]
	if r == nil || r.slot == noSlot {
		return 0, false
	}
	if _, logged := sh.log.Lookup(r.slot, block); logged {
		return 0, false
	}
	return sh.store.sb.block(r.slot, block), true
}

// SimInOrder says whether what is on disk knows of no range that was touched out of order, or may
// have been: such a chunk takes part in a settling whatever it lacks (decide). tail says whether
// the slot table has a range that writes above a commit mark touched.
func (sh *Shard) SimInOrder() (ok, tail bool) {
	for _, r := range sh.chunks {
		if r.slot == noSlot {
			continue
		}
		e := &sh.store.entries[r.slot]
		if len(r.patched) > 0 || e.tailLen > 0 && !e.inOrder {
			return false, false
		}
		tail = tail || e.tailLen > 0
	}
	return !sh.store.flushing.running, tail
}

// SimWord is what stands for the content of a block, the same on every member that has the same.
// It is false if that can't be told at once: the checksum isn't in memory, is lost, or is being
// changed.
func (sh *Shard) SimWord(id dataplane.ChunkID, block uint32) (w uint32, ok bool) {
	r, cache := sh.chunks[id], sh.store.cache
	if r == nil || r.slot == noSlot {
		return 0, false
	}
	if pos, ok := sh.log.Lookup(r.slot, block); ok {
		return plainWord(sh.log.CRC(pos) ^ zeroCRC), true
	}
	i := cache.index[r.slot*pagesPerSlot+block/wordsPerPage]
	if i < 0 || cache.frames[i].waited() || cache.starved != nil {
		return 0, false
	}
	if w = cache.frames[i].word(block); w == wordUnknown {
		return 0, false
	}
	return plainWord(w), true
}

// Leased says whether the server may serve now.
func (sh *Shard) Leased() bool { return sh.env.Now() < sh.lease.Load() && sh.dead == nil }

// SimClaims is how many times what a client said let reads see more.
func (sh *Shard) SimClaims() uint64 { return sh.claims }

// SimBypassed is how many writes have gone around the log.
func (sh *Shard) SimBypassed() uint64 { return sh.bypass.count }

// SimCRCPages says how many CRC pages made room for others, and how many times somebody had to
// wait for room.
func (sh *Shard) SimCRCPages() (evicted, short uint64) {
	return sh.store.cache.evicted, sh.store.cache.short
}

// SimAbandon gives the memory of a shard back whose process was killed. Nothing may call it again.
func (sh *Shard) SimAbandon() {
	if sh.log != nil {
		sh.log.Abandon()
	}

}
