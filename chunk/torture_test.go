package chunk

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"pstorage/dataplane"
	"pstorage/uring"
)

var seedFlag = flag.Uint64("seed", 0, "run TestTorture with this seed only")

// cellSize is what the torture test tells apart, in bytes.
const cellSize = 256

// tortureWriter owns a region of a chunk and has one write at a time on its way.
type tortureWriter struct {
	x     *torture
	id    dataplane.ChunkID
	base  uint32
	n     uint64 // operations sent
	rng   *rand.Rand
	cells [regionSize / cellSize][]uint64 // operations that touched the cell, by their content
	acked [regionSize / cellSize]int      // how many of them are acknowledged
	busy  bool
	reads int
	flush memoryFlush
}

const regionSize = 128 << 10

type torture struct {
	w       *world
	rng     *rand.Rand
	writers []*tortureWriter
	stop    bool
	lost    bool // a server was away for longer than a lease
	fail    string
	memory  bool // write-ack=memory
	zeros   bool // many ZEROs, and a log so small that write-back and punches are always under way
}

// next sends the writer's next operation: whole blocks, odd pieces, zeros.
func (t *tortureWriter) next() {
	if t.x.stop {
		return
	}
	t.n++
	var off, length uint32
	op := dataplane.OpWrite
	kind := t.rng.IntN(8)
	if t.x.zeros && kind < 2 {
		kind = 5
	}
	switch kind {
	case 0, 1, 2:
		off, length = uint32(t.rng.IntN(regionSize/4096))*4096, 4096
	case 3:
		length = uint32(1+t.rng.IntN(16)) * 4096
		off = uint32(t.rng.IntN(int(regionSize-length)/4096+1)) * 4096
	case 4:
		off, length = uint32(t.rng.IntN(2))*65536, 65536
	case 5:
		op = dataplane.OpZero
		length = uint32(1+t.rng.IntN(32)) * 4096
		off = uint32(t.rng.IntN(int(regionSize-length)/4096+1)) * 4096
	default:
		length = uint32(1+t.rng.IntN(40)) * cellSize
		off = uint32(t.rng.IntN(int(regionSize-length)/cellSize+1)) * cellSize
	}
	tag := t.n
	if op == dataplane.OpZero {
		tag = 0
	}
	for c := off / cellSize; c < (off+length)/cellSize; c++ {
		t.cells[c] = append(t.cells[c], tag)
	}
	h := dataplane.Header{Op: op, Offset: t.base + off}
	var data []byte
	if op == dataplane.OpZero {
		h.Length = length
	} else {
		data = make([]byte, length)
		for i := 0; i < len(data); i += 8 {
			binary.LittleEndian.PutUint64(data[i:], tag)
		}
	}
	t.busy = true
	if t.x.memory && t.rng.IntN(8) == 0 {
		h.Flags |= dataplane.FlagFUA
	}
	t.x.w.cl.do(t.id, h, data, 0, func([]byte) {
		t.busy = false
		if t.x.memory && h.Flags&dataplane.FlagFUA == 0 {
			t.unflushed(off/cellSize, (off+length)/cellSize)
			return
		}
		for c := off / cellSize; c < (off+length)/cellSize; c++ {
			t.acked[c] = len(t.cells[c])
		}
		pause := &uring.Timer{Fire: t.next}
		t.x.w.cl.env.Arm(pause, int64(t.rng.IntN(int(3*ms))))
	})
}

// read reads a random range at a random member and checks it: no cell may be older than what was
// acknowledged when the read began.
func (t *tortureWriter) read(done func()) {
	length := uint32(1+t.rng.IntN(16)) * 4096
	off := uint32(t.rng.IntN(int(regionSize-length)/4096+1)) * 4096
	min := t.acked
	h := dataplane.Header{Op: dataplane.OpRead, Offset: t.base + off, Length: length}
	t.x.w.cl.do(t.id, h, nil, t.rng.IntN(3), func(p []byte) {
		t.reads++
		t.check(p, off, min)
		done()
	})
}

func (t *tortureWriter) check(p []byte, off uint32, min [regionSize / cellSize]int) {
	for i := 0; i < len(p); i += cellSize {
		c := (off + uint32(i)) / cellSize
		tag := binary.LittleEndian.Uint64(p[i:])
		for j := 8; j < cellSize; j += 8 {
			if binary.LittleEndian.Uint64(p[i+j:]) != tag {
				t.x.fail = fmt.Sprintf("chunk %v cell %d torn", t.id, c)
				return
			}
		}
		ok := min[c] == 0 && tag == 0
		for k := max(min[c]-1, 0); k < len(t.cells[c]); k++ {
			ok = ok || t.cells[c][k] == tag
		}
		if !ok {
			t.x.fail = fmt.Sprintf("chunk %v cell %d (block %d): tag %d, acknowledged %d of %v", t.id, c,
				(t.base/cellSize+c)/16, tag, min[c], t.cells[c])
			return
		}
	}
}

