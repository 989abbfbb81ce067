package chunk

import (
	"fmt"
	"testing"

	"pstorage/dataplane"
)

// ioBench sends batches of requests and waits for their answers.
type ioBench struct {
	w     *memWorld
	k     *memClient
	h     dataplane.Header
	data  []byte
	crcs  []byte
	sent  int
	block uint32
}

func newIOBench(t testing.TB, n int, op dataplane.Opcode, size int) *ioBench {
	w, _, k := newMemWorld(t, n)
	b := &ioBench{w: w, k: k, data: pattern(1, size)}
	b.h = dataplane.Header{Op: dataplane.OpWrite, Flags: dataplane.FlagData, Chunk: chunkA, Epoch: 1,
		Length: uint32(size)}
	b.crcs = make([]byte, b.h.CRCBytes())
	dataplane.PutCRCs(b.crcs, 0, b.data)
	for range 64 {
		b.batch(32) // fill what reads will find, and all slabs and buffers
	}
	if op == dataplane.OpRead {
		b.h.Op, b.h.Flags, b.crcs, b.data = op, 0, nil, nil
	}
	for range 64 {
		b.batch(32)
	}
	return b
}

func (b *ioBench) batch(depth int) {
	for range depth {
		b.sent++
		b.block = (b.block + 7) % 512
		b.h.ReqID = uint64(b.sent)
		b.h.Offset = b.block * 65536 % dataplane.ChunkSize
		b.k.c.Send(&b.h, b.crcs, b.data)
	}
	for i := 0; b.k.answers < b.sent; i++ {
		if i > 1000 {
			b.w.t.Fatalf("%d of %d answered", b.k.answers, b.sent)
		}
		b.w.turn()
	}
}

var ioCases = []struct {
	name    string
	op      dataplane.Opcode
	size, n int
}{
	{"read 4K", dataplane.OpRead, 4096, 1},
	{"read 64K", dataplane.OpRead, 65536, 1},
	{"write 4K", dataplane.OpWrite, 4096, 1},
	{"write 64K", dataplane.OpWrite, 65536, 1},
	{"write 4K to 3", dataplane.OpWrite, 4096, 3},
	{"write 64K to 3", dataplane.OpWrite, 65536, 3},
}

// A read or write allocates nothing in steady state: not at the head, not at the other members. A
// checkpoint of the log does, a few objects for each segment: every second batch of 64K writes.
func TestNoAllocations(t *testing.T) {
	for _, c := range ioCases {
		t.Run(c.name, func(t *testing.T) {
			b := newIOBench(t, c.n, c.op, c.size)
			for range 200 * 4096 / c.size {
				b.batch(32)
			}
			limit := 0.0
			if c.op == dataplane.OpWrite && c.size > 4096 {
				limit = float64(c.n * 4)
			}
			if got := testing.AllocsPerRun(50, func() { b.batch(32) }); got > limit {
				t.Fatalf("%v allocations per 32 requests", got)
			}
		})
	}
}

// BenchmarkShard is the CPU time of everything but kernel and disk, client included.
func BenchmarkShard(bench *testing.B) {
	for _, c := range ioCases {
		bench.Run(fmt.Sprint(c.name), func(bench *testing.B) {
			b := newIOBench(bench, c.n, c.op, c.size)
			bench.ReportAllocs()
			bench.ResetTimer()
			for i := 0; i < bench.N; i += 32 {
				b.batch(32)
			}
		})
	}
}
