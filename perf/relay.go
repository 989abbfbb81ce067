package perf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"pstorage/uring"
)

// A hop of a chain receives parts and passes them on, and has each in an aligned buffer, too, where
// it is checked and written to disk from. RelayMethods are ways to do that:
//
//	copy         RECV into the buffer, SEND from it, by the ring: what chains do
//	send-zc      the same with SEND_ZC
//	splice       splice(socket, pipe), tee to a second pipe, read of the first into the buffer,
//	             splice(second pipe, socket), by system calls
//	ring-splice  the same with the splices and the tee by the ring
var RelayMethods = []string{"copy", "send-zc", "splice", "ring-splice"}

// RelayResult is what one method does with parts of one size.
type RelayResult struct {
	Method   string  `json:"method"`
	PartSize int     `json:"part_size"`
	MBps     float64 `json:"mb_per_s"` // 10^6 bytes
	// CPUPerMiB is the time of the hop's thread and the kernel's workers for it, µs per MiB; the
	// source's and the sink's aren't in it.
	CPUPerMiB float64 `json:"cpu_us_per_mib"`
}

// hop is the one in the middle.
type hop struct {
	in, out int
	ring    *uring.Ring
	arena   []byte
	a, b    [2]int // pipes
}

const relayPipe = 1 << 20

// MeasureRelay passes parts of the given size on for d, over the loopback interface.
func MeasureRelay(ctx context.Context, method string, size int, d time.Duration) (RelayResult,
	error) {
	r := RelayResult{Method: method, PartSize: size}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	h, err := newHop(size)
	if err != nil {
		return r, err
	}
	defer h.close()
	ends, err := h.connect()
	if err != nil {
		return r, err
	}
	defer ends.close()
	pass, err := h.method(method)
	if err != nil {
		return r, err
	}
	for range 50 { // warm-up: windows of TCP, pages of pipes
		if err := pass(size); err != nil {
			return r, fmt.Errorf("pass %d bytes on by %s: %w", size, method, err)
		}
	}
	before, err := ends.cpuOfHop()
	if err != nil {
		return r, err
	}
	begin, parts := time.Now(), 0
	for time.Since(begin) < d && ctx.Err() == nil {
		if err := pass(size); err != nil {
			return r, fmt.Errorf("pass %d bytes on by %s: %w", size, method, err)
		}
		parts++
	}
	took := time.Since(begin)
	after, err := ends.cpuOfHop()
	if err != nil {
		return r, err
	}
	total := float64(parts) * float64(size)
	r.MBps = total / took.Seconds() / 1e6
	r.CPUPerMiB = float64(after-before) / 1e3 / (total / (1 << 20))
	return r, ctx.Err()
}

func newHop(size int) (*hop, error) {
	h := &hop{in: -1, out: -1, a: [2]int{-1, -1}, b: [2]int{-1, -1}}
	var err error
	if h.ring, err = uring.NewRing(uring.RingOptions{Entries: 16}); err != nil {
		return nil, err
	}
	h.arena, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	for _, p := range []*[2]int{&h.a, &h.b} {
		if err == nil {
			err = unix.Pipe2(p[:], unix.O_CLOEXEC)
		}
		if err == nil {
			_, err = unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, relayPipe)
		}
	}
	if err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *hop) close() {
	h.ring.Close() // nothing is in flight
	for _, fd := range []int{h.in, h.out, h.a[0], h.a[1], h.b[0], h.b[1]} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	if h.arena != nil {
		_ = unix.Munmap(h.arena)
	}
}

func (h *hop) method(name string) (func(n int) error, error) {
	switch name {
	case "copy":
		return func(n int) error { return h.copyPart(n, false) }, nil
	case "send-zc":
		return func(n int) error { return h.copyPart(n, true) }, nil
	case "splice":
		return h.splicePart, nil
	case "ring-splice":
		return h.ringSplicePart, nil
	}
	return nil, fmt.Errorf("method %q: there are %q", name, RelayMethods)
}

func addr(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }

// do submits one entry and returns its result.
func (h *hop) do(prepare func(*uring.SQE)) (int, uint32, error) {
	s := h.ring.SQE()
	prepare(s)
	s.SetUserData(1)
	return h.reap()
}

func (h *hop) reap() (int, uint32, error) {
	var out [1]uring.CQE
	for h.ring.Reap(out[:]) == 0 {
		if err := h.ring.Wait(1, uring.Forever, 0); err != nil {
			return 0, 0, err
		}
	}
	res := out[0].Result()
	if res < 0 {
		return 0, 0, unix.Errno(-res)
	}
	return int(res), out[0].Flags(), nil
}

var errSourceEnded = errors.New("the source has ended")

// copyPart receives a part and sends it.
func (h *hop) copyPart(n int, zc bool) error {
	got, _, err := h.do(func(s *uring.SQE) {
		uring.PrepRecv(s, uring.FD(h.in), addr(h.arena), uint32(n), unix.MSG_WAITALL, false)
	})
	if err != nil || got < n {
		return errors.Join(err, errSourceEnded)
	}
	const flags = unix.MSG_NOSIGNAL | unix.MSG_WAITALL
	for sent := 0; sent < n; {
		var more uint32
		k, f, err := h.do(func(s *uring.SQE) {
			if zc {
				uring.PrepSendZC(s, uring.FD(h.out), addr(h.arena[sent:]), uint32(n-sent), flags)
			} else {
				uring.PrepSend(s, uring.FD(h.out), addr(h.arena[sent:]), uint32(n-sent), flags)
			}
		})
		if err != nil {
			return err
		}
		if more = f & uring.CQEMore; more != 0 { // the buffer is ours again
			if _, _, err := h.reap(); err != nil {
				return err
			}
		}
		sent += k
	}
	return nil
}

