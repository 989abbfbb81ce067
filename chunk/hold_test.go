package chunk

import (
	"testing"

	"pstorage/dataplane"
)

// TestHeldCopy: what a held copy says after a restart, from the log and from the slot table, until
// it is activated.
func TestHeldCopy(t *testing.T) {
	var logged, tabled history
	logged.replayMeta(5, 42, []byte{metaFilled, metaHeld})
	tabled.activate(5, 42, nil)
	tabled.hold()
	r := &replica{id: 1<<40 | 3, history: tabled}
	var e slotEntry
	r.fillEntry(&e)
	tabled = history{}
	tabled.load(&e)
	for name, h := range map[string]*history{"log": &logged, "slot table": &tabled} {
		r := &replica{slot: 1, history: *h}
		tail := tailOf(r)
		if !r.held() || r.copying() || tail.epoch != 5 || tail.last != 42 || tail.commit != 42 ||
			tail.unfinished() || !tail.patched() {
			t.Errorf("%s: held %v, copying %v, %+v", name, r.held(), r.copying(), tail)
		}
		if d := r.dirtyFor(6, 42, true, nil); d.covers(5, 42) {
			t.Errorf("%s: the dirty map after a held copy covers the epoch of the copy", name)
		}
		if h.activate(6, 42, nil); h.held() {
			t.Errorf("%s: still held when active", name)
		}
	}

	// One that got on is the winner; the held copy gets everything. If it is alone it stands for all.
	var again history
	again.replayMeta(5, 42, []byte{metaActivate, metaHeld})
	held := tailOf(&replica{slot: 1, history: again})
	on := memberTail{epoch: 5, last: 50, commit: 50}
	if v := decide(true, []memberTail{held, on}); v.winner != 1 || len(v.lost) > 0 ||
		len(v.copies) != 1 || v.copies[0].to != 0 {
		t.Errorf("with one that got on: %+v", v)
	}
	if v := decide(true, []memberTail{held}); v.dataLost || v.winner != 0 || v.last != 42 {
		t.Errorf("alone: %+v", v)
	}
}

// TestUnsureOutlives: that a move was asked for is on record with the epoch, and with that only.
func TestUnsureOutlives(t *testing.T) {
	for _, unsure := range []dataplane.Epoch{0, 2, 3} {
		r := &replica{id: 7, history: history{epoch: 3}, unsure: unsure}
		var e, back slotEntry
		r.fillEntry(&e)
		b := make([]byte, entrySize)
		e.put(b, 4)
		if err := back.decode(b, 4); err != nil {
			t.Fatal(err)
		}
		if back.unsure != (unsure == 3) {
			t.Errorf("epoch 3, unsure at %d: the slot table says %v", unsure, back.unsure)
		}
	}
}

// TestCopyable: over a held copy another one may be made, in the same epoch, and again if that is
// interrupted; never over a replica that was active in it.
func TestCopyable(t *testing.T) {
	for _, c := range []struct {
		name             string
		epoch, sealed    dataplane.Epoch
		held, unfinished bool
		at               dataplane.Epoch
		want             bool
	}{
		{"nothing but a slot", 0, 0, false, false, 4, true},
		{"a former member", 3, 3, false, false, 4, true},
		{"a member of this epoch", 4, 4, false, false, 4, false},
		{"a member of a later epoch", 5, 5, false, false, 4, false},
		{"held", 4, 4, true, false, 4, true},
		{"held, then copied to and interrupted", 4, 4, true, true, 4, true},
		{"held in a later epoch", 5, 5, true, false, 4, false},
		{"sealed for a later epoch", 3, 5, false, true, 4, false},
	} {
		r := &replica{slot: 1, sealEpoch: c.sealed, history: history{epoch: c.epoch}}
		if c.held {
			r.hold()
		}
		if r.unfinished = c.unfinished; r.copyable(c.at) != c.want {
			t.Errorf("%s: %v", c.name, !c.want)
		}
	}
}

// TestKeepDirectUnderWay: a flush of what was written straight to the store doesn't stand for a
// write that was still under way; one that begins when none is does.
func TestKeepDirectUnderWay(t *testing.T) {
	g := newGapWorld(t, 306)
	r := g.nd.sh.chunks[chunkA]
	for _, flying := range []int{1, 0} {
		done := false
		g.nd.env.Do(func() {
			r.direct, r.directs = true, flying
			g.nd.sh.keepDirect(r, func(err error) {
				if done = true; err != nil {
					t.Error(err)
				}
			})
			r.directs = 0 // its write has ended, after the flush began
		})
		g.must(func() bool { return done }, 10*sec, "the flush")
		if r.kept != (flying == 0) {
			t.Errorf("%d writes under way: kept %v", flying, r.kept)
		}
	}
	g.nd.env.Do(func() { r.direct, r.kept, r.flushed = false, false, false })
}
