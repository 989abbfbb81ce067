package chunk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unsafe"

	"pstorage/dataplane"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// Large writes to blocks that hold nothing go around the log: it gets only a record of kind Stored
// with their checksums, so each byte is written to the disk once instead of twice.
//
//  1. takes: the write is one of a stream, its blocks are fresh, see below. It joins the chunk's
//     line, in which the writes behind it wait, so that the log gets a chunk's records in their order.
//  2. At the end of the turn the data is written to its place in the store, neighbours together.
//  3. Sync of the store, one for all that has been written by then.
//  4. The record is appended, in its turn in the line. From now on it is an append like any other.
//  5. It is durable: the words of the blocks are set, then the write is acknowledged.
//
// A block is fresh if it reads as zeros whatever lies in the slot: its word is zero, the log has
// nothing of it, no write or ZERO above the commit mark touches it, and no write-back or punch of it
// is in flight. So until step 5 nobody reads what steps 2 and 3 leave there, now or after a crash:
//
//	crash in step     | the log has       | the store has     | after the start
//	------------------+-------------------+-------------------+---------------------------------
//	2, 3              | nothing           | any mix           | word zero: zeros, as before
//	4                 | nothing, or the   | all of it: synced | zeros; a torn batch is cut off
//	                  | record in a batch | before the record |
//	                  | that is torn      | was sent          |
//	4, 5              | the record        | all of it         | replay sets the words
//	later, words in   | the record        | all of it, or     | replay sets them again, in the
//	a checkpoint      |                   | what came later   | order of the log with what ZERO
//	                  |                   |                   | records clear; for what came later
//	                  |                   |                   | by a write the log has the block
//	later still       | nothing: the tail | the same          | the words of the checkpoint
//	                  | has moved on      |                   |
//
// The tail moves only after a checkpoint that began when all records before it were durable, and so
// their words set. Whether what the record says is in the store needn't be looked at in replay: a
// disk that lost it is found by the checksum, like any other damage.
//
// A slot that had another chunk is fresh, too: its words were forgotten with the chunk. Blocks that
// hold something go through the log: if all members tore them in place, the old and the new would be
// gone. So do blocks of zeros, whose word would depend on the way they took, and everything with
// write-ack=memory, where a write is read before it is durable.
type bypass struct {
	sh *Shard
	// from is the smallest write that goes around, in bytes; 0: none does. Unless any is set it must
	// be one of a stream.
	from    int
	any     bool
	bytes   int        // on their way, steps 2 to 5
	waiting int        // bytes in lines that are for the log
	refused bool       // somebody waits until they are fewer
	all     []*request // the same, in any order
	fresh   []*request // to be written at the end of this turn
	written []*request // to be synced
	syncing []*request
	idle    *bypassWrite
	op      uring.DiskOp // the sync
	busy    bool         // it is in flight
	turn    uring.TurnEnder
	load    pageWait // a page that was missing, for the writes that follow
	loading bool
	count   uint64 // writes that went around, since the start
}

// Bounds of what goes around the log.
const (
	maxBypass   = 32 << 20  // bytes on their way
	bypassRun   = 256 << 10 // bytes in sequence, and
	bypassDepth = 4         // writes above the commit mark, that make a stream
	maxBypassIO = 1 << 20   // bytes of one operation
	maxLined    = 256 << 10 // bytes that wait in lines for the log
)

// lineState is where a request stands in the line of its chunk.
type lineState uint8

const (
	notInLine   lineState = iota
	lineWriting           // steps 2 and 3
	lineReady             // may be appended when it is the first
)

// bypassWrite is one operation of step 2.
type bypassWrite struct {
	b    *bypass
	op   uring.DiskOp
	list []*request
	bufs [uring.MaxDiskBufs][]byte
	n    int
	next *bypassWrite
}

func (b *bypass) init(sh *Shard, o *ShardOptions) {
	b.sh = sh
	switch {
	case o.BypassFrom > 0:
		b.from, b.any = o.BypassFrom, true
	case o.BypassFrom == 0 && o.SameDisk:
		b.from = dataplane.PartSize
	}
	b.turn.TurnEnd = b.submit
	b.op.Kind, b.op.Done = uring.DiskSync, b.synced
	b.load.ready = func(*crcPage) { b.loading = false }
}

