package chunk

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"pstorage/dataplane"
)

// TestRelayChain: large writes along a chain whose links pass parts on while they arrive are the
// same on all members; small ones between them, which come straight from the head, too.
func TestRelayChain(t *testing.T) {
	m := startTableMDS(t)
	var servers []*running
	var ids []dataplane.CSID
	for i := range 4 {
		dir := filepath.Join(t.TempDir(), fmt.Sprint("cs", i))
		formatReal(t, dir)
		r := runRealWith(t, Options{Dir: dir, RelayFrom: 1}, m)
		servers = append(servers, r)
		ids = append(ids, r.id)
	}
	m.add(chunkA, ids...)
	const parts, window = 200, 32
	sizes := []uint32{dataplane.PartSize, dataplane.PartSize, 4096, 40960}
	size := func(i int) uint32 { return sizes[i%len(sizes)] }
	data := make([][]byte, parts)
	head := dialReal(t, servers[0].addr, dataplane.RoleClient)
	head.SetReadDeadline(time.Now().Add(20 * time.Second))
	for i, answered := 0, 0; answered < parts; {
		if i < parts && i-answered < window {
			data[i] = make([]byte, size(i))
			rand.Read(data[i])
			h := dataplane.Header{Op: dataplane.OpWrite, ReqID: uint64(i), Chunk: chunkA, Epoch: 1,
				Offset: uint32(i) * dataplane.PartSize}
			if err := head.WriteFrame(&h, data[i]); err != nil {
				t.Fatal(err)
			}
			i++
			continue
		}
		var a dataplane.Header
		if _, err := head.ReadFrame(&a, nil); err != nil || a.Status != dataplane.OK {
			t.Fatalf("answer %v, %v", &a, err)
		}
		answered++
	}
	relayed := make([]uint64, len(servers))
	for k, r := range servers {
		nc := dialReal(t, r.addr, dataplane.RoleClient)
		for i, want := range data {
			h := dataplane.Header{Op: dataplane.OpRead, ReqID: uint64(i), Chunk: chunkA, Epoch: 1,
				Offset: uint32(i) * dataplane.PartSize, Length: size(i)}
			if st, got := ask(t, nc, h, nil); st != dataplane.OK || !bytes.Equal(got, want) {
				t.Fatalf("member %d, part %d: %v, equal %v", k, i, st, bytes.Equal(got, want))
			}
		}
		_, doc := ask(t, nc, dataplane.Header{Op: dataplane.OpStat}, nil)
		var d statDoc
		if err := json.Unmarshal(doc, &d); err != nil {
			t.Fatal(err)
		}
		relayed[k] = d.Relayed
	}
	t.Logf("parts relayed, by member: %d", relayed)
	if relayed[0] != 0 || relayed[1] == 0 || relayed[2] == 0 || relayed[3] != 0 {
		t.Error("only the links in the middle relay, and both do")
	}
	for _, r := range servers {
		r.end(t)
	}
}
