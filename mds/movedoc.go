package mds

import (
	"fmt"

	"pstorage/dataplane/control"
)

// movesDoc describes what moves. Both locks are held.
func (l *leader) movesDoc(d *control.StatDoc) {
	r := l.recover
	d.Chunks.Recovering, d.Chunks.Recovered = uint64(len(r.active)-r.moves), r.stats.done
	m := &d.Moves
	m.Active, m.Done, m.Paused = uint64(r.moves), r.stats.moved, l.move.balance.paused
	for _, a := range r.active {
		switch a.kind {
		case moveDrain:
			m.Drain++
		case moveMend:
			m.Mend++
		case moveBalance:
			m.Balance++
		}
	}
	m.Fullest, m.Emptiest, m.Balancing = l.move.balance.levels()
}

// moveReasons says in words what moves, and what can't.
func moveReasons(d *control.StatDoc) {
	say := func(format string, args ...any) {
		d.Reasons = append(d.Reasons, fmt.Sprintf(format, args...))
	}
	for _, c := range d.CS {
		switch {
		case c.Status == control.CSReleasing && c.Drain != nil:
			say("cs %d is %s", c.ID, c.Reason)
		case c.Status == control.CSIll:
			say("cs %d: %s", c.ID, c.Reason)
		}
	}
	m := &d.Moves
	waits := ""
	if d.Recovery.Queued > 0 {
		waits = "; recovery comes first"
	}
	if m.Mend > 0 {
		say("%d chunks are being moved to get into different failure domains%s", m.Mend, waits)
	}
	if m.Balancing {
		say("chunk servers are unevenly full, %.0f%% to %.0f%%: %d chunks are being moved%s",
			100*m.Emptiest, 100*m.Fullest, m.Balance, waits)
	}
	if m.Paused && m.Fullest-m.Emptiest > balanceStart {
		say("chunk servers are unevenly full, %.0f%% to %.0f%%, and rebalancing is switched off (%s)",
			100*m.Emptiest, 100*m.Fullest, control.ConfigRebalance)
	}
}
