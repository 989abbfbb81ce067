package uring

// This file is the seam between logic and the machine: the interfaces that chunk servers, the log
// and the client are written against. They are implemented here over io_uring, and in simloop over
// a virtual clock, a faulty disk and a faulty network. Everything in it happens on one thread: a
// callback is never entered while another one runs, and never from inside the call that asked for
// it (Submit and friends return first).

// Env is time, timers, randomness and the end of the turn.
type Env interface {
	// Now is a clock in nanoseconds that only goes ahead, also while the host is suspended
	// (CLOCK_BOOTTIME). It was read after that had come which is being handled.
	Now() int64
	// Rand returns 64 random bits.
	Rand() uint64
	// Arm calls t.Fire once, d nanoseconds (>= 0) from now. An armed timer is moved.
	Arm(t *Timer, d int64)
	// Disarm makes sure that t doesn't fire. It may be called on a timer that isn't armed.
	Disarm(t *Timer)
	// AtTurnEnd calls e.TurnEnd once, after all completions of this turn were delivered and before
	// what was queued on connections and disks is submitted. A second call in a turn is ignored.
	AtTurnEnd(e *TurnEnder)
}

// Timer is owned by its user, who sets Fire once and embeds it in a longer-lived struct.
type Timer struct {
	Fire func()
	when int64
	heap int // position in the loop's heap plus 1; 0: not armed
	seq  uint64
}

// Armed says whether t will fire.
func (t *Timer) Armed() bool { return t.heap != 0 }

// TurnEnder is what AtTurnEnd calls. The user sets TurnEnd once.
type TurnEnder struct {
	TurnEnd func()
	queued  bool
}

// OpKind is what a DiskOp does.
type OpKind uint8

// The kinds of disk operations.
const (
	DiskRead      OpKind = iota // fill Bufs from Offset
	DiskWrite                   // write Bufs at Offset; durable after a later DiskSync
	DiskWriteSync               // write Bufs at Offset and make them durable (RWF_DSYNC)
	DiskSync                    // make all completed writes durable (fdatasync)
	DiskDiscard                 // punch a hole of Length bytes at Offset: reads as zeros
	DiskAllocate                // give [Offset, +Length) written zero bytes of its own (slow)
)

// DiskOp is one disk operation. It is owned by the disk from Submit until Done is called.
// Offset, Length and the memory of Bufs are multiples of Disk.Align.
type DiskOp struct {
	Kind   OpKind
	Offset int64
	Length int64    // DiskDiscard and DiskAllocate only, bytes
	Bufs   [][]byte // at most MaxDiskBufs, out of a Pool
	Low    bool     // background: yields to other operations

	// Err is nil if all bytes were transferred. A short read past the end of the file is filled
	// with zeros and is no error; a short write is retried inside or an error.
	Err  error
	Done func(*DiskOp) // set once by the owner of the op

	priv diskOpPriv
}

// MaxDiskBufs is the most buffers of one DiskOp.
const MaxDiskBufs = 64

// Disk is one file or block device, opened with O_DIRECT.
type Disk interface {
	// Submit starts op; op.Done is called on the loop's thread later, always.
	Submit(op *DiskOp)
	// Size is the size in bytes at opening time.
	Size() int64
	// Align is what offsets, lengths and memory are multiples of: 512 or 4096 bytes.
	Align() int
	// Close releases the disk. No operation may be in flight.
	Close() error
}

// MaxReserve is the most bytes that Conn.Reserve gives.
const MaxReserve = 8192

// Conn is one stream connection of the loop. Bytes are sent in the order of the calls, with one
// system call per turn where possible.
type Conn interface {
	// Append queues a copy of p.
	Append(p []byte)
	// Reserve returns n (<= MaxReserve) bytes of the outgoing stream for the caller to fill at once,
	// before any other call on this Conn.
	Reserve(n int) []byte
	// AppendBuf queues b.Bytes()[from:to] without copying. The connection retains b until sent.
	AppendBuf(b *Buf, from, to int)
	// Queued is how many bytes wait to be sent or are being sent. Bounding it is the caller's duty.
	Queued() int
	// Close drops the connection: queued bytes are lost, Handler.Closed is called (later) with err.
	Close(err error)
	// RemoteAddr is for people.
	RemoteAddr() string
	// PauseRecv stops and starts receiving: back-pressure on the peer. While paused, Recv isn't
	// called. After PauseRecv(false) bytes that were left unread are given to Recv again, in this
	// turn or the next (not from inside the call), even if the peer sends nothing more.
	PauseRecv(pause bool)
}

// HangupSeer is a Conn that can tell that the peer has hung up while it is paused, when no receive
// would notice.
type HangupSeer interface {
	// HungUp says whether the peer has closed the connection, or its sending side. It is a system
	// call.
	HungUp() bool
}

// ConnHandler is told what happens on a Conn. It is attached when the connection is made.
type ConnHandler interface {
	// Recv is given all unread bytes of the stream. It returns how many it consumed; the rest is
	// given again, with more bytes behind it. p is valid only during the call. If into is not nil,
	// all of p was consumed and exactly the next len(into) bytes of the stream are received
	// straight into it (memory out of a Pool), then RecvDone is called before any other Recv.
	// A connection holds at most RecvWindow unread bytes: a handler that consumes nothing while p
	// has that length, and doesn't pause either, is broken, and the connection is closed.
	Recv(p []byte) (consumed int, into []byte)
	RecvDone()
	// Closed is the last call. err is io.EOF when the peer closed in an orderly way.
	Closed(err error)
}

// RecvWindow is the most unread bytes a connection keeps, and the most that Recv is given.
const RecvWindow = 256 << 10

// Net makes connections. Addresses are "ip:port"; a Loop listens on "unix:PATH", too.
type Net interface {
	// Dial connects. done is called once: with a Conn, whose handler is what attach returns for
	// it, or with an error.
	Dial(addr string, attach func(Conn) ConnHandler, done func(Conn, error))
	// Listen accepts connections on addr (port 0: any) until the closer is called, and returns the
	// address it listens on.
	Listen(addr string, attach func(Conn) ConnHandler) (bound string, closer func(), err error)
}
