package uring

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockaddr is a socket address as the kernel wants it, outside the Go heap.
type sockaddr struct {
	raw [28]byte // struct sockaddr_in or sockaddr_in6
	n   uint32
}

// set encodes ap and returns the address family.
func (s *sockaddr) set(ap netip.AddrPort) (int, error) {
	a := ap.Addr().Unmap()
	s.raw = [28]byte{}
	binary.BigEndian.PutUint16(s.raw[2:], ap.Port())
	if a.Is4() {
		binary.NativeEndian.PutUint16(s.raw[:], unix.AF_INET)
		*(*[4]byte)(s.raw[4:]) = a.As4()
		s.n = unix.SizeofSockaddrInet4
		return unix.AF_INET, nil
	}
	binary.NativeEndian.PutUint16(s.raw[:], unix.AF_INET6)
	*(*[16]byte)(s.raw[8:]) = a.As16()
	if z := a.Zone(); z != "" {
		id, err := zoneID(z)
		if err != nil {
			return 0, err
		}
		binary.NativeEndian.PutUint32(s.raw[24:], id)
	}
	s.n = unix.SizeofSockaddrInet6
	return unix.AF_INET6, nil
}

func zoneID(zone string) (uint32, error) {
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("zone %s: %w", zone, err)
	}
	return uint32(i.Index), nil
}

// addrString prints what getsockname and getpeername return.
func addrString(sa unix.Sockaddr, err error) string {
	if err != nil {
		return "unknown"
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrUnix:
		return unixPrefix + a.Name
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(a.Addr)
		if a.ZoneId != 0 {
			ip = ip.WithZone(strconv.Itoa(int(a.ZoneId)))
		}
		return netip.AddrPortFrom(ip, uint16(a.Port)).String()
	}
	return "unknown"
}

// dial is a connection being made.
type dial struct {
	l        *Loop
	addr     string
	attach   func(Conn) ConnHandler
	done     func(Conn, error)
	file     File
	sa       *sockaddr
	userData uint64 // of the operation in flight; 0: none
	timer    Timer
	err      error // why it was given up

	cancelled bool
	local     bool // connected to a process of this host
	pid       int  // of that one; 0: it is in another PID namespace
}

// Dial implements Net.
func (l *Loop) Dial(addr string, attach func(Conn) ConnHandler, done func(Conn, error)) {
	d := &dial{l: l, addr: addr, attach: attach, done: done, file: FD(-1)}
	d.timer.Fire = func() {
		d.giveUp(fmt.Errorf("no answer for %v: %w", l.o.DialTimeout, unix.ETIMEDOUT))
	}
	l.socks[d] = struct{}{}
	if err := d.start(); err != nil {
		d.err = err
		l.later(d)
	}
}

func (d *dial) start() error {
	if d.l.state == loopStopping || d.l.state == loopStopped {
		return ErrStopped
	}
	ap, err := netip.ParseAddrPort(d.addr)
	if err != nil {
		return fmt.Errorf("not an ip:port address: %w", err)
	}
	if fd, pid, ok := d.l.dialLocal(d.addr); ok {
		d.file, d.local, d.pid = FD(fd), true, pid
		d.l.later(d)
		return nil
	}
	d.sa = d.l.addrs.get()
	family, err := d.sa.set(ap)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make a socket: %w", err)
	}
	d.file = FD(fd)
	d.l.Arm(&d.timer, int64(d.l.o.DialTimeout))
	d.l.later(d)
	return nil
}

// runDeferred submits the connect, or reports an early error.
func (d *dial) runDeferred() {
	if d.err != nil || d.local {
		d.finish(d.err)
		return
	}
	s := d.l.sqe()
	if s == nil {
		d.l.later(d)
		return
	}
	PrepConnect(s, d.file, uintptr(unsafe.Pointer(d.sa)), d.sa.n)
	d.userData = d.l.start(s, d, 0)
}

// giveUp ends the dial with err as soon as the kernel lets go of it.
func (d *dial) giveUp(err error) {
	if d.err == nil {
		d.err = err
	}
	if d.userData == 0 || d.cancelled {
		return
	}
	if d.cancelled = d.l.cancel(d.userData); !d.cancelled {
		d.l.Arm(&d.timer, 1e6) // submissions are stuck: try again
	}
}

