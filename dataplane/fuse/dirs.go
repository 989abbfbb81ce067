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
	told    int    // of entries: the kernel knows their positions
	last    string // name of the last entry that was fetched, hidden ones too
	all     bool   // nothing is behind it
}

// dirBatch is how many entries are asked for at once.
const dirBatch = 512

// minEntryPlus is the least that an entry takes in a reply to READDIRPLUS, in bytes.
const minEntryPlus = 160

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
	return fs.list(cancel, in, false, func(e fuse.DirEntry, _ *control.Attr) bool {
		return out.AddDirEntry(e)
	})
}

// ReadDirPlus implements fuse.RawFileSystem. The kernel takes over the attributes as those of the
// moment; the size is where it puts an O_APPEND. So they are fetched by the same request, or left
// out: then the kernel asks for them when it needs them.
func (fs *fileSystem) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn,
	out *fuse.DirEntryList) fuse.Status {
	return fs.list(cancel, in, true, func(e fuse.DirEntry, a *control.Attr) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && a != nil {
			fs.fillEntry(a, entry)
		}
		return entry != nil
	})
}

// list gives add the entries from in.Offset on, until it says false; with plus also attributes,
// which are new, or nil. Position 0 is ".", 1 is "..".
func (fs *fileSystem) list(cancel <-chan struct{}, in *fuse.ReadIn, plus bool,
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
		d.entries, d.told, d.last, d.all = nil, 0, "", false
	}
	old, batch := d.told, dirBatch
	if plus {
		d.forgetUntold()
		batch = min(dirBatch, 1+int(in.Size)/minEntryPlus)
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
			i := int(at - 2)
			if err := fs.fetch(ctx, d, i, batch); err != nil {
				return fs.status("readdir", err)
			}
			if i >= len(d.entries) {
				return fuse.OK
			}
			entry := &d.entries[i]
			e.Name, e.Ino = entry.Name, uint64(entry.Attr.File)
			e.Mode = fileTypes[entry.Attr.Type]
			if i >= old {
				a = &entry.Attr
			}
		}
		if !add(e, a) {
			return fuse.OK
		}
		d.told = max(d.told, int(at)-1)
	}
}

// forgetUntold drops the entries whose positions the kernel doesn't know.
func (d *dirHandle) forgetUntold() {
	if d.told == len(d.entries) {
		return
	}
	d.entries, d.last, d.all = d.entries[:d.told], "", false
	if d.told > 0 {
		d.last = d.entries[d.told-1].Name
	}
}

// fetch makes sure that entry i is there, if it exists. It asks for batch entries at a time.
func (fs *fileSystem) fetch(ctx context.Context, d *dirHandle, i, batch int) error {
	for i >= len(d.entries) && !d.all {
		r, err := fs.b.ReadDir(ctx, d.id, d.last, batch)
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
