package mds

import (
	"cmp"
	"slices"
	"time"

	"pstorage/dataplane"
)

// Limits and times of recovery: of chunks with fewer members than wanted.
const (
	scanPerStep    = 8192    // records looked at in one step
	maxNeeds       = 1 << 16 // chunks found in one round; the others are found in the next
	startsPerStep  = 1024    // chunks looked at for starting in one step
	recoverPerCS   = 2       // as the head that copies, and as the target
	maxRecoveries  = 64
	recoverAgain   = 2 * time.Second // asked for again after this
	recoverLimit   = time.Minute     // then something else is tried
	recoverBackoff = 10 * time.Second
	recoverPause   = 500 * time.Millisecond // between two rounds, at least
	maxBackoffs    = 4096
)

// lostFacts is what recoverCase knows of a server that was a member.
type lostFacts struct {
	live   bool          // registered, with a lease: it can take the chunk again
	dead   bool          // its disk failed, or it was dropped: it won't
	silent time.Duration // since its last answered heartbeat
}

// recoverVerdict is what to do about a chunk's number of members.
type recoverVerdict uint8

const (
	recoverNothing  recoverVerdict = iota // it has as many as wanted
	recoverReturned                       // give it back to a former member
	recoverElsewhere
	recoverSettle // a member is away: it comes back or is excluded, before anything is copied
	recoverWait   // the lost member may come back
	recoverVerdicts
)

// recoverCase decides whether a chunk is to be copied, and to which of its lost members (an index),
// or to another server. A member that is only silent has offline as long to come back.
func recoverCase(wanted int, members []bool, lost []lostFacts, offline time.Duration) (
	v recoverVerdict, i int) {
	if len(members) >= wanted {
		return recoverNothing, -1
	}
	if len(members) == 0 || slices.Contains(members, false) {
		return recoverSettle, -1
	}
	for i, l := range lost {
		if l.live && !l.dead {
			return recoverReturned, i
		}
	}
	waits := 0
	for _, l := range lost {
		if !l.dead && l.silent < offline {
			waits++
		}
	}
	if waits > 0 && len(members)+waits >= wanted {
		return recoverWait, -1
	}
	return recoverElsewhere, -1
}

// recoverView is what the recoverer asks about the world.
type recoverView interface {
	planView
	slots() uint64
	at(slot uint64) *Record // nil: free
	lost(cs dataplane.CSID) lostFacts
	// place chooses a server, not a member, for one more copy; 0: there is none.
	place(rec *Record) dataplane.CSID
}

// need is a chunk that is to be copied.
type need struct {
	chunk dataplane.ChunkID
	left  uint8 // members it has
}

// recovery is a chunk being copied.
type recovery struct {
	source, target  dataplane.CSID
	epoch           dataplane.Epoch
	beganNs, pushNs int64
}

// recoverOrder asks a head to copy a chunk.
type recoverOrder struct {
	chunk          dataplane.ChunkID
	source, target dataplane.CSID
}

// recoverStats says what is going on, for people. The counts are of the last round.
type recoverStats struct {
	active   uint64
	done     uint64 // since the leader began
	failed   uint64 // given up and tried again, since the leader began
	queued   uint64 // wait for their turn
	waiting  uint64 // for a member to come back
	settling uint64 // a member is away, and not excluded yet
	noPlace  uint64 // no server can take them
}

// recoverer finds the chunks with too few members, in rounds over the whole table, and has them
// copied: those with the fewest copies first, a few at a time per server. It is soft state of a
// leader, and pure: time and facts come in. Not safe for concurrent use.
type recoverer struct {
	offline time.Duration // a silent server's chunks are copied to others after this
	cursor  uint64
	end     uint64 // of the round's slots; 0: between two rounds
	beganNs int64  // the round
	nextNs  int64  // no round before this
	found   []need
	seen    [recoverVerdicts]uint64

	queue   []need // of the last round
	noPlace uint64
	active  map[dataplane.ChunkID]*recovery
	load    map[dataplane.CSID][2]int   // as source, as target
	backoff map[dataplane.ChunkID]int64 // not before that time
	order   []dataplane.ChunkID         // of active, oldest first
	stats   recoverStats
	// leftover are targets that may hold a copy which was given up: their inventories tell.
	leftover []dataplane.CSID
}

func newRecoverer(offline time.Duration) *recoverer {
	return &recoverer{offline: offline, active: make(map[dataplane.ChunkID]*recovery),
		load:    make(map[dataplane.CSID][2]int),
		backoff: make(map[dataplane.ChunkID]int64)}
}

// step goes on with everything a little, and returns what to ask for now, appended to out.
func (r *recoverer) step(nowNs int64, w recoverView, out []recoverOrder) []recoverOrder {
	out = r.watch(nowNs, w, out)
	r.scan(nowNs, w)
	return r.start(nowNs, w, out)
}

