package crashtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pstorage/perf"
	"pstorage/perf/emulate"
)

// mountFiles mounts the cluster's files with the program for it, until the test ends.
func (s *system) mountFiles(dir string) {
	s.t.Helper()
	must(s.t, os.MkdirAll(dir, 0o700))
	log, err := os.Create(filepath.Join(s.home, "log", "mount.log"))
	must(s.t, err)
	cmd := exec.Command(filepath.Join(bin, "pstorage-mount"), "-c", "perf", "-f", dir)
	cmd.Env = append(os.Environ(), "PSTORAGE_ETC="+s.servers.Etc())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	must(s.t, cmd.Start())
	s.t.Cleanup(func() {
		_ = exec.Command("umount", "-l", dir).Run() // it may not have been mounted
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // however it ended
		log.Close()
	})
	eventually(s.t, 30*time.Second, dir+" is mounted", func() bool {
		return exec.Command("mountpoint", "-q", dir).Run() == nil
	})
}

// TestTrim: a guest's file system on an image gives its free space back. What is deleted in an ext4
// on a loop device over the mount and trimmed with fstrim leaves the chunk server's store; so does
// what is discarded on the device, and what is punched out of the image.
func TestTrim(t *testing.T) {
	if err := emulate.Available(); err != nil {
		t.Skip(err)
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no FUSE here: ", err)
	}
	home := t.TempDir()
	dir := filepath.Join(home, "cs")
	s := newSystem(t, home, perf.ServerDisk{Dir: dir, LogSize: 4 << 20, Capacity: 512 << 20})
	mnt, root := filepath.Join(home, "mnt"), filepath.Join(home, "root")
	s.mountFiles(mnt)
	image := filepath.Join(mnt, "disk.img")
	run(t, "truncate", "-s", "256M", image)
	loop := run(t, "losetup", "--find", "--show", "--direct-io=on", image)
	t.Cleanup(func() { run(t, "losetup", "-d", loop) })
	run(t, "mkfs.ext4", "-q", "-m", "0", loop)
	must(t, os.Mkdir(root, 0o700))

	taken := func() int64 {
		var st syscall.Stat_t
		must(t, syscall.Stat(filepath.Join(dir, "store"), &st))
		return st.Blocks * 512 >> 20
	}
	var most int64
	becomes := func(what string, ok func(n int64) bool) {
		t.Helper()
		var n int64
		defer func() { t.Logf("%s: the store takes %d MiB, at most it was %d", what, n, most) }()
		eventually(t, 60*time.Second, what, func() bool {
			n = taken()
			most = max(most, n)
			return ok(n)
		})
	}
	empty := taken()
	const data = 96 // MiB
	written := func(n int64) bool { return n >= empty+data-8 }
	gone := func(n int64) bool { return n <= empty+16 } // the guest's own tables

	run(t, "mount", "-t", "ext4", loop, root)
	mounted := true
	t.Cleanup(func() {
		if mounted {
			run(t, "umount", root)
		}
	})
	big := filepath.Join(root, "big")
	random := func(path string) {
		run(t, "dd", "if=/dev/urandom", "of="+path, "bs=1M", fmt.Sprint("count=", data),
			"conv=notrunc,fsync", "status=none")
	}
	random(big)
	becomes("a file in the guest", written)
	run(t, "rm", big)
	run(t, "sync", "-f", root)
	if n := taken(); !written(n) {
		t.Fatalf("%d MiB before the trim: the test shows nothing", n)
	}
	if out := run(t, "fstrim", "-v", root); strings.Contains(out, " 0 B") {
		t.Errorf("nothing was trimmed: %s", out)
	}
	becomes("fstrim in the guest", gone)
	run(t, "umount", root)
	mounted = false
	run(t, "e2fsck", "-fn", loop)

	random(loop)
	becomes("data on the device", written)
	run(t, "blkdiscard", loop)
	becomes("blkdiscard", gone)

	random(image)
	becomes("data in the image", written)
	run(t, "fallocate", "--punch-hole", "--offset", "0", "--length", "256M", image)
	becomes("a hole punched in the image", gone)
}
