package chunk

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/uring"
)

// wildInput makes frames out of what a fuzzer gives.
type wildInput struct{ b []byte }

func (in *wildInput) byte() (v byte) {
	if len(in.b) > 0 {
		v, in.b = in.b[0], in.b[1:]
	}
	return v
}

func (in *wildInput) uint(n int) uint64 {
	var w [8]byte
	k := copy(w[:n], in.b)
	in.b = in.b[k:]
	return binary.LittleEndian.Uint64(w[:])
}

// frame makes the next frame: of any opcode, for chunk A or, from those who may not do it, chunk B;
// with a payload of its own, a run of one byte, or none. Fields are near to what makes sense, or
// anything at all.
func (in *wildInput) frame(role dataplane.Role) (h dataplane.Header, payload []byte) {
	mode := in.byte()
	h = dataplane.Header{Op: dataplane.Opcode(in.byte()), ReqID: in.uint(1), Chunk: chunkA,
		Epoch: dataplane.Epoch(in.uint(1)), Seq: dataplane.Seq(in.uint(1)),
		Offset: uint32(in.uint(1)) * dataplane.BlockSize, Aux: uint32(in.uint(1)),
		Flags: uint16(in.uint(1))}
	if mode&1 != 0 {
		h.ReqID, h.Epoch, h.Seq = in.uint(8), dataplane.Epoch(in.uint(4)), dataplane.Seq(in.uint(8))
		h.Offset, h.Aux = uint32(in.uint(4)), uint32(in.uint(4))
	}
	if mode&2 != 0 && role != dataplane.RoleCS && role != dataplane.RoleNone {
		h.Chunk = chunkA + 1
		h.Op = []dataplane.Opcode{dataplane.OpReplicate, dataplane.OpCommit, dataplane.OpSeal,
			dataplane.OpPatch, dataplane.OpActivate}[h.Op%5]
	}
	h.Flags &^= dataplane.FlagData
	room := dataplane.ChunkSize - min(h.Offset, dataplane.ChunkSize)
	switch mode >> 2 & 3 {
	case 0:
		h.Length = uint32(in.uint(1)) * dataplane.BlockSize
		if mode&1 != 0 {
			h.Length = uint32(in.uint(4))
		}
	case 1:
		payload = bytes.Repeat([]byte{in.byte()}, int(min(in.uint(2), dataplane.PartSize, uint64(room))))
	case 2:
		n := min(int(in.byte()), len(in.b), int(room))
		payload, in.b = in.b[:n], in.b[n:]
	}
	if len(payload) > 0 {
		h.Flags |= dataplane.FlagData
		h.Length = uint32(len(payload))
	}
	return h, payload
}

// wildSeeds are inputs that get far: what TestWildFrames sends, and a plain write and read.
func wildSeeds(f *testing.F) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 6 {
		b := make([]byte, 300)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		f.Add(b)
	}
	ops := []dataplane.Opcode{dataplane.OpRead, dataplane.OpWrite, dataplane.OpZero, dataplane.OpFlush,
		dataplane.OpStat, dataplane.OpReplicate, dataplane.OpCommit, dataplane.OpSeal,
		dataplane.OpPatch, dataplane.OpActivate}
	var all []byte
	for i, op := range ops {
		for role := range byte(3) {
			// connection, mode, opcode, request, epoch, seq, offset, aux, flags, data
			all = append(all, role, 4, byte(op), byte(i), 1, byte(i), 2, 0, 0, 7, 0, 16)
			all = append(all, role, 2, byte(op), byte(i), 1, byte(i), 0, 0, 0, 1)
		}
	}
	f.Add(all)
}

