package ssdcache

import (
	"fmt"

	"pstorage/dataplane"
	"pstorage/uring"
)

// How replay reads: the headers of several segments at once, each segment from header to header,
// ahead of the walk; at the end of the log all that is there.

// Tuning of replay, in blocks but for the first.
const (
	scansAhead = 16
	scanLarge  = 32  // batches larger than this are skipped over, smaller ones are read along
	scanMost   = 256 // of one read
)

// segScan is the image of a segment of which only some blocks are in memory: its headers.
type segScan struct {
	w      *walker
	l      *Log
	seq    uint64 // 0: none
	mem    []byte
	at     uint32 // the next header, or, in a full scan, the next block
	end    uint32 // of what is being read
	window uint32 // blocks of the next read
	full   bool   // read everything from at on
	done   bool
	op     uring.DiskOp
	buf    [1][]byte
}

func (s *segScan) block(at uint32) []byte { return s.mem[at*blockSize:][:blockSize] }

// start begins to read segment seq from a block on: from header to header, or all of it.
func (s *segScan) start(seq uint64, at uint32, full bool) {
	s.seq, s.at, s.full, s.done, s.window = seq, at, full, false, maxHeaderBlocks
	if full {
		s.window = scanMost
	}
	s.read()
}

func (s *segScan) read() {
	if s.at >= s.l.segBlocks {
		s.done = true
		return
	}
	s.end = min(s.at+s.window, s.l.segBlocks)
	s.buf[0] = s.mem[s.at*blockSize : s.end*blockSize]
	s.op.Kind, s.op.Bufs = uring.DiskRead, s.buf[:]
	s.op.Offset = int64(s.l.place(s.seq, s.at)) * blockSize
	s.w.flying++
	s.l.disk.Submit(&s.op)
}

// skim moves on over the headers that were read. Whether they are right is for the walk to say,
// which comes by the same places.
func (s *segScan) skim() {
	if s.full {
		s.at = s.end
		s.read()
		return
	}
	for s.at < s.end {
		b := s.block(s.at)
		n := uint32(headerBlocks(b))
		data := le.Uint32(b[12:])
		if n == 0 || data >= s.l.segBlocks || s.at+n > s.l.segBlocks {
			s.done = true
			return
		}
		if s.at+n > s.end {
			break // not all of it is here
		}
		s.at += n + data
		if n+data > scanLarge {
			s.window = maxHeaderBlocks
		} else {
			s.window = min(2*s.window, scanMost)
		}
	}
	s.read()
}

// walker is the part of opener that reads.
type walker struct {
	scans  []segScan
	arena  *uring.Pool // of the scans
	flying int         // reads in flight
	failed error
	then   func() // called when all that was started has been read
	probe  uint64 // next segment whose first header is looked at
	probes []uring.DiskOp
}

func (r *opener) makeScans() error {
	l := r.l
	size := int(l.sb.segSize)
	n := int(min(scansAhead, l.segs))
	arena, err := l.o.NewPool(n * size)
	if err != nil {
		return err
	}
	r.arena = arena
	r.scans = make([]segScan, n)
	for i := range r.scans {
		s := &r.scans[i]
		s.w, s.l, s.mem = &r.walker, l, arena.Arena()[i*size:(i+1)*size]
		s.op.Done = func(op *uring.DiskOp) { r.scanned(s, op) }
	}
	return nil
}

// freeScans gives the memory back, when nothing is in flight.
func (r *opener) freeScans() error {
	if r.arena == nil {
		return nil
	}
	a := r.arena
	r.arena, r.scans = nil, nil
	return a.Close()
}

// landed counts a read as done. It is false if Open has failed.
func (r *opener) landed(op *uring.DiskOp) bool {
	r.flying--
	if op.Err != nil {
		r.fail(ioError(fmt.Sprintf("read the log at byte %d", op.Offset), op.Err))
		return false
	}
	if r.failed != nil {
		r.fail(r.failed)
		return false
	}
	return true
}

func (r *opener) scanned(s *segScan, op *uring.DiskOp) {
	if !r.landed(op) {
		return
	}
	s.skim()
	switch {
	case r.then == nil:
		if s.done {
			r.walk()
		}
	case r.flying == 0:
		then := r.then
		r.then = nil
		then()
	}
}

