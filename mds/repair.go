package mds

import (
	"time"

	"pstorage/dataplane"
)

// Limits and times of the planner.
const (
	maxReports    = 1 << 16 // chunks with a reported member
	maxMissing    = 1 << 20 // chunks that a registered member doesn't hold
	reportLife    = 5 * time.Second
	settleAgain   = time.Second // a settle is asked for again after this
	planPerStep   = 8192        // chunks looked at in one step
	settlePerPush = 128         // chunks in one SettlePush

	// coldGrace is how long members may be silent before a chunk is settled without them although
	// fewer than its minimum of members remain. Nobody writes to it in that time, but they'd have
	// nothing from an exclusion either; and when the power of a site comes back, servers come
	// back seconds apart, and those that were excluded need whole copies.
	coldGrace = 10 * time.Second
)

// memberFacts is what settleCase knows of one member of a chunk.
type memberFacts struct {
	live    bool // has a lease, as far as known: it can be the coordinator
	gone    bool // may be excluded: leaseCase says so
	missing bool // registered without the chunk, which has been written to
	certain bool // doesn't come back: its disk failed, it was dropped, or it is silent for too long
}

func (m memberFacts) lost() bool { return m.gone || m.missing }

// returns says that a lost member may soon be there again, with the chunk.
func (m memberFacts) returns() bool { return m.lost() && !m.missing && !m.certain }

// settleVerdict is what to do about a chunk.
type settleVerdict uint8

const (
	settleNothing  settleVerdict = iota // all members are held to be there
	settleHold                          // no member would remain: wait for one to come back (I7)
	settleNoLeader                      // members remain, none of them can coordinate now
	settleGrace                         // too few to write would remain: lost members get time
	settleNow
	settleAnew // no member remains, and nothing was ever written: others begin it
)

// settleCase decides whether a chunk is brought to a new configuration without its lost members,
// and who coordinates: the first member, in the chain's order, that is there. minimum is of members
// that writes need; created says that the chunk may have been written to.
func settleCase(members []memberFacts, minimum int, created bool) (v settleVerdict,
	coordinator int) {
	lost, returns, coordinator := 0, false, -1
	for i, m := range members {
		returns = returns || m.returns()
		switch {
		case m.lost():
			lost++
		case m.live && coordinator < 0:
			coordinator = i
		}
	}
	switch {
	case lost == 0:
		return settleNothing, -1
	case lost == len(members) && !created && !returns:
		return settleAnew, -1
	case lost == len(members):
		return settleHold, -1
	case coordinator < 0:
		return settleNoLeader, -1
	case len(members)-lost < minimum && returns:
		return settleGrace, -1
	}
	return settleNow, coordinator
}

// trouble is a chunk that somebody complained about.
type trouble struct {
	chunk     dataplane.ChunkID
	reportNs  int64            // last report
	pushNs    int64            // last settle asked for
	pushTo    dataplane.CSID   // of whom
	missingOn []dataplane.CSID // members that registered without it
	cut       []cutOff         // members that a client can't reach: see lead.go
	found     bool             // by recovery, and nobody complained
}

// settle asks a chunk server to bring a chunk to one history without the lost members.
type settle struct {
	to    dataplane.CSID
	chunk dataplane.ChunkID
	lost  uint8 // bit per member, in the chain's order
	lead  bool  // it becomes the head
	anew  bool  // there is nobody to ask: the chunk is placed anew
}

// planner keeps the chunks in trouble until they are out of it. It is soft state of a leader, and
// pure: time and facts come in. Not safe for concurrent use.
type planner struct {
	queue   []*trouble // looked at in turn
	byChunk map[dataplane.ChunkID]*trouble
	missing int
	found   int
	cursor  int
	leads   map[dataplane.CSID]int // exclusions that a server was asked for while there are any
}

func newPlanner() *planner {
	return &planner{byChunk: make(map[dataplane.ChunkID]*trouble),
		leads: make(map[dataplane.CSID]int)}
}

// report notes that a member of the chunk doesn't answer.
func (p *planner) report(chunk dataplane.ChunkID, nowNs int64) {
	t := p.byChunk[chunk]
	if t == nil {
		if len(p.queue)-p.missing >= maxReports {
			return // the reporter asks again
		}
		t = p.add(chunk)
	}
	p.complained(t)
	t.reportNs = nowNs
}

// exclude notes that recovery has found a member of the chunk that is to be excluded.
func (p *planner) exclude(chunk dataplane.ChunkID, nowNs int64) {
	t := p.byChunk[chunk]
	if t == nil {
		t = p.add(chunk)
		t.found = true
		p.found++
	}
	t.reportNs = nowNs
}

// complained notes that a chunk isn't on the list for recovery's sake alone.
func (p *planner) complained(t *trouble) {
	if t.found {
		t.found = false
		p.found--
	}
}

// lacks notes that cs registered without the chunk. False: there are too many.
func (p *planner) lacks(chunk dataplane.ChunkID, cs dataplane.CSID, nowNs int64) bool {
	t := p.byChunk[chunk]
	if t == nil || len(t.missingOn) == 0 {
		if p.missing >= maxMissing {
			return false
		}
		p.missing++
	}
	if t == nil {
		t = p.add(chunk)
	}
	for _, m := range t.missingOn {
		if m == cs {
			return true
		}
	}
	p.complained(t)
	t.missingOn = append(t.missingOn, cs)
	t.reportNs = nowNs
	return true
}

