package fuse

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A listing that takes long tells the kernel nothing old: where the next O_APPEND goes is the size
// that the kernel was told last.
func TestListingWhileAppending(t *testing.T) { overBoth(t, "", testListingWhileAppending) }

func testListingWhileAppending(t *testing.T, dir string) {
	for i := range 200 {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d", i)), []byte("old,"), 0600))
	}
	name := filepath.Join(dir, "190")
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	d, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(d)
	buf := make([]byte, 4096)
	n, err := unix.Getdents(d, buf)
	must(t, err)
	_, err = f.WriteString("one,")
	must(t, err)
	for n > 0 {
		n, err = unix.Getdents(d, buf)
		must(t, err)
	}
	_, err = f.WriteString("two,")
	must(t, err)
	if got, err := os.ReadFile(name); string(got) != "old,one,two," || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}
