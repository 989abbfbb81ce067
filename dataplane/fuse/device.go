package fuse

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"pstorage/uring"
)

// This file is /dev/fuse: mounting, the first request, and all others on kernels without FUSE over
// io_uring. Requests are read on the loop's thread when a poll says that there are some, until
// there are no more; replies are written there, too.

// openDevice mounts the file system and answers the kernel's first request, with which features
// are agreed on. It returns the descriptor of /dev/fuse, and what was agreed on.
func openDevice(o *Options, dir string, protocol *fuse.ProtocolServer) (fd int, flags uint64,
	err error) {
	fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, 0, fmt.Errorf("open /dev/fuse: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	var mode uintptr = unix.MS_NOSUID | unix.MS_NODEV
	if o.ReadOnly {
		mode |= unix.MS_RDONLY
	}
	if err := unix.Mount(o.FSName, dir, "fuse.pstorage", mode, mountData(o, fd)); err != nil {
		return -1, 0, err
	}
	if flags, err = handshake(fd, protocol); err != nil {
		unix.Unmount(dir, unix.MNT_DETACH)
		return -1, 0, err
	}
	return fd, flags, nil
}

// mountData are the options that the kernel's FUSE knows.
func mountData(o *Options, fd int) string {
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,max_read=%d,default_permissions",
		fd, unix.S_IFDIR, os.Geteuid(), os.Getegid(), maxWrite)
	if o.AllowOther {
		data += ",allow_other"
	}
	return data
}

// handshake is the request INIT.
func handshake(fd int, protocol *fuse.ProtocolServer) (flags uint64, err error) {
	in, out := make([]byte, callMemory), make([]byte, headPage)
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, in) })
	if err != nil {
		return 0, fmt.Errorf("read the kernel's first request: %w", err)
	}
	n, status := protocol.HandleRequest([][]byte{in[:n]}, [][]byte{out})
	head := (*fuse.OutHeader)(unsafe.Pointer(&out[0]))
	if status != fuse.OK || head.Status != 0 {
		return 0, fmt.Errorf("agree on features with the kernel: %w",
			syscall.Errno(max(int32(status), -head.Status)))
	}
	agreed := (*fuse.InitOut)(unsafe.Pointer(&out[outHeaderSize]))
	if _, err = unix.Write(fd, out[:n]); err != nil {
		return 0, fmt.Errorf("answer the kernel's first request: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return 0, err
	}
	return agreed.Flags64(), nil
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// maxCalls bounds the requests by /dev/fuse that are under way. What comes above waits in the
// kernel, interruptions too.
const maxCalls = 1024

// turnCalls is how many requests are read before the others on the loop have their turn.
const turnCalls = 64

// watch waits for requests.
func (c *conn) watch() {
	if !c.watching {
		c.watching = true
		c.loop.Poll(&c.poll)
	}
}

// readable reads the requests that are there.
func (c *conn) readable(*uring.Poll, int32) {
	c.watching = false
	for range turnCalls {
		k := c.freeCall()
		if k == nil {
			c.starved = true // send goes on
			return
		}
		n, _, errno := syscall.RawSyscall(unix.SYS_READ, uintptr(c.fd),
			uintptr(unsafe.Pointer(&k.mem[deviceHead])), uintptr(callMemory-deviceHead))
		switch errno {
		case 0:
			c.receive(k, int(n))
			continue
		case unix.EINTR, unix.ENOENT: // ENOENT: its process was killed
			c.free = append(c.free, k)
			continue
		}
		c.free = append(c.free, k)
		if errno != unix.EAGAIN {
			c.disconnected(errno)
			return
		}
		break
	}
	c.watch()
}

// freeCall returns a call for a request by /dev/fuse, or nil.
func (c *conn) freeCall() *call {
	if n := len(c.free); n > 0 {
		k := c.free[n-1]
		c.free = c.free[:n-1]
		return k
	}
	if len(c.calls)-c.entries >= maxCalls {
		return nil
	}
	k, err := newDeviceCall(c)
	if err != nil {
		c.log.Warn("no memory for a request of the kernel", "err", err)
		return nil
	}
	return k
}

// receive acts on a request of n bytes that was read into k.
func (c *conn) receive(k *call, n int) {
	if n < inHeaderSize || int(k.head.Length) != n {
		k.malformed()
		return
	}
	switch opcode := k.head.Opcode; {
	case opcode == opForget || opcode == opBatchForget: // nothing is kept per inode
	case opcode == opInterrupt && n >= interruptSize:
		unique := *(*uint64)(unsafe.Pointer(k.arg))
		if !c.interrupt(unique) {
			// It is answered, or arrived over io_uring, among the completions of this turn.
			c.loop.Post(func() { c.interrupt(unique) })
		}
	default:
		k.begin(n - inHeaderSize - ioArgSize)
		return
	}
	c.free = append(c.free, k)
}

// send writes the reply of k, which has n bytes of payload.
func (k *call) send(n int) {
	c := k.c
	for {
		_, _, errno := syscall.RawSyscall(unix.SYS_WRITE, uintptr(c.fd),
			uintptr(unsafe.Pointer(k.reply)), uintptr(outHeaderSize+n))
		if errno == unix.EINTR {
			continue
		}
		// ENOENT: the request was aborted meanwhile.
		if errno != 0 && errno != unix.ENOENT && c.connected {
			c.log.Error("the kernel refuses a reply", "request", k.opcode, "err", errno)
		}
		break
	}
	c.free = append(c.free, k)
	if c.starved {
		c.starved = false
		c.watch()
	}
	c.maybeEnded()
}
