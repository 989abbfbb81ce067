package fuse

import (
	"context"
	"log/slog"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pstorage/dataplane"
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

// TestTimeIsNotForgotten: that the metadata servers couldn't be told the time of modification, as
// the request was interrupted, doesn't mean that they never are.
func TestTimeIsNotForgotten(t *testing.T) {
	b := noLeader{newMemory(), new(atomic.Bool)}
	o := &Options{Log: slog.New(slog.DiscardHandler), Grace: time.Millisecond}
	o.setDefaults()
	fs := newFileSystem(o, b)
	defer fs.stop()
	in, out := &fuse.CreateIn{Flags: syscall.O_RDWR}, &fuse.CreateOut{}
	in.NodeId = uint64(dataplane.RootID)
	if status := fs.Create(nil, in, "f", out); status != fuse.OK {
		t.Fatal(status)
	}
	written := time.Now().Add(time.Hour).UnixNano()
	fs.handle(out.Fh).node.wrote.Store(written)
	b.away.Store(true)
	signal := make(chan struct{})
	close(signal)
	fs.Flush(signal, &fuse.FlushIn{Fh: out.Fh})
	b.away.Store(false)
	fs.release(out.Fh)
	a, err := b.GetAttr(t.Context(), dataplane.FileID(out.NodeId))
	if err != nil || a.MTimeNs != written {
		t.Errorf("modified %v, and written %v; %v", time.Unix(0, a.MTimeNs), time.Unix(0, written),
			err)
	}
}
