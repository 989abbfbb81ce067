package main

import (
	"os"
	"strings"
	"testing"
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
