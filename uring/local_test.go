package uring

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// listenBoth listens on a TCP port and beside it, as chunk servers do. seen gets the names of the
// peers.
func listenBoth(t *testing.T, l *Loop, seen chan<- string) (addr string, closeLocal func()) {
	t.Helper()
	attach := func(c Conn) ConnHandler {
		seen <- c.RemoteAddr()
		return echo(c)
	}
	addr = listen(t, l, attach)
	on(t, l, func() {
		var err error
		if closeLocal, err = l.ListenLocal(addr, attach); err != nil {
			t.Error(err)
		}
	})
	return addr, closeLocal
}

// TestLocal: who dials an address of this host gets the socket beside it, and TCP if there is none,
// or if it doesn't want one.
func TestLocal(t *testing.T) {
	server, client := startLoop(t, LoopOptions{}), startLoop(t, LoopOptions{})
	seen := make(chan string, 1)
	addr, closeLocal := listenBoth(t, server, seen)

	ask := func(l *Loop, wantLocal bool) {
		t.Helper()
		answered := make(chan string, 1)
		p := &peer{}
		p.recv = func(b []byte) (int, []byte) {
			answered <- string(b)
			return len(b), nil
		}
		dialTo(t, l, addr, p)
		if name := <-seen; strings.HasPrefix(name, "local process ") != wantLocal {
			t.Fatalf("the peer is called %q; local: %v", name, wantLocal)
		}
		on(t, l, func() {
			if p.c.RemoteAddr() != addr {
				t.Errorf("the server is called %q", p.c.RemoteAddr())
			}
			p.c.Append([]byte("hello"))
		})
		if got := <-answered; got != "hello" {
			t.Fatalf("answer %q", got)
		}
	}
	ask(client, true)
	ask(startLoop(t, LoopOptions{NoLocal: true}), false)
	on(t, server, func() {
		if _, err := server.ListenLocal(addr, echo); err == nil {
			t.Error("the same name twice")
		}
	})
	on(t, server, closeLocal)
	on(t, server, func() {}) // the turn in which it is closed is over
	for {
		if fd, _, ok := client.dialLocal(addr); !ok {
			break
		} else if unix.Close(fd) != nil {
			t.Fatal("close")
		}
		runtime.Gosched()
	}
	ask(client, false)
}

// TestLocalOtherUser: a socket of another user isn't used, by neither end.
func TestLocalOtherUser(t *testing.T) {
	if unix.Geteuid() != 0 {
		t.Skip("needs root, to be another user for a moment")
	}
	server := startLoop(t, LoopOptions{})
	addr, _ := listenBoth(t, server, make(chan string, 1))
	type outcome struct {
		ok      bool
		refused bool // the server hung up
	}
	result := make(chan outcome)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		const other = 12345
		_, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, other, other, other)
		if errno != 0 {
			t.Error(errno)
		}
		var o outcome
		_, _, o.ok = (&Loop{}).dialLocal(addr)
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: localPath(addr)}); err != nil {
			t.Error(err)
		}
		n, err := unix.Read(fd, make([]byte, 1))
		o.refused = n == 0 && err == nil
		result <- o
	}()
	if o := <-result; o.ok || !o.refused {
		t.Fatalf("used: %v, refused: %v", o.ok, o.refused)
	}
}

const elsewhereEnv = "PSTORAGE_TEST_ELSEWHERE"

// TestLocalOtherNamespace: a process in another PID namespace, where nobody here has a number, as
// in a container with the host's network, uses the socket, too.
func TestLocalOtherNamespace(t *testing.T) {
	if addr := os.Getenv(elsewhereEnv); addr != "" {
		client := startLoop(t, LoopOptions{})
		if fd, pid, ok := client.dialLocal(addr); !ok || pid != 0 {
			t.Fatalf("the server has the number %d here; found: %v", pid, ok)
		} else if err := unix.Close(fd); err != nil {
			t.Fatal(err)
		}
		answered := make(chan string, 1)
		p := &peer{}
		p.recv = func(b []byte) (int, []byte) {
			answered <- string(b)
			return len(b), nil
		}
		dialTo(t, client, addr, p)
		on(t, client, func() { p.c.Append([]byte("hello")) })
		if got := <-answered; got != "hello" {
			t.Fatalf("answer %q", got)
		}
		return
	}
	if unix.Geteuid() != 0 {
		t.Skip("needs root, to make a PID namespace")
	}
	addr, _ := listenBoth(t, startLoop(t, LoopOptions{}), make(chan string, 16))
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestLocalOtherNamespace$")
	cmd.Env = append(os.Environ(), elsewhereEnv+"="+addr)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
