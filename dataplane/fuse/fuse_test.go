package fuse

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
)

// The file system is served by another process (this binary again), because a Go process must not
// use a mount that it serves.

func TestMain(m *testing.M) {
	if os.Getenv("PSTORAGE_FUSE_SERVE")+os.Getenv("PSTORAGE_FUSE_ROLE") != "" {
		go endWithParent()
	}
	if dir := os.Getenv("PSTORAGE_FUSE_SERVE"); dir != "" {
		serve(dir, os.Getenv("PSTORAGE_FUSE_OPTIONS"))
		return
	}
	if role := os.Getenv("PSTORAGE_FUSE_ROLE"); role != "" {
		if err := runRole(strings.Split(role, "\n")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// endWithParent ends this process when the test that started it has ended, however that was.
func endWithParent() {
	io.Copy(io.Discard, os.Stdin)
	for _, dir := range []string{os.Getenv("PSTORAGE_FUSE_SERVE"), mountedOn} {
		if dir != "" {
			unix.Unmount(dir, unix.MNT_DETACH)
		}
	}
	os.Exit(3)
}

// mountedOn is where this process has mounted a real cluster.
var mountedOn string

// serve mounts a backend in memory and says so.
func serve(dir, options string) {
	o := Options{Mountpoint: dir, ReadOnly: strings.Contains(options, "ro"),
		Grace: 500 * time.Millisecond, AllowOther: true}
	o.OverRing = Off
	if strings.Contains(options, "ring") {
		o.OverRing = On
	}
	if strings.Contains(options, "auto") {
		o.OverRing = Auto
	}
	// Often, so that it can do harm if it is wrong.
	o.hooks.restAfter = time.Millisecond
	noMemory, refused := strings.Contains(options, "nomemory"), strings.Contains(options, "refused")
	if noMemory {
		o.hooks.mapMemory = func(int) ([]byte, error) { return nil, unix.ENOMEM }
	}
	if refused {
		o.hooks.firstQueue = 1 << 15
	}
	m := newMemory()
	if o.ReadOnly {
		m.Mkdir("d")
	}
	b := backend(m)
	if strings.Contains(options, "null") {
		b = newNull(m)
	}
	s, err := mount(context.Background(), o, b)
	for refused && err == nil && s.OverRing() { // it says so when it was asked
		time.Sleep(time.Millisecond)
	}
	if err == nil && s.OverRing() != (o.OverRing == On) {
		err = errors.New("the kernel chose the other transport")
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("mounted")
	s.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.nodes {
		if n.opens != 0 {
			fmt.Printf("file %d is open %d times after the unmount\n", n.attr.File, n.opens)
			os.Exit(1)
		}
	}
}

// Mkdir is for setting up a read-only mount.
func (m *memory) Mkdir(name string) {
	m.last++
	m.nodes[dataplane.RootID].entries[name] = m.last
	m.nodes[m.last] = &memNode{entries: map[string]dataplane.FileID{}}
	m.nodes[m.last].attr.File, m.nodes[m.last].attr.Type = m.last, 2
}

// overBoth runs test on a mount with requests by /dev/fuse, and on one with requests over io_uring.
func overBoth(t *testing.T, options string, test func(t *testing.T, dir string)) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			dir, pid := mountedAs(t, options+" "+transport)
			serverOf[dir] = pid
			test(t, dir)
		})
	}
}

// serverOf are the processes that serve mounts.
var serverOf = map[string]int{}

// The transports, as options of a mounted file system.
var transports = []string{"device", "ring"}

// needTransport skips the test if there is no such transport here.
func needTransport(t testing.TB, transport string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse: ", err)
	}
	if transport != "ring" {
		return
	}
	old, err := os.ReadFile(enableParameter)
	if err != nil {
		t.Skip("no FUSE over io_uring: ", err)
	}
	if err := enableRing(enableParameter); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(enableParameter, old[:1], 0) })
}

// mounted returns a directory where a file system is mounted until the test ends.
func mounted(t testing.TB, options string) string {
	t.Helper()
	dir, _ := mountedAs(t, options)
	return dir
}

