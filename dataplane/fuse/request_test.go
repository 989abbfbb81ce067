package fuse

import (
	"context"
	"encoding/binary"
	"log/slog"
	"testing"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// These tests hand requests over as the kernel does, without a kernel: replies go to a file in
// memory, where nobody reads them, and which takes no commands.

// onTestLoop runs f on a loop's thread.
func onTestLoop(l *uring.Loop, f func()) {
	done := make(chan struct{})
	l.Post(func() { f(); close(done) })
	<-done
}

// bareConn returns a connection to nobody. Handle 1 is an open file.
func bareConn(t testing.TB, b backend, grace time.Duration) *conn {
	t.Helper()
	fd, err := unix.MemfdCreate("replies", unix.MFD_CLOEXEC)
	must(t, err)
	o := &Options{Log: slog.New(slog.DiscardHandler), Grace: grace}
	o.setDefaults()
	fs := newFileSystem(o, b)
	a, err := b.Create(context.Background(), &control.CreateReq{Parent: dataplane.RootID, Name: "f",
		Type: control.TypeFile})
	must(t, err)
	_, fh, err := fs.open(fs.enter(t.Context(), a.File), a, true)
	must(t, err)
	if fh != 1 {
		t.Fatalf("handle %d", fh)
	}
	c := newConn(fs, fd, fuse.NewProtocolServer(fs, protocolOptions(o, false)), func() {})
	onTestLoop(c.loop, func() { c.file = c.loop.AddFile(fd) })
	return c
}

// waitFor waits until cond, which is called on the loop's thread.
func waitFor(t testing.TB, c *conn, what string, cond func() bool) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(100 * time.Microsecond) {
		ok := false
		if onTestLoop(c.loop, func() { ok = cond() }); ok {
			return
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatal(what)
		}
	}
}

// ask is the bytes of a request.
func ask(opcode uint32, unique, nodeID uint64, arg ...uint64) []byte {
	n := inHeaderSize + 8*len(arg)
	b := make([]byte, n)
	*(*fuse.InHeader)(unsafe.Pointer(&b[0])) = fuse.InHeader{Length: uint32(n), Opcode: opcode,
		Unique: unique, NodeId: nodeID}
	for i, v := range arg {
		binary.NativeEndian.PutUint64(b[inHeaderSize+8*i:], v)
	}
	return b
}

// arrive is a request by /dev/fuse.
func (c *conn) arrive(request []byte) {
	k := c.freeCall()
	n := copy(k.mem[deviceHead:], request)
	c.receive(k, n)
}

// TestInterruptFirst: what interrupts a request is read before the request itself is seen, as can
// be if they come in different ways.
func TestInterruptFirst(t *testing.T) {
	m := newMemory()
	c := bareConn(t, m, time.Millisecond)
	f := c.fs.handle(1)
	must(t, m.SetXattr(context.Background(), f.node.id, "user.hang", nil, 0))
	onTestLoop(c.loop, func() {
		c.arrive(ask(opInterrupt, 78, 0, 77))
		c.arrive(ask(opRead, 77, uint64(f.node.id), 1, 0, 4096, 0, 0))
		if c.busy != 1 {
			t.Errorf("%d requests are under way", c.busy)
		}
	})
	waitFor(t, c, "the interruption was lost", func() bool { return c.busy == 0 })
	onTestLoop(c.loop, c.release)
}

// TestLateRequest: a request that is seen when the connection has ended doesn't begin.
func TestLateRequest(t *testing.T) {
	m := newMemory()
	c := bareConn(t, m, time.Hour)
	f := c.fs.handle(1)
	must(t, m.SetXattr(context.Background(), f.node.id, "user.hang", nil, 0))
	onTestLoop(c.loop, func() {
		c.disconnected(unix.ENODEV)
		c.arrive(ask(opRead, 77, uint64(f.node.id), 1, 0, 4096, 0, 0))
		if c.busy != 0 {
			t.Error("a request is under way")
		}
		c.release()
	})
}

// TestInterruptedTwice: go-fuse is told of an interruption once, and not asked again and again.
func TestInterruptedTwice(t *testing.T) {
	m := newMemory()
	c := bareConn(t, m, 100*time.Millisecond)
	request := append(ask(1, 77, uint64(dataplane.RootID)), "hang\x00"...) // LOOKUP
	(*fuse.InHeader)(unsafe.Pointer(&request[0])).Length = uint32(len(request))
	onTestLoop(c.loop, func() { c.arrive(request) })
	k := c.calls[0]
	onTestLoop(c.loop, func() { c.arrive(ask(opInterrupt, 78, 0, 77)) })
	waitFor(t, c, "go-fuse doesn't know of the interruption", func() bool { return k.told })
	onTestLoop(c.loop, func() {
		c.disconnected(unix.ENODEV)
		if k.state == callOther && k.grace.Armed() {
			t.Error("it is told again")
		}
	})
	waitFor(t, c, "the request doesn't end", func() bool { return c.busy == 0 })
	onTestLoop(c.loop, c.release)
}

