package mds

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

func TestRecoverCase(t *testing.T) {
	const offline = 300 * time.Second
	there, away := lostFacts{live: true}, lostFacts{silent: time.Minute}
	offl, dead := lostFacts{silent: offline}, lostFacts{dead: true}
	type l = []lostFacts
	for i, c := range []struct {
		wanted        int
		members, lost l
		want          recoverVerdict
		index         int
	}{
		{3, l{there, there, there}, nil, recoverNothing, -1},
		{2, l{there, there, there}, l{there}, recoverNothing, -1},
		{3, l{there, there}, l{there}, recoverReturned, 0},
		{3, l{there, there}, l{away}, recoverWait, -1},
		{3, l{there, there}, l{offl}, recoverElsewhere, -1},
		{3, l{there, there}, l{dead}, recoverElsewhere, -1},
		{3, l{there, there}, nil, recoverElsewhere, -1}, // never had three
		{3, l{there}, l{away, there}, recoverReturned, 1},
		{3, l{there}, l{away, away}, recoverWait, -1},
		{3, l{there}, l{away, offl}, recoverElsewhere, -1}, // one may come back, another is needed
		{3, l{there}, l{away}, recoverElsewhere, -1},
		{3, l{there}, l{dead, away}, recoverElsewhere, -1},
		// A member that is listed and isn't there: it is waited for, or excluded before anything else.
		{3, l{there, there, away}, nil, recoverWait, -1},
		{3, l{away, there, there}, nil, recoverWait, -1},
		{3, l{there, there, offl}, nil, recoverExclude, -1},
		{3, l{there, dead, there}, nil, recoverExclude, -1},
		{3, l{there, away}, l{there}, recoverExclude, -1}, // it is in the way of the other's return
		{3, l{there, away}, l{away}, recoverWait, -1},
		{3, l{there, away}, l{dead}, recoverExclude, -1}, // in the way of a new copy
		{2, l{there, there, away}, nil, recoverNothing, -1},
		{2, l{there, there, dead}, nil, recoverExclude, -1},
		{3, l{away, away, away}, nil, recoverOffline, -1},
		{3, l{dead}, l{there}, recoverOffline, -1},
		{1, l{offl}, nil, recoverOffline, -1},
	} {
		v, at := recoverCase(c.wanted, true, c.members, c.lost, offline)
		if v != c.want || at != c.index {
			t.Errorf("case %d: %v, %d; want %v, %d", i, v, at, c.want, c.index)
		}
	}
}

// TestRecoverCaseRules holds the table against rules, for all inputs of up to three members and two
// former ones.
func TestRecoverCaseRules(t *testing.T) {
	const offline = time.Minute
	kinds := []lostFacts{{live: true}, {silent: time.Second}, {silent: offline}, {dead: true},
		{dead: true, live: true}}
	var try func(n int, list []lostFacts, f func([]lostFacts))
	try = func(n int, list []lostFacts, f func([]lostFacts)) {
		f(list)
		if n > 0 {
			for _, k := range kinds {
				try(n-1, append(slices.Clone(list), k), f)
			}
		}
	}
	for wanted := range 8 {
		wanted, created := wanted&3, wanted > 3
		try(3, nil, func(members []lostFacts) {
			try(2, nil, func(lost []lostFacts) {
				live, away := 0, 0
				for _, m := range members {
					if m.live {
						live++
					} else if m.away(offline) {
						away++
					}
				}
				v, i := recoverCase(wanted, created, members, lost, offline)
				whole := live == len(members) && live > 0
				// A chunk without data begins anew elsewhere when all of its members are gone.
				anew := !created && live+away == 0
				switch {
				case live == 0 && !anew != (v == recoverOffline), anew && v != recoverExclude,
					live < wanted && v == recoverNothing,
					live >= wanted && whole && live > 0 && v != recoverNothing,
					(v == recoverReturned || v == recoverElsewhere) && (!whole || live >= wanted),
					(v == recoverReturned) != (i >= 0),
					i >= 0 && (!lost[i].live || lost[i].dead),
					v == recoverExclude && whole:
					t.Errorf("%d wanted, created %v, %+v, %+v: %v, %d", wanted, created, members, lost,
						v, i)
				}
			})
		})
	}
}

