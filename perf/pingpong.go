package perf

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// pingBytes is the size of a message: a frame without payload.
const pingBytes = 64

// PingPong is a yardstick for latencies: a message goes to another thread over a loopback TCP
// connection and comes back, for w.Time, one at a time. Both sleep in recv(2), so what is measured
// is the kernel's network path and two wake-ups.
func PingPong(ctx context.Context, w Workload) (r Result, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return r, err
	}
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return r, err
	}
	defer near.Close()
	far, err := l.Accept()
	if err != nil {
		return r, err
	}
	defer far.Close()
	echo, err := blockingFD(far)
	if err != nil {
		return r, err
	}
	defer unix.Close(echo)
	fd, err := blockingFD(near)
	if err != nil {
		return r, err
	}
	defer unix.Close(fd)
	ended := make(chan error, 1)
	go func() { ended <- bounce(echo) }()
	hist, err := pings(ctx, fd, w.Time)
	_ = unix.Shutdown(fd, unix.SHUT_WR) // ends bounce
	if err = errors.Join(err, <-ended); err != nil {
		return r, err
	}
	return Result{Ops: hist.Count(), Seconds: w.Time.Seconds(),
		IOPS: float64(hist.Count()) / w.Time.Seconds(), Latency: hist.Latency()}, nil
}

// blockingFD returns a descriptor of its own of a connection, outside the Go poller.
func blockingFD(c net.Conn) (int, error) {
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		return -1, err
	}
	defer f.Close()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		return -1, err
	}
	return fd, unix.SetNonblock(fd, false)
}

// bounce sends back what comes until the other side ends.
func bounce(fd int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	msg := make([]byte, pingBytes)
	for {
		if err := full(unix.Read, fd, msg); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		if err := full(unix.Write, fd, msg); err != nil {
			return err
		}
	}
}

func pings(ctx context.Context, fd int, d time.Duration) (*Hist, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	msg := make([]byte, pingBytes)
	hist := new(Hist)
	for begun, now := time.Now(), time.Now(); now.Sub(begun) < d && ctx.Err() == nil; {
		if err := full(unix.Write, fd, msg); err != nil {
			return hist, err
		}
		if err := full(unix.Read, fd, msg); err != nil {
			return hist, err
		}
		after := time.Now()
		hist.Add(int64(after.Sub(now)))
		now = after
	}
	return hist, ctx.Err()
}

// full reads or writes all of p. The end of the stream before its first byte is io.EOF.
func full(call func(int, []byte) (int, error), fd int, p []byte) error {
	for done := 0; done < len(p); {
		n, err := call(fd, p[done:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0 && done == 0:
			return io.EOF
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			done += n
		}
	}
	return nil
}
