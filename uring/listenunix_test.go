package uring

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestListenUnixReplaces: a socket that nobody listens on any more is replaced. A file, and a
// symbolic link to one or to a socket, isn't.
func TestListenUnixReplaces(t *testing.T) {
	dir := t.TempDir()
	sock := filepath.Join(dir, "sock")
	for range 2 { // closed without an unlink, as after kill -9
		fd, err := listenUnix(sock)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	file, link := filepath.Join(dir, "disk.img"), filepath.Join(dir, "link")
	if err := os.WriteFile(file, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(sock, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link} {
		fd, err := listenUnix(path)
		if err == nil {
			unix.Close(fd)
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("listening on %s: %v", path, err)
		}
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "data" {
		t.Errorf("the file has %q: %v", text, err)
	}
	if to, err := os.Readlink(link); err != nil || to != sock {
		t.Errorf("the link goes to %q: %v", to, err)
	}
}
