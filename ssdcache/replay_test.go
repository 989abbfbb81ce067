package ssdcache

import (
	"testing"
)

// TestReplayTable walks all inputs: exactly one row matches, and the decisions keep the promises.
func TestReplayTable(t *testing.T) {
	for bits := range 16 {
		s := sight{bits&1 != 0, bits&2 != 0, bits&4 != 0, bits&8 != 0}
		rows := 0
		for _, r := range replayTable {
			if r.here.matches(s.here) && r.data.matches(s.data) && r.next.matches(s.next) &&
				r.durable.matches(s.durable) {
				rows++
			}
		}
		if rows != 1 {
			t.Errorf("%+v: %d rows", s, rows)
			continue
		}
		switch d := s.decide(); {
		case d == cut && s.durable:
			t.Errorf("%+v: an acknowledged batch is cut off", s)
		case d == take && !s.here:
			t.Errorf("%+v: a batch is taken that isn't there", s)
		case d == take && !s.data && !s.durable:
			t.Errorf("%+v: a torn batch is taken", s)
		case d == goOn && !s.next:
			t.Errorf("%+v: goes on to nowhere", s)
		case d == corrupt && !s.durable && !s.next:
			t.Errorf("%+v: a torn tail is called corrupt", s)
		}
	}
}

// TestForeignHeaders: intact headers that this log didn't write, or not there, are not its own.
func TestForeignHeaders(t *testing.T) {
	h, b := sampleHeader()
	l := &Log{sb: super{owner: h.owner, id: h.id}}
	r := &replayer{l: l}
	if !r.ours(b, Pos(h.pos), &h) {
		t.Fatal("own header refused")
	}
	if r.ours(b, Pos(h.pos)+1, &h) {
		t.Error("header from another place")
	}
	l.sb.owner++
	if r.ours(b, Pos(h.pos), &h) {
		t.Error("header of another owner")
	}
	l.sb.owner--
	l.sb.id++
	if r.ours(b, Pos(h.pos), &h) {
		t.Error("header of an earlier format")
	}
}