// mountedAs is mounted, and says which process serves.
func mountedAs(t testing.TB, options string) (dir string, pid int) {
	t.Helper()
	dir, cmd := startServer(t, options)
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
		if rest, _ := io.ReadAll(cmd.out); len(rest) > 0 {
			t.Errorf("%s", rest)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server ended: %v", err)
		}
	})
	return dir, cmd.Process.Pid
}

// server is a process that serves a mount.
type server struct {
	*exec.Cmd
	out *bufio.Reader
}

// startServer starts one, and leaves it to the caller to end it, or the test's end kills it.
func startServer(t testing.TB, options string) (dir string, s *server) {
	t.Helper()
	fields := strings.Fields(options)
	needTransport(t, fields[len(fields)-1])
	dir = t.TempDir()
	s = &server{Cmd: exec.Command(os.Args[0])}
	s.Env = append(os.Environ(), "PSTORAGE_FUSE_SERVE="+dir, "PSTORAGE_FUSE_OPTIONS="+options)
	s.Stderr = os.Stderr
	out, err := s.StdoutPipe()
	must(t, err)
	stdin, err := s.StdinPipe()
	must(t, err)
	t.Cleanup(func() { stdin.Close() })
	must(t, s.Start())
	s.out = bufio.NewReader(out)
	if line, _ := s.out.ReadString('\n'); line != "mounted\n" {
		s.Process.Kill()
		s.Wait()
		t.Fatalf("the server said %q", line)
	}
	return dir, s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestNames(t *testing.T) { overBoth(t, "", testNames) }

func testNames(t *testing.T, dir string) {
	p := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Mkdir(p("a"), 0750))
	must(t, os.WriteFile(p("a/f"), []byte("one"), 0640))
	st, err := os.Stat(p("a/f"))
	must(t, err)
	if st.Mode() != 0640 || st.Size() != 3 || !st.Mode().IsRegular() {
		t.Errorf("%v %d", st.Mode(), st.Size())
	}
	is(t, "mkdir again", os.Mkdir(p("a"), 0750), syscall.EEXIST)
	is(t, "rmdir", os.Remove(p("a")), syscall.ENOTEMPTY)
	is(t, "unlink of a directory", unix.Unlink(p("a")), syscall.EISDIR)
	is(t, "rmdir of a file", unix.Rmdir(p("a/f")), syscall.ENOTDIR)
	is(t, "link", os.Link(p("a/f"), p("l")), syscall.EPERM)
	is(t, "fifo", unix.Mkfifo(p("fifo"), 0600), syscall.EPERM)
	must(t, unix.Mknod(p("node"), unix.S_IFREG|0600, 0))
	_, err = os.Stat(p(strings.Repeat("x", 300)))
	is(t, "long name", err, syscall.ENAMETOOLONG)
	is(t, "rename to a long name", os.Rename(p("a/f"), p(strings.Repeat("x", 300))),
		syscall.ENAMETOOLONG)
	_, err = os.Stat(p("a/f/g"))
	is(t, "path through a file", err, syscall.ENOTDIR)
	_, err = os.OpenFile(p("a/f"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0600)
	is(t, "create again", err, syscall.EEXIST)

	must(t, os.Symlink("a/f", p("s")))
	if got, _ := os.Readlink(p("s")); got != "a/f" {
		t.Errorf("readlink: %q", got)
	}
	if got, _ := os.ReadFile(p("s")); string(got) != "one" {
		t.Errorf("through the symlink: %q", got)
	}
	must(t, os.WriteFile(p("b"), []byte("two"), 0600))
	is(t, "rename, noreplace", unix.Renameat2(unix.AT_FDCWD, p("b"), unix.AT_FDCWD, p("a/f"),
		unix.RENAME_NOREPLACE), syscall.EEXIST)
	is(t, "rename, exchange", unix.Renameat2(unix.AT_FDCWD, p("b"), unix.AT_FDCWD, p("a/f"),
		unix.RENAME_EXCHANGE), syscall.EINVAL)
	must(t, os.Rename(p("b"), p("a/f")))
	if got, _ := os.ReadFile(p("a/f")); string(got) != "two" {
		t.Errorf("after the rename: %q", got)
	}
	must(t, os.RemoveAll(p("a")))
	_, err = os.Stat(p("a"))
	is(t, "removed", err, syscall.ENOENT)
	_, err = os.Create(p(hiddenPrefix + "x"))
	is(t, "create with a hidden name", err, syscall.EACCES)
	var sfs unix.Statfs_t
	must(t, unix.Statfs(dir, &sfs))
	if sfs.Blocks*uint64(sfs.Bsize) != 1<<40 || sfs.Bavail*uint64(sfs.Bsize) != 1<<39 {
		t.Errorf("%+v", sfs)
	}
}

func TestReadDir(t *testing.T) { overBoth(t, "", testReadDir) }

func testReadDir(t *testing.T, dir string) {
	var want []string
	for i := range 1500 {
		name := fmt.Sprintf("entry-%04d-%s", i, strings.Repeat("n", i%100))
		want = append(want, name)
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0600))
	}
	d, err := os.Open(dir)
	must(t, err)
	defer d.Close()
	for round := range 2 {
		got, err := d.Readdirnames(-1)
		must(t, err)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("round %d: %d names of %d", round, len(got), len(want))
		}
		_, err = d.Seek(0, 0)
		must(t, err)
	}
	out, err := exec.Command("ls", "-l", dir).CombinedOutput() // readdirplus
	if err != nil || bytes.Count(out, []byte("\n")) != 1501 {
		t.Errorf("ls: %v, %d lines", err, bytes.Count(out, []byte("\n")))
	}
}

