package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/uring"
)

// world is a server without a loop: ops are done when it says so, in any order.
type world struct {
	t      testing.TB
	now    int64
	timers uring.TimerHeap
	pool   *uring.Pool
	s      *Server
	mem    []byte
	ops    []*client.Op
	posted chan func() // by the goroutines of BLOCK_STATUS and RESIZE
	fail   error

	writers int
	right   client.Right // of who opens now
	resized client.Right // that the last resize was by
}

func (w *world) Now() int64                   { return w.now }
func (w *world) Rand() uint64                 { return 1 }
func (w *world) Arm(t *uring.Timer, d int64)  { w.timers.Arm(t, w.now+d) }
func (w *world) Disarm(t *uring.Timer)        { w.timers.Disarm(t) }
func (w *world) AtTurnEnd(e *uring.TurnEnder) { panic("not used") }

func (w *world) Submit(op *client.Op) { w.ops = append(w.ops, op) }
func (w *world) Cancel(op *client.Op) {
	i := slices.Index(w.ops, op)
	w.ops = slices.Delete(w.ops, i, i+1)
	w.posted <- func() {
		op.Err = dataplane.E("operation", dataplane.Closed, nil)
		op.Done(op)
	}
}
func (w *world) OpenForWrite() client.Right {
	w.writers++
	return w.right
}
func (w *world) CloseForWrite()                { w.writers-- }
func (w *world) Size() uint64                  { return uint64(len(w.mem)) }
func (w *world) Refresh(context.Context) error { return nil }
func (w *world) Resize(_ context.Context, r client.Right, n uint64) error {
	w.resized = r
	w.mem = append(w.mem[:min(n, uint64(len(w.mem)))], make([]byte, int(n)-min(int(n), len(w.mem)))...)
	return nil
}
func (w *world) Seek(context.Context, int64, bool) (int64, error) {
	return 0, dataplane.E("seek", dataplane.NotFound, nil)
}

// step does the i-th op that is under way.
func (w *world) step(i int) {
	op := w.ops[i]
	w.ops = append(w.ops[:i], w.ops[i+1:]...)
	op.Err, op.N = w.fail, 0
	if w.fail == nil {
		switch op.Kind {
		case client.Read:
			op.N = copy(op.Buf, w.mem[op.Offset:])
		case client.Write:
			op.N = copy(w.mem[op.Offset:], op.Buf)
		case client.Zero:
			clear(w.mem[op.Offset : op.Offset+op.Length])
		}
	}
	op.Done(op)
}

// waits is how many requests are with goroutines.
func (c *conn) waits() int {
	if c.recv != nil {
		return c.live - 1
	}
	return c.live
}

// settle runs timers and ops, in random order, until nothing is left.
func (w *world) settle(c *fakeConn) {
	for range 100000 {
		if len(w.ops) > 0 {
			w.step(rand.IntN(len(w.ops)))
			continue
		}
		w.now += breath
		t := w.timers.Pop(w.now)
		if t == nil {
			if _, armed := w.timers.Next(); armed || c.feed() {
				continue
			}
			if c.h.(*conn).waits() == 0 {
				return
			}
			(<-w.posted)()
			continue
		}
		t.Fire()
		c.feed()
	}
	w.t.Fatal("it never comes to rest")
}

func newWorld(t testing.TB, size int) *world {
	pool, err := uring.NewPool(128 << 20)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, pool: pool, mem: make([]byte, size), posted: make(chan func(), maxRequests)}
	w.s = newServer(w, pool, func(f func()) { w.posted <- f }, nil, slog.New(slog.DiscardHandler))
	w.s.exports = []*export{{name: "disk", dev: w}, {name: "ro", dev: w, readOnly: true}}
	t.Cleanup(func() {
		w.s.stop()
		if n := pool.InUse(); n != 0 {
			t.Errorf("%d bytes of buffers are still in use", n)
		}
		pool.Close()
	})
	return w
}

// fakeConn is both a uring.Conn and the kernel behind it.
type fakeConn struct {
	w      *world
	h      uring.ConnHandler
	in     []byte // not given to the handler yet
	into   []byte
	got    int
	out    []byte
	paused bool
	closed bool
	hungUp bool
	step   int // most bytes in one receive

	stopped bool // the client takes nothing of what is sent
	queued  int
	bufs    []*uring.Buf
}

