package fuse

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
)

// TestClusterSparse works on a file of 1 TiB with fio, at random: it takes the chunks that were
// written to and no more.
func TestClusterSparse(t *testing.T) { overBothClusters(t, testClusterSparse) }

func testClusterSparse(t *testing.T, c *realCluster) {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip("no fio here")
	}
	const writes = 12
	path := filepath.Join(c.at, "sparse")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, 1<<40))
	chunks := func() int64 {
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		return st.Blocks * 512 / dataplane.ChunkSize
	}
	if n := chunks(); n != 0 {
		t.Errorf("%d chunks before anything was written", n)
	}
	c.run("fio", "--name=s", "--filename="+path, "--size=1t", "--bs=4k", "--rw=randread",
		"--ioengine=libaio", "--iodepth=8", "--direct=1", "--number_ios=200", "--norandommap")
	if n := chunks(); n != 0 {
		t.Errorf("%d chunks by reading", n)
	}
	c.run("fio", "--name=s", "--filename="+path, "--size=1t", "--bs=4k", "--rw=randwrite",
		"--ioengine=libaio", "--iodepth=8", "--direct=1", "--norandommap", "--randrepeat=1",
		"--number_ios=12", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0")
	if n := chunks(); n == 0 || n > writes {
		t.Errorf("%d chunks by %d writes", n, writes)
	}
}
