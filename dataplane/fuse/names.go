package fuse

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/control"
)

// This file is names and attributes.

// Lookup implements fuse.RawFileSystem.
func (fs *fileSystem) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string,
	out *fuse.EntryOut) fuse.Status {
	parent := dataplane.FileID(in.NodeId)
	if status := checkName(name); status != fuse.OK {
		return status
	}
	if isHidden(parent, name) {
		return fuse.ENOENT
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	a, err := fs.b.Lookup(ctx, parent, name)
	if err != nil {
		return fs.status("lookup "+name, err)
	}
	fs.fillEntry(a, out)
	return fuse.OK
}

// checkName refuses what no entry can be called.
func checkName(name string) fuse.Status {
	if len(name) > dataplane.MaxNameLen {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	return fuse.OK
}

// Forget implements fuse.RawFileSystem. Nothing is kept per inode.
func (fs *fileSystem) Forget(nodeid, nlookup uint64) {}

// GetAttr implements fuse.RawFileSystem.
func (fs *fileSystem) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn,
	out *fuse.AttrOut) fuse.Status {
	ctx, stop := fs.context(cancel)
	defer stop()
	a, err := fs.b.GetAttr(ctx, dataplane.FileID(in.NodeId))
	if err != nil {
		return fs.inodeStatus("getattr", err)
	}
	fs.fillAttr(a, &out.Attr)
	out.SetTimeout(fs.o.AttrTTL)
	return fuse.OK
}

// SetAttr implements fuse.RawFileSystem: truncate, chmod, chown, utimensat.
func (fs *fileSystem) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn,
	out *fuse.AttrOut) fuse.Status {
	if fs.o.ReadOnly {
		return errReadOnly
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	id := dataplane.FileID(in.NodeId)
	var a *control.Attr
	var err error
	if size, ok := in.GetSize(); ok {
		if fh, ok := in.GetFh(); ok {
			if h := fs.handle(fh); h != nil {
				if status := h.refuseUndo(); status != fuse.OK {
					return status
				}
			}
		}
		if a, err = fs.truncate(ctx, id, in, size); err != nil {
			return fs.inodeStatus("truncate", err)
		}
	}
	if req := setAttrReq(id, in, time.Now()); req.Mask != 0 {
		if a, err = fs.b.SetAttr(ctx, req); err != nil {
			return fs.inodeStatus("setattr", err)
		}
		if n := fs.openNode(id); n != nil && req.Mask&control.SetMTime != 0 {
			n.wrote.Store(0) // what the user says holds
		}
	}
	if a == nil { // only what isn't stored, as the time of the last change
		if a, err = fs.b.GetAttr(ctx, id); err != nil {
			return fs.inodeStatus("getattr", err)
		}
	}
	fs.fillAttr(a, &out.Attr)
	out.SetTimeout(fs.o.AttrTTL)
	return fuse.OK
}

func (fs *fileSystem) truncate(ctx context.Context, id dataplane.FileID, in *fuse.SetAttrIn,
	size uint64) (*control.Attr, error) {
	if size > client.MaxFileSize {
		return nil, dataplane.E("truncate", dataplane.TooLarge, nil)
	}
	if fh, ok := in.GetFh(); ok {
		if h := fs.handle(fh); h != nil {
			return fs.b.Truncate(ctx, h.file, h.right, size)
		}
	}
	a, err := fs.b.GetAttr(ctx, id)
	if err != nil {
		return nil, err
	}
	f, err := fs.b.OpenAttr(a)
	if err != nil {
		return nil, err
	}
	defer fs.b.CloseFile(f)
	right := f.OpenForWrite() // for so long: others may have it open here, for reading
	defer f.CloseForWrite()
	return fs.b.Truncate(ctx, f, right, size)
}

// setAttrReq translates all but the size.
func setAttrReq(id dataplane.FileID, in *fuse.SetAttrIn, now time.Time) *control.SetAttrReq {
	req := &control.SetAttrReq{File: id}
	if in.Valid&fuse.FATTR_MODE != 0 {
		req.Mask |= control.SetMode
		req.Mode = in.Mode & 07777
	}
	if in.Valid&fuse.FATTR_UID != 0 {
		req.Mask |= control.SetUID
		req.UID = in.Owner.Uid
	}
	if in.Valid&fuse.FATTR_GID != 0 {
		req.Mask |= control.SetGID
		req.GID = in.Owner.Gid
	}
	set := func(bit, nowBit, mask uint32, sec uint64, nsec uint32, to *int64) {
		if in.Valid&(bit|nowBit) == 0 {
			return
		}
		req.Mask |= mask
		*to = int64(sec)*1e9 + int64(nsec)
		if in.Valid&nowBit != 0 {
			*to = now.UnixNano()
		}
	}
	set(fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, control.SetATime, in.Atime, in.Atimensec,
		&req.ATimeNs)
	set(fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, control.SetMTime, in.Mtime, in.Mtimensec,
		&req.MTimeNs)
	return req
}

// make creates an entry and answers it.
func (fs *fileSystem) make(cancel <-chan struct{}, in *fuse.InHeader, req *control.CreateReq,
	out *fuse.EntryOut) fuse.Status {
	if fs.o.ReadOnly {
		return errReadOnly
	}
	req.Parent = dataplane.FileID(in.NodeId)
	req.UID, req.GID = in.Uid, in.Gid
	req.Exclusive = true
	if status := checkName(req.Name); status != fuse.OK {
		return status
	}
	if isHidden(req.Parent, req.Name) {
		return fuse.EACCES
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	a, err := fs.b.Create(ctx, req)
	if err != nil {
		return fs.status("create "+req.Name, err)
	}
	fs.fillEntry(a, out)
	return fuse.OK
}

// Mkdir implements fuse.RawFileSystem.
func (fs *fileSystem) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string,
	out *fuse.EntryOut) fuse.Status {
	return fs.make(cancel, &in.InHeader, &control.CreateReq{Name: name, Type: control.TypeDir,
		Mode: in.Mode & 07777}, out)
}

// Mknod implements fuse.RawFileSystem, for regular files.
func (fs *fileSystem) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string,
	out *fuse.EntryOut) fuse.Status {
	if t := in.Mode & syscall.S_IFMT; t != 0 && t != syscall.S_IFREG {
		return fuse.EPERM
	}
	return fs.make(cancel, &in.InHeader, &control.CreateReq{Name: name, Type: control.TypeFile,
		Mode: in.Mode & 07777}, out)
}

