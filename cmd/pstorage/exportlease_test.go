package main

import (
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// guest is a qemu-io that keeps an export open, as a virtual machine does.
type guest struct {
	t   *testing.T
	in  io.WriteCloser
	out *watched
	cmd *exec.Cmd
}

func newGuest(t *testing.T, uri string) *guest {
	t.Helper()
	g := &guest{t: t, out: newWatched(), cmd: exec.Command("qemu-io", "-f", "raw", uri)}
	g.cmd.Stdout, g.cmd.Stderr = g.out, g.out
	var err error
	if g.in, err = g.cmd.StdinPipe(); err == nil {
		err = g.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.cmd.Process.Kill(); g.cmd.Wait() })
	return g
}

// does gives a command and waits until the answer has text in it.
func (g *guest) does(text, format string, args ...any) {
	g.t.Helper()
	fmt.Fprintf(g.in, format+"\n", args...)
	if _, ok := g.out.waitFor(text, 30*time.Second); !ok {
		g.t.Fatalf("%q wasn't answered %q:\n%s", fmt.Sprintf(format, args...), text, g.out.text())
	}
}

// leaves ends the guest in an orderly way.
func (g *guest) leaves() {
	g.t.Helper()
	g.in.Close()
	if err := g.cmd.Wait(); err != nil {
		g.t.Error(err)
	}
}

// TestExportHandsOver: two hosts export a file. The guest of the second one writes as soon as that
// of the first one has gone, as in a live migration, though the first export runs on; and back.
// After a revocation a guest writes again when it has connected anew.
func TestExportHandsOver(t *testing.T) {
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skip("qemu-io is missing (Debian's qemu-utils)")
	}
	n := newNode(t)
	n.makeCluster(3)
	n.start("pstorage-csd")
	eventually(t, "three chunk servers are active", func() bool { return n.active() == 3 })
	var uris [2]string
	for i := range uris {
		sock := n.path(fmt.Sprintf("nbd%d.sock", i))
		srv := n.start("pstorage", "export", "nbd", "/disk", "--create", "100M", "--socket", sock)
		uris[i] = strings.TrimPrefix(srv.waitFor("serving"), "serving ")
	}
	source := newGuest(t, uris[0])
	source.does("4096 bytes at offset 4096", "write -P 1 4k 4k")
	for i := 1; i < 4; i++ {
		target := newGuest(t, uris[i%2])
		target.does("4096/4096 bytes at offset 4096", "read -P %d 4k 4k", i)
		source.does(fmt.Sprint("bytes at offset ", i<<20), "write %dM 4k", i)
		source.leaves()
		began := time.Now()
		target.does("wrote 4096/4096 bytes at offset 4096", "write -P %d 4k 4k", i+1)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the first write took %v", took)
		}
		source = target
	}
	n.ok("", "revoke", "/disk")
	source.does("write failed", "write 0 4k")
	again := newGuest(t, uris[1])
	again.does("bytes at offset 8192", "write 8k 4k")
	source.in.Close()
	source.cmd.Wait() // with a status that tells of the failed write
	again.does("bytes at offset 16384", "write 16k 4k")
	again.leaves()
}
