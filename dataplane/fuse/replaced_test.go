package fuse

import (
	"context"
	"log/slog"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// lostAnswer is a backend that does the last rename and then loses its answer.
type lostAnswer struct {
	*memory
	name    string // what is renamed
	renames *int
}

func (b lostAnswer) Rename(ctx context.Context, r *control.RenameReq) error {
	*b.renames++
	err := b.memory.Rename(ctx, r)
	if err == nil && r.FromName == b.name {
		return fail(dataplane.Closed)
	}
	return err
}

// TestRenameFails: a rename that fails, because what it was to rename is gone, leaves alone the
// open file that it was to replace. If it was done and only the answer is lost, the replaced file
// stays hidden and goes with its last close. In no case is it renamed away first: nobody may meet
// neither of them.
func TestRenameFails(t *testing.T) {
	for _, test := range []struct {
		name string
		done bool // the source is there; the answer is lost
	}{{"source is gone", false}, {"answer is lost", true}} {
		t.Run(test.name, func(t *testing.T) {
			m, renames := newMemory(), 0
			o := &Options{Log: slog.New(slog.DiscardHandler)}
			o.setDefaults()
			fs := newFileSystem(o, lostAnswer{m, "new", &renames})
			defer fs.stop()
			create := func(name string) (dataplane.FileID, uint64) {
				in := &fuse.CreateIn{Flags: syscall.O_RDWR}
				in.NodeId = uint64(dataplane.RootID)
				out := &fuse.CreateOut{}
				if status := fs.Create(nil, in, name, out); status != fuse.OK {
					t.Fatal(status)
				}
				return dataplane.FileID(out.NodeId), out.Fh
			}
			file, fh := create("conf")
			if test.done {
				_, source := create("new")
				fs.release(source)
			}
			in := &fuse.RenameIn{Newdir: uint64(dataplane.RootID)}
			in.NodeId = uint64(dataplane.RootID)
			if status := fs.Rename(nil, in, "new", "conf"); status == fuse.OK {
				t.Fatal("the rename succeeded")
			}
			if renames != 1 {
				t.Errorf("%d renames", renames)
			}
			fs.release(fh)
			a, err := m.Lookup(t.Context(), dataplane.RootID, "conf")
			if err != nil {
				t.Fatalf("the name that was to be replaced: %v", err)
			}
			if is := a.File == file; is == test.done {
				t.Errorf("conf is file %d, it was %d", a.File, file)
			}
			if _, err := m.GetAttr(t.Context(), file); (err != nil) != test.done {
				t.Errorf("the file that was to be replaced, after its last close: %v", err)
			}
		})
	}
}