func (f *fakeConn) Append(p []byte) {
	if f.stopped {
		f.queued += len(p)
	}
	f.out = append(f.out, p...)
}
func (f *fakeConn) Reserve(n int) []byte {
	if n > 4096 {
		panic("too much reserved")
	}
	f.Append(make([]byte, n))
	return f.out[len(f.out)-n:]
}
func (f *fakeConn) AppendBuf(b *uring.Buf, from, to int) {
	if f.stopped {
		b.Retain()
		f.bufs, f.queued = append(f.bufs, b), f.queued+to-from
		return
	}
	f.Append(b.Bytes()[from:to])
}
func (f *fakeConn) Queued() int { return f.queued }
func (f *fakeConn) Close(err error) {
	f.closed = true
	f.take(f.queued)
}
func (f *fakeConn) RemoteAddr() string { return "test" }
func (f *fakeConn) PauseRecv(p bool)   { f.paused = p }
func (f *fakeConn) HungUp() bool       { return f.hungUp }

// take has a client that was stopped take n bytes; the buffers come back when it has all.
func (f *fakeConn) take(n int) {
	if f.queued -= n; f.queued > 0 {
		return
	}
	for _, b := range f.bufs {
		b.Release()
	}
	f.bufs = nil
}

// feed gives the handler what there is, and the sizes that it waits for. It says whether anything
// happened.
func (f *fakeConn) feed() (moved bool) {
	for moved = f.give(); f.h.(*conn).hand.wants != nil; moved = true {
		(<-f.w.posted)()
		f.give()
	}
	return moved
}

func (f *fakeConn) give() (moved bool) {
	win := 0
	for !f.closed && !f.paused && len(f.in) > 0 {
		if f.into != nil {
			n := copy(f.into[f.got:], f.in[:min(f.step, len(f.in))])
			f.in, moved = f.in[n:], true
			if f.got += n; f.got == len(f.into) {
				f.into = nil
				f.h.RecvDone()
			}
			continue
		}
		win = min(win+f.step, len(f.in), uring.RecvWindow)
		n, into := f.h.Recv(f.in[:win])
		if into != nil && n != win {
			panic("into, but not all was consumed")
		}
		f.in, f.into, f.got = f.in[n:], into, 0
		moved = moved || n > 0
		if n == 0 && win == min(len(f.in), uring.RecvWindow) {
			return moved
		}
		win -= n
	}
	return moved
}

func (w *world) connect(step int) *fakeConn {
	f := &fakeConn{w: w, step: step}
	f.h = w.s.attach(f)
	(<-w.posted)() // the greeting, or the refusal
	f.out = nil
	return f
}

func opt(id uint32, data []byte) []byte {
	p := binary.BigEndian.AppendUint64(nil, magicOption)
	p = binary.BigEndian.AppendUint32(p, id)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	return append(p, data...)
}

func goOpt(name string) []byte {
	d := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	d = append(d, name...)
	return opt(optGo, binary.BigEndian.AppendUint16(d, 0))
}

func cmd(cmd, flags uint16, cookie, offset uint64, length uint32, data []byte) []byte {
	p := binary.BigEndian.AppendUint32(nil, magicRequest)
	p = binary.BigEndian.AppendUint16(p, flags)
	p = binary.BigEndian.AppendUint16(p, cmd)
	p = binary.BigEndian.AppendUint64(p, cookie)
	p = binary.BigEndian.AppendUint64(p, offset)
	p = binary.BigEndian.AppendUint32(p, length)
	return append(p, data...)
}

var hello = []byte{0, 0, 0, flagFixedNewstyle | flagNoZeroes}

// replies parses simple replies; lengths says how much data that of a cookie has.
func replies(t *testing.T, out []byte, lengths map[uint64]int) (map[uint64]uint32,
	map[uint64][]byte) {
	errs, data := map[uint64]uint32{}, map[uint64][]byte{}
	for len(out) > 0 {
		if len(out) < simpleSize || binary.BigEndian.Uint32(out) != magicSimple {
			t.Fatalf("not a simple reply: % x", out[:min(32, len(out))])
		}
		e, cookie := binary.BigEndian.Uint32(out[4:]), binary.BigEndian.Uint64(out[8:])
		if _, twice := errs[cookie]; twice {
			t.Fatalf("request %d was answered twice", cookie)
		}
		errs[cookie], out = e, out[simpleSize:]
		if n := lengths[cookie]; n > 0 && e == 0 {
			data[cookie], out = out[:n], out[n:]
		}
	}
	return errs, data
}

