package uring

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func newRing(t testing.TB, o RingOptions) *Ring {
	t.Helper()
	if o.Log == nil {
		o.Log = quiet
	}
	r, err := NewRing(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// reap waits for n completions.
func reap(t testing.TB, r *Ring, n int) []CQE {
	t.Helper()
	var all []CQE
	out := make([]CQE, 64)
	for deadline := time.Now().Add(10 * time.Second); len(all) < n; {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d completions", len(all), n)
		}
		if err := r.Wait(1, 1e9, 0); err != nil {
			t.Fatal(err)
		}
		for k := r.Reap(out); k > 0; k = r.Reap(out) {
			all = append(all, out[:k]...)
		}
	}
	if len(all) != n {
		t.Fatalf("%d completions, want %d", len(all), n)
	}
	return all
}

func TestRingSubmitsInOrderAndSaysFull(t *testing.T) {
	r := newRing(t, RingOptions{Entries: 8})
	for round := range 5 {
		for i := range 8 {
			s := r.SQE()
			if s == nil {
				t.Fatalf("full after %d of 8 entries", i)
			}
			PrepNop(s)
			s.SetUserData(uint64(round*8 + i + 1))
		}
		if r.SQE() != nil || r.Unsubmitted() != 8 {
			t.Fatalf("a ninth entry, or %d unsubmitted", r.Unsubmitted())
		}
		if err := r.Submit(); err != nil {
			t.Fatal(err)
		}
		for i, c := range reap(t, r, 8) {
			if c.UserData() != uint64(round*8+i+1) || c.Result() != 0 {
				t.Errorf("completion %d: user data %d, result %d", i, c.UserData(), c.Result())
			}
		}
	}
}

// TestRingOverflow completes far more operations than the completion queue holds.
func TestRingOverflow(t *testing.T) {
	for _, flags := range []uint32{0, SetupSingleIssuer | SetupDeferTaskrun} {
		runtime.LockOSThread()
		r := newRing(t, RingOptions{Entries: 8, CQEntries: 16, Flags: flags})
		const n = 200
		for i := range n {
			s := r.SQE()
			if s == nil {
				if err := r.Submit(); err != nil {
					t.Fatal(err)
				}
				if s = r.SQE(); s == nil {
					t.Fatal("the kernel takes no more")
				}
			}
			PrepNop(s)
			s.SetUserData(uint64(i + 1))
		}
		seen := map[uint64]bool{}
		for _, c := range reap(t, r, n) {
			seen[c.UserData()] = true
		}
		if len(seen) != n || r.Overflows == 0 {
			t.Errorf("%d different completions of %d, %d overflows", len(seen), n, r.Overflows)
		}
		runtime.UnlockOSThread()
	}
}

func TestRingTimeout(t *testing.T) {
	r := newRing(t, RingOptions{})
	start := time.Now()
	if err := r.Wait(1, 20e6, 0); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); r.HasTimeout() && d < 19*time.Millisecond {
		t.Errorf("waited %v, want 20 ms", d)
	}
	var ts slab[unix.Timespec]
	defer ts.unmap()
	short := ts.get()
	*short = unix.NsecToTimespec(1e6)
	s := r.SQE()
	PrepTimeout(s, short)
	s.SetUserData(2)
	if c := reap(t, r, 1)[0]; c.UserData() != 2 || c.Result() != -int32(unix.ETIME) {
		t.Errorf("user data %d, result %d", c.UserData(), c.Result())
	}
}