func (p *planner) add(chunk dataplane.ChunkID) *trouble {
	t := &trouble{chunk: chunk}
	p.byChunk[chunk] = t
	p.queue = append(p.queue, t)
	return t
}

// isMissing says whether cs registered without the chunk.
func (p *planner) isMissing(chunk dataplane.ChunkID, cs dataplane.CSID) bool {
	if t := p.byChunk[chunk]; t != nil {
		for _, m := range t.missingOn {
			if m == cs {
				return true
			}
		}
	}
	return false
}

// registered forgets what cs lacked; its new inventory says it anew.
func (p *planner) registered(cs dataplane.CSID) {
	for _, t := range p.queue {
		for i, m := range t.missingOn {
			if m != cs {
				continue
			}
			t.missingOn = append(t.missingOn[:i], t.missingOn[i+1:]...)
			if len(t.missingOn) == 0 {
				p.missing--
			}
			break
		}
	}
}

// planView is what the planner asks about the world.
type planView interface {
	// chunk returns the record, or nil.
	chunk(id dataplane.ChunkID) *Record
	live(cs dataplane.CSID) bool
	gone(cs dataplane.CSID) bool
	// broken says that a server doesn't come back with what it held.
	broken(cs dataplane.CSID) bool
	// heard returns when a server had its last lease from this leader, at least when that began;
	// and since when it has leases again after it was without, 0: since the leader began.
	heard(cs dataplane.CSID) (lastNs, backNs int64)
}

// step looks at some of the chunks and returns what to ask for now, appended to out.
func (p *planner) step(nowNs int64, w planView, out []settle) []settle {
	for range min(len(p.queue), planPerStep) {
		if len(p.queue) == 0 {
			break
		}
		p.cursor %= len(p.queue)
		t := p.queue[p.cursor]
		rec := w.chunk(t.chunk)
		if rec == nil || !p.look(t, rec, nowNs, w, &out) {
			p.drop(t)
			continue
		}
		p.cursor++
	}
	return out
}

// look handles one chunk; false: it is out of trouble.
func (p *planner) look(t *trouble, rec *Record, nowNs int64, w planView, out *[]settle) bool {
	var facts [dataplane.MaxReplicas]memberFacts
	members, created := rec.members(), rec.Flags&flagCreated != 0
	lost, lacking := uint8(0), false
	for i, m := range members {
		f := memberFacts{live: w.live(m.CS), gone: w.gone(m.CS)}
		if created && p.isMissing(t.chunk, m.CS) {
			f.missing, lacking = true, true
		}
		if f.lost() {
			lost |= 1 << i
		}
		facts[i] = f
	}
	tooLong(nowNs, members, facts[:len(members)], w)
	verdict, coordinator := settleCase(facts[:len(members)], int(rec.Minimum), created)
	lead := false
	switch verdict {
	case settleNow:
		first := coordinator
		coordinator = p.spread(t, members, facts[:len(members)], first)
		lead = coordinator != first
	case settleNothing:
		if k := t.newHead(nowNs, members, facts[:len(members)], w); k > 0 {
			verdict, coordinator, lead = settleNow, k, true
		}
	}
	if verdict == settleAnew && (t.pushNs == 0 || nowNs-t.pushNs >= int64(settleAgain)) {
		t.pushTo, t.pushNs = 0, nowNs
		*out = append(*out, settle{chunk: t.chunk, anew: true})
	}
	if verdict != settleNow {
		// What a member lacks is remembered; a report that isn't repeated is forgotten.
		return lacking || nowNs-t.reportNs < int64(reportLife)
	}
	to := members[coordinator].CS
	if t.pushTo == to && t.pushNs != 0 && nowNs-t.pushNs < int64(settleAgain) {
		return true
	}
	t.pushTo, t.pushNs = to, nowNs
	*out = append(*out, settle{to: to, chunk: t.chunk, lost: lost, lead: lead})
	return true
}

// tooLong finds the members that don't come back. The time of one that is only silent begins anew
// when another comes back from an absence: what kept that away may have kept both.
func tooLong(nowNs int64, members []Replica, facts []memberFacts, w planView) {
	back := int64(0)
	for i, m := range members {
		if !facts[i].lost() {
			_, b := w.heard(m.CS)
			back = max(back, b)
		}
	}
	for i, m := range members {
		last, _ := w.heard(m.CS)
		facts[i].certain = w.broken(m.CS) || nowNs-max(last, back) >= int64(coldGrace)
	}
}

// drop takes a chunk off the list.
func (p *planner) drop(t *trouble) {
	if len(t.missingOn) > 0 {
		p.missing--
	}
	p.complained(t)
	delete(p.byChunk, t.chunk)
	if len(p.byChunk) == 0 {
		clear(p.leads)
	}
	last := len(p.queue) - 1
	p.queue[p.cursor] = p.queue[last]
	p.queue[last] = nil
	p.queue = p.queue[:last]
}
