package mds

import (
	"context"
	"errors"
	"sync"

	"github.com/hashicorp/raft"

	"pstorage/dataplane/control"
)

// Observer tells monitoring and the service manager about a running metadata server. Its methods
// may be called by any goroutine, also after the server has ended.
type Observer struct {
	s *server

	mu    sync.RWMutex
	ended bool // what s has is closed
}

// ErrEnded is the answer of an Observer whose server has ended.
var ErrEnded = errors.New("the metadata server has ended")

// Observation is what a metadata server says of itself.
type Observation struct {
	Node    uint32
	Cluster string
	Leads   bool
	State   string // of Raft: "Leader", "Follower", "Candidate", "Shutdown"
	Term    uint64
	// Last is the index of the newest entry in its log, Commit of the newest that it knows to be
	// committed, Applied of the newest in its state.
	Last, Commit, Applied uint64

	Events       uint64                    // so far, in the life of the cluster
	RecentEvents [control.Fault + 1]uint64 // of the hour before the newest entry, by severity

	Stat  *control.StatDoc // nil if it doesn't lead
	Watch MapWatchDoc      // zero if it doesn't lead
}

const recentNs = int64(3600e9)

// Observe describes the server. It reads the whole chunk table if the server leads.
func (o *Observer) Observe() (*Observation, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.ended {
		return nil, ErrEnded
	}
	r := o.s.r
	d := &Observation{Node: o.s.id.Node, Cluster: o.s.id.ClusterName, State: r.raft.State().String(),
		Term: r.raft.CurrentTerm(), Last: r.raft.LastIndex(), Commit: r.raft.CommitIndex(),
		Applied: r.raft.AppliedIndex()}
	f := r.fsm
	f.mu.RLock()
	d.Events = f.s.nextEvent - 1 // they count from 1
	since := f.s.nowNs - recentNs
	q := f.s.events.capture()
	f.mu.RUnlock()
	q.each(func(e *control.Event) bool {
		if e.TimeNs >= since && int(e.Severity) < len(d.RecentEvents) {
			d.RecentEvents[e.Severity]++
		}
		return true
	})
	if l := o.s.lead.Load(); l != nil {
		d.Leads, d.Stat, d.Watch = true, l.stat(), l.watch.doc()
	}
	return d, nil
}

// Alive returns nil as soon as Raft's own goroutine has answered and the state could be read, or
// ctx's error if that takes longer. Whether the server leads, or has a leader, doesn't matter.
func (o *Observer) Alive(ctx context.Context) error {
	answer := make(chan error, 1)
	go func() {
		o.mu.RLock()
		defer o.mu.RUnlock()
		if o.ended {
			answer <- ErrEnded
			return
		}
		err := o.s.r.raft.VerifyLeader().Error() // any answer will do
		if l := o.s.lead.Load(); l != nil {
			l.mu.Lock() // that it can be had is the question
			_ = l.viewNs
			l.mu.Unlock()
		}
		o.s.r.fsm.mu.RLock()
		failed := o.s.r.fsm.failed
		o.s.r.fsm.mu.RUnlock()
		if errors.Is(err, raft.ErrRaftShutdown) {
			failed = err
		}
		answer <- failed
	}()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end waits for calls that are under way and refuses all others.
func (o *Observer) end() {
	o.mu.Lock()
	o.ended = true
	o.mu.Unlock()
}
