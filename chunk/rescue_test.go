package chunk

import (
	"bytes"
	"testing"
)

// A chunk of two members is settled while a block is damaged at the winner, the head, and the other
// member is behind: a write in flight didn't reach it.
func TestRescueFromMemberThatIsBehind(t *testing.T) {
	for _, c := range []struct {
		name   string
		write  uint32 // where the write in flight goes
		rot    uint32 // the damaged block
		inLog  bool   // it is of the write in flight
		expect uint64 // tag of what the damaged block holds afterwards
	}{
		{"the write in flight is elsewhere", 8192, 0, false, 1},
		{"the write in flight is on it, and is written again", 0, 0, true, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorldWith(t, 41, 2, 8<<20, 1<<20)
			w.md.add(chunkA, 1, 1, 2)
			w.mustWrite(chunkA, 0, pattern(1, 16384))
			for i := range uint32(160) { // more than the log holds
				w.mustWrite(chunkA, (i+1)<<16, pattern(9, 65536))
			}
			head, other := w.nodes[0], w.nodes[1]
			r := head.sh.chunks[chunkA]
			w.must(func() bool {
				_, inLog := head.sh.log.Lookup(r.slot, 3)
				return !inLog
			}, 60*sec, "destage")
			w.net.Cut(head.ip, other.ip, true)
			done := false
			w.write(chunkA, c.write, pattern(2, 4096), &done)
			w.must(func() bool { return r.durable == r.last && r.last > r.commit }, sec, "own log")
			if pos, ok := head.sh.log.Lookup(r.slot, c.rot/4096); ok != c.inLog {
				t.Fatalf("damaged block in the log: %v", ok)
			} else if ok {
				head.cache.FlipBit(int64(pos)*4096+5, 2)
			} else {
				head.store.FlipBit(head.sh.store.sb.block(r.slot, c.rot/4096)+5, 2)
			}
			// A settling that was interrupted had given the other member the block.
			other.env.Do(func() { other.sh.chunks[chunkA].patch(c.rot, 4096) })
			w.net.Reset(head.ip, other.ip)
			w.net.Cut(head.ip, other.ip, false)
			w.must(func() bool { return done }, 10*sec, "the write in flight")
			w.mustWrite(chunkA, 32768, pattern(3, 4096))
			if w.md.event("block-rescued") == 0 {
				t.Error("the damaged block wasn't needed: the test proves nothing")
			}
			w.equal(chunkA, 65536, 0, 1)
			if got := other.contents(chunkA, 0, 65536); !bytes.Equal(got[c.rot:c.rot+4096],
				pattern(c.expect, 4096)) || !bytes.Equal(got[c.write:c.write+4096], pattern(2, 4096)) {
				t.Errorf("%x at the damaged block, %x at the one written", got[c.rot:c.rot+8],
					got[c.write:c.write+8])
			}
			if cfg := w.md.chunks[chunkA]; cfg.Epoch != 1 {
				t.Errorf("epoch %d", cfg.Epoch)
			}
		})
	}
}