// Symlink implements fuse.RawFileSystem.
func (fs *fileSystem) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target string,
	name string, out *fuse.EntryOut) fuse.Status {
	return fs.make(cancel, in, &control.CreateReq{Name: name, Type: control.TypeSymlink,
		Mode: 0777, Target: target}, out)
}

// Readlink implements fuse.RawFileSystem.
func (fs *fileSystem) Readlink(cancel <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	ctx, stop := fs.context(cancel)
	defer stop()
	a, err := fs.b.GetAttr(ctx, dataplane.FileID(in.NodeId))
	if err != nil {
		return nil, fs.status("readlink", err)
	}
	if a.Type != control.TypeSymlink {
		return nil, fuse.EINVAL
	}
	return []byte(a.Target), fuse.OK
}

// Link implements fuse.RawFileSystem: there are no hard links.
func (fs *fileSystem) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Rmdir implements fuse.RawFileSystem.
func (fs *fileSystem) Rmdir(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if fs.o.ReadOnly {
		return errReadOnly
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	return fs.status("rmdir "+name, fs.b.Unlink(ctx, dataplane.FileID(in.NodeId), name, true))
}

// Unlink implements fuse.RawFileSystem.
func (fs *fileSystem) Unlink(cancel <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	parent := dataplane.FileID(in.NodeId)
	switch {
	case fs.o.ReadOnly:
		return errReadOnly
	case isHidden(parent, name):
		return fuse.ENOENT
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	n, done, err := fs.hide(ctx, parent, name)
	defer done()
	switch {
	case err != nil:
	case n != nil:
		err = fs.removed(ctx, n)
	default:
		err = fs.b.Unlink(ctx, parent, name, false)
	}
	return fs.status("unlink "+name, err)
}

// removing notes that a file, one that isn't open (0: it isn't known which one), is about to be
// removed. Who opens it waits until the result is called, and finds out then whether it is there.
// fs.mu is held.
func (fs *fileSystem) removing(id dataplane.FileID) (end func()) {
	done := make(chan struct{})
	fs.removals[done] = id
	return func() {
		fs.mu.Lock()
		defer fs.mu.Unlock()
		delete(fs.removals, done)
		close(done)
	}
}

// openOrRemoving returns the node of a file that is about to lose its name, if it is open, else
// nil. done is to be called when it has lost it.
func (fs *fileSystem) openOrRemoving(id dataplane.FileID) (n *node, done func()) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if n := fs.nodes[id]; n != nil {
		return n, func() {}
	}
	return nil, fs.removing(id)
}

// noneOpen says whether no file is open here. Then done is to be called when the file, whichever it
// is, has lost its name.
func (fs *fileSystem) noneOpen() (none bool, done func()) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(fs.nodes) > 0 {
		return false, func() {}
	}
	return true, fs.removing(0)
}