// TestCommands sends each kind of request, whole and in small pieces, with answers in any order.
func TestCommands(t *testing.T) {
	const size = 40 << 20
	block := bytes.Repeat([]byte{7}, 4096)
	large := bytes.Repeat([]byte{9}, 5<<20)
	big := bytes.Repeat([]byte{8}, 300<<10)
	for _, step := range []int{1 << 20, 100000, 777} {
		w := newWorld(t, size)
		f := w.connect(step)
		f.in = append(append(f.in, hello...), goOpt("disk")...)
		f.feed()
		f.out = nil
		for _, p := range [][]byte{
			cmd(cmdWrite, 0, 1, 8192, 4096, block),
			cmd(cmdWrite, cmdFlagFUA, 2, 1<<20, uint32(len(large)), large),
			cmd(cmdWrite, 0, 3, 9<<20, uint32(len(big)), big),
			cmd(cmdWrite, 0, 4, size-1, 2, []byte{1, 2}), // behind the end
			cmd(cmdFlush, 0, 5, 0, 0, nil),
			cmd(cmdWriteZeroes, cmdFlagFUA|cmdFlagNoHole, 6, 20<<20, 100, nil),
			cmd(cmdTrim, 0, 7, 1, 100, nil),
			cmd(cmdCache, 0, 8, 0, 4096, nil),
			cmd(99, 0, 9, 0, 4096, nil),
			cmd(cmdRead, 0, 10, size, 1, nil),
			cmd(cmdRead, 0, 11, 0, maxPayload+1, nil),
			cmd(cmdRead, 0, 12, 0, 0, nil),
			cmd(cmdBlockStatus, 0, 13, 0, 1, nil), // not negotiated
			cmd(cmdWrite, 0, 14, 0, 0, nil),
			cmd(cmdRead, 1<<9, 15, 0, 1, nil),
		} {
			f.in = append(f.in, p...)
		}
		f.feed()
		w.settle(f)
		errs, _ := replies(t, f.out, nil)
		want := map[uint64]uint32{1: 0, 2: 0, 3: 0, 4: errNoSpace, 5: 0, 6: 0, 7: 0, 8: 0, 9: errInvalid,
			10: errInvalid, 11: errOverflow, 12: 0, 13: errInvalid, 14: 0, 15: errInvalid}
		for c, e := range want {
			if got, ok := errs[c]; !ok || got != e {
				t.Errorf("step %d: request %d was answered %v, %d; want %d", step, c, ok, got, e)
			}
		}
		f.out = nil
		lengths := map[uint64]int{20: 4096, 21: len(large), 22: len(big)}
		f.in = append(f.in, cmd(cmdRead, 0, 20, 8192, 4096, nil)...)
		f.in = append(f.in, cmd(cmdRead, 0, 21, 1<<20, uint32(len(large)), nil)...)
		f.in = append(f.in, cmd(cmdRead, 0, 22, 9<<20, uint32(len(big)), nil)...)
		f.feed()
		w.settle(f)
		_, data := replies(t, f.out, lengths)
		if !bytes.Equal(data[20], block) || !bytes.Equal(data[21], large) ||
			!bytes.Equal(data[22], big) {
			t.Errorf("step %d: what was written isn't what is read", step)
		}
		f.in = append(f.in, cmd(cmdDisc, 0, 0, 0, 0, nil)...)
		f.feed()
		w.settle(f)
		if !f.closed {
			t.Error("DISC didn't close the connection")
		}
		f.h.Closed(io.EOF)
		if len(w.s.conns) != 0 {
			t.Error("the connection isn't forgotten")
		}
	}
}

// TestGoneInTheMiddle drops connections with requests under way and half a payload received.
func TestGoneInTheMiddle(t *testing.T) {
	w := newWorld(t, 1<<20)
	f := w.connect(1 << 20)
	f.in = append(append(f.in, hello...), goOpt("")...)
	f.in = append(f.in, cmd(cmdRead, 0, 1, 0, 4096, nil)...)
	f.in = append(f.in, cmd(cmdWrite, 0, 2, 0, 65536, make([]byte, 100))...)
	f.feed()
	if len(w.ops) != 1 || f.into == nil {
		t.Fatalf("%d ops, into %v", len(w.ops), f.into != nil)
	}
	out := len(f.out)
	f.closed = true
	f.h.Closed(io.ErrUnexpectedEOF)
	(<-w.posted)() // the end of the READ, which was canceled
	if len(f.out) != out || len(w.s.conns) != 0 {
		t.Errorf("%d bytes were sent to a connection that has gone; %d connections", len(f.out)-out,
			len(w.s.conns))
	}
}

