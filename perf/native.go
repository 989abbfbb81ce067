package perf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

// NativeOptions say which file of which cluster to drive. Cluster and Path are needed.
type NativeOptions struct {
	Etc     string // the configuration: /etc/pstorage, or what replaces it; empty: cluster.EtcDir()
	Cluster string
	Path    string // of the file, absolute; made if it isn't there
	Log     *slog.Logger
	// PIDs are the processes of the cluster, whose CPU time counts; nil: this process alone counts.
	PIDs func() ([]int, error)
}

// Native drives one file through the client library: operations are issued by the callbacks of
// those before them, on the client's thread.
type Native struct {
	o      NativeOptions
	client *client.Client
	file   *client.File
	broken error // operations of an earlier run may still be in flight

	arena []byte // BlockSize bytes per slot, outside the Go heap
	ops   []client.Op
	gen   *generator
	kind  client.OpKind
	done  chan struct{} // capacity 1
	stamp uint64

	completed atomic.Uint64      // operations since it was opened
	issued    func(offset int64) // told of every operation, on the client's thread; nil: nobody
	place     func(int64) int64  // where in the file an offset of a workload is; nil: there
}

// stuckAfter is how long a run may take beyond its time.
const stuckAfter = 60 * time.Second

// maxArena bounds the memory for operations in flight.
const maxArena = 1 << 30

// OpenNative connects to the cluster and opens the file.
func OpenNative(ctx context.Context, o NativeOptions) (*Native, error) {
	if o.Etc == "" {
		o.Etc = cluster.EtcDir()
	}
	conf, err := cluster.Choose(o.Etc, o.Cluster)
	if err != nil {
		return nil, err
	}
	cred, err := conf.Credentials(dataplane.RoleClient, 0)
	if err != nil {
		return nil, err
	}
	c, err := client.Open(ctx, client.ClientOptions{Cred: &cred, MDSAddrs: conf.BSOrNone, Log: o.Log})
	if err != nil {
		return nil, err
	}
	n := &Native{o: o, client: c, done: make(chan struct{}, 1)}
	if n.file, err = openOrCreate(ctx, c, o.Path); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return n, nil
}

func openOrCreate(ctx context.Context, c *client.Client, name string) (*client.File, error) {
	if !path.IsAbs(name) || path.Clean(name) == "/" {
		return nil, fmt.Errorf("file %q: give an absolute path of the cluster, such as /bench", name)
	}
	dir, err := c.Resolve(ctx, path.Dir(name))
	if err != nil {
		return nil, err
	}
	a, err := c.Create(ctx, &control.CreateReq{Parent: dir.File, Name: path.Base(name),
		Type: control.TypeFile, Mode: 0o600})
	if err != nil {
		return nil, err
	}
	return c.OpenAttr(a)
}

// Size is the size of the file, in bytes.
func (n *Native) Size() int64 { return int64(n.file.Size()) }

// Layout writes the first size bytes of the file in full.
func (n *Native) Layout(ctx context.Context, size int64) (Result, error) {
	return n.Run(ctx, Workload{RW: "write", BlockSize: 1 << 20, Depth: 8, Size: size})
}

// Run runs w. One run at a time.
func (n *Native) Run(ctx context.Context, w Workload) (Result, error) {
	if err := w.Validate(); err != nil {
		return Result{}, err
	}
	if n.broken != nil {
		return Result{}, n.broken
	}
	if !w.Write() && n.Size() < w.Size {
		return Result{}, fmt.Errorf("%s has %d bytes, %d are to be read: lay it out first", n.o.Path,
			n.Size(), w.Size)
	}
	if err := n.prepare(w); err != nil {
		return Result{}, err
	}
	pids := []int{os.Getpid()}
	if n.o.PIDs != nil {
		more, err := n.o.PIDs()
		if err != nil {
			return Result{}, err
		}
		pids = append(pids, more...)
	}
	before, err := SampleCPU(pids)
	if err != nil {
		return Result{}, err
	}
	n.client.Loop().Post(n.gen.start)
	if err := n.await(ctx, w); err != nil {
		return Result{}, err
	}
	after, err := SampleCPU(pids)
	if err != nil {
		return Result{}, err
	}
	r, err := n.gen.result()
	if err == nil {
		r.CPUPerOp = float64(after.Since(before)) / 1000 / float64(n.gen.issued)
	}
	return r, err
}