func TestData(t *testing.T) { overBoth(t, "", testData) }

func testData(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	f, err := os.Create(name)
	must(t, err)
	defer f.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	model := make([]byte, 6<<20)
	size := 0
	for range 200 {
		off, n := rng.IntN(4<<20), rng.IntN(2<<20)+1
		if rng.IntN(2) == 0 {
			n = rng.IntN(5000) + 1
		}
		p := model[off : off+n]
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		_, err := f.WriteAt(p, int64(off))
		must(t, err)
		size = max(size, off+n)
		st, err := f.Stat()
		must(t, err)
		if st.Size() != int64(size) {
			t.Fatalf("size %d, want %d", st.Size(), size)
		}
		off, n = rng.IntN(size), rng.IntN(1<<20)
		got := make([]byte, n)
		k, _ := f.ReadAt(got, int64(off))
		if k != min(n, size-off) || !bytes.Equal(got[:k], model[off:off+k]) {
			t.Fatalf("read of %d at %d: %d bytes, or other ones", n, off, k)
		}
	}
	must(t, f.Sync())
	must(t, f.Truncate(1000))
	must(t, f.Truncate(9000))
	got, err := os.ReadFile(name)
	must(t, err)
	if !bytes.Equal(got, append(slices.Clone(model[:1000]), make([]byte, 8000)...)) {
		t.Error("after truncating")
	}
	a, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = a.Write([]byte("tail"))
	must(t, err)
	must(t, a.Close())
	if got, _ := os.ReadFile(name); !bytes.Equal(got[8998:], []byte("\x00\x00tail")) {
		t.Error("after appending")
	}
	must(t, os.WriteFile(name, []byte("short"), 0600)) // O_TRUNC
	if got, _ := os.ReadFile(name); string(got) != "short" {
		t.Errorf("%q", got)
	}
}

// aligned returns n bytes of memory at an address that is a multiple of 4096.
func aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := -uintptr(unsafe.Pointer(&b[0])) & 4095
	return b[skip : skip+uintptr(n)]
}

// The last bytes of the largest file can be read and written.
func TestLargestFile(t *testing.T) { overBoth(t, "", testLargestFile) }

func testLargestFile(t *testing.T, dir string) {
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, err)
	defer f.Close()
	const end = client.MaxFileSize
	must(t, f.Truncate(end))
	if n, err := f.WriteAt([]byte("last"), end-4); n != 4 || err != nil {
		t.Errorf("write of the last bytes: %d, %v", n, err)
	}
	got := make([]byte, 8)
	if n, err := f.ReadAt(got, end-4); n != 4 || string(got[:4]) != "last" {
		t.Errorf("read over the end: %d, %v, %q", n, err, got)
	}
	if n, err := f.WriteAt(got, end-4); err == nil {
		t.Errorf("write over the end: %d", n)
	}
}

