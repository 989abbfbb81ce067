package mds

import (
	"fmt"
	"math"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestDrain: a server among six is removed while another is lost, and one more is added late.
func TestDrain(t *testing.T) {
	f := newFleet(t, 1)
	for i := range 6 {
		f.add(fmt.Sprint("h", i), "", 0, 100)
	}
	f.fill(120, control.Policy{Replicas: 3, Minimum: 2, Domain: DomainHost})
	f.run("nothing to do", time.Minute, f.quiet)
	if f.copies != 0 {
		t.Fatalf("moved without a reason: %s", f)
	}
	out, lost := f.cs[2], f.cs[5]
	out.Releasing, lost.live, lost.silentNs = true, false, f.now-int64(time.Hour)
	f.refresh()
	f.m.wake()
	onLost := func() (n int) {
		for _, r := range f.list {
			if r.has(lost.ID) || r.Present < 3 {
				n++
			}
		}
		return n
	}
	before := out.chunks
	for onLost() > 0 {
		// Recovery comes first: nothing moves while a chunk waits for its turn.
		moves := f.r.moves
		if f.step(); len(f.r.queue) > 0 && f.r.moves > moves {
			t.Fatalf("a move began beside a queue of recovery: %s", f)
		}
		if f.now > int64(10*time.Minute) {
			t.Fatalf("not recovered: %s", f)
		}
	}
	took := f.run("drain", 10*time.Minute, func() bool { return out.chunks == 0 })
	t.Logf("%d chunks drained, the last %v after recovery: %s", before, took, f)
	f.run("quiet", time.Minute, f.quiet)
	f.apart()
}

// TestDrainWithoutPlace: three servers, three copies: nothing can leave until one is added.
func TestDrainWithoutPlace(t *testing.T) {
	f := newFleet(t, 2)
	for i := range 3 {
		f.add(fmt.Sprint("h", i), "", 0, 100)
	}
	f.fill(30, control.Policy{Replicas: 3, Minimum: 2, Domain: DomainHost})
	f.cs[1].Releasing = true
	f.refresh()
	f.m.wake()
	f.run("quiet", time.Minute, f.quiet)
	if d := f.m.drains[1]; d.noPlace != 30 || f.copies != 0 {
		t.Fatalf("%+v: %s", d, f)
	}
	f.add("h9", "", 0, 100)
	f.run("drain", 5*time.Minute, func() bool { return f.cs[1].chunks == 0 })
	f.cs[1].Releasing = false
	f.refresh()
	f.m.wake()
	f.run("quiet", 20*time.Minute, f.quiet)
	t.Log(f)
}

// TestDrainOfOnlyCopies: chunks of one copy move as others do, and never to where they are.
func TestDrainOfOnlyCopies(t *testing.T) {
	f := newFleet(t, 4)
	for i := range 3 {
		f.add(fmt.Sprint("h", i), "", 0, 100)
	}
	f.fill(30, control.Policy{Replicas: 1, Minimum: 1, Domain: DomainHost})
	out := f.cs[2]
	out.Releasing = true
	f.refresh()
	f.m.wake()
	before := out.chunks
	f.run("drain", 5*time.Minute, func() bool { return out.chunks == 0 })
	if before == 0 || f.copies < int(before) {
		t.Fatalf("%d chunks left, %s", before, f)
	}
	f.run("quiet", time.Minute, f.quiet)
}

// TestMend: chunks placed on two hosts get apart when a third is there.
func TestMend(t *testing.T) {
	f := newFleet(t, 3)
	f.add("a", "r1", 0, 100)
	f.add("a", "r1", 0, 100)
	f.add("b", "r1", 0, 100)
	f.fill(40, control.Policy{Replicas: 3, Minimum: 2, Domain: DomainHost})
	f.run("quiet", time.Minute, f.quiet)
	if f.copies != 0 {
		t.Fatalf("moved without a better place: %s", f)
	}
	f.add("c", "r2", 0, 100)
	f.run("quiet", 10*time.Minute, f.quiet)
	f.apart()
	if f.copies < 40 {
		t.Errorf("%d moves for 40 chunks", f.copies)
	}
}

// TestMendInSteps: with fewer racks than copies no chunk gets its members further apart, and each
// look for a place is one at all servers. The state and the leader are locked meanwhile.
func TestMendInSteps(t *testing.T) {
	f := newFleet(t, 3)
	for i := range 1000 {
		f.add(fmt.Sprint("h", i), fmt.Sprint("room/row/rack", i%2), 0, 100)
	}
	f.fill(scanPerStep, control.Policy{Replicas: 3, Minimum: 2, Domain: DomainRack})
	f.refresh()
	began := time.Now()
	if o := f.m.step(f.now, f, f.r, &f.view, nil); len(o) != 0 {
		t.Fatalf("moved without a better place: %+v", o)
	}
	t.Logf("%d chunks in %v", f.m.cursor, time.Since(began))
	if f.m.cursor > 2*movesJudged {
		t.Errorf("%d chunks in one step, with a look at %d servers for each", f.m.cursor,
			len(f.view.nodes))
	}
	f.run("a round", 10*time.Minute, func() bool { return f.m.end == 0 })
}

// potential is what each move for balance lowers: see balance.go.
func (f *fleet) potential() (sum float64) {
	for _, c := range f.cs[1:] {
		u := float64(c.chunks) * dataplane.ChunkSize
		sum += u * u / float64(c.Capacity)
	}
	return sum
}

// gap is the difference between the fullest and the emptiest server.
func (f *fleet) gap() float64 {
	low, high := 1.0, 0.0
	for _, c := range f.cs[1:] {
		share := float64(c.chunks*dataplane.ChunkSize) / float64(c.Capacity)
		low, high = min(low, share), max(high, share)
	}
	return high - low
}

// TestBalanceEnds adds empty servers to clusters of many sizes and shapes: balancing ends with
// servers about evenly full, each move makes it more even, and there are hardly more moves than the
// new servers get chunks.
func TestBalanceEnds(t *testing.T) {
	sizes := []int{10, 25, 60}
	if !testing.Short() {
		sizes = append(sizes, 120, 200)
	}
	for _, servers := range sizes {
		t.Run(fmt.Sprint(servers), func(t *testing.T) { balanceEnds(t, servers) })
	}
}

func balanceEnds(t *testing.T, servers int) {
	f := newFleet(t, uint64(servers))
	f.slow = 100 * time.Millisecond
	add := func(i int) *fleetCS {
		return f.add(fmt.Sprint("h", i/2), fmt.Sprintf("/r%d", i%7), 0, uint64(100+f.rng.IntN(200)))
	}
	room := uint64(0)
	for i := range servers {
		room += add(i).Capacity / dataplane.ChunkSize
	}
	f.fill(int(float64(room)*0.7/3), control.Policy{Replicas: 3, Minimum: 2, Domain: DomainHost})
	f.run("quiet", time.Hour, f.quiet)
	start := f.copies
	var fresh []*fleetCS
	for i := range max(1, servers/10) {
		fresh = append(fresh, add(servers+2*i))
	}
	last := f.potential()
	f.run("balance", 3*time.Hour, func() bool {
		copies := f.copies
		f.settle()
		if now := f.potential(); f.copies > copies && now >= last {
			t.Fatalf("a move made it less even: %g, was %g: %s", now, last, f)
		} else {
			last = now
		}
		return len(f.busy) == 0 && f.quiet()
	})
	got := uint64(0)
	for _, c := range fresh {
		got += c.chunks
	}
	t.Logf("%d moves, the new servers hold %d; gap %.3f", f.copies-start, got, f.gap())
	if f.gap() > balanceStart {
		t.Errorf("still uneven by %.3f: %s", f.gap(), f)
	}
	if moves := f.copies - start; float64(moves) > 1.3*float64(got)+10 {
		t.Errorf("%d moves for %d chunks on the new servers", moves, got)
	}
	f.apart()
}

// TestBalanceRests: what failure domains don't allow to be even isn't tried again and again.
func TestBalanceRests(t *testing.T) {
	f := newFleet(t, 7)
	f.add("a", "", 0, 100)
	f.add("b", "", 0, 100)
	f.add("c", "", 0, 100)
	f.add("c", "", 0, 100)
	f.fill(60, control.Policy{Replicas: 3, Minimum: 2, Domain: DomainHost})
	f.run("quiet", time.Hour, f.quiet)
	if f.gap() < balanceStart {
		t.Fatalf("the hosts a and b can't but be fuller than the servers of c: %s", f)
	}
	_, _, on := f.m.balance.levels()
	if on {
		t.Error("balancing goes on though no move helps")
	}
	f.m.balance.paused = true
	f.add("d", "", 0, 100)
	f.run("paused", time.Hour, f.quiet)
	if f.cs[5].chunks != 0 {
		t.Errorf("moved though it is paused: %s", f)
	}
	f.m.balance.paused = false
	f.run("goes on", time.Hour, func() bool { return f.cs[5].chunks > 20 && f.quiet() })
	f.apart()
}

// TestTiersStayApart: a tier is balanced by itself.
func TestTiersStayApart(t *testing.T) {
	f := newFleet(t, 8)
	for i := range 4 {
		f.add(fmt.Sprint("h", i), "", 0, 100)
	}
	f.fill(80, control.Policy{Replicas: 3, Minimum: 2, Domain: DomainHost})
	f.add("h8", "", 1, 1000)
	f.run("quiet", time.Hour, f.quiet)
	if f.copies != 0 {
		t.Errorf("moved to another tier: %s", f)
	}
}

// TestSpread compares the two ways in which domains are told apart.
func TestSpread(t *testing.T) {
	f := newFleet(t, 9)
	for i := range 30 {
		f.add(fmt.Sprint("h", i%11), fmt.Sprintf("m%d/w%d/k%d", i%2, i%3, i%5), 0, 10)
	}
	for level := DomainDisk; level <= DomainRoom; level++ {
		for a := range f.view.nodes {
			for b := range f.view.nodes {
				same := sameDomain(&f.cs[a+1].CS, &f.cs[b+1].CS, level)
				if got := f.view.nodes[a].domain[level] == f.view.nodes[b].domain[level]; got != same {
					t.Fatalf("level %d, %d and %d: %v and %v", level, a, b, got, same)
				}
			}
		}
	}
	if g := f.gap(); math.IsNaN(g) {
		t.Error(g)
	}
}

// largeTable is a fleet's, with so many slots that a round takes many steps.
type largeTable struct {
	*fleet
	size uint64
}

func (f largeTable) slots() uint64          { return f.size }
func (f largeTable) at(slot uint64) *Record { return nil }

// TestMoverRests: rounds over a large table in which nothing is to do take a fifth of the time, and
// one begins at once when something has changed.
func TestMoverRests(t *testing.T) {
	f := newFleet(t, 1)
	f.add("h", "", 0, 10)
	const steps = 400 // of a round
	w := largeTable{f, steps * scanPerStep}
	busy := 0
	step := func() {
		f.now += int64(leaderTick)
		before := f.m.cursor
		f.m.step(f.now, w, f.r, &f.view, nil)
		if f.m.cursor != before {
			busy++
		}
	}
	for range 10 * steps {
		step()
	}
	if busy < 2*steps-2 || busy > 2*steps+steps/10 {
		t.Errorf("%d of %d steps are of a round, not about %d", busy, 10*steps, 2*steps)
	}
	f.m.wake()
	busy = 0
	step()
	if busy != 1 {
		t.Error("nothing is looked at after something has changed")
	}
}