// await returns when all operations are done.
func (n *Native) await(ctx context.Context, w Workload) error {
	limit := w.Time + stuckAfter
	if w.Time == 0 { // one pass: at least 2 MB/s are expected
		limit += time.Duration(w.Size/2e6) * time.Second
	}
	stuck := time.NewTimer(limit)
	defer stuck.Stop()
	select {
	case <-n.done:
		return nil
	case <-ctx.Done():
		n.broken = ctx.Err()
	case <-stuck.C:
		n.broken = fmt.Errorf("%s on %s is stuck: not all operations completed after %v", w.RW,
			n.o.Path, limit)
	}
	return n.broken
}

// prepare makes the operations and buffers of w.
func (n *Native) prepare(w Workload) error {
	size := w.BlockSize * w.Depth
	if size > maxArena {
		return fmt.Errorf("%d operations of %d bytes: more than %d bytes in flight", w.Depth,
			w.BlockSize, maxArena)
	}
	if len(n.arena) < size {
		arena, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		if err != nil {
			return fmt.Errorf("map buffers of %d bytes: %w", size, err)
		}
		if n.arena != nil {
			_ = unix.Munmap(n.arena) // nothing uses it between runs
		}
		n.arena = arena
	}
	n.kind = client.Read
	if w.Write() {
		n.kind = client.Write
		fill(n.arena)
	}
	start := time.Now()
	n.gen = newGenerator(w, uint64(start.UnixNano()), func() int64 { return int64(time.Since(start)) })
	n.gen.issue = n.issue
	n.gen.ended = func() { n.done <- struct{}{} }
	n.ops = make([]client.Op, w.Depth)
	for slot := range n.ops {
		op := &n.ops[slot]
		op.Buf = n.arena[slot*w.BlockSize : (slot+1)*w.BlockSize : (slot+1)*w.BlockSize]
		op.Done = func(op *client.Op) { n.complete(slot, op) }
	}
	return nil
}

// fill writes what doesn't compress.
func fill(b []byte) {
	x := uint64(0x9e3779b97f4a7c15)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
}

// issue runs on the client's thread.
func (n *Native) issue(slot int, offset int64) {
	if n.issued != nil {
		n.issued(offset)
	}
	if n.place != nil {
		offset = n.place(offset)
	}
	op := &n.ops[slot]
	op.Kind, op.File, op.Offset = n.kind, n.file, offset
	if n.kind == client.Write { // no two writes are the same
		n.stamp++
		for i := range 8 {
			op.Buf[i] = byte(n.stamp >> (8 * i))
		}
	}
	n.client.Engine().Submit(op)
}

var errShort = errors.New("fewer bytes than asked for")

// complete runs on the client's thread.
func (n *Native) complete(slot int, op *client.Op) {
	err := op.Err
	if err == nil && op.N != len(op.Buf) {
		err = errShort
	}
	n.completed.Add(1)
	n.gen.complete(slot, err)
}

// Ops is how many operations have completed since it was opened. Any goroutine may call it.
func (n *Native) Ops() uint64 { return n.completed.Load() }

// Finish has the run that is under way end before its time. Any goroutine may call it.
func (n *Native) Finish() {
	n.client.Loop().Post(func() {
		if n.gen != nil {
			n.gen.finish()
		}
	})
}

// Resize makes the file size bytes long, without writing to it.
func (n *Native) Resize(ctx context.Context, size int64) error {
	_, err := n.file.Truncate(ctx, uint64(size))
	return err
}

// Close closes the file and leaves the cluster.
func (n *Native) Close() error {
	err := errors.Join(n.file.Close(), n.client.Close())
	if n.broken == nil && n.arena != nil {
		err = errors.Join(err, unix.Munmap(n.arena))
	}
	return err
}
