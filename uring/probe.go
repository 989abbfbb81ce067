package uring

import (
	"errors"
	"fmt"
	"strings"
	"unsafe"

	sys "github.com/iceber/iouring-go/syscall"
	"golang.org/x/sys/unix"
)

// optionalFlags are the set-up flags that older kernels don't know, newest first: the order in
// which they are given up. with are flags that make no sense without it.
var optionalFlags = []struct {
	flag, with uint32
	name, cost string
}{
	{SetupNoSQArray, 0, "NO_SQARRAY", "one more indirection per submission"},
	{SetupSQE128, 0, "SQE128", "no commands to drivers, so no FUSE over io_uring"},
	{SetupDeferTaskrun, 0, "DEFER_TASKRUN", "completions interrupt the loop"},
	{SetupSingleIssuer, SetupDeferTaskrun, "SINGLE_ISSUER", "more locking in the kernel"},
	{SetupTaskrunFlag, 0, "TASKRUN_FLAG", "nothing"},
	{SetupCoopTaskrun, SetupTaskrunFlag, "COOP_TASKRUN", "completions interrupt the loop"},
	{SetupSubmitAll, 0, "SUBMIT_ALL", "a bad entry ends a batch early"},
	{SetupClamp, 0, "CLAMP", "queue sizes above the kernel's limit are refused"},
	{SetupDisabled, 0, "R_DISABLED", "the ring belongs to whoever makes it"},
}

// setup makes the ring, giving up optional flags one after the other.
func setup(o *RingOptions) (int, *sys.IOURingParams, error) {
	flags := o.Flags | SetupCQSize | SetupClamp | SetupSubmitAll
	for {
		p := &sys.IOURingParams{Flags: flags, CQEntries: o.CQEntries}
		fd, err := -1, error(unix.EINVAL)
		if flags&o.denyFlags == 0 {
			fd, err = sys.IOURingSetup(uint(o.Entries), p)
		}
		if err == nil {
			if p.Features&featNoDrop == 0 {
				unix.Close(fd)
				return -1, nil, errors.New("this kernel's io_uring loses completions " +
					"when its queue is full: Linux 5.6 or newer is needed")
			}
			return fd, p, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			return -1, nil, setupError(err)
		}
		dropped := false
		for _, f := range optionalFlags {
			if flags&f.flag != 0 {
				flags &^= f.flag | f.with
				o.Log.Warn("the kernel doesn't know an io_uring set-up flag; going on without",
					"flag", f.name, "cost", f.cost)
				dropped = true
				break
			}
		}
		if !dropped {
			return -1, nil, setupError(err)
		}
	}
}

// setupError says what to do about a kernel without io_uring.
func setupError(err error) error {
	switch {
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("this kernel has no io_uring (Linux 5.6 or newer is needed), "+
			"or a container's seccomp filter hides it: %w", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("io_uring is not allowed here: check sysctl kernel.io_uring_disabled "+
			"and the container's seccomp profile: %w", err)
	case errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("no memory for an io_uring: raise RLIMIT_MEMLOCK (LimitMEMLOCK= in a "+
			"systemd unit): %w", err)
	}
	return fmt.Errorf("set up an io_uring: %w", err)
}

// opSet is what the kernel supports.
type opSet struct {
	ops [256]bool
	// has519: Linux 5.19 or newer, told by an operation that came with it: multishot accept,
	// provided buffer rings and the poll-first hint of receive.
	has519 bool
}

// requiredOps are the operations without which there is no Loop.
var requiredOps = []struct {
	op   uint8
	name string
}{
	{sys.IORING_OP_READV, "READV"}, {sys.IORING_OP_WRITEV, "WRITEV"},
	{sys.IORING_OP_READ, "READ"}, {sys.IORING_OP_WRITE, "WRITE"},
	{sys.IORING_OP_FSYNC, "FSYNC"}, {sys.IORING_OP_FALLOCATE, "FALLOCATE"},
	{sys.IORING_OP_ACCEPT, "ACCEPT"}, {sys.IORING_OP_CONNECT, "CONNECT"},
	{sys.IORING_OP_SEND, "SEND"}, {sys.IORING_OP_SENDMSG, "SENDMSG"},
	{sys.IORING_OP_RECV, "RECV"}, {sys.IORING_OP_TIMEOUT, "TIMEOUT"},
	{sys.IORING_OP_ASYNC_CANCEL, "ASYNC_CANCEL"},
}

// probeOps asks the kernel which operations it has.
func probeOps(fd int) (opSet, error) {
	var set opSet
	var probe struct {
		lastOp, opsLen uint8
		_              uint16
		_              [3]uint32
		ops            [256]struct {
			op, _ uint8
			flags uint16
			_     uint32
		}
	}
	const supported = 1
	err := sys.IOURingRegister(fd, sys.IORING_REGISTER_PROBE, unsafe.Pointer(&probe), 256)
	if err != nil {
		return set, fmt.Errorf("ask the kernel for its io_uring operations "+
			"(Linux 5.6 or newer is needed): %w", err)
	}
	for _, o := range probe.ops[:probe.opsLen] {
		set.ops[o.op] = o.flags&supported != 0
	}
	var missing []string
	for _, q := range requiredOps {
		if !set.ops[q.op] {
			missing = append(missing, q.name)
		}
	}
	if missing != nil {
		return set, fmt.Errorf("this kernel's io_uring lacks %s: Linux 5.6 or newer is needed",
			strings.Join(missing, ", "))
	}
	set.has519 = set.ops[sys.IORING_OP_SOCKET]
	return set, nil
}
