package uring

import (
	"testing"

	"golang.org/x/sys/unix"
)

// deafListener returns the address of a listener that never accepts and whose backlog is full
// after very few connections.
func deafListener(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	return addrString(unix.Getsockname(fd))
}

// statsOf reads the counters of a running loop.
func statsOf(t testing.TB, l *Loop) LoopStats {
	t.Helper()
	var s LoopStats
	on(t, l, func() { s = l.Stats() })
	return s
}
