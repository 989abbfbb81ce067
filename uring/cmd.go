package uring

import (
	"fmt"
	"unsafe"

	sys "github.com/iceber/iouring-go/syscall"
)

// This file is what a user of the loop may do with a file of its own, such as a device: send
// commands to its driver, and be told when it can be read. Both may take for ever, so a loop that
// stops doesn't wait for them: Done isn't called any more, and the driver gets them back when the
// loop is closed.

// Cmd is a command to the driver behind a file (IORING_OP_URING_CMD), such as one of FUSE. It is
// owned by the loop from Command until Done is called, on the loop's thread. Memory that it refers
// to lies outside the Go heap and stays in place for as long as the driver may use it.
type Cmd struct {
	File File
	Op   uint32
	Addr uintptr
	Len  uint32
	Arg  [3]uint64 // the first bytes of the command area of the submission entry

	// Done is told the driver's result, or a negative errno.
	Done func(c *Cmd, result int32)

	l *Loop
}

// Poll waits for events of a file, once for each call of Loop.Poll. It is owned by the loop until
// Done is called, on the loop's thread.
type Poll struct {
	File   File
	Events uint32 // POLLIN and such

	// Done is told which events came, or a negative errno.
	Done func(p *Poll, events int32)

	l *Loop
}

// cmdArea is where the command area of a submission entry of 128 bytes begins.
const cmdArea = 48

// HasCommands says whether the loop can send commands: it was made with SetupSQE128, and the kernel
// knows it.
func (l *Loop) HasCommands() bool {
	return l.ring.flags&SetupSQE128 != 0 && l.ring.ops.ops[sys.IORING_OP_URING_CMD]
}

// AddFile names an open file for operations. The loop owns fd until CloseFile.
func (l *Loop) AddFile(fd int) File { return l.addFile(fd) }

// CloseFile closes a file of AddFile. Operations in flight hold the file open.
func (l *Loop) CloseFile(f File) error { return l.closeFile(f) }

// Command starts c. It allocates nothing. HasCommands must hold.
func (l *Loop) Command(c *Cmd) {
	c.l = l
	s := l.sqe()
	if s == nil {
		l.later(c)
		return
	}
	PrepCmd(s, c.File, c.Op, c.Addr, c.Len, &c.Arg)
	l.startEndless(s, c)
}

// Poll starts p. It allocates nothing.
func (l *Loop) Poll(p *Poll) {
	p.l = l
	s := l.sqe()
	if s == nil {
		l.later(p)
		return
	}
	PrepPoll(s, p.File, p.Events)
	l.startEndless(s, p)
}

// PrepCmd sends a command to a driver; only in a ring with SetupSQE128.
func PrepCmd(s *SQE, f File, op uint32, addr uintptr, n uint32, arg *[3]uint64) {
	prep(s, sys.IORING_OP_URING_CMD, f, uint64(addr), n, uint64(op))
	*(*[3]uint64)(unsafe.Add(unsafe.Pointer(s), cmdArea)) = *arg
}

// Settled hands over all that was asked for, and says whether every command in flight is with its
// driver: no completion waits to be taken. A driver works on memory of the process within system
// calls of the loop's thread only, so until that thread goes on with the loop, it is the caller's.
// It may be false for long while there is much to do.
func (l *Loop) Settled() bool {
	if l.ring.Unsubmitted() > 0 {
		l.submitEarly()
	}
	return l.ring.flags&SetupDeferTaskrun != 0 && len(l.deferred) == 0 && l.ring.Settled()
}

func (l *Loop) startEndless(s *SQE, c completer) {
	l.endless++
	l.start(s, c, 0)
}

func (l *Loop) endedEndless() {
	l.endless--
	if l.endless < 0 {
		panic(fmt.Sprintf("uring: %d operations of %d have no end", l.endless, l.inFlight))
	}
}

func (c *Cmd) complete(_ uint8, result int32, _ uint32) {
	c.l.endedEndless()
	c.Done(c, result)
}

func (c *Cmd) runDeferred() { c.l.Command(c) }

func (p *Poll) complete(_ uint8, result int32, _ uint32) {
	p.l.endedEndless()
	p.Done(p, result)
}

func (p *Poll) runDeferred() { p.l.Poll(p) }
