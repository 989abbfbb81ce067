package uring

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"syscall"
	"unsafe"

	sys "github.com/iceber/iouring-go/syscall"
	"golang.org/x/sys/unix"
)

// RingOptions are the choices of NewRing. The zero value is good.
type RingOptions struct {
	// Entries is the size of the submission queue, a power of two. 0: 1024.
	Entries uint32
	// CQEntries is the size of the completion queue, a power of two. 0: 8 times Entries.
	CQEntries uint32
	// Flags are Setup* wishes; what the kernel doesn't know is left away and said in Log.
	Flags uint32
	// Log is told about fall-backs. nil: slog.Default().
	Log *slog.Logger

	denyFlags uint32 // for tests: treated as unknown to the kernel
	denyFeat  uint32

	denyOps519 bool
}

// Ring is an io_uring. It belongs to one thread, which alone calls its methods.
type Ring struct {
	fd       int
	flags    uint32
	features uint32
	ops      opSet

	sqMem, cqMem, sqeMem []byte

	sqHead, sqTail, sqFlags *uint32 // shared with the kernel
	sqDropped               *uint32
	sqMask, sqEntries       uint32
	sqeSize                 uintptr // bytes: 64, or 128 with SetupSQE128
	tail                    uint32  // ours; published by Enter

	cqHead, cqTail, cqOverflow *uint32 // shared with the kernel
	cqMask, cqEntries          uint32
	cqes                       []CQE
	head                       uint32 // ours

	wait    *waitArg // outside the Go heap
	waitMem []byte

	// KeepProc has the thread keep its processor of the Go scheduler while it sleeps in Wait. Only
	// for threads that sleep briefly, and while the scheduler has processors to spare.
	KeepProc bool

	// Enters, Overflows and Busy count system calls, flushes of an overflown completion queue and
	// refused submissions.
	Enters, Overflows, Busy uint64
}

// waitArg is struct io_uring_getevents_arg and what it points to.
type waitArg struct {
	sigmask     uint64
	sigmaskSize uint32
	minWaitUsec uint32
	ts          uint64
	time        unix.Timespec
	fd          int32 // argument of a file table update
}

// NewRing sets up a ring.
func NewRing(o RingOptions) (*Ring, error) {
	if o.Entries == 0 {
		o.Entries = 1024
	}
	if o.CQEntries == 0 {
		o.CQEntries = 8 * o.Entries
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	fd, p, err := setup(&o)
	if err != nil {
		return nil, err
	}
	r := &Ring{fd: fd, flags: p.Flags, features: p.Features &^ o.denyFeat}
	if err := r.mapQueues(p); err != nil {
		r.Close()
		return nil, err
	}
	if r.ops, err = probeOps(fd); err != nil {
		r.Close()
		return nil, err
	}
	r.ops.has519 = r.ops.has519 && !o.denyOps519
	r.waitMem = mustMap(4096)
	r.wait = (*waitArg)(unsafe.Pointer(&r.waitMem[0]))
	return r, nil
}

// mapQueues maps the rings that set-up made.
func (r *Ring) mapQueues(p *sys.IOURingParams) error {
	sqSize := int(p.SQOffset.Array) + int(p.SQEntries)*4
	if p.Flags&SetupNoSQArray != 0 {
		sqSize = int(p.SQOffset.Array)
	}
	cqSize := int(p.CQOffset.Cqes) + int(p.CQEntries)*int(unsafe.Sizeof(CQE{}))
	single := p.Features&featSingleMmap != 0
	if single {
		sqSize = max(sqSize, cqSize)
	}
	var err error
	if r.sqMem, err = r.mapAt(sys.IORING_OFF_SQ_RING, sqSize); err != nil {
		return err
	}
	if r.cqMem = r.sqMem; !single {
		if r.cqMem, err = r.mapAt(sys.IORING_OFF_CQ_RING, cqSize); err != nil {
			return err
		}
	}
	r.sqeSize = unsafe.Sizeof(SQE{})
	if p.Flags&SetupSQE128 != 0 {
		r.sqeSize *= 2
	}
	r.sqeMem, err = r.mapAt(sys.IORING_OFF_SQES, int(p.SQEntries)*int(r.sqeSize))
	if err != nil {
		return err
	}

	u32 := func(m []byte, off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&m[off])) }
	r.sqHead, r.sqTail = u32(r.sqMem, p.SQOffset.Head), u32(r.sqMem, p.SQOffset.Tail)
	r.sqFlags, r.sqDropped = u32(r.sqMem, p.SQOffset.Flags), u32(r.sqMem, p.SQOffset.Dropped)
	r.sqEntries, r.sqMask = p.SQEntries, *u32(r.sqMem, p.SQOffset.RingMask)
	if p.Flags&SetupNoSQArray == 0 {
		array := unsafe.Slice(u32(r.sqMem, p.SQOffset.Array), p.SQEntries)
		for i := range array {
			array[i] = uint32(i)
		}
	}
	r.cqHead, r.cqTail = u32(r.cqMem, p.CQOffset.Head), u32(r.cqMem, p.CQOffset.Tail)
	r.cqOverflow = u32(r.cqMem, p.CQOffset.Overflow)
	r.cqEntries, r.cqMask = p.CQEntries, *u32(r.cqMem, p.CQOffset.RingMask)
	r.cqes = unsafe.Slice((*CQE)(unsafe.Pointer(&r.cqMem[p.CQOffset.Cqes])), p.CQEntries)
	return nil
}

