package uring

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// oldKernels are loops as older kernels allow them.
func oldKernels() map[string]LoopOptions {
	deny := SetupNoSQArray | SetupSingleIssuer | SetupDeferTaskrun | SetupCoopTaskrun |
		SetupTaskrunFlag
	return map[string]LoopOptions{
		"waiting for 8": {WaitFor: 8, WaitTime: 50 * time.Microsecond},
		"5.19":          {Ring: RingOptions{denyFlags: deny &^ (SetupCoopTaskrun | SetupTaskrunFlag)}},
		"5.11":          {Ring: RingOptions{denyFlags: deny | SetupSubmitAll, denyOps519: true}},
		"5.6": {NoRegister: true, Ring: RingOptions{denyFlags: deny | SetupSubmitAll | SetupDisabled,
			denyFeat: featExtArg | featMinTimeout, denyOps519: true}},
	}
}

// TestLoopOnOldKernels runs timers, disk and connections with what older kernels have.
func TestLoopOnOldKernels(t *testing.T) {
	for name, o := range oldKernels() {
		t.Run(name, func(t *testing.T) {
			l := startLoop(t, o)
			d, _, buf := onDisk(t, l, DiskOptions{Size: 1 << 20})
			b := buf(4096)
			copy(b, name)
			for _, op := range []*DiskOp{{Kind: DiskWriteSync, Bufs: [][]byte{b}},
				{Kind: DiskRead, Bufs: [][]byte{b}}, {Kind: DiskSync}} {
				if err := do(t, l, d, op); err != nil {
					t.Fatal(err)
				}
			}
			if string(b[:len(name)]) != name {
				t.Error("read differs")
			}
			fired := make(chan int64, 3)
			on(t, l, func() {
				start := l.Now()
				for _, ms := range []int64{30, 10, 20} {
					tm := &Timer{}
					tm.Fire = func() { fired <- l.Now() - start - ms*1e6 }
					l.Arm(tm, ms*1e6)
				}
			})
			for range 3 {
				if late := await(t, fired, "timer"); late < 0 || late > 5e9 {
					t.Errorf("timer fired %d ns late", late)
				}
			}
			testManyConnections(t, l, l, 10, 20)
		})
	}
}

// TestLoopTinyQueues makes everything wait for everything: 8 submission entries, 16 completions.
func TestLoopTinyQueues(t *testing.T) {
	for _, flags := range []uint32{PlainFlags, DefaultFlags} {
		o := LoopOptions{Ring: RingOptions{Entries: 8, CQEntries: 16, Flags: flags}}
		l := startLoop(t, o)
		d, _, _ := onDisk(t, l, DiskOptions{Size: 1 << 20})
		const ops = 500
		left := ops
		done := make(chan struct{})
		on(t, l, func() {
			b := l.Pool().Get(4096)
			for i := range ops {
				op := &DiskOp{Kind: DiskRead, Offset: int64(i%256) * 4096, Low: i%3 == 0}
				op.Bufs = [][]byte{b.Bytes()}
				op.Done = func(*DiskOp) {
					if op.Err != nil {
						t.Error(op.Err)
					}
					if l.diskOps > 4 {
						t.Errorf("%d disk operations in flight, want at most 4", l.diskOps)
					}
					if left--; left == 0 {
						b.Release()
						close(done)
					}
				}
				d.Submit(op)
			}
		})
		testManyConnections(t, l, l, 100, 10)
		await(t, done, "last read")
	}
}

