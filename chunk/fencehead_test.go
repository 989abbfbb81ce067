package chunk

import (
	"bytes"
	"testing"

	"pstorage/dataplane"
)

// readHead reads a block of chunkA at its head, whoever that is, until it answers, as a client does
// that has just got the right to write the file.
func (w *world) readHead(off uint32) []byte {
	w.t.Helper()
	var got []byte
	var ask func()
	ask = func() {
		cfg, _ := w.md.get(chunkA)
		h := dataplane.Header{Op: dataplane.OpRead, Chunk: chunkA, Epoch: cfg.Epoch, Offset: off,
			Length: dataplane.BlockSize}
		w.cl.ask(cfg.Members[0].CS, h, nil, func(a *dataplane.Header, p []byte) {
			if a.Status == dataplane.OK {
				got = bytes.Clone(p)
				return
			}
			if a.Status == dataplane.Closed {
				w.md.report(cfg.Members[0].CS)
			}
			w.sim.After(20*ms, func() { w.cl.env.Post(ask) })
		})
	}
	w.cl.env.Do(ask)
	w.must(func() bool { return got != nil }, 20*sec, "an answer of the head")
	return got
}

// TestHeadKnowsAfterFence: a writer's last write is in the log of some members only when its head
// is lost, or starts again, and its file goes to another client. A member without the write may
// still serve what was there before; but once the head has answered, the write is there for good.
func TestHeadKnowsAfterFence(t *testing.T) {
	for name, c := range map[string]struct{ has, again bool }{
		"a member has it, the head is lost": {has: true},
		"the head has it, and starts again": {again: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := fenceWorld(t)
			w.mustWrite(chunkA, 8192, pattern(1, 4096))
			w.run(100 * ms)
			head, member, other := w.nodes[0], w.nodes[1], w.nodes[2]
			w.net.Cut(head.ip, other.ip, true)
			w.net.Cut(head.ip, member.ip, !c.has)
			w.askWrite(5, 8192, pattern(2, 4096))
			for _, nd := range w.nodes[:2] {
				if r := nd.sh.chunks[chunkA]; nd == head || c.has {
					w.must(func() bool { return r.durable > r.commit }, sec, "the write in a log")
				}
			}
			head.kill()
			w.net.Cut(head.ip, other.ip, false)
			w.net.Cut(head.ip, member.ip, false)
			if c.again {
				head.restart(false)
				w.fence(0, 1, 6)
			} else {
				w.run(3 * sec)
			}
			for n := 1; n < 3; n++ {
				w.fence(n, 1, 6)
				if w.nodes[n].sh.FenceSeq() != 1 {
					t.Fatal("the fence isn't in force")
				}
			}
			w.md.chunks[chunkA].Fence = 6

			got := w.readHead(8192)
			if !bytes.Equal(got, pattern(2, 4096)) {
				t.Error("the head doesn't have the write")
			}
			w.must(func() bool {
				st := w.askWrite(6, 0, pattern(9, 4096))
				w.run(100 * ms)
				return *st == dataplane.OK
			}, 20*sec, "a write of the next holder")
			for m := range w.md.chunks[chunkA].Members {
				if now := w.read(chunkA, 8192, 4096, m); !bytes.Equal(now, got) {
					t.Errorf("member %d has something else than the head had", m)
				}
			}
		})
	}
}
