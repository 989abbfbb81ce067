package fuse

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"pstorage/dataplane/control"
)

// noLeader is a backend without metadata servers as long as it is away.
type noLeader struct {
	*memory
	away *atomic.Bool
}

func (b noLeader) SetAttr(ctx context.Context, r *control.SetAttrReq) (*control.Attr, error) {
	if b.away.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return b.memory.SetAttr(ctx, r)
}

// TestDataSyncNeedsNoLeader: fdatasync(2) of a file that was written doesn't wait for metadata
// servers.
func TestDataSyncNeedsNoLeader(t *testing.T) {
	b := noLeader{newMemory(), new(atomic.Bool)}
	b.away.Store(true)
	c := bareConn(t, b, time.Hour)
	defer c.fs.stop()
	h := c.fs.handle(1)
	h.node.wrote.Store(time.Now().UnixNano())
	onTestLoop(c.loop, func() { c.arrive(ask(opFsync, 10, uint64(h.node.id), 1, fsyncData)) })
	waitFor(t, c, "fdatasync waits for the metadata servers", func() bool { return c.busy == 0 })
	if h.node.wrote.Load() == 0 {
		t.Error("the time of the write is forgotten")
	}
}
