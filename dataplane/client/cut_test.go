package client

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestCutByAnother: another client cuts a file that is open here, and the right to write comes here
// after that. A write goes to the chunk that the file has now, not to the one that it had, whose
// servers may not know yet that it is gone; and the file becomes long enough for it.
func TestCutByAnother(t *testing.T) {
	const size = 3 * dataplane.ChunkSize
	w := newWorld(t, 1, 3)
	f := w.file(size)
	ff := w.meta.files[f.id]
	was := w.meta.make(ff, 1)
	w.read(f, dataplane.ChunkSize, 4096)
	w.eng.leases.meta = &leaser{w: w, fenced: true}
	ff.size = 0
	clear(ff.chunks)
	w.write(f, dataplane.ChunkSize, w.random(4096))
	if was.writes > 0 || len(ff.chunks) != 1 {
		t.Errorf("%d writes to a chunk that the file hasn't any more; it has %d", was.writes,
			len(ff.chunks))
	}
	if ff.size < dataplane.ChunkSize+4096 {
		t.Errorf("an acknowledged write of 4096 bytes at %d, and the file has %d",
			dataplane.ChunkSize, ff.size)
	}
}

// TestAppendBehindAnother: another client has written behind the end that is known here when the
// right to write comes. Appends go behind that.
func TestAppendBehindAnother(t *testing.T) {
	w := newWorld(t, 1, 3)
	f := w.file(4096)
	ff := w.meta.files[f.id]
	theirs := w.random(8192)
	copy(w.meta.make(ff, 0).data, theirs)
	w.eng.leases.meta = &leaser{w: w, fenced: true}
	ff.size = 8192
	ours := w.random(3000)
	first := &Op{Kind: Write, File: f, Append: true, Offset: 4096, Buf: ours[:1000]}
	second := &Op{Kind: Write, File: f, Append: true, Offset: 5096, Buf: ours[1000:2000]}
	w.run(first, second)
	w.ok(first, second)
	third := &Op{Kind: Write, File: f, Append: true, Offset: 6096, Buf: ours[2000:]}
	w.run(third)
	w.ok(third)
	if got := w.read(f, 0, 20000); !bytes.Equal(got, append(theirs, ours...)) {
		t.Errorf("%d bytes, or other ones; want %d", len(got), len(theirs)+len(ours))
	}
	// Who knows all that may send the parts of an append in any order.
	parts := w.random(2000)
	p2 := &Op{Kind: Write, File: f, Append: true, Offset: 12192, Buf: parts[1000:]}
	w.run(p2)
	p1 := &Op{Kind: Write, File: f, Append: true, Offset: 11192, Buf: parts[:1000]}
	w.run(p1)
	w.ok(p1, p2)
	if got := w.read(f, 11192, 20000); !bytes.Equal(got, parts) {
		t.Error("the parts of an append were moved")
	}
	// After one that failed the next goes to where the file ends.
	failing := true
	for _, cs := range w.cs {
		cs.refuse = func(h *dataplane.Header) dataplane.Kind {
			if failing && h.Op == dataplane.OpWrite {
				return dataplane.Denied
			}
			return dataplane.OK
		}
	}
	bad := &Op{Kind: Write, File: f, Append: true, Offset: 7096, Buf: w.random(100)}
	w.run(bad)
	if dataplane.KindOf(bad.Err) != dataplane.Denied {
		t.Fatal(bad.Err)
	}
	failing = false
	last := &Op{Kind: Write, File: f, Append: true, Buf: w.random(100)}
	w.run(last)
	w.ok(last)
	if last.Offset != int64(f.Size())-100 || f.Size() != ff.size {
		t.Errorf("the next one is at %d of %d", last.Offset, f.Size())
	}
}

// TestAppendAfterCut: another client has cut the file when the right to write comes, and the user
// of an append goes by the end that was. It goes to the end that is, and leaves no zeros between.
func TestAppendAfterCut(t *testing.T) {
	for _, first := range []bool{true, false} { // the append is the first write
		w := newWorld(t, 1, 3)
		f := w.file(100000)
		ff := w.meta.files[f.id]
		w.eng.leases.meta = &leaser{w: w, fenced: true}
		ff.size = 1000
		if !first {
			w.write(f, 0, w.random(2000))
		}
		size := int(ff.size)
		ours := w.random(4000)
		one := &Op{Kind: Write, File: f, Append: true, Offset: 100000, Buf: ours[:1000]}
		two := &Op{Kind: Write, File: f, Append: true, Offset: 101000, Buf: ours[1000:2000]}
		w.run(one, two)
		w.ok(one, two)
		three := &Op{Kind: Write, File: f, Append: true, Offset: 102000, Buf: ours[2000:3000]}
		w.run(three)
		w.ok(three)
		// Its user has asked for the size since.
		four := &Op{Kind: Write, File: f, Append: true, Offset: int64(ff.size), Buf: ours[3000:]}
		w.run(four)
		w.ok(four)
		if got := w.read(f, int64(size), 200000); !bytes.Equal(got, ours) {
			t.Errorf("%d bytes from %d on, or other ones; want %d", len(got), size, len(ours))
		}
		// Parts of one whose user knows the end stay where they are, in any order.
		parts := w.random(2000)
		end := int64(ff.size)
		w.run(&Op{Kind: Write, File: f, Append: true, Offset: end + 1000, Buf: parts[1000:]})
		w.run(&Op{Kind: Write, File: f, Append: true, Offset: end, Buf: parts[:1000]})
		if got := w.read(f, end, 200000); !bytes.Equal(got, parts) {
			t.Error("the parts of an append were moved")
		}
	}
}

