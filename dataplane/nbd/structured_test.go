package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
)

// chunk is one chunk of structured replies.
type chunk struct {
	flags, typ uint16
	payload    []byte
}

// structuredReplies parses what follows the handshake: chunks by cookie, and simple replies.
func structuredReplies(t *testing.T, out []byte) (map[uint64][]chunk, map[uint64]uint32) {
	t.Helper()
	chunks, simple := map[uint64][]chunk{}, map[uint64]uint32{}
	for len(out) > 0 {
		switch binary.BigEndian.Uint32(out) {
		case magicSimple:
			simple[binary.BigEndian.Uint64(out[8:])] = binary.BigEndian.Uint32(out[4:])
			out = out[simpleSize:]
		case magicStructured:
			n := int(binary.BigEndian.Uint32(out[16:]))
			cookie := binary.BigEndian.Uint64(out[8:])
			chunks[cookie] = append(chunks[cookie], chunk{binary.BigEndian.Uint16(out[4:]),
				binary.BigEndian.Uint16(out[6:]), out[structuredSize : structuredSize+n]})
			out = out[structuredSize+n:]
		default:
			t.Fatalf("not a reply: % x", out[:min(32, len(out))])
		}
	}
	return chunks, simple
}

// TestStructured: replies to a client that asked for structured ones and for base:allocation.
func TestStructured(t *testing.T) {
	w := newWorld(t, 1<<20)
	w.mem[5000] = 42
	f := w.connect(1 << 20)
	meta := append([]byte{0, 0, 0, 4}, "disk\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation"...)
	f.in = append(append(f.in, hello...), opt(optStructuredReply, nil)...)
	f.in = append(append(f.in, opt(optSetMeta, meta)...), goOpt("disk")...)
	f.feed()
	f.out = nil
	for _, p := range [][]byte{
		cmd(cmdRead, cmdFlagDF, 1, 4096, 4096, nil),
		cmd(cmdRead, 0, 2, 1<<20, 1, nil),
		cmd(cmdRead, 0, 3, 0, 0, nil),
		cmd(cmdBlockStatus, 0, 4, 0, 8192, nil),
		cmd(cmdFlush, 0, 5, 0, 0, nil),
	} {
		f.in = append(f.in, p...)
	}
	f.feed()
	w.settle(f)
	chunks, simple := structuredReplies(t, f.out)
	data := append(binary.BigEndian.AppendUint64(nil, 4096), w.mem[4096:8192]...)
	hole := []byte{0, 0, 0, metaAllocationID, 0, 0, 0x20, 0, 0, 0, 0, stateHole | stateZero}
	for cookie, want := range map[uint64]chunk{
		1: {chunkDone, chunkOffsetData, data},
		2: {chunkDone, chunkError, []byte{0, 0, 0, errInvalid, 0, 0}},
		3: {chunkDone, chunkNone, nil},
		4: {chunkDone, chunkBlockStatus, hole},
	} {
		got := chunks[cookie]
		if len(got) != 1 || got[0].flags != want.flags || got[0].typ != want.typ ||
			!bytes.Equal(got[0].payload, want.payload) {
			t.Errorf("request %d: %.100v, want %.100v", cookie, got, want)
		}
	}
	if e, ok := simple[5]; !ok || e != 0 || len(simple) != 1 {
		t.Errorf("FLUSH was answered %v", simple)
	}
	f.h.Closed(io.EOF)
}

// TestDurable: FUA reaches the device, as a flush where an operation has none of its own.
func TestDurable(t *testing.T) {
	w := newWorld(t, 1<<20)
	f := w.connect(1 << 20)
	f.in = append(append(f.in, hello...), goOpt("")...)
	f.in = append(f.in, cmd(cmdWrite, cmdFlagFUA, 1, 0, 1, []byte{1})...)
	f.in = append(f.in, cmd(cmdWrite, 0, 2, 0, 1, []byte{1})...)
	f.in = append(f.in, cmd(cmdTrim, cmdFlagFUA, 3, 0, 4096, nil)...)
	f.feed()
	if len(w.ops) != 3 || !w.ops[0].FUA || w.ops[1].FUA || w.ops[2].Kind != client.Zero {
		t.Fatalf("%d operations: %+v", len(w.ops), w.ops)
	}
	f.out = nil
	w.step(2)
	if len(w.ops) != 3 || w.ops[2].Kind != client.Flush || len(f.out) != 0 {
		t.Errorf("after the TRIM with FUA: %d operations, %d bytes of answer", len(w.ops), len(f.out))
	}
	w.settle(f)
	f.h.Closed(io.EOF)
}