// scan is the image of segment seq, which is one of the next few.
func (r *opener) scan(seq uint64) *segScan { return &r.scans[seq%uint64(len(r.scans))] }

func (r *opener) startWalk() {
	for s := r.seg; s < r.seg+uint64(len(r.scans)); s++ {
		r.scan(s).start(s, 0, false)
	}
}

// walk accepts batch after batch as far as the headers are in memory. It is called again when a
// segment's are complete.
func (r *opener) walk() {
	for {
		img := r.scan(r.seg)
		if !img.done {
			return
		}
		if b := r.expected(img, r.at); b != nil {
			if err := r.accept(b); err != nil {
				r.fail(err)
				return
			}
			continue
		}
		next := r.scan(r.seg + 1)
		if !next.done {
			return
		}
		seen := sight{next: r.expected(next, 0) != nil, durable: r.known >= r.nr}
		if seen.decide() != goOn {
			r.then = r.surroundings
			if r.flying == 0 {
				r.then = nil
				r.surroundings()
			}
			return
		}
		img.start(r.seg+uint64(len(r.scans)), 0, false)
		r.seg, r.at = r.seg+1, 0
	}
}

// surroundings reads everything behind the last batch, and the next segments, for a proof that what
// is missing was durable.
func (r *opener) surroundings() {
	r.then = func() {
		r.learn(r.scan(r.seg), r.at)
		r.learn(r.scan(r.seg+1), 0)
		r.learn(r.scan(r.seg+2), 0)
		r.probeSome()
	}
	for i := range uint64(3) {
		at := r.at
		if i > 0 {
			at = 0
		}
		r.scan(r.seg+i).start(r.seg+i, at, true)
	}
}

// probeSome looks at the first header of segments all over the log, many at a time: several
// segments may be damaged.
func (r *opener) probeSome() {
	l, size := r.l, maxHeaderBlocks*blockSize
	mem := r.scans[0].mem
	if r.probe == l.segs || r.known >= r.nr {
		r.conclude()
		return
	}
	n := int(min(l.segs-r.probe, uint64(len(mem)/size), 32))
	r.probes = make([]uring.DiskOp, n)
	for i := range r.probes {
		p := l.segStart(r.probe + uint64(i))
		b := mem[i*size : (i+1)*size]
		r.probes[i] = uring.DiskOp{Kind: uring.DiskRead, Offset: int64(p) * blockSize,
			Bufs: [][]byte{b}, Done: func(op *uring.DiskOp) {
				var h header
				if !r.landed(op) {
					return
				}
				if r.ours(b, p, &h) {
					r.known = max(r.known, h.durable)
				}
				if r.flying == 0 {
					r.probe += uint64(n)
					r.probeSome()
				}
			}}
		r.flying++
		l.disk.Submit(&r.probes[i])
	}
}

// conclude applies what is left in the queue, and does what the table says of the end.
func (r *opener) conclude() {
	if err := r.applyKnown(); err != nil {
		r.fail(err)
		return
	}
	if r.queued > 0 {
		r.checkData()
		return
	}
	if (sight{durable: r.known >= r.nr}).decide() == corrupt {
		r.fail(dataplane.E("open the log", dataplane.BadCRC,
			r.corrupt("an acknowledged batch is missing or damaged, later ones are intact")))
		return
	}
	r.sync()
}

// checkData reads the data of the oldest batch that isn't known to be durable.
func (r *opener) checkData() {
	l, f := r.l, &r.queue[0]
	mem := r.scans[0].mem[:f.h.dataBlocks*blockSize]
	judge := func() {
		if (sight{here: true, data: f.dataIntact(mem)}).decide() == cut {
			r.seg, r.at, r.nr, r.prev, r.inc = f.seg, f.at, f.h.nr, f.prev, f.inc
			r.queued = 0
			r.sync()
			return
		}
		if err := r.apply(f); err != nil {
			r.fail(err)
			return
		}
		r.dequeue(1)
		r.conclude()
	}
	if len(mem) == 0 {
		judge()
		return
	}
	r.op = uring.DiskOp{Kind: uring.DiskRead, Bufs: [][]byte{mem},
		Offset: int64(l.place(f.seg, f.at)+Pos(f.h.headBlocks)) * blockSize,
		Done: func(op *uring.DiskOp) {
			if r.landed(op) {
				judge()
			}
		}}
	r.flying++
	l.disk.Submit(&r.op)
}
