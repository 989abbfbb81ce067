package nettest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"pstorage/perf/netlab"
)

// holderEnv makes the test's binary a holder: a proxy on a node through which all connections of
// that node to chunk servers go. It passes everything on, until it is told to hold what the node
// sends, as a switch with a long queue would; what it holds it delivers when it is told to release
// it, also if the node has given the connection up since. Commands are lines of its input, each
// answered by a line: how many bytes are held, and how many came from servers so far.
const holderEnv = "PSTORAGE_NETTEST_HOLDER"

const (
	holderPort = 7010
	holderMark = 7 // of its own connections, which aren't sent through it
	csPort     = 2520
)

// holder is the proxy's side.
type holder struct {
	mu      sync.Mutex
	changed *sync.Cond
	holding bool
	held    atomic.Int64
	answers atomic.Int64 // bytes that came from servers
}

func runHolder() error {
	h := &holder{}
	h.changed = sync.NewCond(&h.mu)
	l, err := net.Listen("tcp", fmt.Sprint("0.0.0.0:", holderPort))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				fmt.Fprintln(os.Stderr, "holder:", err)
				return
			}
			go h.pass(c.(*net.TCPConn))
		}
	}()
	fmt.Println("ready")
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		h.mu.Lock()
		switch s.Text() {
		case "hold":
			h.holding = true
		case "release":
			h.holding = false
			h.changed.Broadcast()
		}
		h.mu.Unlock()
		fmt.Println(h.held.Load(), h.answers.Load())
	}
	return nil
}

// pass connects to where c was meant to go.
func (h *holder) pass(c *net.TCPConn) {
	defer c.Close()
	to, err := originalDst(c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "holder:", err)
		return
	}
	d := net.Dialer{Timeout: 5 * time.Second, Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return orErr(raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, holderMark)
		}), &err)
	}}
	conn, err := d.Dial("tcp", to)
	if err != nil {
		return // the node sees its connection closed
	}
	server := conn.(*net.TCPConn)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			h.answers.Add(int64(n))
			_, _ = c.Write(buf[:n]) // the node may not want it any more
			if err != nil {
				_ = c.CloseWrite()
				return
			}
		}
	}()
	h.forward(server, c, answered)
}

// orErr returns the first error of two, the second of which is set by then.
func orErr(err error, other *error) error {
	if err != nil {
		return err
	}
	return *other
}

// forward passes on what the node sends, until the server has answered all of it. What is held
// outlives the node's end of the connection.
func (h *holder) forward(server, from *net.TCPConn, answered <-chan struct{}) {
	parts := make(chan []byte, 4096)
	go func() {
		defer close(parts)
		for {
			b := make([]byte, 64<<10)
			n, err := from.Read(b)
			if n > 0 {
				h.held.Add(int64(n))
				parts <- b[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	for b := range parts {
		h.mu.Lock()
		for h.holding {
			h.changed.Wait()
		}
		h.mu.Unlock()
		_, err := server.Write(b)
		h.held.Add(-int64(len(b)))
		if err != nil {
			break
		}
	}
	// The answers to what was sent may still come; the server closes when it has seen the end.
	_ = server.CloseWrite()
	_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
	<-answered
	_ = server.Close()
	for b := range parts {
		h.held.Add(-int64(len(b)))
	}
}

// originalDst is where a connection was meant to go before the rule sent it here.
func originalDst(c *net.TCPConn) (string, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return "", err
	}
	const originalDstOpt = 80 // SO_ORIGINAL_DST
	var addr unix.RawSockaddrInet4
	size := uint32(unsafe.Sizeof(addr))
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_IP, originalDstOpt,
			uintptr(unsafe.Pointer(&addr)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err == nil && errno != 0 {
		err = errno
	}
	port := addr.Port>>8 | addr.Port<<8
	return fmt.Sprintf("%s:%d", net.IP(addr.Addr[:]), port), err
}

// child is a process of a node that is spoken to by lines.
type child struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
}

// startChild starts this binary in a role.
func (c *testCluster) startChild(n *netlab.Node, env string) *child {
	c.t.Helper()
	k := &child{t: c.t, cmd: exec.Command(os.Args[0]), lines: make(chan string, 1000)}
	k.cmd.Env = append(os.Environ(), env)
	k.cmd.Stderr = os.Stderr
	in, err := k.cmd.StdinPipe()
	c.must(err)
	k.in = in
	out, err := k.cmd.StdoutPipe()
	c.must(err)
	c.must(n.Start(k.cmd))
	go func() {
		defer close(k.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			k.lines <- s.Text()
		}
	}()
	c.t.Cleanup(func() {
		_ = k.cmd.Process.Kill() // it may have ended
		_ = k.cmd.Wait()
	})
	return k
}

// tell sends a line.
func (k *child) tell(line string) {
	k.t.Helper()
	if _, err := fmt.Fprintln(k.in, line); err != nil {
		k.t.Fatal(err)
	}
}

// hear waits for the next line, which must begin so, and returns the rest of it.
func (k *child) hear(prefix string) string {
	k.t.Helper()
	select {
	case line, ok := <-k.lines:
		rest, found := strings.CutPrefix(line, prefix)
		if !ok || !found {
			k.t.Fatalf("heard %q, wanted %q", line, prefix)
		}
		return strings.TrimSpace(rest)
	case <-time.After(90 * time.Second):
		k.t.Fatalf("nothing heard, wanted %q", prefix)
	}
	return ""
}
