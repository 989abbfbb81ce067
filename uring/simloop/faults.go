package simloop

import "slices"

// Pause stops the node for d nanoseconds, as SIGSTOP or a stalled virtual machine do: its clock
// goes on, timers fire late and what arrives waits. Not to be called from inside a turn.
func (e *Env) Pause(d int64) { e.busy = max(e.busy, e.sim.now+d) }

// slowWay is a way that takes longer.
type slowWay struct {
	from, to string
	extra    int64
}

// Slow adds extra nanoseconds to everything sent from one address to another; 0 ends it.
func (n *Net) Slow(from, to string, extra int64) {
	n.slow = slices.DeleteFunc(n.slow, func(s slowWay) bool { return s.from == from && s.to == to })
	if extra > 0 {
		n.slow = append(n.slow, slowWay{from, to, extra})
	}
}

// extra is what Slow added to a way.
func (n *Net) extra(from, to string) int64 {
	for i := range n.slow {
		if n.slow[i].from == from && n.slow[i].to == to {
			return n.slow[i].extra
		}
	}
	return 0
}

// Stall holds back everything sent from now on over the connections that there are from one address
// to another, until d nanoseconds from now: later connections get ahead of it. So what was sent
// long ago arrives when nobody expects it any more.
func (n *Net) Stall(from, to string, d int64) {
	for _, c := range n.conns {
		if c.peer.node.ip == from && c.node.ip == to {
			c.last = max(c.last, n.sim.now+d)
		}
	}
}

// IsCut says whether the way from one address to another is cut: for parts of a simulated world
// that don't use connections.
func (n *Net) IsCut(from, to string) bool { return n.isCut(from, to) }

// Heal ends all cuts and slow ways.
func (n *Net) Heal() {
	for len(n.cuts) > 0 {
		n.Cut(n.cuts[0][0], n.cuts[0][1], false)
	}
	n.slow = nil
}