// TestBackWithAnotherConnection: a client that gave a connection up sends its write again over
// another one, then a newer one. The first one isn't done after that; the good-bye of a client
// waits for what was sent before it.
func TestBackWithAnotherConnection(t *testing.T) {
	for _, bye := range []bool{false, true} {
		w := newWorld(t, 1<<20)
		open := func(requests ...[]byte) *fakeConn {
			f := w.connect(1 << 20)
			f.in = append(append(f.in, hello...), goOpt("disk")...)
			for _, r := range requests {
				f.in = append(f.in, r...)
			}
			f.feed()
			return f
		}
		old, newer := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)
		write := cmd(cmdWrite, 0, 1, 0, 4096, old)
		if bye {
			f := open(write, cmd(cmdDisc, 0, 2, 0, 0, nil))
			f.h.Closed(io.EOF)
			w.settle(f)
			if !bytes.Equal(w.mem[:4096], old) {
				t.Error("what a client sent before its good-bye wasn't done")
			}
			continue
		}
		first := open(write)
		first.h.Closed(io.EOF)
		second := open(write)
		w.step(len(w.ops) - 1)
		second.in = cmd(cmdWrite, 0, 2, 0, 4096, newer)
		second.feed()
		w.step(len(w.ops) - 1)
		w.settle(first)
		if !bytes.Equal(w.mem[:4096], newer) {
			t.Error("a write of a connection that is gone was done after a newer one")
		}
	}
}

// TestReadOnly: nothing that changes the file is let through.
func TestReadOnly(t *testing.T) {
	w := newWorld(t, 1<<20)
	f := w.connect(1 << 20)
	f.in = append(append(f.in, hello...), goOpt("ro")...)
	f.feed()
	f.out = nil
	f.in = append(f.in, cmd(cmdWrite, 0, 1, 0, 1, []byte{1})...)
	f.in = append(f.in, cmd(cmdTrim, 0, 2, 0, 4096, nil)...)
	f.in = append(f.in, cmd(cmdWriteZeroes, 0, 3, 0, 4096, nil)...)
	f.in = append(f.in, cmd(cmdResize, 0, 4, 4096, 0, nil)...)
	f.feed()
	w.settle(f)
	errs, _ := replies(t, f.out, nil)
	for c := uint64(1); c <= 4; c++ {
		if e, ok := errs[c]; !ok || e != errPerm {
			t.Errorf("request %d: answered %v, error %d", c, ok, e)
		}
	}
	if len(w.ops) != 0 {
		t.Error("a write reached the device")
	}
	f.h.Closed(io.EOF)
}

// TestBackPressure: a client that sends without end doesn't fill the memory.
func TestBackPressure(t *testing.T) {
	w := newWorld(t, 64<<20)
	f := w.connect(1 << 20)
	f.in = append(append(f.in, hello...), goOpt("")...)
	for i := range 1200 {
		f.in = append(f.in, cmd(cmdRead, 0, uint64(i), 0, 128<<10, nil)...)
	}
	f.feed()
	if !f.paused || w.pool.InUse() > 2*maxBytes {
		t.Fatalf("paused %v with %d bytes in use", f.paused, w.pool.InUse())
	}
	w.settle(f)
	lengths := map[uint64]int{}
	for i := range 1200 {
		lengths[uint64(i)] = 128 << 10
	}
	at := bytes.Index(f.out, []byte{0x67, 0x44, 0x66, 0x98})
	if errs, _ := replies(t, f.out[at:], lengths); len(errs) != 1200 {
		t.Errorf("%d of 1200 requests were answered", len(errs))
	}
	f.closed = true
	f.h.Closed(io.EOF)
}

