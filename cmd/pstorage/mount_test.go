package main

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pstorage/cmd/cli"
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

// TestMountOnce: of two that mount on a directory at the same time one does. A link to the mount
// point is the mount point.
func TestMountOnce(t *testing.T) {
	needMount(t)
	n := newNode(t)
	n.makeCluster(0)
	mnt, link := n.path("mnt"), n.path("link")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("mnt", link); err != nil {
		t.Fatal(err)
	}
	count := func() (c int) {
		mounts, err := cli.Mounts()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range mounts {
			if m.Mountpoint == mnt {
				c++
			}
		}
		return c
	}
	t.Cleanup(func() {
		for range count() {
			n.ok("", "umount", "--lazy", mnt)
		}
	})
	var results [2]result
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() { results[i] = n.run("", "pstorage", "mount", mnt) })
	}
	wg.Wait()
	if results[0].status+results[1].status != 1 || count() != 1 {
		t.Fatalf("%d mounts after %+v", count(), results)
	}
	n.says(1, "mounted there already", "mount", link)
	if out := n.ok("", "umount", link); !strings.Contains(out, mnt) || count() != 0 {
		t.Errorf("umount: %s, %d mounts", out, count())
	}
	if out := n.ok("", "mount", link); !strings.Contains(out, mnt) {
		t.Errorf("mount by a link: %s", out)
	}
}

// TestMountAtBoot: a line of fstab waits for metadata servers that start later than this machine,
// as after a power cut.
func TestMountAtBoot(t *testing.T) {
	needMount(t)
	t.Parallel() // it waits for longer than a mount by hand does
	n := newNode(t)
	mdsd, _ := n.makeCluster(0)
	mdsd.stop()
	mnt := n.path("mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	helper := *n
	helper.bin = n.dir
	if err := os.Symlink(filepath.Join(bin, "pstorage-mount"),
		n.path("mount.fuse.pstorage")); err != nil {
		t.Fatal(err)
	}
	d := helper.start("mount.fuse.pstorage", "pstorage://c1", mnt, "-o", "rw,_netdev")
	select {
	case <-d.done:
	case <-time.After(17 * time.Second):
	}
	n.start("pstorage-mdsd").waitFor("mds ready on")
	select {
	case <-d.done:
	case <-time.After(30 * time.Second):
	}
	if status := d.cmd.ProcessState.ExitCode(); status != 0 {
		t.Fatalf("status %d: %s", status, d.out.text())
	}
	n.ok("", "umount", mnt)
}
