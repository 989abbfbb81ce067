package ssdcache

import (
	"fmt"

	"pstorage/dataplane"
)

// Replay walks the batch headers from the tail on, by number. At each number it looks at the place
// where the batch should be, here (behind the one before), and at the beginning of the next
// segment, and decides by this table. A batch header is accepted only if owner, format id, segment,
// number, own place and checksum are right, its incarnation isn't older than the one before it, and
// it names the checksum of the header before it. So neither an earlier use of the segment, nor what
// was cut off after an earlier crash, nor a misplaced write is taken for the next batch. Before the
// first batch of a log that was drained there is no header to be named: what the superblock doesn't
// call durable must be of the incarnation that wrote it, as all others had ended by then.
//
// Data is read only of the last few batches, which no later header calls durable: there a mismatch
// is a torn tail. In older batches it is damage, which readers find by the checksums in the header.

// sight is what replay sees of batch number n.
type sight struct {
	here    bool // its header is where it should be, in this segment
	data    bool // its data matches the checksums (meaningful if here, and looked at if not durable)
	next    bool // its header begins the next segment (meaningful if not here)
	durable bool // it was durable: a later intact batch, or the superblock, says so
}

type decision uint8

const (
	undecided decision = iota
	take               // a batch of the log
	goOn               // the log goes on in the next segment
	cut                // the log ends here; what is torn was never acknowledged
	corrupt            // an acknowledged batch is gone
)

type fact uint8

const (
	either fact = iota
	yes
	no
)

func (f fact) matches(b bool) bool { return f == either || (f == yes) == b }

// replayTable: exactly one row matches each sight.
var replayTable = [...]struct {
	here, data, next, durable fact
	do                        decision
}{
	{yes, either, either, yes, take}, // its data is the readers' to check
	{yes, yes, either, no, take},     // complete, maybe acknowledged
	{yes, no, either, no, cut},       // torn tail: the header made it, the data didn't
	{no, either, yes, either, goOn},
	{no, either, no, no, cut}, // torn tail, or simply the end
	{no, either, no, yes, corrupt},
}

func (s sight) decide() decision {
	for _, r := range replayTable {
		if r.here.matches(s.here) && r.data.matches(s.data) && r.next.matches(s.next) &&
			r.durable.matches(s.durable) {
			return r.do
		}
	}
	panic(fmt.Sprintf("ssdcache: no row for %+v", s))
}

// CorruptError says that an acknowledged part of the log is missing or damaged. The log is not
// opened and nothing on it is changed: the replica has to be rebuilt from its peers.
type CorruptError struct {
	Batch   uint64 // number of the batch that should be there
	Segment uint64 // sequence number of the segment
	Offset  int64  // byte offset in the log
	Why     string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("the log is damaged at byte %d (segment %d, batch %d): %s", e.Offset,
		e.Segment, e.Batch, e.Why)
}

// found is a batch whose header was accepted and that isn't known to be durable yet.
type found struct {
	h    header
	seg  uint64
	at   uint32
	prev uint32 // as they were before it: where the log goes on if it is cut off
	inc  uint32
	head [maxHeaderBlocks * blockSize]byte
}

// replayer is the state of a walk.
type replayer struct {
	l      *Log
	record func(*Record)
	seg    uint64 // walking this segment
	at     uint32 // next block in it
	nr     uint64 // number expected
	prev   uint32 // CRC of the header before
	chain  bool   // prev is known
	inc    uint32 // of the batch before
	known  uint64 // batches up to this one were durable
	h      header // decoded last

	// Accepted and not applied: a header names all but the last maxInFlight as durable.
	queue  [maxInFlight]found
	queued int
}

// headerAt returns the bytes of the header at a block of a segment image, decoded to h, or nil.
func (r *replayer) headerAt(img *segScan, at uint32, h *header) []byte {
	if at >= r.l.segBlocks {
		return nil
	}
	n := uint32(headerBlocks(img.block(at)))
	if n == 0 || r.l.segBlocks-at < n {
		return nil
	}
	b := img.mem[at*blockSize : (at+n)*blockSize]
	if !r.ours(b, r.l.place(img.seq, at), h) {
		return nil
	}
	return b
}

