package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMakeCSAgain: the disk of a chunk server is gone, a new one is mounted in its place. While
// cs.list has the old line the new chunk server is refused before anything is made, and the
// message says what to do; that done, it is made. So are more, with journals in one directory.
func TestMakeCSAgain(t *testing.T) {
	n := newNode(t)
	n.makeCluster(1)
	dir := n.path("c1-cs1")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	args := []string{"-c", "c1", "make-cs", "-r", dir, "-s", "64M", "--capacity", "1G"}
	n.says(1, "delete its line", args...)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("something was made: %v", err)
	}
	list := filepath.Join(n.etc, "clusters/c1/cs.list")
	shell(t, `sed -i "\\|^$1 |d" "$2"`, dir, list) // as in operations.md
	n.ok("", args...)

	// Directories of the same name, on several disks, share an SSD.
	ssd := n.path("ssd")
	seen := map[string]bool{}
	for _, disk := range []string{"ssd", "disk2", "disk3", "disk4"} {
		if err := os.Mkdir(n.path(disk), 0o755); err != nil {
			t.Fatal(err)
		}
		if disk == "ssd" {
			continue
		}
		n.makeSmallCS(disk+"/cs", "-j", ssd)
		j := n.journal(n.path(disk + "/cs"))
		if filepath.Dir(j.Path) != ssd || seen[j.Path] {
			t.Errorf("the journal for %s is %s", disk, j.Path)
		}
		seen[j.Path] = true
	}
}
