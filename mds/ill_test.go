package mds

import (
	"strings"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestIllCase goes through all states, values and times, against the rule in words.
func TestIllCase(t *testing.T) {
	ms := time.Millisecond
	for _, ill := range []bool{false, true} {
		for _, others := range []int{0, 1, 2, 7} {
			for _, median := range []time.Duration{0, ms, 10 * ms, 100 * ms} {
				for _, value := range []time.Duration{0, ms, 15 * ms, 25 * ms, 60 * ms, 150 * ms, 600 * ms} {
					for _, held := range []time.Duration{0, illAfter - 1, illAfter, wellAfter - 1, wellAfter} {
						f := illFacts{ill, value, median, others, held}
						enough := others >= 2
						bad := enough && value > 20*ms && value > 5*median
						good := !enough || value < max(10*ms, 2*median)
						want := ill
						switch {
						case !ill && bad && held >= 10*time.Second:
							want = true
						case ill && good && held >= 30*time.Second:
							want = false
						}
						if got := illCase(f); got != want {
							t.Errorf("%+v: %v", f, got)
						}
					}
				}
			}
		}
	}
}

// TestStallCase goes through all clusters of four servers whose parts are a few, alone, with one
// that is being excluded, and with so many healthy ones that two may be excluded at a time.
func TestStallCase(t *testing.T) {
	for _, more := range []struct{ healthy, going, most int }{{0, 0, 1}, {0, 1, 1}, {8, 0, 2},
		{8, 1, 2}, {8, 2, 2}} {
		testStallCase(t, more.healthy, more.going, more.most)
	}
	s := func(f ...stallFacts) []stallFacts { return f }
	l := func(by, waits int) stallFacts { return stallFacts{live: true, by: by, waits: waits} }
	hang := func(n, of int) []stallFacts {
		list := make([]stallFacts, of)
		for i := range list {
			list[i].live = true
			if i < n {
				list[i].own = stallAfter + time.Duration(i)
			}
		}
		return list
	}
	for i, c := range []struct {
		list  []stallFacts
		going int
		want  int
	}{
		{s(l(0, 0), l(0, 0), l(0, 0)), 0, -1},
		{s(l(2, 0), l(0, 1), l(0, 1)), 0, 0}, // two wait for the first
		{s(l(1, 0), l(0, 1), l(0, 0)), 0, 0}, // one does
		{s(l(1, 0), l(1, 0), l(0, 2)), 0, 2}, // who waits for all others is cut off itself
		{s(l(0, 1), l(1, 1), l(1, 0)), 0, 2}, // a chain: its end waits for nobody
		{s(l(0, 1), l(1, 0), l(1, 1)), 0, 1}, // the same in another order
		{s(l(2, 0), l(0, 1), l(0, 1)), 1, -1},
		{hang(1, 4), 0, 0},
		{hang(1, 4), 1, -1}, // one at a time
		{hang(2, 9), 0, -1}, // together: of nine one may be excluded at a time
		{hang(2, 10), 0, 1}, // of ten two
		{hang(1, 9), 1, 0},  // the second of them
		{hang(3, 10), 0, -1},
		{hang(2, 9), 1, -1},
		{hang(1, 8), 2, -1},
		{hang(3, 15), 0, 2},
		{hang(100, 500), 0, 99},
		{hang(101, 500), 0, -1},
	} {
		if got := stallCase(c.list, c.going); got != c.want {
			t.Errorf("case %d: %d, want %d", i, got, c.want)
		}
	}
}

func testStallCase(t *testing.T, healthy, going, most int) {
	parts := []stallFacts{{}, {live: true}, {live: true, own: 400 * time.Millisecond},
		{live: true, own: 2 * time.Second}, {live: true, by: 1}, {live: true, by: 2},
		{live: true, waits: 1}, {live: true, waits: 3}}
	at := make([]int, 4)
	for {
		list := make([]stallFacts, 4+healthy)
		live, hang, stuck := healthy, 0, 0
		for i := range healthy {
			list[4+i].live = true
		}
		for i, k := range at {
			list[i] = parts[k]
			if list[i].live {
				live++
				if list[i].own >= stallAfter {
					hang++
				}
				if list[i].own >= stallOther {
					stuck++
				}
			}
		}
		got := stallCase(list, going)
		switch {
		case got >= 0 && going >= most:
			t.Fatalf("%+v: %d, though %d are being excluded", list, got, going)
		case got >= 0 && (live < 3 || !list[got].live):
			t.Fatalf("%+v: %d", list, got)
		case got >= 0 && hang > 0 && (list[got].own < stallAfter || stuck+going > most):
			t.Fatalf("%+v: %d isn't one of the few that hang", list, got)
		case live >= 3 && hang > 0 && stuck+going <= most && got < 0:
			t.Fatalf("%+v: few hang, and none is found", list)
		case got >= 0 && hang == 0 && list[got].by == 0 && list[got].waits < 2:
			t.Fatalf("%+v: %d without evidence", list, got)
		}
		i := 0
		for ; i < len(at); i++ {
			if at[i]++; at[i] < len(parts) {
				break
			}
			at[i] = 0
		}
		if i == len(at) {
			break
		}
	}
}

// TestChainOfSilent: the end of a chain is silent. The link before it, for which the head waits,
// has nothing to do with that; without that excuse it is the one.
func TestChainOfSilent(t *testing.T) {
	const head, middle, end, other dataplane.CSID = 1, 2, 3, 4
	for _, excuse := range []bool{true, false} {
		h, now := newHealth(), int64(1)
		live := func(dataplane.CSID) bool { return true } // the lease of the silent one, too
		beat := func(cs dataplane.CSID, on ...dataplane.CSID) {
			req := &control.HeartbeatReq{CS: cs}
			for _, w := range on {
				req.Waits = append(req.Waits, control.PeerWait{CS: w, StallNs: int64(stallAfter)})
			}
			h.report(cs, req, now)
		}
		for cs := head; cs <= other; cs++ {
			beat(cs)
		}
		now += int64(stallFresh) + 1
		beat(other)
		beat(head, middle)
		want := middle
		if excuse {
			beat(middle, end)
			want = 0
		} else {
			beat(middle)
		}
		if got := h.suspect(now, live); got != want {
			t.Errorf("excuse %v: cs %d is suspected, want %d", excuse, got, want)
		}
	}
}

// TestIllServer: one of four servers is slow for a while.
func TestIllServer(t *testing.T) {
	h, now := newHealth(), int64(1)
	live := func(dataplane.CSID) bool { return true }
	beat := func(slow time.Duration, forTime time.Duration) {
		for end := now + int64(forTime); now < end; now += int64(dataplane.HeartbeatEvery) {
			for cs := dataplane.CSID(1); cs <= 4; cs++ {
				d := 2 * time.Millisecond
				if cs == 3 {
					d = slow
				}
				h.report(cs, &control.HeartbeatReq{CS: cs, Stats: control.CSStats{LogWaitNs: int64(d)}}, now)
			}
			h.step(now, live)
		}
	}
	beat(2*time.Millisecond, time.Minute)
	beat(200*time.Millisecond, 5*time.Second)
	if h.isIll(3) {
		t.Error("ill after a moment")
	}
	beat(2*time.Millisecond, 20*time.Second)
	beat(200*time.Millisecond, 14*time.Second)
	if !h.isIll(3) || h.isIll(1) || !strings.Contains(h.reason(3), "its log takes") {
		t.Errorf("slow for 14 s: %v %q", h.isIll(3), h.reason(3))
	}
	beat(2*time.Millisecond, 20*time.Second)
	if !h.isIll(3) {
		t.Error("well at once")
	}
	beat(2*time.Millisecond, 25*time.Second)
	if h.isIll(3) {
		t.Error("ill for ever")
	}
	// All are slow: none is ill.
	for range 60 {
		for cs := dataplane.CSID(1); cs <= 4; cs++ {
			h.report(cs, &control.HeartbeatReq{CS: cs, Stats: control.CSStats{LogWaitNs: 3e8}}, now)
		}
		h.step(now, live)
		now += int64(dataplane.HeartbeatEvery)
	}
	for cs := dataplane.CSID(1); cs <= 4; cs++ {
		if h.isIll(cs) {
			t.Errorf("cs %d is ill like all others", cs)
		}
	}
}

// TestCSCase goes through all inputs of the table of states.
func TestCSCase(t *testing.T) {
	for bits := range 1 << 8 {
		for _, silent := range []time.Duration{0, missedBeats - 1, missedBeats, leaseOut, time.Hour} {
			b := func(i int) bool { return bits>>i&1 != 0 }
			f := csFacts{dropped: b(0), failed: b(1), releasing: b(2), starting: b(3), exited: b(4),
				returning: b(5), ill: b(6), stalled: b(7), lease: silent < leaseOut, silent: silent}
			got := csCase(f)
			plain := !f.dropped && !f.failed && !f.releasing
			ok := true
			switch got {
			case control.CSDropped:
				ok = f.dropped
			case control.CSFailed:
				ok = f.failed && !f.dropped
			case control.CSReleasing:
				ok = f.releasing && !f.failed && !f.dropped
			case control.CSActive:
				ok = plain && f.lease && silent < missedBeats && !f.ill && !f.stalled && !f.exited &&
					!f.returning && !f.starting
			case control.CSIll:
				ok = plain && (f.ill || f.stalled) && !f.exited
			case control.CSOffline:
				ok = plain && (f.exited || !f.lease) && !f.returning
			case control.CSInactive:
				ok = plain && (f.returning || f.starting || f.exited || silent >= missedBeats)
			default:
				ok = false
			}
			if !ok {
				t.Errorf("%+v: %s", f, got)
			}
		}
	}
}

// TestStallIsExcluded: the log of one of four servers hangs. It is asked for its lease, gives it
// up, may be excluded from a chunk at once, and comes back by a registration when it is well again.
func TestStallIsExcluded(t *testing.T) {
	c := newTestCluster(t, 1)
	k := c.client(dataplane.RoleClient, 7, nil)
	servers := map[dataplane.CSID]*testCS{}
	var stops []func()
	for n := range byte(4) {
		s := c.newCS(n + 1)
		servers[s.id] = s
	}
	conf := oneChunk(t, k)
	sick, head := servers[conf.Members[1].CS], servers[conf.Members[0].CS]
	for id, s := range servers {
		if id != sick.id {
			stops = append(stops, s.keepAlive())
		}
	}
	defer func() {
		for _, stop := range stops {
			stop()
		}
	}()
	stall := int64(0)
	beat := func(yielded bool) (r control.HeartbeatReply, err error) {
		err = sick.try(control.OpHeartbeat, &control.HeartbeatReq{CS: sick.id, Boot: 1,
			Capacity: sick.reg.Capacity, Instance: sick.reg.Instance, StallNs: stall,
			Yielded: yielded}, &r)
		return r, err
	}
	var members []dataplane.CSID
	for _, m := range conf.Members {
		if m.CS != sick.id {
			members = append(members, m.CS)
		}
	}
	without := &control.ReconfigureReq{Chunk: conf.Chunk, Epoch: conf.Epoch, Members: members}
	if r, err := beat(false); err != nil || r.Yield || r.LeaseNs == 0 {
		t.Fatalf("well: %+v, %v", r, err)
	}
	head.wantKind(dataplane.NotReady, control.OpReconfigure, without)
	led := time.Now()
	eventually(t, "the leader has led for a lease time: it judges nobody before", func() bool {
		if _, err := beat(false); err != nil {
			t.Fatal(err)
		}
		return time.Since(led) > leaseOut
	})
	stall = int64(1500 * time.Millisecond)
	started := time.Now()
	eventually(t, "it is asked to yield", func() bool {
		r, err := beat(false)
		if err != nil {
			t.Fatal(err)
		}
		return r.Yield && r.LeaseNs == 0
	})
	if r, err := beat(true); err != nil || !r.Yield {
		t.Errorf("yielded: %+v, %v", r, err)
	}
	head.must(control.OpReconfigure, without, &conf)
	t.Logf("excluded %v after it was said that it hangs", time.Since(started))
	if time.Since(started) > time.Second {
		t.Error("that took too long")
	}
	var stat control.StatDoc
	admin := c.client(dataplane.RoleAdmin, 9, nil)
	admin.admin(control.AdminStat, nil, &stat)
	if s := stat.CS[sick.id-1]; s.Status != control.CSIll ||
		!strings.Contains(s.Reason, "hasn't got on") {
		t.Errorf("stat says %q, %q", s.Status, s.Reason)
	}
	stall = 0
	back := time.Now()
	eventually(t, "it may come back", func() bool {
		_, err := beat(true)
		time.Sleep(50 * time.Millisecond)
		return dataplane.KindOf(err) == dataplane.NotFound
	})
	if d := time.Since(back); d < yieldFirst-2*time.Second {
		t.Errorf("back after %v", d)
	}
	sick.register()
	if r, err := beat(false); err != nil || r.Yield || r.LeaseNs == 0 {
		t.Errorf("back: %+v, %v", r, err)
	}
	admin.admin(control.AdminStat, nil, &stat)
	if s := stat.CS[sick.id-1]; s.Status != control.CSActive {
		t.Errorf("stat says %q, %q", s.Status, s.Reason)
	}
}

// TestLostDataIsExcluded: a server that a coordinator says has lost data is asked for its lease,
// and then is excluded; another one only some time later; both may come back.
func TestLostDataIsExcluded(t *testing.T) {
	c := newTestCluster(t, 1)
	k := c.client(dataplane.RoleClient, 7, nil)
	servers := map[dataplane.CSID]*testCS{}
	for n := range byte(3) {
		s := c.newCS(n + 1)
		servers[s.id] = s
	}
	conf := oneChunk(t, k)
	head, liar, third := servers[conf.Members[0].CS], servers[conf.Members[1].CS],
		servers[conf.Members[2].CS]
	beat := func(s *testCS, yielded bool) (r control.HeartbeatReply, err error) {
		err = s.try(control.OpHeartbeat, &control.HeartbeatReq{CS: s.id, Boot: 1,
			Capacity: s.reg.Capacity, Instance: s.reg.Instance, Yielded: yielded}, &r)
		return r, err
	}
	all := func() {
		t.Helper()
		for _, s := range servers {
			if _, err := beat(s, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	without := func(lost, other *testCS, named bool) *control.ReconfigureReq {
		req := &control.ReconfigureReq{Chunk: conf.Chunk, Epoch: conf.Epoch,
			Members: []dataplane.CSID{head.id, other.id}}
		if named {
			req.Lost = []dataplane.CSID{lost.id}
		}
		return req
	}
	tooMany := without(liar, third, true)
	tooMany.Lost = make([]dataplane.CSID, dataplane.MaxReplicas+1)
	head.wantKind(dataplane.Invalid, control.OpReconfigure, tooMany)
	led := time.Now()
	eventually(t, "the leader has led for a lease time", func() bool {
		all()
		return time.Since(led) > leaseOut
	})
	head.wantKind(dataplane.NotReady, control.OpReconfigure, without(liar, third, false))
	if r, err := beat(liar, false); err != nil || r.Yield {
		t.Fatalf("asked for its lease though nobody said that it lost anything: %+v, %v", r, err)
	}
	head.wantKind(dataplane.NotReady, control.OpReconfigure, without(liar, third, true))
	if r, err := beat(liar, false); err != nil || !r.Yield || r.LeaseNs != 0 {
		t.Fatalf("not asked for its lease: %+v, %v", r, err)
	}
	head.wantKind(dataplane.NotReady, control.OpReconfigure, without(liar, third, true))
	head.wantKind(dataplane.NotReady, control.OpReconfigure, without(third, liar, true))
	if r, err := beat(third, false); err != nil || r.Yield {
		t.Errorf("two at once are asked for their leases: %+v, %v", r, err)
	}
	if r, err := beat(liar, true); err != nil || !r.Yield {
		t.Errorf("yielded: %+v, %v", r, err)
	}
	var stat control.StatDoc
	admin := c.client(dataplane.RoleAdmin, 9, nil)
	admin.admin(control.AdminStat, nil, &stat)
	if s := stat.CS[liar.id-1]; s.Status != control.CSIll || !strings.Contains(s.Reason, "lost data") {
		t.Errorf("stat says %q, %q", s.Status, s.Reason)
	}
	head.must(control.OpReconfigure, without(liar, third, true), &conf)
	if len(conf.Members) != 2 || conf.Epoch != 2 {
		t.Fatalf("excluded: %+v", conf)
	}
	eventually(t, "it may come back", func() bool {
		_, err := beat(liar, true)
		for _, s := range []*testCS{head, third} {
			if _, err := beat(s, false); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(50 * time.Millisecond)
		return dataplane.KindOf(err) == dataplane.NotFound
	})
	liar.register()
	if r, err := beat(liar, false); err != nil || r.Yield || r.LeaseNs == 0 {
		t.Errorf("back: %+v, %v", r, err)
	}
	eventually(t, "the next one is asked for its lease", func() bool {
		head.wantKind(dataplane.NotReady, control.OpReconfigure, &control.ReconfigureReq{
			Chunk: conf.Chunk, Epoch: conf.Epoch, Members: []dataplane.CSID{head.id},
			Lost: []dataplane.CSID{third.id}})
		r, err := beat(third, false)
		_, _ = beat(head, false)
		time.Sleep(50 * time.Millisecond)
		return err == nil && r.Yield
	})
}

// TestSuspectBesideExcluded: a server that was excluded keeps others from being excluded until some
// seconds after its lease has ended, whether its disk hangs for ever or it isn't heard of any more.
func TestSuspectBesideExcluded(t *testing.T) {
	const gone, hung, servers dataplane.CSID = 1, 2, 4
	for _, beats := range []bool{true, false} {
		h, now, leased := newHealth(), int64(1), true
		live := func(cs dataplane.CSID) bool { return cs != gone || leased }
		turn := func(want dataplane.CSID, when string) {
			t.Helper()
			for cs := gone; cs <= servers; cs++ {
				req := &control.HeartbeatReq{CS: cs}
				if cs <= hung {
					req.StallNs = int64(stallAfter) + int64(servers-cs)
				}
				if cs != gone || beats {
					h.report(cs, req, now)
				}
			}
			h.step(now, live)
			if got := h.suspect(now, live); got != want {
				t.Errorf("the excluded one's heartbeats come: %v; %s: cs %d is suspected, want %d", beats,
					when, got, want)
			}
		}
		for cs := gone; cs <= servers; cs++ {
			h.report(cs, &control.HeartbeatReq{CS: cs}, now)
		}
		h.at(gone).ask(now)
		turn(0, "just asked")
		now += int64(time.Minute)
		turn(0, "it has its lease yet")
		leased = false
		turn(0, "its lease has ended")
		now += int64(awayFor) - 1
		turn(0, "its lease has ended lately")
		now++
		turn(hung, "away for long enough")
		h.at(hung).ask(now)
		turn(0, "the second one was asked")
		leased = true
		h.at(gone).asked = false
		h.at(hung).asked = false
		h.at(gone).ask(now)
		turn(0, "asked once more")
	}
}

// TestWouldLackWithoutTwo: who is being excluded isn't counted as a member that is left.
func TestWouldLackWithoutTwo(t *testing.T) {
	c := newTestCluster(t, 1)
	k := c.client(dataplane.RoleClient, 7, nil)
	for n := range byte(3) {
		c.newCS(n + 1)
	}
	conf := oneChunk(t, k)
	l := c.nodes[0].lead.Load()
	if n := l.wouldLack(conf.Members[0].CS); n != 0 {
		t.Errorf("%d chunks would lack members without one of three", n)
	}
	l.mu.Lock()
	l.leases.at(conf.Members[1].CS).withheld = true
	l.mu.Unlock()
	if n := l.wouldLack(conf.Members[0].CS); n != 1 {
		t.Errorf("%d chunks would lack members without two of three, want 1", n)
	}
}
