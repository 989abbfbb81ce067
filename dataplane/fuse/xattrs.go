package fuse

import (
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pstorage/dataplane"
)

// This file is extended attributes: those of users, of root, and of security modules. ACLs
// (system.*) aren't supported.

func supportedXattr(name string) bool {
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.") ||
		strings.HasPrefix(name, "security.")
}

// GetXAttr implements fuse.RawFileSystem.
func (fs *fileSystem) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string,
	dst []byte) (uint32, fuse.Status) {
	if !supportedXattr(name) {
		return 0, fuse.ENOTSUP
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	v, err := fs.b.GetXattr(ctx, dataplane.FileID(in.NodeId), name)
	if err != nil {
		return 0, fs.inodeStatus("getxattr", err)
	}
	return fill(dst, v)
}

// ListXAttr implements fuse.RawFileSystem.
func (fs *fileSystem) ListXAttr(cancel <-chan struct{}, in *fuse.InHeader,
	dst []byte) (uint32, fuse.Status) {
	ctx, stop := fs.context(cancel)
	defer stop()
	v, err := fs.b.ListXattr(ctx, dataplane.FileID(in.NodeId))
	if err != nil {
		return 0, fs.inodeStatus("listxattr", err)
	}
	return fill(dst, v)
}

func fill(dst, v []byte) (uint32, fuse.Status) {
	if len(dst) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dst, v)), fuse.OK
}

// SetXAttr implements fuse.RawFileSystem.
func (fs *fileSystem) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string,
	value []byte) fuse.Status {
	switch {
	case fs.o.ReadOnly:
		return errReadOnly
	case !supportedXattr(name):
		return fuse.ENOTSUP
	case len(value) > maxXattr:
		return fuse.Status(syscall.E2BIG)
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	return fs.inodeStatus("setxattr", fs.b.SetXattr(ctx, dataplane.FileID(in.NodeId), name,
		append([]byte{}, value...), in.Flags))
}

// maxXattr is the longest value, in bytes, as the kernel has it.
const maxXattr = 64 << 10

// RemoveXAttr implements fuse.RawFileSystem.
func (fs *fileSystem) RemoveXAttr(cancel <-chan struct{}, in *fuse.InHeader,
	name string) fuse.Status {
	switch {
	case fs.o.ReadOnly:
		return errReadOnly
	case !supportedXattr(name):
		return fuse.ENOTSUP
	}
	ctx, stop := fs.context(cancel)
	defer stop()
	return fs.inodeStatus("removexattr", fs.b.RemoveXattr(ctx, dataplane.FileID(in.NodeId), name))
}
