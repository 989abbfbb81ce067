package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"pstorage/dataplane/control"
)

// cs returns what stat says of a chunk server.
func (n *node) cs(id uint32) control.CSDoc {
	n.t.Helper()
	for _, c := range n.stat().CS {
		if c.ID == id {
			return c
		}
	}
	n.t.Fatalf("there is no cs %d", id)
	return control.CSDoc{}
}

// fails runs pstorage, which must fail with the status and say the text, while others change
// things.
func (n *node) fails(status int, text string, args ...string) {
	n.t.Helper()
	r := n.run("", "pstorage", args...)
	if r.status != status || !strings.Contains(r.stderr, text) || strings.Count(r.stderr, "\n") != 1 {
		n.t.Errorf("pstorage %v: status %d, %q; want %d, %q", args, r.status, r.stderr, status, text)
	}
}

// soon waits for what takes a while.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// verifier writes and verifies a file with fio, again and again, until the test ends at the latest.
type verifier struct {
	stop   chan struct{}
	ended  chan struct{}
	once   sync.Once
	rounds int // complete ones; once it has ended
}

func (n *node) verify(file string) *verifier {
	v := &verifier{stop: make(chan struct{}), ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	n.t.Cleanup(func() {
		cancel() // kills fio if the test has failed
		v.wait()
	})
	go func() {
		defer close(v.ended)
		for ; ; v.rounds++ {
			select {
			case <-v.stop:
				return
			default:
			}
			out, err := exec.CommandContext(ctx, "timeout", "-k", "1", "120", "fio", "--name=v",
				"--filename="+file, "--size=512m", "--io_size=24m", "--rw=randwrite", "--bs=4k",
				"--bssplit=4k/70:64k/30", "--ioengine=libaio", "--iodepth=8", "--direct=1",
				"--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0",
				"--randrepeat=0", "--thread",
				fmt.Sprint("--randseed=", v.rounds+1), "--output-format=terse").CombinedOutput()
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				n.t.Errorf("fio, round %d: %v: %s", v.rounds, err, out)
				return
			}
		}
	}()
	return v
}

// wait lets the round that is under way end.
func (v *verifier) wait() {
	v.once.Do(func() { close(v.stop) })
	<-v.ended
}

func (v *verifier) end(t *testing.T) {
	t.Helper()
	v.wait()
	if v.rounds < 2 {
		t.Errorf("only %d rounds of verified writes", v.rounds)
	}
	t.Logf("%d rounds of verified writes", v.rounds)
}

// TestRemoveCS: one of four chunk servers is drained and dropped while verified writes run, then an
// empty one is added and gets its share. All data are right, those of one copy, too.
func TestRemoveCS(t *testing.T) {
	needMount(t)
	if testing.Short() {
		t.Skip("moves half a gigabyte twice")
	}
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("fio isn't installed")
	}
	n := newNode(t)
	n.makeCluster(3)
	csd := n.start("pstorage-csd")
	eventually(t, "three chunk servers are active", func() bool { return n.active() == 3 })
	mnt := n.path("pcs")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if r := n.run("", "pstorage-mount", "-c", "c1", "--log", n.path("mount.log"), mnt); r.status != 0 {
		t.Fatalf("mount: %s", r.stderr)
	}
	t.Cleanup(func() { detachMount(mnt) })
	want := someData(t, n.path("data"), 6<<20+4321)
	shell(t, `cp "$1" "$2" && sync "$2"`, n.path("data"), mnt+"/before")
	// Files of one copy, some of them on the server that goes.
	shell(t, `mkdir "$1"`, mnt+"/one")
	n.ok("", "set-attr", "/one", "replicas=1:1")
	shell(t, `for i in $(seq 3); do cp "$1" "$2/$i"; done; sync -f "$2"`, n.path("data"), mnt+"/one")
	v := n.verify(mnt + "/fio")
	soon(t, "the file has its chunks", func() bool { return n.stat().Chunks.Total >= 9 })

	// Three servers, three copies: it says that there is no place, and goes on when there is one.
	n.fails(2, "exclude", "rm-cs", "2", "--cancel", "--force")
	n.fails(1, "no CS 77", "rm-cs", "77")
	n.fails(1, "not being removed", "rm-cs", "2", "--cancel")
	n.ok("", "rm-cs", "2")
	soon(t, "no place", func() bool {
		d := n.cs(2).Drain
		return d != nil && d.NoPlace >= 9 && strings.Contains(n.ok("", "stat"), "no place")
	})
	n.ok("", "rm-cs", "2", "--cancel")
	if c := n.cs(2); c.Status != control.CSActive || c.Drain != nil {
		t.Errorf("after --cancel: %+v", c)
	}
	started := time.Now()
	rm := n.start("pstorage", "rm-cs", "2", "--wait")
	rm.waitFor("chunks left")
	n.makeSmallCS("c1-cs4")
	csd.waitFor("cs 4 ready on")
	select {
	case <-rm.done:
	case <-time.After(3 * time.Minute):
		t.Fatalf("not drained: %+v", n.cs(2))
	}
	t.Logf("drained in %v:\n%s", time.Since(started), rm.out.text())
	if c := n.cs(2); c.Status != control.CSDropped || c.Chunks != 0 ||
		!strings.Contains(rm.out.text(), "nothing is left on it") {
		t.Errorf("after the drain: %+v", c)
	}
	csd.waitFor("this chunk server was removed from the cluster")
	csd.waitFor("is not started again")
	n.fails(1, "already", "rm-cs", "2")
	n.fails(1, "chunks have no other copy", "rm-cs", "1", "3", "4", "--force")
	var doc control.RmCSDoc
	out := n.ok("", "list-services", "-o", "json")
	if err := json.Unmarshal([]byte(out), &doc); err != nil || len(doc.CS) != 4 {
		t.Errorf("%v: %s", err, out)
	}
	if s := n.stat(); s.Chunks.Degraded != 0 || s.Health != "healthy" {
		t.Errorf("after the drain: %+v", s)
	}

	// An empty server gets its share.
	n.makeSmallCS("c1-cs5")
	csd.waitFor("cs 5 ready on")
	soon(t, "the new server has chunks", func() bool { return n.cs(5).Chunks >= 5 })
	soon(t, "all is even", func() bool {
		s := n.stat()
		return !s.Moves.Balancing && s.Moves.Active == 0
	})
	s := n.stat()
	t.Logf("moves: %+v; %s", s.Moves, n.ok("", "stat"))
	v.end(t)
	if got := shell(t, hashOf, mnt+"/before"); got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
	for i := range 3 {
		if got := shell(t, hashOf, fmt.Sprint(mnt, "/one/", i+1)); got != want {
			t.Errorf("file %d of one copy: hash %s, want %s", i+1, got, want)
		}
	}
	shell(t, `fusermount3 -u "$1" 2>/dev/null || umount "$1"`, mnt)
}
