package nbd

import (
	"bytes"
	"io"
	"testing"

	"pstorage/dataplane/client"
)

// TestNoHole: zeros that mustn't make a hole are written, piece by piece and no further than the
// file goes by then; the others are punched.
func TestNoHole(t *testing.T) {
	const size = 5 << 20
	w := newWorld(t, size)
	for i := range w.mem {
		w.mem[i] = 7
	}
	f := w.open()
	ask := func(flags uint16, cookie, off uint64, n uint32) {
		f.in = append(f.in, cmd(cmdWriteZeroes, flags, cookie, off, n, nil)...)
		f.feed()
	}
	result := func(cookie uint64, want uint32) {
		t.Helper()
		w.settle(f)
		errs, _ := replies(t, f.out, nil)
		if e, ok := errs[cookie]; !ok || e != want {
			t.Errorf("request %d was answered: %v, error %d, want %d", cookie, ok, e, want)
		}
		f.out = nil
	}
	ask(cmdFlagNoHole|cmdFlagFastZero, 1, 0, 4096)
	result(1, errNotSup)
	ask(cmdFlagFastZero, 2, 0, 4096)
	if len(w.ops) != 1 || w.ops[0].Kind != client.Zero {
		t.Errorf("%d operations for zeros that may make a hole", len(w.ops))
	}
	result(2, 0)

	ask(cmdFlagNoHole|cmdFlagFUA, 3, 4097, 3<<20)
	for i, n := range []int{1 << 20, 1 << 20, 1 << 20} {
		if len(w.ops) != 1 || len(f.out) != 0 {
			t.Fatalf("%d operations, %d bytes of answers before piece %d", len(w.ops), len(f.out), i)
		}
		if o := w.ops[0]; o.Kind != client.Write || len(o.Buf) != n || !o.FUA ||
			o.Offset != int64(4097+i<<20) {
			t.Errorf("piece %d: %v of %d bytes at %d, FUA %v", i, o.Kind, len(o.Buf), o.Offset, o.FUA)
		}
		w.step(0)
	}
	result(3, 0)
	want := bytes.Repeat([]byte{7}, size)
	clear(want[:4096])
	clear(want[4097 : 4097+3<<20])
	if !bytes.Equal(w.mem, want) {
		t.Error("other bytes are zero than those that were to be")
	}

	ask(cmdFlagNoHole, 4, 0, size) // and the file is cut off in between
	w.step(0)
	w.mem = w.mem[:2<<20+1]
	result(4, errNoSpace)
	ask(cmdFlagNoHole, 5, 0, 2<<20)
	w.fail = io.ErrShortWrite
	result(5, errIO)
	w.fail = nil

	// A client that goes without a good-bye has no more of it written, others have.
	for _, bye := range []bool{false, true} {
		for i := range w.mem {
			w.mem[i] = 7
		}
		ask(cmdFlagNoHole, 6, 0, 2<<20)
		if bye {
			f.in = append(f.in, cmd(cmdDisc, 0, 7, 0, 0, nil)...)
			f.feed()
		}
		f.h.Closed(io.EOF)
		for len(w.ops) > 0 {
			w.step(0)
		}
		if !bye {
			(<-w.posted)()
		}
		if wrote := w.mem[2<<20-1] == 0; wrote != bye || len(w.s.conns) != 0 {
			t.Errorf("good-bye %v: all was written: %v; %d connections", bye, wrote, len(w.s.conns))
		}
		if !bye {
			f = w.open()
		}
	}
}
