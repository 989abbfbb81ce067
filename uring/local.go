package uring

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// Processes of one host talk over a local stream socket instead of TCP: the same bytes, the same
// handshake, about two thirds of the CPU. Who listens on "ip:port" for others to dial has a socket
// beside it (ListenLocal), whose name is abstract and made of that address; Dial tries it first.
//
// Abstract names live in the network namespace, as addresses do, so a name leads where the address
// leads, and they vanish with their process. Anybody on the host may take a name that is free:
// so both ends ask the kernel who the other one is, and only use sockets of their own user. A
// process of another user is reached over TCP.

// LocalNet is a Net whose Dial finds listeners of the same host by a shorter way.
type LocalNet interface {
	// ListenLocal accepts, until the closer is called, connections of those on this host and of
	// this user that dial addr, on which the caller listens.
	ListenLocal(addr string, attach func(Conn) ConnHandler) (closer func(), err error)
}

var _ LocalNet = (*Loop)(nil)

// localPath is the name of the socket beside addr.
func localPath(addr string) string { return "@pstorage/" + addr }

// ListenLocal implements LocalNet.
func (l *Loop) ListenLocal(addr string, attach func(Conn) ConnHandler) (func(), error) {
	if l.o.NoLocal {
		return func() {}, nil
	}
	n, err := l.listenOn(unixPrefix+localPath(addr), attach)
	if err != nil {
		return nil, err
	}
	n.local = true
	return n.close, nil
}

// dialLocal connects to the socket beside addr, of the process pid; 0: of one in another PID
// namespace. ok is false if there is none for us, or if it can't take one more at the moment.
func (l *Loop) dialLocal(addr string) (fd, pid int, ok bool) {
	if l.o.NoLocal {
		return -1, 0, false
	}
	// Connecting to a local socket is over at once, or would wait for room in its queue.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, 0, false
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: localPath(addr)})
	if err == nil {
		pid, err = peerOf(fd)
	}
	if err == nil {
		enlarge(fd)
		err = unix.SetNonblock(fd, false) // the ring waits
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, 0, false
	}
	return fd, pid, true
}

// peerOf names the process at the other end of a local socket, which must be of our own user. It is
// 0 if that is in another PID namespace, as a container with the host's network is.
func peerOf(fd int) (pid int, err error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, fmt.Errorf("ask who is at the other end of a local socket: %w", err)
	}
	if int(cred.Uid) != unix.Geteuid() {
		return 0, fmt.Errorf("a local socket of process %d of user %d: %w", cred.Pid, cred.Uid,
			unix.EPERM)
	}
	return int(cred.Pid), nil
}

// acceptLocal makes a connection of a local socket, or closes it.
func (n *listener) acceptLocal(fd int) {
	pid, err := peerOf(fd)
	if err != nil {
		n.l.log.Warn("connection refused", "address", n.bound, "error", err)
		_ = unix.Close(fd)
		return
	}
	enlarge(fd)
	n.l.newConn(fd, "local process "+strconv.Itoa(pid), n.attach).peer.pid = pid
}

// localBuffer is the size of what a local socket sends ahead, in bytes. The kernel doesn't adapt it
// as TCP's, and its default holds two parts of a large write.
const localBuffer = 2 << 20

// enlarge makes the socket's buffer localBuffer, or what an ordinary user may have.
func enlarge(fd int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, localBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, localBuffer) // it only is slower
	}
}