func (d *dial) cancelAll() { d.giveUp(ErrStopped) }

func (d *dial) abandon() {
	if d.file.fd >= 0 {
		_ = unix.Close(int(d.file.fd))
	}
}

func (d *dial) complete(_ uint8, res int32, _ uint32) {
	d.userData = 0
	switch {
	case d.err != nil:
		d.finish(d.err)
	case res == -int32(unix.EINTR) || res == -int32(unix.EAGAIN):
		d.l.later(d)
	case res < 0:
		d.finish(unix.Errno(-res))
	default:
		d.finish(d.checkSelf())
	}
}

// checkSelf refuses a connection of a socket with itself: dialling a free port of one's own host
// can meet the very port that the kernel picked for the dialler.
func (d *dial) checkSelf() error {
	local := addrString(unix.Getsockname(int(d.file.fd)))
	remote := addrString(unix.Getpeername(int(d.file.fd)))
	if local == remote && local != "unknown" {
		return unix.ECONNREFUSED
	}
	return nil
}

func (d *dial) finish(err error) {
	l := d.l
	l.Disarm(&d.timer)
	delete(l.socks, d)
	if d.sa != nil {
		l.addrs.put(d.sa)
		d.sa = nil
	}
	if err != nil {
		if d.file.fd >= 0 {
			_ = unix.Close(int(d.file.fd))
		}
		d.done(nil, fmt.Errorf("connect to %s: %w", d.addr, err))
		return
	}
	c := l.newConn(int(d.file.fd), d.addr, d.attach)
	c.peer.pid = d.pid
	d.done(c, nil)
}

// acceptRetry is how long a listener waits after an error before it accepts again, in ns.
const acceptRetry = 100e6

// listener accepts connections.
type listener struct {
	l         *Loop
	attach    func(Conn) ConnHandler
	bound     string
	file      File
	multishot bool
	userData  uint64 // of the operation in flight; 0: none
	retry     Timer
	closing   bool
	waiting   bool
	path      string // of a unix socket in the file system
	local     bool   // of ListenLocal
}

// Listen implements Net. Besides "ip:port" it takes "unix:PATH": a socket in the file system, for
// its owner only, which is removed when the listener is closed.
func (l *Loop) Listen(addr string, attach func(Conn) ConnHandler) (string, func(), error) {
	n, err := l.listenOn(addr, attach)
	if err != nil {
		return "", nil, err
	}
	return n.bound, n.close, nil
}

