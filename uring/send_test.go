package uring

import (
	"bytes"
	"math/rand"
	"testing"
)

// TestSendQueueAgainstModel sends the queue's front in random pieces, as partial sends do, while
// more is appended, and compares with a byte slice.
func TestSendQueueAgainstModel(t *testing.T) {
	pool, err := NewPool(4 << 20)
	if err != nil {
		t.Fatal(err)
	}
	l := &Loop{}
	if l.mem.pool, err = NewPool(256 << 10); err != nil { // small: the heap is used as well
		t.Fatal(err)
	}
	rng := rand.New(rand.NewSource(6))
	c := &conn{l: l, dirty: true}
	var model, sent []byte
	front := func() []byte {
		var p []byte
		for i := range c.out.n {
			s := c.out.at(i)
			p = append(p, s.buf.mem[s.from:s.to]...)
		}
		return p
	}
	for range 5000 {
		switch p := make([]byte, rng.Intn(3000)); rng.Intn(6) {
		case 0:
			rng.Read(p)
			copy(c.Reserve(len(p)), p)
			model = append(model, p...)
		case 1:
			p = append(p, make([]byte, 20000)...)
			rng.Read(p)
			c.Append(p)
			model = append(model, p...)
		case 2, 3:
			b := pool.Get(4096)
			if b == nil {
				break
			}
			rng.Read(b.Bytes())
			from := rng.Intn(4096)
			to := from + rng.Intn(4096-from)
			c.AppendBuf(b, from, to)
			model = append(model, b.Bytes()[from:to]...)
			b.Release()
		case 4, 5:
			if c.out.queued > 0 {
				n := 1 + rng.Intn(c.out.queued)
				sent = append(sent, front()[:n]...)
				c.out.pop(n)
			}
		}
		if c.Queued() != len(model)-len(sent) {
			t.Fatalf("queued %d, want %d", c.Queued(), len(model)-len(sent))
		}
	}
	sent = append(sent, front()...)
	if !bytes.Equal(sent, model) {
		t.Error("the stream differs")
	}
	c.out.release(l)
	if pool.InUse() != 0 || l.mem.pool.InUse() != 0 || c.out.n != 0 {
		t.Errorf("%d and %d bytes held, %d segments", pool.InUse(), l.mem.pool.InUse(), c.out.n)
	}
	mustPanic(t, "more sent than queued", func() { c.out.pop(1) })
}

func TestConnMisusePanics(t *testing.T) {
	pool, err := NewPool(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	b := pool.Get(4096)
	c := &conn{l: &Loop{}, dirty: true}
	mustPanic(t, "Reserve too much", func() { c.Reserve(4097) })
	mustPanic(t, "AppendBuf beyond the end", func() { c.AppendBuf(b, 0, 4097) })
	mustPanic(t, "AppendBuf backwards", func() { c.AppendBuf(b, 10, 9) })
}