// TestReadError: if the kernel's requests can't be read the mount goes, instead of letting its
// users wait.
func TestReadError(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			needTransport(t, transport)
			o := Options{Mountpoint: t.TempDir(), Log: slog.New(slog.DiscardHandler), OverRing: Off}
			if transport == "ring" {
				o.OverRing = On
			}
			s, err := mount(context.Background(), o, newMemory())
			must(t, err)
			must(t, s.onLoop(func() error { s.conn.disconnected(unix.EINVAL); return nil }))
			select {
			case <-s.Done():
			case <-time.After(10 * time.Second):
				t.Error("the mount is still served")
			}
			if err := unix.Unmount(o.Mountpoint, unix.MNT_DETACH); err != unix.EINVAL {
				t.Errorf("unmount of what was unmounted: %v", err)
			}
		})
	}
}

// FuzzRequest: whatever arrives, by /dev/fuse or in an entry of a queue, is answered once.
func FuzzRequest(f *testing.F) {
	loop := newTestLoop()
	entry := func(headers []byte, payload int, data string) []byte {
		b := make([]byte, unsafe.Sizeof(ringHeaders{}))
		copy(b, headers[:inHeaderSize])
		copy(b[128:], headers[inHeaderSize:])
		binary.NativeEndian.PutUint32(b[272:], uint32(payload))
		return append(b, data...)
	}
	for _, request := range [][]byte{
		ask(opRead, 1, 2, 1, 0, 4096, 0, 0), ask(opRead, 1, 2, 1, 0, 1<<31, 0, 0),
		ask(opRead, 1, 2, 1, 1<<63, 4096, 0, 0), ask(opRead, 1, 2, 1), ask(opFsync, 1, 2, 1, 0),
		ask(opFsync, 1, 2), ask(opWrite, 1, 2, 1, 0, 0, 0, 0), ask(opWrite, 1, 2, 1, 0, 8, 0, 0, 5),
		ask(opWrite, 1, 2, 1, 0, 9, 0, 0, 5), ask(opInterrupt, 1, 0, 1), ask(opInterrupt, 1, 0),
		ask(opForget, 1, 2, 1), ask(opBatchForget, 1, 0, 1<<32), ask(1, 1, 1, 'f'),
		ask(3, 1, 2, 0, 0), ask(99, 1, 1),
	} {
		f.Add(false, request)
		f.Add(true, entry(request, 0, ""))
		f.Add(true, entry(request, 8, "payload."))
	}
	f.Add(true, entry(ask(opWrite, 1, 2, 1, 0, 8, 0, 0, 5), 8, "payload."))
	f.Add(true, entry(ask(opRead, 1, 2, 1, 0, 8, 0, 0), 1<<31, ""))
	f.Add(false, make([]byte, 10))
	f.Fuzz(func(t *testing.T, overRing bool, request []byte) {
		if len(request) > maxWrite {
			t.Skip("longer than any request")
		}
		c := bareConn(t, newNull(newMemoryOn(loop)), time.Millisecond)
		if !overRing {
			onTestLoop(loop, func() { c.arrive(request) })
		} else if loop.HasCommands() {
			var k *call
			onTestLoop(loop, func() {
				mem, err := mapMemory(entriesSize(1))
				must(t, err)
				c.makeEntries(mem, 1)
				k = c.calls[0]
				k.enqueue(0)
			})
			waitFor(t, c, "a file in memory takes commands", func() bool { return c.live == 0 })
			onTestLoop(loop, func() {
				c.live = 1
				n := copy(k.mem[:unsafe.Sizeof(ringHeaders{})], request)
				copy(k.payload, request[n:])
				k.arrived(0)
			})
			waitFor(t, c, "the entry isn't handed back", func() bool { return c.live == 0 })
		}
		waitFor(t, c, "a request isn't answered", func() bool { return c.busy == 0 })
		onTestLoop(loop, func() {
			if free := len(c.free) + c.entries; free != len(c.calls) {
				t.Errorf("%d of %d calls are free", free, len(c.calls))
			}
			c.release()
		})
	})
}
