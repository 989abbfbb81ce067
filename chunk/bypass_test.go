package chunk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/uring"
	"pstorage/uring/simloop"
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
	if g.rng.IntN(4) == 0 {
		// The start takes its time: nothing may be punched before it has redone everything.
		slow := g.rng.Int64N(200 * ms)
		g.nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
			if op.Kind == uring.DiskRead {
				f.Delay = slow
			}
			return f
		}
		defer func() { g.nd.store.Fault = nil }()
	}
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
	g.bad = fmt.Sprintf("life %d: block %d has version %d; acknowledged is number %d of %v", g.life,
		at, tag, c.acked, c.tags)
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
	seeds, n := uint64(12), 40
	switch {
	case testing.Short():
		seeds = 4
	case os.Getenv("PSTORAGE_LONG") != "":
		seeds = 250 // 10,000 crashes
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

// A write around the log allocates nothing, like one through it.
func TestBypassAllocations(t *testing.T) {
	w, shards, k := newMemWorld(t, 1)
	sh := shards[0]
	sh.bypass.from, sh.bypass.any = dataplane.PartSize, true
	b := &ioBench{w: w, k: k, data: pattern(1, dataplane.PartSize)}
	b.h = dataplane.Header{Op: dataplane.OpWrite, Flags: dataplane.FlagData, Chunk: chunkA, Epoch: 1,
		Length: dataplane.PartSize}
	b.crcs = make([]byte, b.h.CRCBytes())
	dataplane.PutCRCs(b.crcs, 0, b.data)
	for range 5 {
		b.batch(32)
	}
	if got := testing.AllocsPerRun(10, func() { b.batch(32) }); got > 0 {
		t.Errorf("%v allocations per 32 writes", got)
	}
	if n := sh.bypass.count; n < 16*32*9/10 {
		t.Errorf("%d of %d writes went around the log", n, 16*32)
	}
	b.batch(32)
	if n := sh.bypass.count; n > 16*32 {
		t.Error("an overwrite went around the log")
	}
}

// By default only streams of full parts go around the log, and only if it is on the store's disk.
// What isn't fresh, blocks of zeros, and write-ack=memory go through it.
func TestBypassRule(t *testing.T) {
	for _, c := range []struct {
		name   string
		same   bool
		from   int
		memory bool
		size   int
		zeros  bool
		sent   int // parts in flight at a time
		least  uint64
		most   uint64
	}{
		{"stream", true, 0, false, 65536, false, 32, 200, 253},
		{"one at a time", true, 0, false, 65536, false, 1, 0, 0},
		{"small", true, 0, false, 32768, false, 32, 0, 0},
		{"off", true, -1, false, 65536, false, 32, 0, 0},
		{"log elsewhere", false, 0, false, 65536, false, 32, 0, 0},
		{"zeros in it", true, 0, false, 65536, true, 32, 0, 0},
		{"in memory", true, 0, true, 65536, false, 32, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, 760, 1)
			w.same, w.bypass = c.same, c.from
			nd := w.nodes[0]
			nd.restart(false)
			w.md.add(chunkA, 1, 1)
			if c.memory {
				w.md.chunks[chunkA].Ack = 1
			}
			data := pattern(5, c.size)
			if c.zeros {
				clear(data[8192:12288])
			}
			for at := 0; at < 256; at += c.sent {
				var done [32]bool
				for i := range c.sent {
					w.write(chunkA, uint32((at+i)*c.size), data, &done[i])
				}
				w.must(func() bool {
					for _, d := range done[:c.sent] {
						if !d {
							return false
						}
					}
					return true
				}, 10*sec, "the writes")
			}
			n := nd.sh.bypass.count
			if n < c.least || n > c.most {
				t.Errorf("%d of 256 writes went around the log, not %d to %d", n, c.least, c.most)
			}
			for _, at := range []uint32{0, 17, 255} {
				if got := w.read(chunkA, at*uint32(c.size), uint32(c.size), 0); !bytes.Equal(got, data) {
					t.Errorf("part %d reads otherwise than it was written", at)
				}
			}
			w.mustWrite(chunkA, 17*uint32(c.size), pattern(6, c.size))
			if nd.sh.bypass.count != n {
				t.Error("an overwrite went around the log")
			}
		})
	}
}

// A store that fails under a write around the log fails the server; nothing is acknowledged.
func TestBypassErrors(t *testing.T) {
	for _, kind := range []uring.OpKind{uring.DiskWrite, uring.DiskSync} {
		g := newBypassRig(t, 770, Canary{})
		done := false
		g.write(g.id, 0, pattern(1, 65536), &done)
		g.must(func() bool { return done }, sec, "a write before")
		g.nd.store.FailRange(0, g.nd.store.Size(), unix.EIO, kind)
		var status dataplane.Kind
		g.cl.env.Do(func() {
			g.cl.ask(1, dataplane.Header{Op: dataplane.OpWrite, Chunk: g.id, Epoch: 1, Offset: 1 << 20},
				pattern(2, 65536), func(a *dataplane.Header, _ []byte) { status = a.Status })
		})
		g.must(func() bool { return g.nd.failed != nil }, sec, "the failure")
		g.run(10 * ms)
		if g.nd.sh.bypass.count != 2 || status != dataplane.IOError {
			t.Errorf("%v fails: answered %v, %d writes around the log", kind, status,
				g.nd.sh.bypass.count)
		}
	}
}