// TestResize: the connection that changes the size sees it at once; another one can't write behind
// the new end.
func TestResize(t *testing.T) {
	w := newWorld(t, 1<<20)
	a, b := w.connect(1<<20), w.connect(1<<20)
	for _, f := range []*fakeConn{a, b} {
		f.in = append(append(f.in, hello...), goOpt("")...)
		f.feed()
		f.out = nil
	}
	one := []byte{1}
	ask := func(f *fakeConn, p []byte) uint32 {
		t.Helper()
		f.in, f.out = append(f.in, p...), nil
		f.feed()
		w.settle(f)
		errs, _ := replies(t, f.out, nil)
		if e, ok := errs[1]; ok {
			return e
		}
		t.Fatal("no answer")
		return 0
	}
	for _, c := range []struct {
		f    *fakeConn
		p    []byte
		want uint32
	}{
		{a, cmd(cmdWrite, 0, 1, 1<<20, 1, one), errNoSpace},
		{a, cmd(cmdResize, 0, 1, 2<<20, 0, nil), 0},
		{a, cmd(cmdWrite, 0, 1, 1<<20, 1, one), 0},
		{b, cmd(cmdWrite, 0, 1, 1<<20, 1, one), errNoSpace}, // not before it connects anew
		{a, cmd(cmdResize, 0, 1, 4096, 0, nil), 0},
		{b, cmd(cmdWrite, 0, 1, 4096, 1, one), errNoSpace},
		{b, cmd(cmdWrite, 0, 1, 4095, 1, one), 0},
	} {
		if got := ask(c.f, c.p); got != c.want {
			t.Errorf("% x: error %d, want %d", c.p[:requestSize], got, c.want)
		}
	}
	a.h.Closed(io.EOF)
	b.h.Closed(io.EOF)
}

// TestResizeBeforePayload: a device is cut off while a WRITE's payload is on its way. It doesn't
// make the file longer again.
func TestResizeBeforePayload(t *testing.T) {
	w := newWorld(t, 1<<20)
	f, other := w.open(), w.open()
	write := cmd(cmdWrite, 0, 1, 1<<20-4096, 4096, make([]byte, 4096))
	f.in = append(f.in, write[:requestSize+100]...)
	f.feed()
	other.in = append(other.in, cmd(cmdResize, 0, 2, 4096, 0, nil)...)
	other.feed()
	w.settle(other)
	f.in = append(f.in, write[requestSize+100:]...)
	f.feed()
	if len(w.ops) != 0 {
		t.Fatalf("a write of %d bytes at %d of a device of %d", len(w.ops[0].Buf), w.ops[0].Offset,
			w.Size())
	}
	if errs, _ := replies(t, f.out, nil); errs[1] != errNoSpace {
		t.Errorf("answered with error %d", errs[1])
	}
	f.h.Closed(io.EOF)
	other.h.Closed(io.EOF)
}

