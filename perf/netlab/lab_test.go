package netlab

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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

// send sends datagrams from one node to a listener on the other and says whether one arrived.
func send(t *testing.T, from, to *Node) bool {
	t.Helper()
	file := filepath.Join(t.TempDir(), "got")
	listener := exec.Command("timeout", "2", "bash", "-c",
		"exec 3<>/dev/null; python3 -c \"$0\" "+to.Addr()+" "+file, listenScript)
	if err := to.Start(listener); err != nil {
		t.Fatal(err)
	}
	sender := exec.Command("bash", "-c", `for i in {1..15}; do
		echo hello >/dev/udp/`+from.peerOf(to)+`/7007; sleep 0.1; done`)
	if err := from.Start(sender); err != nil {
		t.Fatal(err)
	}
	_ = sender.Wait() // what counts is what arrived
	_ = listener.Wait()
	got, _ := os.ReadFile(file)
	return bytes.Contains(got, []byte("hello"))
}
