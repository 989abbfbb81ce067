package uring

import (
	"unsafe"

	sys "github.com/iceber/iouring-go/syscall"
	"golang.org/x/sys/unix"
)

// SQE is one entry of the submission queue. It is filled by one Prep function, then SetUserData.
type SQE = sys.SubmissionQueueEntry64

// CQE is one entry of the completion queue.
type CQE = sys.CompletionQueueEvent16

// Flags of set-up that the syscall package doesn't name.
const (
	SetupCQSize       = sys.IORING_SETUP_CQSIZE
	SetupClamp        = sys.IORING_SETUP_CLAMP
	SetupDisabled     = sys.IORING_SETUP_R_DISABLED
	SetupSubmitAll    = sys.IORING_SETUP_SUBMIT_ALL
	SetupCoopTaskrun  = sys.IORING_SETUP_COOP_TASKRUN
	SetupTaskrunFlag  = sys.IORING_SETUP_TASKRUN_FLAG
	SetupSingleIssuer = uint32(1) << 12
	SetupDeferTaskrun = uint32(1) << 13
	SetupSQE128       = sys.IORING_SETUP_SQE128 // entries have room for commands, see Cmd
	SetupNoSQArray    = uint32(1) << 16
)

const (
	featSingleMmap = sys.IORING_FEAT_SINGLE_MMAP
	featNoDrop     = sys.IORING_FEAT_NODROP
	featExtArg     = uint32(1) << 8
	featMinTimeout = uint32(1) << 15

	enterGetEvents = sys.IORING_ENTER_FLAGS_GETEVENTS
	enterExtArg    = uint32(1) << 3

	sqCQOverflow = sys.IORING_SQ_CQ_OVERFLOW
	sqTaskrun    = uint32(1) << 2

	sqeFixedFile    = sys.IOSQE_FLAGS_FIXED_FILE
	sqeLink         = sys.IOSQE_FLAGS_IO_LINK
	sqeBufferSelect = sys.IOSQE_FLAGS_BUFFER_SELECT

	// CQEMore in a CQE's flags: the multishot operation goes on.
	CQEMore = uint32(1) << 1
	// CQEBuffer in a CQE's flags: a provided buffer was used, its id is flags >> 16.
	CQEBuffer = uint32(1) << 0
	// CQESockNonempty in a CQE's flags: the socket holds more data.
	CQESockNonempty = uint32(1) << 2

	opReadvFixed  = 60 // Linux 6.15
	opWritevFixed = 61

	acceptMultishot = 1 << 0 // in ioprio of ACCEPT
	recvPollFirst   = 1 << 0 // in ioprio of RECV
	recvMultishot   = 1 << 1

	fsyncDatasync = sys.IORING_FSYNC_DATASYNC

	registerPbufRing   = 22
	unregisterPbufRing = 23
)

// File is what an operation works on: a file descriptor, or an index of the ring's registered
// files, which costs the kernel less per operation.
type File struct {
	fd    int32
	index int32 // -1: not registered
}

// FD is a File that isn't registered.
func FD(fd int) File { return File{fd: int32(fd), index: -1} }

func prep(s *SQE, op uint8, f File, addr uint64, n uint32, off uint64) {
	s.Reset()
	if f.index >= 0 {
		s.PrepOperation(op, f.index, addr, n, off)
		s.SetFlags(sqeFixedFile)
		return
	}
	s.PrepOperation(op, f.fd, addr, n, off)
}

// PrepNop does nothing: it completes with 0.
func PrepNop(s *SQE) { prep(s, sys.IORING_OP_NOP, FD(-1), 0, 0, 0) }

// PrepRead reads n bytes at off (-1: the current position) to addr.
func PrepRead(s *SQE, f File, addr uintptr, n uint32, off int64) {
	prep(s, sys.IORING_OP_READ, f, uint64(addr), n, uint64(off))
}

// PrepWrite writes n bytes at off from addr. rwFlags are RWF_*.
func PrepWrite(s *SQE, f File, addr uintptr, n uint32, off int64, rwFlags uint32) {
	prep(s, sys.IORING_OP_WRITE, f, uint64(addr), n, uint64(off))
	s.SetOpFlags(rwFlags)
}

// PrepReadFixed is PrepRead for memory that lies in the registered buffer of the given index.
func PrepReadFixed(s *SQE, f File, addr uintptr, n uint32, off int64, buf uint16) {
	prep(s, sys.IORING_OP_READ_FIXED, f, uint64(addr), n, uint64(off))
	s.SetBufIndex(buf)
}

// PrepWriteFixed is PrepWrite for memory that lies in the registered buffer of the given index.
func PrepWriteFixed(s *SQE, f File, addr uintptr, n uint32, off int64, rwFlags uint32, buf uint16) {
	prep(s, sys.IORING_OP_WRITE_FIXED, f, uint64(addr), n, uint64(off))
	s.SetOpFlags(rwFlags)
	s.SetBufIndex(buf)
}

