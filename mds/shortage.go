package mds

import (
	"fmt"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// Writers that wait do so without an error; here it is said why: chunks below their minimum of
// live members, and the capacity limit. (No space on the servers is in full.go.)

// shortage counts, in rounds over the table, the chunks that can't be written.
type shortage struct {
	cursor uint64
	end    uint64
	nextNs int64
	found  uint64 // in the round
	below  uint64 // in the last complete one
}

// shortageEvery is the time between two rounds.
const shortageEvery = 1e9

// watchMinimum looks at some records, and has an event when there begin to be chunks below their
// minimum, and when there are none any more. Both locks are held.
func (l *leader) watchMinimum(s *State, nowNs int64) {
	t := &l.short
	if t.end == 0 {
		if nowNs < t.nextNs {
			return
		}
		t.cursor, t.end, t.found = 0, s.table.Slots(), 0
	}
	for last := min(t.cursor+scanPerStep, t.end); t.cursor < last; t.cursor++ {
		rec := s.table.At(t.cursor)
		if rec == nil {
			continue
		}
		live := 0
		for _, m := range rec.members() {
			if l.leases.live(m.CS, nowNs) {
				live++
			}
		}
		if live < int(rec.Minimum) {
			t.found++
		}
	}
	if t.cursor < t.end {
		return
	}
	before := t.below
	t.end, t.below, t.nextNs = 0, t.found, nowNs+shortageEvery
	switch {
	case before == 0 && t.below > 0:
		l.event(control.Fault, "mds", "below-minimum", fmt.Sprintf("%d chunks have fewer live "+
			"members than needed to write: writers of them wait, reads go on where a member is left",
			t.below))
	case before > 0 && t.below == 0:
		l.event(control.Info, "mds", "minimum-restored",
			"all chunks have enough live members again: writers go on")
	}
}

// overLimit says that one chunk besides more, which aren't proposed yet, would exceed the
// configured capacity limit. Both locks are held.
func (l *leader) overLimit(s *State, more int) error {
	l.configure(s)
	limit := l.conf.limit
	if limit == 0 || (s.table.Len()+l.coming+uint64(more)+1)*dataplane.ChunkSize <= limit {
		return nil
	}
	return dataplane.E("place chunk", dataplane.NoSpace, fmt.Errorf("the capacity limit of %d MiB "+
		"is reached (set-config %s): %d chunks of %d MiB are allocated", limit>>20,
		control.ConfigLimit, s.table.Len(), uint64(dataplane.ChunkSize)>>20))
}
