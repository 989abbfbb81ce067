package mds

import (
	"fmt"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestUsage asks for what directories take while files are made, grow, get chunks, move and go.
// That the numbers are kept right by every command is checkState's business.
func TestUsage(t *testing.T) {
	c := newTestCluster(t, 1)
	k := c.client(dataplane.RoleClient, 7, nil)
	admin := c.client(dataplane.RoleAdmin, 8, nil)
	for n := range byte(3) {
		defer c.newCS(n + 1).keepAlive()()
	}
	want := func(path string, files, dirs, bytes, chunks uint64) {
		t.Helper()
		var doc control.AttrDoc
		admin.admin(control.AdminGetAttr, control.PathArgs{Path: path}, &doc)
		if u := doc.Usage; u == nil || *u != (control.UsageDoc{Files: files, Dirs: dirs, Size: bytes,
			Chunks: chunks, Allocated: chunks * dataplane.ChunkSize}) {
			t.Errorf("%s: %+v, want %d files, %d directories, %d bytes, %d chunks", path, u, files,
				dirs, bytes, chunks)
		}
	}
	a := k.create(dataplane.RootID, "a", control.TypeDir)
	b := k.create(a.File, "b", control.TypeDir)
	f := k.create(b.File, "f", control.TypeFile)
	k.must(control.OpGrow, &control.GrowReq{File: f.File, Size: 1 << 40}, nil)
	k.must(control.OpAllocate, &control.MapReq{File: f.File, First: 5, Count: 3}, &control.MapReply{})
	want("/", 1, 2, 1<<40, 3)
	want("/a/b", 1, 0, 1<<40, 3)
	k.must(control.OpRename, &control.RenameReq{FromParent: a.File, FromName: "b",
		ToParent: dataplane.RootID, ToName: "b"}, nil)
	want("/a", 0, 0, 0, 0)
	want("/", 1, 2, 1<<40, 3)
	k.must(control.OpSetAttr, &control.SetAttrReq{File: f.File, Mask: control.SetSize,
		Size: 6 * dataplane.ChunkSize}, nil)
	want("/b", 1, 0, 6*dataplane.ChunkSize, 1)
	c.stop(0) // and from the log or a snapshot
	c.start(0)
	want("/b", 1, 0, 6*dataplane.ChunkSize, 1)
	k.must(control.OpUnlink, &control.UnlinkReq{Parent: b.File, Name: "f"}, nil)
	want("/", 0, 2, 0, 0)
}

// TestSetAttrRecursive changes the attributes of a whole tree: what isn't named stays as it is.
func TestSetAttrRecursive(t *testing.T) {
	c := newTestCluster(t, 1)
	k := c.client(dataplane.RoleClient, 7, nil)
	admin := c.client(dataplane.RoleAdmin, 8, nil)
	top := k.create(dataplane.RootID, "top", control.TypeDir)
	deep := k.create(top.File, "deep", control.TypeDir)
	paths := []string{"/top", "/top/deep"}
	for i := range belowStep + 10 {
		k.create(deep.File, fmt.Sprint(i), control.TypeFile)
		paths = append(paths, fmt.Sprint("/top/deep/", i))
	}
	k.create(dataplane.RootID, "beside", control.TypeFile)
	one, two, tier := 1, 2, 3
	set := func(args control.SetAttrArgs) {
		admin.admin(control.AdminSetAttr, args, &control.AttrDoc{})
	}
	set(control.SetAttrArgs{Path: "/top/deep/7", Replicas: &two})
	set(control.SetAttrArgs{Path: "/top", Tier: &tier, Minimum: &one, Recursive: true})
	var doc control.AttrDoc
	for _, p := range paths {
		admin.admin(control.AdminGetAttr, control.PathArgs{Path: p}, &doc)
		replicas := 3
		if p == "/top/deep/7" {
			replicas = 2
		}
		if doc.Policy.Tier != 3 || doc.Policy.Minimum != 1 || doc.Policy.Replicas != replicas {
			t.Fatalf("%s: %+v", p, doc.Policy)
		}
	}
	admin.admin(control.AdminGetAttr, control.PathArgs{Path: "/beside"}, &doc)
	if doc.Policy.Tier != 0 {
		t.Errorf("beside: %+v", doc.Policy)
	}
}
