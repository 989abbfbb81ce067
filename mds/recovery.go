package mds

import (
	"slices"
	"time"

	"pstorage/dataplane"
)

// Limits and times of recovery: of chunks with fewer members than wanted.
const (
	scanPerStep    = 8192            // records looked at in one step
	maxNeeds       = 1 << 16         // chunks found in one round; the others are found in the next
	startsPerStep  = 1024            // chunks looked at for starting in one step
	recoverPerCS   = 4               // as the head that copies, and as the target: see settings
	maxRecoveries  = 64              // in all: see settings
	maxExclusions  = 512             // chunks in the planner, besides those that are complained about
	recoverAgain   = 2 * time.Second // asked for again after this
	recoverLimit   = time.Minute     // then something else is tried, see limit
	recoverBackoff = 10 * time.Second
	recoverPause   = 500 * time.Millisecond // between two rounds, at least
	recoverCalm    = 100 * time.Millisecond // between two fast ones
	maxBackoffs    = 4096
)

// lostFacts is what recoverCase knows of a server that is or was a member.
type lostFacts struct {
	live   bool          // a member: it has a lease; a former one: it can take the chunk again
	dead   bool          // its disk failed, or it is removed: it won't
	silent time.Duration // since its last answered heartbeat
}

// away: it is silent, and has the right to come back.
func (f lostFacts) away(offline time.Duration) bool {
	return !f.live && !f.dead && f.silent < offline
}

// recoverVerdict is what to do about a chunk's number of members.
type recoverVerdict uint8

const (
	recoverNothing   recoverVerdict = iota // it has as many as wanted
	recoverReturned                        // give it back to a former member
	recoverElsewhere                       // copy it to another server
	recoverExclude                         // a member doesn't come back, or is in the way: exclude it
	recoverWait                            // a member, or a former one, may come back
	recoverOffline                         // no member is there
	recoverVerdicts
)

// recoverCase decides whether a chunk is to be copied, and to which of its lost members (an index),
// or to another server. A server that is only silent has offline as long to come back. Nothing is
// copied while a member is away: either it is waited for, or it is excluded first. So are all of
// them if nothing was ever written to the chunk (not created).
func recoverCase(wanted int, created bool, members, lost []lostFacts, offline time.Duration) (
	v recoverVerdict, i int) {
	live, waits := 0, 0
	for _, m := range members {
		switch {
		case m.live:
			live++
		case m.away(offline):
			waits++
		}
	}
	gone := len(members) - live - waits
	switch {
	case live == 0 && waits == 0 && !created:
		return recoverExclude, -1
	case live == 0:
		return recoverOffline, -1
	case live >= wanted && gone > 0:
		return recoverExclude, -1
	case live >= wanted:
		return recoverNothing, -1
	}
	for _, l := range lost {
		if l.away(offline) {
			waits++
		}
	}
	to := slices.IndexFunc(lost, func(l lostFacts) bool { return l.live && !l.dead })
	switch {
	case to < 0 && waits > 0 && live+waits >= wanted:
		return recoverWait, -1
	case live < len(members):
		return recoverExclude, -1
	case to >= 0:
		return recoverReturned, to
	}
	return recoverElsewhere, -1
}

// recoverView is what the recoverer asks about the world.
type recoverView interface {
	planView
	slots() uint64
	at(slot uint64) *Record // nil: free
	member(cs dataplane.CSID) lostFacts
	former(cs dataplane.CSID) lostFacts
	// place chooses a server, not a member, for one more copy; 0: there is none.
	place(rec *Record) dataplane.CSID
}

// need is a chunk that something is to be done about.
type need struct {
	chunk dataplane.ChunkID
	left  uint8 // live members
}

// recovery is a chunk being copied.
type recovery struct {
	source, target  dataplane.CSID
	leaving         dataplane.CSID // a move: the member that gives its place up
	kind            moveKind
	epoch           dataplane.Epoch
	beganNs, pushNs int64
}

func (a *recovery) order(id dataplane.ChunkID) recoverOrder {
	return recoverOrder{id, a.source, a.target, a.leaving}
}

// recoverOrder asks a head to copy a chunk.
type recoverOrder struct {
	chunk          dataplane.ChunkID
	source, target dataplane.CSID
	leaving        dataplane.CSID // 0: nobody
}

// recoverStats says what was done since the leader began.
type recoverStats struct {
	done   uint64 // copies
	moved  uint64
	failed uint64 // given up and tried again
}

// recoverLimits bound what goes on at a time.
type recoverLimits struct {
	perCS int // as the head that copies, and as the target
	total int
}

