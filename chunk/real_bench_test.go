package chunk

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"pstorage/dataplane"
)

// BenchmarkReal runs chunk servers on the real ring in this process and keeps 32 requests of 4 KiB
// in flight over one blocking connection. CPU time is of everything together.
func BenchmarkReal(b *testing.B) {
	for _, n := range []int{1, 3} {
		for _, op := range []dataplane.Opcode{dataplane.OpRead, dataplane.OpWrite} {
			name := map[dataplane.Opcode]string{dataplane.OpRead: "read", dataplane.OpWrite: "write"}[op]
			b.Run(fmt.Sprintf("%s 4K of %d", name, n), func(b *testing.B) { benchReal(b, n, op, 32) })
		}
	}
}

func benchReal(b *testing.B, n int, op dataplane.Opcode, depth int) {
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	m := startTableMDS(b)
	var ids []dataplane.CSID
	for i := range n {
		dir := filepath.Join(b.TempDir(), fmt.Sprint(i))
		if err := Format(dir, FormatOptions{Cluster: realCluster, ClusterName: "t", Addr: "127.0.0.1",
			LogSize: 512 << 20, Capacity: 4 * dataplane.ChunkSize}); err != nil {
			b.Fatal(err)
		}
		r := runReal(b, dir, m)
		defer r.end(b)
		ids = append(ids, r.id)
	}
	m.add(chunkA, ids...)
	nc := dialReal(b, m.addrOf(ids[0]), dataplane.RoleClient)
	data := pattern(3, 4096)
	send := func(op dataplane.Opcode, off uint32) {
		h := dataplane.Header{Op: op, Chunk: chunkA, Epoch: 1, Offset: off, Length: 4096}
		p := data
		if op == dataplane.OpRead {
			p = nil
		}
		if err := nc.WriteFrame(&h, p); err != nil {
			b.Fatal(err)
		}
	}
	buf := make([]byte, 16<<10)
	recv := func() {
		var a dataplane.Header
		if _, err := nc.ReadFrame(&a, buf); err != nil || a.Status != dataplane.OK {
			b.Fatal(err, a.Status)
		}
	}
	for i := range uint32(4096) {
		send(dataplane.OpWrite, i*4096)
		recv()
	}
	rng := rand.New(rand.NewPCG(1, 2))
	b.ResetTimer()
	for range min(depth, b.N) {
		send(op, uint32(rng.IntN(4096))*4096)
	}
	for i := range b.N {
		recv()
		if i+depth < b.N {
			send(op, uint32(rng.IntN(4096))*4096)
		}
	}
	b.StopTimer()
}
