package chunk

import (
	"encoding/binary"
	"fmt"
	"testing"

	"pstorage/dataplane"
)

// blockName is one block of one of the chunks of TestSpreadWrites.
type blockName struct {
	chunk dataplane.ChunkID
	block uint32
}

// spread is one server with a log far smaller than what is written, and room in memory for half of
// the CRC pages: destage, checkpoints and the CRC cache work all the time.
type spread struct {
	w       *world
	stop    bool
	busy    int
	next    uint64
	acked   map[blockName]uint64 // 0: zeros
	pending map[blockName]uint64
	fail    string
}

const spreadWriters = 16

// write sends the writer's next operation on a block of its own class.
func (x *spread) write(i int) {
	if x.stop {
		return
	}
	rng := x.w.md.rng
	x.next++
	tag := x.next
	n := blockName{chunkA + dataplane.ChunkID(rng.IntN(8)),
		uint32(rng.IntN(dataplane.BlocksPerChunk/spreadWriters)*spreadWriters + i)}
	if rng.IntN(4) == 0 { // again a block near the beginning, so that some are overwritten and zeroed
		n.block = uint32(rng.IntN(4)*spreadWriters + i)
	}
	h := dataplane.Header{Op: dataplane.OpWrite, Offset: n.block * dataplane.BlockSize}
	data := pattern(tag, dataplane.BlockSize)
	if rng.IntN(8) == 0 {
		h.Op, h.Length, data, tag = dataplane.OpZero, dataplane.BlockSize, nil, 0
	}
	x.pending[n] = tag
	x.busy++
	x.w.cl.do(n.chunk, h, data, 0, func([]byte) {
		x.busy--
		x.acked[n] = tag
		delete(x.pending, n)
		if rng.IntN(3) > 0 {
			x.write(i)
			return
		}
		x.read(n, func() { x.write(i) })
	})
}

func (x *spread) read(n blockName, done func()) {
	h := dataplane.Header{Op: dataplane.OpRead, Offset: n.block * dataplane.BlockSize,
		Length: dataplane.BlockSize}
	x.w.cl.do(n.chunk, h, nil, 0, func(p []byte) {
		x.check(n, p)
		done()
	})
}

func (x *spread) check(n blockName, p []byte) {
	tag := binary.LittleEndian.Uint64(p) >> 20
	want, ok := x.acked[n]
	if pending, has := x.pending[n]; has && tag == pending {
		return
	}
	if ok && tag != want || !ok && tag != 0 {
		x.fail = fmt.Sprintf("chunk %v block %d: tag %d, acknowledged %d", n.chunk, n.block, tag, want)
	}
}

func TestSpreadWrites(t *testing.T) {
	seeds := 6
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		w := newWorldWith(t, uint64(7000+seed), 1, 6<<20, 64*dataplane.BlockSize)
		x := &spread{w: w, acked: map[blockName]uint64{}, pending: map[blockName]uint64{}}
		w.md.rng = w.sim.Rand("spread")
		for i := range 8 {
			w.md.add(chunkA+dataplane.ChunkID(i), 1, 1)
		}
		for i := range spreadWriters {
			w.cl.env.Do(func() { x.write(i) })
		}
		rounds := 0
		for cut := range 6 {
			want := x.next + 600 + uint64(w.md.rng.IntN(800))
			w.must(func() bool { return x.next > want || x.fail != "" }, 60*sec, "writes")
			rounds += int(w.nodes[0].sh.log.Stats().Rounds)
			w.nodes[0].restart(cut%2 == 0)
		}
		x.stop = true
		w.must(func() bool { return x.busy == 0 }, 60*sec, "all writes")
		reads := 0
		for id := range dataplane.ChunkID(8) {
			for b := range uint32(dataplane.BlocksPerChunk) {
				n := blockName{chunkA + id, b}
				if _, ok := x.acked[n]; !ok && b%1000 != 0 {
					continue
				}
				w.must(func() bool { return reads < 64 }, 10*sec, "reads") // not too many at a time
				reads++
				w.cl.env.Do(func() { x.read(n, func() { reads-- }) })
			}
		}
		w.must(func() bool { return reads == 0 || x.fail != "" }, 60*sec, "reads")
		if x.fail != "" {
			t.Fatalf("seed %d: %s", seed, x.fail)
		}
		if rounds < 10 {
			t.Fatalf("seed %d: %d rounds of destage; the test proves nothing", seed, rounds)
		}
		for _, e := range w.md.events {
			t.Fatalf("seed %d: event %s: %s", seed, e.Code, e.Message)
		}
	}
}
