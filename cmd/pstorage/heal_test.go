package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"pstorage/dataplane/control"
)

// killAll kills a supervisor and its children, as the loss of a host does: nobody reports an exit.
func (d *daemon) killAll() {
	d.t.Helper()
	out, err := exec.Command("pgrep", "-P", fmt.Sprint(d.cmd.Process.Pid)).Output()
	if err != nil {
		d.t.Fatalf("no children: %v", err)
	}
	d.cmd.Process.Kill()
	for _, text := range strings.Fields(string(out)) {
		var pid int
		fmt.Sscan(text, &pid)
		syscall.Kill(pid, syscall.SIGKILL)
	}
	<-d.done
}

// TestHealing: a host is lost for longer than a lease while writes go on, and comes back. All
// chunks get their third copy again, by themselves, and it is as good as the others.
func TestHealing(t *testing.T) {
	needMount(t)
	n, other := newNode(t), newNode(t)
	_, addr := n.makeCluster(2)
	other.ok(testPassword, "-c", "c1", "auth-node", "-P", "-b", addr)
	other.makeSmallCS("c1-cs3")
	csd := n.start("pstorage-csd")
	csd.waitFor("cs 1 ready on")
	csd.waitFor("cs 2 ready on")
	lost := other.start("pstorage-csd")
	lost.waitFor("cs 3 ready on")
	eventually(t, "three chunk servers are active", func() bool { return n.active() == 3 })
	mnt := n.path("pcs")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := func() {
		t.Helper()
		r := n.run("", "pstorage-mount", "-c", "c1", "--log", n.path("mount.log"), mnt)
		if r.status != 0 {
			t.Fatalf("mount: %s", r.stderr)
		}
	}
	t.Cleanup(func() { detachMount(mnt) })
	mount()
	want := someData(t, n.path("data"), 6<<20+4321)
	shell(t, `cp "$1" "$2" && sync "$2"`, n.path("data"), mnt+"/before")

	shell(t, `cp "$1" "$2" && sync "$2"`, n.path("data"), mnt+"/during")

	// Writes to the same chunks all the time; each round is complete and the same.
	stop := make(chan struct{})
	ended := make(chan int)
	go func() {
		for rounds := 0; ; rounds++ {
			select {
			case <-stop:
				ended <- rounds
				return
			default:
			}
			out, err := exec.Command("timeout", "60", "dd", "if="+n.path("data"),
				"of="+mnt+"/during", "bs=64k", "conv=notrunc,fsync").CombinedOutput()
			if err != nil {
				t.Errorf("write: %v: %s", err, out)
			}
		}
	}()
	lost.killAll()
	started := time.Now()
	eventually(t, "the chunks are degraded", func() bool {
		doc := n.stat()
		return doc.Chunks.Degraded > 0 && doc.Health == "degraded"
	})
	time.Sleep(time.Until(started.Add(4 * time.Second))) // longer than a lease
	lost = other.start("pstorage-csd")
	lost.waitFor("cs 3 ready on")
	back := time.Now()
	var doc control.StatDoc
	eventually(t, "all is well again", func() bool {
		doc = n.stat()
		return doc.Health == "healthy" && doc.Chunks.Degraded == 0 && doc.Chunks.Recovered > 0
	})
	t.Logf("healthy %v after its return: %d chunks, %d copied", time.Since(back), doc.Chunks.Total,
		doc.Chunks.Recovered)
	close(stop)
	if rounds := <-ended; rounds < 2 {
		t.Errorf("only %d rounds of writes", rounds)
	}
	shell(t, `fusermount3 -u "$1" 2>/dev/null || umount "$1"`, mnt)

	// Only the copy that was made is left.
	csd.killAll()
	mount()
	for _, name := range []string{"before", "during"} {
		if got := shell(t, hashOf, mnt+"/"+name); got != want {
			t.Errorf("%s on the new copy: hash %s, want %s", name, got, want)
		}
	}
}
