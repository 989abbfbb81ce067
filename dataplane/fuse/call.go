package fuse

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/uring"
)

// call is one request of the kernel at a time, from its arrival to its reply. It belongs to the
// loop's thread. READ, WRITE and most FSYNCs go to the client's engine there and then, data between
// the kernel and the chunk servers' connections passing through the call's payload only; anything
// else is go-fuse's on a goroutine of its own.
type call struct {
	c     *conn
	index int    // in conn.calls
	mem   []byte // outside the Go heap: callMemory, or the headers of an entry
	state callState

	opcode uint32 // of the request; its number is in conn.uniques

	// Where the parts of request and reply lie in mem.
	head    *fuse.InHeader
	arg     *ioArg
	reply   *fuse.OutHeader
	payload []byte
	used    int   // bytes of payload that may have memory
	usedAt  int64 // when it was used last

	op       client.Op
	h        *handle // of a write
	grace    uring.Timer
	canceled bool // op was, after an interruption
	told     bool // go-fuse was, of an interruption

	// A request that is go-fuse's.
	input  []byte // a copy, because the reply takes its place
	size   int    // of the reply
	status fuse.Status
	work   uring.Work

	// An entry of a queue over io_uring; otherwise headers is nil.
	headers *ringHeaders
	cmd     uring.Cmd
}

type callState uint8

const (
	callFree  callState = iota // no request
	callData                   // op is under way
	callOther                  // go-fuse is at work
)

// mapMemory returns n bytes outside the Go heap, which take memory where they are touched.
func mapMemory(n int) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", n, err)
	}
	// Most requests are small: one that touched 4 KiB shouldn't occupy 2 MiB.
	_ = unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	return mem, nil
}

// newDeviceCall makes a call for requests by /dev/fuse.
func newDeviceCall(c *conn) (*call, error) {
	mem, err := mapMemory(callMemory)
	if err != nil {
		return nil, err
	}
	k := newCall(c, mem, mem[headPage:])
	k.head = (*fuse.InHeader)(unsafe.Pointer(&mem[deviceHead]))
	k.arg = (*ioArg)(unsafe.Pointer(&mem[deviceHead+inHeaderSize]))
	k.reply = (*fuse.OutHeader)(unsafe.Pointer(&mem[replyHead]))
	return k, nil
}

func newCall(c *conn, mem, payload []byte) *call {
	k := &call{c: c, index: len(c.calls), mem: mem, payload: payload}
	k.op.Done = func(*client.Op) { k.done() }
	k.grace.Fire = k.graceOver
	k.work.Run = func(*uring.Work) { k.answer(k.status, k.size) }
	c.calls = append(c.calls, k)
	c.uniques = append(c.uniques, 0)
	return k
}

// begin acts on the request that has arrived in k, n bytes behind its argument.
func (k *call) begin(n int) {
	if int(k.head.Length)-max(0, n) < inHeaderSize+argSize(k.head.Opcode) {
		k.malformed()
		return
	}
	k.accept()
	k.touched(n)
	switch {
	case !k.c.connected: // nobody can interrupt it any more, so it doesn't begin
		k.answer(fuse.Status(syscall.ENOTCONN), 0)
	case k.opcode == opRead:
		k.read()
	case k.opcode == opWrite:
		k.write(n)
	case k.opcode == opFsync:
		h := k.c.fs.handle(k.arg.Fh)
		if h != nil {
			h.synced()
		}
		// fdatasync isn't about times: it needs no metadata servers, nor waits for them.
		if h != nil && (k.arg.Offset&fsyncData != 0 || !h.node.timesDue()) {
			k.start(client.Flush, h, 0, nil)
			return
		}
		k.other(n)
	default:
		k.other(n)
	}
}

// argSize is how many bytes of the argument are looked at here.
func argSize(opcode uint32) int {
	switch opcode {
	case opRead, opWrite:
		return ioArgSize
	case opFsync:
		return fsyncArgSize
	}
	return 0
}

// accept notes the request that is to be answered.
func (k *call) accept() {
	k.c.uniques[k.index], k.opcode = k.head.Unique, k.head.Opcode
	k.c.busy++
}

// malformed refuses a request whose lengths can't be true.
func (k *call) malformed() {
	k.c.log.Error("malformed request of the kernel", "request", k.head.Opcode,
		"bytes", k.head.Length)
	k.accept()
	k.answer(fuse.EIO, 0)
}

func (k *call) read() {
	h := k.c.fs.handle(k.arg.Fh)
	switch size := int(k.arg.Size); {
	case h == nil:
		k.answer(fuse.EBADF, 0)
	case size > len(k.payload):
		k.answer(fuse.EINVAL, 0)
	case k.arg.Offset >= client.MaxFileSize:
		k.answer(fuse.OK, 0)
	default:
		size = min(size, int(client.MaxFileSize-k.arg.Offset))
		k.start(client.Read, h, k.arg.Offset, k.payload[:size])
	}
}

