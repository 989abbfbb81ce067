package chunk

import (
	"encoding/binary"
	"math/bits"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// granules of a chunk: as large as a part.
const granules = dataplane.ChunkSize / dataplane.PartSize

// granuleSet is a bit per granule. On disk and on the wire it is granules/64 words of 8 bytes.
type granuleSet [granules / 64]uint64

const granuleSetSize = granules / 8

func (s *granuleSet) set(g int)      { s[g/64] |= 1 << (g % 64) }
func (s *granuleSet) clear(g int)    { s[g/64] &^= 1 << (g % 64) }
func (s *granuleSet) has(g int) bool { return s[g/64]&(1<<(g%64)) != 0 }

func (s *granuleSet) count() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

func (s *granuleSet) all() {
	for i := range s {
		s[i] = ^uint64(0)
	}
}

// touch marks the granules of a range.
func (s *granuleSet) touch(off, length uint32) {
	for g := off / dataplane.PartSize; g*dataplane.PartSize < off+length; g++ {
		s.set(int(g))
	}
}

func (s *granuleSet) add(o *granuleSet) {
	for i := range s {
		s[i] |= o[i]
	}
}

func (s *granuleSet) put(b []byte) {
	for i, w := range s {
		binary.LittleEndian.PutUint64(b[8*i:], w)
	}
}

func (s *granuleSet) get(b []byte) {
	for i := range s {
		s[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
}

// dirtyMap is what an active replica of a chunk with too few members knows for the sake of those
// that may come back. With it such a member gets only what it lacks:
//
//	A replica that was active at an epoch >= since, holds the writes up to seq mark, and was
//	written by nobody else, differs from this one at most in the granules of set and in what that
//	replica itself touched above its commit mark or out of the order of seqs.
//
// It begins at the activation without a member: since is the epoch before and mark this replica's
// commit mark in it; set has what this replica touched above that mark, what it was patched, and
// from then on every write. The other's writes up to mark are the same, as both were members then.
// It ends when the chunk has all members. It is kept in activation records and the slot table, and
// grows as the log is replayed.
type dirtyMap struct {
	since dataplane.Epoch
	mark  dataplane.Seq
	set   granuleSet
}

// dirtyFor returns the dirty map that an activation at epoch and seq begins or goes on with; nil if
// the chunk has all its members then (short is false). sent is what the head gave to a member that
// it has copied everything to; it may be nil.
func (h *history) dirtyFor(epoch dataplane.Epoch, seq dataplane.Seq, short bool,
	sent *dirtyMap) *dirtyMap {
	switch {
	case !short:
		return nil
	case h.epoch == 0 || h.unfinished || h.held():
		if sent != nil {
			return sent
		}
		return &dirtyMap{since: epoch, mark: seq}
	}
	d := h.dirty
	if d == nil {
		d = &dirtyMap{since: h.epoch, mark: h.commit}
	}
	for _, e := range h.uncommitted() {
		d.set.touch(e.off, e.length)
	}
	for _, e := range h.patched {
		d.set.touch(e.off, e.length)
	}
	return d
}

// isShort says whether a configuration has fewer members than it should and a dirty map is kept for
// those that may return. None is with write-ack=memory: who lost power may have lost writes that
// are above no commit mark of the others, and then has less than they believe.
func isShort(cfg *control.ChunkConfig) bool {
	return len(cfg.Members) < int(cfg.Wanted) && cfg.Ack == 0
}

// covers says whether a replica at that epoch and seq can be brought up to date with the map.
func (d *dirtyMap) covers(epoch dataplane.Epoch, last dataplane.Seq) bool {
	return epoch > 0 && epoch >= d.since && last >= d.mark
}

// The bytes of a dirty map in a record of the log and behind the configuration of an OpActivate:
//
//	offset size field
//	     0    4 since
//	     4    8 mark
//	    12  128 set
const dirtyMapSize = 12 + granuleSetSize

func (d *dirtyMap) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(d.since))
	b = binary.LittleEndian.AppendUint64(b, uint64(d.mark))
	for _, w := range d.set {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

// decodeDirty is the other way round; nil: it isn't one, or not of a time before epoch.
func decodeDirty(b []byte, epoch dataplane.Epoch) *dirtyMap {
	if len(b) != dirtyMapSize {
		return nil
	}
	d := &dirtyMap{since: dataplane.Epoch(binary.LittleEndian.Uint32(b)),
		mark: dataplane.Seq(binary.LittleEndian.Uint64(b[4:]))}
	if d.set.get(b[12:]); d.since == 0 || d.since > epoch {
		return nil
	}
	return d
}

// Bytes of a Meta record of the log: its type, and for an activation of a chunk with too few
// members the dirty map it begins with, or metaHeld.
const (
	metaActivate   = 1
	metaUnfinished = 2 // a copy to this replica begins, over what it holds
	metaFilled     = 3 // metaActivate of a copy, parts of which were only ever in the store
	metaUnsure     = 4 // the metadata servers are asked at this epoch to add a member; seq is 0
	metaHeld       = 1 // second byte of metaActivate and metaFilled: hold.go
)

// replayMeta takes an activation or the beginning of a copy out of the log.
func (h *history) replayMeta(epoch dataplane.Epoch, seq dataplane.Seq, meta []byte) {
	if len(meta) > 0 && meta[0] == metaUnfinished {
		if epoch == h.epoch {
			h.unfinished = true
		}
		return
	}
	if epoch < h.epoch || epoch == h.epoch && seq < h.last {
		return // the slot table has it
	}
	var d *dirtyMap
	if len(meta) > 1 {
		d = decodeDirty(meta[1:], epoch)
	}
	if d != nil && h.dirty != nil && h.epoch == epoch {
		d.set.add(&h.dirty.set)
	}
	h.activate(epoch, seq, d)
	if len(meta) == 2 && meta[1] == metaHeld {
		h.hold()
	}
}
