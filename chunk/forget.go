package chunk

import (
	"slices"

	"pstorage/dataplane"
	"pstorage/ssdcache"
)

// A server may be told to forget tens of thousands of chunks at once: a large file was removed, or
// it was while this server was away. What they are to others ends at once, in memory. The log gets
// the Drops one by one, with pauses: each has it look for all of a chunk's blocks, and so many in
// one turn would keep everybody waiting for seconds, and be more than it takes. A chunk whose Drop
// is still to come when the process ends is there again after the next start, and the metadata
// servers say once more that it can go.

const freeBurst = 2 // slots given back in one turn

// Forget deletes chunks that no longer exist.
func (sh *Shard) Forget(ids []dataplane.ChunkID) {
	for _, id := range ids {
		sh.forget(id, nil)
	}
}

// forget deletes a chunk; then is called when that is durable, and not if nothing was kept of it.
// If it is nil that may take a while.
func (sh *Shard) forget(id dataplane.ChunkID, then func(error)) {
	r := sh.chunks[id]
	if r == nil || r.gone {
		return
	}
	sh.unserve(r)
	r.gone = true
	delete(sh.chunks, id)
	delete(sh.strangers, id)
	if r.slot == noSlot {
		return
	}
	r.refs++
	if then == nil && (sh.dropTimer.Armed() || !sh.log.Room()) {
		sh.toDrop = append(sh.toDrop, r)
		if !sh.dropTimer.Armed() {
			sh.env.Arm(&sh.dropTimer, int64(dropEvery))
		}
		return
	}
	sh.dropChunk(r, then)
}

// dropChunk has the log forget a chunk.
func (sh *Shard) dropChunk(r *replica, then func(error)) {
	sh.env.Arm(&sh.dropTimer, int64(dropEvery))
	rec := ssdcache.Record{Kind: ssdcache.Drop, Slot: r.slot, Chunk: r.id, Epoch: r.epoch,
		Seq: r.last}
	sh.appendRecord(rec, func(err error) {
		sh.release(r)
		if err == nil {
			r.dropped = true
			sh.store.touch(r.slot) // the slot may be in use for longer than the log has the record
			sh.leaving = append(sh.leaving, r)
			sh.pumpSoon()
		}
		if then != nil {
			then(err)
		}
	})
}

// dropNext goes on with what is to be dropped.
func (sh *Shard) dropNext() {
	switch {
	case len(sh.toDrop) == 0 || sh.dead != nil || sh.stopping:
	case sh.log.Room():
		r := sh.toDrop[0]
		sh.toDrop = sh.toDrop[1:]
		sh.dropChunk(r, nil)
	default:
		sh.env.Arm(&sh.dropTimer, int64(dropEvery))
	}
}

// dropBefore has the log forget what it has of a chunk before it hears of a new replica of it.
func (sh *Shard) dropBefore(id dataplane.ChunkID) {
	i := slices.IndexFunc(sh.toDrop, func(r *replica) bool { return r.id == id })
	if i >= 0 {
		r := sh.toDrop[i]
		sh.toDrop = slices.Delete(sh.toDrop, i, i+1)
		sh.dropChunk(r, nil)
	}
}

// freeLeaving gives slots of forgotten chunks back, once nobody uses them.
func (sh *Shard) freeLeaving() {
	keep, freed := sh.leaving[:0], 0
	for _, r := range sh.leaving {
		if freed == freeBurst || r.refs > 0 || sh.store.busy(r.slot) ||
			sh.log.InWriteBack(r.slot, 0, dataplane.BlocksPerChunk) {
			keep = append(keep, r)
			continue
		}
		freed++
		sh.log.StoreChanged(r.slot, 0, dataplane.BlocksPerChunk)
		sh.store.punch(r.slot)
	}
	clear(sh.leaving[len(keep):])
	sh.leaving = keep
}
