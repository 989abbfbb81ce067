package mds

import (
	"fmt"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// recoverFacts lets the recoverer see the state. Both locks are held, fsm.mu for reading.
type recoverFacts struct{ planFacts }

func (w recoverFacts) slots() uint64          { return w.s.table.Slots() }
func (w recoverFacts) at(slot uint64) *Record { return w.s.table.At(slot) }

func (w recoverFacts) lost(cs dataplane.CSID) lostFacts {
	c := w.s.server(cs)
	if c == nil || c.Dropped || c.Failed != "" {
		return lostFacts{dead: true}
	}
	e := w.l.leases.at(cs)
	return lostFacts{live: w.takes(cs), dead: e.failed,
		silent: time.Duration(w.nowNs - e.answeredNs)}
}

// takes says whether a server can become a member of one more chunk.
func (w recoverFacts) takes(cs dataplane.CSID) bool {
	c := w.s.server(cs)
	return c != nil && !c.Dropped && c.Failed == "" && !c.Fenced && w.l.leases.live(cs, w.nowNs) &&
		w.l.leases.at(cs).registering == 0
}

func (w recoverFacts) place(rec *Record) dataplane.CSID {
	w.l.refreshView(w.s)
	view := &w.l.view
	var chosen [dataplane.MaxReplicas]int
	n := 0
	for _, m := range rec.members() {
		for i := range view.nodes {
			if view.nodes[i].cs == m.CS {
				chosen[n] = i
				n++
			}
		}
	}
	if n < int(rec.Present) {
		return 0
	}
	i, _ := view.next(control.Policy{Replicas: rec.Wanted, Minimum: rec.Minimum,
		Domain: rec.Domain, Tier: rec.Tier}, chosen[:n])
	if i < 0 {
		return 0
	}
	view.nodes[i].free -= dataplane.ChunkSize
	return view.nodes[i].cs
}

// pushRecoveries has heads copy their chunks, as the recoverer says.
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
	pushes := make(map[dataplane.CSID]*control.RecoverPush)
	for _, o := range l.recover.step(now, recoverFacts{planFacts{l, f.s, now}}, nil) {
		rec := f.s.table.Lookup(o.chunk)
		p := pushes[o.source]
		if p == nil {
			p = &control.RecoverPush{}
			pushes[o.source] = p
		}
		p.Chunks = append(p.Chunks, l.config(f.s, rec, now))
		p.Targets = append(p.Targets, l.addr(f.s, o.target, now))
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
func (c *call) checkAdded(s *State, rec *Record, members []dataplane.CSID, nowNs int64) (
	added []dataplane.CSID, err error) {
	w := recoverFacts{planFacts{c.l, s, nowNs}}
	for _, m := range members {
		if rec.has(m) {
			continue
		}
		if !w.takes(m) {
			return nil, c.fail(dataplane.NotReady, "CS %d can't become a member of chunk %v now: it "+
				"has no lease, or is registering", m, rec.ID)
		}
		added = append(added, m)
	}
	return added, nil
}

// recoveryReasons says in words what becomes of chunks with too few members.
func (l *leader) recoveryReasons(d *control.StatDoc) {
	l.mu.Lock()
	s := l.recover.report()
	offline := l.recover.offline
	l.mu.Unlock()
	d.Chunks.Recovering, d.Chunks.Recovered = s.active, s.done
	if d.Chunks.Degraded == 0 {
		return
	}
	say := func(n uint64, format string, args ...any) {
		if n > 0 {
			d.Reasons = append(d.Reasons, fmt.Sprintf(format, append([]any{n}, args...)...))
		}
	}
	say(s.active, "%d chunks are being copied to another server")
	say(s.queued, "%d chunks wait for their turn to be copied")
	say(s.waiting, "%d chunks wait for a server that is away; after %v they are copied to others",
		offline)
	say(s.settling,
		"%d chunks can't be copied yet: a member doesn't answer and must be excluded first")
	say(s.noPlace, "%d chunks can't be copied: no other server that is online has room")
	say(s.failed, "%d copies were given up and begun again")
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
