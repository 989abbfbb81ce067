package mds

import "pstorage/dataplane"

// Servers of one tier are to be about evenly full, by the share of their space that chunks have
// been allocated. Balancing begins when the fullest and the emptiest are far apart and ends when
// they are near each other, or no move helps. A move is made only if the server that gives is still
// fuller after it than the one that takes. So with every move the sum over all servers of
// used²/size falls by at least a fixed amount, and balancing ends; nothing ever moves back.
const (
	balanceStart  = 0.10 // begins when the fill levels differ by more
	balanceStop   = 0.04 // ends when they differ by less
	balanceMargin = 0.01 // by how much the giver must be fuller after a move
)

// tierLevels are the fill levels of one tier's servers.
type tierLevels struct {
	servers  int
	min, max float64
	size     float64
	used     float64
	on       bool    // being balanced
	rest     float64 // difference at which no move was possible; 0: none
}

// balancer decides about moves between servers that aren't evenly full. It is pure. Not safe for
// concurrent use.
type balancer struct {
	paused bool
	tiers  [4]tierLevels
	from   int  // where the search for a target begins: it goes around
	put    bool // in this round something was put off, because a server is busy
}

func newBalancer() *balancer { return &balancer{} }

// fill is the share of a server's space that chunks have been allocated, with n more of them.
func (n *node) fill(more int) float64 {
	if n.size == 0 {
		return 0
	}
	return float64(int64(n.chunks)+int64(more)) * dataplane.ChunkSize / float64(n.size)
}

// begin takes the levels at the beginning of a round.
func (b *balancer) begin(nodes []node) {
	b.put = false
	var now [len(b.tiers)]tierLevels
	for i := range nodes {
		n := &nodes[i]
		if n.closed || n.size == 0 {
			continue
		}
		t := &now[n.tier%uint8(len(now))]
		f := n.fill(0)
		if t.servers == 0 {
			t.min, t.max = f, f
		}
		t.servers++
		t.min, t.max = min(t.min, f), max(t.max, f)
		t.size += float64(n.size)
		t.used += float64(n.chunks) * dataplane.ChunkSize
	}
	for i := range now {
		t, old := &now[i], &b.tiers[i]
		gap := t.max - t.min
		t.rest = old.rest
		if old.on {
			t.on = gap > balanceStop
		} else {
			t.on = gap > balanceStart && (old.rest == 0 || gap > old.rest+balanceMargin ||
				t.servers != old.servers)
		}
		if t.on && !old.on {
			t.rest = 0
		}
	}
	b.tiers = now
}

// still notes that in a whole round nothing was to be moved: it stays as it is.
func (b *balancer) still() {
	if b.paused || b.put {
		return
	}
	for i := range b.tiers {
		if t := &b.tiers[i]; t.on {
			t.on, t.rest = false, t.max-t.min
		}
	}
}

// judge looks for a move of the chunk from a fuller server to an emptier one of the same tier.
func (b *balancer) judge(rec *Record, at []int, p *placer) (best moveVerdict) {
	if b.paused {
		return best
	}
	before := spreadOf(p.nodes, at)
	gain := 0.0
	for k := len(at) - 1; k >= 0; k-- {
		giver := &p.nodes[at[k]]
		t := &b.tiers[giver.tier%uint8(len(b.tiers))]
		if t.on && giver.busy {
			b.put = true
			continue
		}
		if !t.on || giver.closed || giver.size == 0 || giver.fill(0) <= t.used/t.size {
			continue
		}
		b.from++
		for j := range p.nodes {
			i := (b.from + j) % len(p.nodes)
			taker := &p.nodes[i]
			g := giver.fill(-1) - taker.fill(1)
			if g <= max(gain, balanceMargin) || taker.closed ||
				taker.tier != giver.tier || taker.size == 0 || taker.free < dataplane.ChunkSize ||
				contains(at, i) {
				continue
			}
			if taker.busy {
				b.put = true
				continue
			}
			after := spreadOf(p.nodes, append(without(at, at[k]), i))
			if after.compare(before, rec.Domain) < 0 {
				continue
			}
			gain = g
			best = moveVerdict{kind: moveBalance, leaving: at[k], target: i, whole: true}
		}
	}
	return best
}

func contains(list []int, i int) bool {
	for _, k := range list {
		if k == i {
			return true
		}
	}
	return false
}

// levels is the fullest and the emptiest server's share, and whether a tier is being balanced.
func (b *balancer) levels() (fullest, emptiest float64, on bool) {
	emptiest = 1
	any := false
	for i := range b.tiers {
		t := &b.tiers[i]
		if t.servers == 0 {
			continue
		}
		any = true
		fullest, emptiest = max(fullest, t.max), min(emptiest, t.min)
		on = on || t.on && !b.paused
	}
	if !any {
		emptiest = 0
	}
	return fullest, emptiest, on
}

// any says whether a tier is being balanced.
func (b *balancer) any() bool {
	for i := range b.tiers {
		if b.tiers[i].on && !b.paused {
			return true
		}
	}
	return false
}
