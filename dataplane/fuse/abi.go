package fuse

import (
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// This file is the kernel's formats (linux/fuse.h, in the byte order of the machine), as far as
// go-fuse doesn't have them.
//
// A request on /dev/fuse is one read, its reply one write:
//
//	fuse.InHeader (40 bytes) | argument of the operation | names or data
//	fuse.OutHeader (16 bytes) | result or data
//
// In an entry of a queue over io_uring they lie apart, in two pieces of memory of ours that the
// kernel is told of when the entry is registered:
//
//	headers, 288 bytes                                       payload, maxWrite bytes
//	  0  fuse.InHeader; in the reply fuse.OutHeader          names or data; in the reply result
//	128  argument of the operation                           or data
//	256  flags u64 | commit id u64 | payload size u32 | reserved 12
//
// The argument of READ and WRITE, the two operations that aren't left to go-fuse, is an ioArg.

// Operations that are handled here. All others are go-fuse's.
const (
	opForget      = 2
	opRead        = 15
	opWrite       = 16
	opFsync       = 20
	opInterrupt   = 36
	opBatchForget = 42
)

// ioArg is struct fuse_read_in and struct fuse_write_in. That of FSYNC begins with the handle, too;
// behind it its flags; that of INTERRUPT with the number of the request.
type ioArg struct {
	Fh        uint64
	Offset    uint64
	Size      uint32
	Flags     uint32
	LockOwner uint64
	OpenFlags uint32
	_         uint32
}

// fsyncData is the flag of FSYNC for fdatasync(2).
const fsyncData = 1

// ringHeaders is struct fuse_uring_req_header.
type ringHeaders struct {
	inOut [128]byte
	arg   [128]byte

	flags       uint64
	commitID    uint64
	payloadSize uint32
	_           uint32
	_           uint64
}

const (
	inHeaderSize  = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeaderSize = int(unsafe.Sizeof(fuse.OutHeader{}))
	ioArgSize     = int(unsafe.Sizeof(ioArg{}))
	fsyncArgSize  = 16
	interruptSize = int(unsafe.Sizeof(fuse.InterruptIn{}))
	writeOutSize  = int(unsafe.Sizeof(fuse.WriteOut{}))
)

// The kernel's structures have these sizes.
const (
	_ = -(uint(inHeaderSize) ^ 40)
	_ = -(uint(outHeaderSize) ^ 16)
	_ = -(uint(ioArgSize) ^ 40)
	_ = -(uint(interruptSize) ^ 48)
	_ = -(uint(writeOutSize) ^ 8)
	_ = -(uint(unsafe.Sizeof(ringHeaders{})) ^ 288)
)

// Commands to /dev/fuse by io_uring. Their argument in the submission entry is struct
// fuse_uring_cmd_req: flags u64 | commit id u64 | queue u16 | zeros.
const (
	cmdRegister       = 1
	cmdCommitAndFetch = 2
)

// A call's memory is one page for headers, then the payload. A request on /dev/fuse is read to the
// last bytes of that page and on, so that the data of a WRITE (and the result of a READ, its header
// before it) begin where the payload does.
const (
	headPage   = 4096
	deviceHead = headPage - inHeaderSize - ioArgSize
	replyHead  = headPage - outHeaderSize
	callMemory = headPage + maxWrite
)

// entryHead is the room that an entry's headers have: behind them lie the two struct iovec by which
// the kernel is told of headers and payload.
const entryHead = 512

const _ = uint(entryHead - unsafe.Sizeof(ringHeaders{}) - 2*unsafe.Sizeof(unix.Iovec{}))
