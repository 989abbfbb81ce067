package fuse

import (
	"context"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// This file is directory listings. A handle keeps what it has read so far, in the order of names,
// because the kernel comes back with positions.

// dirHandle is one open of a directory.
type dirHandle struct {
	id dataplane.FileID

	mu      sync.Mutex // guards what follows
	entries []control.DirEntry
	last    string // name of the last entry that was fetched, hidden ones too
	all     bool   // nothing is behind it
}

// dirBatch is how many entries are asked for at once.
const dirBatch = 512

// OpenDir implements fuse.RawFileSystem.
func (fs *fileSystem) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn,
	out *fuse.OpenOut) fuse.Status {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.lastFh++
	fs.dirs[fs.lastFh] = &dirHandle{id: dataplane.FileID(in.NodeId)}
	out.Fh = fs.lastFh
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (fs *fileSystem) ReleaseDir(in *fuse.ReleaseIn) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	delete(fs.dirs, in.Fh)
}

// FsyncDir implements fuse.RawFileSystem: the MDS answers only what is durable.
func (fs *fileSystem) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// ReadDir implements fuse.RawFileSystem.
func (fs *fileSystem) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn,
	out *fuse.DirEntryList) fuse.Status {
	return fs.list(cancel, in, func(e fuse.DirEntry, _ *control.Attr) bool {
		return out.AddDirEntry(e)
	})
}

// ReadDirPlus implements fuse.RawFileSystem.
func (fs *fileSystem) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn,
	out *fuse.DirEntryList) fuse.Status {
	return fs.list(cancel, in, func(e fuse.DirEntry, a *control.Attr) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && a != nil {
			fs.fillEntry(a, entry)
		}
		return entry != nil
	})
}

// list gives add the entries from in.Offset on, until it says false. Position 0 is ".", 1 is "..".
func (fs *fileSystem) list(cancel <-chan struct{}, in *fuse.ReadIn,
	add func(fuse.DirEntry, *control.Attr) bool) fuse.Status {
	fs.mu.RLock()
	d := fs.dirs[in.Fh]
	fs.mu.RUnlock()
	if d == nil {
		return fuse.EBADF
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	if in.Offset == 0 { // also rewinddir(3)
		d.entries, d.last, d.all = nil, "", false
	}
	for at := in.Offset; ; at++ {
		e := fuse.DirEntry{Off: at + 1, Mode: fileTypes[control.TypeDir]}
		var a *control.Attr
		switch {
		case at == 0:
			e.Name, e.Ino = ".", uint64(d.id)
		case at == 1:
			e.Name = ".."
		default:
			if err := fs.fetch(ctx, d, int(at-2)); err != nil {
				return fs.status("readdir", err)
			}
			if at-2 >= uint64(len(d.entries)) {
				return fuse.OK
			}
			entry := &d.entries[at-2]
			a = &entry.Attr
			e.Name, e.Ino, e.Mode = entry.Name, uint64(a.File), fileTypes[a.Type]
		}
		if !add(e, a) {
			return fuse.OK
		}
	}
}

// fetch makes sure that entry i is there, if it exists.
func (fs *fileSystem) fetch(ctx context.Context, d *dirHandle, i int) error {
	for i >= len(d.entries) && !d.all {
		r, err := fs.b.ReadDir(ctx, d.id, d.last, dirBatch)
		if err != nil {
			return err
		}
		for _, e := range r.Entries {
			d.last = e.Name
			if !isHidden(d.id, e.Name) {
				d.entries = append(d.entries, e)
			}
		}
		d.all = !r.More || len(r.Entries) == 0
	}
	return nil
}