// ours decodes the header in b, read from p, and says whether it was written there by this log.
func (r *replayer) ours(b []byte, p Pos, h *header) bool {
	return h.decode(b) == nil && h.owner == r.l.sb.owner && h.id == r.l.sb.id && h.pos == uint32(p)
}

// expected returns the header bytes, decoded to r.h, if the batch expected begins at a block of a
// segment image.
func (r *replayer) expected(img *segScan, at uint32) []byte {
	h := &r.h
	b := r.headerAt(img, at, h)
	sb := &r.l.sb
	if b == nil || h.seg != img.seq || h.nr != r.nr || h.inc < r.inc || h.inc > sb.inc ||
		h.nr > sb.durable && h.inc < sb.inc || r.chain && h.prev != r.prev ||
		h.headBlocks+h.dataBlocks > int(r.l.segBlocks-at) {
		return nil
	}
	return b
}

// accept queues the batch in r.h, whose header is b, and applies those that it proves durable.
func (r *replayer) accept(b []byte) error {
	r.known = max(r.known, r.h.durable)
	if err := r.applyKnown(); err != nil {
		return err
	}
	f := &r.queue[r.queued]
	r.queued++
	f.h, f.seg, f.at, f.prev, f.inc = r.h, r.seg, r.at, r.prev, r.inc
	copy(f.head[:], b)
	r.at += uint32(r.h.headBlocks + r.h.dataBlocks)
	r.prev, r.chain, r.inc = r.h.crc, true, r.h.inc
	r.nr++
	return r.applyKnown()
}

// applyKnown applies the batches at the head of the queue that were durable.
func (r *replayer) applyKnown() error {
	n := 0
	for n < r.queued && r.queue[n].h.nr <= r.known {
		if err := r.apply(&r.queue[n]); err != nil {
			return err
		}
		n++
	}
	r.dequeue(n)
	return nil
}

func (r *replayer) dequeue(n int) {
	if n > 0 {
		copy(r.queue[:], r.queue[n:r.queued])
		r.queued -= n
	}
}

// dataIntact checks the data of a batch, which is in mem.
func (f *found) dataIntact(mem []byte) bool {
	ok := true
	f.h.walk(f.head[:], func(rec *Record, crcs []byte, data int) bool {
		for i := range rec.blocks() {
			b := mem[(data+i)*blockSize:][:blockSize]
			ok = ok && le.Uint32(crcs[4*i:]) == dataplane.CRC(b)
		}
		return ok
	})
	return ok
}

// apply puts a batch in the index and tells the owner.
func (r *replayer) apply(f *found) error {
	l, base := r.l, r.l.place(f.seg, f.at)+Pos(f.h.headBlocks)
	if f.at == 0 {
		l.first[f.seg%l.segs] = f.h.nr
	}
	var wrong error
	f.h.walk(f.head[:], func(rec *Record, crcs []byte, data int) bool {
		if rec.Slot >= l.o.MaxSlots {
			wrong = &CorruptError{Batch: f.h.nr, Segment: f.seg, Offset: int64(base) * blockSize,
				Why: fmt.Sprintf("slot %d, the store has %d", rec.Slot, l.o.MaxSlots)}
			return false
		}
		switch rec.Kind {
		case Data, Moved:
			key := keyOf(rec.Slot, rec.Offset/blockSize)
			for i := range rec.blocks() {
				l.idx.put(key+uint32(i), base+Pos(data+i), le.Uint32(crcs[4*i:]))
			}
		case Zero, Stored:
			l.DropRange(rec.Slot, rec.Offset/blockSize, rec.Length/blockSize)
		case Drop:
			l.Drop(rec.Slot)
		case Clean:
			return true // the store has it
		}
		if r.record != nil {
			r.record(rec)
		}
		return true
	})
	return wrong
}

func (r *replayer) corrupt(why string) error {
	return &CorruptError{Batch: r.nr, Segment: r.seg,
		Offset: int64(r.l.place(r.seg, 0)+Pos(r.at)) * blockSize, Why: why}
}

// learn takes from the intact headers in a segment image, from the given block on, which batches
// were durable. What a header says of that stays true for ever, even if it was cut off later.
func (r *replayer) learn(img *segScan, at uint32) {
	var h header
	for ; at < r.l.segBlocks; at++ {
		if r.headerAt(img, at, &h) != nil {
			r.known = max(r.known, h.durable)
		}
	}
}
