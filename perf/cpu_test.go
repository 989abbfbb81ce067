package perf

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	for _, c := range []struct {
		stat        string
		pid, parent int
		ok          bool
	}{
		{"12 (init) S 1 12 12 0", 12, 1, true},
		{"12 (a) b) (c) R 7 12 12 0", 12, 7, true},
		{"12 (dead) Z 7 12 12 0", 0, 0, false},
		{"", 0, 0, false}, {"12", 0, 0, false}, {"12 (x", 0, 0, false}, {"12 (x) S", 0, 0, false},
		{"x (x) S 1", 0, 0, false},
	} {
		pid, parent, ok := parseStat([]byte(c.stat))
		if ok != c.ok || ok && (pid != c.pid || parent != c.parent) {
			t.Errorf("%q: %d %d %v", c.stat, pid, parent, ok)
		}
	}
}

// TestSampleCPU burns CPU here and in a child, and sees both.
func TestSampleCPU(t *testing.T) {
	child := exec.Command("sh", "-c", "while :; do :; done")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	tree, err := ProcessTree(os.Getpid())
	if err != nil || !slices.Contains(tree, child.Process.Pid) {
		t.Fatalf("tree %v, %v: child %d isn't in it", tree, err, child.Process.Pid)
	}
	before, err := SampleCPU(tree)
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{os.Getpid(), child.Process.Pid} {
		deadline := time.Now().Add(20 * time.Second)
		for {
			now, err := SampleCPU([]int{pid})
			if err != nil {
				t.Fatal(err)
			}
			if now.Since(before) > int64(20*time.Millisecond) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("process %d: used %d ns after burning CPU", pid, now.Since(before))
			}
		}
	}
	if RSS(tree) < 1<<20 {
		t.Errorf("resident memory %d bytes", RSS(tree))
	}
	path := filepath.Join(t.TempDir(), "file")
	written := DiskBytes(tree)
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := DiskBytes(tree) - written; n < 0 {
		t.Errorf("%d bytes of disk I/O after writing a file", n)
	}
	gone, err := SampleCPU([]int{1 << 21})
	if err != nil || len(gone) != 0 {
		t.Errorf("a process that isn't there: %v, %v", gone, err)
	}
}