func (x *torture) reader(t *tortureWriter) {
	if !x.stop {
		t.read(func() {
			pause := &uring.Timer{Fire: func() { x.reader(t) }}
			x.w.cl.env.Arm(pause, int64(t.rng.IntN(int(6*ms))))
		})
	}
}

// fault does something bad, and returns when it is over.
func (x *torture) fault() {
	w := x.w
	nd := w.nodes[x.rng.IntN(len(w.nodes))]
	switch kind := x.rng.IntN(7); kind {
	case 0:
		nd.kill()
		w.run(int64(x.rng.IntN(300)) * ms)
		nd.restart(false)
	case 1:
		nd.kill()
		w.run(int64(x.rng.IntN(300)) * ms)
		nd.restart(true)
	case 2, 3: // the whole site
		for _, nd := range w.nodes {
			nd.kill()
		}
		for _, i := range x.rng.Perm(len(w.nodes)) {
			w.nodes[i].restart(kind == 2)
		}
	case 4:
		other := w.nodes[x.rng.IntN(len(w.nodes))]
		if other != nd {
			w.net.Reset(nd.ip, other.ip)
		}
	case 6: // long enough to be excluded, with the load going on
		if x.lost {
			return
		}
		x.lost = true
		nd.kill()
		w.run(4 * sec)
		nd.restart(x.rng.IntN(2) == 0)
	case 5:
		w.net.Isolate(nd.ip, true)
		w.run(int64(x.rng.IntN(500)) * ms)
		w.net.Isolate(nd.ip, false)
	}
}

func runTorture(t *testing.T, seed uint64) (reads, writes int, hash uint64) {
	return (&torture{w: newWorld(t, seed, 3)}).run(t, seed)
}

func (x *torture) run(t *testing.T, seed uint64) (reads, writes int, hash uint64) {
	w := x.w
	x.rng = w.sim.Rand("torture")
	ids := []dataplane.ChunkID{chunkA, chunkA + 1}
	w.md.add(ids[0], 2, 1, 2, 3)
	w.md.add(ids[1], 2, 3, 1, 2)
	if x.memory {
		w.md.chunks[ids[0]].Ack, w.md.chunks[ids[1]].Ack = 1, 1
	}
	for i := range 6 {
		x.writers = append(x.writers, &tortureWriter{x: x, id: ids[i%2], base: uint32(i/2) * regionSize,
			rng: w.sim.Rand(fmt.Sprintf("writer %d", i))})
	}
	for _, wr := range x.writers {
		w.cl.env.Do(func() { wr.next(); x.reader(wr); x.reader(wr) })
	}
	for range 4 {
		for _, nd := range w.nodes { // the scrubber works all the time, much faster than it should
			if nd.sh != nil && seed%2 == 0 {
				nd.env.Do(func() {
					nd.sh.scrub.rate = 1 << 40
					nd.sh.ScrubStart()
				})
			}
		}
		w.run(int64(10+x.rng.IntN(60)) * ms)
		x.fault()
		if x.fail != "" {
			t.Fatalf("seed %d: %s", seed, x.fail)
		}
	}
	w.run(200 * ms)
	x.stop = true
	w.must(func() bool {
		for _, wr := range x.writers {
			if wr.busy {
				return false
			}
		}
		return true
	}, 30*sec, fmt.Sprintf("seed %d: all writes", seed))
	w.run(sec)
	for _, wr := range x.writers {
		for m := range 3 {
			for off := uint32(0); off < regionSize; off += 65536 {
				wr.check(w.read(wr.id, wr.base+off, 65536, m), off, wr.acked)
			}
		}
		reads += wr.reads
		writes += int(wr.n)
	}
	if x.fail != "" {
		t.Fatalf("seed %d: at the end: %s", seed, x.fail)
	}
	for _, id := range ids {
		var members []int
		for _, m := range w.md.chunks[id].Members {
			members = append(members, int(m.CS)-1)
		}
		w.equal(id, 3*regionSize, members...)
	}
	if n := w.md.event("crc-mismatch") + w.md.event("block-lost") + w.md.event("disk-failed"); n > 0 {
		t.Fatalf("seed %d: %d events of damage without damage: %v", seed, n, w.md.events)
	}
	return reads, writes, w.sim.Hash()
}

func TestTorture(t *testing.T) {
	if *seedFlag != 0 {
		runTorture(t, *seedFlag)
		return
	}
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	reads, writes := 0, 0
	for seed := range seeds {
		r, w, _ := runTorture(t, seed+1)
		reads, writes = reads+r, writes+w
	}
	t.Logf("%d reads, %d writes", reads, writes)
	_, _, a := runTorture(t, 1)
	_, _, b := runTorture(t, 1)
	if a != b {
		t.Fatal("the same seed gave two histories")
	}
}
