package mds

import (
	"slices"
	"time"

	"pstorage/dataplane"
)

// Who is the head of a chunk is changed for two reasons, always by a settling that the new head
// coordinates, in an epoch of its own or in that of an exclusion:
//
//   - The client that writes can't reach the head, though the metadata servers can, and nothing
//     else is wrong with it. The next member that this client isn't known to be cut off from leads.
//   - A server was lost. The members that are left of each of its chunks are chosen from in such a
//     way that heads, which make the new copies, are spread evenly.
const (
	cutFresh  = 1500 * time.Millisecond // a report that isn't repeated for so long doesn't count
	cutMemory = 10 * time.Second        // a member that couldn't be reached isn't tried for so long
)

// cutOff is a member that clients say they can't reach.
type cutOff struct {
	cs              dataplane.CSID
	firstNs, lastNs int64 // of reports without a pause
}

// cannotReach notes that a client can't reach a member.
func (p *planner) cannotReach(chunk dataplane.ChunkID, cs dataplane.CSID, nowNs int64) {
	t := p.byChunk[chunk]
	if t == nil {
		return // there are too many
	}
	t.cut = slices.DeleteFunc(t.cut, func(c cutOff) bool {
		return nowNs-c.lastNs > int64(cutMemory)
	})
	for i := range t.cut {
		c := &t.cut[i]
		if c.cs != cs {
			continue
		}
		if nowNs-c.lastNs > int64(cutFresh) {
			c.firstNs = nowNs
		}
		c.lastNs = nowNs
		return
	}
	if len(t.cut) < dataplane.MaxReplicas {
		t.cut = append(t.cut, cutOff{cs, nowNs, nowNs})
	}
}

// newHead returns the member that is to lead in place of the head, as a client can't reach that
// one; 0: the head stays. Nobody is lost. The head must have been heard of after the client began
// to complain, and the client must have complained after that: so it isn't the head that is gone.
func (t *trouble) newHead(nowNs int64, members []Replica, facts []memberFacts,
	w planView) int {
	i := slices.IndexFunc(t.cut, func(c cutOff) bool { return c.cs == members[0].CS })
	if i < 0 {
		return 0
	}
	c := t.cut[i]
	heard, _ := w.heard(c.cs)
	if nowNs-c.lastNs > int64(cutFresh) || heard <= c.firstNs || heard >= c.lastNs {
		return 0
	}
	for k := 1; k < len(members); k++ {
		if facts[k].live && !slices.ContainsFunc(t.cut, func(c cutOff) bool {
			return c.cs == members[k].CS
		}) {
			return k
		}
	}
	return 0
}

// spread chooses who coordinates an exclusion, and is the head from then on: of the members that
// are there, the one that was chosen the least since there are exclusions; first, if that makes no
// difference.
func (p *planner) spread(t *trouble, members []Replica, facts []memberFacts, first int) int {
	if t.pushNs != 0 && t.pushTo == members[first].CS {
		return first
	}
	best := first
	for i, m := range members {
		if !facts[i].live || facts[i].lost() {
			continue
		}
		if t.pushNs != 0 && t.pushTo == m.CS {
			return i // who was asked before
		}
		if p.leads[m.CS] < p.leads[members[best].CS] {
			best = i
		}
	}
	p.leads[members[best].CS]++
	return best
}