// TestHangUpBehindManyRequests: a client that goes away while its connection isn't read is noticed,
// and what it left isn't done any more.
func TestHangUpBehindManyRequests(t *testing.T) {
	w := newWorld(t, 1<<20)
	f := w.connect(1 << 20)
	f.in = append(append(f.in, hello...), goOpt("disk")...)
	for i := range maxRequests + 10 {
		f.in = append(f.in, cmd(cmdWrite, 0, uint64(i), 0, 512, make([]byte, 512))...)
	}
	f.feed()
	w.now += breath
	w.timers.Pop(w.now).Fire()
	if !f.paused || f.closed || len(w.ops) != maxRequests {
		t.Fatalf("paused %v, closed %v, %d requests", f.paused, f.closed, len(w.ops))
	}
	f.hungUp = true
	w.now += breath
	w.timers.Pop(w.now).Fire()
	if !f.closed {
		t.Fatal("nobody noticed")
	}
	f.h.Closed(io.EOF)
	for range maxRequests {
		(<-w.posted)() // their ends
	}
	if len(w.ops) != 0 || len(w.s.conns) != 0 {
		t.Errorf("%d requests and %d connections are left", len(w.ops), len(w.s.conns))
	}
}

// all is step for a client whose export's size is known.
func (n *negotiation) all(p []byte) (used int, out []byte, err error) {
	for {
		k, more, err := n.step(p[used:])
		if used, out = used+k, append(out, more...); err != nil || n.wants == nil {
			return used, out, err
		}
		n.know(n.wants)
	}
}

// TestHandshake: option by option.
func TestHandshake(t *testing.T) {
	w := newWorld(t, 12345)
	str := func(s string) []byte {
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
	}
	meta := append(append(str("disk"), 0, 0, 0, 1), str(metaAllocation)...)
	for _, c := range []struct {
		name string
		in   []byte
		want []uint32 // types of replies
		err  error
	}{
		{"list", opt(optList, nil), []uint32{repServer, repServer, repAck}, nil},
		{"list with data", opt(optList, []byte{1}), []uint32{repErrInvalid}, nil},
		{"tls", opt(optStartTLS, nil), []uint32{repErrPolicy}, nil},
		{"unknown", opt(77, nil), []uint32{repErrUnsup}, nil},
		{"go", goOpt("disk"), []uint32{repInfo, repAck}, nil},
		{"go to nowhere", goOpt("other"), []uint32{repErrUnknown}, nil},
		{"go, malformed", opt(optGo, []byte{0, 0, 0, 9, 1}), []uint32{repErrInvalid}, nil},
		{"meta before structured", opt(optSetMeta, meta), []uint32{repErrInvalid}, nil},
		{"structured, meta", append(opt(optStructuredReply, nil), opt(optSetMeta, meta)...),
			[]uint32{repAck, repMetaContext, repAck}, nil},
		{"abort", opt(optAbort, nil), []uint32{repAck}, errAborted},
		{"old export that isn't there", opt(optExportName, []byte("x")), nil, errNoExport},
		{"too long", opt(optList, make([]byte, maxOption+1)), nil, errOption},
		{"no magic", make([]byte, 16), nil, errOption},
	} {
		n := negotiation{exports: w.s.exports}
		in := append(bytes.Clone(hello), c.in...)
		used, out, err := n.all(in)
		if err != c.err || err == nil && used != len(in) {
			t.Errorf("%s: %d of %d bytes, error %v, want %v", c.name, used, len(in), err, c.err)
		}
		var got []uint32
		for len(out) > 0 {
			got = append(got, binary.BigEndian.Uint32(out[12:]))
			out = out[20+binary.BigEndian.Uint32(out[16:]):]
		}
		if len(got) != len(c.want) {
			t.Errorf("%s: replies %x, want %x", c.name, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: replies %x, want %x", c.name, got, c.want)
			}
		}
	}
	for _, in := range [][]byte{goOpt(strings.Repeat("\x01", maxName)),
		append(opt(optStructuredReply, nil),
			opt(optSetMeta, append(str(strings.Repeat("\xff", maxName)), 0, 0, 0, 0))...)} {
		n := negotiation{exports: w.s.exports}
		_, out, err := n.all(append(bytes.Clone(hello), in...))
		last := bytes.LastIndex(out, binary.BigEndian.AppendUint64(nil, magicReply))
		if err != nil || binary.BigEndian.Uint32(out[last+12:]) != repErrUnknown ||
			len(out)-last-20 > maxName {
			t.Errorf("a long unknown name: %d bytes of replies, %v", len(out), err)
		}
	}
	n := negotiation{exports: w.s.exports}
	_, out, err := n.all(append([]byte{0, 0, 0, flagFixedNewstyle}, opt(optExportName, nil)...))
	if err != nil || len(out) != 134 || binary.BigEndian.Uint64(out) != 12345 || n.chosen == nil {
		t.Errorf("EXPORT_NAME: %d bytes, %v", len(out), err)
	}
}

