package nbd

import (
	"bytes"
	"io"
	"testing"
	"time"
)

// open connects a client to the export and has it ask.
func (w *world) open(requests ...[]byte) *fakeConn {
	f := w.connect(1 << 20)
	f.in = append(append(f.in, hello...), goOpt("disk")...)
	f.feed()
	f.out = nil
	for _, r := range requests {
		f.in = append(f.in, r...)
	}
	f.feed()
	return f
}

// pass lets ns pass, with all operations done at once.
func (w *world) pass(ns int64, clients ...*fakeConn) {
	for end := w.now + ns; ; {
		for len(w.ops) > 0 {
			w.step(0)
		}
		for _, f := range clients {
			f.feed()
		}
		at, armed := w.timers.Next()
		if len(w.ops) > 0 {
			continue
		}
		if !armed || at > end {
			w.now = end
			return
		}
		w.now = max(at, w.now)
		w.timers.Pop(w.now).Fire()
	}
}

// reads are n requests of 1 MiB.
func reads(n int) (list [][]byte) {
	for i := range n {
		list = append(list, cmd(cmdRead, 0, uint64(i), 0, 1<<20, nil))
	}
	return list
}

// TestStoppedClientsLeaveRoom: clients that asked for much and take nothing of it keep nobody from
// being served.
func TestStoppedClientsLeaveRoom(t *testing.T) {
	w := newWorld(t, 2<<20)
	var all []*fakeConn
	for range 4 {
		f := w.open()
		f.stopped = true
		for _, r := range reads(70) {
			f.in = append(f.in, r...)
		}
		all = append(all, f)
		w.pass(breath, f)
		if f.queued < 1<<20 {
			t.Errorf("client %d has %d bytes of replies", len(all), f.queued)
		}
	}
	f := w.open(reads(20)...)
	w.pass(100*breath, f)
	if want := 20 * (simpleSize + 1<<20); len(f.out) != want {
		t.Errorf("a client got %d bytes, want %d", len(f.out), want)
	}
	for _, f := range append(all, f) {
		if f.closed {
			t.Error("a client was cut off")
		}
		f.Close(nil)
		f.h.Closed(io.EOF)
	}
}

// TestStuckClientsAreClosed: clients that hold memory, and take nothing or send nothing, are left
// alone while nobody needs it. When another one waits they are closed, after stuckTime. One that is
// slow isn't.
func TestStuckClientsAreClosed(t *testing.T) {
	ways := map[string]func(w *world) *fakeConn{
		"takes nothing": func(w *world) *fakeConn {
			f := w.open()
			f.stopped = true
			for _, r := range reads(70) {
				f.in = append(f.in, r...)
			}
			return f
		},
		"sends nothing": func(w *world) *fakeConn {
			return w.open(cmd(cmdWrite, 0, 1, 0, 1<<20, make([]byte, 100)))
		},
	}
	for name, stick := range ways {
		stuckClients(t, name, stick, false)
		stuckClients(t, name, stick, true)
	}
}

func stuckClients(t *testing.T, name string, stick func(*world) *fakeConn, idle bool) {
	w := newWorld(t, 2<<20)
	half := len(w.pool.Arena()) / 2
	var stuck []*fakeConn
	slow := w.open(reads(1)...)
	slow.stopped = true
	w.pass(breath, slow)
	for w.pool.InUse() < half-1<<20 {
		f := stick(w)
		w.pass(breath, f)
		stuck = append(stuck, f)
	}
	asked, got := 0, 0
	wait := func(ns time.Duration, busy ...*fakeConn) {
		for range ns / time.Second {
			for _, f := range busy {
				for _, r := range reads(3) {
					f.in = append(f.in, r...)
					asked++
				}
			}
			w.pass(int64(time.Second), append(busy, stuck...)...)
			slow.take(1000)
			for _, f := range busy {
				got, f.out = got+len(f.out), f.out[:0]
			}
		}
	}
	open := func(when string) {
		for i, f := range stuck {
			if f.closed {
				t.Errorf("%s: client %d is closed, %s", name, i, when)
			}
		}
	}
	if idle {
		wait(2 * time.Minute)
		open("though nobody waits")
	}
	f := w.open()
	wait(20*time.Second, f)
	if !idle {
		open("too early")
	}
	wait(15*time.Second, f)
	for i, o := range stuck {
		if !o.closed {
			t.Fatalf("%s: client %d still has its memory", name, i)
		}
		o.Close(nil)
		o.h.Closed(errStuck)
	}
	wait(time.Second, f)
	if want := asked * (simpleSize + 1<<20); got+len(f.out) != want || f.closed || slow.closed {
		t.Errorf("%s: a client got %d bytes, want %d; it is closed: %v; a slow one: %v", name,
			got+len(f.out), want, f.closed, slow.closed)
	}
	wait(2 * time.Second)
	if w.s.look.Armed() {
		t.Errorf("%s: connections are looked at, though nobody waits", name)
	}
	for _, f := range []*fakeConn{slow, f} {
		f.Close(nil)
		f.h.Closed(io.EOF)
	}
}

// TestLastRepliesAreTaken: a client that was refused in the handshake, or has said good-bye, and
// takes nothing of what it was told, is closed after a while. One that takes it slowly isn't.
func TestLastRepliesAreTaken(t *testing.T) {
	leave := map[string][]byte{
		"refused": append(append(opt(optList, nil), make([]byte, optionSize)...), hello...),
		"left": append(append(goOpt("disk"), cmd(cmdRead, 0, 1, 0, 4096, nil)...),
			cmd(cmdDisc, 0, 2, 0, 0, nil)...),
	}
	for name, in := range leave {
		for _, slow := range []bool{false, true} {
			w := newWorld(t, 1<<20)
			f := w.connect(1 << 20)
			f.stopped = true
			f.in = append(bytes.Clone(hello), in...)
			w.pass(0, f)
			if f.queued == 0 || f.closed {
				t.Errorf("%s: %d bytes of replies, closed: %v", name, f.queued, f.closed)
			}
			for range 4 {
				w.pass(lingerTime/2, f)
				if slow {
					f.take(1)
				}
			}
			if f.closed == slow {
				t.Errorf("%s, slow: %v: closed after %d s: %v", name, slow, w.now/1e9, f.closed)
			}
			if slow {
				f.take(f.queued)
				w.pass(2*breath, f)
				if !f.closed {
					t.Errorf("%s: not closed when all was taken", name)
				}
			}
			f.h.Closed(io.EOF)
			if _, armed := w.timers.Next(); armed || len(w.s.conns) != 0 {
				t.Errorf("%s: %d connections are left, a timer: %v", name, len(w.s.conns), armed)
			}
		}
	}
}
