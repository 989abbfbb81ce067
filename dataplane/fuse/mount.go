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
	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/uring"
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
	// another host changed may be seen that much later by stat, and by reads with O_DIRECT through
	// libaio or io_uring, which end at the size that the kernel believes. Other reads don't depend
	// on it.
	AttrTTL time.Duration
	// Grace is for how long a waiting request can't be interrupted by a signal; default 10 s. (A Go
	// program gets signals all the time, so a request doesn't end at the first one.)
	Grace time.Duration
	// OverRing says whether the kernel's requests come over io_uring. The Client's loop must have
	// been made with LoopFlags for it.
	OverRing OverRing
	// Debug logs every request of the kernel but reads and writes.
	Debug bool

	hooks hooks
}

// hooks are what tests change.
type hooks struct {
	mapMemory  func(n int) ([]byte, error) // of the queues
	firstQueue uint16                      // the kernel's begin with 0
	restAfter  time.Duration
}

// OverRing is the choice between FUSE over io_uring and /dev/fuse.
type OverRing uint8

// The choices. Auto is io_uring where the kernel has it and lets us, and there is memory for its
// queues. Compared in turns, at depths
// of 32 and 128 the serving process took 7 to 33 % less CPU per request in nine comparisons of ten;
// at depth 1 there was nothing to tell from noise.
const (
	Auto OverRing = iota
	On
	Off
)

// LoopFlags are the set-up flags of a client's loop that FUSE over io_uring needs.
const LoopFlags = uring.DefaultFlags | uring.SetupSQE128

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
	if o.hooks.mapMemory == nil {
		o.hooks.mapMemory = mapMemory
	}
	if o.hooks.restAfter == 0 {
		o.hooks.restAfter = restAfter
	}
}

// Server is a mounted file system.
type Server struct {
	fs         *fileSystem
	mountpoint string
	conn       *conn
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
	queues, err := o.chooseRing(b.Loop(), enableParameter, possibleCPUs)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	var queueMem []byte
	if queues > 0 {
		if queueMem, err = o.mapQueues(queues); err != nil {
			return nil, fmt.Errorf("mount on %s: %w", dir, err)
		}
	}
	fs := newFileSystem(&o, b)
	protocol := fuse.NewProtocolServer(fs, protocolOptions(&o, queueMem != nil))
	fd, flags, err := openDevice(&o, dir, protocol)
	if queueMem != nil && (err != nil || flags&fuse.CAP_OVER_IO_URING == 0) {
		_ = unix.Munmap(queueMem)
		queueMem = nil
	}
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w%s", dir, err, hint(err))
	}
	s := &Server{fs: fs, mountpoint: dir, done: make(chan struct{})}
	s.conn = newConn(fs, fd, protocol, s.abort)
	if err := s.onLoop(func() error { return s.serve(queueMem, queues) }); err != nil {
		unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH)
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	go s.wait()
	o.Log.Info("mounted", "on", dir, "readonly", o.ReadOnly, "over_io_uring", s.OverRing())
	return s, nil
}

// chooseRing says over how many queues to ask the kernel for FUSE over io_uring; 0: not at all.
// parameter is the path of the module's, possible counts the CPUs.
func (o *Options) chooseRing(loop *uring.Loop, parameter string, possible func() (int, error)) (
	queues int, err error) {
	if o.OverRing == Off {
		return 0, nil
	}
	queues, err = possible()
	if err == nil && queues > maxQueues && o.OverRing == Auto {
		err = fmt.Errorf("FUSE over io_uring takes much memory for %d possible CPUs (above %d)",
			queues, maxQueues)
	}
	if err == nil {
		err = enableRing(parameter)
	}
	if err == nil && !loop.HasCommands() {
		err = errors.New("FUSE over io_uring needs entries of 128 bytes, which this ring hasn't")
	}
	if err != nil && o.OverRing == On {
		return 0, err
	}
	if err != nil {
		o.Log.Info("requests come by /dev/fuse", "why", err)
		return 0, nil
	}
	return queues, nil
}

// onLoop runs f on the loop's thread.
func (s *Server) onLoop(f func() error) error {
	result := make(chan error, 1)
	s.fs.b.Loop().Post(func() { result <- f() })
	select {
	case err := <-result:
		return err
	case <-s.fs.b.Gone():
		return dataplane.E("mount", dataplane.Closed, nil)
	}
}

// serve begins to serve, on the loop's thread.
func (s *Server) serve(queueMem []byte, queues int) error {
	err := s.conn.serve(queueMem, queues)
	if err != nil {
		s.conn.release()
	}
	return err
}

// wait serves the end of the connection.
func (s *Server) wait() {
	defer close(s.done)
	select {
	case <-s.conn.ended:
		s.fs.shutdown()
		s.onLoop(func() error { s.conn.release(); return nil })
		if a := s.conn.aborted; a != nil {
			<-a // else Done would be told before the file system is unmounted
		}
	case <-s.fs.b.Gone():
		// Nobody answers any more: don't let the users of the mount wait.
		s.fs.log.Error("the client's event loop ended", "mountpoint", s.mountpoint)
		s.abort()
		s.fs.shutdown()
	}
}

// abortTime is how long an unmount is waited for that may depend on this process's end.
const abortTime = time.Second

// abort fails all requests and unmounts. The kernel may wait with that for entries that a loop
// which doesn't run any more would have to take back: then it happens when the process ends.
func (s *Server) abort() {
	unmounted := make(chan struct{})
	go func() {
		defer close(unmounted)
		unix.Unmount(s.mountpoint, unix.MNT_FORCE|unix.MNT_DETACH)
	}()
	select {
	case <-unmounted:
	case <-time.After(abortTime):
	}
}

func protocolOptions(o *Options, overRing bool) *fuse.MountOptions {
	mo := &fuse.MountOptions{
		Name:              "pstorage",
		MaxBackground:     maxBackground,
		MaxWrite:          maxWrite,
		Debug:             o.Debug,
		Logger:            log.New(logWriter{o.Log}, "", 0),
		ExtraCapabilities: fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP,
	}
	if overRing {
		mo.ExtraCapabilities |= fuse.CAP_OVER_IO_URING
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

// OverRing says whether the kernel's requests come over io_uring.
func (s *Server) OverRing() bool { return s.conn.overRing.Load() }

// Unmount unmounts it. It fails with EBUSY while files are open there.
func (s *Server) Unmount() error {
	if err := unix.Unmount(s.mountpoint, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", s.mountpoint, err)
	}
	<-s.done
	return nil
}
