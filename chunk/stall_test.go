package chunk

import (
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// stall is what the node's next heartbeat says of how long it hasn't got on.
func (nd *node) stall() int64 {
	req := &control.HeartbeatReq{}
	nd.env.Do(func() { nd.sh.Gauge(req) })
	return req.StallNs
}

// A store that hangs is reported, whatever waits for it, and no append to the log is under way; one
// that takes two seconds, as disks do at times, isn't.
func TestStoreThatHangsIsReported(t *testing.T) {
	const hang = 8 * sec
	for name, h := range map[string]dataplane.Header{
		"read":  {Op: dataplane.OpRead, Offset: 0, Length: 4096},
		"merge": {Op: dataplane.OpWrite, Offset: 100},
		"zero":  {Op: dataplane.OpZero, Offset: 32 << 20, Length: 4096},
	} {
		w := settledInStore(t, 330)
		nd := w.nodes[0]
		w.read(chunkA, 60<<20, 4096, 0) // settles, and loads nothing
		nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
			f.Delay = hang
			return f
		}
		done := false
		var data []byte
		if h.Op == dataplane.OpWrite {
			data = pattern(1, 512)
		}
		w.cl.env.Do(func() { w.cl.do(chunkA, h, data, 0, func([]byte) { done = true }) })
		w.run(2 * sec)
		if n := nd.stall(); n != 0 {
			t.Errorf("%s: %d ms reported after 2 s", name, n/ms)
		}
		w.run(3 * sec)
		if n := nd.stall(); n < 2900*ms || n > 3000*ms || done {
			t.Errorf("%s: %d ms reported after 5 s, done %v", name, n/ms, done)
		}
		for _, other := range w.nodes[1:] {
			if n := other.stall(); n != 0 {
				t.Errorf("%s: cs %d reports %d ms", name, other.cs, n/ms)
			}
		}
		nd.store.Fault = nil
		w.must(func() bool { return done }, 30*sec, name)
		if n := nd.stall(); n != 0 {
			t.Errorf("%s: %d ms reported at the end", name, n/ms)
		}
	}
}

// Writes that wait for room in the log because nothing is written back.
func TestWriteBackThatHangsIsReported(t *testing.T) {
	w := newWorld(t, 331, 1)
	w.md.add(chunkA, 1, 1)
	nd := w.nodes[0]
	w.mustWrite(chunkA, 0, pattern(1, 65536))
	end := w.sim.Now() + 120*sec
	nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
		f.Delay = max(0, end-w.sim.Now())
		return f
	}
	n, written := 0, 0
	var next func()
	next = func() {
		if n++; n < dataplane.ChunkSize/65536 {
			w.cl.do(chunkA, dataplane.Header{Op: dataplane.OpWrite, Offset: uint32(n) * 65536},
				pattern(1, 65536), 0, func([]byte) { written++; next() })
		}
	}
	for range 16 {
		w.cl.env.Do(next)
	}
	for before := -1; written != before; { // the log lets in less and less while it fills
		before = written
		w.run(5 * sec)
	}
	if n := nd.stall(); n < sec {
		t.Errorf("%d ms reported", n/ms)
	}
	nd.lapsed = true
	nd.env.Do(nd.sh.Yield) // writes are refused from then on, and it still hangs
	w.run(2 * sec)
	if n := nd.stall(); n < 2*sec {
		t.Errorf("%d ms reported without writes", n/ms)
	}
	w.run(end + 5*sec - w.sim.Now())
	if n := nd.stall(); n != 0 {
		t.Errorf("%d ms reported at the end", n/ms)
	}
}

// One operation that never comes back is reported although others do.
func TestLostReadIsReported(t *testing.T) {
	w := settledInStore(t, 332)
	nd := w.nodes[0]
	for i := range 4 {
		w.read(chunkA, uint32(i)*65536, 4096, 0)
	}
	at := nd.sh.store.sb.block(nd.sh.chunks[chunkA].slot, 3)
	nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
		if op.Kind == uring.DiskRead && op.Offset == at {
			f.Delay = 40 * sec
		}
		return f
	}
	done := false
	w.cl.env.Do(func() {
		w.cl.do(chunkA, dataplane.Header{Op: dataplane.OpRead, Offset: 3 * 4096, Length: 4096}, nil, 0,
			func([]byte) { done = true })
	})
	for i := range 35 {
		w.run(sec)
		w.read(chunkA, uint32(i+10)*4096, 4096, 0)
		if n := nd.stall(); i < 29 && n > 100*ms || i > 31 && n < sec {
			t.Fatalf("%d ms reported after %d s", n/ms, i+1)
		}
	}
	w.must(func() bool { return done }, 10*sec, "the read")
}
