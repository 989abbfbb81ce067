package mds

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// fleet is a model of a cluster for the recoverer and the mover: servers that come and go, chunks,
// and heads that do what they are asked for, after a while.
type fleet struct {
	t      *testing.T
	rng    *rand.Rand
	now    int64
	cs     []*fleetCS // by id; 0: nil
	list   []*Record
	r      *recoverer
	m      *mover
	view   placer
	busy   []fleetJob
	copies int
	slow   time.Duration // a copy takes
}

type fleetCS struct {
	CS
	live     bool
	silentNs int64
	chunks   uint64
}

type fleetJob struct {
	recoverOrder
	epoch dataplane.Epoch
	atNs  int64
}

func newFleet(t *testing.T, seed uint64) *fleet {
	f := &fleet{t: t, rng: rand.New(rand.NewPCG(seed, 5)), now: 1, cs: []*fleetCS{nil},
		r: newRecoverer(time.Minute), m: newMover(), slow: 700 * time.Millisecond}
	f.view.rng = f.rng
	return f
}

func (f *fleet) add(host, location string, tier uint8, chunks uint64) *fleetCS {
	c := &fleetCS{live: true, CS: CS{ID: dataplane.CSID(len(f.cs)), Host: host, Location: location,
		Tier: tier, Capacity: chunks * dataplane.ChunkSize}}
	f.cs = append(f.cs, c)
	f.refresh()
	f.m.wake()
	return c
}

func (f *fleet) refresh() {
	d := domainsOf{ids: map[string]uint32{}}
	f.view.nodes = f.view.nodes[:0]
	for _, c := range f.cs[1:] {
		if c.live && !c.Dropped {
			f.view.nodes = append(f.view.nodes, node{cs: c.ID, tier: c.Tier, domain: d.of(&c.CS),
				size: c.Capacity, free: c.Capacity - c.chunks*dataplane.ChunkSize, chunks: c.chunks,
				leaves: c.Releasing, closed: c.Releasing})
		}
	}
	f.view.reindex()
	for _, a := range f.r.active {
		if i := f.view.indexOf(a.target); i >= 0 && f.view.nodes[i].free >= dataplane.ChunkSize {
			f.view.nodes[i].take()
		}
		if i := f.view.indexOf(a.leaving); i >= 0 {
			f.view.nodes[i].chunks--
		}
	}
}

func (f *fleet) fill(n int, pol control.Policy) {
	for range n {
		p, err := f.view.place(pol, uint32(len(f.list)))
		if err != nil {
			f.t.Fatal(err)
		}
		r := &Record{ID: dataplane.NewChunkID(1, uint64(len(f.list))), File: 1, Epoch: 1,
			State: stateUsed, Flags: flagCreated, Wanted: pol.Replicas, Minimum: pol.Minimum,
			Domain: pol.Domain, Tier: pol.Tier}
		r.setMembers(p.members[:p.n])
		f.list = append(f.list, r)
		f.counts(r, 1)
	}
}

func (f *fleet) counts(r *Record, by int) {
	for _, m := range r.members() {
		f.cs[m.CS].chunks += uint64(by)
	}
}

// fleet is a recoverView.
func (f *fleet) chunk(id dataplane.ChunkID) *Record { return f.list[id.Slot()] }
func (f *fleet) slots() uint64                      { return uint64(len(f.list)) }
func (f *fleet) at(slot uint64) *Record             { return f.list[slot] }
func (f *fleet) live(cs dataplane.CSID) bool        { return f.cs[cs].live }
func (f *fleet) gone(cs dataplane.CSID) bool        { return !f.cs[cs].live }
func (f *fleet) broken(cs dataplane.CSID) bool      { return f.cs[cs].Dropped }
func (f *fleet) heard(cs dataplane.CSID) (int64, int64) {
	return f.cs[cs].silentNs, 0
}

func (f *fleet) member(cs dataplane.CSID) lostFacts {
	c := f.cs[cs]
	return lostFacts{live: c.live, dead: c.Dropped || c.Releasing,
		silent: time.Duration(f.now - c.silentNs)}
}