func TestDirectAndParallel(t *testing.T) { overBoth(t, "", testDirectAndParallel) }

func testDirectAndParallel(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT, 0600)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Ftruncate(fd, 8<<20))
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			buf := aligned(512 * 3)
			for j := range 50 {
				for k := range buf {
					buf[k] = byte(i + j)
				}
				off := int64(i*50+j) * int64(len(buf))
				if n, err := unix.Pwrite(fd, buf, off); n != len(buf) || err != nil {
					t.Errorf("write: %d, %v", n, err)
				}
				clear(buf)
				if n, err := unix.Pread(fd, buf, off); n != len(buf) || err != nil {
					t.Errorf("read: %d, %v", n, err)
				}
				if !bytes.Equal(buf, bytes.Repeat([]byte{byte(i + j)}, len(buf))) {
					t.Errorf("%d/%d: other data", i, j)
				}
			}
		})
	}
	all.Wait()
}

func TestMmap(t *testing.T) { overBoth(t, "", testMmap) }

func testMmap(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	data := bytes.Repeat([]byte("mapped..."), 5000)
	must(t, os.WriteFile(name, data, 0600))
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, len(data), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Skip("this kernel has no shared mappings of direct I/O files: ", err)
	}
	if !bytes.Equal(m, data) {
		t.Error("other data in the mapping")
	}
	copy(m[4090:], "hello")
	must(t, unix.Msync(m, unix.MS_SYNC))
	must(t, unix.Munmap(m))
	copy(data[4090:], "hello")
	if got, _ := os.ReadFile(name); !bytes.Equal(got, data) {
		t.Error("the mapping wasn't written back")
	}
}

func TestFallocateAndSeek(t *testing.T) { overBoth(t, "", testFallocateAndSeek) }

func testFallocateAndSeek(t *testing.T, dir string) {
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, err)
	defer f.Close()
	fd := int(f.Fd())
	size := func(want int64) {
		t.Helper()
		st, err := f.Stat()
		must(t, err)
		if st.Size() != want {
			t.Errorf("size %d, want %d", st.Size(), want)
		}
	}
	must(t, unix.Fallocate(fd, 0, 0, 1<<20))
	size(1 << 20)
	must(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 2<<20))
	size(1 << 20)
	_, err = f.WriteAt(bytes.Repeat([]byte{7}, 1<<20), 0)
	must(t, err)
	must(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1000, 200000))
	must(t, unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 1<<20-10, 100))
	size(1<<20 + 90)
	want := bytes.Repeat([]byte{7}, 1<<20+90)
	clear(want[1000:201000])
	clear(want[1<<20-10:])
	if got, _ := os.ReadFile(f.Name()); !bytes.Equal(got, want) {
		t.Error("other data")
	}
	is(t, "collapse", unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 65536), syscall.ENOTSUP)
	if at, err := unix.Seek(fd, 66000, unix.SEEK_DATA); err != nil || at != 3*memBlock {
		t.Errorf("SEEK_DATA: %d %v", at, err)
	}
	if at, err := unix.Seek(fd, 10, unix.SEEK_HOLE); err != nil || at != memBlock {
		t.Errorf("SEEK_HOLE: %d %v", at, err)
	}
	_, err = unix.Seek(fd, 5<<20, unix.SEEK_DATA)
	is(t, "SEEK_DATA behind the end", err, syscall.ENXIO)
}

func TestAttributes(t *testing.T) { overBoth(t, "", testAttributes) }

