// Libpstorage is the C interface, libpstorage.so: see pstorage.h. It is built by `make lib`, with
// -buildmode=c-shared; nothing else in the tree needs a C compiler.
//
// A handle that C has is a number, not a pointer, looked up in a table: a stale one is refused
// instead of followed. The path of an operation:
//
//	ps_submit  api.c    -> psSubmit: a request out of the cluster's free list    op.go
//	           client.Do: posted to the client's loop, without a goroutine
//	end        on the loop's thread: op.done in C, or the list that ps_poll empties
package main

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	// Crashes and profiles show C functions with file and line among those in Go.
	_ "github.com/ianlancetaylor/cgosymbolizer"

	"golang.org/x/sys/unix"

	"pstorage/cmd/cli"
	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

func main() {} // a c-shared library needs one; nobody calls it

// conn is a ps_cluster.
type conn struct {
	client *client.Client
	files  atomic.Int64 // open ones
	ended  endList

	stop context.CancelFunc // ends keep
	keep sync.WaitGroup     // what keeps bs.list up to date

	mu   sync.Mutex
	free *request
	live int // requests in flight
}

// file is a ps_file.
type file struct {
	conn   *conn
	file   *client.File
	flying atomic.Int64 // operations
	// telling is held while a done function runs, which may submit again. Before, its operation
	// counts as flying. So with telling held and nothing flying, nothing is left to come.
	telling sync.Mutex
}

// handles are what C knows by a number, from 1 on.
var handles struct {
	sync.RWMutex
	last uint64
	all  map[uint64]any
}

func newHandle(v any) C.uint64_t {
	handles.Lock()
	defer handles.Unlock()
	if handles.all == nil {
		handles.all = map[uint64]any{}
	}
	handles.last++
	handles.all[handles.last] = v
	return C.uint64_t(handles.last)
}

func lookUp[T any](h C.uintptr_t) (T, bool) {
	handles.RLock()
	defer handles.RUnlock()
	v, ok := handles.all[uint64(h)].(T)
	return v, ok
}

func dropHandle(h C.uintptr_t) {
	handles.Lock()
	defer handles.Unlock()
	delete(handles.all, uint64(h))
}

// fail keeps the text of err for ps_error and returns its errno, negative.
func fail(what string, err error) C.int {
	errno := dataplane.KindOf(err).Errno()
	var own *dataplane.Error
	var system syscall.Errno
	switch {
	case errors.As(err, &own):
	case errors.As(err, &system):
		errno = system
	case errors.Is(err, context.DeadlineExceeded):
		errno = unix.ETIMEDOUT
	}
	text := C.CString(fmt.Sprintf("%s: %v", what, err))
	defer C.free(unsafe.Pointer(text))
	C.psSetError(text)
	return -C.int(errno)
}

var errHandle = dataplane.E("", dataplane.Invalid, errors.New("not an open handle"))