// takes takes a write whose append was made ready, if it goes around the log or has to wait for one
// of its chunk that does.
func (b *bypass) takes(q *request, buf *uring.Buf) bool {
	r := q.r
	page := b.fits(q)
	if page == nil && r.line.n == 0 {
		return false
	}
	if !q.keepAppend(buf) {
		page = nil
	}
	switch {
	case page != nil:
		b.begin(q, page)
	case r.line.n == 0:
		return false
	default:
		q.line = lineReady
		b.waiting += len(q.app.Data)
	}
	r.line.push(q)
	return true
}

// keepAppend makes q own the payload of its append. It is false if that isn't memory for a disk
// operation; not even then may a write overtake the line.
func (q *request) keepAppend(buf *uring.Buf) bool {
	a := &q.app
	if len(a.Data) == 0 {
		return false
	}
	kept := q.keep(a.CRCs, a.Data, buf)
	if !kept {
		q.data = bytes.Clone(a.Data)
	}
	a.Data, a.Buf = q.data, q.buf
	return kept && uintptr(unsafe.Pointer(&q.data[0]))%dataplane.BlockSize == 0
}

// fits returns the CRC page of q's blocks, if q may go around the log.
func (b *bypass) fits(q *request) *crcPage {
	r, sh := q.r, b.sh
	stream := r.sequence(q)
	if b.from == 0 || q.app.Kind != ssdcache.Data || r.memory || q.seq == 0 || r.state != active ||
		r.gone || sh.dead != nil || int(q.length) < b.from || !b.any && !stream ||
		b.bytes+int(q.length) > maxBypass || b.crowded() {
		return nil
	}
	first, n := q.off/dataplane.BlockSize, q.length/dataplane.BlockSize
	id := r.slot*pagesPerSlot + first/wordsPerPage
	if first/wordsPerPage != (first+n-1)/wordsPerPage || r.overlapped(q.seq, q.off, q.length) ||
		hasZeros(q.app.CRCs) {
		return nil
	}
	p := b.get(id)
	if p == nil || !sh.unwritten(r, first, n) || sh.log.InWriteBack(r.slot, first, n) ||
		sh.store.writesTo(r.slot, first, first+n) || sh.store.holes.hits(r.slot, first, first+n) {
		return nil
	}
	return p
}

// sequence says whether q is one of a stream of large writes in sequence.
func (r *replica) sequence(q *request) bool {
	if q.off != r.runEnd {
		r.run = 0
	}
	r.run, r.runEnd = min(r.run+q.length, bypassRun), q.off+q.length
	return r.run >= bypassRun && r.last-r.commit >= bypassDepth
}

// hasZeros says whether a block may be one of zeros.
func hasZeros(crcs []byte) bool {
	for ; len(crcs) > 0; crcs = crcs[4:] {
		if binary.LittleEndian.Uint32(crcs) == zeroCRC {
			return true
		}
	}
	return false
}

// get returns a page, or has it loaded for the writes that follow.
func (b *bypass) get(id uint32) *crcPage {
	cache := b.sh.store.cache
	if p := cache.get(id); p != nil || b.loading {
		return p
	}
	b.loading = true
	b.load.page = id
	cache.want(&b.load)
	return cache.get(id)
}

// begin is the start of step 2.
func (b *bypass) begin(q *request, p *crcPage) {
	p.pins++
	q.page = p
	q.line = lineWriting
	q.app.Kind, q.app.Data, q.app.Buf = ssdcache.Stored, nil, nil
	q.atBypass = len(b.all)
	b.all = append(b.all, q)
	b.fresh = append(b.fresh, q)
	b.bytes += int(q.length)
	b.count++
	b.sh.env.AtTurnEnd(&b.turn)
}

// submit writes what has come in this turn.
func (b *bypass) submit() {
	st := b.sh.store
	var w *bypassWrite
	end, size := int64(0), 0
	for _, q := range b.fresh {
		at := st.sb.block(q.app.Slot, q.off/dataplane.BlockSize)
		if w == nil || at != end || w.n == len(w.bufs) || size+len(q.data) > maxBypassIO {
			w.send()
			w, size = b.newWrite(), 0
			w.op.Offset = at
		}
		w.list = append(w.list, q)
		w.bufs[w.n] = q.data
		w.n++
		end, size = at+int64(len(q.data)), size+len(q.data)
	}
	w.send()
	clear(b.fresh)
	b.fresh = b.fresh[:0]
}

func (b *bypass) newWrite() *bypassWrite {
	w := b.idle
	if w == nil {
		w = &bypassWrite{b: b}
		w.op.Kind, w.op.Done = uring.DiskWrite, w.done
		return w
	}
	b.idle = w.next
	return w
}

