package main

import (
	"os"
	"strings"
	"testing"
)

// TestMountInterrupted: nothing goes on to mount after the command was interrupted.
func TestMountInterrupted(t *testing.T) {
	n := newNode(t)
	mdsd, _ := n.makeCluster(0)
	mdsd.stop() // so that mounting waits
	mnt := n.path("mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	d := n.start("pstorage", "mount", mnt)
	eventually(t, "the process that would serve the mount runs", func() bool {
		return strings.Count(processesIn(mnt), "\n") == 3
	})
	d.stop()
	if status, text := d.cmd.ProcessState.ExitCode(), d.out.text(); status != 1 ||
		!strings.Contains(text, "interrupted") {
		t.Errorf("status %d, %q", status, text)
	}
	eventually(t, "nothing is left", func() bool { return processesIn(mnt) == "" })
}
