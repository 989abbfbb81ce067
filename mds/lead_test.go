package mds

import (
	"testing"
	"time"

	"pstorage/dataplane"
)

// TestNewHead: a client can't reach the head, others can. The head changes when it was heard of
// in the meantime, and not to a member that the client can't reach either.
func TestNewHead(t *testing.T) {
	const ms = int64(time.Millisecond)
	w, p := newFakeWorld(), newPlanner()
	id := dataplane.NewChunkID(1, 0) // members 1, 2, 3
	now := 100 * int64(time.Second)
	complain := func(cs dataplane.CSID) {
		p.report(id, now)
		p.cannotReach(id, cs, now)
	}
	want := func(what string, to dataplane.CSID) {
		t.Helper()
		got := p.step(now, w, nil)
		switch {
		case to == 0 && len(got) > 0, to != 0 && len(got) != 1:
			t.Fatalf("%s: %+v", what, got)
		case to != 0 && (got[0].to != to || !got[0].lead || got[0].lost != 0):
			t.Fatalf("%s: %+v, want cs %d to lead", what, got, to)
		}
	}
	w.lastNs[1] = now - 10*ms
	complain(1)
	want("not heard of since", 0)
	now += 300 * ms
	w.lastNs[1] = now
	want("not complained about since", 0)
	now += 200 * ms
	complain(1)
	want("cut off", 2)
	w.records[id].setMembers([]dataplane.CSID{2, 1, 3})
	now += 100 * ms
	want("done", 0)
	complain(2)
	now += 100 * ms
	w.lastNs[2] = now
	now += 400 * ms
	complain(2)
	now += int64(settleAgain)
	complain(2)
	want("the next one neither", 3)

	w.records[id].setMembers([]dataplane.CSID{3, 2, 1})
	now += 2 * int64(settleAgain)
	complain(3)
	w.lastNs[3] = now + 100*ms
	now += 500 * ms
	complain(3)
	want("none of them", 0)

	now += int64(cutMemory)
	complain(3)
	w.lastNs[3] = now + 100*ms
	now += 500 * ms
	complain(3)
	want("much later", 2)

	now += 2 * int64(settleAgain)
	w.dead[3] = true
	complain(3)
	got := p.step(now, w, nil)
	if len(got) != 1 || got[0].lost != 1 {
		t.Errorf("it is gone: %+v", got)
	}
}

// TestSpreadHeads: when a server is lost, those that are left become heads of its chunks evenly.
func TestSpreadHeads(t *testing.T) {
	w, p := newFakeWorld(), newPlanner()
	heads := map[dataplane.CSID]int{}
	w.dead[3] = true
	n := 0
	for id := range w.records {
		p.report(id, 1)
		n++
	}
	for _, s := range p.step(1, w, nil) {
		if s.to == 3 || s.lost != 4 || s.lead != (s.to != 1) {
			t.Errorf("%+v", s)
		}
		heads[s.to]++
	}
	if heads[1] != n/2 || heads[2] != n/2 {
		t.Errorf("heads of %d chunks: %v", n, heads)
	}
}
