package mds

import (
	"context"
	"fmt"
	"slices"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// The removal of chunk servers: rm-cs. A server that is releasing takes nothing new, its chunks are
// moved to others by the mover, and when it is a member of nothing it is dropped.

// drain is what the leader knows of a server that is releasing.
type drain struct {
	left     uint32
	atNs     int64
	rate     float64 // chunks per second, smoothed
	dropping bool    // being dropped, or looked at whether it may be
	former   uint64  // chunks that lack members and that it had, when that was last counted
	lookNs   int64   // not counted before
}

// drainSample is how often the rate is measured, drainSmooth over about how many samples; drainLook
// how often it is counted what an empty server may still be needed for.
const (
	drainSample = time.Second
	drainSmooth = 8
	drainLook   = 2 * time.Second
)

// watchDrains measures how fast servers get empty, and drops those that are. Both locks are held.
func (l *leader) watchDrains(s *State, nowNs int64) {
	for id, d := range l.drains {
		if c := s.server(id); c == nil || !c.Releasing {
			if !d.dropping {
				delete(l.drains, id)
			}
		}
	}
	for _, c := range s.cs {
		if c == nil || !c.Releasing {
			continue
		}
		left := s.csLoad[c.ID]
		d := l.drains[c.ID]
		if d == nil {
			d = &drain{left: left, atNs: nowNs}
			l.drains[c.ID] = d
			l.viewNs = 0
			l.move.wake()
		}
		if dt := nowNs - d.atNs; dt >= int64(drainSample) {
			now := max(0, float64(d.left)-float64(left)) / (float64(dt) / 1e9)
			d.rate += (now - d.rate) / drainSmooth
			d.left, d.atNs = left, nowNs
		}
		if left == 0 && !d.dropping && nowNs >= d.lookNs && !l.activating(c.ID, nowNs) {
			d.dropping = true
			l.dropDrained(c.ID)
		}
	}
}

// activating says whether a server may still have to activate chunks that it was the head of. mu is
// held.
func (l *leader) activating(cs dataplane.CSID, nowNs int64) bool {
	k := l.cs[cs]
	return k != nil && len(k.moved) > 0 && k.moved[len(k.moved)-1].dueNs > nowNs
}

// dropDrained drops a server that is a member of nothing, unless a chunk with too few members names
// it as a former one: a block that is damaged at those is looked for there. mu is held.
func (l *leader) dropDrained(cs dataplane.CSID) {
	slots := l.r.fsm.s.table.Slots()
	l.background(func() {
		var former uint64
		l.scan(slots, func(_ *State, rec *Record) {
			if rec.Flags&flagCreated != 0 && rec.wasMember(cs) {
				former++
			}
		})
		if former > 0 {
			l.mu.Lock()
			defer l.mu.Unlock()
			if d := l.drains[cs]; d != nil {
				d.former, d.lookNs, d.dropping = former, l.now()+int64(drainLook), false
			}
			return
		}
		ctx, cancel := context.WithTimeout(l.ctx, raftTimeout)
		defer cancel()
		_, err := l.r.propose(ctx, &cmdMarkCS{CS: cs, Drain: drainDone})
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.drains, cs) // it is dropped; or is tried again
		l.viewNs = 0
		if err != nil && l.ctx.Err() == nil {
			l.log.Warn("a drained chunk server isn't dropped yet", "cs", cs, "reason", err)
		}
	})
}

// drainDoc says how far a server's removal is. Both locks are held.
func (l *leader) drainDoc(s *State, cs dataplane.CSID) *control.DrainDoc {
	c := l.move.drains[cs]
	d := &control.DrainDoc{Left: uint64(s.csLoad[cs]), NoPlace: c.noPlace, Waiting: c.waiting,
		ETAMs: -1}
	for _, a := range l.recover.active {
		if a.leaving == cs {
			d.Moving++
		}
	}
	if k := l.drains[cs]; k != nil {
		d.Rate = k.rate
	}
	if d.Rate > 0.01 && d.Left > 0 {
		d.ETAMs = int64(float64(d.Left) / d.Rate * 1000)
	}
	if d.Left == 0 {
		d.ETAMs = 0
	}
	return d
}

// drainReason says it in words. Both locks are held.
func (l *leader) drainReason(s *State, c *CS, f csFacts) string {
	d := l.drainDoc(s, c.ID)
	text := fmt.Sprintf("being removed: %d chunks left", d.Left)
	if d.Moving > 0 {
		text += fmt.Sprintf(", %d being moved", d.Moving)
	}
	if d.NoPlace > 0 {
		text += fmt.Sprintf(", %d have no place: no other server that is online has room for them; "+
			"it goes on when a server is added", d.NoPlace)
	}
	if d.Waiting > 0 {
		text += fmt.Sprintf(", %d must be recovered first", d.Waiting)
	}
	if k := l.drains[c.ID]; k != nil && k.former > 0 && d.Left == 0 {
		text += fmt.Sprintf("; kept until %d chunks that it had have all their copies again, as it may "+
			"have blocks that turn out to be damaged elsewhere", k.former)
	}
	if !f.lease || f.exited {
		text += fmt.Sprintf("; it is silent for %v, so its chunks are copied from others",
			f.silent.Round(100*time.Millisecond))
	}
	return text
}

