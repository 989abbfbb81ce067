package fuse

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
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

// An append overwrites nothing that another host has appended since the kernel was told the size.
func TestAppendBehindAnother(t *testing.T) { overBoth(t, "", testAppendBehindAnother) }

func testAppendBehindAnother(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	want := []byte("old,theirs,")
	must(t, os.WriteFile(name, want[:4], 0600))
	must(t, unix.Setxattr(name, appendAttribute, want[4:], 0))
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	ours := bytes.Repeat([]byte("ours,"), maxWrite/2) // several requests of the kernel
	for _, p := range [][]byte{ours, []byte("end")} {
		_, err = f.Write(p)
		must(t, err)
		want = append(want, p...)
	}
	if got, err := os.ReadFile(name); !bytes.Equal(got, want) || err != nil {
		t.Errorf("%d bytes beginning with %.30q, want %d; %v", len(got), got, len(want), err)
	}
}

// A write that has to be durable when it ends (O_SYNC, O_DSYNC, RWF_DSYNC) is so with
// write-ack=memory, too: nobody calls fsync for it.
func TestSynchronousWrites(t *testing.T) { overBoth(t, "", testSynchronousWrites) }

func testSynchronousWrites(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	must(t, os.WriteFile(name, nil, 0600))
	durable := func() int {
		text := make([]byte, 16)
		n, err := unix.Getxattr(name, durableAttribute, text)
		must(t, err)
		count, err := strconv.Atoi(string(text[:n]))
		must(t, err)
		return count
	}
	before := durable()
	for i, flag := range []int{unix.O_SYNC, unix.O_DSYNC, unix.O_DSYNC | unix.O_DIRECT, 0} {
		fd, err := unix.Open(name, unix.O_WRONLY|flag, 0)
		must(t, err)
		_, err = unix.Pwrite(fd, aligned(4096), 0)
		must(t, err)
		if flag == 0 {
			if got := durable() - before; got != i {
				t.Errorf("an ordinary write: %d durable writes of %d", got, i)
			}
			_, err = unix.Pwritev2(fd, [][]byte{aligned(4096)}, 0, unix.RWF_DSYNC)
			must(t, err)
		}
		must(t, unix.Close(fd))
		if got := durable() - before; got != i+1 {
			t.Errorf("flags %#x: %d durable writes of %d", flag, got, i+1)
		}
	}
}
