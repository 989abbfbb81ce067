package mds

import (
	"fmt"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// Recovery never stops in silence: each degraded chunk is in exactly one class, which stat counts
// and gives a reason for.

// degradedClass is what becomes of a degraded chunk.
type degradedClass uint8

const (
	classHealthy degradedClass = iota
	classStarting
	classOffline
	classExcluding
	classWaiting
	classCopying
	classAgain
	classNoPlace
	classQueued
	degradedClasses
)

// classFacts is what degradedCase decides on. The last three matter for what is to be copied.
type classFacts struct {
	degraded bool // fewer live members than wanted
	starting bool // who is there isn't known yet
	verdict  recoverVerdict
	copying  bool
	failed   bool // a copy was given up a moment ago
	room     bool // there is a server that isn't a member and can take it
}

// degradedCase is the one table of classes.
func degradedCase(f classFacts) degradedClass {
	switch {
	case !f.degraded:
		return classHealthy
	case f.starting:
		return classStarting
	case f.verdict == recoverOffline:
		return classOffline
	case f.verdict == recoverWait:
		return classWaiting
	case f.verdict == recoverExclude || f.verdict == recoverNothing:
		return classExcluding
	case f.copying:
		return classCopying
	case f.failed:
		return classAgain
	case f.verdict == recoverElsewhere && !f.room:
		return classNoPlace
	}
	return classQueued
}

// add counts one chunk.
func (c degradedClass) add(d *control.RecoveryDoc) {
	switch c {
	case classStarting:
		d.Starting++
	case classOffline:
		d.Offline++
	case classExcluding:
		d.Excluding++
	case classWaiting:
		d.Waiting++
	case classCopying:
		d.Copying++
	case classAgain:
		d.Again++
	case classNoPlace:
		d.NoPlace++
	case classQueued:
		d.Queued++
	}
}

// census is a picture of the servers and of what goes on, taken at one moment, by which all chunks
// are counted. It is a recoverView as far as judge needs one.
type census struct {
	recoverView // nil: judge asks for facts only
	starting    bool
	servers     []lostFacts // by id, as members
	takers      []lostFacts // by id, as former members
	room        []bool      // by id: can take one more chunk
	open        int         // servers with room
	copying     map[dataplane.ChunkID]bool
	failed      map[dataplane.ChunkID]bool
	recover     recoverer // offline only
	domains     []domains // by id
}

type domains [DomainRoom + 1]uint32

// census takes the picture. Both locks are held, fsm.mu for reading.
func (l *leader) census(s *State) *census {
	now := l.now()
	w := recoverFacts{planFacts{l, s, now}}
	c := &census{starting: now-l.leases.sinceNs < int64(leaseOut),
		servers: make([]lostFacts, len(s.cs)), takers: make([]lostFacts, len(s.cs)),
		room: make([]bool, len(s.cs)), domains: make([]domains, len(s.cs)),
		copying: make(map[dataplane.ChunkID]bool), failed: make(map[dataplane.ChunkID]bool),
		recover: recoverer{offline: l.recover.offline}}
	ids := domainsOf{ids: make(map[string]uint32)}
	for id := range c.servers {
		cs := dataplane.CSID(id)
		c.servers[id], c.takers[id] = w.member(cs), w.former(cs)
		if known := s.server(cs); known != nil {
			c.domains[id] = ids.of(known)
		}
	}
	l.refreshView(s)
	for i := range l.view.nodes {
		if n := &l.view.nodes[i]; !n.closed && n.free >= dataplane.ChunkSize {
			c.room[n.cs] = true
			c.open++
		}
	}
	for id := range l.recover.active {
		c.copying[id] = true
	}
	for id, until := range l.recover.backoff {
		if now < until {
			c.failed[id] = true
		}
	}
	return c
}

func (c *census) live(cs dataplane.CSID) bool        { return c.member(cs).live }
func (c *census) member(cs dataplane.CSID) lostFacts { return factsAt(c.servers, cs) }
func (c *census) former(cs dataplane.CSID) lostFacts { return factsAt(c.takers, cs) }

func factsAt(list []lostFacts, cs dataplane.CSID) lostFacts {
	if int(cs) >= len(list) {
		return lostFacts{dead: true}
	}
	return list[cs]
}

// count adds a chunk to the counts.
func (c *census) count(d *control.StatDoc, rec *Record) {
	live := int(c.recover.live(rec, c))
	d.Chunks.Total++
	if c.shares(rec) {
		d.Chunks.Fallback++
	}
	if live >= int(rec.Wanted) {
		d.Chunks.Healthy++
		return
	}
	d.Chunks.Degraded++
	if live < int(rec.Minimum) {
		d.Chunks.BelowMinimum++
	}
	switch live {
	case 0:
		d.Chunks.Offline++
	case 1:
		d.Chunks.Urgent++
	}
	v, _ := c.recover.judge(rec, c)
	others := c.open
	for _, m := range rec.members() {
		if int(m.CS) < len(c.room) && c.room[m.CS] {
			others--
		}
	}
	degradedCase(classFacts{degraded: true, starting: c.starting, verdict: v,
		copying: c.copying[rec.ID], failed: c.failed[rec.ID], room: others > 0}).add(&d.Recovery)
}

// shares says whether members share a failure domain of the chunk's level.
func (c *census) shares(rec *Record) bool {
	level := min(rec.Domain, DomainRoom)
	members := rec.members()
	for i, m := range members {
		for _, o := range members[:i] {
			if max(int(m.CS), int(o.CS)) < len(c.domains) &&
				c.domains[m.CS][level] == c.domains[o.CS][level] {
				return true
			}
		}
	}
	return false
}

// recoveryReasons says in words what becomes of the degraded chunks.
func recoveryReasons(d *control.StatDoc, offline time.Duration, failed uint64) {
	say := func(n uint64, format string, args ...any) {
		if n > 0 {
			d.Reasons = append(d.Reasons, fmt.Sprintf(format, append([]any{n}, args...)...))
		}
	}
	r := &d.Recovery
	say(r.Copying, "%d chunks are being copied to another server")
	say(r.Queued, "%d chunks wait for their turn to be copied")
	say(r.Again, "%d chunks: a copy was given up; it is tried again within %v", recoverBackoff)
	say(r.Waiting, "%d chunks wait for a server that is away; after %v they are copied to others",
		offline)
	say(r.Excluding,
		"%d chunks can't be copied yet: a member doesn't answer and must be excluded first")
	say(r.NoPlace, "%d chunks can't be copied: no other server that is online has room")
	say(r.Offline, "%d chunks can't be copied: none of their members is there")
	say(r.Starting, "%d chunks: this metadata server leads only since a moment, and waits to see "+
		"which chunk servers are there")
	if d.Chunks.Degraded > 0 {
		say(failed, "%d copies were given up and begun again")
	}
}