func (k *call) write(n int) {
	h := k.c.fs.handle(k.arg.Fh)
	if h != nil {
		h.writes(k.arg.Flags)
		k.h = h
	}
	switch {
	case h == nil || !h.write:
		k.answer(fuse.EBADF, 0)
	case int(k.arg.Size) != n:
		k.answer(fuse.EINVAL, 0)
	case k.arg.Offset > client.MaxFileSize-uint64(n):
		k.answer(fuse.Status(syscall.EFBIG), 0)
	default:
		k.op.Right = h.right
		// For O_SYNC, O_DSYNC and RWF_DSYNC the kernel sends this flag, and no FSYNC.
		k.op.FUA = k.arg.OpenFlags&unix.O_DSYNC != 0
		// The kernel's offset is the end as it was told last, and another host may have appended since.
		k.op.Append = k.arg.OpenFlags&unix.O_APPEND != 0
		k.start(client.Write, h, k.arg.Offset, k.payload[:n])
	}
}

func (k *call) start(kind client.OpKind, h *handle, offset uint64, buf []byte) {
	k.op.Kind, k.op.File, k.op.Offset, k.op.Buf = kind, h.file, int64(offset), buf
	k.state = callData
	k.touched(len(buf))
	k.c.b.Start(&k.op)
}

// done is the end of op.
func (k *call) done() {
	if k.op.Err != nil {
		k.answer(k.c.fs.ioStatus(&k.op, k.canceled), 0)
		return
	}
	switch k.op.Kind {
	case client.Read:
		k.answer(fuse.OK, k.op.N)
	case client.Write:
		k.h.node.wrote.Store(time.Now().UnixNano())
		*(*fuse.WriteOut)(unsafe.Pointer(&k.payload[0])) = fuse.WriteOut{Size: uint32(k.op.N)}
		k.answer(fuse.OK, writeOutSize)
	default:
		k.answer(fuse.OK, 0)
	}
}

// other leaves the request to go-fuse.
func (k *call) other(n int) {
	k.state = callOther
	if h := k.headers; h == nil {
		k.input = append(k.input[:0], k.mem[deviceHead:][:k.head.Length]...)
	} else {
		argSize := int(k.head.Length) - inHeaderSize - n
		k.input = append(append(append(k.input[:0], h.inOut[:inHeaderSize]...), h.arg[:argSize]...),
			k.payload[:n]...)
	}
	go k.protocol()
}

// protocol runs on a goroutine.
func (k *call) protocol() {
	var head fuse.OutHeader
	out := [][]byte{unsafe.Slice((*byte)(unsafe.Pointer(&head)), outHeaderSize), k.payload}
	n, status := k.c.protocol.HandleRequest([][]byte{k.input}, out)
	k.size, k.status = max(0, n-outHeaderSize), status
	if status == fuse.OK {
		k.status = fuse.Status(-head.Status)
	}
	k.c.loop.PostWork(&k.work)
}

// answer ends the request with a status and, if that is OK, n bytes of payload.
func (k *call) answer(status fuse.Status, n int) {
	if status != fuse.OK {
		n = 0
	}
	k.touched(n)
	if k.grace.Armed() {
		k.c.loop.Disarm(&k.grace)
	}
	if k.h != nil && status != fuse.OK {
		k.h.writeFailed(status, k.arg.OpenFlags)
	}
	unique := k.c.uniques[k.index]
	k.c.uniques[k.index] = 0
	k.c.busy--
	k.state, k.canceled, k.told = callFree, false, false
	k.op.File, k.op.Buf, k.op.Right, k.op.Err, k.h = nil, nil, 0, nil, nil
	k.op.FUA, k.op.Append = false, false
	*k.reply = fuse.OutHeader{Length: uint32(outHeaderSize + n), Status: -int32(status),
		Unique: unique}
	if k.headers != nil {
		k.commit(n)
	} else {
		k.send(n)
	}
}

// interrupt is told that a signal waits for the process whose request this is. A signal alone is no
// reason to fail an I/O that is about to succeed: it is canceled after the grace. (A Go program
// gets signals all the time.)
func (k *call) interrupt() {
	switch {
	case k.grace.Armed():
	case k.state == callData:
		k.c.loop.Arm(&k.grace, int64(k.c.fs.o.Grace))
	case k.state == callOther && !k.told:
		if k.told = k.c.interruptOther(k); !k.told {
			k.c.loop.Arm(&k.grace, int64(tellAgain)) // its goroutine hasn't got that far
		}
	}
}

// tellAgain is when go-fuse is told of an interruption again if it didn't know the request yet.
const tellAgain = time.Millisecond

func (k *call) graceOver() {
	switch k.state {
	case callData:
		k.canceled = true
		k.c.b.Stop(&k.op)
	case callOther:
		k.interrupt()
	}
}

// ioStatus is what the kernel is told about an op that failed.
func (fs *fileSystem) ioStatus(op *client.Op, canceled bool) fuse.Status {
	switch kind := dataplane.KindOf(op.Err); {
	case kind == dataplane.NotFound: // removed by another host
		return fuse.Status(syscall.ESTALE)
	case kind == dataplane.Closed && canceled:
		return fuse.EINTR
	}
	return fs.status(op.Kind.String(), op.Err)
}