// recoverWorld is a fakeWorld with a table of chunks.
type recoverWorld struct {
	*fakeWorld
	list   []*Record
	silent map[dataplane.CSID]time.Duration // former members that are away
	room   dataplane.CSID                   // what place says
}

func (w *recoverWorld) slots() uint64          { return uint64(len(w.list)) }
func (w *recoverWorld) at(slot uint64) *Record { return w.list[slot] }
func (w *recoverWorld) former(cs dataplane.CSID) lostFacts {
	s, away := w.silent[cs]
	return lostFacts{live: !away, silent: s}
}
func (w *recoverWorld) member(cs dataplane.CSID) lostFacts {
	return lostFacts{live: w.live(cs), silent: w.silent[cs]}
}
func (w *recoverWorld) place(*Record) dataplane.CSID { return w.room }

func newRecoverWorld(chunks int) *recoverWorld {
	w := &recoverWorld{fakeWorld: newFakeWorld(), silent: map[dataplane.CSID]time.Duration{}}
	clear(w.records)
	for i := range chunks {
		r := &Record{ID: dataplane.NewChunkID(1, uint64(i)), File: 1, Epoch: 1, State: stateUsed,
			Flags: flagCreated, Wanted: 3, Minimum: 2}
		r.setMembers([]dataplane.CSID{1, 2, 3})
		w.records[r.ID] = r
		w.list = append(w.list, r)
	}
	return w
}

func TestRecoverer(t *testing.T) {
	w, r := newRecoverWorld(10), newRecoverer(time.Minute)
	r.limits = recoverLimits{perCS: 2, total: maxRecoveries}
	now := int64(1)
	step := func(advance time.Duration) []recoverOrder {
		now += int64(advance)
		return r.step(now, w, nil)
	}
	want := func(what string, got []recoverOrder, wanted ...recoverOrder) {
		t.Helper()
		if !slices.Equal(got, wanted) {
			t.Fatalf("%s: %+v, want %+v", what, got, wanted)
		}
	}
	want("all well", step(0))
	for i, rec := range w.list[:6] {
		rec.changeMembers([]dataplane.CSID{1, 2})
		if i == 5 {
			rec.changeMembers([]dataplane.CSID{1}) // the worst: first
		}
	}
	w.silent[3] = time.Second
	w.silent[2] = time.Second
	want("it may come back", step(time.Second))
	if len(r.active)+len(r.queue)+len(r.exclusions) != 0 {
		t.Errorf("%+v", r)
	}
	delete(w.silent, 3)
	a, b, c := w.list[5], w.list[0], w.list[1]
	want("back", step(time.Second), recoverOrder{a.ID, 1, 3, 0}, recoverOrder{b.ID, 1, 3, 0})
	if len(r.active) != 2 || len(r.queue) != 4 {
		t.Errorf("%+v", r)
	}
	want("the limits hold", step(time.Second))
	want("asked again", step(recoverAgain), recoverOrder{a.ID, 1, 3, 0}, recoverOrder{b.ID, 1, 3, 0})
	b.changeMembers([]dataplane.CSID{1, 2, 3})
	b.Epoch++
	want("the next", step(time.Millisecond), recoverOrder{c.ID, 1, 3, 0})
	if r.stats.done != 1 || len(r.active) != 2 {
		t.Errorf("%+v", r)
	}
	w.absent[3] = true // both end, and are tried again later
	want("the target is away", step(time.Millisecond), recoverOrder{w.list[2].ID, 1, 3, 0},
		recoverOrder{w.list[3].ID, 1, 3, 0})
	if r.stats.failed != 2 {
		t.Errorf("%+v", r)
	}
	if !slices.Contains(r.leftover, 3) || !r.keeps(w.list[2].ID, 3) || r.keeps(a.ID, 3) {
		t.Errorf("what cs 3 holds: %v", r.leftover)
	}
	if d := w.list[2]; !r.adds(d.ID, d.Epoch, 3) || r.adds(d.ID, d.Epoch+1, 3) ||
		r.adds(d.ID, d.Epoch, 2) || r.adds(a.ID, a.Epoch, 3) {
		t.Error("what may be added to cs 3")
	}
	r.restarted(7, now)
	r.restarted(3, now) // what was copied to its process before doesn't count
	if len(r.active)+len(r.order) != 0 || r.stats.failed != 4 || r.load[3] != [2]int{} {
		t.Errorf("the target was started again: %+v", r)
	}
	w.silent[3] = 2 * time.Minute
	want("given up, too", step(time.Millisecond))
	want("no place", step(time.Second))
	step(time.Second)
	if len(r.active) != 0 {
		t.Errorf("%+v", r)
	}
	w.room = 7
	got := step(recoverBackoff)
	if len(got) != 2 || got[0] != (recoverOrder{a.ID, 1, 7, 0}) {
		t.Errorf("elsewhere: %+v", got)
	}
	w.absent[2] = true // a member that all but a have
	w.silent[2] = time.Hour
	now += int64(r.limit())
	step(0)
	step(recoverPause)
	step(recoverPause)
	if n := r.excludeSome(100); len(n) != 9 || n[0].left != 1 {
		t.Errorf("with a member gone: %+v", n)
	}
	clear(w.records)
	w.list = nil
	step(r.limit())
	step(recoverPause)
	if len(r.active)+len(r.queue)+len(r.exclusions) != 0 || r.load[1] != [2]int{} {
		t.Errorf("at the end: %+v", r)
	}
}

