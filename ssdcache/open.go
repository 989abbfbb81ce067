package ssdcache

import (
	"errors"
	"fmt"
	"log/slog"

	"pstorage/dataplane"
	"pstorage/uring"
)

// FormatOptions are what a log is made with. Disk, Env and Pool are needed.
type FormatOptions struct {
	Disk  uring.Disk
	Env   uring.Env
	Pool  *uring.Pool
	Owner uint64 // see Options
	// SegmentSize is a power of two from MinSegment to MaxSegment; 0: what suits the size of the
	// disk, up to DefaultSegment.
	SegmentSize int
	// FirstBatch and Mark, if not zero, make the new log one that goes on where another one, drained,
	// ended (Log.NextBatch): its first batch gets that number, and the store is known to be at that
	// mark. The store's owner then takes it for the other one's successor.
	FirstBatch, Mark uint64
	// Progress, if not nil, is told how many bytes of the space have been written.
	Progress func(done, total int64)
	// Stop, if not nil, is asked now and then, on the loop, why Format is to give up.
	Stop func() error
}

// MinSize is the smallest log, in bytes.
const MinSize = firstBlock*blockSize + 2*minSegments*MinSegment

// segmentFor is the default segment size for a log of the given size: at least 32 segments.
func segmentFor(size int64) int64 {
	s := int64(DefaultSegment)
	for s > MinSegment && size/s < 32 {
		s /= 2
	}
	return s
}

// formatter is the state of Format.
type formatter struct {
	o    FormatOptions
	sb   super
	op   uring.DiskOp
	off  int64
	buf  *uring.Buf
	done func(error)
}

// Format makes an empty log of as many segments as the disk holds and calls done. Whatever was
// there is lost: all of the space is written once, so that later appends don't change file-system
// metadata. The superblock is written last.
func Format(o FormatOptions, done func(error)) {
	if o.SegmentSize == 0 {
		o.SegmentSize = int(segmentFor(o.Disk.Size()))
	}
	f := &formatter{o: o, done: done}
	n := (o.Disk.Size() - firstBlock*blockSize) / int64(o.SegmentSize)
	f.sb = super{segSize: uint32(o.SegmentSize), owner: o.Owner, id: o.Env.Rand(),
		segments: uint32(n), tail: 1, tailBatch: 1}
	f.buf = o.Pool.Get(superSize)
	err := f.sb.continues(&o)
	switch {
	case err != nil:
	case !segSizeOK(int64(o.SegmentSize)):
		err = dataplane.E(fmt.Sprintf("make a log with segments of %d bytes", o.SegmentSize),
			dataplane.Invalid, nil)
	case n < minSegments:
		err = dataplane.E(fmt.Sprintf("make a log of %d bytes", o.Disk.Size()), dataplane.NoSpace,
			fmt.Errorf("it takes at least %d segments of %d bytes", minSegments, o.SegmentSize))
	case n*int64(o.SegmentSize)/blockSize > maxPosition:
		err = dataplane.E(fmt.Sprintf("make a log of %d bytes", o.Disk.Size()), dataplane.Invalid,
			fmt.Errorf("a log has at most %d bytes (4 TiB)", int64(maxPosition)*blockSize))
	case f.buf == nil:
		err = dataplane.E("make a log", dataplane.Overloaded, errNoMemory)
	}
	if err != nil {
		later(o.Env, func() { f.finish(err) })
		return
	}
	f.allocate(nil)
}

// later calls f in another turn.
func later(env uring.Env, f func()) { env.Arm(&uring.Timer{Fire: f}, 0) }

// finish reports; also the Done of the last operation.
func (f *formatter) finish(err error) {
	if f.buf != nil {
		f.buf.Release()
	}
	f.done(err)
}

// allocate writes the next piece of the space, then syncs and goes on to the superblock.
func (f *formatter) allocate(op *uring.DiskOp) {
	if op != nil && op.Err != nil {
		f.finish(ioError("write zeros to the new log", op.Err))
		return
	}
	size := firstBlock*blockSize + int64(f.sb.segments)*int64(f.sb.segSize)
	if f.o.Progress != nil {
		f.o.Progress(f.off, size)
	}
	if f.o.Stop != nil {
		if err := f.o.Stop(); err != nil {
			later(f.o.Env, func() { f.finish(err) }) // the first turn is Format itself
			return
		}
	}
	if f.off == size {
		f.op = uring.DiskOp{Kind: uring.DiskSync, Done: f.synced}
	} else {
		n := min(size-f.off, 64<<20)
		f.op = uring.DiskOp{Kind: uring.DiskAllocate, Offset: f.off, Length: n, Done: f.allocate}
		f.off += n
	}
	f.o.Disk.Submit(&f.op)
}