// watch ends recoveries that are done or can't be, and asks again for those that take long.
func (r *recoverer) watch(nowNs int64, w recoverView, out []recoverOrder) []recoverOrder {
	keep := r.order[:0]
	for _, id := range r.order {
		a, rec := r.active[id], w.chunk(id)
		switch {
		case rec == nil:
			r.finish(id)
			continue
		case rec.Epoch != a.epoch:
			if rec.has(a.target) {
				r.stats.done++
			} else {
				r.leftover = append(r.leftover, a.target)
			}
			r.finish(id)
			r.nextNs = min(r.nextNs, nowNs) // there may be more to do
			continue
		case !w.live(a.source) || !w.live(a.target) || nowNs-a.beganNs > int64(recoverLimit):
			r.stats.failed++
			r.leftover = append(r.leftover, a.target)
			if len(r.backoff) < maxBackoffs {
				r.backoff[id] = nowNs + int64(recoverBackoff)
			}
			r.finish(id)
			continue
		case nowNs-a.pushNs >= int64(recoverAgain):
			a.pushNs = nowNs
			out = append(out, recoverOrder{id, a.source, a.target})
		}
		keep = append(keep, id)
	}
	r.order = keep
	return out
}

func (r *recoverer) finish(id dataplane.ChunkID) {
	a := r.active[id]
	delete(r.active, id)
	r.count(a, -1)
}

func (r *recoverer) count(a *recovery, by int) {
	s := r.load[a.source]
	s[0] += by
	r.load[a.source] = s
	t := r.load[a.target]
	t[1] += by
	r.load[a.target] = t
}

// scan looks at the next records of the table.
func (r *recoverer) scan(nowNs int64, w recoverView) {
	if r.end == 0 {
		if nowNs < r.nextNs {
			return
		}
		r.cursor, r.end, r.beganNs = 0, w.slots(), nowNs
		r.found, r.seen = r.found[:0], [recoverVerdicts]uint64{}
	}
	for last := min(r.cursor+scanPerStep, r.end); r.cursor < last; r.cursor++ {
		rec := w.at(r.cursor)
		if rec == nil || rec.Present >= rec.Wanted {
			continue
		}
		v, _ := r.judge(rec, w)
		r.seen[v]++
		if (v == recoverReturned || v == recoverElsewhere) && len(r.found) < maxNeeds {
			r.found = append(r.found, need{rec.ID, rec.Present})
		}
	}
	if r.cursor < r.end {
		return
	}
	r.end = 0
	r.nextNs = nowNs + max(int64(recoverPause), nowNs-r.beganNs)
	slices.SortStableFunc(r.found, func(a, b need) int { return cmp.Compare(a.left, b.left) })
	r.queue, r.found = r.found, r.queue[:0]
	r.stats.noPlace = r.noPlace
	r.noPlace = 0
	for id, until := range r.backoff {
		if nowNs >= until {
			delete(r.backoff, id)
		}
	}
}

// judge applies recoverCase to a record.
func (r *recoverer) judge(rec *Record, w recoverView) (v recoverVerdict, lost dataplane.CSID) {
	var live [dataplane.MaxReplicas]bool
	var facts [dataplane.MaxReplicas]lostFacts
	for i, m := range rec.members() {
		live[i] = w.live(m.CS)
	}
	former := rec.former()
	for i, m := range former {
		facts[i] = w.lost(m.CS)
	}
	v, i := recoverCase(int(rec.Wanted), live[:rec.Present], facts[:len(former)], r.offline)
	if i >= 0 {
		lost = former[i].CS
	}
	return v, lost
}

// start starts what the limits allow, in the order of the queue.
func (r *recoverer) start(nowNs int64, w recoverView, out []recoverOrder) []recoverOrder {
	keep := r.queue[:0]
	for k := range r.queue {
		if k >= startsPerStep || len(r.active) >= maxRecoveries {
			keep = append(keep, r.queue[k:]...)
			break
		}
		id := r.queue[k].chunk
		rec := w.chunk(id)
		if rec == nil || r.active[id] != nil || nowNs < r.backoff[id] {
			continue
		}
		v, target := r.judge(rec, w)
		if v != recoverReturned && v != recoverElsewhere {
			continue
		}
		source := rec.members()[0].CS
		if r.load[source][0] >= recoverPerCS {
			keep = append(keep, r.queue[k])
			continue
		}
		if v == recoverElsewhere {
			target = w.place(rec)
		}
		switch {
		case target == 0:
			r.noPlace++
		case r.load[target][1] >= recoverPerCS:
			keep = append(keep, r.queue[k])
		default:
			a := &recovery{source: source, target: target, epoch: rec.Epoch, beganNs: nowNs,
				pushNs: nowNs}
			r.active[id] = a
			r.order = append(r.order, id)
			r.count(a, 1)
			out = append(out, recoverOrder{id, source, target})
		}
	}
	r.queue = keep
	return out
}

// keeps says whether a chunk is being copied to cs, so that cs must not forget it.
func (r *recoverer) keeps(id dataplane.ChunkID, cs dataplane.CSID) bool {
	a := r.active[id]
	return a != nil && a.target == cs
}

// report says what is going on.
func (r *recoverer) report() recoverStats {
	s := r.stats
	s.active, s.queued = uint64(len(r.active)), uint64(len(r.queue))
	s.waiting, s.settling = r.seen[recoverWait], r.seen[recoverSettle]
	s.noPlace = max(s.noPlace, r.noPlace)
	return s
}
