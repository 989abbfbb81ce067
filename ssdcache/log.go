package ssdcache

import (
	"errors"
	"fmt"
	"log/slog"

	"pstorage/dataplane"
	"pstorage/uring"
)

// Options are what a Log is opened with. Disk, Env, Pool, Owner, MaxSlots and Backing are needed.
type Options struct {
	Disk uring.Disk
	Env  uring.Env
	// Pool gives the memory of batches, about 300 KiB each, and DestageMemory at once.
	Pool *uring.Pool
	// Owner identifies chunk server and store; a log of another owner isn't opened.
	Owner uint64
	// MaxSlots is the number of slots of the store, at most the constant of that name.
	MaxSlots uint32
	// BatchesInFlight is how many batches may be on their way to the disk, 1 to 8; default 2.
	BatchesInFlight int
	// NextBatch is how many data blocks a batch must have to be sent while another one is on its
	// way; default 16.
	NextBatch int
	Backing   Backing
	// DestageAt is the fill level, 0 to 1, from which segments are written back; default 0.5.
	DestageAt float64
	// Sequential is for a log on the disk of the store itself: its reads take time away from the
	// store. Write-back then reads whole segments to memory, as many as fit DestageMemory bytes: a
	// quarter of the log by default, at most 64 MiB. Otherwise a round of write-back takes an
	// eighth of the log and reads block by block.
	Sequential    bool
	DestageMemory int
	// OnFail is told once that the log failed: nothing is accepted any more. The device must be
	// reported failed; nothing is retried.
	OnFail func(error)
	// OnRoom is called when there is room again after Room said that there is none.
	OnRoom func()
	// Hold keeps write-back from beginning before StartWriteBack: the owner first has to redo in the
	// store what the Zero records mean, or it would undo what is written back meanwhile.
	Hold bool
	// Accept, if not nil, is asked before Open changes anything: mark is the Backing's Mark when the
	// superblock was last written, last the number of the last batch that was found. An error ends
	// Open with it.
	Accept func(mark, last uint64) error
	Log    *slog.Logger // nil: slog.Default
	// NewPool maps memory that isn't part of Pool; nil: uring.NewPool. Simulations use theirs again.
	NewPool func(size int) (*uring.Pool, error)
}

// Backing is the store behind the log. It is called on the loop's thread, and calls back later,
// never from inside the call.
type Backing interface {
	// WriteBack stores w.Blocks blocks of slot w.Slot from block w.Block on, with their CRCs, and
	// calls w.Done with w.Err set or nil. It needn't be durable before Checkpoint. A block whose
	// data doesn't match its CRC is stored as it is, with that CRC, so that readers find out.
	WriteBack(w *WriteBack)
	// Checkpoint makes everything written back so far durable, together with what the owner keeps
	// of each chunk (last and commit seq, epoch): the records of the segments written back are
	// gone after done(nil). What must live on and isn't elsewhere is appended again before done.
	Checkpoint(done func(error))
}

// WriteBack is a run of blocks for the store. It belongs to the Backing until Done is called.
type WriteBack struct {
	Slot, Block uint32 // first block, in blocks of the chunk
	Blocks      int    // at most MaxRun
	// Gaps are blocks that the log has nothing for: bit i is block Block+i, never the first or the
	// last. The store may write them again as it has them, if that takes less time than writing
	// what lies around them separately.
	Gaps   [MaxRun / 64]uint64
	Data   [][]byte // of the other blocks: page-aligned, at most uring.MaxDiskBufs pieces
	CRCs   []byte   // 4 bytes per block; those of gaps mean nothing
	Urgent bool     // not in the background: writes wait for it
	Err    error
	Done   func(*WriteBack)

	busy bool
}

// IsGap says whether block i of the run is a gap.
func (w *WriteBack) IsGap(i int) bool { return w.Gaps[i/64]>>(i%64)&1 != 0 }

// HasGaps says whether there are any.
func (w *WriteBack) HasGaps() bool { return w.Gaps != [MaxRun / 64]uint64{} }

// Marker is a Backing that counts its checkpoints: the log keeps the number of the last complete
// one, so that a store that was replaced by an older copy of itself is found (Options.Accept).
type Marker interface{ Mark() uint64 }

// MaxRun is the most blocks of one WriteBack (1 MiB).
const MaxRun = 256

// Stats are counters since Open.
type Stats struct {
	Appends, Batches   uint64 // acknowledged
	Blocks             uint64 // data blocks acknowledged
	LogBlocks          uint64 // blocks written for them, with headers
	Rounds, WriteBacks uint64 // of destage
	Destaged           uint64 // blocks written back
	GapBlocks          uint64 // blocks written again as they were, to merge what lies around them
	Moved              uint64 // blocks appended again instead, see move.go
	Superseded         uint64 // blocks in segments written back that were overwritten meanwhile
	Admitted, Rescued  uint64 // blocks of the read cache: taken in; kept when a segment was used again
	Segments           int    // of the log
	Dirty              int    // segments that hold records not yet checkpointed
	Indexed            int    // blocks found in the log, clean ones included
	IndexBytes         int    // memory of the index
}