func (f *formatter) synced(op *uring.DiskOp) {
	if op.Err != nil {
		f.finish(ioError("flush the new log", op.Err))
		return
	}
	buf := f.buf.Bytes()[:superSize]
	f.sb.put(buf)
	f.op = uring.DiskOp{Kind: uring.DiskWriteSync, Bufs: [][]byte{buf}, Done: f.marked}
	f.o.Disk.Submit(&f.op)
}

func (f *formatter) marked(op *uring.DiskOp) {
	if op.Err != nil {
		f.finish(ioError("write the superblock of the new log", op.Err))
		return
	}
	f.finish(nil)
}

// opener is the state of Open.
type opener struct {
	replayer
	walker
	op   uring.DiskOp
	done func(*Log, error)
}

// Open reads the log and calls done with it, or with an error; then nothing on the disk was
// changed, unless it failed. record, if not nil, is called for each record since the last
// checkpoint, in log order; the Record and its Meta are valid only during the call. Data, Zero,
// Stored and Drop records rebuild the index by themselves; the owner gets them to learn seqs, and
// to redo what Zero and Stored records mean for the store, in their order.
func Open(o Options, record func(*Record), done func(*Log, error)) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.BatchesInFlight == 0 {
		o.BatchesInFlight = 2
	}
	if o.NextBatch == 0 {
		o.NextBatch = 16
	}
	if o.DestageAt == 0 {
		o.DestageAt = 0.5
	}
	if o.NewPool == nil {
		o.NewPool = uring.NewPool
	}
	l := &Log{o: o, disk: o.Disk, env: o.Env, pool: o.Pool, headBlocks: 1}
	l.turn.TurnEnd = l.turnEnd
	r := &opener{done: done}
	r.l, r.record = l, record
	l.sbBuf = o.Pool.Get(2 * superSize)
	var err error
	switch {
	case o.BatchesInFlight < 1 || o.BatchesInFlight > maxInFlight:
		err = fmt.Errorf("%d batches in flight", o.BatchesInFlight)
	case o.MaxSlots < 1 || o.MaxSlots > MaxSlots:
		err = fmt.Errorf("%d slots, at most %d are possible", o.MaxSlots, MaxSlots)
	case o.DestageAt < 0 || o.DestageAt > 0.9:
		err = fmt.Errorf("write-back from fill level %v on", o.DestageAt)
	case l.sbBuf == nil:
		err = errNoMemory
	}
	if err != nil {
		later(o.Env, func() { r.fail(dataplane.E("open the log", dataplane.Invalid, err)) })
		return
	}
	r.op = uring.DiskOp{Kind: uring.DiskRead, Bufs: [][]byte{l.sbBuf.Bytes()[:2*superSize]},
		Done: r.gotSuper}
	o.Disk.Submit(&r.op)
}

// fail gives everything back, when nothing is in flight any more, and reports err.
func (r *opener) fail(err error) {
	if r.failed == nil {
		r.failed = err
	}
	if r.flying > 0 {
		return // scanned calls again
	}
	l, err := r.l, r.failed
	if l.sbBuf != nil {
		l.sbBuf.Release()
	}
	unmap := errors.Join(l.destage.release(), l.cache.close(), r.freeScans())
	if l.idx != nil {
		unmap = errors.Join(unmap, l.idx.close())
	}
	if l.spill != nil {
		unmap = errors.Join(unmap, l.spill.Close())
	}
	if unmap != nil {
		l.o.Log.Warn("give back memory of the log", "err", unmap)
	}
	r.done(nil, err)
}