// FuzzHandler gives a chunk server arbitrary frames of arbitrary peers, after their handshakes: it
// must not panic, nor fail, nor keep memory, nor change a chunk for somebody who may not do that.
func FuzzHandler(f *testing.F) {
	wildSeeds(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4096 {
			t.Skip("long inputs find nothing that short ones don't")
		}
		w, shards, guard := newMemWorld(t, 2)
		pool := guardPool(t)
		defer closeMemWorld(t, shards, pool)
		w.wild = true
		cfg := *w.chunks[chunkA]
		cfg.Chunk = chunkA + 1
		w.chunks[cfg.Chunk] = &cfg
		want := pattern(5, dataplane.PartSize)
		crcs := make([]byte, 4*dataplane.Blocks(0, dataplane.PartSize))
		dataplane.PutCRCs(crcs, 0, want)
		guard.c.Send(&dataplane.Header{Op: dataplane.OpWrite, Chunk: cfg.Chunk, Epoch: 1, ReqID: 1,
			Flags: dataplane.FlagData, Length: dataplane.PartSize}, crcs, want)
		w.until("write of the guarded chunk", func() bool { return guard.answers == 1 })
		base := [2]int{shards[0].pool.InUse(), shards[1].pool.InUse()}

		peers := make([]*wildPeer, 3)
		roles := []dataplane.Role{dataplane.RoleClient, dataplane.RoleCS, dataplane.RoleSupervisor}
		in := wildInput{b}
		for len(in.b) > 0 {
			n := int(in.byte()) % len(peers)
			if peers[n] == nil || peers[n].dead {
				peers[n] = w.wildPeer(roles[n], uint64(90+n), pool)
			}
			h, payload := in.frame(roles[n])
			if h.ReqID == 0 {
				h.ReqID = 1
			}
			crcs := make([]byte, h.CRCBytes())
			dataplane.PutCRCs(crcs, h.Offset, payload)
			if !peers[n].dead {
				peers[n].c.Send(&h, crcs, payload)
			}
			w.turn()
		}
		for range 200 {
			w.turn()
		}
		for _, p := range peers {
			if p != nil && !p.dead {
				p.c.Close(nil)
			}
		}
		for range 20000 { // a second: what waits for lost peers ends
			w.turn()
		}
		for i, sh := range shards {
			if sh.dead != nil {
				t.Fatalf("server %d failed: %v", i, sh.dead)
			}
			if n := sh.pool.InUse() - base[i]; n > 4<<20 {
				t.Errorf("server %d keeps %d bytes", i, n)
			}
			if len(sh.strangers) > maxStrangers {
				t.Errorf("server %d knows %d strangers", i, len(sh.strangers))
			}
			var got []byte
			sh.readPart(sh.chunks[cfg.Chunk], 0, dataplane.PartSize,
				func(_ []byte, b *uring.Buf, err error) {
					if err != nil {
						t.Fatal(err)
					}
					got = bytes.Clone(b.Bytes()[:dataplane.PartSize])
				})
			w.until("read of the guarded chunk", func() bool { return got != nil })
			if !bytes.Equal(got, want) {
				t.Errorf("server %d: somebody who may not do that changed a chunk", i)
			}
		}
	})
}

func guardPool(t *testing.T) *uring.Pool {
	pool, err := uring.NewPool(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// closeMemWorld gives memory outside the Go heap back.
func closeMemWorld(t *testing.T, shards []*Shard, pools ...*uring.Pool) {
	for _, sh := range shards {
		sh.log.Abandon()
		sh.store.cache.close()
		pools = append(pools, sh.pool)
	}
	for _, p := range pools {
		if err := unix.Munmap(p.Arena()); err != nil { // buffers are in use, as after a kill
			t.Error(err)
		}
	}
}

// FuzzCRCPage: whatever a CRC page holds, a block matches it only by its checksum.
func FuzzCRCPage(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 1, 0, 0, 0}, uint32(zeroCRC))
	f.Add([]byte{2, 0, 0, 0, 3, 0, 0, 0}, uint32(1))
	f.Fuzz(func(t *testing.T, page []byte, crc uint32) {
		for ; len(page) >= 4; page = page[4:] {
			w := binary.LittleEndian.Uint32(page)
			matches := wordMatches(w, crc)
			if w == wordUnknown && matches {
				t.Errorf("a lost checksum matches %#x", crc)
			}
			if matches && w != word(crc, crc == zeroCRC) && w != word(crc, false) {
				t.Errorf("word %#x matches %#x, which is stored as %#x", w, crc, word(crc, false))
			}
			if !wordMatches(word(crc, false), crc) {
				t.Errorf("checksum %#x doesn't match its own word", crc)
			}
		}
	})
}
