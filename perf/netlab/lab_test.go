package netlab

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"
)

// roleEnv makes the test's binary a process of a node: "send ADDR" or "listen ADDR".
const roleEnv = "NETLAB_TEST_ROLE"

func TestMain(m *testing.M) {
	var verb, addr string
	if n, _ := fmt.Sscan(os.Getenv(roleEnv), &verb, &addr); n == 2 {
		err := act(verb, addr)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// act sends a datagram every 10 ms, or prints a line for each that comes.
func act(verb, addr string) error {
	if verb == "send" {
		c, err := net.Dial("udp", addr)
		for err == nil {
			_, _ = c.Write([]byte("hello")) // refused while nobody listens yet
			time.Sleep(10 * time.Millisecond)
		}
		return err
	}
	c, err := net.ListenPacket("udp", addr)
	for err == nil {
		if _, _, err = c.ReadFrom(make([]byte, 16)); err == nil {
			_, err = fmt.Println("got")
		}
	}
	return err
}

// start runs this binary in a role and returns a line of its output at a time.
func start(t *testing.T, n *Node, role string) <-chan string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = n.Start(cmd)
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // the lab's Close may have done it
		_ = cmd.Wait()
	})
	return lines
}

// comes says whether something comes within d.
func comes(lines <-chan string, d time.Duration) bool {
	select {
	case _, ok := <-lines:
		return ok
	case <-time.After(d):
		return false
	}
}

func drain(lines <-chan string) {
	for len(lines) > 0 {
		<-lines
	}
}

func testLab(t *testing.T) (*Lab, *Node, *Node) {
	t.Helper()
	if err := Available(); err != nil {
		t.Skip(err)
	}
	l, err := Open("labtest", t.TempDir())
	if errors.Is(err, ErrInUse) {
		t.Skip("another test run has the lab")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	a, err := l.Add("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Add("b")
	if err != nil {
		t.Fatal(err)
	}
	return l, a, b
}

// TestCut: a cut stops one direction and no other, counts what vanished, and heals.
func TestCut(t *testing.T) {
	l, a, b := testLab(t)
	atB := start(t, b, "listen "+b.Addr()+":7007")
	start(t, a, "send "+b.Addr()+":7007")
	atA := start(t, a, "listen "+a.Addr()+":7007")
	start(t, b, "send "+a.Addr()+":7007")
	const long, silence = 10 * time.Second, 300 * time.Millisecond
	if !comes(atA, long) || !comes(atB, long) {
		t.Fatal("nothing arrives on whole links")
	}
	if err := l.Cut(Cut{a, b}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // what had arrived before is printed
	drain(atB)
	drain(atA)
	if comes(atB, silence) {
		t.Error("a datagram came through the cut")
	}
	if !comes(atA, long) {
		t.Error("the other direction is cut too")
	}
	if n, err := b.Lost(); err != nil || n == 0 {
		t.Errorf("lost at b: %d, %v", n, err)
	}
	if n, err := a.Lost(); err != nil || n != 0 {
		t.Errorf("lost at a: %d, %v", n, err)
	}
	if err := errors.Join(l.Heal(Both(a, b)...), l.Heal(Cut{a, b})); err != nil {
		t.Fatal(err)
	}
	if !comes(atB, long) {
		t.Error("nothing comes after healing")
	}
	if err := errors.Join(l.Cut(Both(a, b)...), l.HealAll()); err != nil {
		t.Fatal(err)
	}
	drain(atB)
	if !comes(atB, long) {
		t.Error("nothing comes after healing all")
	}
	if err := errors.Join(a.Limit(1e9), a.Limit(2e9), a.Limit(0)); err != nil {
		t.Error(err)
	}
}

// TestCrash: what a process left that ended without Close is removed, its processes killed.
func TestCrash(t *testing.T) {
	l, a, b := testLab(t)
	lines := start(t, a, "listen "+a.Addr()+":7007")
	start(t, b, "send "+a.Addr()+":7007")
	if !comes(lines, 10*time.Second) {
		t.Fatal("nothing arrives")
	}
	if err := os.WriteFile(l.Dir()+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l.lock.Close() // as the end of the process would
	swept, err := Sweep()
	if err != nil || len(swept) == 0 {
		t.Fatalf("swept %q, %v", swept, err)
	}
	if spaces, err := namespaces(prefix + "labtest-"); err != nil || len(spaces) > 0 {
		t.Errorf("left: %q, %v", spaces, err)
	}
	if _, err := os.Stat(l.Dir()); !os.IsNotExist(err) {
		t.Errorf("directory left: %v", err)
	}
	for range lines { // ends when the process has
	}
	if l.lock, err = lockName("labtest"); err != nil { // for Close
		t.Fatal(err)
	}
}

func TestNames(t *testing.T) {
	if _, err := Open("a/b", t.TempDir()); err == nil {
		t.Error("a path was taken as a name")
	}
}