// TestPartsOfFirstAppend: the parts of an append, the first one since the right to write came, are
// sent in another order than that of their offsets. They stay where they are.
func TestPartsOfFirstAppend(t *testing.T) {
	for _, first := range []bool{true, false} { // the append is the first write
		w := newWorld(t, 1, 3)
		f := w.file(1000)
		w.eng.leases.meta = &leaser{w: w, fenced: true}
		if !first {
			w.write(f, 0, w.random(10))
		}
		parts := w.random(3000)
		var ops []*Op
		for _, at := range []int{2000, 0, 1000} {
			ops = append(ops, &Op{Kind: Write, File: f, Append: true, Offset: int64(1000 + at),
				Buf: parts[at:][:1000]})
		}
		w.run(ops...)
		w.ok(ops...)
		if got := w.read(f, 1000, 200000); !bytes.Equal(got, parts) {
			t.Error("the parts of an append were moved")
		}
	}
}

// TestCutSeen: another client cuts a file that is open here for reading. Who asks for its size, or
// opens it again, reads no zeros behind its end after that.
func TestCutSeen(t *testing.T) {
	c := newCluster(t, 3)
	ctx := context.Background()
	f := c.create("f")
	defer f.Close()
	_, err := f.WriteAt(bytes.Repeat([]byte{7}, 1000), 0)
	check(t, err)
	other := c.second(time.Second)
	defer other.Close()
	theirs, err := other.OpenFile(ctx, f.ID())
	check(t, err)
	buf := make([]byte, 1000)
	for size, look := range []func() error{
		func() error { _, err := other.GetAttr(ctx, f.ID()); return err },
		func() error { _, err := other.OpenPath(ctx, "/f"); return err },
	} {
		_, err := f.WriteAt(bytes.Repeat([]byte{7}, 1000), 0)
		check(t, err)
		if n, err := theirs.ReadAt(buf, 0); n != len(buf) {
			t.Fatalf("read of the whole file: %d, %v", n, err)
		}
		_, err = f.Truncate(ctx, uint64(size))
		check(t, err)
		check(t, look())
		if n, err := theirs.ReadAt(buf, 0); n != size || err != io.EOF {
			t.Errorf("read of %d from a file that was cut to %d: %d bytes, %v", len(buf), size, n, err)
		}
	}
}

// TestCutOvertakesGrow: a file is cut here while the answer to an earlier Grow is on its way. It
// says nothing of the size any more, or the next write would be behind an end that nobody knows.
func TestCutOvertakesGrow(t *testing.T) {
	w := newWorld(t, 1, 3)
	f := w.file(0)
	ff := w.meta.files[f.id]
	op := &Op{Kind: Write, File: f, Buf: w.random(8192)}
	w.start(op)
	for ff.size == 0 { // until the MDS has agreed
		w.sim.Run(func() bool { return ff.size > 0 }, w.sim.Now()+1e9)
	}
	w.env.Do(func() {
		ff.size = 0
		clear(ff.chunks)
		f.setSize(0)
	})
	w.sim.Run(func() bool { return w.eng.Pending() == 0 }, w.sim.Now()+1e9)
	w.write(f, 0, w.random(4096))
	if ff.size < 4096 {
		t.Errorf("an acknowledged write of 4096 bytes, and the file has %d", ff.size)
	}
}

// TestGrowAskedBeforeCut: a write begins after a cut while a Grow of before is still on its way, as
// one does whose write was called off. What that is answered says nothing of this write.
func TestGrowAskedBeforeCut(t *testing.T) {
	w := newWorld(t, 1, 3)
	f := w.file(0)
	ff := w.meta.files[f.id]
	w.start(&Op{Kind: Write, File: f, Buf: w.random(8192)})
	for ff.size == 0 {
		w.sim.Run(func() bool { return ff.size > 0 }, w.sim.Now()+1e9)
	}
	next := &Op{Kind: Write, File: f, Buf: w.random(4096)}
	w.env.Do(func() {
		if !f.growBusy {
			t.Error("the Grow has been answered: the test shows nothing")
		}
		ff.size = 0
		clear(ff.chunks)
		f.setSize(0)
	})
	w.start(next)
	w.sim.Run(func() bool { return w.eng.Pending() == 0 }, w.sim.Now()+1e9)
	if next.Err != nil || ff.size < 4096 {
		t.Errorf("%v; a write of 4096 bytes was acknowledged, and the file has %d", next.Err, ff.size)
	}
}