// TestCopyOfFreedChunk: a file is removed while a chunk of it is being copied. The target is asked
// for its inventory: no record names it, so it would keep what it got until it is started again.
func TestCopyOfFreedChunk(t *testing.T) {
	w, r := newRecoverWorld(1), newRecoverer(time.Minute)
	rec := w.list[0]
	rec.changeMembers([]dataplane.CSID{1, 2})
	if got := r.step(1, w, nil); len(got) != 1 || got[0].target != 3 {
		t.Fatalf("to be copied: %+v", got)
	}
	delete(w.records, rec.ID)
	w.list[0] = nil
	r.step(2, w, nil)
	if len(r.active) != 0 || !slices.Equal(r.leftover, []dataplane.CSID{3}) {
		t.Errorf("%d copies go on, and cs %v are asked for what they hold", len(r.active), r.leftover)
	}
}

func TestChangeMembers(t *testing.T) {
	type cs = []dataplane.CSID
	r := &Record{Wanted: 3}
	r.setMembers(cs{1, 2, 3})
	for i, c := range []struct{ members, former cs }{
		{cs{1, 3}, cs{2}},
		{cs{3}, cs{1, 2}},
		{cs{3, 4}, cs{1}}, // two places were free, one is
		{cs{3, 4, 1}, nil},
		{cs{3}, cs{4, 1}},
	} {
		r.changeMembers(c.members)
		var former cs
		for _, m := range r.former() {
			former = append(former, m.CS)
		}
		if !r.sameMembers(c.members) || !slices.Equal(former, c.former) {
			t.Errorf("case %d: members %v, former %v", i, r.members(), former)
		}
	}
}

