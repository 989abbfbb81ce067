package mds

import (
	"slices"
	"testing"
	"time"

	"pstorage/dataplane"
)

// TestSettleCase goes through all states of three members with each minimum, against the rule in
// words: lost members are excluded if one remains that can coordinate, and either enough to write
// remain, or none of the lost may soon be back with the chunk.
func TestSettleCase(t *testing.T) {
	var states []memberFacts
	for bits := range 16 {
		b := func(i int) bool { return bits>>i&1 != 0 }
		states = append(states, memberFacts{live: b(0), gone: b(1), missing: b(2), certain: b(3)})
	}
	seen := map[settleVerdict]int{}
	for n := range 16 * 16 * 16 * 4 * 2 {
		ms := []memberFacts{states[n&15], states[n>>4&15], states[n>>8&15]}
		minimum, created := n>>12&3, n>>14 != 0
		lost, hope, first := 0, 0, -1
		for i, m := range ms {
			if m.gone || m.missing {
				lost++
				if !m.missing && !m.certain {
					hope++
				}
			} else if m.live && first < 0 {
				first = i
			}
		}
		want := settleNow
		switch {
		case lost == 0:
			want = settleNothing
		case lost == 3 && (created || hope > 0):
			want = settleHold
		case lost == 3:
			want = settleAnew
		case first < 0:
			want = settleNoLeader
		case 3-lost < minimum && hope > 0:
			want = settleGrace
		}
		got, who := settleCase(ms, minimum, created)
		if got != want || got == settleNow && who != first {
			t.Errorf("%+v, minimum %d, created %v: %d by %d, want %d by %d", ms, minimum, created, got,
				who, want, first)
		}
		seen[got]++
	}
	if len(seen) != 6 {
		t.Errorf("verdicts: %v", seen)
	}
}

// fakeWorld is a planView.
type fakeWorld struct {
	records map[dataplane.ChunkID]*Record
	dead    map[dataplane.CSID]bool // no lease any more
	absent  map[dataplane.CSID]bool // silent, but may hold a lease
	faulty  map[dataplane.CSID]bool // their disks failed
	lastNs  map[dataplane.CSID]int64
	backNs  map[dataplane.CSID]int64
}

func (w *fakeWorld) chunk(id dataplane.ChunkID) *Record { return w.records[id] }
func (w *fakeWorld) live(cs dataplane.CSID) bool        { return !w.dead[cs] && !w.absent[cs] }
func (w *fakeWorld) gone(cs dataplane.CSID) bool        { return w.dead[cs] }
func (w *fakeWorld) broken(cs dataplane.CSID) bool      { return w.faulty[cs] }
func (w *fakeWorld) heard(cs dataplane.CSID) (int64, int64) {
	return w.lastNs[cs], w.backNs[cs]
}

func newFakeWorld() *fakeWorld {
	set := func() map[dataplane.CSID]bool { return map[dataplane.CSID]bool{} }
	at := func() map[dataplane.CSID]int64 { return map[dataplane.CSID]int64{} }
	w := &fakeWorld{map[dataplane.ChunkID]*Record{}, set(), set(), set(), at(), at()}
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
	want("lease out", step(time.Millisecond), settle{to: 2, chunk: id, lost: 1})
	want("asked a moment ago", step(10*time.Millisecond))
	want("asked again", step(settleAgain), settle{to: 2, chunk: id, lost: 1})
	w.dead[2] = true
	want("another coordinator at once", step(time.Millisecond), settle{to: 3, chunk: id, lost: 3})
	w.dead[3] = true
	want("never without the last (I7)", step(settleAgain))
	delete(w.dead, 3)
	w.absent[3] = true
	want("nobody to coordinate", step(settleAgain))
	delete(w.absent, 3)
	want("back", step(time.Millisecond), settle{to: 3, chunk: id, lost: 3})
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

// TestPlannerGrace: when a site comes back, the first server there waits for the others before it
// goes on without enough of them, but not for long, nor for those that are lost for certain.
func TestPlannerGrace(t *testing.T) {
	const s = int64(time.Second)
	id := dataplane.NewChunkID(1, 4)
	now := int64(0)
	begin := func(dead ...dataplane.CSID) (*fakeWorld, *planner) {
		w, p := newFakeWorld(), newPlanner()
		w.records[id].Minimum = 2
		for _, cs := range dead {
			w.dead[cs] = true
		}
		return w, p
	}
	look := func(w *fakeWorld, p *planner, atNs int64) []settle {
		now = atNs
		p.report(id, now)
		return p.step(now, w, nil)
	}
	want := func(what string, got []settle, wanted ...settle) {
		t.Helper()
		if !slices.Equal(got, wanted) {
			t.Errorf("%s: %+v, want %+v", what, got, wanted)
		}
	}
	without := settle{to: 1, chunk: id, lost: 6} // members 2 and 3
	w, p := begin(2, 3)
	w.lastNs[2], w.lastNs[3] = 1*s, 3*s
	want("two are silent", look(w, p, 10*s))
	want("one for long enough", look(w, p, 11*s))
	want("a moment before", look(w, p, 3*s+int64(coldGrace)-1))
	want("both", look(w, p, 3*s+int64(coldGrace)), without)

	w, p = begin(2, 3)
	w.backNs[1] = 100 * s // all were away for long
	want("the first is back", look(w, p, 101*s))
	want("and waits", look(w, p, 100*s+int64(coldGrace)-1))
	delete(w.dead, 2)
	want("the second is back: there are enough", look(w, p, 110*s), settle{to: 1, chunk: id, lost: 4})

	w, p = begin(3)
	want("enough remain", look(w, p, 1*s), settle{to: 1, chunk: id, lost: 4})
	w, p = begin(2, 3)
	w.faulty[2] = true
	want("one failed, one may be back", look(w, p, 1*s))
	w.faulty[3] = true
	want("both failed", look(w, p, 1*s), without)
	w, p = begin(3)
	p.lacks(id, 2, 0)
	want("one lacks the chunk, one may be back", look(w, p, 1*s))
	delete(w.dead, 3)
	want("it is back", look(w, p, 1*s), settle{to: 1, chunk: id, lost: 2})
	w, p = begin(2, 3)
	w.records[id].Minimum = 1
	want("one is enough", look(w, p, 1*s), without)
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
	if !slices.Equal(got, []settle{{to: 1, chunk: a, lost: 2}}) {
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
