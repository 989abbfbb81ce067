package client

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// This file is the namespace: thin typed calls to the metadata servers. Each waits for a leader
// until ctx ends. Errors are *dataplane.Error.

// Lookup finds name in the directory parent.
func (c *Client) Lookup(ctx context.Context, parent dataplane.FileID, name string) (*control.Attr,
	error) {
	return call[control.Attr](ctx, c, control.OpLookup,
		&control.LookupReq{Parent: parent, Name: name})
}

// GetAttr returns the attributes of a file, directory or symlink.
func (c *Client) GetAttr(ctx context.Context, id dataplane.FileID) (*control.Attr, error) {
	a, err := call[control.Attr](ctx, c, control.OpGetAttr, &control.FileReq{File: id})
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.seen(c.files[id], a.Size)
	}
	return a, err
}

// seen is told, under c.mu, which size a file has at the metadata servers, if it is open.
func (c *Client) seen(f *File, size uint64) {
	if f != nil && size < f.Size() {
		c.loop.Post(func() { f.shortened(size) })
	}
}

// SetAttr changes attributes other than the size, for which there is Truncate.
func (c *Client) SetAttr(ctx context.Context, req *control.SetAttrReq) (*control.Attr, error) {
	if req.Mask&control.SetSize != 0 {
		return nil, dataplane.E("set attributes", dataplane.Invalid,
			errors.New("the size is changed by Truncate"))
	}
	return call[control.Attr](ctx, c, control.OpSetAttr, req)
}

// Create makes a file, directory or symlink.
func (c *Client) Create(ctx context.Context, req *control.CreateReq) (*control.Attr, error) {
	return call[control.Attr](ctx, c, control.OpCreate, req)
}

// Mkdir makes a directory.
func (c *Client) Mkdir(ctx context.Context, parent dataplane.FileID, name string,
	mode uint32) (*control.Attr, error) {
	return c.Create(ctx, &control.CreateReq{Parent: parent, Name: name, Type: control.TypeDir,
		Mode: mode, Exclusive: true})
}

// Unlink removes a name; dir says whether it has to be a directory.
func (c *Client) Unlink(ctx context.Context, parent dataplane.FileID, name string, dir bool) error {
	return c.ctl.Call(ctx, control.OpUnlink,
		&control.UnlinkReq{Parent: parent, Name: name, Dir: dir}, nil)
}

// Rename moves an entry.
func (c *Client) Rename(ctx context.Context, req *control.RenameReq) error {
	return c.ctl.Call(ctx, control.OpRename, req, nil)
}

// ReadDir returns at most limit entries of a directory behind the name after, ordered by name.
func (c *Client) ReadDir(ctx context.Context, dir dataplane.FileID, after string,
	limit int) (*control.ReadDirReply, error) {
	return call[control.ReadDirReply](ctx, c, control.OpReadDir,
		&control.ReadDirReq{Dir: dir, After: after, Max: uint32(limit)})
}

// StatFS returns the space of the cluster.
func (c *Client) StatFS(ctx context.Context) (*control.StatFSReply, error) {
	return call[control.StatFSReply](ctx, c, control.OpStatFS, &control.Empty{})
}

// GetXattr returns the value of an extended attribute.
func (c *Client) GetXattr(ctx context.Context, id dataplane.FileID, name string) ([]byte, error) {
	r, err := call[control.XattrReply](ctx, c, control.OpGetXattr,
		&control.XattrReq{File: id, Name: name})
	if err != nil {
		return nil, err
	}
	return r.Value, nil
}

// SetXattr sets an extended attribute; flags as of setxattr(2): 1 create, 2 replace.
func (c *Client) SetXattr(ctx context.Context, id dataplane.FileID, name string, value []byte,
	flags uint32) error {
	return c.ctl.Call(ctx, control.OpSetXattr,
		&control.XattrReq{File: id, Name: name, Value: value, Flags: flags}, nil)
}

// RemoveXattr removes an extended attribute.
func (c *Client) RemoveXattr(ctx context.Context, id dataplane.FileID, name string) error {
	return c.ctl.Call(ctx, control.OpSetXattr,
		&control.XattrReq{File: id, Name: name, Remove: true}, nil)
}

// ListXattr returns the names of the extended attributes, each followed by a NUL.
func (c *Client) ListXattr(ctx context.Context, id dataplane.FileID) ([]byte, error) {
	r, err := call[control.XattrReply](ctx, c, control.OpListXattr, &control.FileReq{File: id})
	if err != nil {
		return nil, err
	}
	return r.Value, nil
}

func call[T any](ctx context.Context, c *Client, op dataplane.Opcode, req any) (*T, error) {
	reply := new(T)
	if err := c.ctl.Call(ctx, op, req, reply); err != nil {
		return nil, err
	}
	return reply, nil
}

// maxSymlinks is how many symlinks a path may go through.
const maxSymlinks = 40

// Resolve finds what is at an absolute path of the cluster, following symlinks; an absolute symlink
// starts at the cluster's root.
func (c *Client) Resolve(ctx context.Context, path string) (*control.Attr, error) {
	root, err := c.GetAttr(ctx, dataplane.RootID)
	if err != nil {
		return nil, err
	}
	trail := []*control.Attr{root} // the directories on the way, for ".."
	rest := strings.Split(path, "/")
	links := 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		here := trail[len(trail)-1]
		switch name {
		case "", ".":
			continue
		case "..":
			trail = trail[:max(1, len(trail)-1)]
			continue
		}
		a, err := c.Lookup(ctx, here.File, name)
		if err != nil {
			return nil, dataplane.E("find "+path, dataplane.KindOf(err), err)
		}
		if a.Type != control.TypeSymlink {
			trail = append(trail, a)
			continue
		}
		if links++; links > maxSymlinks {
			return nil, dataplane.E("find "+path, dataplane.Invalid,
				fmt.Errorf("more than %d symlinks", maxSymlinks))
		}
		if strings.HasPrefix(a.Target, "/") {
			trail = trail[:1]
		}
		rest = append(strings.Split(a.Target, "/"), rest...)
	}
	return trail[len(trail)-1], nil
}