// FuzzConn feeds a connection with anything, in pieces of any size: nothing panics, all buffers
// come back, and nothing is touched outside of the device.
func FuzzConn(f *testing.F) {
	start := append(bytes.Clone(hello), goOpt("disk")...)
	f.Add(append(bytes.Clone(start), cmd(cmdWrite, 1, 1, 4096, 4096, make([]byte, 4096))...), 100)
	f.Add(append(bytes.Clone(start), cmd(cmdRead, 0, 1, 0, 8192, nil)...), 7)
	f.Add(append(bytes.Clone(start), cmd(cmdWriteZeroes, 1, 1, 0, 8192, nil)...), 1)
	f.Add(append(append(bytes.Clone(hello), opt(optStructuredReply, nil)...), goOpt("ro")...), 5)
	meta := append([]byte{0, 0, 0, 4}, "disk\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation"...)
	status := append(bytes.Clone(hello), opt(optStructuredReply, nil)...)
	status = append(status, opt(optSetMeta, meta)...)
	status = append(append(status, goOpt("disk")...), cmd(cmdBlockStatus, 0, 1, 0, 8192, nil)...)
	f.Add(append(status, cmd(cmdResize, 0, 2, 8192, 0, nil)...), 1000)
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		w := newWorld(t, 1<<20)
		c := w.connect(1 + min(max(step, 0), 1<<20))
		c.in = in
		c.feed()
		w.settle(c)
		c.closed = true
		c.h.Closed(io.EOF)
		if len(w.s.conns) != 0 {
			t.Error("the connection isn't forgotten")
		}
	})
}

// TestStrangers: connections that never ask for a device are ended, and there is a bound for all.
func TestStrangers(t *testing.T) {
	w := newWorld(t, 1<<20)
	used := w.connect(1 << 20)
	used.in = append(append(used.in, hello...), goOpt("")...)
	used.feed()
	silent := w.connect(1 << 20)
	w.now += handshakeTime
	for timer := w.timers.Pop(w.now); timer != nil; timer = w.timers.Pop(w.now) {
		timer.Fire()
	}
	if !silent.closed || used.closed {
		t.Errorf("after the time for the handshake: silent one closed %v, other one closed %v",
			silent.closed, used.closed)
	}
	silent.h.Closed(errSlow)
	for range maxConns - 1 {
		if f := w.connect(1 << 20); f.closed {
			t.Fatal("a connection within the bound is closed")
		}
	}
	f := w.connect(1 << 20)
	if !f.closed {
		t.Error("one connection too many is served")
	}
	f.h.Closed(errTooMuch)
	if len(w.s.conns) != maxConns {
		t.Errorf("%d connections", len(w.s.conns))
	}
}

// TestPoolIsShared: what all connections ask for together leaves the client buffers to serve it.
func TestPoolIsShared(t *testing.T) {
	w := newWorld(t, 64<<20)
	var all []*fakeConn
	for range 4 {
		f := w.connect(1 << 20)
		f.in = append(append(f.in, hello...), goOpt("")...)
		for i := range 60 {
			f.in = append(f.in, cmd(cmdRead, 0, uint64(i), 0, 1<<20, nil)...)
		}
		f.feed()
		all = append(all, f)
	}
	if got := w.pool.InUse(); got > len(w.pool.Arena())/2+1<<20 {
		t.Errorf("%d bytes of the pool are in use", got)
	}
	for range 1000 { // and all of it is answered nevertheless
		for len(w.ops) > 0 {
			w.step(0)
		}
		w.now += breath
		for timer := w.timers.Pop(w.now); timer != nil; timer = w.timers.Pop(w.now) {
			timer.Fire()
		}
		for _, f := range all {
			f.feed()
		}
	}
	for i, f := range all {
		if n := 60 * (simpleSize + 1<<20); len(f.out) < n {
			t.Errorf("connection %d got %d bytes of %d", i, len(f.out), n)
		}
		f.h.Closed(io.EOF)
	}
}

// slowResize is a device that is resized when the test says so.
type slowResize struct {
	*world
	began chan uint64
	end   chan struct{}
}

