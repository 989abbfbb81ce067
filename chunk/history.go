package chunk

import (
	"fmt"

	"pstorage/dataplane"
)

// extent is a block-aligned range that the write seq touched. Seq 0: touched outside of the order
// of seqs (a patch, a repair, or a tail whose seqs were forgotten): when members are brought to one
// history such a range is always copied.
type extent struct {
	seq         dataplane.Seq
	off, length uint32
}

func (e extent) overlaps(off, length uint32) bool {
	return e.off < off+length && off < e.off+e.length
}

// history is what a replica knows of its chunk's writes. It is pure: no I/O, no clock.
//
//	commit <= durable <= last
//
// Writes up to commit are durable on every member; up to durable, in this server's log; up to
// last, on their way to it. ext has an extent for each write above commit, ascending by seq.
type history struct {
	epoch   dataplane.Epoch
	last    dataplane.Seq
	durable dataplane.Seq
	commit  dataplane.Seq
	ext     []extent // from ext[head] on
	head    int
	patched []extent // seq 0: ranges touched out of order since the last activation

	// unfinished: a copy to this replica was begun and never activated, so some of what it holds is
	// of another time. What it knows above is of before the copy.
	unfinished bool
	dirty      *dirtyMap // nil: the chunk has all the members that it should have
	blind      bool      // a canary of simulations: dirty misses writes
}

// maxPatched is how many ranges of patches are told apart; more are merged into one.
const maxPatched = 64

// accept takes the next write.
func (h *history) accept(seq dataplane.Seq, off, length uint32) {
	if seq != h.last+1 {
		panic(fmt.Sprintf("chunk: accept of seq %d after %d", seq, h.last))
	}
	h.last = seq
	if h.head > 32 && h.head*2 >= len(h.ext) {
		n := copy(h.ext, h.ext[h.head:])
		h.ext, h.head = h.ext[:n], 0
	}
	h.ext = append(h.ext, extent{seq, off, length})
	if h.dirty != nil && !h.blind {
		h.dirty.set.touch(off, length)
	}
}

// durableTo says that writes up to seq are durable here.
func (h *history) durableTo(seq dataplane.Seq) {
	if seq > h.last {
		panic(fmt.Sprintf("chunk: seq %d durable, last is %d", seq, h.last))
	}
	h.durable = max(h.durable, seq)
}

// commitTo moves the commit mark up to seq, but not above what is durable here: the head can't
// have committed that. It says whether the mark moved.
func (h *history) commitTo(seq dataplane.Seq) bool {
	seq = min(seq, h.durable)
	if seq <= h.commit {
		return false
	}
	h.commit = seq
	h.prune()
	return true
}

func (h *history) prune() {
	for h.head < len(h.ext) && h.ext[h.head].seq <= h.commit {
		h.head++
	}
	if h.head == len(h.ext) {
		h.ext, h.head = h.ext[:0], 0
	}
}

// uncommitted is the list of writes above the commit mark, ascending by seq.
func (h *history) uncommitted() []extent { return h.ext[h.head:] }

// above returns the last seq above mark, which is the commit mark or a later one, that touches the
// range; 0 if none does.
func (h *history) above(mark dataplane.Seq, off, length uint32) dataplane.Seq {
	for i := len(h.ext) - 1; i >= h.head && h.ext[i].seq > mark; i-- {
		if h.ext[i].overlaps(off, length) {
			return h.ext[i].seq
		}
	}
	return 0
}

// overlapped says whether a write above the commit mark and before seq touches the range.
func (h *history) overlapped(seq dataplane.Seq, off, length uint32) bool {
	for _, e := range h.uncommitted() {
		if e.seq < seq && e.overlaps(off, length) {
			return true
		}
	}
	return false
}

// patch notes that a range was changed out of order. So are the parts of an unfinished copy: they
// may have writes of a head that nobody else has, so whoever copies here again sends those too.
func (h *history) patch(off, length uint32) {
	if n := len(h.patched); n > 0 {
		p := &h.patched[n-1]
		if off >= p.off && off <= p.off+p.length {
			p.length = max(p.length, off+length-p.off)
			return
		}
	}
	h.patched = append(h.patched, extent{0, off, length})
	if len(h.patched) > maxPatched {
		h.patched = append(h.patched[:0], bounding(h.patched))
	}
}

// activate starts a new history: everything up to seq is here and committed. dirty is what
// dirtyFor returned.
func (h *history) activate(epoch dataplane.Epoch, seq dataplane.Seq, dirty *dirtyMap) {
	if epoch < h.epoch {
		panic(fmt.Sprintf("chunk: activated at epoch %d after %d", epoch, h.epoch))
	}
	h.epoch, h.last, h.durable, h.commit = epoch, seq, seq, seq
	h.ext, h.head = h.ext[:0], 0
	h.patched = nil
	h.unfinished, h.dirty = false, dirty
}

// tail is the range that everything durable and uncommitted touches: what the slot table keeps. It
// is in order if nothing of it was touched out of the order of seqs.
func (h *history) tail() (off, length uint32, inOrder bool) {
	all := extent{}
	for _, e := range h.uncommitted() {
		if e.seq <= h.durable {
			all = union(all, e)
		}
	}
	for _, e := range h.patched {
		all = union(all, e)
	}
	return all.off, all.length, len(h.patched) == 0
}

// load takes what the slot table kept. Of a tail in order each write stands for all of it, and the
// last seq for all of theirs: so no member gets less than it lacks. It isn't a patch: a member that
// has nothing else of a committed write has lost it (decide).
func (h *history) load(e *slotEntry) {
	h.epoch, h.last, h.durable, h.commit = e.epoch, e.last, e.last, e.commit
	h.unfinished, h.dirty = e.unfinished, e.dirty
	switch {
	case e.tailLen == 0:
	case e.inOrder && e.commit < e.last:
		h.ext = append(h.ext, extent{e.last, e.tailOff, e.tailLen})
	default:
		h.patched = append(h.patched, extent{0, e.tailOff, e.tailLen})
	}
}

// replay takes a write or a patch (seq 0) out of the log. Records that the slot table already
// includes are no news. The epoch of writes never runs ahead of the last activation.
func (h *history) replay(epoch dataplane.Epoch, seq, commit dataplane.Seq, off, length uint32) {
	if seq == 0 {
		h.patch(off, length)
		return
	}
	if epoch != h.epoch || seq <= h.last {
		return
	}
	if seq != h.last+1 {
		// A hole: never written by this program. What lies in it must be fetched from others.
		h.patch(0, dataplane.ChunkSize)
	}
	h.last, h.durable = seq, seq
	h.ext = append(h.ext, extent{seq, off, length})
	if h.dirty != nil {
		h.dirty.set.touch(off, length)
	}
	if commit <= h.durable && commit > h.commit {
		h.commit = commit
		h.prune()
	}
}

func union(a, b extent) extent {
	if a.length == 0 {
		return extent{0, b.off, b.length}
	}
	if b.length == 0 {
		return extent{0, a.off, a.length}
	}
	off := min(a.off, b.off)
	return extent{0, off, max(a.off+a.length, b.off+b.length) - off}
}

func bounding(list []extent) (all extent) {
	for _, e := range list {
		all = union(all, e)
	}
	return all
}