// rmCS is the admin command of pstorage rm-cs.
func (c *call) rmCS(args *control.RmCSArgs) (any, error) {
	ids := slices.Clone(args.CS)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	if err := c.checkRmCS(args, ids); err != nil {
		return nil, err
	}
	var cmds []command
	for _, id := range ids {
		cmd := &cmdMarkCS{CS: dataplane.CSID(id), Drain: drainStart}
		switch {
		case args.Cancel:
			cmd.Drain = drainCancel
		case args.Force:
			cmd.Drain, cmd.Dropped = drainNone, true
		}
		cmds = append(cmds, cmd)
	}
	if args.Query {
		cmds = nil
	}
	for _, cmd := range cmds {
		if _, err := c.change(cmd); err != nil {
			return nil, err
		}
	}
	l, f := c.l, c.r.fsm
	l.mu.Lock()
	defer l.mu.Unlock()
	f.mu.RLock()
	defer f.mu.RUnlock()
	if len(cmds) > 0 {
		l.viewNs = 0
		l.move.wake()
	}
	doc := &control.RmCSDoc{CS: []control.CSDoc{}}
	for _, id := range ids {
		doc.CS = append(doc.CS, l.csDoc(f.s, f.s.server(dataplane.CSID(id)), l.now()))
	}
	return doc, nil
}

// checkRmCS says what speaks against a removal, of which all or nothing happens.
func (c *call) checkRmCS(args *control.RmCSArgs, ids []uint32) error {
	switch {
	case len(ids) == 0:
		return c.fail(dataplane.Invalid, "which chunk servers?")
	case args.Cancel && args.Force, args.LoseData && !args.Force:
		return c.fail(dataplane.Invalid, "cancel and force exclude each other, and accepting the loss "+
			"of data goes with force only")
	}
	f := c.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, id := range ids {
		cs := f.s.server(dataplane.CSID(id))
		switch {
		case cs == nil:
			return c.fail(dataplane.NotFound, "there is no CS %d", id)
		case cs.Dropped && !args.Query:
			return c.fail(dataplane.Invalid, "CS %d was removed from the cluster already", id)
		case args.Cancel && !cs.Releasing:
			return c.fail(dataplane.Invalid, "CS %d is not being removed", id)
		}
	}
	if args.Force && !args.LoseData && !args.Query {
		f.mu.RUnlock()
		n := c.onlyOn(ids)
		f.mu.RLock()
		if n > 0 {
			return c.fail(dataplane.Invalid, "%d chunks have no other copy that is available: their "+
				"data would be lost; let them be moved first (without force), or bring the servers "+
				"with the other copies back", n)
		}
	}
	return nil
}

// onlyOn counts the chunks whose last available copies are on the servers.
func (c *call) onlyOn(ids []uint32) (n uint64) {
	l, f := c.l, c.r.fsm
	l.mu.Lock()
	f.mu.RLock()
	left := l.census(f.s)
	slots := f.s.table.Slots()
	f.mu.RUnlock()
	l.mu.Unlock()
	l.scan(slots, func(_ *State, rec *Record) {
		if rec.Flags&flagCreated == 0 {
			return // nobody has written to it
		}
		here, others := false, false
		for _, m := range rec.members() {
			switch {
			case slices.Contains(ids, uint32(m.CS)):
				here = true
			case left.live(m.CS):
				others = true
			}
		}
		if here && !others {
			n++
		}
	})
	return n
}

// movedChunk is a replica that its server is to delete: it gave its place up at the epoch.
type movedChunk struct {
	id    dataplane.ChunkID
	epoch dataplane.Epoch
	dueNs int64 // not before: the head that leaves has to activate the members first
}

// movedGrace is how long a server that left keeps what it held.
const movedGrace = time.Second

// forgetMoved has servers delete a chunk that moved away from them. mu is held.
func (l *leader) forgetMoved(rec *Record, from []dataplane.CSID) {
	for _, cs := range from {
		k := l.link(cs)
		if len(k.moved) >= maxForget {
			k.moved = nil // it learns by its next inventory
			l.leases.at(cs).relist = true
		}
		k.moved = append(k.moved, movedChunk{rec.ID, rec.Epoch, l.now() + int64(movedGrace)})
	}
}

// pushMoved tells servers what moved away from them. mu is held.
func (l *leader) pushMoved() {
	now := l.now()
	for cs, k := range l.cs {
		for k.peer != nil {
			n := 0
			for n < min(len(k.moved), forgetPerPush) && k.moved[n].dueNs <= now {
				n++
			}
			if n == 0 {
				break
			}
			p := &control.ForgetPush{}
			for _, m := range k.moved[:n] {
				p.Chunks = append(p.Chunks, m.id)
				p.Epochs = append(p.Epochs, m.epoch)
			}
			if !l.push(cs, control.OpForget, p) {
				break
			}
			k.moved, k.pushed = k.moved[n:], true
		}
		if len(k.moved) == 0 {
			k.moved = nil
		}
	}
}