// send submits w, which may be nil.
func (w *bypassWrite) send() {
	if w != nil {
		w.op.Bufs = w.bufs[:w.n]
		w.b.sh.store.disk.Submit(&w.op)
	}
}

func (w *bypassWrite) done(op *uring.DiskOp) {
	b := w.b
	if op.Err != nil {
		b.sh.store.failed(fmt.Errorf("write to the store at byte %d: %w", op.Offset, op.Err))
	}
	if b.sh.canary.RecordFirst {
		b.ready(w.list)
	} else {
		b.written = append(b.written, w.list...)
	}
	clear(w.list)
	clear(w.bufs[:w.n])
	w.list, w.n, op.Bufs = w.list[:0], 0, nil
	w.next, b.idle = b.idle, w
	b.sync()
}

// sync makes what was written durable; of what is written meanwhile the next one takes care.
func (b *bypass) sync() {
	if b.busy || len(b.written) == 0 {
		return
	}
	b.busy = true
	b.written, b.syncing = b.syncing[:0], b.written
	b.sh.store.disk.Submit(&b.op)
}

func (b *bypass) synced(op *uring.DiskOp) {
	if op.Err != nil {
		b.sh.store.failed(fmt.Errorf("flush the store: %w", op.Err))
	}
	b.busy = false
	b.ready(b.syncing)
	clear(b.syncing)
	b.sync()
}

// ready is step 4 of writes whose data is durable.
func (b *bypass) ready(list []*request) {
	for _, q := range list {
		q.line = lineReady
	}
	for _, q := range list {
		if q.r != nil { // otherwise given up behind another one, and free
			b.advance(q.r)
		}
	}
	if b.refused && b.waiting < maxLined {
		b.refused = false
		b.sh.pumpNow()
	}
}

// crowded says whether as much waits in lines as the log takes without being asked for room.
func (b *bypass) crowded() bool {
	b.refused = b.refused || b.waiting >= maxLined
	return b.waiting >= maxLined
}

// advance appends what is ready at the beginning of the chunk's line.
func (b *bypass) advance(r *replica) {
	sh := b.sh
	for q := r.line.first; q != nil && q.line == lineReady; q = r.line.first {
		r.line.remove(nil, q)
		q.line = notInLine
		b.waiting -= len(q.app.Data)
		switch {
		case sh.dead != nil:
			b.giveUp(q, dataplane.IOError)
		case r.gone: // the log has dropped the slot: nothing of it may come behind that
			b.giveUp(q, dataplane.NotReady)
		default:
			sh.log.Append(&q.app)
		}
	}
}

// giveUp ends a write that doesn't get to the log.
func (b *bypass) giveUp(q *request, status dataplane.Kind) {
	b.sh.gauges.appendEnds(b.sh.env.Now(), q.began)
	q.status = status
	b.ended(q)
	b.sh.localDone(q)
}

// logged is step 5.
func (b *bypass) logged(q *request) {
	first, n := q.off/dataplane.BlockSize, q.length/dataplane.BlockSize
	if q.app.Err == nil {
		q.page.setSums(first, q.app.CRCs)
		b.sh.store.holes.unmark(q.app.Slot, first, first+n)
		b.sh.log.StoreChanged(q.app.Slot, first, n)
	}
	b.ended(q)
}

// setSums sets the words of blocks, none of which is all zeros, from their checksums.
func (p *crcPage) setSums(first uint32, crcs []byte) {
	for i := 0; i < len(crcs); i += 4 {
		p.setWord(first+uint32(i)/4, word(binary.LittleEndian.Uint32(crcs[i:]), false))
	}
}

// ended takes q, if it went around the log, out of the account.
func (b *bypass) ended(q *request) {
	if q.page == nil {
		return
	}
	q.page.pins--
	q.page = nil
	last := len(b.all) - 1
	b.all[q.atBypass] = b.all[last]
	b.all[q.atBypass].atBypass = q.atBypass
	b.all[last] = nil
	b.all = b.all[:last]
	b.bytes -= int(q.length)
	b.sh.store.cache.feed()
}

// writesTo says whether a write to one of the blocks is on its way.
func (b *bypass) writesTo(slot, block, end uint32) bool {
	for _, q := range b.all {
		if first := q.off / dataplane.BlockSize; q.app.Slot == slot && first < end &&
			block < first+q.length/dataplane.BlockSize {
			return true
		}
	}
	return false
}
