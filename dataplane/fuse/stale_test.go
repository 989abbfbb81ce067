package fuse

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestReplacedByAnother: another host replaces a file by a rename while the kernel still believes
// in the name. Who opens it, or changes its attributes, gets the new one, and nobody is told that
// there is none.
func TestReplacedByAnother(t *testing.T) { overBoth(t, "", testReplacedByAnother) }

func testReplacedByAnother(t *testing.T, dir string) {
	name := filepath.Join(dir, "conf")
	must(t, os.WriteFile(name, []byte("old"), 0600))
	_, err := os.Stat(name)
	must(t, err)
	must(t, unix.Setxattr(name, replaceAttribute, []byte("new"), 0))
	if got, err := os.ReadFile(name); string(got) != "new" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	must(t, unix.Setxattr(name, replaceAttribute, []byte("newer"), 0))
	must(t, os.Chmod(name, 0640))
	if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0640 || st.Size() != 5 {
		t.Errorf("%+v, %v", st, err)
	}
}

// TestCreatedByAnother: another host makes a file when open(2) with O_CREAT has just looked for it.
// Who may not open it doesn't get it because it was to be created.
func TestCreatedByAnother(t *testing.T) { overBoth(t, "", testCreatedByAnother) }

func testCreatedByAnother(t *testing.T, dir string) {
	must(t, os.Chmod(dir, 0777))
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0) // the way to it is for root only
	must(t, err)
	defer unix.Close(root)
	for _, test := range []struct {
		name  string
		user  int
		flags int
		want  error
	}{
		{"secret", 1000, 0, syscall.EACCES},
		{"open", 0, 0, nil},
		{"exclusive", 0, unix.O_EXCL, syscall.EEXIST},
	} {
		must(t, unix.Setxattr(dir, makeAttribute, []byte(test.name), 0))
		runtime.LockOSThread()
		must(t, unix.Setfsuid(test.user))
		fd, err := unix.Openat(root, test.name, unix.O_RDWR|unix.O_CREAT|test.flags, 0600)
		must(t, unix.Setfsuid(0))
		runtime.UnlockOSThread()
		if err == nil {
			unix.Close(fd)
		}
		is(t, test.name, err, test.want)
	}
}

// slowRemoval is a backend in which removals of a name wait.
type slowRemoval struct {
	*memory
	began chan string
	end   chan struct{}
}

func (b slowRemoval) wait(name string) {
	if name == "f" {
		b.began <- name
		<-b.end
	}
}

func (b slowRemoval) Unlink(ctx context.Context, parent dataplane.FileID, name string,
	dir bool) error {
	b.wait(name)
	return b.memory.Unlink(ctx, parent, name, dir)
}

func (b slowRemoval) Rename(ctx context.Context, r *control.RenameReq) error {
	b.wait(r.ToName)
	return b.memory.Rename(ctx, r)
}

// TestOpenWhileRemoved: a file is opened here while it is being removed, or replaced, here. Either
// the open succeeds, and the file is there until it is closed, or it says that the file is gone:
// the kernel looks the name up again then.
func TestOpenWhileRemoved(t *testing.T) {
	for _, test := range []struct {
		name            string
		replace, others bool // files are open
	}{{"removed", false, false}, {"removed, one of several", false, true},
		{"replaced", true, false}, {"replaced, one of several", true, true}} {
		t.Run(test.name, func(t *testing.T) {
			b := slowRemoval{newMemory(), make(chan string), make(chan struct{})}
			o := &Options{Log: slog.New(slog.DiscardHandler)}
			o.setDefaults()
			fs := newFileSystem(o, b)
			defer fs.stop()
			root := uint64(dataplane.RootID)
			make := func(name string) (id, fh uint64) {
				in, out := &fuse.CreateIn{Flags: syscall.O_RDWR}, &fuse.CreateOut{}
				in.NodeId = root
				if status := fs.Create(nil, in, name, out); status != fuse.OK {
					t.Fatal(status)
				}
				return out.NodeId, out.Fh
			}
			id, fh := make("f")
			fs.release(fh)
			if _, fh = make("new"); !test.others {
				fs.release(fh)
			}
			removed := goStatus(func() fuse.Status {
				if !test.replace {
					return fs.Unlink(nil, &fuse.InHeader{NodeId: root}, "f")
				}
				in := &fuse.RenameIn{Newdir: root}
				in.NodeId = root
				return fs.Rename(nil, in, "new", "f")
			})
			<-b.began
			out := &fuse.OpenOut{}
			opened := goStatus(func() fuse.Status {
				in := &fuse.OpenIn{Flags: syscall.O_RDONLY}
				in.NodeId = id
				return fs.Open(nil, in, out)
			})
			time.Sleep(20 * time.Millisecond) // an open that doesn't wait has ended by then
			b.end <- struct{}{}
			if status := <-removed; status != fuse.OK {
				t.Fatal(status)
			}
			_, err := b.GetAttr(t.Context(), dataplane.FileID(id))
			switch status := <-opened; {
			case status == fuse.OK && err != nil:
				t.Errorf("open here, and gone: %v", err)
			case status != fuse.OK && status != fuse.Status(syscall.ESTALE):
				t.Errorf("open: %v", status)
			case status == fuse.OK:
				fs.release(out.Fh)
			}
			if test.others {
				fs.release(fh)
			}
			if len(fs.nodes)+len(fs.removals)+len(fs.handles) > 0 {
				t.Errorf("%d nodes, %d removals and %d handles are left", len(fs.nodes),
					len(fs.removals), len(fs.handles))
			}
		})
	}
}

func goStatus(f func() fuse.Status) <-chan fuse.Status {
	c := make(chan fuse.Status, 1)
	go func() { c <- f() }()
	return c
}
