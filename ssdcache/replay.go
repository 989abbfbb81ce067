package ssdcache

import (
	"fmt"

	"pstorage/dataplane"
)

// Replay walks the batches from the tail on, by number. At each number it looks at the place where
// the batch should be, here (behind the one before), and at the beginning of the next segment, and
// decides by this table. A batch header is accepted only if owner, format id, segment, number, own
// place and checksum are right, its incarnation isn't older than the one before it, and it names
// the checksum of the header before it. So neither an earlier use of the segment, nor what was cut
// off after an earlier crash, nor a misplaced write is taken for the next batch.

// sight is what replay sees of batch number n.
type sight struct {
	here    bool // its header is where it should be, in this segment
	data    bool // its data matches the checksums (meaningful if here)
	next    bool // its header begins the next segment
	durable bool // it was durable: a later intact batch, or the superblock, says so
}

type decision uint8

const (
	undecided decision = iota
	take               // a batch of the log
	takeBad            // it was acknowledged, its data is damaged: readers see the checksum mismatch
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
	{yes, yes, either, either, take},
	{yes, no, no, yes, takeBad},
	{yes, no, no, no, cut},          // torn tail: the header made it, the data didn't
	{yes, no, yes, either, corrupt}, // the same batch twice: never written so
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
	now    *segImage
	ahead  *segImage // of seg+1
	head   [maxHeaderBlocks * blockSize]byte
	h      header
	bad    int // damaged batches taken
}

// headerAt decodes the header at a block of a segment image; r.head holds its bytes afterwards.
func (r *replayer) headerAt(img *segImage, at uint32, h *header) bool {
	if at >= r.l.segBlocks {
		return false
	}
	n := headerBlocks(img.block(at))
	if n == 0 || int(r.l.segBlocks-at) < n {
		return false
	}
	for i := range n {
		copy(r.head[i*blockSize:], img.block(at+uint32(i)))
	}
	return r.ours(r.head[:n*blockSize], r.l.place(img.seq, at), h)
}

// ours decodes the header in b, read from p, and says whether it was written there by this log.
func (r *replayer) ours(b []byte, p Pos, h *header) bool {
	return h.decode(b) == nil && h.owner == r.l.sb.owner && h.id == r.l.sb.id && h.pos == uint32(p)
}

// expected says whether the batch expected begins at a block of a segment image.
func (r *replayer) expected(img *segImage, at uint32) bool {
	h := &r.h
	return r.headerAt(img, at, h) && h.seg == img.seq && h.nr == r.nr && h.inc >= r.inc &&
		h.inc <= r.l.sb.inc && (!r.chain || h.prev == r.prev) &&
		h.headBlocks+h.dataBlocks <= int(r.l.segBlocks-at)
}

// dataIntact checks the data of the batch just decoded.
func (r *replayer) dataIntact(img *segImage, at uint32) bool {
	at += uint32(r.h.headBlocks)
	ok := true
	r.h.walk(r.head[:], func(rec *Record, crcs []byte, data int) bool {
		for i := range rec.blocks() {
			ok = ok && le.Uint32(crcs[4*i:]) == dataplane.CRC(img.block(at+uint32(data+i)))
		}
		return ok
	})
	return ok
}

// step takes as many batches of the segment as are fine, and returns what is seen where that
// ended.
func (r *replayer) step() (sight, error) {
	for {
		s := sight{here: r.expected(r.now, r.at)}
		if s.here {
			s.data = r.dataIntact(r.now, r.at)
		}
		if !s.here || !s.data {
			return s, nil
		}
		if err := r.take(); err != nil {
			return s, err
		}
	}
}

// take applies the batch just decoded, which is in r.head, to the index and tells the owner.
func (r *replayer) take() error {
	l, base := r.l, r.l.place(r.seg, r.at)+Pos(r.h.headBlocks)
	if r.at == 0 {
		l.first[r.seg%l.segs] = r.nr
	}
	var wrong error
	r.h.walk(r.head[:], func(rec *Record, crcs []byte, data int) bool {
		if rec.Slot >= l.o.MaxSlots {
			wrong = r.corrupt(fmt.Sprintf("slot %d, the store has %d", rec.Slot, l.o.MaxSlots))
			return false
		}
		switch rec.Kind {
		case Data:
			key := keyOf(rec.Slot, rec.Offset/blockSize)
			for i := range rec.blocks() {
				l.idx.put(key+uint32(i), base+Pos(data+i), le.Uint32(crcs[4*i:]))
			}
		case Zero:
			l.DropRange(rec.Slot, rec.Offset/blockSize, rec.Length/blockSize)
		case Drop:
			l.Drop(rec.Slot)
		}
		if r.record != nil {
			r.record(rec)
		}
		return true
	})
	r.at += uint32(r.h.headBlocks + r.h.dataBlocks)
	r.prev, r.chain, r.inc = r.h.crc, true, r.h.inc
	r.nr++
	return wrong
}

func (r *replayer) corrupt(why string) error {
	return &CorruptError{Batch: r.nr, Segment: r.seg,
		Offset: int64(r.l.place(r.seg, 0)+Pos(r.at)) * blockSize, Why: why}
}

// proof says whether the intact header h proves that the batch expected was durable: a later one
// that was written when it was.
func (r *replayer) proof(h *header) bool { return h.nr > r.nr && h.durable >= r.nr }

// proofIn looks for a proof in a segment image, from the given block on.
func (r *replayer) proofIn(img *segImage, at uint32) bool {
	var h header
	for ; at < r.l.segBlocks; at++ {
		if r.headerAt(img, at, &h) && r.proof(&h) {
			return true
		}
	}
	return false
}
