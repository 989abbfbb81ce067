package client

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/uring"
)

// ClientOptions of Open. Cred and MDSAddrs are needed.
type ClientOptions struct {
	// Cred is what the client proves itself with; an ID of 0 is replaced by a random one.
	Cred *session.Credentials
	// MDSAddrs returns the addresses ("ip:port") of the metadata servers; asked again whenever a
	// connection is made.
	MDSAddrs func() []string
	Log      *slog.Logger // nil: slog.Default()
	// Host and Mount tell people who writes a file. Host: nothing means the machine's name.
	Host, Mount string

	// Engine has further choices; what a Client sets itself in it is ignored.
	Engine Options
	// Loop are the choices of the event loop.
	Loop uring.LoopOptions
}

// Client is the way to a cluster for callers on ordinary goroutines: an Engine on a loop and
// thread of its own, and a connection to the metadata servers. Its methods may be called by any
// goroutine.
type Client struct {
	log  *slog.Logger
	loop *uring.Loop
	eng  *Engine
	ctl  *control.Client
	id   uint64
	ctx  context.Context // ends at Close
	stop context.CancelFunc

	mu    sync.Mutex // guards what follows, and File.opens
	files map[dataplane.FileID]*File
}

// Open connects to a cluster. It waits until a metadata server answers, or ctx ends.
func Open(ctx context.Context, o ClientOptions) (*Client, error) {
	if o.Cred == nil || o.MDSAddrs == nil {
		return nil, dataplane.E("open the cluster", dataplane.Invalid,
			errors.New("no credentials or no addresses"))
	}
	cred := *o.Cred
	for cred.ID == 0 {
		var b [8]byte
		rand.Read(b[:]) // never fails
		cred.ID = binary.LittleEndian.Uint64(b[:])
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Loop.Log == nil {
		o.Loop.Log = o.Log
	}
	var opened atomic.Pointer[Client]
	ctl, err := control.Dial(ctx, control.Options{Addrs: o.MDSAddrs, Cred: &cred, Log: o.Log,
		OnPush: func(op dataplane.Opcode, payload []byte) {
			if c := opened.Load(); c != nil {
				c.pushed(op, payload)
			}
		},
		OnConnect: func() {
			if c := opened.Load(); c != nil {
				c.watchAgain()
			}
		}})
	if err != nil {
		return nil, err
	}
	c := &Client{log: o.Log, ctl: ctl, id: cred.ID, files: map[dataplane.FileID]*File{}}
	if _, err := c.GetAttr(ctx, dataplane.RootID); err != nil {
		ctl.Close()
		return nil, err
	}
	c.loop, err = uring.NewLoop(o.Loop)
	if err != nil {
		ctl.Close()
		return nil, fmt.Errorf("start the client's event loop: %w", err)
	}
	c.ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	eo := o.Engine
	eo.Env, eo.Net, eo.Pool, eo.Cred, eo.Log = c.loop, c.loop, c.loop.Pool(), &cred, o.Log
	if o.Host == "" {
		o.Host, _ = os.Hostname()
	}
	eo.Meta = &rpcMeta{ctx: c.ctx, ctl: ctl, post: c.loop.Post, log: o.Log, host: o.Host,
		mount: o.Mount}
	c.eng = NewEngine(eo)
	opened.Store(c) // no file is open yet, so nothing is missed
	go func() {
		if err := c.loop.Run(); err != nil {
			c.log.Error("the client's event loop ended; all I/O fails from now on", "err", err)
		}
	}()
	return c, nil
}

// Close fails what is under way with Kind Closed, and ends the loop. Do must not be called after.
func (c *Client) Close() error {
	c.stop()
	c.loop.Post(func() {
		c.eng.Close()
		c.stopWhenIdle()
	})
	<-c.loop.Done()
	c.releaseRest(c.eng.leftLeases())
	err := c.loop.Close()
	return errors.Join(err, c.ctl.Close())
}

// stopWhenIdle ends the loop as soon as every op's Done was called.
func (c *Client) stopWhenIdle() {
	if c.eng.Pending() > 0 {
		c.loop.Post(c.stopWhenIdle)
		return
	}
	c.loop.Stop()
}

// ID is what the cluster knows this client by.
func (c *Client) ID() uint64 { return c.id }

// Loop is the client's event loop, for front ends that live on it.
func (c *Client) Loop() *uring.Loop { return c.loop }

// Engine is the client's engine; it may be used on the loop's thread only.
func (c *Client) Engine() *Engine { return c.eng }

// Control is the connection to the metadata servers.
func (c *Client) Control() *control.Client { return c.ctl }

// Do starts op, from any thread, without allocating if op was used before. op.Done is called on
// the loop's thread and must not block.
func (c *Client) Do(op *Op) {
	if op.work.Run == nil {
		op.work.Run = func(*uring.Work) { op.eng.Submit(op) }
	}
	op.eng = c.eng
	c.loop.PostWork(&op.work)
}

// Cancel fails op, if it isn't done, with Kind Closed. It takes effect later: op.Done is still to
// be waited for, and op must not be used again after that, because the cancellation may come last.
func (c *Client) Cancel(op *Op) { c.loop.Post(func() { c.eng.Cancel(op) }) }

// Stats returns the engine's counters.
func (c *Client) Stats() Stats {
	out := make(chan Stats, 1)
	c.loop.Post(func() { out <- c.eng.Stats() })
	select {
	case s := <-out:
		return s
	case <-c.loop.Done():
		return Stats{}
	}
}

// OpenFile opens a file. Every open of the same id gives the same File; each is ended by Close.
func (c *Client) OpenFile(ctx context.Context, id dataplane.FileID) (*File, error) {
	a, err := c.GetAttr(ctx, id)
	if err != nil {
		return nil, err
	}
	return c.OpenAttr(a)
}

// OpenPath opens the file at path, which is absolute; symlinks are followed.
func (c *Client) OpenPath(ctx context.Context, path string) (*File, error) {
	a, err := c.Resolve(ctx, path)
	if err != nil {
		return nil, err
	}
	return c.openAs(a, path)
}

// OpenAttr opens the file that a describes, which should be new.
func (c *Client) OpenAttr(a *control.Attr) (*File, error) {
	return c.openAs(a, fmt.Sprintf("#%d", a.File))
}

// openAs opens a file. Of several opens the first one's name counts: the loop uses it already.
func (c *Client) openAs(a *control.Attr, name string) (*File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.files[a.File]
	if f == nil {
		var err error
		if f, err = c.eng.OpenFile(a, name); err != nil {
			return nil, err
		}
		f.client = c
		c.files[a.File] = f
	} else {
		c.seen(f, a.Size)
		if c.eng.leases.meta != nil {
			c.loop.Post(f.reopened)
		}
	}
	f.opens++
	f.opened++
	return f, nil
}

// rpcMeta is the Metadata of a real cluster: each question is asked by a goroutine, its answer
// posted to the loop.
type rpcMeta struct {
	ctx  context.Context
	ctl  *control.Client
	post func(func())
	log  *slog.Logger

	host, mount string
}

// rpcTime is how long a question may take before the engine is told that it failed; it asks again.
// reportTime is the same for reports, which are repeated anyway.
const (
	rpcTime    = 20 * dataplane.HeartbeatEvery
	reportTime = 4 * dataplane.HeartbeatEvery
)

// ask makes a call and posts its answer.
func ask[T any](m *rpcMeta, op dataplane.Opcode, req any, cb func(*T, error)) {
	go func() {
		ctx, cancel := context.WithTimeout(m.ctx, rpcTime)
		defer cancel()
		reply := new(T)
		err := m.ctl.Call(ctx, op, req, reply)
		if err != nil {
			reply = nil
		}
		m.post(func() { cb(reply, err) })
	}()
}

func (m *rpcMeta) GetMap(file dataplane.FileID, first, count uint32,
	cb func(*control.MapReply, error)) {
	ask(m, control.OpGetMap, &control.MapReq{File: file, First: first, Count: count, Watch: true}, cb)
}

func (m *rpcMeta) Allocate(file dataplane.FileID, first, count uint32,
	cb func(*control.MapReply, error)) {
	ask(m, control.OpAllocate, &control.MapReq{File: file, First: first, Count: count, Watch: true},
		cb)
}

func (m *rpcMeta) Grow(file dataplane.FileID, size, token uint64,
	cb func(*control.Attr, error)) {
	ask(m, control.OpGrow, &control.GrowReq{File: file, Size: size, Token: token}, cb)
}

func (m *rpcMeta) GetAttr(file dataplane.FileID, cb func(*control.Attr, error)) {
	ask(m, control.OpGetAttr, &control.FileReq{File: file}, cb)
}

func (m *rpcMeta) Unreachable(cs dataplane.CSID, chunks []control.HeldChunk) {
	go func() {
		ctx, cancel := context.WithTimeout(m.ctx, reportTime)
		defer cancel()
		req := &control.UnreachableReq{CS: cs, Chunks: chunks}
		if err := m.ctl.Call(ctx, control.OpUnreachable, req, nil); err != nil {
			m.log.Debug("report an unreachable chunk server", "cs", cs, "err", err)
		}
	}()
}
