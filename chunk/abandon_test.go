package chunk

import (
	"bytes"
	"testing"

	"pstorage/dataplane"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// What a client has begun at a server that goes on with nothing is answered, whatever state an
// attempt to settle has left behind: the client would wait for ever for a server that answers its
// pings.

// An attempt to settle that activates the head and ends before writes are acknowledged, as a
// connection is lost, leaves the commit mark above what is in flight. The head then loses its
// lease.
func TestAbandonedAboveTheMark(t *testing.T) {
	w := newWorld(t, 3, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	head := w.nodes[0]
	r := head.sh.chunks[chunkA]
	w.slowLogs(3600 * sec) // no member acknowledges anything
	st := w.askWrite(0, 4096, pattern(2, 4096))
	w.must(func() bool { return r.flight.n == 1 }, sec, "a write in flight")
	head.env.Do(func() {
		r.history.activate(r.epoch, r.last, nil)
		head.sh.SetLease(0)
		head.sh.refuseAll(r, dataplane.NoLease)
	})
	w.must(func() bool { return *st != dataplane.Internal }, sec, "an answer")
	if *st != dataplane.NoLease || r.flight.n != 0 {
		t.Errorf("answer %v, %d in flight", *st, r.flight.n)
	}
}

// A write of a part of a block waits for a disk that doesn't answer any more.
func TestAbandonedWhileMerging(t *testing.T) {
	w := newWorld(t, 4, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	head := w.nodes[0]
	hang := func(op *uring.DiskOp) (f simloop.Fault) {
		if op.Kind == uring.DiskRead {
			f.Delay = 3600 * sec
		}
		return f
	}
	head.store.Fault, head.cache.Fault = hang, hang
	st := w.askWrite(0, 512, pattern(2, 512))
	r := head.sh.chunks[chunkA]
	w.must(func() bool { return r.queue.n == 1 && r.queue.first.merging }, sec, "a read to be merged")
	head.env.Do(func() { head.sh.Yield() })
	w.must(func() bool { return *st != dataplane.Internal }, sec, "an answer")
	if *st != dataplane.NoLease {
		t.Errorf("answer %v", *st)
	}
}

// The head gave a write up, with its lease, and its client is gone. A read of the block has the
// chunk settled when the head may do that again: nobody else would.
func TestReadOfAbandoned(t *testing.T) {
	w := newWorld(t, 5, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	head := w.nodes[0]
	r := head.sh.chunks[chunkA]
	w.slowLogs(100 * ms)
	st := w.askWrite(0, 0, pattern(2, 4096))
	w.must(func() bool { return r.flight.n == 1 }, sec, "a write in flight")
	head.env.Do(head.sh.Yield)
	w.must(func() bool { return *st == dataplane.NoLease }, sec, "the write is given up")
	w.run(sec)
	if r.state != active || r.last != 2 || r.commit != 1 || r.settler != nil || !head.sh.leased() {
		t.Fatalf("%v at %d of %d, leased %v", r.state, r.commit, r.last, head.sh.leased())
	}
	var got *[]byte
	for tries := 0; ; tries++ {
		got = w.readOf(1, r.epoch, 0)
		w.must(func() bool { return *got != nil }, 5*sec, "an answer")
		if bytes.HasPrefix(*got, []byte("ok ")) {
			break
		}
		if tries == 10 {
			t.Fatalf("read after some time: %.20q", *got)
		}
		w.run(100 * ms)
	}
	if r.commit != r.last {
		t.Errorf("read at %d of %d", r.commit, r.last)
	}
}
