package fuse

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/control"
)

// This file is open files, except for their data.

// openFlags of every file: no page cache, writes that don't move the end of the file run in
// parallel.
const openFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES

// Open implements fuse.RawFileSystem.
func (fs *fileSystem) Open(cancel <-chan struct{}, in *fuse.OpenIn,
	out *fuse.OpenOut) fuse.Status {
	write := in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY
	if write && fs.o.ReadOnly {
		return errReadOnly
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	id := dataplane.FileID(in.NodeId)
	n := fs.enter(ctx, id)
	a, err := fs.b.GetAttr(ctx, id)
	if err != nil {
		fs.leave(n)
		return fs.inodeStatus("open", err)
	}
	h, fh, err := fs.open(n, a, write)
	if err == nil && in.Flags&syscall.O_TRUNC != 0 && write {
		if _, err = fs.b.Truncate(ctx, h.file, h.right, 0); err != nil {
			fs.release(fh)
		}
	}
	if err != nil {
		return fs.inodeStatus("open", err)
	}
	out.Fh, out.OpenFlags = fh, openFlags
	return fuse.OK
}

// enter begins an open of a file, before it is known whether the file is there: who removes it
// from now on, on this host, keeps it under a hidden name. Removals that began before, and may be
// of this file, are waited for.
func (fs *fileSystem) enter(ctx context.Context, id dataplane.FileID) *node {
	fs.mu.Lock()
	n := fs.nodes[id]
	if n == nil {
		n = &node{id: id}
		fs.nodes[id] = n
	}
	n.opens++
	var before []chan struct{}
	for done, of := range fs.removals {
		if of == 0 || of == id {
			before = append(before, done)
		}
	}
	fs.mu.Unlock()
	for _, done := range before {
		select {
		case <-done:
		case <-ctx.Done():
		}
	}
	return n
}

// open makes a handle of what enter began, or ends it.
func (fs *fileSystem) open(n *node, a *control.Attr, write bool) (*handle, uint64, error) {
	f, err := fs.b.OpenAttr(a)
	if err != nil {
		fs.leave(n)
		return nil, 0, err
	}
	var right client.Right
	if write {
		right = f.OpenForWrite()
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.lastFh++
	h := &handle{node: n, file: f, write: write, right: right}
	fs.handles[fs.lastFh] = h
	return h, fs.lastFh, nil
}

// Create implements fuse.RawFileSystem: open(2) with O_CREAT of a name that wasn't there. The
// kernel has checked only that its user may make an entry.
func (fs *fileSystem) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string,
	out *fuse.CreateOut) fuse.Status {
	parent := dataplane.FileID(in.NodeId)
	switch {
	case fs.o.ReadOnly:
		return errReadOnly
	case isHidden(parent, name):
		return fuse.EACCES
	case checkName(name) != fuse.OK:
		return checkName(name)
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	a, err := fs.b.Create(ctx, &control.CreateReq{Parent: parent, Name: name,
		Type: control.TypeFile, Mode: in.Mode & 07777, UID: in.Uid, GID: in.Gid, Exclusive: true})
	if dataplane.KindOf(err) == dataplane.Exists && in.Flags&syscall.O_EXCL == 0 {
		// Another host has made it since the kernel looked. Whether its user may open it is for the
		// kernel to check, which it doesn't after a CREATE: it is to look the name up again.
		return fuse.Status(syscall.ESTALE)
	}
	if err != nil {
		return fs.status("create "+name, err)
	}
	_, fh, err := fs.open(fs.enter(ctx, a.File), a, in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY)
	if err != nil {
		return fs.status("create "+name, err)
	}
	fs.fillEntry(a, &out.EntryOut)
	out.Fh, out.OpenFlags = fh, openFlags
	return fuse.OK
}

// Release implements fuse.RawFileSystem: the last close of an open.
func (fs *fileSystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { fs.release(in.Fh) }

func (fs *fileSystem) release(fh uint64) {
	fs.mu.Lock()
	h := fs.handles[fh]
	if h == nil {
		fs.mu.Unlock()
		return
	}
	delete(fs.handles, fh)
	fs.mu.Unlock()
	if h.write {
		h.file.CloseForWrite()
	}
	if err := fs.b.CloseFile(h.file); err != nil {
		fs.log.Warn("close a file", "file", h.node.id, "err", err)
	}
	fs.leave(h.node)
}

// leave ends what enter began. With the last open a file that was removed meanwhile goes.
func (fs *fileSystem) leave(n *node) {
	fs.mu.Lock()
	n.opens--
	last, hidden := n.opens == 0, n.hidden
	done := func() {}
	if last {
		delete(fs.nodes, n.id)
		if hidden != "" {
			done = fs.removing(n.id)
		}
	}
	fs.mu.Unlock()
	defer done()
	switch {
	case !last:
	case hidden != "":
		if err := fs.b.Unlink(fs.base, dataplane.RootID, hidden, false); err != nil {
			fs.log.Warn("remove a file that was deleted while it was open", "name", hidden, "err", err)
		}
	default:
		fs.pushTimes(fs.base, n)
	}
}

// Flush implements fuse.RawFileSystem: each close(2). Data is safe already.
func (fs *fileSystem) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if h := fs.handle(in.Fh); h != nil && h.write && h.node.wrote.Load() != 0 {
		ctx, stop := fs.context(cancel)
		defer stop()
		fs.pushTimes(ctx, h.node)
	}
	return fuse.OK
}

// pushEvery is how often at most an fsync sends the time of modification, too.
const pushEvery = 30 * time.Second

// timesDue says whether an fsync has to send the time of modification.
func (n *node) timesDue() bool {
	return n.wrote.Load() != 0 && time.Now().UnixNano()-n.pushed.Load() > int64(pushEvery)
}

// pushTimes tells the MDS when the file was written last. Until it knows, that isn't forgotten:
// what compares times, as a backup does, would miss the change.
func (fs *fileSystem) pushTimes(ctx context.Context, n *node) {
	w := n.wrote.Load()
	if w == 0 {
		return
	}
	n.pushed.Store(time.Now().UnixNano())
	_, err := fs.b.SetAttr(ctx, &control.SetAttrReq{File: n.id, Mask: control.SetMTime, MTimeNs: w})
	if err == nil || dataplane.KindOf(err) == dataplane.NotFound {
		n.wrote.CompareAndSwap(w, 0)
		return
	}
	fs.log.Warn("time of modification not told", "file", n.id, "err", err)
}

// Fsync implements fuse.RawFileSystem, for those that call.begin doesn't do itself.
func (fs *fileSystem) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := fs.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	if h.node.timesDue() {
		ctx, stop := fs.context(cancel)
		fs.pushTimes(ctx, h.node)
		stop()
	}
	r := newRequest(client.Flush, h.file, 0)
	return fs.run(r, cancel)
}

// Fallocate implements fuse.RawFileSystem. Space isn't reserved; the file grows, or a range is
// zeroed.
func (fs *fileSystem) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := fs.handle(in.Fh)
	switch {
	case h == nil || !h.write:
		return fuse.EBADF
	case in.Offset > client.MaxFileSize || in.Length > client.MaxFileSize ||
		in.Offset+in.Length > client.MaxFileSize:
		return fuse.Status(syscall.EFBIG)
	}
	keep := in.Mode&unix.FALLOC_FL_KEEP_SIZE != 0
	zero := false
	switch in.Mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
	case unix.FALLOC_FL_PUNCH_HOLE:
		zero = true
		if !keep {
			return fuse.ENOTSUP
		}
	case unix.FALLOC_FL_ZERO_RANGE:
		zero = true
	default:
		return fuse.ENOTSUP
	}
	if zero {
		r := newRequest(client.Zero, h.file, int64(in.Offset))
		r.op.Right = h.right
		r.op.Length = int64(in.Length)
		h.node.wrote.Store(time.Now().UnixNano())
		if status := fs.run(r, cancel); status != fuse.OK {
			return status
		}
	}
	if keep {
		return fuse.OK
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	return fs.status("fallocate", fs.b.Grow(ctx, h.file, in.Offset+in.Length))
}

// Lseek implements fuse.RawFileSystem: SEEK_DATA and SEEK_HOLE.
func (fs *fileSystem) Lseek(cancel <-chan struct{}, in *fuse.LseekIn,
	out *fuse.LseekOut) fuse.Status {
	h := fs.handle(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	off, err := fs.b.Seek(ctx, h.file, int64(in.Offset), in.Whence == unix.SEEK_HOLE)
	if dataplane.KindOf(err) == dataplane.NotFound {
		return fuse.Status(syscall.ENXIO)
	}
	out.Offset = uint64(off)
	return fs.status("lseek", err)
}
