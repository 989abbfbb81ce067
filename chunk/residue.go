package chunk

import (
	"maps"
	"slices"

	"pstorage/ssdcache"
)

// A start may find residue: a slot without a chunk of which the log holds records, of a copy that a
// power cut ended, or of a chunk whose slot entry is damaged. The log gets a Drop of it before
// anything else happens. Otherwise, when a power cut comes later,
//
//   - the slot table could have the next chunk in the slot, and not the log: that chunk would have
//     the blocks of the other one
//   - the slot table could say that the slot is empty, and an activation record in the log would
//     make a replica of what is left
//
// If the log is so full that it doesn't take that, the slot isn't free before it does.

// dropResidue puts the Drops in the log; then is called when they are durable.
func (o *opener) dropResidue(then func()) {
	sh, left := o.sh, 1
	done := func() {
		if left--; left == 0 {
			then()
		}
	}
	for _, slot := range slices.Sorted(maps.Keys(sh.store.residue)) {
		left++
		sh.dropSlot(slot, done)
	}
	done()
}

// dropSlot has the log forget a slot of nobody, which is no residue any more when that is durable.
func (sh *Shard) dropSlot(slot uint32, done func()) {
	st := sh.store
	st.residue[slot] = true
	sh.log.Append(&ssdcache.Append{Record: ssdcache.Record{Kind: ssdcache.Drop, Slot: slot},
		Done: func(a *ssdcache.Append) {
			if st.residue[slot] = false; a.Err == nil {
				delete(st.residue, slot)
				st.touch(slot)
			}
			done()
		}})
}

// clearResidue frees what the start left because the log was full.
func (sh *Shard) clearResidue() {
	st := sh.store
	if len(st.residue) == 0 || sh.dead != nil || sh.stopping {
		return
	}
	for _, slot := range slices.Sorted(maps.Keys(st.residue)) {
		switch {
		case st.residue[slot]: // on its way
		case !sh.log.Room():
			sh.pumpSoon()
			return
		default:
			sh.dropSlot(slot, func() {
				if _, still := st.residue[slot]; !still {
					st.free = append(st.free, slot)
				}
			})
		}
	}
}

// taken is how many slots have a chunk.
func (st *store) taken() int { return len(st.entries) - len(st.free) - len(st.residue) }