// TestErrors: what the device refuses is answered with an error of the protocol, and the connection
// goes on.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		fail error
		want uint32
	}{
		{io.ErrUnexpectedEOF, errIO},
		{dataplane.E("write", dataplane.LeaseHeld, nil), errIO},
		{dataplane.E("write", dataplane.NoSpace, nil), errNoSpace},
		{dataplane.E("write", dataplane.Fenced, nil), errShutdown},
		{dataplane.E("write", dataplane.Denied, nil), errPerm},
	} {
		for _, structured := range []bool{false, true} {
			w := newWorld(t, 1<<20)
			f := w.connect(1 << 20)
			f.in = append(f.in, hello...)
			if structured {
				f.in = append(f.in, opt(optStructuredReply, nil)...)
			}
			f.in = append(f.in, goOpt("disk")...)
			f.feed()
			f.out, w.fail = nil, c.fail
			for _, p := range [][]byte{
				cmd(cmdWrite, cmdFlagFUA, 1, 0, 4096, make([]byte, 4096)),
				cmd(cmdFlush, 0, 2, 0, 0, nil),
				cmd(cmdTrim, cmdFlagFUA, 3, 0, 4096, nil),
				cmd(cmdWriteZeroes, 0, 4, 0, 4096, nil),
				cmd(cmdRead, 0, 5, 0, 4096, nil),
			} {
				f.in = append(f.in, p...)
			}
			f.feed()
			w.settle(f)
			chunks, simple := structuredReplies(t, f.out)
			if structured {
				if got := chunks[5]; len(got) != 1 || got[0].flags != chunkDone || got[0].typ != chunkError ||
					binary.BigEndian.Uint32(got[0].payload) != c.want {
					t.Errorf("%v: a structured READ was answered %v", c.fail, got)
				}
				simple[5] = c.want
			}
			for cookie := uint64(1); cookie <= 5; cookie++ {
				if e, ok := simple[cookie]; !ok || e != c.want {
					t.Errorf("%v: request %d was answered: %v, error %d, want %d", c.fail, cookie, ok, e,
						c.want)
				}
			}
			f.out, w.fail = nil, nil
			f.in = cmd(cmdFlush, 0, 6, 0, 0, nil)
			f.feed()
			w.settle(f)
			if errs, _ := replies(t, f.out, nil); len(errs) != 1 || errs[6] != 0 {
				t.Errorf("%v: the request after it was answered %v", c.fail, errs)
			}
			f.h.Closed(io.EOF)
		}
	}
}

// slowSize is a device whose size comes when the test says so.
type slowSize struct {
	*world
	end chan int
}

func (d *slowSize) Refresh(context.Context) error {
	d.mem = make([]byte, <-d.end)
	return nil
}

// TestSizeOfTheOneAskedFor: a client is greeted at once, and waits for the size of no export but
// its own, which is told as it is then.
func TestSizeOfTheOneAskedFor(t *testing.T) {
	w := newWorld(t, 4096)
	d := &slowSize{world: &world{t: t, mem: make([]byte, 4096)}, end: make(chan int)}
	w.s.exports[1].dev = d
	f := w.connect(1 << 20)
	f.in = append(append(f.in, hello...), opt(optList, nil)...)
	f.in = append(f.in, goOpt("disk")...)
	f.feed()
	if c := f.h.(*conn); c.export != w.s.exports[0] {
		t.Error("the handshake isn't over")
	}
	f.h.Closed(io.EOF)

	f = w.connect(1 << 20)
	info := bytes.Clone(goOpt("ro"))
	binary.BigEndian.PutUint32(info[8:], optInfo)
	f.in = append(append(append(f.in, hello...), info...), goOpt("ro")...)
	f.give()
	if len(f.out) != 0 || !f.paused {
		t.Errorf("%d bytes of replies before the size is known", len(f.out))
	}
	d.end <- 12288
	f.feed()
	size := append([]byte{0, infoExport}, binary.BigEndian.AppendUint64(nil, 12288)...)
	if n := bytes.Count(f.out, size); n != 2 || f.h.(*conn).export != w.s.exports[1] {
		t.Errorf("the size was told %d times: % x", n, f.out)
	}
	f.h.Closed(io.EOF)

	gone := w.connect(1 << 20)
	gone.in = append(append(gone.in, hello...), goOpt("ro")...)
	gone.give()
	gone.h.Closed(io.EOF)
	d.end <- 4096
	(<-w.posted)()
	if gone.h.(*conn).export != nil || len(w.s.conns) != 0 {
		t.Errorf("%d connections", len(w.s.conns))
	}
}
