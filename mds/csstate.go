package mds

import (
	"fmt"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// The states of a chunk server, decided in one table from what is known of it.

// missedBeats is after how long a silence a chunk server isn't called active any more.
const missedBeats = 3 * dataplane.HeartbeatEvery

// csFacts is what csCase decides on.
type csFacts struct {
	dropped, failed, releasing bool
	starting                   bool // the leader began a moment ago and hasn't heard of it yet
	exited                     bool // its process is certified to have exited
	lease                      bool // its lease may still be valid
	returning                  bool // registering now
	silent                     time.Duration
	ill                        bool
	stalled                    bool // excluded because writes don't get on there
}

// csCase is the state of a chunk server, one of control.CSActive and so on. What people decided
// comes before what is observed, and what is worse first.
func csCase(f csFacts) string {
	switch {
	case f.dropped:
		return control.CSDropped
	case f.failed:
		return control.CSFailed
	case f.releasing:
		return control.CSReleasing
	case f.returning:
		return control.CSInactive
	case f.stalled && !f.exited:
		return control.CSIll
	case f.starting:
		return control.CSInactive
	case f.exited && f.silent < exitGrace+missedBeats:
		return control.CSInactive
	case f.exited || !f.lease:
		return control.CSOffline
	case f.silent >= missedBeats:
		return control.CSInactive
	case f.ill:
		return control.CSIll
	}
	return control.CSActive
}

// facts gathers what is known of a chunk server. Both locks are held.
func (l *leader) csFacts(c *CS, nowNs int64) csFacts {
	e := l.leases.at(c.ID)
	silent := time.Duration(nowNs - e.answeredNs)
	heard := e.registered || e.answeredNs > l.leases.sinceNs
	return csFacts{dropped: c.Dropped, failed: c.Failed != "" || e.failed, releasing: c.Releasing,
		starting: !heard && silent < leaseOut, exited: e.exitedBoot != 0,
		lease: silent < leaseOut, returning: e.registering > 0, silent: silent,
		ill: l.health.isIll(c.ID), stalled: e.withheld && l.health.heard(c.ID, nowNs)}
}

// csReason says in words why a chunk server is in its state. Both locks are held.
func (l *leader) csReason(s *State, c *CS, state string, f csFacts) string {
	left := s.csLoad[c.ID]
	silent := f.silent.Round(100 * time.Millisecond)
	offline := l.recover.offline
	switch state {
	case control.CSDropped:
		if left > 0 {
			return fmt.Sprintf("removed from the cluster; %d chunks still have to do without it", left)
		}
		return "removed from the cluster"
	case control.CSFailed:
		return "its disk failed: " + c.Failed
	case control.CSReleasing:
		return l.drainReason(s, c, f)
	case control.CSInactive:
		switch {
		case f.returning:
			return "it is registering"
		case f.starting:
			return "not heard of since the metadata server began to lead"
		case f.exited:
			return "its process exited a moment ago"
		}
		return fmt.Sprintf("silent for %v", silent)
	case control.CSOffline:
		what := "silent"
		if f.exited {
			what = "its process exited, silent"
		}
		if left == 0 {
			return fmt.Sprintf("%s for %v", what, silent)
		}
		if f.silent < offline {
			return fmt.Sprintf("%s for %v; after %v its %d chunks are copied to others", what, silent,
				offline, left)
		}
		return fmt.Sprintf("%s for %v; its %d chunks are being copied to others", what, silent, left)
	case control.CSIll:
		return l.health.reason(c.ID)
	}
	if why := l.health.reason(c.ID); why != "" {
		return why
	}
	return ""
}

// watchStates writes an event when a server becomes offline or ill, and when it is well again.
// What is replicated (failed, releasing, dropped) has its events where it is decided. Both locks
// are held.
func (l *leader) watchStates(s *State, nowNs int64) {
	if nowNs-l.statesNs < int64(statesEvery) {
		return
	}
	l.statesNs = nowNs
	for len(l.states) < len(s.cs) {
		l.states = append(l.states, "")
	}
	for id, c := range s.cs {
		if c == nil {
			continue
		}
		f := l.csFacts(c, nowNs)
		state, before := csCase(f), l.states[id]
		if state == before || state == control.CSInactive {
			continue // a short silence is no event
		}
		l.states[id] = state
		l.viewNs = 0
		notable := state == control.CSOffline || state == control.CSIll
		again := before == control.CSOffline || before == control.CSIll
		source := fmt.Sprintf("cs %d", id)
		switch {
		case notable && before != "":
			l.event(control.Warning, source, "cs-"+state, fmt.Sprintf("%s, was %s: %s", state, before,
				l.csReason(s, c, state, f)))
		case state == control.CSActive && again:
			l.event(control.Info, source, "cs-active", "active again, was "+before)
		}
	}
}

// statesEvery is how often states are compared with what they were.
const statesEvery = 250 * time.Millisecond