// splicePart passes a part on by splice and tee.
func (h *hop) splicePart(n int) error {
	return h.relay(n, func(in, out, n int) (int, error) {
		k, err := unix.Splice(in, nil, out, nil, n, unix.SPLICE_F_MOVE)
		return int(k), err
	}, func(in, out, n int) (int, error) {
		k, err := unix.Tee(in, out, n, 0)
		return int(k), err
	})
}

// ringSplicePart is splicePart by the ring.
func (h *hop) ringSplicePart(n int) error {
	return h.relay(n, func(in, out, n int) (int, error) {
		k, _, err := h.do(func(s *uring.SQE) {
			uring.PrepSplice(s, in, out, uint32(n), unix.SPLICE_F_MOVE)
		})
		return k, err
	}, func(in, out, n int) (int, error) {
		k, _, err := h.do(func(s *uring.SQE) { uring.PrepTee(s, in, out, uint32(n), 0) })
		return k, err
	})
}

func (h *hop) relay(n int, splice, tee func(in, out, n int) (int, error)) error {
	for got := 0; got < n; {
		k, err := splice(h.in, h.a[1], n-got)
		if err != nil || k == 0 {
			return errors.Join(err, errSourceEnded)
		}
		if d, err := tee(h.a[0], h.b[1], k); err != nil || d != k {
			return errors.Join(err, fmt.Errorf("tee doubled %d of %d bytes", d, k))
		}
		if r, err := unix.Read(h.a[0], h.arena[got:got+k]); err != nil || r != k {
			return errors.Join(err, fmt.Errorf("read %d of %d bytes of the pipe", r, k))
		}
		for sent := 0; sent < k; {
			s, err := splice(h.b[0], h.out, k-sent)
			if err != nil {
				return err
			}
			sent += s
		}
		got += k
	}
	return nil
}

// relayEnds are the source and the sink, a thread each.
type relayEnds struct {
	source, sink int // sockets
	tids         [2]atomic.Int64
	stopped      atomic.Bool
	done         chan struct{}
}

// connect makes the two connections and starts source and sink.
func (h *hop) connect() (*relayEnds, error) {
	e := &relayEnds{source: -1, sink: -1, done: make(chan struct{}, 2)}
	var err error
	if e.source, h.in, err = tcpPair(); err != nil {
		return nil, err
	}
	if h.out, e.sink, err = tcpPair(); err != nil {
		unix.Close(e.source)
		return nil, err
	}
	go e.pump(0, func(buf []byte) (int, error) { return unix.Write(e.source, buf) })
	go e.pump(1, func(buf []byte) (int, error) {
		// MSG_TRUNC: a TCP socket throws away what it would copy.
		n, _, err := unix.Recvfrom(e.sink, buf, unix.MSG_TRUNC)
		if err == nil && n == 0 {
			err = errSourceEnded
		}
		return n, err
	})
	for e.tids[0].Load() == 0 || e.tids[1].Load() == 0 {
		runtime.Gosched()
	}
	return e, nil
}

// pump is the thread of an end.
func (e *relayEnds) pump(i int, do func([]byte) (int, error)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer func() { e.done <- struct{}{} }()
	buf := bytes.Repeat([]byte("pattern."), 1<<17)
	e.tids[i].Store(int64(unix.Gettid()))
	for !e.stopped.Load() {
		if _, err := do(buf); err != nil && err != unix.EINTR {
			return
		}
	}
}

func (e *relayEnds) close() {
	e.stopped.Store(true)
	for _, fd := range []int{e.source, e.sink} {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
	}
	<-e.done
	<-e.done
	_ = unix.Close(e.source)
	_ = unix.Close(e.sink)
}

// cpuOfHop is the time of this process without source and sink, in ns.
func (e *relayEnds) cpuOfHop() (int64, error) {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	cpu := u.Utime.Nano() + u.Stime.Nano()
	for i := range e.tids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/schedstat", e.tids[i].Load()))
		if err != nil {
			return 0, err
		}
		var ns int64
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			return 0, err
		}
		cpu -= ns
	}
	return cpu, nil
}

// tcpPair returns the two ends of a connection over loopback.
func tcpPair() (a, b int, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return -1, -1, err
	}
	defer l.Close()
	dialled, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return -1, -1, err
	}
	defer dialled.Close()
	accepted, err := l.Accept()
	if err != nil {
		return -1, -1, err
	}
	defer accepted.Close()
	if a, err = plainFD(dialled); err != nil {
		return -1, -1, err
	}
	if b, err = plainFD(accepted); err != nil {
		unix.Close(a)
		return -1, -1, err
	}
	return a, b, nil
}

// plainFD returns a blocking file descriptor of a connection, of its own.
func plainFD(c net.Conn) (int, error) {
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		return -1, err
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return fd, unix.SetNonblock(fd, false)
}

// RelayRow measures all methods with parts of one size, in rounds, and returns the medians.
func RelayRow(ctx context.Context, size, rounds int, d time.Duration) ([]RelayResult, error) {
	all := make([][2][]float64, len(RelayMethods))
	for range rounds {
		for i, method := range RelayMethods {
			r, err := MeasureRelay(ctx, method, size, d)
			if err != nil {
				return nil, err
			}
			all[i][0] = append(all[i][0], r.MBps)
			all[i][1] = append(all[i][1], r.CPUPerMiB)
		}
	}
	results := make([]RelayResult, len(RelayMethods))
	for i, method := range RelayMethods {
		results[i] = RelayResult{Method: method, PartSize: size, MBps: Median(all[i][0]),
			CPUPerMiB: Median(all[i][1])}
	}
	return results, nil
}
