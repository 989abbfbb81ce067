package mds

import (
	"context"
	"sync"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

// This file ends the older connections of a client. It has one at a time, and repeats over the next
// one what wasn't answered. What it had sent over the one before may still be on its way: the
// kernels repeat it for a while, also when both programs have given the connection up. Most changes
// are done once however often they are asked for, but a Grow from before a truncation would make
// the file longer again, and a grant from before a release would keep others from it.

// newest are the connections of clients that came last, by the client's id.
type newest struct {
	mu    sync.Mutex
	conns map[uint64]*connEnd
}

// connEnd ends a connection.
type connEnd struct{ cancel context.CancelFunc }

// admit is told of a connection before anything of it is served. ctx ends when a newer one of the
// same client comes; done is to be called when it has ended. Only clients have an id of their own
// in each process.
func (n *newest) admit(ctx context.Context, p session.Peer) (_ context.Context, done func()) {
	if p.Role != dataplane.RoleClient || p.ID == 0 {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	me := &connEnd{cancel}
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.conns[p.ID]; old != nil {
		old.cancel()
	}
	if n.conns == nil {
		n.conns = make(map[uint64]*connEnd)
	}
	n.conns[p.ID] = me
	return ctx, func() {
		cancel()
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.conns[p.ID] == me {
			delete(n.conns, p.ID)
		}
	}
}
