package chunk

import (
	"slices"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestMemberMovesInARepair: a member starts again at another address while another one asks it, in
// vain, for a damaged block. That one doesn't go back to the address where it asked before.
func TestMemberMovesInARepair(t *testing.T) {
	w := settledInStore(t, 81)
	head, moved := w.nodes[0], w.nodes[1]
	for _, nd := range w.nodes { // damaged everywhere: it is looked for long
		nd.store.FlipBit(nd.sh.store.sb.block(nd.sh.chunks[chunkA].slot, 3)+100, 3)
	}
	w.read(chunkA, 0, 4096, 0) // settles
	w.cl.env.Do(func() {
		w.cl.ask(1, dataplane.Header{Op: dataplane.OpRead, Chunk: chunkA, Epoch: 1, Offset: 3 * 4096,
			Length: 4096}, nil, func(*dataplane.Header, []byte) {})
	})
	w.must(func() bool { return len(head.sh.repairs) == 1 && head.sh.repairs[0].tries > 2 }, sec,
		"a repair")
	moved.kill()
	moved.ip = "10.0.0.77"
	cfg := w.md.chunks[chunkA]
	i := slices.IndexFunc(cfg.Members, func(m control.CSAddr) bool { return m.CS == moved.cs })
	cfg.Members[i].Addr = moved.addr()
	moved.restart(false)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	p := head.sh.peers[moved.cs]
	was := p.gen
	w.run(4 * sec)
	if p.gen != was || !p.open {
		t.Errorf("open %v, connected %d times more", p.open, p.gen-was)
	}
}