// hide moves a file that is open here to a hidden name, instead of losing it; see the package
// comment. Then removed is to be called. It returns nil if the file isn't open: the caller removes
// it. done is to be called after that.
func (fs *fileSystem) hide(ctx context.Context, parent dataplane.FileID, name string) (n *node,
	done func(), err error) {
	none, done := fs.noneOpen()
	if none {
		return nil, done, nil
	}
	a, err := fs.b.Lookup(ctx, parent, name)
	if err != nil {
		return nil, done, err
	}
	if n, done = fs.openOrRemoving(a.File); n == nil {
		return nil, done, nil
	}
	to := fs.hiddenName(a.File)
	err = fs.b.Rename(ctx, &control.RenameReq{FromParent: parent, FromName: name,
		ToParent: dataplane.RootID, ToName: to})
	if err != nil {
		return nil, done, fmt.Errorf("keep %s, which is open, as %s: %w", name, to, err)
	}
	return n, done, nil
}

// removed has a hidden file removed with its last close.
func (fs *fileSystem) removed(ctx context.Context, n *node) error {
	to := fs.hiddenName(n.id)
	fs.mu.Lock()
	if now := fs.nodes[n.id]; now != nil { // n, or one who opened it when n was closed
		now.hidden = to
		fs.mu.Unlock()
		return nil
	}
	done := fs.removing(n.id)
	fs.mu.Unlock()
	defer done()
	return fs.b.Unlink(ctx, dataplane.RootID, to, false)
}

// keepReplaced has a rename keep the file that it replaces, under a hidden name, if that is open
// here. It returns nil if it isn't. done is to be called after the rename.
func (fs *fileSystem) keepReplaced(ctx context.Context, req *control.RenameReq) (n *node,
	done func(), err error) {
	none, done := fs.noneOpen()
	if none {
		return nil, done, nil
	}
	a, err := fs.b.Lookup(ctx, req.ToParent, req.ToName)
	if dataplane.KindOf(err) == dataplane.NotFound {
		return nil, done, nil
	}
	if err != nil {
		return nil, done, err
	}
	if n, done = fs.openOrRemoving(a.File); n != nil {
		req.Keep, req.Kept = fs.hiddenName(n.id), n.id
	}
	return n, done, nil
}

// replaced has the file that a rename was to replace removed with its last close, if the rename was
// done: failed says that it isn't known.
func (fs *fileSystem) replaced(n *node, failed bool) {
	ctx, stop := context.WithTimeout(fs.base, fs.o.Grace)
	defer stop()
	a, err := fs.b.Lookup(ctx, dataplane.RootID, fs.hiddenName(n.id))
	switch {
	case dataplane.KindOf(err) == dataplane.NotFound:
		return // not done; or another host had replaced the file before
	case err == nil && a.File == n.id:
		err = fs.removed(ctx, n)
	case err != nil && !failed:
		err = fs.removed(ctx, n)
	}
	if err != nil {
		fs.log.Warn("remove a file that was replaced while it was open", "name", fs.hiddenName(n.id),
			"err", err)
	}
}

// Rename implements fuse.RawFileSystem.
func (fs *fileSystem) Rename(cancel <-chan struct{}, in *fuse.RenameIn, oldName string,
	newName string) fuse.Status {
	from, to := dataplane.FileID(in.NodeId), dataplane.FileID(in.Newdir)
	switch {
	case fs.o.ReadOnly:
		return errReadOnly
	case in.Flags&^unix.RENAME_NOREPLACE != 0:
		return fuse.EINVAL
	case isHidden(from, oldName):
		return fuse.ENOENT
	case isHidden(to, newName):
		return fuse.EACCES
	case checkName(newName) != fuse.OK:
		return checkName(newName)
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	noReplace := in.Flags&unix.RENAME_NOREPLACE != 0
	req := &control.RenameReq{FromParent: from, FromName: oldName, ToParent: to, ToName: newName,
		NoReplace: noReplace}
	var open *node
	if !noReplace && (from != to || oldName != newName) {
		n, done, err := fs.keepReplaced(ctx, req)
		defer done()
		if err != nil {
			return fs.status("rename to "+newName, err)
		}
		open = n
	}
	err := fs.b.Rename(ctx, req)
	if open != nil {
		fs.replaced(open, err != nil)
	}
	return fs.status("rename "+oldName, err)
}

// StatFs implements fuse.RawFileSystem.
func (fs *fileSystem) StatFs(cancel <-chan struct{}, in *fuse.InHeader,
	out *fuse.StatfsOut) fuse.Status {
	ctx, stop := fs.context(cancel)
	defer stop()
	s, err := fs.b.StatFS(ctx)
	if err != nil {
		return fs.status("statfs", err)
	}
	*out = fuse.StatfsOut{
		Bsize:   dataplane.BlockSize,
		Frsize:  dataplane.BlockSize,
		Blocks:  s.Total / dataplane.BlockSize,
		Bfree:   s.Free / dataplane.BlockSize,
		Bavail:  s.Free / dataplane.BlockSize,
		Files:   s.Files + maxFreeFiles,
		Ffree:   maxFreeFiles,
		NameLen: dataplane.MaxNameLen,
	}
	return fuse.OK
}

// maxFreeFiles is what statfs says about how many files can still be made: there is no fixed limit.
const maxFreeFiles = 1 << 30