func (r *Ring) mapAt(off uint64, size int) ([]byte, error) {
	m, err := unix.Mmap(r.fd, int64(off), size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes of an io_uring: %w", size, err)
	}
	return m, nil
}

// Fd is the ring's file descriptor, the target of PrepMsgRing.
func (r *Ring) Fd() int { return r.fd }

// Flags are the set-up flags in force.
func (r *Ring) Flags() uint32 { return r.flags }

// CQEntries is the size of the completion queue.
func (r *Ring) CQEntries() int { return int(r.cqEntries) }

// Enable starts a ring made with SetupDisabled. With SetupSingleIssuer the calling thread becomes
// the only one that may use it.
func (r *Ring) Enable() error {
	if r.flags&SetupDisabled == 0 {
		return nil
	}
	return sys.IOURingRegister(r.fd, sys.IORING_REGISTER_ENABLE_RINGS, nil, 0)
}

// SQE returns the next free submission entry to be filled by a Prep function, or nil if the queue
// is full: Enter empties it.
func (r *Ring) SQE() *SQE {
	if r.tail-atomic.LoadUint32(r.sqHead) == r.sqEntries {
		return nil
	}
	s := (*SQE)(unsafe.Pointer(&r.sqeMem[uintptr(r.tail&r.sqMask)*r.sqeSize]))
	r.tail++
	return s
}

// Unsubmitted is how many entries wait for Enter.
func (r *Ring) Unsubmitted() int { return int(r.tail - atomic.LoadUint32(r.sqHead)) }

// Ready is how many completions can be taken without a system call.
func (r *Ring) Ready() int { return int(atomic.LoadUint32(r.cqTail) - r.head) }

// Settled says whether all entries were submitted and all completions were taken.
func (r *Ring) Settled() bool {
	return r.Unsubmitted() == 0 && r.Ready() == 0 && atomic.LoadUint32(r.sqFlags)&sqCQOverflow == 0
}

// Reap copies completions to out and returns how many. Their places in the queue are free again.
func (r *Ring) Reap(out []CQE) int {
	n := min(r.Ready(), len(out))
	if n == 0 {
		return 0
	}
	for i := range n {
		out[i] = r.cqes[(r.head+uint32(i))&r.cqMask]
	}
	r.head += uint32(n)
	atomic.StoreUint32(r.cqHead, r.head)
	return n
}

// Forever is the timeout of a Wait that ends only by a completion.
const Forever = int64(-1)

// Submit hands all filled entries to the kernel without waiting, and lets it deliver completions
// that it holds back. No system call is made if there is nothing to do.
func (r *Ring) Submit() error { return r.enter(0, Forever, 0) }

// Wait is Submit, then sleeps until minComplete completions are there or timeout ns are over
// (Forever: no limit). It may return early, as after a signal. With minWait > 0 (ns, and a kernel
// that can), fewer completions are enough when that time is over. HasTimeout must hold for a
// timeout.
func (r *Ring) Wait(minComplete uint32, timeout, minWait int64) error {
	return r.enter(minComplete, timeout, minWait)
}

