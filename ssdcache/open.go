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
	var err error
	switch {
	case !segSizeOK(int64(o.SegmentSize)):
		err = dataplane.E(fmt.Sprintf("make a log with segments of %d bytes", o.SegmentSize),
			dataplane.Invalid, nil)
	case n < minSegments || n*int64(o.SegmentSize)/blockSize > maxPosition:
		err = dataplane.E(fmt.Sprintf("make a log of %d bytes", o.Disk.Size()), dataplane.NoSpace,
			fmt.Errorf("it takes at least %d segments of %d bytes", minSegments, o.SegmentSize))
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

// segImage is a segment in memory.
type segImage struct {
	seq  uint64 // 0: none
	bufs []*uring.Buf
	ops  []uring.DiskOp
	left int
	err  error
	then func(error)
}

func (img *segImage) block(at uint32) []byte {
	per := uint32(len(img.ops[0].Bufs[0]) / blockSize)
	return img.bufs[at/per].Bytes()[at%per*blockSize:][:blockSize]
}

// load reads segment seq, unless it is there already; then(err) is called later or, if nothing had
// to be read, at once. A load in progress is joined.
func (img *segImage) load(l *Log, seq uint64, then func(error)) {
	if img.left > 0 && img.seq != seq {
		panic("ssdcache: two loads of one image")
	}
	img.then = then
	if img.seq == seq {
		if img.left == 0 && then != nil {
			img.then = nil
			then(img.err)
		}
		return
	}
	img.seq, img.err, img.left = seq, nil, len(img.bufs)
	off := int64(l.place(seq, 0)) * blockSize
	for i := range img.ops {
		op := &img.ops[i]
		op.Kind, op.Offset = uring.DiskRead, off
		op.Done = img.loaded
		off += int64(len(op.Bufs[0]))
		l.disk.Submit(op)
	}
}

func (img *segImage) loaded(op *uring.DiskOp) {
	if op.Err != nil {
		img.err = ioError(fmt.Sprintf("read the log at byte %d", op.Offset), op.Err)
	}
	if img.left--; img.left == 0 && img.then != nil {
		then := img.then
		img.then = nil
		then(img.err)
	}
}

// opener is the state of Open.
type opener struct {
	replayer
	images [2]segImage
	op     uring.DiskOp
	ops    []uring.DiskOp
	left   int
	found  bool
	probe  uint64 // next segment whose first header is looked at
	seen   sight
	done   func(*Log, error)
}

// Open reads the log and calls done with it, or with an error; then nothing on the disk was
// changed, unless it failed. record, if not nil, is called for each record since the last
// checkpoint, in log order; the Record and its Meta are valid only during the call. Data, Zero and
// Drop records rebuild the index by themselves; the owner gets them to learn seqs, and to redo what
// a Zero record means for the store.
func Open(o Options, record func(*Record), done func(*Log, error)) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.BatchesInFlight == 0 {
		o.BatchesInFlight = 2
	}
	if o.DestageAt == 0 {
		o.DestageAt = 0.5
	}
	l := &Log{o: o, disk: o.Disk, env: o.Env, pool: o.Pool, headBlocks: 1}
	l.turn.TurnEnd = l.turnEnd
	r := &opener{done: done}
	r.l, r.record = l, record
	l.sbBuf = o.Pool.Get(2 * superSize)
	var err error
	switch {
	case o.BatchesInFlight < 1 || o.BatchesInFlight > 8:
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

// fail gives everything back and reports err.
func (r *opener) fail(err error) {
	l := r.l
	if l.sbBuf != nil {
		l.sbBuf.Release()
	}
	l.destage.release()
	var unmap error
	if l.idx != nil {
		unmap = l.idx.close()
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
	if l.spill, err = uring.NewPool(spillSize); err == nil {
		l.idx, err = newIndex(uint32(firstBlock + l.segs*uint64(l.segBlocks)))
	}
	if err == nil {
		err = l.destage.init(l, max(l.o.DestageMemory, 2*int(l.sb.segSize)))
	}
	if err != nil {
		r.fail(dataplane.E("open the log", dataplane.Overloaded, err))
		return
	}
	size := min(int(l.sb.segSize), pieceSize)
	per := int(l.sb.segSize) / size
	for i := range r.images {
		img := &r.images[i]
		img.bufs = l.destage.bufs[i*per : (i+1)*per]
		img.ops = make([]uring.DiskOp, per)
		for j := range img.ops {
			img.ops[j].Bufs = [][]byte{img.bufs[j].Bytes()[:size]}
		}
	}
	r.now, r.ahead = &r.images[0], &r.images[1]
	r.seg, r.nr = l.sb.tail, l.sb.tailBatch
	r.walk()
}

// walk takes what the segment has, then looks at what comes after it.
func (r *opener) walk() {
	r.now.load(r.l, r.seg, func(err error) {
		if err == nil {
			r.ahead.load(r.l, r.seg+1, nil) // while this one is looked at
			r.seen, err = r.step()
		}
		if err != nil {
			r.abandon(err)
			return
		}
		r.ahead.load(r.l, r.seg+1, r.lookAhead)
	})
}

// abandon waits for the read-ahead, whose memory is to be given back, then fails.
func (r *opener) abandon(err error) {
	if r.ahead.left > 0 {
		r.ahead.then = func(error) { r.fail(err) }
		return
	}
	r.fail(err)
}

func (r *opener) lookAhead(err error) {
	if err != nil {
		r.fail(err)
		return
	}
	h := r.h
	r.seen.next = r.expected(r.ahead, 0)
	r.h = h
	if r.seen.decide() == goOn {
		r.seg, r.at = r.seg+1, 0
		r.now, r.ahead = r.ahead, r.now
		r.walk()
		return
	}
	// The end, or damage. What comes later decides.
	r.seen.durable = r.l.sb.durable >= r.nr || r.proofIn(r.now, r.at) || r.proofIn(r.ahead, 0)
	if r.seen.durable {
		r.conclude()
		return
	}
	r.ahead.load(r.l, r.seg+2, func(err error) {
		if err != nil {
			r.fail(err)
			return
		}
		r.seen.durable = r.proofIn(r.ahead, 0)
		r.ahead.seq = 0 // its memory is used for the headers
		r.probe = 0
		r.probeSome()
	})
}

// probeSome looks at the first header of segments all over the log, many at a time, for a proof
// that the batch expected was durable even if several segments are damaged.
func (r *opener) probeSome() {
	l, size := r.l, maxHeaderBlocks*blockSize
	mem := r.ahead.bufs[0].Bytes()
	if r.probe == l.segs || r.seen.durable {
		r.conclude()
		return
	}
	n := int(min(l.segs-r.probe, uint64(len(mem)/size), 32))
	r.ops = make([]uring.DiskOp, n)
	r.left = n
	var failed error
	for i := range r.ops {
		p := l.segStart(r.probe + uint64(i))
		b := mem[i*size : (i+1)*size]
		r.ops[i] = uring.DiskOp{Kind: uring.DiskRead, Offset: int64(p) * blockSize,
			Bufs: [][]byte{b}, Done: func(op *uring.DiskOp) {
				var h header
				if op.Err != nil {
					failed = op.Err
				} else if r.ours(b, p, &h) && r.proof(&h) {
					r.seen.durable = true
				}
				if r.left--; r.left > 0 {
					return
				}
				if failed != nil {
					r.fail(ioError("read the log", failed))
					return
				}
				r.probe += uint64(n)
				r.probeSome()
			}}
		l.disk.Submit(&r.ops[i])
	}
}

// conclude does what the table says.
func (r *opener) conclude() {
	switch d := r.seen.decide(); d {
	case cut:
		r.sync()
	case takeBad:
		r.l.o.Log.Error("an acknowledged batch of the log has damaged data; its blocks will be "+
			"repaired from other replicas when they are read", "batch", r.nr, "segment", r.seg)
		r.expected(r.now, r.at) // decodes it again
		if err := r.take(); err != nil {
			r.fail(err)
			return
		}
		r.walk()
	default:
		r.fail(dataplane.E("open the log", dataplane.BadCRC,
			r.corrupt("an acknowledged batch is missing or damaged, later ones are intact")))
	}
}

// sync makes what was replayed durable: the process before may have been killed in between.
func (r *opener) sync() {
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
	if op != nil && op.Err != nil {
		r.fail(ioError("erase the torn end of the log", op.Err))
		return
	}
	l.head, l.at, l.ready, l.tail = r.seg, r.at, r.seg, l.sb.tail
	l.nextNr, l.lastSent, l.durable, l.prev = r.nr, r.nr-1, r.nr-1, r.prev
	if l.at == 0 {
		l.first[l.head%l.segs] = r.nr
	}
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
