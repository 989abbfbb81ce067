package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestDevInterrupted: a first start that was interrupted is made up for by the next one.
func TestDevInterrupted(t *testing.T) {
	n := newNode(t)
	args := []string{"dev", "--dir", n.path("dev"), "--log-size", "64M", "--capacity", "1G",
		"--cs", "1", "--no-mount"}
	d := n.start("pstorage", args...)
	d.waitFor("making a new cluster")
	d.stop()
	if strings.Contains(d.out.text(), "ready") { // it was quicker than the signal
		n.etc = n.path("dev/etc")
		d = n.start("pstorage", args...)
		d.waitFor("ready")
		n.ok("", "set-attr", "/", "replicas=3:2")
		d.stop()
		if err := os.WriteFile(n.path("dev/unfinished"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d = n.start("pstorage", args...)
	d.waitFor("ready")
	n.etc = n.path("dev/etc")
	if out := n.ok("", "get-attr", "/"); !strings.Contains(out, "1:1") ||
		!strings.Contains(out, "disk") {
		t.Errorf("one chunk server can't keep what is written:\n%s", out)
	}
	d.stop()
	// What a person sets after that stays.
	d = n.start("pstorage", args...)
	d.waitFor("ready")
	n.ok("", "set-attr", "/", "replicas=2:1")
	d.stop()
	d = n.start("pstorage", args...)
	d.waitFor("ready")
	if out := n.ok("", "get-attr", "/"); !strings.Contains(out, "2:1") {
		t.Errorf("the policy was set again:\n%s", out)
	}
	d.stop()
}

// TestMakeDown: make down stops the cluster that make up started, and no other process that has got
// its number since, as after a power cut.
func TestMakeDown(t *testing.T) {
	n := newNode(t)
	dir := n.path("dev")
	down := func(pid int) string {
		t.Helper()
		if err := os.WriteFile(dir+".pid", fmt.Appendln(nil, pid), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("../../.ci/down", dir, n.path("mnt")).CombinedOutput()
		if err != nil {
			t.Errorf("down: %v: %s", err, out)
		}
		if _, err := os.Stat(dir + ".pid"); err == nil {
			t.Error("the number is still there")
		}
		return string(out)
	}
	stranger := exec.Command("sleep", "100")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- stranger.Wait() }()
	said := down(stranger.Process.Pid)
	select {
	case err := <-ended:
		t.Errorf("another process was ended: %v", err)
	case <-time.After(300 * time.Millisecond):
		stranger.Process.Kill()
		<-ended
	}
	if !strings.Contains(said, "No cluster") {
		t.Errorf("down says %q", said)
	}
	d := n.start("pstorage", "dev", "--dir", dir, "--log-size", "64M", "--capacity", "1G",
		"--cs", "1", "--no-mount")
	d.waitFor("ready")
	if said := down(d.cmd.Process.Pid); !strings.Contains(said, "Stopped") {
		t.Errorf("down says %q", said)
	}
	<-d.done
}