// Log is the log of one store. It belongs to one thread.
type Log struct {
	o         Options
	disk      uring.Disk
	env       uring.Env
	pool      *uring.Pool
	spill     *uring.Pool // memory of batches when pool has none; touched only then
	sb        super
	idx       *index
	segBlocks uint32
	segs      uint64
	reserve   uint64 // segments kept ready for what comes after Room said no

	head   uint64 // sequence number of the segment being filled; grows by 1
	at     uint32 // next block in it
	tail   uint64 // oldest segment that isn't checkpointed; tail <= head
	ready  uint64 // segments up to here may be filled: older contents left the index
	first  []uint64
	pins   []uint32 // reads in flight, by segment
	nextNr uint64   // of the next batch to open
	prev   uint32   // CRC of the header submitted last

	// Batches that aren't retired, oldest first: in flight up to lastSent, then waiting; open is
	// the newest, if entries can still be added to it.
	oldest, newest, open *batch
	lastSent             uint64
	durable              uint64 // all batches up to this one are
	waiting              int    // sealed and not sent
	freeBatches          *batch
	made                 int
	headBlocks           int // for the next batch
	maxBlocks            int // of a batch
	refused              appendList
	stored               int     // Stored records since the last round of write-back began
	memReads             *ReadOp // copied, to be reported at the turn's end
	memReadsEnd          *ReadOp
	turn                 uring.TurnEnder
	wantRoom             bool

	sbBuf    *uring.Buf
	sbOp     uring.DiskOp
	sbDone   func(error)
	destage  destager
	pace     pacer
	cache    readCache
	closing  func(error)
	draining func(error) // see Drain
	closed   bool
	err      error
	stats    Stats
}

// maxBatches bounds the batches in memory; spillSize is the address space of the spill, in bytes.
const (
	maxBatches = 64
	spillSize  = maxBatches*maxHeaderBlocks*blockSize + 48<<20
)

// Durable is the number of the last batch that is durable, with all before it.
func (l *Log) Durable() uint64 { return l.durable }

// Err is why the log failed, or nil.
func (l *Log) Err() error { return l.err }

// Stats returns the counters.
func (l *Log) Stats() Stats {
	s := l.stats
	s.Segments, s.Dirty = int(l.segs), int(l.head-l.tail+1)
	s.Indexed, s.IndexBytes = l.idx.n, len(l.idx.mem)+len(l.cache.mem)
	return s
}

// fill is the share of the log that isn't checkpointed, 0 to 1 (more when the reserve is used).
func (l *Log) fill() float64 {
	return float64(l.head-l.tail) / float64(l.segs-l.reserve-1)
}

// Pressure says how much the intake should be slowed: 0 up to the fill level where destage starts,
// 1 when there is no more room.
func (l *Log) Pressure() float64 {
	p := (l.fill() - l.o.DestageAt) / (1 - l.o.DestageAt)
	return min(max(p, 0), 1)
}

// maxWaiting is the queue of batches from which on there is no room.
const maxWaiting = 4

// Room says whether more work should be taken in. When it says no, what was taken in before may
// still be appended (the reserve: at least two segments and some MiB of memory); appends beyond it
// fail with Overloaded. OnRoom is called when there is room again.
func (l *Log) Room() bool {
	if l.err == nil && !l.closed && l.hasRoom() {
		return true
	}
	l.wantRoom = true
	return false
}

// hasRoom counts as ready what prepare will find ready at the end of the turn.
func (l *Log) hasRoom() bool {
	return l.waiting <= maxWaiting && l.hasSpace() && l.pace.allows()
}

// hasSpace says whether the reserve is whole.
func (l *Log) hasSpace() bool {
	if l.ready <= l.head {
		return false
	}
	for s := l.ready + 1; s <= l.head+l.reserve; s++ {
		if s >= l.tail+l.segs || l.pins[s%l.segs] != 0 {
			return false
		}
	}
	return true
}

// tellRoom calls OnRoom if somebody waits for it and there is room.
func (l *Log) tellRoom() {
	if l.wantRoom && l.err == nil && l.hasRoom() {
		l.wantRoom = false
		if l.o.OnRoom != nil {
			l.o.OnRoom()
		}
	}
}

// prepare takes old contents out of the index, up to the reserve ahead of the head, as far as
// segments are checkpointed and nobody reads them any more. It runs at the end of a turn, so that
// what Lookup returned in a turn is good until its end, and a Read begun in it is waited for.
func (l *Log) prepare() {
	for l.ready < l.head+l.reserve {
		next := l.ready + 1
		if next >= l.tail+l.segs {
			return // still holds what isn't checkpointed
		}
		p := next % l.segs
		base := l.segStart(p)
		for i := range l.segBlocks {
			l.idx.evict(base + Pos(i))
			l.idx.state[base+Pos(i)] = 0
		}
		if l.pins[p] != 0 {
			return
		}
		l.ready = next
	}
}

