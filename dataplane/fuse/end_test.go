package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These tests are about ends: of the mount with requests under way, of its process, of its loop, of
// a process that waits. Whatever ends, nobody waits for ever.

// hungReaders starts processes that wait for data of a file of the mount, f, and waits for their
// requests.
func hungReaders(t *testing.T, dir string, n int) (ended chan error, readers []*os.Process) {
	t.Helper()
	ended, readers = startReaders(t, dir, n)
	waitHung(t, filepath.Join(dir, "f"), n)
	return ended, readers
}

func startReaders(t *testing.T, dir string, n int) (ended chan error, readers []*os.Process) {
	t.Helper()
	name := filepath.Join(dir, "f")
	must(t, os.WriteFile(name, []byte("data"), 0600))
	must(t, unix.Setxattr(name, "user.hang", nil, 0))
	ended = make(chan error, n)
	for range n {
		cmd := exec.Command("cat", name)
		must(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill() })
		readers = append(readers, cmd.Process)
		go func() { ended <- cmd.Wait() }()
	}
	return ended, readers
}

// waitHung waits until n requests hang in the server.
func waitHung(t *testing.T, path string, n int) {
	t.Helper()
	for waited := time.Now(); ; time.Sleep(time.Millisecond) {
		buf := make([]byte, 16)
		k, err := unix.Getxattr(path, hungAttribute, buf)
		must(t, err)
		if hung, _ := strconv.Atoi(string(buf[:k])); hung == n {
			return
		}
		if time.Since(waited) > 10*time.Second {
			t.Fatal("the requests don't arrive")
		}
	}
}

// allEnd waits for n processes, which must have failed.
func allEnd(t *testing.T, ended chan error, n int) {
	t.Helper()
	for range n {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("a read of nothing succeeded")
			}
		case <-time.After(10 * time.Second):
			t.Fatal("a process waits for a mount that ended")
		}
	}
}

// TestForcedUnmount: the requests under way fail, and the server ends.
func TestForcedUnmount(t *testing.T) { overBoth(t, "", testForcedUnmount) }

func testForcedUnmount(t *testing.T, dir string) {
	ended, _ := hungReaders(t, dir, 20)
	must(t, unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH))
	allEnd(t, ended, 20)
	// That the server has ended is awaited by the clean-up, for which something must be mounted.
	must(t, unix.Mount("none", dir, "tmpfs", 0, ""))
}

// TestKilledServer: its users get errors.
func TestKilledServer(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			dir, cmd := startServer(t, transport)
			ended, _ := hungReaders(t, dir, 20)
			must(t, cmd.Process.Kill())
			cmd.Wait()
			allEnd(t, ended, 20)
			_, err := os.ReadDir(dir)
			is(t, "read the directory", err, syscall.ENOTCONN)
			must(t, unix.Unmount(dir, unix.MNT_DETACH))
		})
	}
}

// TestLoopEnds: when the client's loop ends nobody can answer, so the mount goes.
func TestLoopEnds(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			dir, cmd := startServer(t, transport)
			ended, _ := hungReaders(t, dir, 20)
			// The answer may not come any more.
			go unix.Getxattr(filepath.Join(dir, "f"), stopAttribute, make([]byte, 16))
			allEnd(t, ended, 20)
			serverEnded := make(chan error, 1)
			go func() { serverEnded <- cmd.Wait() }()
			select {
			case <-serverEnded:
			case <-time.After(10 * time.Second):
				t.Fatal("the server doesn't end")
			}
			if _, err := os.Stat(filepath.Join(dir, "f")); !errors.Is(err, syscall.ENOENT) &&
				!errors.Is(err, syscall.ENOTCONN) {
				t.Errorf("the file is still there: %v", err)
			}
			unix.Unmount(dir, unix.MNT_DETACH)
		})
	}
}

// TestKilledWhileLooking: a process that waits for metadata can be killed, too.
func TestKilledWhileLooking(t *testing.T) { overBoth(t, "", testKilledWhileLooking) }

func testKilledWhileLooking(t *testing.T, dir string) {
	cmd := exec.Command("stat", filepath.Join(dir, "hang"))
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	waitHung(t, dir, 1)
	must(t, cmd.Process.Kill())
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the process doesn't die")
	}
}

