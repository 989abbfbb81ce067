package fuse

import (
	"context"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// backend is what the file system needs of a cluster: the methods of client.Client and client.File,
// with their meanings. Tests have one in memory.
type backend interface {
	Lookup(ctx context.Context, parent dataplane.FileID, name string) (*control.Attr, error)
	GetAttr(ctx context.Context, id dataplane.FileID) (*control.Attr, error)
	SetAttr(ctx context.Context, req *control.SetAttrReq) (*control.Attr, error)
	Create(ctx context.Context, req *control.CreateReq) (*control.Attr, error)
	Unlink(ctx context.Context, parent dataplane.FileID, name string, dir bool) error
	Rename(ctx context.Context, req *control.RenameReq) error
	ReadDir(ctx context.Context, dir dataplane.FileID, after string,
		limit int) (*control.ReadDirReply, error)
	StatFS(ctx context.Context) (*control.StatFSReply, error)
	GetXattr(ctx context.Context, id dataplane.FileID, name string) ([]byte, error)
	SetXattr(ctx context.Context, id dataplane.FileID, name string, value []byte,
		flags uint32) error
	RemoveXattr(ctx context.Context, id dataplane.FileID, name string) error
	ListXattr(ctx context.Context, id dataplane.FileID) ([]byte, error)

	OpenAttr(a *control.Attr) (*client.File, error)
	CloseFile(f *client.File) error
	Truncate(ctx context.Context, f *client.File, right client.Right,
		size uint64) (*control.Attr, error)
	Grow(ctx context.Context, f *client.File, size uint64) error
	Seek(ctx context.Context, f *client.File, off int64, hole bool) (int64, error)

	// Do starts op; op.Done is called on the loop's thread and doesn't block. Gone is closed when
	// that may never happen any more.
	Do(op *client.Op)
	Cancel(op *client.Op)
	Gone() <-chan struct{}
	// Start and Stop are Do and Cancel for callers on the loop's thread. Done isn't called from
	// inside them.
	Start(op *client.Op)
	Stop(op *client.Op)
	Loop() *uring.Loop
	// ID tells this client from others.
	ID() uint64
}

// cluster is the backend of a real cluster.
type cluster struct{ *client.Client }

var _ backend = cluster{}

func (cluster) CloseFile(f *client.File) error { return f.Close() }

func (cluster) Truncate(ctx context.Context, f *client.File, right client.Right,
	size uint64) (*control.Attr, error) {
	return f.TruncateBy(ctx, right, size)
}

func (cluster) Grow(ctx context.Context, f *client.File, size uint64) error {
	return f.Grow(ctx, size)
}

func (cluster) Seek(ctx context.Context, f *client.File, off int64, hole bool) (int64, error) {
	return f.Seek(ctx, off, hole)
}

func (c cluster) Start(op *client.Op) { c.Engine().Submit(op) }

func (c cluster) Stop(op *client.Op) { c.Engine().Cancel(op) }

func (c cluster) Gone() <-chan struct{} { return c.Loop().Done() }
