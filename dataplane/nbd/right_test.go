package nbd

import (
	"io"
	"testing"
)

// TestRightToWrite: each connection that may write has a right of its own from when it has chosen
// its export until it has gone and nothing of it is under way; its requests are by that right.
func TestRightToWrite(t *testing.T) {
	w := newWorld(t, 1<<20)
	w.right = 5
	open := func(name string) *fakeConn {
		f := w.connect(1 << 20)
		f.in = append(f.in, hello...)
		f.feed()
		before := w.writers
		f.in = goOpt(name)
		f.feed()
		if want := before + 1; w.writers != want && name != "ro" {
			t.Fatalf("%d uses for writing after GO, want %d", w.writers, want)
		}
		return f
	}
	write := func(f *fakeConn) {
		f.in = cmd(cmdWrite, 0, 1, 0, 1, []byte{1})
		f.feed()
	}
	first, second, reader := open("disk"), open("disk"), open("ro")
	if w.writers != 2 {
		t.Errorf("%d uses for writing, one of them of a read-only export", w.writers)
	}
	w.right = 6 // it was taken away
	third := open("disk")
	for i, f := range []*fakeConn{first, second, third} {
		write(f)
		want := w.right
		if f != third {
			want = 5
		}
		if got := w.ops[i].Right; got != want {
			t.Errorf("connection %d writes by right %d, want %d", i, got, want)
		}
	}
	// Of two connections of one client that goes, with a good-bye and without.
	first.in = append(first.in, cmd(cmdDisc, 0, 2, 0, 0, nil)...)
	first.feed()
	first.h.Closed(io.EOF)
	second.h.Closed(io.EOF)
	if w.writers != 3 {
		t.Errorf("%d uses for writing while requests of three connections are under way", w.writers)
	}
	(<-w.posted)() // the end of the second one's, which was canceled
	if w.writers != 2 {
		t.Errorf("%d uses for writing while requests of two connections are under way", w.writers)
	}
	w.step(0)
	if w.writers != 1 {
		t.Errorf("%d uses for writing after the first one has its answer", w.writers)
	}
	w.settle(third)
	third.in = append(third.in, cmd(cmdResize, 0, 2, 1<<20, 0, nil)...)
	third.feed()
	w.settle(third)
	if w.resized != 6 {
		t.Errorf("a resize by right %d", w.resized)
	}
	// With half a payload.
	third.in = cmd(cmdWrite, 0, 3, 0, 4096, make([]byte, 100))
	third.feed()
	third.h.Closed(io.ErrUnexpectedEOF)
	reader.h.Closed(io.EOF)
	if w.writers != 0 || len(w.s.conns) != 0 {
		t.Errorf("%d uses for writing and %d connections are left", w.writers, len(w.s.conns))
	}
}
