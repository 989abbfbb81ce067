package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// storeBytes is what the stores of all chunk servers take of their file systems.
func (n *node) storeBytes(t *testing.T) (sum int64) {
	t.Helper()
	stores, err := filepath.Glob(n.path("c1-cs*/store"))
	if err != nil || len(stores) != 3 {
		t.Fatalf("stores %v: %v", stores, err)
	}
	for _, path := range stores {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		sum += st.Blocks * 512
	}
	return sum
}

// within is eventually for what takes longer.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// What a hole is punched into, and what a loop device discards, is given back by all replicas.
func TestMountGivesSpaceBack(t *testing.T) {
	needMount(t)
	if testing.Short() {
		t.Skip("takes a while")
	}
	n := newNode(t)
	n.makeCluster(3)
	csd := n.start("pstorage-csd")
	for i := 1; i <= 3; i++ {
		csd.waitFor(fmt.Sprintf("cs %d ready on", i))
	}
	mnt := n.path("pcs")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { detachMount(mnt) })
	if r := n.run("", "pstorage-mount", "-c", "c1", "--pidfile", n.path("mount.pid"), "--log",
		n.path("mount.log"), mnt); r.status != 0 {
		t.Fatalf("mount: %s", r.stderr)
	}
	const size = 24 << 20
	image := mnt + "/image"
	someData(t, n.path("data"), size)
	fill := func(target string) {
		t.Helper()
		shell(t, `dd if="$1" of="$2" bs=1M conv=notrunc,fsync status=none`, n.path("data"), target)
		within(t, "the data is written back", func() bool {
			return n.storeBytes(t) >= 3*(size-8<<20)
		})
	}
	gone := func(what string) {
		t.Helper()
		within(t, what+" gives the space back", func() bool {
			return n.storeBytes(t) <= 3*(4<<20)
		})
		zeros := shell(t, `cmp -n "$2" "$1" /dev/zero && echo same`, image, fmt.Sprint(size))
		if strings.TrimSpace(zeros) != "same" {
			t.Errorf("after %s: not zeros", what)
		}
	}
	fill(image)
	shell(t, `fallocate -p -o 0 -l "$2" "$1"`, image, fmt.Sprint(size))
	gone("fallocate -p")
	loop := strings.TrimSpace(shell(t, `losetup --direct-io=on -f --show "$1"`, image))
	t.Cleanup(func() { shell(t, `losetup -d "$1" 2>/dev/null || true`, loop) })
	fill(loop)
	shell(t, `blkdiscard "$1" && sync "$1"`, loop)
	gone("blkdiscard")
	shell(t, `losetup -d "$1"`, loop)
	shell(t, `umount "$1"`, mnt)
}
