package mds

import (
	"fmt"

	"pstorage/dataplane"
)

// Chunks that were never written to, and whose members are all gone for good, are begun anew on
// other servers. Nothing can be lost by that: the head of a new chunk serves only once the chunk is
// marked as created, and the command that places it anew is refused from then on.

// placeAnew begins chunks anew that the planner found.
func (l *leader) placeAnew(chunks []dataplane.ChunkID) {
	for _, id := range chunks {
		if l.ctx.Err() != nil {
			break
		}
		if err := l.beginAnew(id); err != nil {
			l.log.Warn("a chunk that was never written to can't be placed anew now",
				"chunk", id, "reason", err)
		}
	}
	l.mu.Lock()
	l.anew = false
	l.mu.Unlock()
}

func (l *leader) beginAnew(id dataplane.ChunkID) error {
	before, c, err := l.planAnew(id)
	if err != nil || c == nil {
		return err
	}
	defer func() {
		l.mu.Lock()
		l.countAnew(&before, c, -1)
		l.mu.Unlock()
		l.free.Broadcast()
	}()
	op := fmt.Sprintf("place chunk %v anew", id)
	res, err := l.r.propose(l.ctx, c)
	if err == nil {
		err = res.err(op)
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.displaced(&before, &res.Rec)
	l.watch.changed(&res.Rec)
	l.log.Info("a chunk that was never written to was placed anew", "chunk", id,
		"epoch", res.Rec.Epoch, "members", memberList(&res.Rec), "before", memberList(&before))
	return nil
}

// planAnew decides where a chunk is begun anew; nil: that isn't needed any more, or not allowed.
// Until countAnew takes it back, the old members and the new ones can't register (invariant I4).
func (l *leader) planAnew(id dataplane.ChunkID) (before Record, c *cmdReconfigure, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	rec := f.s.table.Lookup(id)
	if rec == nil || rec.Flags&flagCreated != 0 {
		return before, nil, nil
	}
	now := l.now()
	for _, m := range rec.members() {
		if l.leases.verdict(m.CS, now) != leaseGone {
			return before, nil, nil
		}
	}
	l.viewNs = 0
	l.refreshView(f.s)
	p, err := l.view.place(policyOf(rec), rec.Index)
	if err != nil {
		return before, nil, err
	}
	w := recoverFacts{planFacts{l, f.s, now}}
	for _, m := range p.members[:p.n] {
		if rec.has(m) || !w.takes(m) {
			return before, nil, fmt.Errorf("CS %d is registering", m)
		}
	}
	before = *rec
	c = &cmdReconfigure{Chunk: id, Epoch: rec.Epoch, Fresh: true,
		Members: append([]dataplane.CSID(nil), p.members[:p.n]...)}
	l.countAnew(&before, c, 1)
	return before, c, nil
}

// countAnew keeps registrations of the servers that a command takes a chunk from, or gives it to,
// away until the command is over. mu is held.
func (l *leader) countAnew(before *Record, c *cmdReconfigure, by int) {
	for _, m := range before.members() {
		l.leases.at(m.CS).excluding += by
	}
	for _, m := range c.Members {
		l.leases.at(m).adding += by
	}
}
