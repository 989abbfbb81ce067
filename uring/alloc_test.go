package uring

import (
	"math/rand/v2"
	"runtime"
	"testing"
)

// allocFree performs operations and fails if they allocate. All threads are counted, so a few
// allocations by the runtime and the test itself are let pass.
func allocFree(t *testing.T, run func(ops int)) {
	t.Helper()
	const ops = 10000
	run(ops / 10)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	run(ops)
	runtime.ReadMemStats(&after)
	if n := after.Mallocs - before.Mallocs; n > ops/100 {
		t.Errorf("%d allocations in %d operations", n, ops)
	}
}

func TestDiskReadDoesNotAllocate(t *testing.T) {
	l := startLoop(t, LoopOptions{})
	d, _, _ := onDisk(t, l, DiskOptions{Size: 4 << 20})
	var r *readers
	on(t, l, func() {
		r = newReaders(t, l, d, 8)
		two := l.Pool().Get(8192).Bytes()
		for i := range r.ops[:4] { // half of them vectored
			r.ops[i].Bufs = [][]byte{two[:4096], two[4096:8192]}
		}
		r.rng = rand.New(rand.NewPCG(3, 4))
	})
	w := Work{}
	n := 0
	w.Run = func(*Work) { r.start(n) }
	run := func(k int) { n = k; l.PostWork(&w); <-r.done }
	allocFree(t, run)
	on(t, l, func() { l.pool.inUse = 0 }) // the buffers die with the loop
}

func TestConnPingPongDoesNotAllocate(t *testing.T) {
	for _, payload := range []int{0, 4096, 65536} {
		server, client := startLoop(t, LoopOptions{}), startLoop(t, LoopOptions{})
		addr := listen(t, server, func(c Conn) ConnHandler {
			return &answerer{l: server, c: c, payload: payload}
		})
		a := &asker{payload: payload, direct: 16 << 10, done: make(chan struct{}, 1)}
		connected := make(chan error, 1)
		client.Post(func() {
			a.buf = client.Pool().Get(max(1, payload))
			client.Dial(addr, func(c Conn) ConnHandler { a.c = c; return a },
				func(_ Conn, err error) { connected <- err })
		})
		if err := await(t, connected, "connection"); err != nil {
			t.Fatal(err)
		}
		w := Work{}
		n := 0
		w.Run = func(*Work) { a.run(n, 8) }
		run := func(k int) { n = k; client.PostWork(&w); <-a.done }
		allocFree(t, run)
		on(t, client, func() { a.buf.Release() })
	}
}