func testAttributes(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	must(t, os.WriteFile(name, []byte("x"), 0600))
	must(t, os.Chmod(name, 0741))
	must(t, os.Chown(name, 12, 34))
	when := time.Unix(1234567890, 987654321)
	must(t, os.Chtimes(name, when, when.Add(time.Second)))
	var st unix.Stat_t
	must(t, unix.Stat(name, &st))
	if st.Mode != unix.S_IFREG|0741 || st.Uid != 12 || st.Gid != 34 ||
		st.Atim.Nano() != when.UnixNano() || st.Mtim.Nano() != when.UnixNano()+1e9 {
		t.Errorf("%+v", st)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	begin := time.Now()
	_, err = f.Write([]byte("y"))
	must(t, err)
	for _, closed := range []bool{false, true} {
		if closed {
			must(t, f.Close())
		}
		must(t, unix.Stat(name, &st))
		if st.Mtim.Nano() < begin.UnixNano()-1e7 {
			t.Errorf("closed %v: written %v, modified %v", closed, begin, time.Unix(st.Mtim.Unix()))
		}
	}
	must(t, unix.Setxattr(name, "user.a", []byte("one"), 0))
	is(t, "create", unix.Setxattr(name, "user.a", nil, unix.XATTR_CREATE), syscall.EEXIST)
	is(t, "replace", unix.Setxattr(name, "user.b", nil, unix.XATTR_REPLACE), syscall.ENODATA)
	must(t, unix.Setxattr(name, "user.a", bytes.Repeat([]byte("long"), 1000), unix.XATTR_REPLACE))
	_, err = unix.Getxattr(name, "user.a", make([]byte, 10))
	is(t, "small buffer", err, syscall.ERANGE)
	if n, err := unix.Getxattr(name, "user.a", nil); err != nil || n != 4000 {
		t.Errorf("size of an attribute: %d %v", n, err)
	}
	buf := make([]byte, 5000)
	n, err := unix.Getxattr(name, "user.a", buf)
	if err != nil || !bytes.Equal(buf[:n], bytes.Repeat([]byte("long"), 1000)) {
		t.Errorf("attribute: %d bytes, %v", n, err)
	}
	if n, err := unix.Listxattr(name, buf); err != nil || string(buf[:n]) != "user.a\x00" {
		t.Errorf("list: %q %v", buf[:n], err)
	}
	must(t, unix.Removexattr(name, "user.a"))
	_, err = unix.Getxattr(name, "user.a", buf)
	is(t, "removed", err, syscall.ENODATA)
	is(t, "acl", unix.Setxattr(name, "system.posix_acl_access", []byte{2, 0, 0, 0}, 0),
		syscall.ENOTSUP)
}

func TestRemovedWhileOpen(t *testing.T) { overBoth(t, "", testRemovedWhileOpen) }

func testRemovedWhileOpen(t *testing.T, dir string) {
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0700))
	for i, remove := range []func(string) error{
		os.Remove,
		func(name string) error {
			must(t, os.WriteFile(name+".new", []byte("new"), 0600))
			return os.Rename(name+".new", name)
		},
	} {
		name := filepath.Join(dir, "d", fmt.Sprint("f", i))
		must(t, os.WriteFile(name, []byte("old"), 0600))
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		must(t, err)
		must(t, remove(name))
		if got, _ := os.ReadFile(name); i == 1 && string(got) != "new" {
			t.Errorf("replaced: %q", got)
		}
		_, err = f.WriteAt([]byte("er"), 3)
		must(t, err)
		buf := make([]byte, 10)
		if n, _ := f.ReadAt(buf, 0); string(buf[:n]) != "older" {
			t.Errorf("%d: read %q", i, buf[:n])
		}
		st, err := f.Stat()
		must(t, err)
		if got := st.Sys().(*syscall.Stat_t).Nlink; got != 0 {
			t.Errorf("%d: %d links", i, got)
		}
		names, err := os.ReadDir(dir)
		must(t, err)
		if len(names) != 1 {
			t.Errorf("%d: hidden names are listed: %v", i, names)
		}
		must(t, f.Close())
	}
	os.Remove(filepath.Join(dir, "d", "f1"))
	must(t, os.Remove(filepath.Join(dir, "d")))
}

func TestReadOnly(t *testing.T) { overBoth(t, "ro", testReadOnly) }