func TestRingCancelRead(t *testing.T) {
	r := newRing(t, RingOptions{})
	fds := make([]int, 2)
	if err := unix.Pipe2(fds, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	mem := mustMap(4096)
	defer unix.Munmap(mem)
	s := r.SQE()
	PrepRead(s, FD(fds[0]), addrOf(mem), 10, -1)
	s.SetUserData(1)
	if err := r.Submit(); err != nil {
		t.Fatal(err)
	}
	s = r.SQE()
	PrepCancel(s, 1)
	s.SetUserData(2)
	for _, c := range reap(t, r, 2) {
		switch {
		case c.UserData() == 1 && c.Result() != -int32(unix.ECANCELED) &&
			c.Result() != -int32(unix.EINTR):
			t.Errorf("cancelled read ended with %d", c.Result())
		case c.UserData() == 2 && c.Result() != 0 && c.Result() != -int32(unix.EALREADY):
			t.Errorf("cancel ended with %d", c.Result())
		}
	}
}

// TestRingLinkedWriteSync writes and syncs as one chain; a broken first link cancels the second.
func TestRingLinkedWriteSync(t *testing.T) {
	r := newRing(t, RingOptions{})
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem := mustMap(8192)
	defer unix.Munmap(mem)
	copy(mem, "hello")
	chain := func(fd int) (write, sync int32) {
		s := r.SQE()
		PrepWrite(s, FD(fd), addrOf(mem), 4096, 4096, 0)
		Link(s)
		s.SetUserData(1)
		s = r.SQE()
		PrepFdatasync(s, FD(int(f.Fd())))
		s.SetUserData(2)
		for _, c := range reap(t, r, 2) {
			if c.UserData() == 1 {
				write = c.Result()
			} else {
				sync = c.Result()
			}
		}
		return write, sync
	}
	if w, s := chain(int(f.Fd())); w != 4096 || s != 0 {
		t.Errorf("write %d, sync %d", w, s)
	}
	if w, s := chain(-1); w != -int32(unix.EBADF) || s != -int32(unix.ECANCELED) {
		t.Errorf("write to no file %d, sync %d", w, s)
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.HasPrefix(got[4096:], []byte("hello")) {
		t.Errorf("file has %d bytes (%v)", len(got), err)
	}
}

func TestRingMsgRing(t *testing.T) {
	a, b := newRing(t, RingOptions{}), newRing(t, RingOptions{})
	if !a.ops.ops[40] {
		t.Skip("this kernel has no MSG_RING")
	}
	s := a.SQE()
	PrepMsgRing(s, b.Fd(), 77, 5)
	s.SetUserData(1)
	if err := a.Submit(); err != nil {
		t.Fatal(err)
	}
	if c := reap(t, b, 1)[0]; c.UserData() != 77 || c.Result() != 5 {
		t.Errorf("user data %d, result %d", c.UserData(), c.Result())
	}
	reap(t, a, 1)
}

func TestRingFixedBuffersAndFiles(t *testing.T) {
	r := newRing(t, RingOptions{})
	p, err := NewPool(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := r.RegisterBuffers(p.Arena()); err != nil {
		t.Skip(err)
	}
	var files fileTable
	if err := files.init(r); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	file := files.add(int(f.Fd()))
	if file.index < 0 {
		t.Fatal("not registered")
	}
	b := p.Get(4096)
	defer b.Release()
	copy(b.Bytes(), "fixed")
	s := r.SQE()
	PrepWriteFixed(s, file, addrOf(b.Bytes()), 4096, 0, 0, 0)
	if c := reap(t, r, 1)[0]; c.Result() != 4096 {
		t.Fatalf("write: %d", c.Result())
	}
	clear(b.Bytes())
	s = r.SQE()
	PrepReadFixed(s, file, addrOf(b.Bytes()), 4096, 0, 0)
	if c := reap(t, r, 1)[0]; c.Result() != 4096 || string(b.Bytes()[:5]) != "fixed" {
		t.Errorf("read: %d, %q", c.Result(), b.Bytes()[:5])
	}
	files.remove(file)
	s = r.SQE()
	PrepReadFixed(s, file, addrOf(b.Bytes()), 4096, 0, 0)
	if c := reap(t, r, 1)[0]; c.Result() != -int32(unix.EBADF) {
		t.Errorf("read of a removed file: %d", c.Result())
	}
}

// TestRingMultishotRecv receives into provided buffers until they run out, and goes on when they
// are given back.
func TestRingMultishotRecv(t *testing.T) {
	r := newRing(t, RingOptions{})
	br, err := NewBufRing(r, 3, 4, 1024)
	if err != nil {
		t.Skip(err)
	}
	defer br.Close()
	sp, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sp[0])
	defer unix.Close(sp[1])
	sent := bytes.Repeat([]byte("0123456789abcdef"), 512)
	if _, err := unix.Write(sp[1], sent); err != nil {
		t.Fatal(err)
	}
	var got []byte
	starved := 0
	armed := false
	out := make([]CQE, 16)
	for len(got) < len(sent) {
		if !armed {
			s := r.SQE()
			PrepRecvMulti(s, FD(sp[0]), 3)
			s.SetUserData(1)
			armed = true
		}
		if err := r.Wait(1, 5e9, 0); err != nil {
			t.Fatal(err)
		}
		n := r.Reap(out)
		if n == 0 {
			t.Fatal("nothing more arrives")
		}
		var used []uint16
		for _, c := range out[:n] {
			if c.Flags()&CQEMore == 0 {
				armed = false
			}
			if c.Result() == -int32(unix.ENOBUFS) {
				starved++
				continue
			}
			if c.Result() <= 0 || c.Flags()&CQEBuffer == 0 {
				t.Fatalf("result %d, flags %#x", c.Result(), c.Flags())
			}
			id := uint16(c.Flags() >> 16)
			got = append(got, br.Bytes(id)[:c.Result()]...)
			used = append(used, id)
		}
		for _, id := range used {
			br.Put(id)
		}
	}
	if !bytes.Equal(got, sent) || starved == 0 {
		t.Errorf("equal: %v, ran out of buffers %d times", bytes.Equal(got, sent), starved)
	}
}

// TestRingFallsBack denies flags as older kernels do.
func TestRingFallsBack(t *testing.T) {
	all := SetupSingleIssuer | SetupDeferTaskrun | SetupNoSQArray
	for _, c := range []struct {
		deny, want uint32
		said       string
	}{
		{SetupNoSQArray, SetupSingleIssuer | SetupDeferTaskrun, "NO_SQARRAY"},
		{SetupNoSQArray | SetupDeferTaskrun, SetupSingleIssuer, "DEFER_TASKRUN"},
		{all, 0, "SINGLE_ISSUER"},
		{all | SetupSubmitAll, 0, "SUBMIT_ALL"},
		{all | SetupSubmitAll | SetupClamp, 0, "CLAMP"},
	} {
		var said bytes.Buffer
		runtime.LockOSThread()
		r := newRing(t, RingOptions{Flags: all, Entries: 8, denyFlags: c.deny,
			Log: slog.New(slog.NewTextHandler(&said, nil))})
		if got := r.Flags() & all; got != c.want {
			t.Errorf("deny %#x: flags %#x, want %#x", c.deny, got, c.want)
		}
		if !strings.Contains(said.String(), c.said) {
			t.Errorf("deny %#x: the log says %q", c.deny, said.String())
		}
		s := r.SQE()
		PrepNop(s)
		reap(t, r, 1)
		runtime.UnlockOSThread()
	}
	o := RingOptions{Log: quiet, denyFlags: SetupCQSize}
	if _, err := NewRing(o); !errors.Is(err, unix.EINVAL) {
		t.Errorf("everything denied: %v", err)
	}
}

func TestSetupErrorsSayWhatToDo(t *testing.T) {
	for _, c := range []struct {
		errno unix.Errno
		want  string
	}{{unix.ENOSYS, "seccomp"}, {unix.EPERM, "io_uring_disabled"}, {unix.ENOMEM, "LimitMEMLOCK"},
		{unix.EMFILE, "too many open files"}} {
		err := setupError(c.errno)
		if !strings.Contains(err.Error(), c.want) || !errors.Is(err, c.errno) {
			t.Errorf("%v: %v", c.errno, err)
		}
	}
}

// TestRingWaitSurvivesSignals is about EINTR: the collector preempts threads by signals.
func TestRingWaitSurvivesSignals(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r := newRing(t, RingOptions{Flags: SetupSingleIssuer | SetupDeferTaskrun})
	tid := unix.Gettid()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
				runtime.GC()
			}
		}
	}()
	defer func() { close(stop); <-stopped }()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	mem := mustMap(4096)
	defer unix.Munmap(mem)
	for i := range 300 {
		s := r.SQE()
		PrepRead(s, FD(fd), addrOf(mem), 8, 0)
		s.SetUserData(uint64(i + 1))
		go func() {
			one := uint64(1)
			_, _ = unix.Write(fd, (*[8]byte)(unsafe.Pointer(&one))[:])
		}()
		if c := reap(t, r, 1)[0]; c.UserData() != uint64(i+1) || c.Result() != 8 {
			t.Fatalf("round %d: user data %d, result %d", i, c.UserData(), c.Result())
		}
	}
}
