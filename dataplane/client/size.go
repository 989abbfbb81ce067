package client

import (
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// This file is how long a file is. The MDS knows; the engine remembers what it was told last.
// A write past that end asks for a Grow, beside the data's way, and isn't done before the MDS has
// agreed. One Grow per file is under way; writes that come meanwhile share the next.
// A read past that end asks for the size first: another client may have made the file longer.
// When the right to write comes here, another client may have cut the file: the first write asks
// for the size, or for a Grow, and what was known of the chunks is forgotten.

// clampRead cuts a read at the end of the file. It says false if the read is finished by that, or
// has to wait for the size.
func (f *File) clampRead(op *Op) bool {
	e := f.eng
	end := uint64(op.Offset) + uint64(op.total)
	size := f.Size()
	if end > size && !op.sized && !f.sizeBelieved() {
		op.state = opSizing
		f.sizeWait.push(op)
		f.askSize()
		return false
	}
	if uint64(op.Offset) >= size {
		op.total = 0
	} else if end > size {
		op.total = int64(size - uint64(op.Offset))
	}
	if op.total == 0 {
		e.finish(op)
		return false
	}
	return true
}

func (f *File) sizeBelieved() bool {
	ttl := int64(f.eng.opt.HoleTTL)
	return ttl > 0 && f.sizeAt != 0 && f.eng.env.Now()-f.sizeAt <= ttl
}

// askSize gets the attributes from the MDS, one request at a time.
func (f *File) askSize() {
	e := f.eng
	if f.sizing || f.sizeTimer.Armed() || f.sizeWait.head == nil {
		return
	}
	e.seq++
	f.sizing, f.sizeSeq = true, e.seq
	e.meta.GetAttr(f.id, f.onAttr)
}

func (f *File) onAttr(a *control.Attr, err error) {
	e := f.eng
	f.sizing = false
	if err != nil {
		if e.metaRetry(err, "size of a file", f) {
			f.rearm(&f.sizeTimer, f.askSize, &f.sizeTries)
			return
		}
		for op := f.sizeWait.pop(); op != nil; op = f.sizeWait.pop() {
			op.state = opRunning
			e.fail(op, err)
		}
		return
	}
	f.sizeTries = 0
	f.learn(a, f.sizeSeq)
	f.meetAppends()
	waiting := f.sizeWait.take()
	for op := waiting.pop(); op != nil; op = waiting.pop() {
		if op.begin > f.sizeSeq {
			f.sizeWait.push(op) // it came after the question
			continue
		}
		op.sized, op.state = true, opReady
		e.ready.push(op)
		e.env.AtTurnEnd(&e.turn)
	}
	f.askSize()
}

// learn takes over attributes that were asked for at asked (an e.seq).
func (f *File) learn(a *control.Attr, asked uint64) {
	if f.shrunkSeq > asked {
		return // answered, perhaps, before the truncation
	}
	size := a.Size
	if f.grownSeq > asked {
		size = max(size, f.Size())
	}
	f.size.Store(size)
	f.sizeAt = f.eng.env.Now()
	if asked > f.doubtSeq && f.doubtSeq != 0 {
		f.doubtSeq, f.theirs, f.unmet = 0, size, true
	}
	f.ackMemory = f.ackMemory || a.Policy.AckMemory
}

// doubt: whoever had the right to write until now may have cut the file, and let it grow again with
// other chunks. Chunk servers may not know yet of chunks that are gone: a write to one would be
// lost.
func (f *File) doubt() {
	f.eng.seq++
	f.doubtSeq = f.eng.seq
	f.gen++
	f.forgetEnd()
	f.forgetFrom(0)
}

// forgetEnd drops what is known of where appends go.
func (f *File) forgetEnd() { f.appendTo, f.theirs, f.unmet, f.cut = 0, 0, false, false }

// atEnd moves an append to the end of the file if its Offset shows that its user doesn't know how
// far another client had written when the right to write came, or that it had cut the file. The
// user's own appends stay where they are: the kernel may send the parts of a large one in any
// order. It says false if op has to wait for the size, or fails.
func (f *File) atEnd(op *Op) bool {
	end := max(f.Size(), f.appendTo)
	if f.doubtSeq != 0 || f.unmet && uint64(op.Offset) > end { // other parts of it may come meanwhile
		op.state = opSizing
		f.sizeWait.push(op)
		f.askSize()
		return false
	}
	f.unmet = false
	if uint64(op.Offset) == end {
		f.cut = false // its user has learned of it
	}
	if uint64(op.Offset) >= f.theirs && !f.cut {
		return true
	}
	op.Offset = int64(end)
	if int64(len(op.Buf)) > MaxFileSize-op.Offset {
		f.eng.fail(op, dataplane.E(f.what(op.Kind), dataplane.TooLarge, errRange))
		return false
	}
	f.appendTo = uint64(op.Offset) + uint64(len(op.Buf))
	f.theirs = f.appendTo // its user is still behind by as much
	return true
}

// meetAppends looks at the first appends since the right to write came, those that wait for the
// size. If all of them begin behind the end, so that they can't be parts of one that begins there,
// another client has cut the file and their user doesn't know.
func (f *File) meetAppends() {
	lowest := int64(-1)
	for op := f.sizeWait.head; op != nil; op = op.next {
		if op.Append && (lowest < 0 || op.Offset < lowest) {
			lowest = op.Offset
		}
	}
	if f.unmet && lowest >= 0 {
		f.unmet, f.cut = false, lowest > int64(max(f.Size(), f.appendTo))
	}
}

// growFor makes a write that ends behind the end of the file, or perhaps does, wait for a Grow.
func (f *File) growFor(op *Op) {
	end := uint64(op.Offset) + uint64(op.total)
	if end <= f.Size() && f.doubtSeq == 0 {
		return
	}
	op.growTo = end
	f.growWait = append(f.growWait, op)
	f.growSoon()
}

// growSoon asks for a Grow when all that was submitted in this turn has been started.
func (f *File) growSoon() {
	e := f.eng
	if f.growBusy || f.growQueued || f.growTimer.Armed() {
		return
	}
	f.growQueued = true
	e.growing = append(e.growing, f)
	e.env.AtTurnEnd(&e.turn)
}

func (f *File) grow() {
	f.growQueued = false
	var size uint64
	for _, op := range f.growWait {
		size = max(size, op.growTo)
	}
	if size == 0 || f.growBusy || f.eng.closed {
		return
	}
	if f.lease.asking { // by which right isn't known just now
		f.rearm(&f.growTimer, f.growSoon, &f.growTries)
		return
	}
	f.eng.seq++
	f.growBusy, f.growAsked = true, f.eng.seq
	if size <= f.Size() { // if that is still so there is nothing to grow
		f.eng.meta.GetAttr(f.id, f.onGrow)
		return
	}
	// By the right to write: a Grow that is late would lengthen another client's file.
	f.growToken = f.lease.token
	f.eng.meta.Grow(f.id, size, f.growToken, f.onGrow)
}

func (f *File) onGrow(a *control.Attr, err error) {
	e := f.eng
	f.growBusy = false
	// Fenced: by a grant of before, and there is a newer one. Or there is one that isn't known here,
	// or the right is lost, which fails the writes as soon as that is known: renewGrant asks.
	fenced := dataplane.KindOf(err) == dataplane.Fenced && !e.closed
	if fenced && f.growToken == f.lease.token {
		f.renewGrant()
	}
	if err != nil && (e.metaRetry(err, "grow a file", f) || fenced) {
		f.rearm(&f.growTimer, f.growSoon, &f.growTries)
		return
	}
	f.growTries = 0
	switch asked := f.growAsked; {
	case err != nil:
	case f.doubtSeq == 0 && asked < f.shrunkSeq: // answered, perhaps, before the truncation
	case f.doubtSeq == 0:
		f.grown(a)
	case asked > f.doubtSeq && asked > f.shrunkSeq:
		f.learn(a, asked)
		f.grown(a)
	}
	waiting := f.growWait
	f.growWait = f.growSpare[:0]
	for i, op := range waiting {
		waiting[i] = nil
		if err == nil && (op.growTo > a.Size || f.growAsked < f.doubtSeq ||
			f.growAsked < f.shrunkSeq) {
			f.growWait = append(f.growWait, op)
			continue
		}
		op.growTo = 0
		if op.Err == nil {
			op.Err = err
		}
		e.settle(op)
	}
	f.growSpare = waiting
	if len(f.growWait) > 0 {
		f.growSoon()
	}
}

// grown is told of a Grow that succeeded.
func (f *File) grown(a *control.Attr) {
	e := f.eng
	e.seq++
	f.grownSeq = e.seq
	if a.Size > f.Size() {
		f.size.Store(a.Size)
	}
	f.sizeAt = e.env.Now()
}

// dropGrow: op doesn't wait for a Grow any more.
func (f *File) dropGrow(op *Op) {
	op.growTo = 0
	for i, o := range f.growWait {
		if o == op {
			f.growWait = append(f.growWait[:i], f.growWait[i+1:]...)
			return
		}
	}
}

// setSize is told of a SetAttr of the size that succeeded: chunks behind it are gone, and answers
// to older questions about the file are void.
func (f *File) setSize(size uint64) {
	e := f.eng
	old := f.Size()
	f.size.Store(size)
	f.forgetEnd()
	f.sizeAt = e.env.Now()
	e.seq++
	f.shrunkSeq = e.seq
	if size >= old {
		return
	}
	f.gen++
	first := uint32((size + dataplane.ChunkSize - 1) / dataplane.ChunkSize)
	f.forgetFrom(first)
}

// maybeCut: whether the file was cut here isn't known, and it may happen yet. With a new grant of
// the right to write a request of before comes too late, and size and chunks are asked for.
func (f *File) maybeCut() {
	if f.eng.leases.meta == nil {
		f.doubt()
		return
	}
	f.renewGrant()
}

// shortened is told of a size that the metadata servers answered. While the right to write is
// elsewhere another client may have cut the file; a read in front of the end that was wouldn't ask.
// If the answer is an old one, reads behind it ask, and what is forgotten is fetched again.
func (f *File) shortened(size uint64) {
	if size >= f.Size() || f.lease.status == leaseHeld && f.doubtSeq == 0 {
		return
	}
	f.size.Store(size)
	f.forgetEnd()
	f.gen++
	f.forgetFrom(uint32((size + dataplane.ChunkSize - 1) / dataplane.ChunkSize))
}

// metaRetry says whether a failed question to the MDS is asked again, and notes it.
func (e *Engine) metaRetry(err error, what string, f *File) bool {
	if e.closed || !dataplane.KindOf(err).Retry() {
		return false
	}
	reason := quietMeta
	if dataplane.KindOf(err) == dataplane.NoSpace {
		reason = quietSpace
	}
	if e.mayLog(reason) {
		e.log.Warn("waiting for the metadata servers", "for", what, "file", f.id, "err", err)
	}
	return true
}

// Pauses of the first backoffTries tries, which last a second, are at most backoffSoon: a chunk
// server whose process crashed is back by then, and nobody should notice it much later.
const (
	backoffSoon  = int64(80 * time.Millisecond)
	backoffTries = 16
)

// backoff is how long to wait before try number tries+1, in ns: doubled each time, with jitter.
func (e *Engine) backoff(tries int) int64 {
	d := int64(e.opt.MinBackoff) << min(max(tries-1, 0), 10)
	d = min(d, int64(e.opt.MaxBackoff))
	if tries <= backoffTries {
		d = min(d, backoffSoon)
	}
	return d*3/4 + int64(e.env.Rand()%uint64(d/2+1))
}