// chooseSuper takes the newer of the two copies that are intact.
func (r *opener) chooseSuper() error {
	l := r.l
	var a, b super
	buf := l.sbBuf.Bytes()
	errA, errB := a.decode(buf[:superSize]), b.decode(buf[superSize:2*superSize])
	switch {
	case errA == errNotLog && errB == errNotLog:
		return ErrNotFormatted
	case errA != nil && errB != nil:
		return fmt.Errorf("both superblocks are damaged: %w", errA)
	case errA != nil || errB == nil && b.gen > a.gen:
		l.sb = b
	default:
		l.sb = a
	}
	if l.sb.owner != l.o.Owner {
		return fmt.Errorf("it belongs to %#x, this is %#x: the log of another chunk server or of "+
			"an earlier store", l.sb.owner, l.o.Owner)
	}
	need := firstBlock*blockSize + int64(l.sb.segments)*int64(l.sb.segSize)
	if l.disk.Size() < need {
		return fmt.Errorf("it is %d bytes long and should be %d: cut off", l.disk.Size(), need)
	}
	l.segBlocks, l.segs = l.sb.segSize/blockSize, uint64(l.sb.segments)
	l.maxBlocks = min(maxHeaderBlocks+MaxRun, int(l.segBlocks)/l.o.BatchesInFlight)
	if l.maxBlocks < maxHeaderBlocks+MaxData/blockSize {
		return fmt.Errorf("segments of %d bytes are too small for %d batches in flight",
			l.sb.segSize, l.o.BatchesInFlight)
	}
	return nil
}

func (r *opener) gotSuper(op *uring.DiskOp) {
	if op.Err != nil {
		r.fail(ioError("read the superblock of the log", op.Err))
		return
	}
	if err := r.chooseSuper(); err != nil {
		r.fail(dataplane.E("open the log", dataplane.Invalid, err))
		return
	}
	l := r.l
	l.reserve = min(max(l.segs/8, 2), 8)
	l.first, l.pins = make([]uint64, l.segs), make([]uint32, l.segs)
	var err error
	if l.spill, err = l.o.NewPool(spillSize); err == nil {
		// The format id is random and leaves the log nowhere.
		l.idx, err = newIndex(uint32(firstBlock+l.segs*uint64(l.segBlocks)), l.sb.id)
	}
	if err == nil {
		err = l.cache.init(l)
	}
	if err == nil {
		err = r.makeScans()
	}
	if err == nil {
		err = l.destage.init(l)
	}
	if err != nil {
		r.fail(dataplane.E("open the log", dataplane.Overloaded, err))
		return
	}
	r.seg, r.nr, r.known = l.sb.tail, l.sb.tailBatch, l.sb.durable
	r.startWalk()
}

// sync makes what was replayed durable: the process before may have been killed in between.
func (r *opener) sync() {
	if accept := r.l.o.Accept; accept != nil {
		if err := accept(r.l.sb.mark, r.nr-1); err != nil {
			r.fail(err)
			return
		}
	}
	r.op = uring.DiskOp{Kind: uring.DiskSync, Done: func(op *uring.DiskOp) {
		if op.Err != nil {
			r.fail(ioError("flush the log", op.Err))
			return
		}
		r.erase()
	}}
	r.l.disk.Submit(&r.op)
}

// erase overwrites the header at the cut, so that a torn batch there can never be completed by
// what the next one leaves.
func (r *opener) erase() {
	l := r.l
	if r.at == l.segBlocks || l.sb.clean {
		r.finish(nil)
		return
	}
	buf := l.sbBuf.Bytes()[:blockSize]
	clear(buf)
	r.op = uring.DiskOp{Kind: uring.DiskWriteSync, Bufs: [][]byte{buf}, Done: r.finish,
		Offset: int64(l.place(r.seg, r.at)) * blockSize}
	l.disk.Submit(&r.op)
}

// finish begins a new incarnation.
func (r *opener) finish(op *uring.DiskOp) {
	l := r.l
	if err := r.freeScans(); err != nil {
		l.o.Log.Warn("give back memory of the replay", "err", err)
	}
	if op != nil && op.Err != nil {
		r.fail(ioError("erase the torn end of the log", op.Err))
		return
	}
	l.head, l.at, l.ready, l.tail = r.seg, r.at, r.seg, l.sb.tail
	l.nextNr, l.lastSent, l.durable, l.prev = r.nr, r.nr-1, r.nr-1, r.prev
	if l.at == 0 {
		l.first[l.head%l.segs] = r.nr
	}
	l.cache.lap = l.tail + l.segs - l.reserve
	l.sb.inc = max(l.sb.inc, r.inc) + 1
	l.sb.clean = false
	l.prepare()
	l.writeSuper(func(err error) {
		if err != nil {
			r.fail(err)
			return
		}
		l.env.Arm(&l.destage.tick, tickEvery)
		r.done(l, nil)
		l.env.AtTurnEnd(&l.turn)
	})
}

// ErrNotFormatted is in the error of Open if the disk holds no log.
var ErrNotFormatted = errors.New("no log on this disk")
