package mds

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"pstorage/dataplane"
)

// The way of a mutation: propose queues the command; runProposals packs what has gathered into one
// log entry and gives it to raft, with a bounded number of entries on their way; raft makes it
// durable on a majority and applies it; runResults hands each command's result back.
const (
	entriesInFlight = 16
	entryBytes      = 256 << 10 // a log entry is closed when it is that long
	entryCommands   = 512
)

// proposal is one command on its way through the log.
type proposal struct {
	ctx    context.Context
	cmd    command
	term   uint64 // it was decided in; 0: it may go into the log in any
	result Result
	err    error
	done   chan struct{}
}

// entryInFlight is a log entry that raft has taken.
type entryInFlight struct {
	future    raft.ApplyFuture
	proposals []*proposal
}

// propose sends a command through the log and returns what it did. An error of kind NotLeader or
// Closed leaves open whether the command will be applied; everything that isn't harmless to repeat
// carries its origin, so that a retry gets the first one's result. So does
// TimedOut: ctx is the caller's own, and ended.
func (r *replica) propose(ctx context.Context, c command) (Result, error) {
	if r.sim != nil {
		return r.sim.propose(c)
	}
	if ctx.Err() != nil { // else it could be queued all the same: a select chooses at random
		return Result{}, r.gaveUp(ctx, "metadata change")
	}
	p := &proposal{ctx: ctx, cmd: c, term: termOf(ctx), done: make(chan struct{})}
	select {
	case r.proposals <- p:
	case <-ctx.Done():
		return Result{}, r.gaveUp(ctx, "metadata change")
	case <-r.stopped:
		return Result{}, errStopped()
	}
	select {
	case <-p.done:
		return p.result, p.err
	case <-ctx.Done():
		return Result{}, r.gaveUp(ctx, "metadata change")
	case <-r.stopped:
		return Result{}, errStopped()
	}
}

// gaveUp is the error of one that waited until ctx ended. If that is because this server leads no
// more, whoever asked is to repeat it at the next leader.
func (r *replica) gaveUp(ctx context.Context, what string) error {
	if errors.Is(context.Cause(ctx), errDeposed) {
		return r.notLeader()
	}
	return dataplane.E(what, dataplane.TimedOut, ctx.Err())
}

func errStopped() error {
	return dataplane.E("metadata change", dataplane.Closed, errors.New("this server is stopping"))
}

// runProposals packs commands into log entries until the replica stops.
func (r *replica) runProposals() {
	defer close(r.entries)
	for {
		var b entryBatch
		select {
		case p := <-r.proposals:
			b.add(r, p)
		case <-r.stopped:
			r.refuseProposals()
			return
		}
		for more := true; more && len(b.entry) < entryBytes && len(b.proposals) < entryCommands; {
			select {
			case p := <-r.proposals:
				b.add(r, p)
			default:
				more = false
			}
		}
		if len(b.proposals) == 0 {
			continue
		}
		entry := finishEntry(b.entry, time.Now().UnixNano(), len(b.proposals))
		assert(len(entry) <= MaxEntry, "log entry too long", len(entry))
		future := r.raft.ApplyLog(guarded(entry, b.term), raftTimeout)
		r.entries <- &entryInFlight{future, b.proposals}
	}
}

// entryBatch is a log entry that is being packed.
type entryBatch struct {
	entry     []byte
	proposals []*proposal
	term      uint64 // that its commands were decided in; 0: any will do
}

// add packs a command. All commands of an entry are of one term; those of an older one are refused.
func (b *entryBatch) add(r *replica, p *proposal) {
	if r.late(p) {
		return
	}
	switch {
	case p.term != 0 && p.term < b.term:
		p.refuse(r.notLeader())
		return
	case p.term > b.term && b.term != 0:
		for _, old := range b.proposals {
			old.refuse(r.notLeader())
		}
		*b = entryBatch{}
	}
	if len(b.proposals) == 0 {
		b.entry = beginEntry(nil)
	}
	b.proposals, b.term = append(b.proposals, p), max(b.term, p.term)
	b.entry = appendCommand(b.entry, p.cmd)
}

func (p *proposal) refuse(err error) {
	p.err = err
	close(p.done)
}

// late answers a proposal that nobody waits for any more, and that wasn't packed yet. If its
// leadership has ended it mustn't be proposed: what it was decided on, as that a lease has run out,
// may not hold in the next one, which may be this server's, too.
func (r *replica) late(p *proposal) bool {
	if p.ctx.Err() == nil {
		return false
	}
	p.refuse(r.gaveUp(p.ctx, "metadata change"))
	return true
}

// refuseProposals answers what is queued when the replica stops.
func (r *replica) refuseProposals() {
	for {
		select {
		case p := <-r.proposals:
			p.refuse(errStopped())
		default:
			return
		}
	}
}

// runResults waits for the entries in their order and hands the results back.
func (r *replica) runResults() {
	for e := range r.entries {
		err := e.future.Error()
		var a applied
		if err == nil {
			a = e.future.Response().(applied)
			err = a.err
		} else {
			err = r.raftError(err)
		}
		for i, p := range e.proposals {
			if err != nil {
				p.err = err
			} else {
				p.result = a.results[i]
			}
			close(p.done)
		}
	}
}

// verifier asks the others whether this server still leads, once for all that ask meanwhile.
type verifier struct {
	// gather is for how long those that ask are gathered before the others are asked: it saves
	// messages where there is time.
	gather  time.Duration
	mu      sync.Mutex
	next    *verification // those that ask now
	running bool
}

type verification struct {
	done chan struct{}
	err  error
}

// beatGather is the verifier.gather of heartbeats: with 1,000 chunk servers there are 2,000 a
// second, and nobody waits for their replies.
const beatGather = 40 * time.Millisecond

// verifyWith returns nil if this server was the leader at some moment after the call began. The
// leadership must have been confirmed by a barrier before: then every change that anybody was told
// of before the call has been applied here, so a read that follows is linearizable.
func (r *replica) verifyWith(ctx context.Context, v *verifier) error {
	if r.isAlone() && r.raft.State() == raft.Leader {
		return nil
	}
	v.mu.Lock()
	if v.next == nil {
		v.next = &verification{done: make(chan struct{})}
	}
	mine := v.next
	if !v.running {
		v.running = true
		go r.runVerify(v)
	}
	v.mu.Unlock()
	select {
	case <-mine.done:
		return mine.err
	case <-ctx.Done():
		return r.gaveUp(ctx, "metadata read")
	}
}

// runVerify serves those that wait, in batches, and ends when none do.
func (r *replica) runVerify(v *verifier) {
	for {
		if v.gather > 0 {
			time.Sleep(v.gather)
		}
		v.mu.Lock()
		batch := v.next
		v.next = nil
		if batch == nil {
			v.running = false
			v.mu.Unlock()
			return
		}
		v.mu.Unlock()
		batch.err = r.raftError(r.raft.VerifyLeader().Error())
		close(batch.done)
	}
}