// TestRecoverPush plays the return of a lost chunk server: the head is asked to copy the chunk to
// it, and may add it.
func TestRecoverPush(t *testing.T) {
	c := newTestCluster(t, 1)
	k := c.client(dataplane.RoleClient, 7, nil)
	admin := c.client(dataplane.RoleAdmin, 9, nil)
	servers := map[dataplane.CSID]*testCS{}
	stops := map[dataplane.CSID]func(){}
	for n := range byte(3) {
		s := c.newCS(n + 1)
		servers[s.id] = s
		stops[s.id] = s.keepAlive()
	}
	conf := oneChunk(t, k)
	lost, head, other := servers[conf.Members[1].CS], servers[conf.Members[0].CS],
		servers[conf.Members[2].CS]
	defer func() { stops[head.id](); stops[other.id]() }()
	head.must(control.OpReconfigure, &control.ReconfigureReq{Chunk: conf.Chunk, Epoch: 1,
		SetCreated: true}, nil)
	stops[lost.id]()
	exclude := &control.ReconfigureReq{Chunk: conf.Chunk, Epoch: 1,
		Members: []dataplane.CSID{head.id, other.id}}
	deadline := time.Now().Add(10 * time.Second)
	for head.try(control.OpReconfigure, exclude, &conf) != nil {
		if time.Now().After(deadline) {
			t.Fatal("not excluded")
		}
		time.Sleep(20 * time.Millisecond)
	}
	add := &control.ReconfigureReq{Chunk: conf.Chunk, Epoch: 2,
		Members: []dataplane.CSID{head.id, other.id, lost.id}}
	head.wantKind(dataplane.NotReady, control.OpReconfigure, add)
	var stat control.StatDoc
	for stat.Chunks.Degraded == 0 || len(stat.Reasons) < 2 {
		admin.admin(control.AdminStat, nil, &stat)
		if time.Now().After(deadline) {
			t.Fatalf("stat says %+v", stat.Reasons)
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Log(stat.Reasons)

	lost.reg.Chunks = []control.HeldChunk{{Chunk: conf.Chunk, Epoch: 1}}
	if r := lost.register(); len(r.Forget) != 0 || len(r.Retired) != 1 {
		t.Errorf("registered: %+v", r)
	}
	defer lost.keepAlive()()
	select {
	case p := <-head.recover:
		if len(p.Chunks) != 1 || p.Chunks[0].Epoch != 2 || p.Targets[0].CS != lost.id ||
			p.Targets[0].Addr != lost.reg.Addr {
			t.Errorf("asked for %+v", p)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nothing is recovered")
	}
	head.must(control.OpReconfigure, add, &conf)
	head.must(control.OpReconfigure, add, &conf) // again: the reply was lost
	if conf.Epoch != 3 || len(conf.Members) != 3 || conf.Members[2].CS != lost.id {
		t.Errorf("recovered: %+v", conf)
	}
	for stat.Chunks.Recovered == 0 || stat.Health != "healthy" {
		admin.admin(control.AdminStat, nil, &stat)
		if time.Now().After(deadline.Add(10 * time.Second)) {
			t.Fatalf("stat says %+v", stat)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestDrainKeepsFormer: a server that is being removed and is a member of nothing any more stays
// until the chunks that it had are whole: blocks that are damaged elsewhere are looked for there.
func TestDrainKeepsFormer(t *testing.T) {
	c := newTestCluster(t, 1)
	k := c.client(dataplane.RoleClient, 7, nil)
	admin := c.client(dataplane.RoleAdmin, 9, nil)
	servers, stops := map[dataplane.CSID]*testCS{}, map[dataplane.CSID]func(){}
	for n := range byte(3) {
		s := c.newCS(n + 1)
		servers[s.id], stops[s.id] = s, s.keepAlive()
	}
	conf := oneChunk(t, k)
	head, other, lost := servers[conf.Members[0].CS], servers[conf.Members[1].CS],
		servers[conf.Members[2].CS]
	defer func() { stops[head.id](); stops[other.id]() }()
	head.must(control.OpReconfigure, &control.ReconfigureReq{Chunk: conf.Chunk, Epoch: 1,
		SetCreated: true}, nil)
	stops[lost.id]()
	deadline := time.Now().Add(20 * time.Second)
	until := func(what string, f func() bool) {
		t.Helper()
		for !f() {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	exclude := &control.ReconfigureReq{Chunk: conf.Chunk, Epoch: 1,
		Members: []dataplane.CSID{head.id, other.id}}
	until("not excluded", func() bool {
		return head.try(control.OpReconfigure, exclude, &conf) == nil
	})
	var doc control.RmCSDoc
	rm := control.RmCSArgs{CS: []uint32{uint32(lost.id)}}
	admin.admin(control.AdminRmCS, rm, &doc)
	rm.Query = true
	until("it isn't said why it is kept", func() bool {
		admin.admin(control.AdminRmCS, rm, &doc)
		if doc.CS[0].Status == control.CSDropped {
			t.Fatal("dropped while a chunk that it had lacks a copy")
		}
		return strings.Contains(doc.CS[0].Reason, "kept until 1 chunks")
	})

	added := c.newCS(4)
	defer added.keepAlive()()
	until("not recovered", func() bool {
		select {
		case p := <-head.recover:
			add := &control.ReconfigureReq{Chunk: conf.Chunk, Epoch: 2,
				Members: []dataplane.CSID{head.id, other.id, p.Targets[0].CS}}
			return head.try(control.OpReconfigure, add, &conf) == nil
		default:
			return false
		}
	})
	until("it isn't dropped", func() bool {
		admin.admin(control.AdminRmCS, rm, &doc)
		return doc.CS[0].Status == control.CSDropped
	})
}