func testReadOnly(t *testing.T, dir string) {
	_, err := os.Create(filepath.Join(dir, "f"))
	is(t, "create", err, syscall.EROFS)
	is(t, "mkdir", os.Mkdir(filepath.Join(dir, "e"), 0700), syscall.EROFS)
	is(t, "chmod", os.Chmod(filepath.Join(dir, "d"), 0700), syscall.EROFS)
	_, err = os.ReadDir(filepath.Join(dir, "d"))
	must(t, err)
}

// TestErrno: each kind of failure reaches the user as the errno in the one table, except for
// EAGAIN, which files don't have.
func TestErrno(t *testing.T) { overBoth(t, "", testErrno) }

func testErrno(t *testing.T, dir string) {
	for kind := dataplane.Kind(1); kind.Valid(); kind++ {
		_, err := os.Lstat(filepath.Join(dir, "kind-"+strings.ReplaceAll(kind.String(), " ", "-")))
		want := kind.Errno()
		if want == syscall.EAGAIN {
			want = syscall.EIO
		}
		if strings.Contains(kind.String(), "/") {
			continue // can't be in a name
		}
		is(t, kind.String(), err, want)
	}
	name := filepath.Join(dir, "f")
	must(t, os.WriteFile(name, []byte("data"), 0600))
	must(t, unix.Setxattr(name, "user.eio", nil, 0))
	_, err := os.ReadFile(name)
	is(t, "read", err, syscall.EIO)
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	_, err = f.Write([]byte("x"))
	is(t, "write", err, syscall.EIO)
	must(t, unix.Removexattr(name, "user.eio"))
	must(t, unix.Setxattr(name, "user.gone", nil, 0))
	_, err = os.ReadFile(name)
	is(t, "read of a file that another host removed", err, syscall.ESTALE)
}

// TestKilledWhileWaiting: a process whose I/O hangs can be killed, after the grace.
func TestKilledWhileWaiting(t *testing.T) { overBoth(t, "", testKilledWhileWaiting) }

func testKilledWhileWaiting(t *testing.T, dir string) {
	ended, readers := hungReaders(t, dir, 1)
	begin := time.Now()
	must(t, readers[0].Kill())
	select {
	case <-ended:
		if took := time.Since(begin); took < 400*time.Millisecond {
			t.Errorf("the read ended %v after the signal, before the grace", took)
		}
	case <-time.After(10 * time.Second):
		t.Error("the process doesn't die")
	}
	must(t, unix.Removexattr(filepath.Join(dir, "f"), "user.hang"))
}

func TestMountErrors(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	_, err := mount(context.Background(), Options{Mountpoint: "/does/not/exist"}, newMemory())
	is(t, "no directory", err, syscall.ENOENT)
	_, err = mount(context.Background(), Options{Mountpoint: "/dev/null"}, newMemory())
	is(t, "not a directory", err, syscall.ENOTDIR)
	if _, err = Mount(context.Background(), Options{Mountpoint: "/"}); err == nil {
		t.Error("mounted without a client")
	}
}

// TestLoopDevice: a file system in an image on the mount, through a loop device with direct I/O.
func TestLoopDevice(t *testing.T) { overBoth(t, "", testLoopDevice) }

func testLoopDevice(t *testing.T, dir string) {
	image := filepath.Join(dir, "image")
	must(t, os.WriteFile(image, nil, 0600))
	must(t, os.Truncate(image, 64<<20))
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	out, err := exec.Command("losetup", "--direct-io=on", "--show", "-f", image).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "-d", dev).Run()
	if got := run("losetup", "-n", "-O", "DIO", dev); got != "1" {
		t.Errorf("direct I/O is %q", got)
	}
	run("mkfs.ext4", "-q", dev)
	at := t.TempDir()
	run("mount", dev, at)
	data := make([]byte, 10<<20)
	for i := range data {
		data[i] = byte(i * i >> 7)
	}
	must(t, os.WriteFile(filepath.Join(at, "big"), data, 0600))
	run("fstrim", at)
	run("umount", at)
	run("fsck.ext4", "-f", "-n", dev)
	run("mount", dev, at)
	got, err := os.ReadFile(filepath.Join(at, "big"))
	run("umount", at)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("other data in the image: %v", err)
	}
}
