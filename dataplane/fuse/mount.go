package fuse

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
)

// Options of Mount. Client and Mountpoint are needed.
type Options struct {
	Client     *client.Client
	Mountpoint string
	AllowOther bool   // other users than the one who mounts
	FSName     string // what mount(8) and df show as the source
	ReadOnly   bool
	Log        *slog.Logger // nil: slog.Default()

	// AttrTTL is for how long the kernel believes names and attributes; default 1 s. A size that
	// another host changed may be seen that much later by stat; reads don't depend on it.
	AttrTTL time.Duration
	// Grace is for how long a waiting request can't be interrupted by a signal; default 10 s. (A Go
	// program gets signals all the time, so a request doesn't end at the first one.)
	Grace time.Duration
	// Debug logs every request of the kernel.
	Debug bool
}

func (o *Options) setDefaults() {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.FSName == "" {
		o.FSName = "pstorage"
	}
	if o.AttrTTL == 0 {
		o.AttrTTL = time.Second
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
}

// Server is a mounted file system.
type Server struct {
	srv        *fuse.Server
	fs         *fileSystem
	mountpoint string
	done       chan struct{}
}

// maxWrite is the largest read or write request of the kernel, in bytes.
const maxWrite = 1 << 20

// maxBackground is how many asynchronous requests the kernel sends at a time.
const maxBackground = 512

// Mount mounts the file system and serves it until it is unmounted. It needs root (CAP_SYS_ADMIN)
// and /dev/fuse. The caller's process must not use files below the mountpoint itself.
func Mount(ctx context.Context, o Options) (*Server, error) {
	if o.Client == nil {
		return nil, dataplane.E("mount", dataplane.Invalid, errors.New("no client"))
	}
	return mount(ctx, o, cluster{o.Client})
}

func mount(ctx context.Context, o Options, b backend) (*Server, error) {
	o.setDefaults()
	if err := ctx.Err(); err != nil {
		return nil, dataplane.E("mount", dataplane.Closed, err)
	}
	dir, err := filepath.Abs(o.Mountpoint)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", o.Mountpoint, err)
	}
	if err := checkDir(dir); err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	fs := newFileSystem(&o, b)
	mo := mountOptions(&o)
	srv, err := fuse.NewServer(fs, dir, mo)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w%s", dir, err, hint(err))
	}
	s := &Server{srv: srv, fs: fs, mountpoint: dir, done: make(chan struct{})}
	go func() {
		srv.Serve()
		fs.shutdown()
		close(s.done)
	}()
	if err := srv.WaitMount(); err != nil {
		srv.Unmount()
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	o.Log.Info("mounted", "on", dir, "readonly", o.ReadOnly)
	return s, nil
}

func mountOptions(o *Options) *fuse.MountOptions {
	mo := &fuse.MountOptions{
		AllowOther:        o.AllowOther,
		Options:           []string{"default_permissions"},
		FsName:            o.FSName,
		Name:              "pstorage",
		MaxBackground:     maxBackground,
		MaxWrite:          maxWrite,
		DisableSplice:     true,
		DirectMountStrict: true,
		Debug:             o.Debug,
		Logger:            log.New(logWriter{o.Log}, "", 0),
		ExtraCapabilities: fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP,
	}
	if o.ReadOnly {
		mo.DirectMountFlags = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_RDONLY
	}
	return mo
}

// logWriter passes go-fuse's lines on.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Debug("fuse: " + strings.TrimSpace(string(p)))
	return len(p), nil
}

// checkDir says what is wrong with a mountpoint, before the kernel does with less detail.
func checkDir(dir string) error {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, syscall.ENOTCONN):
		return fmt.Errorf("%w; an earlier mount died: run umount %s", err, dir)
	case err != nil:
		return err
	case !st.IsDir():
		return syscall.ENOTDIR
	}
	return nil
}

func hint(err error) string {
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return " (mounting needs root)"
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENODEV):
		return " (is the fuse module loaded? try: modprobe fuse)"
	}
	return ""
}

// Mountpoint is the absolute path it is mounted on.
func (s *Server) Mountpoint() string { return s.mountpoint }

// Wait returns when the file system was unmounted, by whomever.
func (s *Server) Wait() { <-s.done }

// Done is closed when the file system was unmounted.
func (s *Server) Done() <-chan struct{} { return s.done }

// Unmount unmounts it. It fails with EBUSY while files are open there.
func (s *Server) Unmount() error {
	if err := s.srv.Unmount(); err != nil {
		return fmt.Errorf("unmount %s: %w", s.mountpoint, err)
	}
	<-s.done
	return nil
}
