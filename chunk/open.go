package chunk

import (
	"errors"
	"fmt"
	"slices"

	"pstorage/dataplane"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// opener is the start of a shard:
//
//  1. superblock: is this the store that the identity speaks of?
//  2. staging area: complete a checkpoint that a power cut interrupted.
//  3. slot table: what was known of each chunk at the last checkpoint.
//  4. log: what happened since then, in order.
//  5. the log drops what it has of slots without a chunk (residue.go).
//  6. what ZERO records since then cleared is cleared again in the CRC pages, and what Stored
//     records say of blocks is set again, in the order of the log.
//
// After it every chunk is unsettled: nothing is served of it before its members agreed.
type opener struct {
	sh    *Shard
	o     *ShardOptions
	done  func(*Shard, error)
	buf   *uring.Buf
	op    uring.DiskOp
	then  func()
	pages []stagedPage
	imgs  [][]byte
	at    int64
	zeros []zeroing
	redo  redoing
	drops []uint32             // slots whose chunk was dropped: their space may not be back
	kept  map[uint32]slotEntry // of the slot table, of slots that were taken away
	// unread are slots whose entry isn't known. True: the log hasn't shown yet that what it says of
	// the slot is all there is; no chunk gets it before.
	unread map[uint32]bool
}

func (o *opener) start() {
	o.unread, o.kept = map[uint32]bool{}, map[uint32]slotEntry{}
	o.op.Done = func(op *uring.DiskOp) {
		if op.Err != nil {
			o.fail(fmt.Errorf("%v at %d: %w", op.Kind, op.Offset, op.Err))
			return
		}
		o.then()
	}
	if o.buf = o.sh.pool.Get(1 << 20); o.buf == nil {
		o.sh.later(func() { o.fail(errors.New("no memory in the buffer pool")) })
		return
	}
	o.read(0, stampOffset+dataplane.BlockSize, o.gotSuper)
}

func (o *opener) fail(err error) {
	if o.buf != nil {
		o.buf.Release()
		o.buf = nil
	}
	if st := o.sh.store; st.cache != nil {
		st.cache.close()
		st.flushing.close()
	}
	o.done(nil, err)
}

func (o *opener) read(off int64, n int, then func()) {
	o.op.Kind, o.op.Offset, o.op.Bufs = uring.DiskRead, off, [][]byte{o.buf.Bytes()[:n]}
	o.then = then
	o.sh.store.disk.Submit(&o.op)
}

func (o *opener) gotSuper() {
	var sb superblock
	st := o.sh.store
	err := sb.decode(o.buf.Bytes())
	if id := o.o.Identity; err == nil && id != nil {
		switch {
		case sb.disk != id.diskUUID():
			err = fmt.Errorf("the store is of disk %v, the identity of disk %s: "+
				"another chunk server's store was put here", sb.disk, id.Disk)
		case sb.cluster != id.cluster():
			err = fmt.Errorf("the store belongs to cluster %v, the identity to %s", sb.cluster,
				id.Cluster)
		case sb.log != id.logUUID():
			err = fmt.Errorf("the store belongs to log %v, the identity to %s", sb.log, id.Log)
		}
	}
	if err == nil && sb.slots > ssdcache.MaxSlots {
		err = fmt.Errorf("store of %d slots, at most %d are possible", sb.slots, ssdcache.MaxSlots)
	}
	if err == nil {
		err = st.stamp.decode(o.buf.Bytes()[stampOffset:])
	}
	if err == nil {
		err = st.stamp.checkIdentity(o.o.Identity)
		st.marked = st.stamp.nr
	}
	if err == nil && st.disk.Size() < sb.size() {
		err = fmt.Errorf("the store has %d bytes and should have %d: cut off", st.disk.Size(), sb.size())
	}
	if err != nil {
		o.fail(dataplane.E("open the store", dataplane.Invalid, err))
		return
	}
	st.attach(sb, o.o.crcFrames())
	o.sh.scrub.load(o.buf.Bytes()[scrubOffset:])
	o.read(sb.stage, stageHeadSize+stageRound*dataplane.BlockSize, o.gotStage)
}

func (o *opener) gotStage() {
	st := o.sh.store
	st.flushing.round, o.pages, o.imgs = restage(o.buf.Bytes(), &st.sb)
	if len(o.pages) == 0 {
		o.placeNext()
		return
	}
	// A process that ended before its sync leaves the staging area in the disk's cache: a power cut
	// could take it, and some of what is put in place from it.
	o.op.Kind, o.op.Bufs, o.then = uring.DiskSync, nil, o.placeNext
	st.disk.Submit(&o.op)
}

// placeNext writes the next page of the staging area in place, and syncs after the last.
func (o *opener) placeNext() {
	if len(o.pages) == 0 {
		o.op.Kind, o.op.Bufs = uring.DiskSync, nil
		o.then = func() { o.at = 0; o.readTable() }
		o.sh.store.disk.Submit(&o.op)
		return
	}
	o.op.Kind, o.op.Offset, o.op.Bufs = uring.DiskWrite, o.pages[0].target, o.imgs[:1:1]
	o.pages, o.imgs = o.pages[1:], o.imgs[1:]
	o.then = o.placeNext
	o.sh.store.disk.Submit(&o.op)
}

// readTable reads the slot table, as much as fits the buffer at a time.
func (o *opener) readTable() {
	st := o.sh.store
	total := (int64(st.sb.slots)*entrySize + dataplane.BlockSize - 1) &^ (dataplane.BlockSize - 1)
	n := min(total-o.at, int64(len(o.buf.Bytes())))
	if n == 0 {
		o.openLog()
		return
	}
	o.read(st.sb.table+o.at, int(n), func() {
		first := uint32(o.at / entrySize)
		for i := range uint32(n / entrySize) {
			if slot := first + i; slot < st.sb.slots {
				o.entry(slot, o.buf.Bytes()[i*entrySize:(i+1)*entrySize])
			}
		}
		o.at += n
		o.readTable()
	})
}

func (o *opener) entry(slot uint32, b []byte) {
	sh := o.sh
	e := &sh.store.entries[slot]
	if err := e.decode(b, slot); err != nil {
		// Whatever chunk it was has lost its replica here; its members will find out.
		sh.store.residue[slot], o.unread[slot] = false, true
		sh.slog.Error("slot lost", "slot", slot, "err", err)
		return
	}
	if e.chunk == 0 {
		return
	}
	if other := sh.chunks[e.chunk]; other != nil && !o.newer(e, slot, other) {
		return
	}
	r := &replica{id: e.chunk, slot: slot}
	if r.load(e); e.unsure {
		r.unsure = e.epoch
	}
	sh.chunks[e.chunk] = r
	sh.store.owners[slot] = r
}

// newer decides which of two slots has the chunk, and says whether it is the one with entry e. A
// power cut leaves two if it comes when a copy to here was begun and the Drop of what was here
// before wasn't durable, or not yet in the table: then the log says the rest.
func (o *opener) newer(e *slotEntry, slot uint32, other *replica) bool {
	st := o.sh.store
	o.sh.slog.Info("chunk in two slots", "chunk", e.chunk, "slot", slot, "epoch", e.epoch,
		"other", other.slot, "other epoch", other.epoch)
	if e.epoch > other.epoch {
		st.residue[other.slot] = false
		if other.epoch > 0 {
			o.unread[other.slot] = true
		}
		o.disown(other)
		return true
	}
	st.residue[slot] = false
	if e.epoch > 0 {
		o.unread[slot] = true
	}
	o.drop(slot)
	return false
}

func (o *opener) openLog() {
	sh := o.sh
	sh.store.flushing.reserve(o.buf)
	o.buf = nil
	ssdcache.Open(ssdcache.Options{Disk: o.o.Cache, Env: sh.env, Pool: sh.pool, NewPool: o.o.NewPool,
		Owner: ownerOf(sh.store.sb.log), MaxSlots: sh.store.sb.slots, Backing: sh.store,
		Sequential: o.o.SameDisk, Hold: true, Accept: sh.store.stamp.checkLog,
		OnFail: func(err error) { sh.fail(journalError{err}) },
		OnRoom: sh.pumpNow, Log: sh.slog}, o.record,
		func(l *ssdcache.Log, err error) {
			if err != nil {
				o.fail(err)
				return
			}
			sh.log = l
			sh.store.logDurable = l.Durable
			sh.store.holes.held = true // until all is redone
			o.dropResidue(o.redoAll)
		})
}

// ownerOf is what ties the log to its store.
func ownerOf(u uuid) uint64 {
	return uint64(dataplane.CRC(u[:8]))<<32 | uint64(dataplane.CRC(u[8:]))
}

// record takes one record of the log.
func (o *opener) record(rec *ssdcache.Record) {
	sh := o.sh
	st := sh.store
	if rec.Slot >= st.sb.slots {
		return
	}
	r := st.owners[rec.Slot]
	switch {
	case rec.Kind == ssdcache.Meta && len(rec.Meta) > 0 && rec.Meta[0] == metaUnsure:
		if r != nil && r.id == rec.Chunk {
			r.unsure = max(r.unsure, rec.Epoch)
			st.touch(rec.Slot)
		}
	case rec.Kind == ssdcache.Meta:
		if r == nil || r.id != rec.Chunk {
			if len(rec.Meta) > 0 && rec.Meta[0] == metaUnfinished {
				break // what the copy was made over is lost
			}
			if o.hollow(rec) {
				st.residue[rec.Slot] = false
				break
			}
			r = o.adopt(rec, r)
		}
		r.replayMeta(rec.Epoch, rec.Seq, rec.Meta)
		st.touch(rec.Slot)
	case rec.Kind == ssdcache.Drop:
		delete(st.residue, rec.Slot)
		if o.unread[rec.Slot] {
			o.unread[rec.Slot] = false
		}
		if r != nil && (r.id == rec.Chunk || rec.Chunk == 0) {
			o.disown(r)
		}
	case r == nil || r.id != rec.Chunk:
		// A patch of a chunk that never got active here, or what is left of one whose entry was
		// damaged. The slot must not be used again before the log has dropped it.
		if r == nil {
			st.residue[rec.Slot] = false
		}
	default:
		r.replay(rec.Epoch, rec.Seq, rec.Commit, rec.Offset, rec.Length)
		st.touch(rec.Slot)
		if rec.Kind == ssdcache.Zero || rec.Kind == ssdcache.Stored {
			o.zeros = append(o.zeros, zeroing{slot: rec.Slot, block: rec.Offset / dataplane.BlockSize,
				end: (rec.Offset + rec.Length) / dataplane.BlockSize, sums: slices.Clone(rec.Sums)})
		}
	}
}

// hollow says whether the chunk of an activation record may have more in the slot than the log
// tells of, and its entry, with the words of that, is lost: all of it would read as zeros.
func (o *opener) hollow(rec *ssdcache.Record) bool {
	before, unread := o.unread[rec.Slot]
	if unread && len(rec.Meta) > 0 && rec.Meta[0] == metaFilled {
		before = true
		o.unread[rec.Slot] = true
	}
	return before
}

// adopt gives the slot of an activation record to its chunk.
func (o *opener) adopt(rec *ssdcache.Record, old *replica) *replica {
	sh := o.sh
	if old != nil {
		o.disown(old)
	}
	if other := sh.chunks[rec.Chunk]; other != nil {
		o.disown(other) // dropped and made again in another slot
	}
	r := &replica{id: rec.Chunk, slot: rec.Slot}
	sh.chunks[r.id] = r
	sh.store.owners[r.slot] = r
	delete(sh.store.residue, r.slot)
	if e, ok := o.kept[r.slot]; ok && e.chunk == r.id && len(rec.Meta) > 0 &&
		rec.Meta[0] == metaFilled {
		// The table was written before this record, with the pages of what lies only in the store;
		// what took the slot away is of an earlier use of it by this chunk.
		sh.store.entries[r.slot].pages = e.pages
	}
	return r
}

func (o *opener) disown(r *replica) {
	sh := o.sh
	delete(sh.chunks, r.id)
	sh.store.owners[r.slot] = nil
	o.drop(r.slot)
	kept := o.zeros[:0]
	for _, z := range o.zeros {
		if z.slot != r.slot {
			kept = append(kept, z)
		}
	}
	o.zeros = kept
}

// drop puts the entry of a slot aside.
func (o *opener) drop(slot uint32) {
	st := o.sh.store
	if _, ok := o.kept[slot]; !ok {
		o.kept[slot] = st.entries[slot]
	}
	st.entries[slot] = slotEntry{}
	o.drops = append(o.drops, slot)
	st.touch(slot)
}

func (o *opener) finish() {
	sh := o.sh
	for slot := int(sh.store.sb.slots) - 1; slot >= 0; slot-- {
		if sh.store.owners[slot] != nil {
			continue
		}
		if _, ok := sh.store.residue[uint32(slot)]; ok {
			sh.log.Drop(uint32(slot)) // nothing of it is written back
			continue
		}
		sh.store.free = append(sh.store.free, uint32(slot))
	}
	for _, slot := range o.drops {
		if sh.store.owners[slot] == nil {
			sh.store.holes.mark(slot, 0, dataplane.BlocksPerChunk)
		}
	}
	sh.store.holes.release()
	sh.log.StartWriteBack()
	sh.clearResidue()
	o.done(sh, nil)
}
