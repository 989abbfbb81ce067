package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"pstorage/chunk"
	"pstorage/dataplane/cluster"
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

// TestMakeCSParallel: chunk servers that are made at the same time, with journals in one directory,
// get an address and a journal each, and one that fails takes nothing of another's with it.
func TestMakeCSParallel(t *testing.T) {
	n := newNode(t)
	n.ok(testPassword, "-c", "c1", "make-mds", "-I", "-a", freePort(t), "-r", n.path("mds"), "-P")
	ssd := n.path("ssd")
	if err := os.Mkdir(ssd, 0o755); err != nil {
		t.Fatal(err)
	}
	makeCS := func(more ...string) result {
		return n.run("", "pstorage", append([]string{"-c", "c1", "make-cs", "-s", "24M",
			"--capacity", "1G"}, more...)...)
	}
	const count = 5
	var results [2 * count]result
	var wg sync.WaitGroup
	for i := range count {
		disk := n.path(fmt.Sprintf("disk%d", i))
		wg.Go(func() { results[i] = makeCS("-r", disk+"/cs", "-j", ssd) })
		// All with the same directory, and the same journal: one of them is made.
		wg.Go(func() { results[count+i] = makeCS("-r", n.path("same"), "-j", n.path("same.journal")) })
	}
	wg.Wait()
	made := 0
	for i, r := range results {
		switch {
		case r.status == 0:
			made++
		case i < count:
			t.Errorf("%d: status %d, %q", i, r.status, r.stderr)
		}
	}
	conf, err := cluster.At(n.etc, "c1")
	if err != nil {
		t.Fatal(err)
	}
	list, err := conf.Daemons(cluster.CS)
	if err != nil || len(list) != count+1 || made != count+1 {
		t.Errorf("%d were made, the list is %v, %v", made, list, err)
	}
	seen := map[string]bool{}
	for _, d := range list {
		j, err := chunk.JournalOf(d.Dir)
		if err != nil || seen[d.Addr] || seen[j.Path] || j.Size != 24<<20 {
			t.Errorf("%+v with %+v, %v", d, j, err)
		}
		seen[d.Addr], seen[j.Path] = true, true
	}
}

// What a chunk server can't use of a large disk is said.
func TestUnusedSpace(t *testing.T) {
	const tib, most = 1 << 40, chunk.MaxCapacity
	for _, c := range []struct {
		capacity, asked, free uint64
		says                  string
	}{
		{tib, 0, tib * 11 / 10, ""},
		{most, 0, most, ""},
		{most, 0, 20 * tib, ": 3.0 TiB"},
		{most, most, 40 * tib, ""},
		{most, 18 * tib, 40 * tib, ": 2.0 TiB"},
		{most, 0, 0, ""},
	} {
		got := unusedSpace(c.capacity, c.asked, c.free)
		if (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
			t.Errorf("%d, %d asked for, %d free: %q", c.capacity, c.asked, c.free, got)
		}
	}
}

// TestMakeCSInterrupted: after a Ctrl-C nothing is left of a chunk server that was being made, also
// not of its journal on another disk, and the same command makes it.
func TestMakeCSInterrupted(t *testing.T) {
	n := newNode(t)
	n.ok(testPassword, "-c", "c1", "make-mds", "-I", "-a", freePort(t), "-r", n.path("mds"), "-P")
	journal := n.path("ssd.journal")
	args := []string{"make-cs", "-r", n.path("cs"), "-j", journal, "--capacity", "1G", "-s"}
	before := n.snapshot()
	d := n.start("pstorage", append(args, "4G")...)
	eventually(t, "the journal is being made", func() bool {
		info, err := os.Stat(journal)
		return err == nil && info.Sys().(*syscall.Stat_t).Blocks > 0
	})
	d.stop()
	if status, text := d.cmd.ProcessState.ExitCode(), d.out.text(); status != 1 ||
		!strings.Contains(text, "interrupted") {
		t.Errorf("status %d, %q", status, text)
	}
	if after := n.snapshot(); after != before {
		t.Errorf("it left something:\nbefore:\n%s\nafter:\n%s", before, after)
	}
	n.ok("", append(args, "64M")...)
}

// TestMakeCSUnlisted: make-cs in the directory of a chunk server that cs.list doesn't have says how
// it gets there: it was moved here, or making it was interrupted by a power cut.
func TestMakeCSUnlisted(t *testing.T) {
	n := newNode(t)
	n.makeCluster(1)
	dir, list := n.path("c1-cs1"), filepath.Join(n.etc, "clusters/c1/cs.list")
	line, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-c", "c1", "make-cs", "-r", dir}
	n.refused("", 1, []string{"lives there already", "another directory"}, args...)
	if err := os.WriteFile(list, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	n.refused("", 1, []string{"lives there already", "add the line \"" + dir + " addr="}, args...)
	if err := os.WriteFile(list, line, 0o644); err != nil {
		t.Fatal(err)
	}
	csd := n.start("pstorage-csd")
	csd.waitFor("cs 1 ready on")
	csd.stop()
	if err := os.WriteFile(list, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	n.refused("", 1, []string{"lives there already", "adopt-cs -r " + dir}, args...)
}