// recoverer finds the chunks with too few members, in rounds over the whole table, and has them
// copied: those with the fewest copies first, a few at a time per server. Members that are gone for
// good are excluded, whether somebody complains about them or not. It is soft state of a leader,
// and pure: time and facts come in. Not safe for concurrent use.
type recoverer struct {
	offline time.Duration // a silent server's chunks are copied to others after this
	limits  recoverLimits
	cursor  uint64
	end     uint64 // of the round's slots; 0: between two rounds
	left    uint64 // slots that are still to be looked at in the round
	first   uint64 // slot that the next round begins with
	full    bool   // in the round something was found for which there was no room
	beganNs int64  // the round
	nextNs  int64  // no round before this
	// hurry: servers came, went or were given up since the round began. The next round begins at
	// once then, and is fast: the shell goes on with it between its ticks.
	hurry, fast bool
	calmNs      int64   // no fast round before this
	alive       []uint8 // by server, within one step: who has a lease (see liveCount)
	rounds      uint64  // that ended
	lastFound   int     // chunks that the last round found
	found       []need
	exclude     []need // found in the round: to be excluded from

	queue      []need // of the last round
	exclusions []need // of the last round
	active     map[dataplane.ChunkID]*recovery
	load       map[dataplane.CSID][2]int   // as source, as target
	backoff    map[dataplane.ChunkID]int64 // not before that time
	order      []dataplane.ChunkID         // of active, oldest first
	moves      int                         // of active
	stats      recoverStats
	changed    bool // something has begun or ended since the shell looked
	// leftover are targets that may hold a copy which was given up: their inventories tell.
	leftover []dataplane.CSID
}

func newRecoverer(offline time.Duration) *recoverer {
	return &recoverer{offline: offline, active: make(map[dataplane.ChunkID]*recovery),
		load:    make(map[dataplane.CSID][2]int),
		backoff: make(map[dataplane.ChunkID]int64),
		limits:  recoverLimits{recoverPerCS, maxRecoveries}}
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
			r.leftover = append(r.leftover, a.target) // no record names it
			r.finish(id)
			continue
		case rec.Epoch != a.epoch:
			switch {
			case !rec.has(a.target):
				r.leftover = append(r.leftover, a.target)
			case a.leaving != 0:
				r.stats.moved++
			default:
				r.stats.done++
			}
			r.finish(id)
			r.nextNs = min(r.nextNs, nowNs) // there may be more to do
			continue
		case !w.live(a.source) || !w.live(a.target) || nowNs-a.beganNs > int64(r.limit()):
			r.stats.failed++
			r.leftover = append(r.leftover, a.target)
			if len(r.backoff) < maxBackoffs {
				r.backoff[id] = nowNs + int64(recoverBackoff)
			}
			r.finish(id)
			continue
		case nowNs-a.pushNs >= int64(recoverAgain):
			a.pushNs = nowNs
			out = append(out, a.order(id))
		}
		keep = append(keep, id)
	}
	r.order = keep
	return out
}

// copyFloor is how fast a server's copies get on together beside any load, in bytes per second, in
// and out: see chunk's paceFloor.
const copyFloor = 4e6

// limit is how long a copy may take: one that is given up begins from nothing.
func (r *recoverer) limit() time.Duration {
	slowest := 2 * float64(r.limits.perCS) * dataplane.ChunkSize / copyFloor
	return recoverLimit + time.Duration(slowest*float64(time.Second))
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
	if a.leaving != 0 {
		r.moves += by
	}
	r.changed = true
}

// begin notes that a copy has been asked for.
func (r *recoverer) begin(id dataplane.ChunkID, a recovery, nowNs int64) recoverOrder {
	a.beganNs, a.pushNs = nowNs, nowNs
	r.active[id] = &a
	r.order = append(r.order, id)
	r.count(&a, 1)
	return a.order(id)
}

// scan looks at the next records of the table.
func (r *recoverer) scan(nowNs int64, w recoverView) {
	if r.hurry && !r.fast && nowNs >= r.calmNs {
		r.hurry, r.fast = false, true
		r.end, r.nextNs = 0, nowNs
	}
	clear(r.alive)
	if r.end == 0 {
		if nowNs < r.nextNs {
			return
		}
		r.end, r.beganNs = w.slots(), nowNs
		r.cursor, r.left, r.full = r.first, r.end, false
		r.found, r.exclude = r.found[:0], r.exclude[:0]
	}
	for range min(scanPerStep, r.left) {
		if r.cursor >= r.end {
			r.cursor = 0
		}
		rec := w.at(r.cursor)
		r.cursor++
		r.left--
		if rec == nil {
			continue
		}
		left := r.liveCount(rec, w)
		if left == rec.Present && left >= rec.Wanted {
			continue
		}
		switch v, _ := r.judge(rec, w); v {
		case recoverExclude:
			r.note(&r.exclude, need{rec.ID, left})
		case recoverReturned, recoverElsewhere:
			r.note(&r.found, need{rec.ID, left})
		}
	}
	if r.left > 0 {
		return
	}
	r.endRound(nowNs)
}

// note adds to what the round has found. If there is no room the next round begins there: nothing
// may come of all that was found before, round after round.
func (r *recoverer) note(list *[]need, n need) {
	switch {
	case len(*list) < maxNeeds:
		*list = append(*list, n)
	case !r.full:
		r.full, r.first = true, n.chunk.Slot()
	}
}

