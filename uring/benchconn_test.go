package uring

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

const benchRequest = 64 // bytes of a request and of an answer's header

// answerer answers each request with a header and payload bytes out of a pool buffer.
type answerer struct {
	l       *Loop
	c       Conn
	payload int
}

func (a *answerer) Recv(p []byte) (int, []byte) {
	n := 0
	for ; len(p)-n >= benchRequest; n += benchRequest {
		copy(a.c.Reserve(benchRequest), p[n:])
		if a.payload > 0 {
			b := a.l.Pool().Get(a.payload)
			a.c.AppendBuf(b, 0, a.payload)
			b.Release()
		}
	}
	return n, nil
}

func (a *answerer) RecvDone()    {}
func (a *answerer) Closed(error) {}

// asker keeps depth requests under way. Payloads of at least direct bytes are received straight
// into buf.
type asker struct {
	c       Conn
	payload int
	direct  int
	buf     *Buf
	left    int
	busy    int
	done    chan struct{}
	skip    int // bytes of the current payload still to come
}

func (a *asker) ask() {
	if a.left == 0 {
		if a.busy--; a.busy == 0 {
			a.done <- struct{}{}
		}
		return
	}
	a.left--
	a.c.Reserve(benchRequest)[0] = 1
}

func (a *asker) Recv(p []byte) (int, []byte) {
	n := 0
	for {
		k := min(a.skip, len(p)-n)
		if n += k; k > 0 || a.payload == 0 {
			if a.skip -= k; a.skip == 0 && k > 0 {
				a.ask()
			}
		}
		if a.skip > 0 {
			if a.skip >= a.direct {
				return n, a.buf.Bytes()[:a.skip]
			}
			return n, nil
		}
		if len(p)-n < benchRequest {
			return n, nil
		}
		n += benchRequest
		if a.skip = a.payload; a.payload == 0 {
			a.ask()
		}
	}
}

func (a *asker) RecvDone() {
	a.skip = 0
	a.ask()
}

func (a *asker) Closed(error) {}

func (a *asker) run(n, depth int) {
	a.left, a.busy = n, depth
	for range depth {
		a.ask()
	}
}

var connVariants = []struct {
	name string
	o    LoopOptions
}{
	{"plain", LoopOptions{Ring: RingOptions{Flags: PlainFlags}}},
	{"single", LoopOptions{Ring: RingOptions{Flags: SetupSingleIssuer}}},
	{"coop", LoopOptions{Ring: RingOptions{Flags: SetupCoopTaskrun | SetupTaskrunFlag |
		SetupSingleIssuer}}},
	{"defer", LoopOptions{Ring: RingOptions{Flags: SetupSingleIssuer | SetupDeferTaskrun}}},
}

// BenchmarkConn is request and answer between two loops over loopback TCP. cpu-us/op is the
// processor time of both.
func BenchmarkConn(b *testing.B) {
	for _, c := range []struct {
		name           string
		payload, depth int
	}{{"QD1-64B", 0, 1}, {"QD32-4K", 4096, 32}, {"QD128-4K", 4096, 128}, {"QD8-64K", 65536, 8}} {
		for _, v := range connVariants {
			b.Run(c.name+"/"+v.name, func(b *testing.B) { benchConn(b, v.o, c.payload, c.depth) })
		}
	}
}

func benchConn(b *testing.B, o LoopOptions, payload, depth int) {
	server := startLoop(b, o)
	benchAsk(b, server, o, payload, depth, func(c Conn) ConnHandler {
		return &answerer{l: server, c: c, payload: payload}
	})
}

func benchAsk(b *testing.B, server *Loop, o LoopOptions, payload, depth int,
	attach func(Conn) ConnHandler) {
	client := startLoop(b, o)
	addr := listen(b, server, attach)
	a := &asker{payload: payload, direct: 16 << 10, done: make(chan struct{}, 1)}
	connected := make(chan error, 1)
	client.Post(func() {
		a.buf = client.Pool().Get(max(1, payload))
		client.Dial(addr, func(c Conn) ConnHandler { a.c = c; return a },
			func(_ Conn, err error) { connected <- err })
	})
	if err := <-connected; err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	before, cpu := statsOf(b, server), cpuTime(unix.RUSAGE_SELF)
	client.Post(func() { a.run(b.N, depth) })
	<-a.done
	b.StopTimer()
	cpu = cpuTime(unix.RUSAGE_SELF) - cpu
	after := statsOf(b, server)
	b.ReportMetric(float64(cpu)/1e3/float64(b.N), "cpu-us/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
	b.ReportMetric(float64(after.Enters-before.Enters)/float64(b.N), "srv-enters/op")
	on(b, client, func() { a.buf.Release() })
}

// diskAnswerer answers each request with 4 KiB read from a random place of a disk: the skeleton of
// a chunk server's read path.
type diskAnswerer struct {
	l    *Loop
	c    Conn
	d    Disk
	free *diskAnswer
	t    testing.TB
}

type diskAnswer struct {
	a    *diskAnswerer
	op   DiskOp
	bufs [1][]byte
	buf  *Buf
	next *diskAnswer
}

func (a *diskAnswerer) Recv(p []byte) (int, []byte) {
	n := 0
	for ; len(p)-n >= benchRequest; n += benchRequest {
		r := a.free
		if r == nil {
			r = &diskAnswer{a: a}
			r.op.Done = r.done
		} else {
			a.free = r.next
		}
		r.buf = a.l.Pool().Get(4096)
		r.bufs[0] = r.buf.Bytes()
		r.op.Bufs = r.bufs[:]
		r.op.Offset = int64(a.l.Rand()%uint64(a.d.Size()/4096)) * 4096
		a.d.Submit(&r.op)
	}
	return n, nil
}

func (r *diskAnswer) done(op *DiskOp) {
	a := r.a
	if op.Err != nil {
		a.t.Error(op.Err)
	}
	clear(a.c.Reserve(benchRequest))
	a.c.AppendBuf(r.buf, 0, 4096)
	r.buf.Release()
	r.next, a.free = a.free, r
}

func (a *diskAnswerer) RecvDone()    {}
func (a *diskAnswerer) Closed(error) {}

// BenchmarkReadServer is 4 KiB random reads over one loopback connection: network and disk in one
// loop on the server's side.
func BenchmarkReadServer(b *testing.B) {
	path := benchDisk(b)
	for _, depth := range []int{1, 32, 128} {
		for _, v := range connVariants {
			b.Run(fmt.Sprintf("QD%d/%s", depth, v.name), func(b *testing.B) {
				server := startLoop(b, v.o)
				a := &diskAnswerer{l: server, t: b}
				on(b, server, func() {
					var err error
					if a.d, err = server.OpenDisk(path, DiskOptions{}); err != nil {
						b.Fatal(err)
					}
				})
				benchAsk(b, server, v.o, 4096, depth, func(c Conn) ConnHandler { a.c = c; return a })
			})
		}
	}
}
