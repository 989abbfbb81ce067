package fuse

import (
	"os"
	"path/filepath"
	"testing"
)

// TestTruncationGivesRightBack: a truncation by name, of a file that is open for reading only,
// needs the right to write while it lasts. After that another host may write the file.
func TestTruncationGivesRightBack(t *testing.T) {
	c := startCluster(t, "device")
	name := filepath.Join(c.at, "f")
	must(t, os.WriteFile(name, make([]byte, 8192), 0600))
	reader, err := os.Open(name)
	must(t, err)
	must(t, os.Truncate(name, 4096))

	first, at := c.mount, c.at
	c.startMount("mnt2")
	other, err := os.OpenFile(filepath.Join(c.at, "f"), os.O_WRONLY, 0)
	must(t, err)
	if _, err := other.WriteAt([]byte("x"), 0); err != nil {
		t.Errorf("write on another host: %v", err)
	}
	must(t, other.Close())
	c.umount()

	must(t, reader.Close())
	c.mount, c.at = first, at
}