// bind has the test's thread, and processes that it starts, run on the n-th CPU.
func bind(t *testing.T, n int) {
	t.Helper()
	for cpu := range len(allCPUs) * 64 {
		if !allCPUs.IsSet(cpu) {
			continue
		}
		if n--; n < 0 {
			var set unix.CPUSet
			set.Set(cpu)
			must(t, unix.SchedSetaffinity(0, &set))
			return
		}
	}
}

// allCPUs is where the test may run.
var allCPUs = func() (set unix.CPUSet) {
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		panic(err)
	}
	return set
}()

// TestManyAtOnce: more requests of one CPU than its queue has entries, all of them waiting, and
// another CPU's are still answered.
func TestManyAtOnce(t *testing.T) { overBoth(t, "", testManyAtOnce) }

func testManyAtOnce(t *testing.T, dir string) {
	if allCPUs.Count() < 2 {
		t.Skip("needs 2 CPUs")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer unix.SchedSetaffinity(0, &allCPUs)
	const n = queueEntries + 20
	arrive := n
	if strings.HasSuffix(t.Name(), "/ring") {
		arrive = queueEntries
	}
	bind(t, 0)
	ended, _ := startReaders(t, dir, n)
	bind(t, 1)
	waitHung(t, filepath.Join(dir, "f"), arrive)
	must(t, os.WriteFile(filepath.Join(dir, "other"), []byte("x"), 0600))
	must(t, unix.Removexattr(filepath.Join(dir, "f"), "user.hang")) // answers them
	for range n {
		select {
		case err := <-ended:
			must(t, err)
		case <-time.After(10 * time.Second):
			t.Fatal("a read doesn't end")
		}
	}
}

// TestEntriesOfManyCPUs: each CPU's queue has as many on a large machine.
func TestEntriesOfManyCPUs(t *testing.T) {
	c := bareConn(t, newMemory(), time.Millisecond)
	if !c.loop.HasCommands() {
		t.Skip("no commands over io_uring")
	}
	const queues = 100
	mem, err := c.fs.o.mapQueues(queues)
	must(t, err)
	onTestLoop(c.loop, func() { c.register(mem, queues) })
	waitFor(t, c, "a file in memory takes commands", func() bool { return c.live == 0 })
	onTestLoop(c.loop, func() {
		count := map[uint64]int{}
		for _, k := range c.calls {
			count[k.cmd.Arg[2]]++
		}
		for queue := range uint64(queues) {
			if count[queue] != queueEntries {
				t.Errorf("queue %d has %d entries", queue, count[queue])
			}
		}
		c.release()
	})
}

// TestMemoryComesBack: what a burst of large requests took is given back.
func TestMemoryComesBack(t *testing.T) { overBoth(t, "", testMemoryComesBack) }

func testMemoryComesBack(t *testing.T, dir string) {
	const writers, size = 32, 1 << 20
	pid := serverOf[dir]
	resident := func() int {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		must(t, err)
		_, rest, _ := strings.Cut(string(text), "RssAnon:")
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			t.Skip("the kernel doesn't say what is resident")
		}
		kib, err := strconv.Atoi(fields[0])
		must(t, err)
		return kib << 10
	}
	ended := make(chan error, writers)
	var processes []*os.Process
	for i := range writers {
		name := filepath.Join(dir, strconv.Itoa(i))
		must(t, os.WriteFile(name, nil, 0600))
		must(t, unix.Setxattr(name, "user.hang", nil, 0))
		cmd := exec.Command("dd", "if=/dev/zero", "of="+name, "bs=1M", "count=1", "conv=notrunc",
			"oflag=direct")
		must(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill() })
		processes = append(processes, cmd.Process)
		go func() { ended <- cmd.Wait() }()
	}
	waitHung(t, dir, writers)
	peak := resident()
	for _, p := range processes {
		must(t, p.Kill())
	}
	allEnd(t, ended, writers)
	for waited := time.Now(); ; time.Sleep(time.Millisecond) {
		now := resident()
		if now <= peak-writers*size*3/4 {
			break
		}
		if time.Since(waited) > 10*time.Second {
			t.Fatalf("%d bytes are resident, %d when %d were written", now, peak, writers*size)
		}
	}
}

