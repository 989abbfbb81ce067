package mds

import (
	"strings"

	"pstorage/dataplane"
)

// How far the members of a chunk are apart. Policies ask for different failure domains of a level;
// where there were too few, finer ones were taken (flagFallback), and moves mend that later.

// location returns what a server's location says of a level: "room/row/rack" up to there.
func location(c *CS, level uint8) (place [3]string) {
	parts := append(strings.SplitN(c.Location, "/", 3), "", "")
	copy(place[:DomainRoom-level+1], parts)
	return place
}

// sameDomain says whether two servers share a failure domain of the level.
func sameDomain(a, b *CS, level uint8) bool {
	switch level {
	case DomainDisk:
		return a.ID == b.ID
	case DomainHost:
		return a.Host == b.Host
	}
	return location(a, min(level, DomainRoom)) == location(b, min(level, DomainRoom))
}

// judgeSpread notes in a record whether members share a failure domain of its level.
func (s *State) judgeSpread(rec *Record) {
	rec.Flags &^= flagFallback
	for i, m := range rec.members() {
		a := s.server(m.CS)
		for _, o := range rec.members()[:i] {
			if b := s.server(o.CS); a != nil && b != nil && sameDomain(a, b, rec.Domain) {
				rec.Flags |= flagFallback
				return
			}
		}
	}
}

// spread counts the different failure domains of some servers, by level. It is compared from the
// level that a policy asks for down to the finer ones.
type spread [DomainRoom + 1]uint8

// spreadOf measures the nodes with the given indices.
func spreadOf(nodes []node, chosen []int) (s spread) {
	for level := range s {
		for i, a := range chosen {
			fresh := true
			for _, b := range chosen[:i] {
				fresh = fresh && nodes[a].domain[level] != nodes[b].domain[level]
			}
			if fresh {
				s[level]++
			}
		}
	}
	return s
}

// compare is above zero if s is better than o for a policy of the level, below if it is worse.
func (s spread) compare(o spread, level uint8) int {
	for l := int(min(level, DomainRoom)); l >= 0; l-- {
		if s[l] != o[l] {
			return int(s[l]) - int(o[l])
		}
	}
	return 0
}

// full says that no two of n servers share a domain of the level.
func (s spread) full(level uint8, n int) bool { return int(s[min(level, DomainRoom)]) == n }

// indexOf returns the index of a server's node, or -1.
func (p *placer) indexOf(cs dataplane.CSID) int {
	if int(cs) >= len(p.index) {
		return -1
	}
	return int(p.index[cs]) - 1
}

// reindex fills in index.
func (p *placer) reindex() {
	clear(p.index)
	for i := range p.nodes {
		for int(p.nodes[i].cs) >= len(p.index) {
			p.index = append(p.index, 0)
		}
		p.index[p.nodes[i].cs] = int32(i + 1)
	}
}

// locate returns the indices of a chunk's members; false: one of them has no node.
func (p *placer) locate(rec *Record, into []int) ([]int, bool) {
	for _, m := range rec.members() {
		i := p.indexOf(m.CS)
		if i < 0 {
			return nil, false
		}
		into = append(into, i)
	}
	return into, true
}
