package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/control"
)

// fileSystem answers the kernel's requests. What it doesn't have is answered ENOSYS by the embedded
// default. Files: names.go, files.go, dirs.go, xattrs.go by kind of request; io.go is data.
type fileSystem struct {
	fuse.RawFileSystem
	o    *Options
	b    backend
	log  *slog.Logger
	base context.Context // ends at unmount
	stop context.CancelFunc

	mu      sync.RWMutex // guards what follows, and node.opens, node.hidden
	lastFh  uint64
	handles map[uint64]*handle
	dirs    map[uint64]*dirHandle
	nodes   map[dataplane.FileID]*node // files that are open, or being opened
	// removals are those under way of files that aren't open, closed when they have ended; of which
	// file, 0: that isn't known.
	removals map[chan struct{}]dataplane.FileID
}

// node is a file that is open at least once, or being opened.
type node struct {
	id     dataplane.FileID
	opens  int
	hidden string // its name in the root directory after it was removed; empty: it wasn't

	wrote  atomic.Int64 // time of the last write that the MDS doesn't know of, ns; 0: none
	pushed atomic.Int64 // when that was sent last
}

// handle is one open of a file.
type handle struct {
	node  *node
	file  *client.File
	write bool
	right client.Right // to write

	failed   atomic.Int32 // status of a WRITE that the kernel may want to undo; 0: none. See undo.go
	failedAt time.Time    // of the loop's thread
}

func newFileSystem(o *Options, b backend) *fileSystem {
	fs := &fileSystem{RawFileSystem: fuse.NewDefaultRawFileSystem(), o: o, b: b, log: o.Log,
		handles: map[uint64]*handle{}, dirs: map[uint64]*dirHandle{},
		nodes: map[dataplane.FileID]*node{}, removals: map[chan struct{}]dataplane.FileID{}}
	fs.base, fs.stop = context.WithCancel(context.Background())
	return fs
}

// String implements fuse.RawFileSystem.
func (fs *fileSystem) String() string { return "pstorage" }

// shutdown ends what is under way after the unmount.
func (fs *fileSystem) shutdown() {
	t := time.AfterFunc(shutdownTime, fs.stop)
	defer t.Stop()
	fs.mu.RLock()
	left := slices.Collect(maps.Keys(fs.handles)) // of a lazy unmount, or an aborted connection
	fs.mu.RUnlock()
	for _, fh := range left {
		fs.release(fh)
	}
	fs.stop()
}

// shutdownTime is how long at most the metadata servers are waited for at unmount.
const shutdownTime = 5 * time.Second

// context is that of one metadata request. It ends when the request was interrupted and has
// lasted for longer than the grace.
func (fs *fileSystem) context(cancel <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, stop := context.WithCancel(fs.base)
	go func() {
		select {
		case <-ctx.Done():
			return
		case <-cancel:
		}
		t := time.NewTimer(fs.o.Grace)
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C:
			stop()
		}
	}()
	return ctx, stop
}

// status is what the kernel is told about err. What isn't a matter of course is logged.
func (fs *fileSystem) status(op string, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	kind := dataplane.KindOf(err)
	if errors.Is(err, context.Canceled) {
		return fuse.EINTR
	}
	errno := kind.Errno()
	switch errno {
	case syscall.EIO, syscall.EPROTO, syscall.ESHUTDOWN:
		fs.log.Error("request failed", "op", op, "err", err)
	case syscall.EAGAIN: // regular files don't have it
		errno = syscall.EIO
		fs.log.Error("request failed", "op", op, "err", err)
	}
	return fuse.Status(errno)
}

// inodeStatus is status for a request about a file that the kernel knows by its number. If it is
// gone, its name may be another file's by now, as when it was replaced by a rename: ESTALE has the
// kernel look the name up again, and try once more.
func (fs *fileSystem) inodeStatus(op string, err error) fuse.Status {
	if dataplane.KindOf(err) == dataplane.NotFound {
		return fuse.Status(syscall.ESTALE)
	}
	return fs.status(op, err)
}

const errReadOnly = fuse.Status(syscall.EROFS)

// hiddenPrefix starts the names of removed files that are still open, in the root directory.
const hiddenPrefix = ".pstorage-deleted."

func (fs *fileSystem) hiddenName(id dataplane.FileID) string {
	return fmt.Sprintf("%s%x.%d", hiddenPrefix, fs.b.ID(), id)
}

// isHidden says whether a name is one that users don't see.
func isHidden(parent dataplane.FileID, name string) bool {
	return parent == dataplane.RootID && strings.HasPrefix(name, hiddenPrefix)
}

// openNode returns the node of a file if it is open here.
func (fs *fileSystem) openNode(id dataplane.FileID) *node {
	fs.mu.RLock()
	defer fs.mu.RUnlock()
	return fs.nodes[id]
}

func (fs *fileSystem) handle(fh uint64) *handle {
	fs.mu.RLock()
	h := fs.handles[fh]
	fs.mu.RUnlock()
	return h
}

var fileTypes = map[control.FileType]uint32{
	control.TypeFile:    syscall.S_IFREG,
	control.TypeDir:     syscall.S_IFDIR,
	control.TypeSymlink: syscall.S_IFLNK,
}

// blockSize is what stat(2) recommends for I/O, in bytes: one part of the protocol.
const blockSize = dataplane.PartSize

// fillAttr translates attributes.
func (fs *fileSystem) fillAttr(a *control.Attr, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino:     uint64(a.File),
		Size:    a.Size,
		Mode:    fileTypes[a.Type] | a.Mode&07777,
		Nlink:   max(a.Links, 1),
		Owner:   fuse.Owner{Uid: a.UID, Gid: a.GID},
		Blksize: blockSize,
	}
	if a.Type == control.TypeSymlink && a.Size == 0 {
		out.Size = uint64(len(a.Target))
	}
	used := (a.Size + dataplane.BlockSize - 1) &^ (dataplane.BlockSize - 1)
	out.Blocks = min(a.Allocated*dataplane.ChunkSize, used) / 512
	mtime, ctime := a.MTimeNs, a.CTimeNs
	if a.Type == control.TypeFile {
		fs.mu.RLock()
		if n := fs.nodes[a.File]; n != nil {
			if w := n.wrote.Load(); w > mtime {
				mtime, ctime = w, max(w, ctime)
			}
			if n.hidden != "" {
				out.Nlink = 0
			}
		}
		fs.mu.RUnlock()
	}
	out.Atime, out.Atimensec = splitTime(a.ATimeNs)
	out.Mtime, out.Mtimensec = splitTime(mtime)
	out.Ctime, out.Ctimensec = splitTime(ctime)
}

func splitTime(ns int64) (sec uint64, nsec uint32) {
	t := time.Unix(0, ns)
	return uint64(t.Unix()), uint32(t.Nanosecond())
}

func (fs *fileSystem) fillEntry(a *control.Attr, out *fuse.EntryOut) {
	out.NodeId = uint64(a.File)
	out.Generation = 1 // file ids are never used again
	fs.fillAttr(a, &out.Attr)
	out.SetEntryTimeout(fs.o.AttrTTL)
	out.SetAttrTimeout(fs.o.AttrTTL)
}