// endRound makes what the round has found the queue.
func (r *recoverer) endRound(nowNs int64) {
	took := nowNs - r.beganNs
	r.end = 0
	r.nextNs = nowNs + max(int64(recoverPause), took)
	if r.fast {
		r.fast, r.calmNs = false, nowNs+max(int64(recoverCalm), took)
	}
	r.rounds++
	r.lastFound = len(r.found) + len(r.exclude)
	spare, spareExclusions := r.queue[:0], r.exclusions[:0]
	r.queue, r.exclusions = worstFirst(r.found, spare), worstFirst(r.exclude, spareExclusions)
	r.found, r.exclude = r.found[:0], r.exclude[:0]
	for id, until := range r.backoff {
		if nowNs >= until {
			delete(r.backoff, id)
		}
	}
}

// worstFirst appends list to out in the order of the copies that are left. It is linear: a lost
// server leaves tens of thousands, and the state is locked meanwhile.
func worstFirst(list, out []need) []need {
	for left := uint8(0); left <= dataplane.MaxReplicas; left++ {
		if len(out) == len(list) {
			break
		}
		for _, n := range list {
			if n.left == left {
				out = append(out, n)
			}
		}
	}
	return out
}

// liveCount counts the members that have a lease. Within one step a server is asked for once: a
// round looks at each of them thousands of times.
func (r *recoverer) liveCount(rec *Record, w recoverView) (n uint8) {
	for _, m := range rec.members() {
		for int(m.CS) >= len(r.alive) {
			r.alive = append(r.alive, 0)
		}
		a := &r.alive[m.CS]
		if *a == 0 {
			*a = 1
			if w.live(m.CS) {
				*a = 2
			}
		}
		n += *a >> 1
	}
	return n
}

// live counts the members that have a lease.
func (r *recoverer) live(rec *Record, w recoverView) (n uint8) {
	for _, m := range rec.members() {
		if w.live(m.CS) {
			n++
		}
	}
	return n
}

// judge applies recoverCase to a record.
func (r *recoverer) judge(rec *Record, w recoverView) (v recoverVerdict, lost dataplane.CSID) {
	var members, facts [dataplane.MaxReplicas]lostFacts
	for i, m := range rec.members() {
		members[i] = w.member(m.CS)
	}
	former := rec.former()
	for i, m := range former {
		facts[i] = w.former(m.CS)
	}
	v, i := recoverCase(int(rec.Wanted), rec.Flags&flagCreated != 0, members[:rec.Present],
		facts[:len(former)], r.offline)
	if i >= 0 {
		lost = former[i].CS
	}
	return v, lost
}

// start starts what the limits allow, in the order of the queue.
func (r *recoverer) start(nowNs int64, w recoverView, out []recoverOrder) []recoverOrder {
	keep := r.queue[:0]
	for k := range r.queue {
		if k >= startsPerStep || len(r.active)-r.moves >= r.limits.total {
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
		if r.load[source][0] >= r.limits.perCS {
			keep = append(keep, r.queue[k])
			continue
		}
		if v == recoverElsewhere {
			target = w.place(rec)
		}
		switch {
		case target == 0: // stat says so; the next round finds it again
		case r.load[target][1] >= r.limits.perCS:
			keep = append(keep, r.queue[k])
		default:
			out = append(out, r.begin(id, recovery{source: source, target: target,
				epoch: rec.Epoch}, nowNs))
		}
	}
	r.queue = keep
	return out
}

// excludeSome returns up to n chunks that a member is to be excluded from, the worst first.
func (r *recoverer) excludeSome(n int) []need {
	n = max(0, min(n, len(r.exclusions)))
	some := r.exclusions[:n]
	r.exclusions = r.exclusions[n:]
	return some
}

// keeps says whether a chunk is being copied to cs, so that cs must not forget it.
func (r *recoverer) keeps(id dataplane.ChunkID, cs dataplane.CSID) bool {
	a := r.active[id]
	return a != nil && a.target == cs
}

// adds says whether a chunk of this epoch is being copied to cs, to become a member.
func (r *recoverer) adds(id dataplane.ChunkID, epoch dataplane.Epoch, cs dataplane.CSID) bool {
	a := r.active[id]
	return a != nil && a.target == cs && a.epoch == epoch
}

// restarted ends the copies to a server whose process is another one now. The next round finds
// what they were for.
func (r *recoverer) restarted(cs dataplane.CSID, nowNs int64) {
	keep := r.order[:0]
	for _, id := range r.order {
		if r.active[id].target != cs {
			keep = append(keep, id)
			continue
		}
		r.stats.failed++
		r.finish(id)
		r.nextNs = min(r.nextNs, nowNs)
	}
	r.order = keep
}

// movesAway says whether a chunk is being moved away from cs, to a server that is in members.
func (r *recoverer) movesAway(id dataplane.ChunkID, epoch dataplane.Epoch, cs dataplane.CSID,
	members []dataplane.CSID) bool {
	a := r.active[id]
	return a != nil && a.leaving == cs && a.epoch == epoch && slices.Contains(members, a.target)
}
