package mds

import (
	"time"

	"pstorage/dataplane"
)

// exitGrace is how long a chunk server whose exit was certified may take to register again before
// its chunks are reconfigured without it.
const exitGrace = time.Second

// stopGrace is the same for one that was asked to stop: it may be a restart, which loses no
// membership if it is quick, or a machine that is shut down; writers wait for so long.
const stopGrace = 250 * time.Millisecond

// leaseOut is how long after the last answered heartbeat a lease has certainly run out: the
// server counts from when it sent, on a clock that may be slower by the margin (invariant I4).
const leaseOut = dataplane.LeaseTime + dataplane.LeaseMargin

// csLease is what the leader of the moment knows of a chunk server. Times are ns of the leader's
// monotonic clock.
type csLease struct {
	answeredNs  int64  // last heartbeat or registration answered with a lease
	backNs      int64  // last registration after its lease had run out; 0: none
	exitedNs    int64  // when its exit was certified
	exitedBoot  uint64 // of which process; 0: none
	stopped     bool   // that was planned
	knockedNs   int64  // when a new process was told to wait for the old one's lease
	registering int    // registrations being handled: no exclusion may start
	comingBoot  uint64 // the newest process of those
	endedBoot   uint64 // the one whose exit was certified meanwhile; 0: none
	endedStop   bool   // that was planned
	excluding   int    // exclusions being committed: a registration must wait for them
	adding      int    // chunks being given to it: likewise
	registered  bool   // with this leader: its inventory has been seen
	restarted   bool   // another process than before registered with this leader
	copies      bool   // it holds copies of which this leader, when it was new, didn't know
	failed      bool   // says that its disk failed: no more leases for this process
	relist      bool   // ask for its inventory at the next heartbeat
	doubtNs     int64  // when that was last asked for because others wanted to exclude it
	withheld    bool   // its lease isn't renewed: see yield.go
	yielded     bool   // it says that it has given its lease up
}

// leases is the table of leases. It is soft state of a leader: it begins empty with the term.
// Not safe for concurrent use.
type leases struct {
	sinceNs  int64 // when this leader began: nothing is excluded for one lease time after it
	cs       []csLease
	unfenced bool // a canary of simulations: who was excluded may go on without registering
	hasty    bool // a canary of simulations: nobody's lease is waited for
}

func newLeases(nowNs int64) *leases { return &leases{sinceNs: nowNs} }

// at returns the entry of a server, made when needed.
func (l *leases) at(cs dataplane.CSID) *csLease {
	for int(cs) >= len(l.cs) {
		// Somebody else may have given it a lease until this leader began.
		l.cs = append(l.cs, csLease{answeredNs: l.sinceNs})
	}
	return &l.cs[cs]
}

// live says whether a server's lease is valid, as far as this leader knows. At first all are
// believed to be.
func (l *leases) live(cs dataplane.CSID, nowNs int64) bool {
	e := l.at(cs)
	return e.exitedBoot == 0 && !e.failed && !e.yielded && nowNs-e.answeredNs < int64(leaseOut)
}

// leaseFacts is what leaseCase decides on.
type leaseFacts struct {
	leaderFor   time.Duration // since this leader began
	silentFor   time.Duration // since the last answer that gave a lease
	registering bool
	exited      bool // the exit of the registered process was certified
	exitedFor   time.Duration
	stopped     bool // that was planned
	yielded     bool // it acknowledged that its lease has ended
}

// leaseVerdict says whether a server may be excluded from chunks.
type leaseVerdict uint8

const (
	leaseHeld      leaseVerdict = iota // its lease may still be valid: never
	leaseNewLeader                     // the leader before may have given it a lease
	leaseGrace                         // exited, but may be back in a moment
	leaseReturning                     // registering right now
	leaseGone                          // may be excluded
)

// leaseCase is the rule of invariant I4: a member is excluded only when it certainly doesn't
// serve any more.
func leaseCase(f leaseFacts) leaseVerdict {
	switch {
	case f.registering:
		return leaseReturning
	case f.yielded:
		return leaseGone // said to this leader, by the process that had the lease
	case f.exited && f.silentFor < leaseOut && f.exitedFor < exitGrace &&
		!(f.stopped && f.exitedFor >= stopGrace):
		return leaseGrace
	case f.exited:
		return leaseGone // whichever leader gave it a lease: the process that registered last is no more
	case f.leaderFor < leaseOut:
		return leaseNewLeader
	case f.silentFor >= leaseOut:
		return leaseGone
	}
	return leaseHeld
}

// verdict applies leaseCase to a server.
func (l *leases) verdict(cs dataplane.CSID, nowNs int64) leaseVerdict {
	e := l.at(cs)
	if l.hasty {
		return leaseGone
	}
	return leaseCase(leaseFacts{
		leaderFor:   time.Duration(nowNs - l.sinceNs),
		silentFor:   time.Duration(nowNs - e.answeredNs),
		registering: e.registering > 0 || e.knockedNs != 0 && nowNs-e.knockedNs < int64(exitGrace),
		exited:      e.exitedBoot != 0,
		exitedFor:   time.Duration(nowNs - e.exitedNs),
		stopped:     e.stopped,
		yielded:     e.yielded,
	})
}

// exited notes that the process with that start counter is gone, because it was asked to stop or
// not.
func (l *leases) exited(cs dataplane.CSID, boot uint64, stopped bool, nowNs int64) {
	e := l.at(cs)
	e.exitedBoot, e.stopped, e.exitedNs = boot, stopped, nowNs
}

// registered gives a lease to a process that registered.
func (l *leases) registered(cs dataplane.CSID, nowNs int64) {
	e := l.at(cs)
	if nowNs-e.answeredNs >= int64(leaseOut) {
		e.backNs = nowNs
	}
	e.answeredNs = nowNs
	e.exitedBoot, e.exitedNs = 0, 0
	e.registered, e.failed, e.relist = true, false, false
	e.withheld, e.yielded = false, false
}
