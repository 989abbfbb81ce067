package fuse

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"pstorage/uring"
)

// conn is the connection to the kernel of one mounted file system: requests, replies, and the end.
// It belongs to the loop's thread.
type conn struct {
	fs       *fileSystem
	b        backend
	loop     *uring.Loop
	protocol *fuse.ProtocolServer
	log      *slog.Logger

	fd       int // of /dev/fuse
	file     uring.File
	poll     uring.Poll
	watching bool // poll is under way
	starved  bool // requests wait in /dev/fuse until a call is free

	calls   []*call  // first the entries of queues over io_uring, then those for /dev/fuse
	uniques []uint64 // of calls: the number of the request; 0: none
	free    []*call
	entries int    // calls that are entries of queues
	ringMem []byte // theirs
	live    int    // of them, those that the kernel still uses
	refused unix.Errno

	overRing atomic.Bool // requests come over io_uring; any thread may read it

	busy int // requests that are under way

	filled []*call // whose payload has memory, see rest.go
	rest   uring.Timer

	connected bool
	abort     func()        // has the kernel disconnect, on a goroutine
	aborted   chan struct{} // closed when abort has returned; nil: it wasn't called
	ended     chan struct{} // closed when the kernel and we are through with each other
}

func newConn(fs *fileSystem, fd int, protocol *fuse.ProtocolServer, abort func()) *conn {
	c := &conn{fs: fs, b: fs.b, loop: fs.b.Loop(), protocol: protocol, log: fs.log, fd: fd,
		connected: true, abort: abort, ended: make(chan struct{})}
	c.poll.Done, c.rest.Fire = c.readable, c.giveBack
	return c
}

// serve begins to serve, over io_uring if there is memory for queues; on the loop's thread.
func (c *conn) serve(mem []byte, queues int) error {
	c.file = c.loop.AddFile(c.fd)
	c.poll.File, c.poll.Events = c.file, unix.POLLIN
	if mem != nil {
		c.overRing.Store(true)
		c.register(mem, queues)
	}
	k, err := newDeviceCall(c) // one at least, whose end has waiting requests read
	if err != nil {
		return fmt.Errorf("memory for requests of the kernel: %w", err)
	}
	c.free = append(c.free, k)
	c.watch()
	return nil
}

// interrupt is told that the process whose request has this number got a signal. It says false if
// there is no such request.
func (c *conn) interrupt(unique uint64) bool {
	for i, u := range c.uniques {
		if u == unique {
			c.calls[i].interrupt()
			return true
		}
	}
	return false
}

// interruptOther tells go-fuse of an interruption. It says false if go-fuse doesn't know the
// request yet.
func (c *conn) interruptOther(k *call) bool {
	in := fuse.InterruptIn{InHeader: fuse.InHeader{Length: uint32(interruptSize),
		Opcode: opInterrupt}, Unique: c.uniques[k.index]}
	var out fuse.OutHeader
	_, status := c.protocol.HandleRequest(
		[][]byte{unsafe.Slice((*byte)(unsafe.Pointer(&in)), interruptSize)},
		[][]byte{unsafe.Slice((*byte)(unsafe.Pointer(&out)), outHeaderSize)})
	return status == fuse.OK && out.Status != -int32(fuse.EAGAIN)
}

// disconnected: the file system was unmounted, or the connection aborted. Nobody waits for what is
// under way.
func (c *conn) disconnected(errno unix.Errno) {
	if !c.connected {
		return
	}
	c.connected = false
	if errno != unix.ENODEV && errno != unix.ECONNABORTED {
		// The kernel doesn't know yet that nobody reads its requests, and keeps its queues' entries.
		c.log.Error("read requests of the kernel", "err", errno)
		c.aborted = make(chan struct{})
		go func() {
			c.abort()
			close(c.aborted)
		}()
	}
	for _, k := range c.calls {
		switch k.state {
		case callData:
			k.canceled = true
			c.b.Stop(&k.op)
		case callOther:
			k.interrupt()
		}
	}
	c.maybeEnded()
}

func (c *conn) maybeEnded() {
	if c.connected || c.live > 0 || c.busy > 0 {
		return
	}
	select {
	case <-c.ended:
	default:
		close(c.ended)
	}
}

// release gives back what the connection held; on the loop's thread, after its end.
func (c *conn) release() {
	if err := c.loop.CloseFile(c.file); err != nil {
		c.log.Warn("close /dev/fuse", "err", err)
	}
	c.loop.Disarm(&c.rest)
	for _, k := range c.calls[c.entries:] {
		_ = unix.Munmap(k.mem)
	}
	if c.ringMem != nil {
		_ = unix.Munmap(c.ringMem)
	}
	c.calls, c.filled, c.ringMem, c.entries = nil, nil, nil, 0
}