// segStart is the position of the first block of the segment in place p of the disk.
func (l *Log) segStart(p uint64) Pos { return Pos(firstBlock + p*uint64(l.segBlocks)) }

// segOf is the place of the segment that position p lies in.
func (l *Log) segOf(p Pos) uint64 { return uint64(p-firstBlock) / uint64(l.segBlocks) }

// seqOf is the sequence number of the segment that p, a position in the index, lies in.
func (l *Log) seqOf(p Pos) uint64 { return l.head - (l.head%l.segs+l.segs-l.segOf(p))%l.segs }

// dirty says whether p, a position in the index, is newer than what the store has.
func (l *Log) dirty(p Pos) bool { return l.idx.state[p]&isClean == 0 && l.seqOf(p) >= l.tail }

// place is the position of block at of segment seq.
func (l *Log) place(seq uint64, at uint32) Pos { return l.segStart(seq%l.segs) + Pos(at) }

// fail ends the log: nothing more is written, everything appended fails in its order.
func (l *Log) fail(err error) {
	if l.err != nil {
		return
	}
	l.err = err
	l.o.Log.Error("the log failed; the device is not used any more", "err", err)
	l.env.AtTurnEnd(&l.turn)
	if l.o.OnFail != nil {
		l.o.OnFail(err)
	}
}

// turnEnd is called once at the end of a turn in which something happened.
func (l *Log) turnEnd() {
	l.refused.finish(nil)
	for r := l.memReads; r != nil; r = l.memReads {
		l.memReads, r.next = r.next, nil
		r.Done(r)
	}
	if l.err != nil {
		l.failWaiting()
		l.failDrain()
	} else {
		l.submitBatches()
	}
	l.retire()
	l.cache.rescue()
	l.prepare()
	l.destage.trySettle()
	l.destage.goOnMoving()
	if l.err == nil {
		l.startDestage()
	}
	l.tellRoom()
	l.tryClose()
}

// Close drains what was appended, stops destage at the next point, writes the superblock with the
// clean mark, and calls done. Appends must have stopped. The disk isn't closed.
func (l *Log) Close(done func(error)) {
	if l.closing != nil || l.closed {
		panic("ssdcache: closed twice")
	}
	l.closing = done
	l.env.AtTurnEnd(&l.turn)
}

// tryClose goes on with closing when everything in flight has ended.
func (l *Log) tryClose() {
	if l.closing == nil || l.oldest != nil || l.destage.inFlight() || l.sbDone != nil || l.closed ||
		l.refused.first != nil || l.readsInFlight() || l.cache.working {
		return
	}
	l.closed = true
	l.pace.stop()
	l.env.Disarm(&l.destage.timer)
	finish := func(err error) {
		l.sbBuf.Release()
		if e := errors.Join(l.destage.release(), l.cache.close(), l.idx.close(),
			l.spill.Close()); err == nil {
			err = e
		}
		l.closing(err)
	}
	if l.err != nil {
		l.env.Arm(&uring.Timer{Fire: func() { finish(l.err) }}, 0)
		return
	}
	l.sb.clean = true
	l.writeSuper(finish)
}

func (l *Log) readsInFlight() bool {
	for _, n := range l.pins {
		if n != 0 {
			return true
		}
	}
	return false
}

// writeSuper writes the next generation of the superblock, durable when done is called.
func (l *Log) writeSuper(done func(error)) {
	if l.sbDone != nil {
		panic("ssdcache: two superblock writes at once")
	}
	l.sbDone = done
	l.sb.gen++
	l.sb.durable = l.durable
	if m, ok := l.o.Backing.(Marker); ok {
		l.sb.mark = m.Mark()
	}
	buf := l.sbBuf.Bytes()[:superSize]
	l.sb.put(buf)
	l.sbOp = uring.DiskOp{Kind: uring.DiskWriteSync, Offset: int64(l.sb.gen%2) * superSize,
		Bufs: [][]byte{buf}, Done: l.superDone}
	l.disk.Submit(&l.sbOp)
}

func (l *Log) superDone(op *uring.DiskOp) {
	done := l.sbDone
	l.sbDone = nil
	err := op.Err
	if err != nil {
		err = ioError("write the superblock of the log", err)
	}
	done(err)
}

func ioError(what string, err error) error {
	return dataplane.E(what, dataplane.IOError, err)
}

func (l *Log) String() string {
	return fmt.Sprintf("log: segments %d, head %d+%d, tail %d, ready %d, batch %d, durable %d",
		l.segs, l.head, l.at, l.tail, l.ready, l.nextNr, l.durable)
}