// TestNoRing: without memory for the queues, or if the kernel refuses them, the mount is served by
// /dev/fuse.
func TestNoRing(t *testing.T) {
	for _, why := range []string{"nomemory", "refused"} {
		t.Run(why, func(t *testing.T) {
			dir := mounted(t, why+" auto ring")
			testNames(t, dir)
			ended, readers := hungReaders(t, dir, 20)
			for _, p := range readers {
				must(t, p.Kill())
			}
			allEnd(t, ended, 20)
		})
	}
	t.Run("on", func(t *testing.T) {
		needTransport(t, "ring")
		o := Options{Mountpoint: t.TempDir(), OverRing: On, Log: slog.New(slog.DiscardHandler)}
		o.hooks.mapMemory = func(int) ([]byte, error) { return nil, unix.ENOMEM }
		_, err := mount(context.Background(), o, newMemory())
		is(t, "mount", err, unix.ENOMEM)
		is(t, "unmount", unix.Unmount(o.Mountpoint, 0), unix.EINVAL)
	})
}

// TestNoAllocations: reads, writes and fsyncs allocate nothing in the server.
func TestNoAllocations(t *testing.T) { overBoth(t, "null", testNoAllocations) }

func testNoAllocations(t *testing.T, dir string) {
	name := filepath.Join(dir, "f")
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_DIRECT, 0600)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Ftruncate(fd, 8<<20))
	mallocs := func() int {
		buf := make([]byte, 32)
		n, err := unix.Getxattr(name, mallocsAttribute, buf)
		must(t, err)
		count, err := strconv.Atoi(string(buf[:n]))
		must(t, err)
		return count
	}
	buf := aligned(64 << 10)
	const rounds = 2000
	load := func() {
		for i := range rounds {
			n := 4096 << (i % 5)
			if _, err := unix.Pwrite(fd, buf[:n], int64(i%8)<<20); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Pread(fd, buf[:n], int64(i%8)<<20); err != nil {
				t.Fatal(err)
			}
			must(t, unix.Fdatasync(fd))
		}
	}
	load() // pools fill
	before := mallocs()
	load()
	if got := mallocs() - before; got > rounds/10 {
		t.Errorf("%d allocations in %d reads, writes and fsyncs each", got, rounds)
	}
}

func TestCountCPUs(t *testing.T) {
	for list, want := range map[string]int{"0": 1, "0-1": 2, "0-3,8": 5, "0-63": 64} {
		if got, err := countCPUs(list); err != nil || got != want {
			t.Errorf("%q: %d, %v, want %d", list, got, err, want)
		}
	}
	for _, list := range []string{"", "x", "1-", "3-1", "0-99999999"} {
		if n, err := countCPUs(list); err == nil {
			t.Errorf("%q: %d", list, n)
		}
	}
}

// TestChooseRing: with on it is an error that the kernel has no FUSE over io_uring, with auto it
// isn't; auto switches it on.
func TestChooseRing(t *testing.T) {
	loop := newTestLoop()
	parameter := filepath.Join(t.TempDir(), "enable_uring")
	cpus := 2
	choose := func(c OverRing) (bool, error) {
		o := &Options{OverRing: c}
		o.setDefaults()
		queues, err := o.chooseRing(loop, parameter, func() (int, error) { return cpus, nil })
		if queues != 0 && queues != cpus {
			t.Errorf("%d queues for %d CPUs", queues, cpus)
		}
		return queues > 0, err
	}
	if yes, err := choose(Auto); yes || err != nil {
		t.Errorf("auto, not there: %v, %v", yes, err)
	}
	if yes, err := choose(On); yes || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("on, not there: %v, %v", yes, err)
	}
	must(t, os.WriteFile(parameter, []byte("N\n"), 0600))
	if yes, err := choose(Off); yes || err != nil {
		t.Errorf("off: %v, %v", yes, err)
	}
	if text, _ := os.ReadFile(parameter); text[0] != 'N' {
		t.Errorf("off wrote %q", text)
	}
	if yes, err := choose(Auto); yes != loop.HasCommands() || err != nil {
		t.Errorf("auto: %v, %v", yes, err)
	}
	if text, _ := os.ReadFile(parameter); text[0] != '1' {
		t.Errorf("auto wrote %q", text)
	}
	cpus = maxQueues + 1
	if yes, err := choose(Auto); yes || err != nil {
		t.Errorf("auto, many CPUs: %v, %v", yes, err)
	}
	if yes, err := choose(On); yes != loop.HasCommands() || (err == nil) != yes {
		t.Errorf("on, many CPUs: %v, %v", yes, err)
	}
}