// gate passes connections on to an address, answers only as long as it is open.
type gate struct {
	mu   sync.Mutex
	open *sync.Cond
	shut bool
}

// newGate listens, and returns where.
func newGate(t *testing.T, to string) (g *gate, addr string) {
	g = &gate{}
	g.open = sync.NewCond(&g.mu)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			go func() { io.Copy(far, near); far.Close() }()
			go g.answers(near, far)
		}
	}()
	return g, l.Addr().String()
}

func (g *gate) answers(near, far net.Conn) {
	defer near.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := far.Read(buf)
		g.mu.Lock()
		for g.shut {
			g.open.Wait()
		}
		g.mu.Unlock()
		if _, e := near.Write(buf[:n]); e != nil || err != nil {
			return
		}
	}
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = shut
	g.open.Broadcast()
}

// TestCutOfUnknownOutcome: a truncation is given up while its answer is on its way. What is written
// after that is there for everybody.
func TestCutOfUnknownOutcome(t *testing.T) {
	c := newCluster(t, 3)
	ctx := context.Background()
	g, addr := newGate(t, c.addr)
	other, err := Open(ctx, ClientOptions{Cred: c.as(dataplane.RoleClient, 0),
		MDSAddrs: control.FixedAddrs(addr), Log: slog.New(slog.DiscardHandler)})
	check(t, err)
	defer other.Close()
	a, err := other.Create(ctx, &control.CreateReq{Parent: dataplane.RootID, Name: "f",
		Type: control.TypeFile, Mode: 0600})
	check(t, err)
	f, err := other.OpenAttr(a)
	check(t, err)
	data := bytes.Repeat([]byte{7}, 10000)
	_, err = f.WriteAt(data, 0)
	check(t, err)

	c.mu.Lock()
	c.asked = func(op dataplane.Opcode) { // the tail is cleared last before the MDS is asked
		if op == dataplane.OpZero {
			g.set(true)
		}
	}
	c.mu.Unlock()
	cut, giveUp := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		_, err := f.Truncate(cut, 4096)
		ended <- err
	}()
	for a.Size = 10000; a.Size > 4096; {
		a, err = c.client.GetAttr(ctx, f.ID())
		check(t, err)
	}
	giveUp()
	if err := <-ended; err == nil {
		t.Fatal("the truncation knows that it succeeded")
	}
	g.set(false)
	_, err = f.WriteAt(data[:4096], 4096)
	check(t, err)
	theirs, err := c.client.OpenFile(ctx, f.ID())
	check(t, err)
	defer theirs.Close()
	got := make([]byte, 8192)
	if n, err := theirs.ReadAt(got, 0); n != 8192 || !bytes.Equal(got[4096:], data[:4096]) {
		t.Errorf("an acknowledged write of 4096 bytes at 4096, of which another client reads %d, %v",
			max(0, n-4096), err)
	}
}

// takenAway is a leaser that says that somebody else had the lease.
type takenAway struct{ *leaser }

// RenewLeases implements Leaser.
func (m takenAway) RenewLeases(list []control.FileLease,
	cb func(*control.RenewLeasesReply, error)) {
	r := &control.RenewLeasesReply{Lost: []control.LostLease{{File: list[0].File,
		Token: list[0].Token, By: "somebody"}}}
	m.answer(func() { cb(r, nil) })
}

// TestCutWithoutRight: the right to write was somebody else's since a truncation whose outcome
// isn't known. It is lost, as it would be without the truncation: the file has to be opened anew.
func TestCutWithoutRight(t *testing.T) {
	w := newWorld(t, 1, 3)
	m := &leaser{w: w, fenced: true}
	w.eng.leases.meta = takenAway{m}
	f := w.file(0)
	w.write(f, 0, w.random(4096))
	w.env.Do(f.maybeCut)
	waiting := &Op{Kind: Write, File: f, Buf: w.random(100)}
	w.run(waiting)
	later := &Op{Kind: Write, File: f, Buf: w.random(100)}
	w.run(later)
	for _, op := range []*Op{waiting, later} {
		if dataplane.KindOf(op.Err) != dataplane.Fenced {
			t.Errorf("a write after the right was somebody else's: %v", op.Err)
		}
	}
	w.env.Do(f.reopened)
	w.write(f, 0, w.random(4096))
}