// TestLoopBeforeRun asks for more than the submission queue holds before the loop runs.
func TestLoopBeforeRun(t *testing.T) {
	l, err := NewLoop(LoopOptions{PoolSize: 1 << 20, Log: quiet, Ring: RingOptions{Entries: 4}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := l.OpenDisk(filepath.Join(t.TempDir(), "f"), DiskOptions{Create: true, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	b := l.Pool().Get(4096)
	const ops = 50
	left := ops
	for i := range ops {
		d.Submit(&DiskOp{Offset: int64(i) * 4096, Bufs: [][]byte{b.Bytes()}, Done: func(op *DiskOp) {
			if op.Err != nil {
				t.Error(op.Err)
			}
			if left--; left == 0 {
				b.Release()
				l.Stop()
			}
		}})
	}
	addr, _, err := l.Listen("127.0.0.1:0", echo)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		l.Dial(addr, echo, func(_ Conn, err error) {
			if err != nil && !errors.Is(err, ErrStopped) {
				t.Error(err)
			}
		})
	}
	if err := l.Run(); err != nil {
		t.Error(err)
	}
	if left != 0 {
		t.Errorf("%d reads not done", left)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestDiskCloseAfterRun closes disks when the loop has ended, by the owner and by Loop.Close.
func TestDiskCloseAfterRun(t *testing.T) {
	l, err := NewLoop(LoopOptions{PoolSize: 1 << 20, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	var disks []Disk
	for _, name := range []string{"a", "b"} {
		d, err := l.OpenDisk(filepath.Join(t.TempDir(), name), DiskOptions{Create: true})
		if err != nil {
			t.Fatal(err)
		}
		disks = append(disks, d)
	}
	ran := make(chan error)
	go func() { ran <- l.Run() }()
	on(t, l, func() {})
	l.Stop()
	if err := await(t, ran, "end of Run"); err != nil {
		t.Fatal(err)
	}
	if err := disks[0].Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, d := range disks {
		if err := d.Close(); err == nil {
			t.Error("a second Close closed something")
		}
	}
}

// TestLowOpsYield checks that background operations are few while others are under way, and that
// they get done.
func TestLowOpsYield(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	disk, _, _ := onDisk(t, l, DiskOptions{Size: 4 << 20, LowDepth: 8})
	d := disk.(*ringDisk)
	done := make(chan struct{})
	mostBeside, mostAlone := 0, 0
	on(t, l, func() {
		b := l.Pool().Get(4096)
		left, normal := 400, 0
		for i := range 400 {
			op := &DiskOp{Kind: DiskRead, Offset: int64(i) * 4096, Low: i%2 == 0,
				Bufs: [][]byte{b.Bytes()}}
			op.Done = func(*DiskOp) {
				if normal > 0 {
					mostBeside = max(mostBeside, d.lowFlying)
				} else {
					mostAlone = max(mostAlone, d.lowFlying)
				}
				if !op.Low {
					normal--
				}
				if left--; left == 0 {
					b.Release()
					close(done)
				}
			}
			if !op.Low {
				normal++
			}
			d.Submit(op)
		}
	})
	await(t, done, "last operation")
	if mostBeside > 2 || mostAlone > 8 || mostAlone <= 2 {
		t.Errorf("up to %d low operations beside others (at most 2), %d alone (at most 8)",
			mostBeside, mostAlone)
	}
}

// TestStopUnderLoad stops a loop with everything under way: all callbacks come, nothing leaks.
func TestStopUnderLoad(t *testing.T) {
	for range 10 {
		l, err := NewLoop(LoopOptions{PoolSize: 8 << 20, Log: quiet, MaxDiskOps: 16})
		if err != nil {
			t.Fatal(err)
		}
		ran := make(chan error, 1)
		go func() { ran <- l.Run() }()
		path := filepath.Join(t.TempDir(), "f")
		var ops, stopped, closed, conns atomic.Int64
		deaf := deafListener(t)
		started := make(chan struct{})
		l.Post(func() {
			defer close(started)
			d, err := l.OpenDisk(path, DiskOptions{Create: true})
			if err != nil {
				t.Error(err)
				return
			}
			b := l.Pool().Get(1 << 20)
			for i := range 200 {
				ops.Add(1)
				b.Retain()
				d.Submit(&DiskOp{Kind: DiskWriteSync, Offset: int64(i) << 20, Low: i%2 == 0,
					Bufs: [][]byte{b.Bytes()}, Done: func(op *DiskOp) {
						b.Release()
						ops.Add(-1)
						if errors.Is(op.Err, ErrStopped) {
							stopped.Add(1)
						}
					}})
			}
			addr, _, err := l.Listen("127.0.0.1:0", echo)
			if err != nil {
				t.Error(err)
			}
			for i := range 20 {
				p := &peer{closed: func(error) { closed.Add(1) }}
				to := addr
				if i%4 == 0 {
					to = deaf
				}
				conns.Add(1)
				l.Dial(to, func(c Conn) ConnHandler { c.AppendBuf(b, 0, 1<<20); return p },
					func(_ Conn, err error) {
						if err != nil {
							closed.Add(1)
						}
					})
			}
			b.Release()
		})
		await(t, started, "start")
		l.Stop()
		if err := await(t, ran, "end of Run"); err != nil {
			t.Fatal(err)
		}
		if ops.Load() != 0 || closed.Load() != conns.Load() || stopped.Load() == 0 {
			t.Errorf("%d operations not done, %d stopped, %d of %d connections ended",
				ops.Load(), stopped.Load(), closed.Load(), conns.Load())
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestLoopUnderCollector keeps the collector and the scheduler busy while everything runs.
func TestLoopUnderCollector(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	for range 2 {
		go func() {
			var keep [][]byte
			for {
				select {
				case <-stop:
					return
				default:
					keep = append(keep, make([]byte, 4096))
					if len(keep) > 1000 {
						keep = nil
						runtime.GC()
					}
				}
			}
		}()
	}
	server, client := startLoop(t, LoopOptions{}), startLoop(t, LoopOptions{})
	d, _, buf := onDisk(t, server, DiskOptions{})
	testManyConnections(t, server, client, 20, 50)
	rng := rand.New(rand.NewSource(4))
	b, c := buf(65536), buf(65536)
	for range 30 {
		rng.Read(b)
		op := &DiskOp{Kind: DiskWrite, Offset: int64(rng.Intn(100)) * 4096,
			Bufs: [][]byte{b[:8192], b[8192:]}}
		if err := do(t, server, d, op); err != nil {
			t.Fatal(err)
		}
		rd := &DiskOp{Kind: DiskRead, Offset: op.Offset, Bufs: [][]byte{c}}
		if err := do(t, server, d, rd); err != nil || !bytes.Equal(b, c) {
			t.Fatalf("read differs (%v)", err)
		}
	}
}

// TestMemlockRefusal runs without CAP_IPC_LOCK and with a small limit.
func TestMemlockRefusal(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to drop CAP_IPC_LOCK in one thread")
	}
	runtime.LockOSThread() // not unlocked: the thread ends with the test's goroutine
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &old); err != nil {
		t.Fatal(err)
	}
	small := unix.Rlimit{Cur: 64 << 10, Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &small); err != nil {
		t.Skip(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_MEMLOCK, &old)
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		t.Skip(err)
	}
	caps[0].Effective &^= 1 << unix.CAP_IPC_LOCK
	if err := unix.Capset(&hdr, &caps[0]); err != nil {
		t.Skip(err)
	}
	var said bytes.Buffer
	l, err := NewLoop(LoopOptions{Log: slog.New(slog.NewTextHandler(&said, nil)),
		PoolSize: 16 << 20, Ring: RingOptions{Entries: 64}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Registered() || !strings.Contains(said.String(), "LimitMEMLOCK") {
		t.Errorf("registered: %v; the log says %q", l.Registered(), said.String())
	}
}

// TestPostedWorkWakesASleepingLoop looks for lost wake-ups: each round lets the loop fall asleep.
func TestPostedWorkWakesASleepingLoop(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	back := make(chan struct{}, 1)
	w := Work{Run: func(*Work) { back <- struct{}{} }}
	for i := range 3000 {
		if i%100 == 0 {
			time.Sleep(time.Millisecond) // surely asleep
		}
		l.PostWork(&w)
		await(t, back, "wake-up")
	}
}
