package mds

import (
	"slices"
	"testing"
	"time"

	"pstorage/dataplane"
)

// TestSettleCase goes through all states of three members, against the rule in words.
func TestSettleCase(t *testing.T) {
	states := []memberFacts{{live: true}, {}, {gone: true}, {live: true, missing: true},
		{missing: true}}
	for _, a := range states {
		for _, b := range states {
			for _, c := range states {
				ms := []memberFacts{a, b, c}
				lost, first := 0, -1
				for i, m := range ms {
					if m.gone || m.missing {
						lost++
					} else if m.live && first < 0 {
						first = i
					}
				}
				want := settleNow
				switch {
				case lost == 0:
					want = settleNothing
				case lost == 3:
					want = settleHold
				case first < 0:
					want = settleNoLeader
				}
				got, who := settleCase(ms)
				if got != want || got == settleNow && who != first {
					t.Errorf("%+v: %d by %d, want %d by %d", ms, got, who, want, first)
				}
			}
		}
	}
}

// fakeWorld is a planView.
type fakeWorld struct {
	records map[dataplane.ChunkID]*Record
	dead    map[dataplane.CSID]bool // no lease any more
	absent  map[dataplane.CSID]bool // silent, but may hold a lease
}

func (w *fakeWorld) chunk(id dataplane.ChunkID) *Record { return w.records[id] }
func (w *fakeWorld) live(cs dataplane.CSID) bool        { return !w.dead[cs] && !w.absent[cs] }
func (w *fakeWorld) gone(cs dataplane.CSID) bool        { return w.dead[cs] }

func newFakeWorld() *fakeWorld {
	w := &fakeWorld{map[dataplane.ChunkID]*Record{}, map[dataplane.CSID]bool{},
		map[dataplane.CSID]bool{}}
	for i := range uint64(10) {
		r := &Record{ID: dataplane.NewChunkID(1, i), File: 1, Epoch: 1, State: stateUsed,
			Flags: flagCreated}
		r.setMembers([]dataplane.CSID{1, 2, 3})
		w.records[r.ID] = r
	}
	return w
}

func TestPlanner(t *testing.T) {
	w, p := newFakeWorld(), newPlanner()
	id := dataplane.NewChunkID(1, 4)
	now := int64(1)
	step := func(advance time.Duration) []settle {
		now += int64(advance)
		return p.step(now, w, nil)
	}
	want := func(what string, got []settle, wanted ...settle) {
		t.Helper()
		if !slices.Equal(got, wanted) {
			t.Fatalf("%s: %+v, want %+v", what, got, wanted)
		}
	}
	want("nothing reported", step(0))
	p.report(id, now)
	want("its lease may be valid", step(0))
	w.absent[1] = true
	want("still", step(time.Second))
	w.dead[1] = true
	want("lease out", step(time.Millisecond), settle{2, id, 1})
	want("asked a moment ago", step(10*time.Millisecond))
	want("asked again", step(settleAgain), settle{2, id, 1})
	w.dead[2] = true
	want("another coordinator at once", step(time.Millisecond), settle{3, id, 3})
	w.dead[3] = true
	want("never without the last (I7)", step(settleAgain))
	delete(w.dead, 3)
	w.absent[3] = true
	want("nobody to coordinate", step(settleAgain))
	delete(w.absent, 3)
	want("back", step(time.Millisecond), settle{3, id, 3})
	w.records[id].setMembers([]dataplane.CSID{3})
	p.report(id, now)
	want("done", step(settleAgain))
	if len(p.queue) != 1 {
		t.Error("forgotten too early")
	}
	step(reportLife)
	if len(p.queue) != 0 || len(p.byChunk) != 0 {
		t.Errorf("%d chunks left", len(p.queue))
	}
}

func TestPlannerMissing(t *testing.T) {
	w, p := newFakeWorld(), newPlanner()
	a, b, c := dataplane.NewChunkID(1, 0), dataplane.NewChunkID(1, 1), dataplane.NewChunkID(1, 2)
	for _, id := range []dataplane.ChunkID{a, b, c} {
		p.lacks(id, 2, 1)
		p.lacks(id, 2, 1)
	}
	w.records[b].Flags = 0 // never written: it may be missing
	p.lacks(c, 1, 1)
	p.lacks(c, 3, 1) // nobody has it: hold
	got := p.step(2, w, nil)
	if !slices.Equal(got, []settle{{1, a, 2}}) {
		t.Errorf("%+v", got)
	}
	// What is missing is remembered for longer than a report.
	later := int64(time.Hour)
	p.step(later, w, nil)
	if !p.isMissing(a, 2) || !p.isMissing(c, 3) || p.isMissing(b, 2) || p.isMissing(a, 1) {
		t.Error("what is missing")
	}
	// A new inventory has it again.
	p.registered(2)
	if p.isMissing(a, 2) || !p.isMissing(c, 1) || p.missing != 1 {
		t.Errorf("after the registration: %d missing", p.missing)
	}
	delete(w.records, c)
	p.step(later, w, nil)
	if len(p.queue) != 0 || p.missing != 0 {
		t.Errorf("%d left, %d missing", len(p.queue), p.missing)
	}
}

func TestPlannerBounds(t *testing.T) {
	w, p := newFakeWorld(), newPlanner()
	for i := range uint64(maxReports + 10) {
		p.report(dataplane.NewChunkID(9, i), 1)
	}
	if len(p.queue) != maxReports {
		t.Errorf("%d reports", len(p.queue))
	}
	// None of them exists; each step drops a bounded number.
	p.step(1, w, nil)
	if len(p.queue) != maxReports-planPerStep {
		t.Errorf("%d left", len(p.queue))
	}
}
