package mds

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestFreedForALostClient: the connection of a client is lost while the removal of its file is on
// its way through the log. Servers are told to forget the chunks all the same.
func TestFreedForALostClient(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	r := &replica{log: log, fsm: &fsm{log: log, s: NewState()}, proposals: make(chan *proposal),
		stopped: make(chan struct{}), raft: newTestCluster(t, 1).nodes[0].r.raft}
	l := newLeader(r, 1)
	l.begin()
	defer l.end()
	l.leases = newLeases(1)
	for i := range uint64(32) { // without care it is told now and then
		ctx, lose := context.WithCancel(t.Context())
		done := make(chan error, 1)
		k := &call{server: &server{r: r, log: log}, ctx: ctx, l: l, op: control.OpUnlink,
			from: origin{7, i + 1}}
		go func() {
			_, err := k.unlink(&control.UnlinkReq{Parent: dataplane.RootID, Name: "f"})
			done <- err
		}()
		var p *proposal
		late := time.After(10 * time.Second)
		select {
		case p = <-r.proposals:
		case <-late:
			t.Fatal("nothing is proposed")
		}
		lose()
		id := dataplane.NewChunkID(1, i)
		p.result.Freed = []freedChunk{{id: id,
			replicas: [dataplane.MaxReplicas]Replica{{CS: 1}}}}
		close(p.done)
		select {
		case <-done:
		case <-late:
			t.Fatal("the request doesn't end")
		}
		l.mu.Lock()
		if !slices.Contains(l.link(1).forget, id) {
			t.Errorf("nobody is told to forget chunk %v", id)
		}
		l.mu.Unlock()
	}
}
