package ssdcache

import "pstorage/dataplane"

// Drain writes all of the log back to the store, at full speed, and calls done when the log holds
// nothing that the store doesn't have: replay would find no record. It is for the change of a log
// to another place or size: nothing else may be appended or read meanwhile, and only Close may
// follow. A crash in between loses nothing; the log is then as far as its superblock says.
func (l *Log) Drain(done func(error)) {
	if l.draining != nil || l.closing != nil || l.closed {
		panic("ssdcache: drained twice, or after Close")
	}
	l.draining = done
	l.destage.idle = false
	l.env.AtTurnEnd(&l.turn)
}

// drain begins the next round, or ends the draining. It is called with destage at rest.
func (l *Log) drain() {
	if l.oldest != nil || l.sbDone != nil {
		return // the end of the batch, or of the superblock's write, is a turn of its own
	}
	if l.at > 0 && l.ready > l.head {
		// The segment being filled isn't taken by a round: go on to the next one, so that it is.
		l.head, l.at = l.head+1, 0
		l.first[l.head%l.segs] = l.nextNr
	}
	if l.tail < l.head {
		l.destage.begin() // of a log that is full, what is before that segment; then there is a next one
		return
	}
	if l.at > 0 {
		return // a reader has the next segment; its end is a turn
	}
	done := l.draining
	l.draining = nil
	done(nil)
}

// failDrain ends a draining whose log has failed.
func (l *Log) failDrain() {
	if done := l.draining; done != nil {
		l.draining = nil
		done(l.err)
	}
}

// Undrained is how many bytes of the log hold what isn't in the store yet, in whole segments.
func (l *Log) Undrained() int64 {
	n := l.head - l.tail
	if l.at > 0 {
		n++
	}
	return int64(n) * int64(l.sb.segSize)
}

// NextBatch is the number of the next batch: where a log that takes the place of this one begins,
// see FormatOptions.
func (l *Log) NextBatch() uint64 { return l.nextNr }

// HeadSize is how much of a log's beginning its superblocks take, in bytes.
const HeadSize = 2 * superSize

// OwnerOf returns the owner of the log whose first HeadSize bytes are in head, 0 if it is none.
func OwnerOf(head []byte) uint64 {
	for at := 0; at+superSize <= len(head); at += superSize {
		var s super
		if s.decode(head[at:]) == nil {
			return s.owner
		}
	}
	return 0
}

// continues checks and takes over where a new log begins.
func (s *super) continues(o *FormatOptions) error {
	if o.FirstBatch == 0 {
		return nil
	}
	if o.FirstBatch > 1<<62 {
		return dataplane.E("make a log", dataplane.Invalid, nil)
	}
	s.tailBatch, s.durable, s.mark = o.FirstBatch, o.FirstBatch-1, o.Mark
	return nil
}
