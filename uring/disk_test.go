package uring

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// do submits op from a posted function and waits until it is done.
func do(t testing.TB, l *Loop, d Disk, op *DiskOp) error {
	t.Helper()
	done := make(chan struct{})
	op.Done = func(*DiskOp) { close(done) }
	l.Post(func() { d.Submit(op) })
	await(t, done, "completion of "+op.Kind.String())
	return op.Err
}

// onDisk opens a file of size bytes and gives the test a buffer function.
func onDisk(t testing.TB, l *Loop, o DiskOptions) (Disk, string, func(n int) []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	o.Create = true
	var d Disk
	var err error
	var held []*Buf
	on(t, l, func() { d, err = l.OpenDisk(path, o) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		on(t, l, func() {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			for _, b := range held {
				b.Release()
			}
		})
	})
	return d, path, func(n int) []byte {
		var b *Buf
		on(t, l, func() { b = l.Pool().Get(n); held = append(held, b) })
		return b.Bytes()[:n]
	}
}

func TestDiskWriteRead(t *testing.T) {
	for _, register := range []bool{true, false} {
		l := startLoop(t, LoopOptions{NoRegister: !register})
		if l.Registered() != register {
			t.Fatalf("registered: %v", l.Registered())
		}
		d, path, buf := onDisk(t, l, DiskOptions{Size: 1 << 20})
		if d.Size() != 1<<20 || d.Align() != 512 && d.Align() != 4096 {
			t.Errorf("size %d, align %d", d.Size(), d.Align())
		}
		rng := rand.New(rand.NewSource(1))
		model := make([]byte, 1<<20)
		for i, kind := range []OpKind{DiskWrite, DiskWriteSync, DiskWrite, DiskWriteSync} {
			for _, sizes := range [][]int{{4096}, {4096, 8192, 4096}, {65536}, {4096, 1 << 17}} {
				op := &DiskOp{Kind: kind, Offset: int64(rng.Intn(64)+i) * 4096}
				at := op.Offset
				for _, n := range sizes {
					b := buf(n)
					rng.Read(b)
					op.Bufs = append(op.Bufs, b)
					at += int64(copy(model[at:], b))
				}
				if err := do(t, l, d, op); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := do(t, l, d, &DiskOp{Kind: DiskSync}); err != nil {
			t.Error(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, model) {
			t.Errorf("file differs from what was written (%v)", err)
		}
		b1, b2, b3 := buf(4096), buf(65536), buf(16384)
		op := &DiskOp{Kind: DiskRead, Offset: 8192, Bufs: [][]byte{b1, b2, b3}}
		if err := do(t, l, d, op); err != nil {
			t.Error(err)
		}
		if g := bytes.Join([][]byte{b1, b2, b3}, nil); !bytes.Equal(g, model[8192:8192+len(g)]) {
			t.Error("vectored read differs")
		}
	}
}

func TestDiskReadPastEndIsZeros(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	d, path, buf := onDisk(t, l, DiskOptions{})
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, 4096+100), 0o600); err != nil {
		t.Fatal(err)
	}
	b1, b2 := buf(4096), buf(16384)
	for _, c := range []struct {
		off  int64
		bufs [][]byte
		full int // bytes of sevens
	}{
		{0, [][]byte{b1, b2}, 4196}, {4096, [][]byte{b2}, 100}, {8192, [][]byte{b1, b2}, 0},
		{1 << 30, [][]byte{b1}, 0}, {0, [][]byte{b2}, 4196},
	} {
		for i := range b1 {
			b1[i] = 9
		}
		for i := range b2 {
			b2[i] = 9
		}
		op := &DiskOp{Kind: DiskRead, Offset: c.off, Bufs: c.bufs}
		if err := do(t, l, d, op); err != nil {
			t.Fatal(err)
		}
		for i, v := range bytes.Join(c.bufs, nil) {
			want := byte(0)
			if i < c.full {
				want = 7
			}
			if v != want {
				t.Fatalf("read at %d: byte %d is %d, want %d", c.off, i, v, want)
			}
		}
	}
}

func TestDiskDiscardAllocate(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	d, path, buf := onDisk(t, l, DiskOptions{})
	const size = 3<<20 + 4096
	if err := do(t, l, d, &DiskOp{Kind: DiskAllocate, Length: size}); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Size() != size {
		t.Fatalf("size %d after allocation (%v)", fi.Size(), err)
	}
	b := buf(65536)
	for i := range b {
		b[i] = 1
	}
	if err := do(t, l, d, &DiskOp{Kind: DiskWrite, Offset: 65536, Bufs: [][]byte{b}}); err != nil {
		t.Fatal(err)
	}
	if err := do(t, l, d, &DiskOp{Kind: DiskDiscard, Offset: 65536, Length: 8192}); err != nil {
		t.Fatal(err)
	}
	if err := do(t, l, d, &DiskOp{Kind: DiskRead, Offset: 65536, Bufs: [][]byte{b}}); err != nil {
		t.Fatal(err)
	}
	for i, v := range b {
		if (i >= 8192) != (v == 1) {
			t.Fatalf("byte %d is %d", i, v)
		}
	}
}

func TestDiskRefusesMisuse(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	d, _, buf := onDisk(t, l, DiskOptions{Size: 1 << 20})
	b := buf(8192)
	many := make([][]byte, MaxDiskBufs+1)
	for i := range many {
		many[i] = b
	}
	for i, op := range []*DiskOp{
		{Kind: DiskRead, Offset: 100, Bufs: [][]byte{b}},
		{Kind: DiskRead, Offset: -4096, Bufs: [][]byte{b}},
		{Kind: DiskRead, Bufs: [][]byte{b[:100]}},
		{Kind: DiskRead, Bufs: [][]byte{b[1:4097]}},
		{Kind: DiskRead}, {Kind: DiskWrite, Bufs: many}, {Kind: DiskWrite, Bufs: [][]byte{{}}},
		{Kind: DiskDiscard, Length: 5}, {Kind: DiskAllocate}, {Kind: 77},
		{Kind: DiskWrite, Offset: 1<<62 - 4096, Bufs: [][]byte{b}},
	} {
		if err := do(t, l, d, op); err == nil {
			t.Errorf("case %d: no error", i)
		}
	}
}

func TestDiskErrors(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	for _, path := range []string{filepath.Join(t.TempDir(), "none"), t.TempDir(), "/dev/null"} {
		on(t, l, func() {
			if _, err := l.OpenDisk(path, DiskOptions{}); err == nil {
				t.Errorf("%s opened", path)
			}
		})
	}
	path := filepath.Join(t.TempDir(), "ro")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	on(t, l, func() {
		d, err := l.OpenDisk(path, DiskOptions{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		b := l.Pool().Get(4096)
		op := &DiskOp{Kind: DiskWrite, Bufs: [][]byte{b.Bytes()}}
		op.Done = func(*DiskOp) {
			if !errors.Is(op.Err, os.ErrInvalid) && op.Err == nil {
				t.Error("a read-only file was written")
			}
			b.Release()
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
		d.Submit(op)
	})
}

// TestDiskContinuesShortTransfers pretends that the kernel transferred less than asked.
func TestDiskContinuesShortTransfers(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	disk, path, buf := onDisk(t, l, DiskOptions{Size: 1 << 20})
	d := disk.(*ringDisk)
	rng := rand.New(rand.NewSource(7))
	whole := buf(65536)
	for short := 0; short < 65536; short += 4096 {
		rng.Read(whole)
		op := &DiskOp{Kind: DiskWrite, Offset: 4096,
			Bufs: [][]byte{whole[:4096], whole[4096:32768], whole[32768:40960], whole[40960:]}}
		// What is "transferred" is put there beforehand.
		if err := os.WriteFile(path, append(make([]byte, 4096), whole[:short]...), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := doShort(t, l, d, op, short); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got[4096:4096+65536], whole) {
			t.Fatalf("short write of %d: the file differs (%v)", short, err)
		}
		want := bytes.Clone(whole)
		clear(whole[short:])
		op.Kind = DiskRead
		if err := doShort(t, l, d, op, short); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(whole, want) {
			t.Fatalf("short read of %d differs", short)
		}
	}
	op := &DiskOp{Kind: DiskWrite, Bufs: [][]byte{whole}}
	if err := doResult(t, l, d, op, 0); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("a write of nothing: %v", err)
	}
	for _, e := range []unix.Errno{unix.EINTR, unix.EAGAIN} {
		if err := doResult(t, l, d, op, -int32(e)); err != nil {
			t.Errorf("%v isn't retried: %v", e, err)
		}
	}
	if err := doResult(t, l, d, op, -int32(unix.EIO)); !errors.Is(err, unix.EIO) ||
		!strings.Contains(err.Error(), path) {
		t.Errorf("EIO is reported as %v", err)
	}
}

func doShort(t testing.TB, l *Loop, d *ringDisk, op *DiskOp, short int) error {
	t.Helper()
	if short == 0 {
		return do(t, l, d, op) // nothing at all means an error or the end
	}
	return doResult(t, l, d, op, int32(short))
}

// doResult submits op in a way that its first completion has the given result.
func doResult(t testing.TB, l *Loop, d *ringDisk, op *DiskOp, res int32) error {
	t.Helper()
	done := make(chan struct{})
	op.Done = func(*DiskOp) { close(done) }
	on(t, l, func() {
		op.Err, op.priv.d, op.priv.done, op.priv.busy = nil, d, 0, true
		op.priv.punch = op.Kind == DiskDiscard
		if err := d.check(op); err != nil {
			t.Fatal(err)
		}
		d.inFlight++
		l.diskOps++
		op.complete(0, res, 0)
	})
	await(t, done, "completion")
	return op.Err
}

// TestDiskFullFileSystem is a real short write, then a real error.
func TestDiskFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("can't mount a small file system: ", err)
	}
	l := startLoop(t, LoopOptions{})
	var d Disk
	var err error
	var b *Buf
	on(t, l, func() {
		d, err = l.OpenDisk(filepath.Join(dir, "f"), DiskOptions{Create: true})
		b = l.Pool().Get(1 << 20)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		on(t, l, func() { _ = d.Close(); b.Release() })
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	p := b.Bytes()
	op := &DiskOp{Kind: DiskWrite, Offset: 1 << 19, Bufs: [][]byte{p, p}}
	if err := do(t, l, d, op); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("write of 2 MiB to 1 MiB: %v", err)
	}
	op = &DiskOp{Kind: DiskAllocate, Length: 4 << 20}
	if err := do(t, l, d, op); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("allocation of 4 MiB of 1 MiB: %v", err)
	}
}

// TestDiskDiscardWithoutHoles discards where holes can't be punched.
func TestDiskDiscardWithoutHoles(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	disk, path, _ := onDisk(t, l, DiskOptions{})
	if err := os.WriteFile(path, bytes.Repeat([]byte{1}, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	op := &DiskOp{Kind: DiskDiscard, Offset: 4096, Length: 3 << 20}
	if err := doResult(t, l, disk.(*ringDisk), op, -int32(unix.EOPNOTSUPP)); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range got {
		if inside := i >= 4096 && i < 4096+3<<20; inside == (v == 1) {
			t.Fatalf("byte %d is %d", i, v)
		}
	}
}

// TestDiskSyncInterrupted: a sync that was interrupted isn't done.
func TestDiskSyncInterrupted(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	disk, _, _ := onDisk(t, l, DiskOptions{})
	d := disk.(*ringDisk)
	for _, e := range []unix.Errno{unix.EINTR, unix.EAGAIN} {
		op := &DiskOp{Kind: DiskSync}
		done := make(chan struct{})
		on(t, l, func() {
			op.priv.d, op.priv.busy = d, true
			op.Done = func(*DiskOp) { close(done) }
			d.inFlight++
			l.diskOps++
			op.complete(0, -int32(e), 0)
			select {
			case <-done:
				t.Errorf("%v counts as success", e)
			default:
			}
		})
		if await(t, done, "sync"); op.Err != nil {
			t.Error(op.Err)
		}
	}
}

// TestDiskDiscardsAtOnce: it turns out that holes can't be punched while others are being punched.
func TestDiskDiscardsAtOnce(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	disk, _, _ := onDisk(t, l, DiskOptions{Size: 1 << 20})
	d := disk.(*ringDisk)
	for _, res := range []int32{-int32(unix.EOPNOTSUPP), -int32(unix.EOPNOTSUPP), 0} {
		op := &DiskOp{Kind: DiskDiscard, Length: 8192}
		if err := doResult(t, l, d, op, res); err != nil {
			t.Errorf("result %d: %v", res, err)
		}
	}
}

// TestDiskBlockDevice works on a loop device.
func TestDiskBlockDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", path).Output()
	if err != nil {
		t.Skip("no loop device: ", err)
	}
	dev := strings.TrimSpace(string(out))
	l := startLoop(t, LoopOptions{})
	var d Disk
	var b *Buf
	on(t, l, func() {
		b = l.Pool().Get(65536)
		d, err = l.OpenDisk(dev, DiskOptions{Size: 8 << 20})
		if _, err := l.OpenDisk(dev, DiskOptions{Size: 8<<20 + 1}); err == nil {
			t.Error("a device too small was opened")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		on(t, l, func() { _ = d.Close(); b.Release() })
		_ = exec.Command("losetup", "-d", dev).Run()
	})
	if d.Size() != 8<<20 {
		t.Errorf("size %d", d.Size())
	}
	p := b.Bytes()[:65536]
	for i := range p {
		p[i] = 5
	}
	for _, op := range []*DiskOp{{Kind: DiskWriteSync, Offset: 1 << 20, Bufs: [][]byte{p}},
		{Kind: DiskDiscard, Offset: 1 << 20, Length: 4096}, {Kind: DiskSync},
		{Kind: DiskRead, Offset: 1 << 20, Bufs: [][]byte{p}}} {
		if err := do(t, l, d, op); err != nil {
			t.Fatal(err)
		}
	}
	if p[0] != 0 || p[4095] != 0 || p[4096] != 5 {
		t.Errorf("after discard: %d %d %d", p[0], p[4095], p[4096])
	}
}
