package chunk

import (
	"encoding/binary"
	"fmt"
	"log/slog"

	"pstorage/dataplane"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// store is the store file: slots, their CRC pages, the slot table. It is the Backing of the log:
// blocks are destaged to it. Nothing in it is changed before the log has the change, except what
// checkpoint.go does.
type store struct {
	disk uring.Disk
	env  uring.Env
	pool *uring.Pool
	log  *slog.Logger
	sb   superblock

	entries []slotEntry // .pages is always current; the rest is, for slots without an owner
	owners  []*replica  // by slot; nil: free
	free    []uint32    // free slots, the lowest last
	touched []uint64    // bit per page of the slot table: to be written at the next flush
	cache   *crcCache

	writing   *destage // destages in flight, any order
	idle      *destage // unused ones
	writes    int      // destages in flight
	moved     int64    // when an operation was done last, or the first of the destages began
	filled    uint64   // blocks in gaps written again, since the start
	unsynced  bool     // something was written since the last sync
	flushing  flusher
	onFail    func(error)                        // the disk failed
	onDamaged func(slot, block uint32)           // a CRC page, from this block on, was damaged
	dead      error                              // why the store isn't used any more
	bypassed  func(slot, block, end uint32) bool // a write around the log to it is on its way
	residue   map[uint32]bool                    // see residue.go; true: its Drop is on its way
	zeroing   zeroGate                           // words being cleared
	holes     puncher                            // gives the space of zeroed blocks back
	punching  int                                // slots whose space is being given back

	stamp      stamp         // of the pass that is under way, or the last one
	marked     uint64        // number of the last complete one
	boot       uint64        // start of the server; 0: not counted yet
	logDurable func() uint64 // last durable batch of the log; nil: not opened
}

// destage is one write-back in flight.
type destage struct {
	st    *store
	wb    *ssdcache.WriteBack
	ops   []*uring.DiskOp
	used  int // ops in flight
	err   error
	pages [2]*crcPage
	waits [2]pageWait
	need  int // pages that are not there yet
	gapFiller
	next *destage

	parked *destage // the next one that waits for a punch
}

func newStore(disk uring.Disk, env uring.Env, pool *uring.Pool, log *slog.Logger) *store {
	return &store{disk: disk, env: env, pool: pool, log: log, residue: map[uint32]bool{}}
}

// attach makes the tables for a superblock that was read.
func (st *store) attach(sb superblock, crcFrames int) {
	st.sb = sb
	st.entries = make([]slotEntry, sb.slots)
	st.owners = make([]*replica, sb.slots)
	tablePages := (int(sb.slots) + entriesInPage - 1) / entriesInPage
	st.touched = make([]uint64, (tablePages+63)/64)
	st.cache = newCRCCache(st, crcFrames)
	st.flushing.init(st)
	st.holes.init(st)
}

// close gives memory and the disk back. Nothing may be in flight.
func (st *store) close() error {
	st.cache.close()
	st.flushing.close()
	return st.disk.Close()
}

func (st *store) failed(err error) {
	if st.dead == nil {
		st.dead = err
		st.onFail(err)
	}
}

func (st *store) damagedPage(slot, page uint32) {
	if st.onDamaged != nil {
		st.onDamaged(slot, page*wordsPerPage)
	}
}

// touch says that the entry of a slot changed.
func (st *store) touch(slot uint32) {
	p := slot / entriesInPage
	st.touched[p/64] |= 1 << (p % 64)
}

// take gives a free slot to a chunk. All its blocks read as zeros.
func (st *store) take(r *replica) (slot uint32, ok bool) {
	if len(st.free) == 0 {
		return 0, false
	}
	slot = st.free[len(st.free)-1]
	st.free = st.free[:len(st.free)-1]
	st.cache.dropSlot(slot)
	st.owners[slot] = r
	st.touch(slot)
	return slot, true
}

// busy says whether a destage or a punch of the slot is in flight, or one of its pages is in use.
func (st *store) busy(slot uint32) bool {
	return st.writesTo(slot, 0, dataplane.BlocksPerChunk) || st.holes.busy(slot) ||
		st.cache.busy(slot)
}

// give makes a slot free. Nothing of it may be in flight.
func (st *store) give(slot uint32) {
	st.entries[slot] = slotEntry{}
	st.owners[slot] = nil
	st.free = append(st.free, slot)
	st.touch(slot)
}

// punch gives the disk space of a slot back, then the slot. Nothing of it may be in flight. Its CRC
// pages are forgotten first: a checkpoint must not take hold of one meanwhile.
func (st *store) punch(slot uint32) {
	st.cache.dropSlot(slot)
	st.holes.unmark(slot, 0, dataplane.BlocksPerChunk)
	st.punching++
	op := &uring.DiskOp{Kind: uring.DiskDiscard, Offset: st.sb.block(slot, 0),
		Length: dataplane.ChunkSize, Low: true}
	op.Done = func(op *uring.DiskOp) {
		st.punching--
		if op.Err != nil {
			// Only space is lost: the slot reads as zeros all the same.
			st.log.Warn("discard a slot", "slot", slot, "err", op.Err)
		}
		st.give(slot)
	}
	st.disk.Submit(op)
}

// WriteBack implements ssdcache.Backing: blocks of the log go to their slot.
//
//  1. Get the CRC pages, set the words and take the marks of holes away: readers use the log's
//     copy until the write-back is done, and a ZERO that comes meanwhile queues for the same pages
//     behind it and clears the words.
//  2. Write the data. Two write-backs of one block are never in flight.
func (st *store) WriteBack(wb *ssdcache.WriteBack) {
	if wb.Blocks <= 0 || wb.Blocks > ssdcache.MaxRun || wb.Slot >= st.sb.slots ||
		writeEnd(wb) > dataplane.BlocksPerChunk || len(wb.CRCs) != 4*wb.Blocks {
		panic(fmt.Sprintf("chunk: write-back of slot %d, block %d, %d blocks, %d bytes of CRCs",
			wb.Slot, wb.Block, wb.Blocks, len(wb.CRCs)))
	}
	d := st.idle
	if d == nil {
		d = &destage{st: st}
		d.waits[0].ready = func(p *crcPage) { d.page(0, p) }
		d.waits[1].ready = func(p *crcPage) { d.page(1, p) }
	} else {
		st.idle = d.next
	}
	d.wb, d.err = wb, nil
	st.checkOverlap(d)
	if st.writes == 0 {
		st.moved = st.env.Now()
	}
	d.next, st.writing = st.writing, d
	st.writes++
	d.start()
}

func writeEnd(wb *ssdcache.WriteBack) uint32 { return wb.Block + uint32(wb.Blocks) }

// checkOverlap finds out whether something is being written in a gap of d. No block is ever written
// by two at once.
func (st *store) checkOverlap(d *destage) {
	d.crowded = false
	for o := st.writing; o != nil; o = o.next {
		if o.wb.Slot != d.wb.Slot {
			continue
		}
		for b := max(o.wb.Block, d.wb.Block); b < min(writeEnd(o.wb), writeEnd(d.wb)); b++ {
			switch gap := o.isGap(b); {
			case gap && o.crowded:
			case d.isGap(b):
				d.crowded = true
			default:
				panic(fmt.Sprintf("chunk: two write-backs of slot %d, blocks %d and %d at once",
					d.wb.Slot, d.wb.Block, o.wb.Block))
			}
		}
	}
}

// isGap says whether a block of the slot, in the range of d, is a gap.
func (d *destage) isGap(block uint32) bool { return d.wb.IsGap(int(block - d.wb.Block)) }

func (d *destage) start() {
	first := d.wb.Slot*pagesPerSlot + d.wb.Block/wordsPerPage
	last := d.wb.Slot*pagesPerSlot + (writeEnd(d.wb)-1)/wordsPerPage
	d.need = int(last-first) + 1
	d.pages = [2]*crcPage{}
	for i := first; i <= last; i++ {
		d.waits[i-first].page = i
	}
	for i, n := 0, d.need; i < n; i++ {
		d.st.cache.want(&d.waits[i])
	}
}

func (d *destage) page(i int, p *crcPage) {
	p.pins++
	d.pages[i] = p
	d.need--
	d.setWords(p) // at once, without waiting for the other page: a ZERO from now on comes after it
	if d.need == 0 {
		if holes := &d.st.holes; holes.hits(d.wb.Slot, d.wb.Block, writeEnd(d.wb)) {
			d.parked, holes.waiting = holes.waiting, d
			return
		}
		d.write()
	}
}

// setWords sets the words of the run that are in page p. The marks of holes go with them, not
// before: a ZERO that is ahead in the page's queue makes some.
func (d *destage) setWords(p *crcPage) {
	wb := d.wb
	holes := d.st.holes.bySlot[wb.Slot]
	i := 0
	for _, data := range wb.Data {
		for ; len(data) > 0; i++ {
			if wb.IsGap(i) {
				continue
			}
			block := wb.Block + uint32(i)
			if wb.Slot*pagesPerSlot+block/wordsPerPage == p.id {
				crc := binary.LittleEndian.Uint32(wb.CRCs[4*i:])
				p.setWord(block, wordOf(crc, data[:dataplane.BlockSize]))
				if holes != nil {
					holes.clear(block, block+1)
				}
			}
			data = data[dataplane.BlockSize:]
		}
	}
	if i != wb.Blocks {
		panic(fmt.Sprintf("chunk: write-back of %d blocks with %d blocks of data", wb.Blocks, i))
	}
}

func (d *destage) write() {
	if d.wb.HasGaps() {
		d.beginGaps()
		return
	}
	d.used = 0
	at := 0
	for bufs := d.wb.Data; len(bufs) > 0; {
		n := min(len(bufs), uring.MaxDiskBufs)
		d.add(uring.DiskWrite, at, bufs[:n])
		for _, b := range bufs[:n] {
			at += len(b) / dataplane.BlockSize
		}
		bufs = bufs[n:]
	}
	d.submit()
}

// add adds an operation at block from of the run.
func (d *destage) add(kind uring.OpKind, from int, bufs [][]byte) {
	if d.used == len(d.ops) {
		d.ops = append(d.ops, &uring.DiskOp{Done: d.opDone})
	}
	op := d.ops[d.used]
	d.used++
	op.Kind, op.Low, op.Bufs = kind, !d.wb.Urgent, bufs
	op.Offset = d.st.sb.block(d.wb.Slot, d.wb.Block+uint32(from))
}

func (d *destage) submit() {
	for i, n := 0, d.used; i < n; i++ {
		d.st.disk.Submit(d.ops[i])
	}
}

func (d *destage) opDone(op *uring.DiskOp) {
	op.Bufs = nil
	d.st.moved = d.st.env.Now()
	switch {
	case op.Err == nil:
	case d.reading:
		d.readFailed(op)
	default:
		d.err = op.Err
	}
	if d.used--; d.used > 0 {
		return
	}
	if d.reading {
		d.gapsRead()
		return
	}
	d.ended()
}

// ended is called when all is written.
func (d *destage) ended() {
	if d.buf != nil {
		d.buf.Release()
		d.buf = nil
	}
	st, wb := d.st, d.wb
	st.unsynced = true // not before: a sync covers only what was completed before it
	for i, p := range d.pages {
		if p != nil {
			p.pins--
			d.pages[i] = nil
		}
	}
	for at := &st.writing; ; at = &(*at).next {
		if *at == d {
			*at = d.next
			break
		}
	}
	st.writes--
	d.wb = nil
	d.next, st.idle = st.idle, d
	if d.err != nil {
		st.failed(fmt.Errorf("write slot %d, block %d: %w", wb.Slot, wb.Block, d.err))
	}
	wb.Err = d.err
	wb.Done(wb)
	st.cache.feed()
}

// zeroing makes a range of a slot read as zeros: words of 0, and marks for the puncher. It is used
// after the log has the ZERO record; until the next checkpoint the record would do it again after a
// crash. All its pages are asked for at once: what the log writes back from then on is newer, and
// comes behind it at each of them.
type zeroing struct {
	st    *store
	slot  uint32
	block uint32
	end   uint32
	sums  []byte // in replay: the blocks' checksums instead of zeros
	waits []pageWait
	began int64
	left  int // pages that are not done yet
	gate  int
	done  func(*zeroing)
}

// zero starts z, whose slot, block, end, sums and done are set.
func (st *store) zero(z *zeroing) {
	z.st = st
	z.gate = st.zeroing.begin()
	if z.block == z.end {
		z.ended()
		return
	}
	first, last := z.block/wordsPerPage, (z.end-1)/wordsPerPage
	n := int(last-first) + 1
	for len(z.waits) < n {
		z.waits = append(z.waits, pageWait{ready: z.page})
	}
	z.left, z.began = n, st.env.Now()
	for i := range n { // the last one may end z, and the next use of it begin
		w := &z.waits[i]
		w.page = z.slot*pagesPerSlot + first + uint32(i)
		st.cache.want(w)
	}
}

func (z *zeroing) page(p *crcPage) {
	n := p.id % pagesPerSlot
	block, end := max(z.block, n*wordsPerPage), min(z.end, (n+1)*wordsPerPage)
	if z.sums != nil {
		p.setSums(block, z.sums[4*(block-z.block):4*(end-z.block)])
		z.st.holes.unmark(z.slot, block, end)
	} else {
		for b := block; b < end; b++ {
			p.setWord(b, wordZeros)
		}
		z.st.holes.mark(z.slot, block, end-block)
	}
	if z.left--; z.left == 0 {
		z.ended()
	}
}

func (z *zeroing) ended() {
	z.st.zeroing.end(z.gate)
	z.done(z)
}

var _ ssdcache.Backing = (*store)(nil)
