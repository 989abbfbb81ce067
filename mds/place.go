package mds

import (
	"fmt"
	"strings"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// node is a chunk server as a place for new chunks.
type node struct {
	cs     dataplane.CSID
	tier   uint8
	domain [DomainRoom + 1]uint32 // by level: nodes with equal numbers share that failure domain
	size   uint64                 // bytes for chunks
	free   uint64                 // bytes; taken down by each placement
	load   float64                // 0 idle to 1 busiest
	chunks uint64                 // it is, or is to become, a member of
	closed bool                   // takes nothing new: being removed, or ill
	leaves bool                   // being removed
	busy   bool                   // has enough to do without moves that can wait
}

// placer chooses servers for new chunks: at random, the better of two by free space and load, in
// different failure domains. It is pure: randomness comes from rng, facts from nodes. Not safe for
// concurrent use.
type placer struct {
	nodes []node
	index []int32 // by server: 1 + index in nodes; 0: none
	rng   interface{ IntN(n int) int }
}

// domainsOf gives numbers to the failure domains of servers.
type domainsOf struct{ ids map[string]uint32 }

func (d *domainsOf) id(key string) uint32 {
	n, ok := d.ids[key]
	if !ok {
		n = uint32(len(d.ids) + 1)
		d.ids[key] = n
	}
	return n
}

// of returns the domains of a server. Location is "room/row/rack"; what isn't given is one and
// the same for all.
func (d *domainsOf) of(c *CS) (dom [DomainRoom + 1]uint32) {
	parts := append(strings.SplitN(c.Location, "/", 3), "", "")
	dom[DomainDisk] = uint32(c.ID)
	dom[DomainHost] = d.id("host " + c.Host)
	dom[DomainRack] = d.id("rack " + parts[0] + "/" + parts[1] + "/" + parts[2])
	dom[DomainRow] = d.id("row " + parts[0] + "/" + parts[1])
	dom[DomainRoom] = d.id("room " + parts[0])
	return dom
}

// place decides where a chunk's replicas go. Replicas that can't be in different domains of the
// policy's level are put in different ones of the next finer level, down to different disks
// (fallback); a server of another tier is taken before a finer domain. With fewer servers than
// replicas all of them are taken, if they are at least the minimum. It allocates nothing unless
// it fails.
func (p *placer) place(pol control.Policy, index uint32) (placed, error) {
	out := placed{index: index}
	var chosen [dataplane.MaxReplicas]int
	for int(out.n) < int(pol.Replicas) && out.n < dataplane.MaxReplicas {
		i, level := p.next(pol, chosen[:out.n])
		if i < 0 {
			break
		}
		out.fallback = out.fallback || level < pol.Domain
		chosen[out.n] = i
		out.members[out.n] = p.nodes[i].cs
		out.n++
	}
	if out.n < pol.Minimum || out.n == 0 {
		return placed{}, dataplane.E("place chunk", dataplane.NoSpace, fmt.Errorf(
			"%d servers with room for a chunk are online, at least %d are needed (of %d online)",
			out.n, pol.Minimum, len(p.nodes)))
	}
	for _, i := range chosen[:out.n] {
		p.nodes[i].take()
	}
	return out, nil
}

// take counts one more chunk.
func (n *node) take() {
	n.free -= dataplane.ChunkSize
	n.chunks++
}

// next picks one more node, or -1, and the level at which its domain differs from the chosen.
func (p *placer) next(pol control.Policy, chosen []int) (i int, level uint8) {
	for level := min(pol.Domain, DomainRoom); ; level-- {
		for _, anyTier := range [...]bool{false, true} {
			if i := p.pick(pol.Tier, anyTier, level, chosen); i >= 0 {
				return i, level
			}
		}
		if level == 0 {
			return -1, 0
		}
	}
}

// probes is how many random nodes are looked at before all of them are.
const probes = 12

// pick returns the better of two random eligible nodes, or -1 if no node is.
func (p *placer) pick(tier uint8, anyTier bool, level uint8, chosen []int) int {
	if len(p.nodes) == 0 {
		return -1
	}
	best, found := -1, 0
	for range probes {
		i := p.rng.IntN(len(p.nodes))
		if i == best || !p.eligible(i, tier, anyTier, level, chosen) {
			continue
		}
		best = p.better(best, i)
		if found++; found == 2 {
			return best
		}
	}
	start := p.rng.IntN(len(p.nodes))
	for k := range p.nodes {
		i := (start + k) % len(p.nodes)
		if i != best && p.eligible(i, tier, anyTier, level, chosen) {
			best = p.better(best, i)
			if found++; found == 2 {
				break
			}
		}
	}
	return best
}

func (p *placer) eligible(i int, tier uint8, anyTier bool, level uint8, chosen []int) bool {
	n := &p.nodes[i]
	if n.closed || n.free < dataplane.ChunkSize || !anyTier && n.tier != tier {
		return false
	}
	for _, c := range chosen {
		if p.nodes[c].domain[level] == n.domain[level] || c == i {
			return false
		}
	}
	return true
}

// better compares two nodes; a is -1 for none.
func (p *placer) better(a, b int) int {
	if a < 0 || p.nodes[b].score() > p.nodes[a].score() {
		return b
	}
	return a
}

// score is higher for a better place: the free share, less up to a half for load.
func (n *node) score() float64 {
	if n.size == 0 {
		return 0
	}
	return float64(n.free) / float64(n.size) * (1 - n.load/2)
}