func (l *Loop) listenOn(addr string, attach func(Conn) ConnHandler) (*listener, error) {
	if l.state == loopStopping || l.state == loopStopped {
		return nil, ErrStopped
	}
	var fd int
	var err error
	path, local := strings.CutPrefix(addr, unixPrefix)
	if local {
		fd, err = listenUnix(path)
	} else {
		var ap netip.AddrPort
		if ap, err = netip.ParseAddrPort(addr); err != nil {
			return nil, fmt.Errorf("listen on %q: not an ip:port address: %w", addr, err)
		}
		fd, err = listenSocket(ap)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	n := &listener{l: l, attach: attach, file: FD(fd), multishot: l.ring.ops.has519}
	if n.bound = addrString(unix.Getsockname(fd)); local && !abstract(path) {
		n.path = path
	}
	n.retry.Fire = n.accept
	l.socks[n] = struct{}{}
	n.accept()
	return n, nil
}

func listenSocket(ap netip.AddrPort) (int, error) {
	a := ap.Addr().Unmap()
	family := unix.AF_INET6
	var sa unix.Sockaddr
	if a.Is4() {
		family = unix.AF_INET
		sa = &unix.SockaddrInet4{Port: int(ap.Port()), Addr: a.As4()}
	} else {
		s6 := &unix.SockaddrInet6{Port: int(ap.Port()), Addr: a.As16()}
		if z := a.Zone(); z != "" {
			id, err := zoneID(z)
			if err != nil {
				return -1, err
			}
			s6.ZoneId = id
		}
		sa = s6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	// A daemon that restarts takes its port back from connections that linger.
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	if err == nil {
		err = unix.Listen(fd, 1024)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// unixPrefix begins the address of a socket in the file system.
const unixPrefix = "unix:"

// listenUnix makes a socket at path. One that is there and that nobody listens on any more is
// replaced.
func listenUnix(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket: %w", err)
	}
	sa := &unix.SockaddrUnix{Name: path}
	if err = unix.Bind(fd, sa); err == unix.EADDRINUSE && !abstract(path) && abandoned(sa) {
		if err = unix.Unlink(path); err == nil {
			err = unix.Bind(fd, sa)
		}
	}
	if err == nil && !abstract(path) {
		err = unix.Chmod(path, 0o600) // nobody can connect before Listen
	}
	if err == nil {
		err = unix.Listen(fd, 1024)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// abstract says whether the name of a local socket is none in the file system.
func abstract(path string) bool { return strings.HasPrefix(path, "@") }

// abandoned says whether there is a socket at sa that refuses connections. Connecting to a file of
// another kind is refused in the same way, and such a file must stay.
func abandoned(sa *unix.SockaddrUnix) bool {
	var st unix.Stat_t
	if unix.Lstat(sa.Name, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return false
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Connect(fd, sa) == unix.ECONNREFUSED
}

// accept arms the accepting of one or of many connections.
func (n *listener) accept() {
	if n.closing || n.userData != 0 {
		return
	}
	s := n.l.sqe()
	if s == nil {
		n.l.Arm(&n.retry, 1e6)
		return
	}
	PrepAccept(s, n.file, unix.SOCK_CLOEXEC, n.multishot)
	n.userData = n.l.start(s, n, 0)
}

func (n *listener) complete(_ uint8, res int32, flags uint32) {
	if flags&CQEMore == 0 {
		n.userData = 0
	}
	switch {
	case res >= 0 && n.closing:
		_ = unix.Close(int(res))
	case res >= 0 && n.local:
		n.acceptLocal(int(res))
	case res >= 0:
		n.l.newConn(int(res), addrString(unix.Getpeername(int(res))), n.attach)
	case res == -int32(unix.EINVAL) && n.multishot:
		n.l.log.Warn("no multishot accept; going on without", "address", n.bound)
		n.multishot = false
	case n.closing || transientAccept(unix.Errno(-res)):
	default:
		// Out of file descriptors or memory: leave the peers in the backlog for a while.
		n.l.log.Error("accept", "address", n.bound, "error", unix.Errno(-res))
		n.l.Arm(&n.retry, acceptRetry)
		return
	}
	if n.userData != 0 {
		return
	}
	if n.closing {
		n.finish()
		return
	}
	n.accept()
}

func transientAccept(e unix.Errno) bool {
	return e == unix.EINTR || e == unix.EAGAIN || e == unix.ECONNABORTED || e == unix.ECANCELED
}

// close is the closer that Listen returns.
func (n *listener) close() {
	if n.closing && n.userData == 0 {
		return
	}
	n.closing = true
	n.cancelAll()
}

func (n *listener) cancelAll() {
	n.closing = true
	n.l.Disarm(&n.retry)
	n.unlink()
	if n.userData != 0 {
		_ = unix.Shutdown(int(n.file.fd), unix.SHUT_RDWR) // refuse new peers at once
		n.l.cancel(n.userData)
		return
	}
	if !n.waiting {
		n.waiting = true
		n.l.later(n)
	}
}

func (n *listener) abandon() { n.shut() }

// shut closes the socket.
func (n *listener) shut() {
	n.unlink()
	_ = unix.Close(int(n.file.fd))
}

// unlink removes the socket's name, once. Others can take it as soon as nobody listens on it any
// more, and theirs must not be removed.
func (n *listener) unlink() {
	if n.path != "" {
		_ = unix.Unlink(n.path)
		n.path = ""
	}
}

func (n *listener) runDeferred() {
	if n.userData == 0 {
		n.finish()
	}
}

func (n *listener) finish() {
	if _, open := n.l.socks[n]; !open {
		return
	}
	delete(n.l.socks, n)
	n.shut()
}