// HasTimeout says whether Wait obeys its timeout. Without (before Linux 5.11), use PrepTimeout.
func (r *Ring) HasTimeout() bool { return r.features&featExtArg != 0 }

func (r *Ring) enter(minComplete uint32, timeout, minWait int64) error {
	toSubmit := r.tail - atomic.LoadUint32(r.sqHead)
	flags := uint32(0)
	state := atomic.LoadUint32(r.sqFlags)
	if minComplete > 0 || state&(sqCQOverflow|sqTaskrun) != 0 || r.flags&SetupDeferTaskrun != 0 {
		flags = enterGetEvents
	}
	if state&sqCQOverflow != 0 {
		r.Overflows++
	}
	if toSubmit == 0 && flags == 0 {
		return nil
	}
	atomic.StoreUint32(r.sqTail, r.tail)
	r.Enters++
	var errno syscall.Errno
	switch {
	case minComplete == 0:
		// Doesn't sleep, so the scheduler needn't know.
		_, _, errno = syscall.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd),
			uintptr(toSubmit), 0, uintptr(flags), 0, 0)
	case (timeout >= 0 || minWait > 0) && r.HasTimeout():
		r.setWait(timeout, minWait)
		errno = r.sleep(uintptr(toSubmit), uintptr(minComplete), uintptr(flags|enterExtArg),
			uintptr(unsafe.Pointer(r.wait)), unsafe.Offsetof(r.wait.time))
	default:
		errno = r.sleep(uintptr(toSubmit), uintptr(minComplete), uintptr(flags), 0, 0)
	}
	return r.checkEnter(errno)
}

// sleep is io_uring_enter when it may sleep. Usually the scheduler is told, which takes the
// thread's processor (its P) away when the call takes long: its monitor then runs every 20 µs, and
// each wake-up must find a processor again. With KeepProc it isn't told. It still can stop the
// thread, for a garbage collection or after 10 ms: it sends a signal, which ends the call.
func (r *Ring) sleep(toSubmit, minComplete, flags, arg, size uintptr) (errno syscall.Errno) {
	if r.KeepProc {
		_, _, errno = syscall.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), toSubmit,
			minComplete, flags, arg, size)
	} else {
		_, _, errno = syscall.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), toSubmit,
			minComplete, flags, arg, size)
	}
	return errno
}

func (r *Ring) setWait(timeout, minWait int64) {
	w := r.wait
	w.ts, w.minWaitUsec = 0, 0
	if timeout >= 0 {
		w.time = unix.NsecToTimespec(timeout)
		w.ts = uint64(uintptr(unsafe.Pointer(&w.time)))
	}
	if minWait > 0 && r.features&featMinTimeout != 0 {
		w.minWaitUsec = uint32(minWait / 1000)
	}
}

// checkEnter tells what is normal from what isn't. How much was submitted is read off the queue's
// head, never off the returned count.
func (r *Ring) checkEnter(errno syscall.Errno) error {
	switch errno {
	case 0, unix.ETIME, unix.EINTR:
		// EINTR: a signal, often Go's own for preemption. Nothing is lost, the caller comes again.
	case unix.EBUSY, unix.EAGAIN:
		// Completions must be taken first, or the kernel is short of memory for a moment.
		r.Busy++
	case unix.EBADR:
		return errors.New("io_uring dropped completions: the kernel is out of memory")
	default:
		return fmt.Errorf("io_uring_enter: %w", errno)
	}
	if d := atomic.LoadUint32(r.sqDropped); d != 0 {
		panic(fmt.Sprintf("uring: %d submissions with a bad index", d))
	}
	return nil
}

// Close releases the ring. The kernel cancels what is in flight, later: memory of operations must
// stay mapped until they are drained, so drain first.
func (r *Ring) Close() {
	separate := len(r.cqMem) > 0 && &r.cqMem[0] != &r.sqMem[0]
	for _, m := range [][]byte{r.sqeMem, r.waitMem, r.sqMem} {
		if m != nil {
			_ = unix.Munmap(m)
		}
	}
	if separate {
		_ = unix.Munmap(r.cqMem)
	}
	_ = unix.Close(r.fd)
	r.fd = -1
}