//export psOpen
func psOpen(name, etc *C.char, timeoutMs C.int, out *C.uint64_t) C.int {
	cli.SpareProcs()
	dir := cluster.EtcDir()
	if etc != nil {
		dir = C.GoString(etc)
	}
	wanted := ""
	if name != nil {
		wanted = C.GoString(name)
	}
	conf, err := cluster.Choose(dir, wanted)
	if err != nil {
		return fail("open the cluster", noEntry(err))
	}
	cred, err := conf.Credentials(dataplane.RoleClient, 0)
	if err != nil {
		return fail("open the cluster", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(),
		time.Duration(timeoutMs)*time.Millisecond)
	defer cancel()
	c, err := client.Open(ctx, client.ClientOptions{Cred: &cred, MDSAddrs: cli.MDSAddrs(conf)})
	if err != nil {
		if ctx.Err() != nil {
			err = dataplane.E("reach cluster "+conf.Name(), dataplane.TimedOut, err)
		}
		return fail("open the cluster", err)
	}
	n := &conn{client: c}
	if err := n.ended.init(); err != nil {
		return fail("open the cluster", errors.Join(err, c.Close()))
	}
	// Whoever can't write the list, as a program of an ordinary user, needn't hear of it.
	keep, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.keep.Go(func() { cli.KeepBS(keep, conf, c.Control(), slog.New(slog.DiscardHandler)) })
	*out = newHandle(n)
	return 0
}

// noEntry gives a configuration that isn't there the errno that a user expects.
func noEntry(err error) error {
	if errors.Is(err, os.ErrNotExist) || dataplane.KindOf(err) == dataplane.Internal {
		return dataplane.E("", dataplane.NotFound, err)
	}
	return err
}

//export psClose
func psClose(h C.uintptr_t) C.int {
	n, ok := lookUp[*conn](h)
	if !ok {
		return fail("close the cluster", errHandle)
	}
	if n.busy() {
		return fail("close the cluster", unix.EBUSY)
	}
	dropHandle(h)
	n.stop()
	n.keep.Wait()
	err := n.client.Close()
	n.ended.close()
	if err != nil {
		return fail("close the cluster", err)
	}
	return 0
}

//export psFileOpen
func psFileOpen(h C.uintptr_t, name *C.char, flags C.uint, size C.uint64_t,
	out *C.uint64_t) C.int {
	n, ok := lookUp[*conn](h)
	if !ok || name == nil {
		return fail("open a file", errHandle)
	}
	p := C.GoString(name)
	f, err := n.open(context.Background(), p, uint(flags), uint64(size))
	if err != nil {
		return fail("open "+p, err)
	}
	n.files.Add(1)
	*out = newHandle(&file{conn: n, file: f})
	return 0
}

// open finds a file, or makes it.
func (n *conn) open(ctx context.Context, p string, flags uint, size uint64) (*client.File, error) {
	if !path.IsAbs(p) || path.Clean(p) == "/" || flags&^(C.PS_CREATE|C.PS_EXCLUSIVE) != 0 {
		return nil, dataplane.E("", dataplane.Invalid,
			errors.New("an absolute path of a file, and known flags, are needed"))
	}
	if flags&C.PS_CREATE == 0 {
		return n.client.OpenPath(ctx, p)
	}
	dir, err := n.client.Resolve(ctx, path.Dir(p))
	if err != nil {
		return nil, err
	}
	a, err := n.client.Create(ctx, &control.CreateReq{Parent: dir.File, Name: path.Base(p),
		Type: control.TypeFile, Mode: 0o600, Exclusive: flags&C.PS_EXCLUSIVE != 0})
	if err != nil {
		return nil, err
	}
	f, err := n.client.OpenAttr(a)
	if err == nil && a.Size == 0 && size > 0 {
		if err = f.Grow(ctx, size); err != nil {
			f.Close()
		}
	}
	return f, err
}

//export psFileClose
func psFileClose(h C.uintptr_t) C.int {
	f, ok := lookUp[*file](h)
	if !ok {
		return fail("close a file", errHandle)
	}
	f.telling.Lock()
	if f.flying.Load() > 0 {
		f.telling.Unlock()
		return fail("close a file", unix.EBUSY)
	}
	dropHandle(h)
	f.telling.Unlock()
	f.conn.files.Add(-1)
	err := f.file.Flush() // Close does so for the last handle of the file only
	if closeErr := f.file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fail("close a file", err)
	}
	return 0
}

//export psSize
func psSize(h C.uintptr_t) C.int64_t {
	f, ok := lookUp[*file](h)
	if !ok {
		return C.int64_t(fail("size of a file", errHandle))
	}
	return C.int64_t(f.file.Size())
}

//export psGrow
func psGrow(h C.uintptr_t, size C.uint64_t) C.int {
	f, ok := lookUp[*file](h)
	if !ok {
		return fail("grow a file", errHandle)
	}
	if err := f.file.Grow(context.Background(), uint64(size)); err != nil {
		return fail("grow a file", err)
	}
	return 0
}

// busy says whether something of the cluster is still in use.
func (n *conn) busy() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	runtime.KeepAlive(n)
	return n.live > 0 || n.files.Load() > 0 || n.ended.left.Load() > 0
}
