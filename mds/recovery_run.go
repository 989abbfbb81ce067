package mds

import (
	"runtime"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// recoverFacts lets the recoverer see the state. Both locks are held, fsm.mu for reading.
type recoverFacts struct{ planFacts }

func (w recoverFacts) slots() uint64          { return w.s.table.Slots() }
func (w recoverFacts) at(slot uint64) *Record { return w.s.table.At(slot) }

func (w recoverFacts) member(cs dataplane.CSID) lostFacts {
	c := w.s.server(cs)
	e := w.l.leases.at(cs)
	return lostFacts{live: w.live(cs),
		dead:   c == nil || c.Dropped || c.Releasing || c.Failed != "" || e.failed,
		silent: time.Duration(w.nowNs - e.answeredNs)}
}

func (w recoverFacts) former(cs dataplane.CSID) lostFacts {
	f := w.member(cs)
	f.live = w.takes(cs)
	return f
}

// takes says whether a server can become a member of one more chunk.
func (w recoverFacts) takes(cs dataplane.CSID) bool {
	c := w.s.server(cs)
	return c != nil && !c.Dropped && !c.Releasing && c.Failed == "" && !c.Fenced &&
		w.live(cs) && w.l.leases.at(cs).registering == 0
}

func (w recoverFacts) place(rec *Record) dataplane.CSID {
	w.l.refreshView(w.s)
	view := &w.l.view
	var space [dataplane.MaxReplicas]int
	chosen := space[:0]
	for _, m := range rec.members() {
		if i := view.indexOf(m.CS); i >= 0 {
			chosen = append(chosen, i)
		}
	}
	i := -1
	for range placeTries {
		k, _ := view.next(policyOf(rec), chosen)
		if k < 0 {
			break
		}
		if i < 0 || w.l.recover.load[view.nodes[k].cs][1] < w.l.recover.load[view.nodes[i].cs][1] {
			i = k
		}
	}
	if i < 0 {
		return 0
	}
	view.nodes[i].take()
	return view.nodes[i].cs
}

// placeTries is from how many good places that one is taken which gets the fewest copies now: so
// that none of them is still busy when the others are done.
const placeTries = 4

// pushRecoveries has heads copy their chunks, as the recoverer and the mover say.
func (l *leader) pushRecoveries() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if now-l.leases.sinceNs < int64(leaseOut) {
		return // who is there isn't known yet
	}
	f := l.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	l.configure(f.s)
	w := recoverFacts{planFacts{l, f.s, now}}
	l.watchServers(w)
	orders := l.recover.step(now, w, nil)
	for _, n := range l.recover.excludeSome(maxExclusions - l.plan.found) {
		l.plan.exclude(n.chunk, now)
	}
	if l.recover.changed {
		l.recover.changed, l.viewNs = false, 0
	}
	l.refreshView(f.s)
	orders = l.move.step(now, w, l.recover, &l.view, orders)
	l.pushOrders(f.s, orders, now)
	l.watchDrains(f.s, now)
	l.watchMinimum(f.s, now)
	l.watchHealth(now)
	l.watchStates(f.s, now)
}

// watchServers has a fast round begin when what recovery knows of a server has changed. Both locks
// are held.
func (l *leader) watchServers(w recoverFacts) {
	for len(l.classes) < len(w.s.cs) {
		l.classes = append(l.classes, 0)
	}
	for id, c := range w.s.cs {
		if c == nil {
			continue
		}
		m := w.member(c.ID)
		class := uint8(classKnown)
		if m.live {
			class |= classLive
		}
		if m.dead {
			class |= classDead
		}
		if m.away(l.recover.offline) {
			class |= classAway
		}
		if w.takes(c.ID) {
			class |= classTakes
		}
		if class != l.classes[id] {
			l.classes[id] = class
			l.recover.hurry = true
		}
	}
}

// What recovery knows of a server, as bits: see leader.classes.
const (
	classKnown = 1 << iota
	classLive
	classDead
	classAway
	classTakes
)

// scanTime is for how long a fast round is gone on with after one tick: until the next one, so that
// the rest of the housekeeping isn't late by more than that.
const scanTime = leaderTick