// PrepReadv reads at off into n iovecs, which stay in place until completion.
func PrepReadv(s *SQE, f File, iov *unix.Iovec, n int, off int64) {
	prep(s, sys.IORING_OP_READV, f, uint64(uintptr(unsafe.Pointer(iov))), uint32(n), uint64(off))
}

// PrepWritev writes n iovecs at off; they stay in place until completion.
func PrepWritev(s *SQE, f File, iov *unix.Iovec, n int, off int64, rwFlags uint32) {
	prep(s, sys.IORING_OP_WRITEV, f, uint64(uintptr(unsafe.Pointer(iov))), uint32(n), uint64(off))
	s.SetOpFlags(rwFlags)
}

// PrepReadvFixed is PrepReadv for memory that lies in the registered buffer of the given index
// (Linux 6.15).
func PrepReadvFixed(s *SQE, f File, iov *unix.Iovec, n int, off int64, buf uint16) {
	prep(s, opReadvFixed, f, uint64(uintptr(unsafe.Pointer(iov))), uint32(n), uint64(off))
	s.SetBufIndex(buf)
}

// PrepWritevFixed is PrepWritev for memory that lies in the registered buffer of the given index
// (Linux 6.15).
func PrepWritevFixed(s *SQE, f File, iov *unix.Iovec, n int, off int64, rwFlags uint32,
	buf uint16) {
	prep(s, opWritevFixed, f, uint64(uintptr(unsafe.Pointer(iov))), uint32(n), uint64(off))
	s.SetOpFlags(rwFlags)
	s.SetBufIndex(buf)
}

// PrepFdatasync makes all completed writes of f durable.
func PrepFdatasync(s *SQE, f File) {
	prep(s, sys.IORING_OP_FSYNC, f, 0, 0, 0)
	s.SetOpFlags(fsyncDatasync)
}

// PrepFallocate is fallocate(2).
func PrepFallocate(s *SQE, f File, mode uint32, off, length int64) {
	prep(s, sys.IORING_OP_FALLOCATE, f, uint64(length), mode, uint64(off))
}

// PrepAccept accepts one connection, or one after the other if multishot. The sockets are opened
// with the given flags (SOCK_CLOEXEC).
func PrepAccept(s *SQE, f File, flags uint32, multishot bool) {
	prep(s, sys.IORING_OP_ACCEPT, f, 0, 0, 0)
	s.SetOpFlags(flags)
	if multishot {
		s.SetIoprio(acceptMultishot)
	}
}

// PrepConnect connects to the socket address of n bytes at addr.
func PrepConnect(s *SQE, f File, addr uintptr, n uint32) {
	prep(s, sys.IORING_OP_CONNECT, f, uint64(addr), 0, uint64(n))
}

// PrepRecv receives up to n bytes. pollFirst says that the socket is likely empty now, so the
// kernel needn't try first.
func PrepRecv(s *SQE, f File, addr uintptr, n uint32, flags uint32, pollFirst bool) {
	prep(s, sys.IORING_OP_RECV, f, uint64(addr), n, 0)
	s.SetOpFlags(flags)
	if pollFirst {
		s.SetIoprio(recvPollFirst)
	}
}

// PrepRecvMulti receives again and again into buffers of the provided group.
func PrepRecvMulti(s *SQE, f File, group uint16) {
	prep(s, sys.IORING_OP_RECV, f, 0, 0, 0)
	s.SetIoprio(recvMultishot)
	s.SetFlags(sqeBufferSelect)
	s.SetBufGroup(group)
}

// PrepSend sends n bytes.
func PrepSend(s *SQE, f File, addr uintptr, n uint32, flags uint32) {
	prep(s, sys.IORING_OP_SEND, f, uint64(addr), n, 0)
	s.SetOpFlags(flags)
}

// PrepSendmsg sends a message; the header and what it points to stay in place until completion.
func PrepSendmsg(s *SQE, f File, m *unix.Msghdr, flags uint32) {
	prep(s, sys.IORING_OP_SENDMSG, f, uint64(uintptr(unsafe.Pointer(m))), 1, 0)
	s.SetOpFlags(flags)
}

// PrepTimeout completes with -ETIME after ts. ts may change once the entry was submitted.
func PrepTimeout(s *SQE, ts *unix.Timespec) {
	prep(s, sys.IORING_OP_TIMEOUT, FD(-1), uint64(uintptr(unsafe.Pointer(ts))), 1, 0)
}

// PrepCancel cancels the operation with the given user data.
func PrepCancel(s *SQE, userData uint64) {
	prep(s, sys.IORING_OP_ASYNC_CANCEL, FD(-1), userData, 0, 0)
}

// PrepMsgRing posts a CQE with the given user data and result on another ring: a wake-up.
func PrepMsgRing(s *SQE, ringFd int, userData uint64, result uint32) {
	prep(s, sys.IORING_OP_MSG_RING, FD(ringFd), 0, result, userData)
}

// Link makes the next entry wait for s to succeed in full; if it doesn't, the next one ends with
// ECANCELED.
func Link(s *SQE) { s.SetFlags(sqeLink) }
