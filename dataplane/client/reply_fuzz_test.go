package client

import (
	"bytes"
	"encoding/binary"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
	"pstorage/uring"
)

// wildCS answers as a fuzzer says, until that has nothing more to say; then as it should.
type wildCS struct {
	*fakeCS
	in *[]byte
}

func (cs *wildCS) byte() (v byte) {
	if b := *cs.in; len(b) > 0 {
		v, *cs.in = b[0], b[1:]
	}
	return v
}

func (cs *wildCS) uint32() uint32 {
	return binary.LittleEndian.Uint32([]byte{cs.byte(), cs.byte(), cs.byte(), cs.byte()})
}

func (cs *wildCS) Frame(c *session.Conn, h *dataplane.Header, crcs, payload []byte, b *uring.Buf) {
	if len(*cs.in) == 0 {
		cs.fakeCS.Frame(c, h, crcs, payload, b)
		return
	}
	mode := cs.byte()
	reply := h.Reply(dataplane.Kind(cs.byte()))
	if mode&1 != 0 {
		reply.Op = dataplane.Opcode(cs.byte())
	}
	if mode&2 != 0 {
		reply.ReqID += uint64(cs.byte())
	}
	if mode&4 != 0 {
		reply.Chunk, reply.Epoch = dataplane.ChunkID(cs.uint32()), dataplane.Epoch(cs.uint32())
	}
	if mode&8 != 0 {
		reply.Offset = cs.uint32()
	}
	if mode&16 != 0 {
		reply.Flags = uint16(cs.uint32()) &^ dataplane.FlagData
	}
	if h.Op != dataplane.OpRead && reply.Status == dataplane.OK {
		reply.Status = dataplane.IOError // a server that lies isn't what clients are made for
	}
	var data, sums []byte
	if mode&32 != 0 {
		n := int(h.Length)
		if mode&64 != 0 {
			n = int(cs.uint32() % (dataplane.PartSize + 1))
		}
		n = min(n, dataplane.PartSize, dataplane.ChunkSize-int(min(reply.Offset, dataplane.ChunkSize)))
		data = bytes.Repeat([]byte{cs.byte()}, n)
	}
	if len(data) > 0 {
		reply.Flags |= dataplane.FlagData
		reply.Length = uint32(len(data))
		sums = make([]byte, reply.CRCBytes())
		dataplane.PutCRCs(sums, reply.Offset, data)
		sums[0]++ // junk is known by its checksum
	}
	for range 1 + mode>>7 {
		c.Send(&reply, sums, data)
	}
	if reply.ReqID != h.ReqID {
		cs.fakeCS.Frame(c, h, crcs, payload, b) // a server that swallows a request is waited for
	}
}

// FuzzReplies gives the client arbitrary answers: it must not panic, must give every operation an
// end, and must never return what isn't in the file.
func FuzzReplies(f *testing.F) {
	f.Add([]byte{0, 0})
	f.Add([]byte{32, 0, 7, 0, byte(dataplane.StaleEpoch), 0, byte(dataplane.NotHead), 160, 0, 3})
	f.Add([]byte{1, 0, 9, 2, 0, 1, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8, 96, 0, 1, 0, 0, 0, 9})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 512 {
			t.Skip("long inputs find nothing that short ones don't")
		}
		w := newWorld(t, 1, 0)
		defer w.pool.Close()
		left := []byte(nil)
		for i := range 3 {
			id := dataplane.CSID(i + 1)
			cs := &wildCS{fakeCS: w.startCS(id), in: &left}
			node := w.net.Node(cs.env, cs.ip)
			cred := &session.Credentials{ClusterName: "c", Role: dataplane.RoleCS, ID: uint64(id)}
			cs.env.Do(func() {
				var err error
				cs.addr, _, err = node.Listen(cs.ip+":3001", func(c uring.Conn) uring.ConnHandler {
					return session.NewConn(c, cs.env, w.pool, cred, false, cs)
				})
				if err != nil {
					t.Fatal(err)
				}
			})
		}
		file := w.file(1 << 20)
		want := w.random(200_000)
		w.write(file, 0, want)
		left = b
		read := func() *Op {
			return &Op{Kind: Read, File: file, Offset: 1000, Buf: make([]byte, 150_000)}
		}
		ops := []*Op{read(), read(), {Kind: Write, File: file, Offset: 500_000, Buf: want[:5000]},
			{Kind: Zero, File: file, Offset: 600_000, Length: 8192}, {Kind: Flush, File: file}}
		w.run(ops...)
		for i, op := range ops {
			if op.Kind == Read && op.Err == nil && !bytes.Equal(op.Buf, want[1000:151_000]) {
				t.Fatalf("op %d read something that isn't in the file", i)
			}
		}
		left = nil
		if got := w.read(file, 0, len(want)); !bytes.Equal(got, want) {
			t.Fatal("afterwards the file reads wrong")
		}
	})
}
