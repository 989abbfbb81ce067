package chunk

import (
	"slices"

	"pstorage/dataplane"
)

// This file decides how the members of a chunk come to one history. It is pure, and small enough
// to be tested over all small inputs.
//
//	what a member said          | created or some commit mark > 0 | otherwise
//	----------------------------+---------------------------------+--------------------------
//	never activated (epoch 0)   | takes part, gets everything     | takes part, gets everything
//	has the chunk, last >= mark | takes part                      | takes part
//	last < mark, but patched    | takes part                      | (impossible)
//	last < mark, not patched    | lost data: excluded             | (impossible)
//	doesn't have the chunk      | lost data: excluded             | takes part with seq 0
//
// One that doesn't have a chunk of which the winner's last seq is 0 has lost nothing: created is
// set before the head is activated. It is excluded all the same, as the metadata servers, too, may
// know that it registered without the chunk, and have asked for that.
//
// Patched: an earlier settling gave it what it missed, and was interrupted before this member, but
// after the winner was activated. Otherwise the mark says that the member had acknowledged more.
// What the slot table has of writes above the member's own mark is no patch (slotEntry.inOrder).
//
// Here mark is the winner's commit mark and the winner is the member with the highest epoch, then
// the highest last seq, then the first place. If nobody has the chunk and it was created, all data
// is lost: nothing is done, ever.

// memberTail is what one member answered to a SEAL.
type memberTail struct {
	unknown bool // has no such chunk
	epoch   dataplane.Epoch
	last    dataplane.Seq
	commit  dataplane.Seq
	ext     []extent // touched above the commit mark; seq 0: always to be copied
	life    uint16   // write-ack=memory: 0 if its process hasn't been there all the time
	unsure  bool     // it led, and may have asked to add or move a member in its epoch: hold.go
}

// tailCopy is a range that one member must get from the winner.
type tailCopy struct {
	to          int // index of the member
	off, length uint32
}

// patched says whether something was touched outside of the order of seqs.
func (t *memberTail) patched() bool {
	return slices.ContainsFunc(t.ext, func(e extent) bool { return e.seq == 0 })
}

// unfinished says that this is a copy that was never activated: it takes part, gets everything, and
// is never the one to copy from.
func (t *memberTail) unfinished() bool { return !t.unknown && t.epoch == 0 }

// begun says whether anything can have been acknowledged in the committed epoch. A head is
// activated last, after all others: if anybody isn't in the epoch yet, nothing was.
func begun(tails []memberTail, epoch dataplane.Epoch) bool {
	return !slices.ContainsFunc(tails, func(t memberTail) bool {
		return !t.unknown && !t.unfinished() && t.epoch < epoch
	})
}

// verdict is what settling comes to.
type verdict struct {
	dataLost bool // the chunk was created and nobody has it
	winner   int
	last     dataplane.Seq // of the winner: where the new history starts
	lost     []int         // members to be excluded because they lost data, ascending
	copies   []tailCopy    // ascending by member, then by offset; merged
}

// decide compares what all members said. There is at least one.
func decide(created bool, tails []memberTail) verdict {
	v := verdict{winner: -1}
	for i := range tails {
		t := &tails[i]
		if t.unknown || t.unfinished() {
			continue
		}
		if v.winner < 0 || t.epoch > tails[v.winner].epoch ||
			t.epoch == tails[v.winner].epoch && t.last > tails[v.winner].last {
			v.winner = i
		}
		created = created || t.commit > 0
	}
	if v.winner < 0 {
		if created {
			return verdict{dataLost: true}
		}
		v.winner = 0
		return v
	}
	w := &tails[v.winner]
	v.last = w.last
	for i := range tails {
		t := &tails[i]
		switch {
		case i == v.winner:
		case t.unknown && created, !t.unknown && t.last < w.commit && !t.patched():
			v.lost = append(v.lost, i)
		default:
			v.copies = appendCopies(v.copies, i, missing(w, t))
		}
	}
	return v
}

// missing returns what a member must get from the winner:
//   - what the winner wrote above the member's last seq;
//   - what either touched outside of the order of seqs;
//   - what the member wrote beyond the winner: it was never acknowledged;
//   - if the member is of an older epoch, where equal seqs may be other writes: all that either
//     wrote above its commit mark.
func missing(w, m *memberTail) []extent {
	var need []extent
	for _, e := range w.ext {
		if e.seq == 0 || e.seq > m.last || m.epoch < w.epoch {
			need = append(need, e)
		}
	}
	for _, e := range m.ext {
		if e.seq == 0 || e.seq > w.last || m.epoch < w.epoch {
			need = append(need, e)
		}
	}
	return need
}

// appendCopies adds the ranges of need for a member, sorted and merged.
func appendCopies(out []tailCopy, to int, need []extent) []tailCopy {
	slices.SortFunc(need, func(a, b extent) int { return int(int64(a.off) - int64(b.off)) })
	first := len(out)
	for _, e := range need {
		if n := len(out); n > first && e.off <= out[n-1].off+out[n-1].length {
			p := &out[n-1]
			p.length = max(p.length, e.off+e.length-p.off)
			continue
		}
		if e.length > 0 {
			out = append(out, tailCopy{to, e.off, e.length})
		}
	}
	return out
}

// rescuer is a member whose content of a block may stand for the winner's.
type rescuer struct {
	member int
	older  bool // a write of the winner to the block is missing; it was never acknowledged
}

// rescuers lists who can give a block that is damaged at the winner, best first.
//
// Members that the winner's activation reached hold the beginning of its history:
//
//	last            | winner's tail       | has of the block
//	----------------+---------------------+--------------------------------------------------------
//	= winner's      | any                 | what the winner had
//	>= its mark     | not on the block    | what the winner had
//	>= its mark     | on the block        | what was there before a write that not all members have
//	                |                     | durable. With write-ack=disk it wasn't acknowledged, and
//	                |                     | no read returned it
//
// Members that it didn't reach, of an epoch before or below the mark (and patched, else they lost
// data), have what the winner had, whatever they touched in the past: before anybody is activated
// all members are sealed and have been given what they missed, durably. Nothing was written since:
// the head is activated after all others. What was patched since then came from somebody whom the
// activation had reached.
func rescuers(winner int, tails []memberTail, block uint32, memoryAck bool) (list []rescuer) {
	w := &tails[winner]
	var behind, older []rescuer
	for i := range tails {
		t := &tails[i]
		touched := slices.ContainsFunc(w.ext, func(e extent) bool {
			return (e.seq == 0 || e.seq > t.last) && e.overlaps(block, dataplane.BlockSize)
		})
		switch {
		case i == winner || t.unknown || t.unfinished() || t.epoch > w.epoch:
		case t.epoch < w.epoch || t.last < w.commit:
			if w.last == w.commit && (t.last >= w.commit || t.patched()) {
				behind = append(behind, rescuer{member: i})
			}
		case t.last == w.last:
			list = append(list, rescuer{member: i})
		case !touched:
			behind = append(behind, rescuer{member: i})
		case !memoryAck:
			older = append(older, rescuer{member: i, older: true})
		}
	}
	return append(append(list, behind...), older...)
}