func (f *fleet) former(cs dataplane.CSID) lostFacts {
	l := f.member(cs)
	l.live = l.live && !l.dead
	return l
}

func (f *fleet) place(rec *Record) dataplane.CSID {
	var space [dataplane.MaxReplicas]int
	at, ok := f.view.locate(rec, space[:0])
	if !ok {
		return 0
	}
	i, _ := f.view.next(policyOf(rec), at)
	if i < 0 {
		return 0
	}
	f.view.nodes[i].take()
	return f.view.nodes[i].cs
}

// step lets 25 ms pass.
func (f *fleet) step() {
	f.now += 25e6
	f.settle()
	if f.r.changed {
		f.r.changed = false
		f.refresh()
	}
	orders := f.r.step(f.now, f, nil)
	for _, n := range f.r.excludeSome(10) {
		f.reconfigure(f.chunk(n.chunk), func(cs dataplane.CSID) bool { return f.cs[cs].live }, 0)
	}
	orders = f.m.step(f.now, f, f.r, &f.view, orders)
	for _, o := range orders {
		f.busy = append(f.busy, fleetJob{o, f.chunk(o.chunk).Epoch,
			f.now + f.rng.Int64N(int64(2*f.slow)) + 1})
	}
}

// settle ends the copies that are done by now.
func (f *fleet) settle() {
	keep := f.busy[:0]
	for _, j := range f.busy {
		rec := f.chunk(j.chunk)
		if rec.Epoch != j.epoch || !f.cs[j.source].live || !f.cs[j.target].live {
			continue
		}
		if f.now < j.atNs {
			keep = append(keep, j)
			continue
		}
		f.copies++
		f.reconfigure(rec, func(cs dataplane.CSID) bool { return cs != j.leaving }, j.target)
	}
	f.busy = keep
}

// reconfigure keeps the members that stay says, and adds one.
func (f *fleet) reconfigure(rec *Record, stay func(dataplane.CSID) bool, target dataplane.CSID) {
	var members []dataplane.CSID
	for _, m := range rec.members() {
		if stay(m.CS) {
			members = append(members, m.CS)
		}
	}
	if target != 0 && !rec.has(target) {
		members = append(members, target)
	}
	if len(members) == 0 {
		f.t.Fatalf("chunk %v would have no members", rec.ID)
	}
	if target != 0 && len(members) < int(rec.Present) {
		f.t.Fatalf("chunk %v lost a copy by a move", rec.ID)
	}
	f.counts(rec, -1)
	rec.changeMembers(members)
	f.counts(rec, 1)
	rec.Epoch++
}

// run steps until ok, and fails after the time.
func (f *fleet) run(what string, limit time.Duration, ok func() bool) time.Duration {
	f.t.Helper()
	began := f.now
	for !ok() {
		if f.now-began > int64(limit) {
			f.t.Fatalf("%s: not within %v: %s", what, limit, f)
		}
		f.step()
	}
	return time.Duration(f.now - began)
}

// quiet says that nothing has begun for a time that is long enough for two rounds.
func (f *fleet) quiet() bool {
	before := f.copies
	for range 2 * (moveIdlePause/25 + 2) {
		if f.step(); len(f.busy) > 0 || f.copies != before {
			return false
		}
	}
	return true
}

func (f *fleet) String() string {
	text := fmt.Sprintf("%d active, %d moves, %d copies;", len(f.r.active), f.r.moves, f.copies)
	for _, c := range f.cs[1:] {
		text += fmt.Sprintf(" %d:%d/%d", c.ID, c.chunks, c.Capacity/dataplane.ChunkSize)
	}
	return text
}

// apart fails the test when members of a chunk share a domain, or a server has a chunk twice.
func (f *fleet) apart() {
	f.t.Helper()
	for _, r := range f.list {
		for i, m := range r.members() {
			for _, o := range r.members()[:i] {
				if sameDomain(&f.cs[m.CS].CS, &f.cs[o.CS].CS, r.Domain) {
					f.t.Fatalf("chunk %v: CS %d and %d are in one domain of level %d", r.ID, m.CS, o.CS,
						r.Domain)
				}
			}
		}
	}
}