// scanOn goes on with a fast round of the recoverer, in pieces that hold the locks for a fraction
// of a millisecond.
func (l *leader) scanOn() {
	until := l.now() + int64(scanTime)
	for l.ctx.Err() == nil && l.scanPiece() && l.now() < until {
		runtime.Gosched() // let in who waits for the locks
	}
}

func (l *leader) scanPiece() (more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.recover.fast {
		return false
	}
	f := l.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	now := l.now()
	l.recover.scan(now, recoverFacts{planFacts{l, f.s, now}})
	return l.recover.fast
}

// pushOrders sends what the heads are to do. Both locks are held.
func (l *leader) pushOrders(s *State, orders []recoverOrder, now int64) {
	pushes := make(map[dataplane.CSID]*control.RecoverPush)
	for _, o := range orders {
		rec := s.table.Lookup(o.chunk)
		p := pushes[o.source]
		if p == nil {
			p = &control.RecoverPush{}
			pushes[o.source] = p
		}
		p.Chunks = append(p.Chunks, l.config(s, rec, now))
		p.Targets = append(p.Targets, l.addr(s, o.target, now))
		p.Leaving = append(p.Leaving, o.leaving)
	}
	for cs, p := range pushes {
		l.push(cs, control.OpRecover, p)
	}
	for _, cs := range l.recover.leftover {
		l.leases.at(cs).relist = true // it is told to forget what it isn't a member of
	}
	l.recover.leftover = l.recover.leftover[:0]
}

// checkAdded says what speaks against the members that a request adds. The added are then kept from
// registering until endExclusion: what a registration says about their chunks would be old. Both
// locks are held.
//
// A copy that was made for an earlier process of the target may be gone by now, as that is told to
// forget what nobody wants: so if another one registered since, the addition must be of a copy that
// was ordered after that.
func (c *call) checkAdded(s *State, rec *Record, members []dataplane.CSID, nowNs int64) (
	added []dataplane.CSID, err error) {
	w := recoverFacts{planFacts{c.l, s, nowNs}}
	for _, m := range members {
		if rec.has(m) {
			continue
		}
		if !w.takes(m) {
			return nil, c.fail(dataplane.NotReady, "CS %d can't become a member of chunk %v now: it "+
				"has no lease, is being removed, or is registering", m, rec.ID)
		}
		if c.l.leases.at(m).restarted && !c.l.recover.adds(rec.ID, rec.Epoch, m) {
			return nil, c.fail(dataplane.NotReady, "CS %d can't become a member of chunk %v with what "+
				"was copied before it was started again", m, rec.ID)
		}
		added = append(added, m)
	}
	return added, nil
}

// targetRestarted notes that a server's process is another one than before: copies to it that go
// on are asked for anew. Its registration isn't answered yet, and keeps additions away until then.
func (c *call) targetRestarted(cs dataplane.CSID) {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leases.at(cs).restarted = true
	l.recover.restarted(cs, l.now())
}

// former returns the servers that were members, and whose places nobody took.
func (r *Record) former() []Replica {
	n := int(r.Present & 15)
	for n < len(r.Replicas) && r.Replicas[n].State == replicaFormer {
		n++
	}
	return r.Replicas[r.Present&15 : n]
}

// changeMembers replaces the members and remembers those whose places are free.
func (r *Record) changeMembers(members []dataplane.CSID) {
	before := r.Replicas
	r.setMembers(members)
	n := len(members)
	for _, m := range before {
		if m.State == replicaNone || r.has(m.CS) {
			continue
		}
		if n >= int(r.Wanted) || n >= len(r.Replicas) {
			return
		}
		r.Replicas[n] = Replica{CS: m.CS, State: replicaFormer}
		n++
	}
}

// Degraded lists the chunks that have fewer members than wanted.
func (s *Sim) Degraded() (list []control.ChunkConfig) {
	for _, c := range s.Chunks() {
		if len(c.Members) < int(s.Wanted(c.Chunk)) {
			list = append(list, c)
		}
	}
	return list
}

// Wanted is how many members a chunk should have.
func (s *Sim) Wanted(id dataplane.ChunkID) uint8 {
	if rec := s.srv.r.fsm.s.table.Lookup(id); rec != nil {
		return rec.Wanted
	}
	return 0
}
