package chunk

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync/atomic"
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

// flipProxy passes connections on to addr and damages one bit of what goes there, at the byte
// number at of all.
func flipProxy(t *testing.T, addr string, at int64) (listen string, done *atomic.Bool) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	done = new(atomic.Bool)
	var passed atomic.Int64
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", addr)
			if err != nil {
				in.Close()
				continue
			}
			go func() {
				io.Copy(in, out) // until one of them closes
				in.Close()
			}()
			go func() {
				defer out.Close()
				buf := make([]byte, 8<<10)
				for {
					n, err := in.Read(buf)
					end := passed.Add(int64(n))
					if begin := end - int64(n); begin <= at && at < end {
						buf[at-begin] ^= 1
						done.Store(true)
					}
					if _, werr := out.Write(buf[:n]); err != nil || werr != nil {
						return
					}
				}
			}()
		}
	}()
	return ln.Addr().String(), done
}

// TestRelayDamage: a part that is damaged on the way to a link that relays is refused by that link
// and by the next one; when the client has written it again, all members have the right data.
func TestRelayDamage(t *testing.T) {
	m := startTableMDS(t)
	var servers []*running
	var ids []dataplane.CSID
	for i := range 3 {
		dir := filepath.Join(t.TempDir(), fmt.Sprint("cs", i))
		formatReal(t, dir)
		r := runRealWith(t, Options{Dir: dir, RelayFrom: 1}, m)
		servers = append(servers, r)
		ids = append(ids, r.id)
	}
	proxy, flipped := flipProxy(t, servers[1].addr, 1<<20+30_000)
	m.mu.Lock()
	m.addrs[ids[1]] = proxy
	m.mu.Unlock()
	m.add(chunkA, ids...)
	const parts = 64
	data := make([][]byte, parts)
	head := dialReal(t, servers[0].addr, dataplane.RoleClient)
	deadline := time.Now().Add(30 * time.Second)
	again := 0
	for i := range data {
		data[i] = make([]byte, dataplane.PartSize)
		rand.Read(data[i])
		h := dataplane.Header{Op: dataplane.OpWrite, ReqID: uint64(i), Chunk: chunkA, Epoch: 1,
			Offset: uint32(i) * dataplane.PartSize}
		for {
			st, _ := ask(t, head, h, data[i])
			if st == dataplane.OK {
				break
			}
			if again++; time.Now().After(deadline) {
				t.Fatalf("part %d: %v", i, st)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	if !flipped.Load() {
		t.Fatal("nothing was damaged")
	}
	found := uint64(0)
	for k, r := range servers {
		nc := dialReal(t, r.addr, dataplane.RoleClient)
		for i, want := range data {
			h := dataplane.Header{Op: dataplane.OpRead, ReqID: uint64(i), Chunk: chunkA, Epoch: 1,
				Offset: uint32(i) * dataplane.PartSize, Length: dataplane.PartSize}
			if st, got := ask(t, nc, h, nil); st != dataplane.OK || !bytes.Equal(got, want) {
				t.Fatalf("member %d, part %d: %v, equal %v", k, i, st, bytes.Equal(got, want))
			}
		}
		_, doc := ask(t, nc, dataplane.Header{Op: dataplane.OpStat}, nil)
		var d statDoc
		if err := json.Unmarshal(doc, &d); err != nil {
			t.Fatal(err)
		}
		found += d.CRCErrors
	}
	t.Logf("%d checksum errors, %d answers that weren't OK", found, again)
	if found == 0 {
		t.Error("no member noticed the damage")
	}
}