func (d *slowResize) Resize(ctx context.Context, r client.Right, n uint64) error {
	d.began <- n
	<-d.end
	return d.world.Resize(ctx, r, n)
}

// TestOneResizeAtATime: of resizes at once, by one connection and another, each begins when the one
// before it has ended, in the order in which they came. One whose client has gone isn't begun.
func TestOneResizeAtATime(t *testing.T) {
	w := newWorld(t, 1<<20)
	d := &slowResize{world: w, began: make(chan uint64, 10), end: make(chan struct{})}
	for _, e := range w.s.exports {
		e.dev = d
	}
	var all []*fakeConn
	for i, sizes := range [][]uint64{{1 << 20, 2 << 20}, {3 << 20}, {4 << 20}} {
		f := w.connect(1 << 20)
		f.in = append(append(f.in, hello...), goOpt("disk")...)
		f.feed()
		f.out = nil
		for k, n := range sizes {
			f.in = append(f.in, cmd(cmdResize, 0, uint64(10*i+k), n, 0, nil)...)
		}
		f.feed()
		all = append(all, f)
	}
	all[1].h.Closed(io.ErrUnexpectedEOF)
	for _, want := range []uint64{1 << 20, 2 << 20, 4 << 20} {
		if got := <-d.began; got != want {
			t.Fatalf("a resize to %d began, not the one to %d", got, want)
		}
		time.Sleep(20 * time.Millisecond) // nothing says that another one doesn't begin
		if n := len(d.began); n != 0 {
			t.Fatalf("%d more resizes began while the one to %d was under way", n, want)
		}
		d.end <- struct{}{}
		(<-w.posted)() // its end
		if want == 2<<20 {
			(<-w.posted)() // the one that was given up
		}
	}
	if n := w.Size(); n != 4<<20 {
		t.Errorf("the device has %d bytes", n)
	}
	for _, i := range []int{0, 2} {
		errs, _ := replies(t, all[i].out, nil)
		for cookie, e := range errs {
			if e != 0 {
				t.Errorf("resize %d failed: %d", cookie, e)
			}
		}
		if want := 2 - i/2; len(errs) != want {
			t.Errorf("connection %d: %d of %d resizes were answered", i, len(errs), want)
		}
		all[i].h.Closed(io.EOF)
	}
	if len(w.s.conns) != 0 {
		t.Errorf("%d connections are left", len(w.s.conns))
	}
}

// TestPoolIsCutUp: requests of a size for which the pool has no memory left, all of it having been
// cut for smaller ones that are free now, are answered nevertheless.
func TestPoolIsCutUp(t *testing.T) {
	w := newWorld(t, 8<<20)
	var cut []*uring.Buf
	for b := w.pool.Get(64 << 10); b != nil; b = w.pool.Get(64 << 10) {
		cut = append(cut, b)
	}
	for _, b := range cut {
		b.Release()
	}
	f := w.connect(1 << 20)
	f.in = append(append(f.in, hello...), goOpt("")...)
	f.feed()
	f.out = nil
	data := bytes.Repeat([]byte{7}, 300<<10)
	lengths := map[uint64]int{2: len(data), 3: 1 << 20, 4: 4096}
	for _, p := range [][]byte{cmd(cmdWrite, 0, 1, 0, uint32(len(data)), data),
		cmd(cmdRead, 0, 3, 1<<20, 1<<20, nil), cmd(cmdRead, 0, 4, 0, 4096, nil)} {
		f.in = append(f.in, p...)
	}
	for _, p := range [][]byte{nil, cmd(cmdRead, 0, 2, 0, uint32(len(data)), nil)} {
		f.in = append(f.in, p...)
		for range 100 {
			f.feed()
			for len(w.ops) > 0 {
				w.step(0)
			}
			w.now += breath
			for timer := w.timers.Pop(w.now); timer != nil; timer = w.timers.Pop(w.now) {
				timer.Fire()
			}
		}
	}
	errs, got := replies(t, f.out, lengths)
	if len(errs) != 4 || !bytes.Equal(got[2], data) {
		t.Errorf("%d of 4 requests were answered, %d bytes read", len(errs), len(got[2]))
	}
	if w.s.big != 0 {
		t.Errorf("%d bytes outside of the pool are in use", w.s.big)
	}
	f.h.Closed(io.EOF)
}
