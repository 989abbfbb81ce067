package chunk

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"pstorage/dataplane"
)

// bypassRig is one server under writes that mostly go around the log, crashed again and again. Each
// block is a register: after a crash it holds the last acknowledged version, or a later one.
type bypassRig struct {
	*world
	nd     *node
	rng    *rand.Rand
	id     dataplane.ChunkID
	cells  [bypassCells]bypassCell
	next   uint64
	flying int
	life   int
	acked  int
	passed uint64
	bad    string
}

// bypassBase is the first block of the test, so that it goes over the end of a CRC page.
const (
	bypassCells = 512
	bypassBase  = wordsPerPage - bypassCells/2
)

// bypassCell is what a block may hold, oldest first; up to acked it may not be older.
type bypassCell struct {
	tags  []uint64
	acked int
}

func newBypassRig(t *testing.T, seed uint64, canary Canary) *bypassRig {
	w := newWorldWith(t, seed, 1, 6<<20, 64*4096)
	g := &bypassRig{world: w, nd: w.nodes[0], rng: w.sim.Rand("bypass"), id: chunkA}
	w.bypass, w.canary = 4096, canary
	g.nd.restart(false)
	g.newChunk()
	return g
}

// newChunk begins a chunk; it gets the slot of the one before.
func (g *bypassRig) newChunk() {
	g.id++
	g.md.add(g.id, 1, 1)
	for i := range g.cells {
		g.cells[i] = bypassCell{tags: []uint64{0}}
	}
}

// forget drops the chunk, and waits until its slot is free.
func (g *bypassRig) forget() {
	r := g.nd.sh.chunks[g.id]
	if r == nil || r.slot == noSlot {
		return
	}
	slot := r.slot
	g.nd.env.Do(func() { g.nd.sh.Forget([]dataplane.ChunkID{g.id}) })
	g.must(func() bool { return g.nd.sh.store.owners[slot] == nil }, 10*sec, "the slot is free")
	g.newChunk()
}

// op sends a write or a ZERO, perhaps over others in flight, and the next one when it is answered.
func (g *bypassRig) op(life int) {
	if life != g.life {
		return
	}
	n := 1 + g.rng.Uint32N(16)
	at := g.rng.Uint32N(bypassCells - n)
	h := dataplane.Header{Op: dataplane.OpWrite, Chunk: g.id, Epoch: 1,
		Offset: (bypassBase + at) * dataplane.BlockSize}
	var data []byte
	tag := uint64(0)
	if g.rng.IntN(4) == 0 {
		h.Op, h.Length = dataplane.OpZero, n*dataplane.BlockSize
	} else {
		g.next++
		tag = g.next
		data = make([]byte, n*dataplane.BlockSize)
		for i := 0; i < len(data); i += 8 {
			binary.LittleEndian.PutUint64(data[i:], tag)
		}
	}
	upTo := make([]int, n)
	for i := range n {
		c := &g.cells[at+i]
		upTo[i] = len(c.tags)
		c.tags = append(c.tags, tag)
	}
	g.flying++
	g.cl.ask(1, h, data, func(a *dataplane.Header, _ []byte) {
		g.flying--
		if a.Status == dataplane.OK && life == g.life {
			g.acked++
			for i := range n {
				c := &g.cells[at+i]
				c.acked = max(c.acked, upTo[i])
			}
		}
		if a.Status != dataplane.Closed {
			g.op(life)
		}
	})
}

// crash ends the process at any moment, starts it again and compares.
func (g *bypassRig) crash(cut bool) {
	g.passed += g.nd.sh.bypass.count
	g.life++
	g.nd.restart(cut)
	for at := 0; at < bypassCells && g.bad == ""; at += partBlocks {
		g.compare(at)
	}
}

// compare reads a part of the replica as it stands after a start.
func (g *bypassRig) compare(at int) {
	done := false
	off := (bypassBase + uint32(at)) * dataplane.BlockSize
	check := func(p []byte, err error) {
		done = true
		if err != nil {
			g.bad = fmt.Sprintf("life %d: read at block %d: %v", g.life, at, err)
			return
		}
		for i := range partBlocks {
			g.seen(at+i, p[i*dataplane.BlockSize:(i+1)*dataplane.BlockSize])
		}
	}
	g.nd.env.Do(func() {
		if r := g.nd.sh.chunks[g.id]; r == nil || r.slot == noSlot {
			check(make([]byte, dataplane.PartSize), nil) // not yet written
			return
		}
		g.nd.sh.SimPeek(g.id, off, dataplane.PartSize, check)
	})
	g.must(func() bool { return done }, sec, "a read")
}

func (g *bypassRig) seen(at int, p []byte) {
	c := &g.cells[at]
	tag := binary.LittleEndian.Uint64(p)
	for i := 8; i < len(p); i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != tag {
			g.bad = fmt.Sprintf("life %d: block %d is torn", g.life, at)
			return
		}
	}
	for _, v := range c.tags[c.acked:] {
		if v == tag {
			*c = bypassCell{tags: []uint64{tag}} // the others are gone for good
			return
		}
	}
	g.bad = fmt.Sprintf("life %d: block %d has version %d; acknowledged is number %d of %v", g.life, at,
		tag, c.acked, c.tags)
}

// lives crashes a server so many times.
func (g *bypassRig) lives(n int) {
	for range n {
		life := g.life
		g.cl.env.Do(func() {
			for range 1 + g.rng.IntN(12) {
				g.op(life)
			}
		})
		g.run(g.rng.Int64N(12 * ms))
		if g.rng.IntN(3) == 0 {
			g.nd.env.Do(func() { g.nd.sh.store.flush(nil) })
			g.run(g.rng.Int64N(3 * ms))
		}
		if g.rng.IntN(8) == 0 { // at rest, so that the chunk may be dropped
			g.life++
			g.must(func() bool { return g.flying == 0 }, 10*sec, "the writes in flight")
			g.forget()
		}
		if g.crash(g.rng.IntN(4) > 0); g.bad != "" {
			return
		}
	}
}

// Power cuts and kills at any point of writes around the log, among ZEROs, overlapping writes,
// checkpoints and slots that get other chunks, lose nothing that was acknowledged and show nothing
// that wasn't written.
func TestBypassCrash(t *testing.T) {
	seeds, n := uint64(40), 40
	if testing.Short() {
		seeds = 6
	}
	acked, passed := 0, uint64(0)
	for seed := range seeds {
		g := newBypassRig(t, 700+seed, Canary{})
		if g.lives(n); g.bad != "" {
			t.Fatalf("seed %d: %s", seed, g.bad)
		}
		if k := g.md.event("crc-mismatch") + g.md.event("disk-failed"); k > 0 {
			t.Fatalf("seed %d: damage without damage: %v", seed, g.md.events)
		}
		acked, passed = acked+g.acked, passed+g.passed
	}
	t.Logf("%d crashes, %d operations acknowledged, %d writes around the log", int(seeds)*n, acked,
		passed)
	if passed < seeds*uint64(n) {
		t.Errorf("only %d writes went around the log", passed)
	}
}

// The crash test finds a record that is durable before what it speaks of.
func TestBypassCanary(t *testing.T) {
	for seed := range uint64(10) {
		g := newBypassRig(t, 750+seed, Canary{RecordFirst: true})
		if g.lives(40); g.bad != "" {
			t.Logf("found with seed %d: %s", seed, g.bad)
			return
		}
	}
	t.Error("records before their data weren't found")
}
