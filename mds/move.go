package mds

import (
	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// Chunks that have all their copies move when a server is being removed (drain), when members share
// a failure domain though there is a better place (mend), and when servers aren't evenly full
// (balance). A move is a copy to a new member that replaces another one in one change of the
// configuration, so there are never fewer copies than before.
//
// Recovery comes first: nothing begins to move while a degraded chunk waits for its turn.

// moveKind is why a chunk moves. Lower ones come first.
type moveKind uint8

const (
	moveNone moveKind = iota
	moveDrain
	moveMend
	moveBalance
	moveKinds
)

// Limits and times of moves.
const (
	movesTotal    = 16   // mends and balancing, in all; drains are bounded like recovery
	movesPerCS    = 1    // mends and balancing, as the head that copies, and as the target
	movesJudged   = 512  // chunks in one step for which a place is looked for among all servers
	movePause     = 100  // ms between two rounds while something waits for its turn
	moveIdlePause = 2000 // ms between two rounds in which nothing was to do, at least
	moveRest      = 4    // such a pause is that many times as long as the round, if that is more
)

// moveVerdict is what to do about a chunk that is whole.
type moveVerdict struct {
	kind    moveKind
	leaving int  // index of a node
	target  int  // likewise; -1: there is no place
	whole   bool // it has all members, and all are there
}

// drainCounts are the chunks of a server that is being removed, as seen in a round.
type drainCounts struct{ noPlace, waiting uint64 }

// mover looks for chunks to move, roaming over the table, and has as many of them moved as the
// limits allow. It is soft state of a leader, and pure. Not safe for concurrent use.
type mover struct {
	balance *balancer
	cursor  uint64
	end     uint64
	beganNs int64 // the round
	nextNs  int64
	budget  int            // of this step
	waits   bool           // something in the round waits for its turn
	began   [moveKinds]int // in the round

	drains map[dataplane.CSID]drainCounts // of the last round
	seen   map[dataplane.CSID]drainCounts // of this one
}

func newMover() *mover {
	return &mover{balance: newBalancer(), drains: make(map[dataplane.CSID]drainCounts),
		seen: make(map[dataplane.CSID]drainCounts)}
}

// wake begins the next round at once: something has changed.
func (m *mover) wake() { m.nextNs = 0 }

// step begins moves and appends what to ask for to out. p has all servers that are there, also
// those that take nothing, and counts what is under way.
func (m *mover) step(nowNs int64, w recoverView, r *recoverer, p *placer,
	out []recoverOrder) []recoverOrder {
	if len(r.queue) > 0 || r.moves >= r.limits.total {
		return out
	}
	if m.end == 0 {
		if nowNs < m.nextNs {
			return out
		}
		m.cursor, m.end, m.waits, m.began = 0, w.slots(), false, [moveKinds]int{}
		m.beganNs = nowNs
		clear(m.seen)
		m.balance.begin(p.nodes)
	}
	m.budget = movesJudged
	for range scanPerStep {
		if m.cursor >= m.end || r.moves >= r.limits.total || m.budget < 0 {
			break
		}
		rec := w.at(m.cursor)
		m.cursor++
		if rec == nil || r.active[rec.ID] != nil || nowNs < r.backoff[rec.ID] {
			continue
		}
		if o, ok := m.try(nowNs, rec, r, p, w); ok {
			out = append(out, o)
		}
	}
	if m.cursor >= m.end {
		m.endRound(nowNs, r)
	}
	return out
}

func (m *mover) endRound(nowNs int64, r *recoverer) {
	m.end = 0
	m.drains, m.seen = m.seen, m.drains
	pause := int64(moveIdlePause * 1e6)
	switch {
	case m.waits || m.began != [moveKinds]int{} || r.moves > 0:
		pause = movePause * 1e6
	case len(m.drains) > 0: // what waits there is told anew in each round
		m.balance.still()
	default:
		m.balance.still()
		pause = max(pause, moveRest*(nowNs-m.beganNs))
	}
	m.nextNs = nowNs + pause
}

// try moves a chunk, if there is a reason and the limits allow it.
func (m *mover) try(nowNs int64, rec *Record, r *recoverer, p *placer, w recoverView) (
	o recoverOrder, ok bool) {
	v := m.judge(rec, w, r, p)
	if v.kind == moveNone {
		return o, false
	}
	leaving := p.nodes[v.leaving].cs
	c := m.seen[leaving]
	switch {
	case v.kind == moveDrain && !v.whole:
		c.waiting++
		m.seen[leaving] = c
		return o, false
	case v.target < 0:
		c.noPlace++
		m.seen[leaving] = c
		return o, false
	}
	source, target := rec.members()[0].CS, p.nodes[v.target].cs
	limit, total := r.limits.perCS, r.limits.total
	if v.kind != moveDrain {
		limit, total = movesPerCS, min(movesTotal, total)
	}
	if r.load[source][0] >= limit || r.load[target][1] >= limit || r.moves >= total {
		m.waits = true
		return o, false
	}
	m.began[v.kind]++
	p.nodes[v.target].take()
	p.nodes[v.leaving].chunks--
	return r.begin(rec.ID, recovery{source: source, target: target, leaving: leaving, kind: v.kind,
		epoch: rec.Epoch}, nowNs), true
}

// judge says whether a chunk is to move, who leaves and where to.
func (m *mover) judge(rec *Record, w recoverView, r *recoverer, p *placer) moveVerdict {
	var space [dataplane.MaxReplicas]int
	leaves, live := -1, 0
	for _, k := range rec.members() {
		if w.live(k.CS) {
			live++
		}
		if i := p.indexOf(k.CS); i >= 0 && p.nodes[i].leaves && leaves < 0 {
			leaves = i
		}
	}
	at, known := p.locate(rec, space[:0])
	if !known || live < len(at) || len(at) < int(rec.Wanted) {
		if leaves >= 0 {
			return moveVerdict{kind: moveDrain, leaving: leaves, target: -1}
		}
		return moveVerdict{}
	}
	v := moveVerdict{leaving: leaves, target: -1, whole: true}
	if leaves >= 0 {
		v.kind = moveDrain
		m.budget--
		v.target, _ = p.next(policyOf(rec), without(at, leaves))
		return v
	}
	if before := spreadOf(p.nodes, at); !before.full(rec.Domain, len(at)) {
		m.budget--
		if v = mend(rec, at, before, p); v.kind != moveNone {
			return v
		}
	}
	if r.moves >= movesTotal || r.load[rec.members()[0].CS][0] >= movesPerCS {
		m.waits = m.waits || m.balance.any()
		return moveVerdict{}
	}
	if m.balance.any() {
		m.budget--
	}
	return m.balance.judge(rec, at, p)
}

func policyOf(rec *Record) control.Policy {
	return control.Policy{Replicas: rec.Wanted, Minimum: rec.Minimum, Domain: rec.Domain,
		Tier: rec.Tier}
}

// without returns the indices without i. It may be used until the next call with the same list.
func without(at []int, i int) []int {
	var rest [dataplane.MaxReplicas]int
	list := rest[:0]
	for _, k := range at {
		if k != i {
			list = append(list, k)
		}
	}
	return list
}

// mend looks for a move that gets the members further apart than before. The head stays if another
// one will do.
func mend(rec *Record, at []int, before spread, p *placer) moveVerdict {
	best, found := before, moveVerdict{}
	for k := len(at) - 1; k >= 0; k-- {
		rest := without(at, at[k])
		t, _ := p.next(policyOf(rec), rest)
		if t < 0 || p.nodes[t].busy {
			continue
		}
		after := spreadOf(p.nodes, append(rest, t))
		if after.compare(best, rec.Domain) > 0 {
			best = after
			found = moveVerdict{kind: moveMend, leaving: at[k], target: t, whole: true}
		}
	}
	return found
}
