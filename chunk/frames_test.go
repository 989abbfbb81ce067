package chunk

import (
	"math/rand/v2"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/uring"
)

// wildPeer sends frames that make no sense, and takes whatever comes.
type wildPeer struct {
	c    *session.Conn
	open bool
	dead bool
}

func (k *wildPeer) Open(*session.Conn) { k.open = true }
func (k *wildPeer) Frame(*session.Conn, *dataplane.Header, []byte, []byte, *uring.Buf) {
}
func (k *wildPeer) Closed(*session.Conn, error) { k.dead = true }

func (w *memWorld) wildPeer(role dataplane.Role, id uint64, pool *uring.Pool) *wildPeer {
	k := &wildPeer{}
	w.Dial("a", func(c uring.Conn) uring.ConnHandler {
		k.c = session.NewConn(c, w, pool, simCred(role, id), true, k)
		return k.c
	}, func(uring.Conn, error) {})
	w.until("connect", func() bool { return k.open || k.dead })
	return k
}

// Frames with a valid header and all else at random, from every role: nothing panics, and the
// server answers afterwards.
func TestWildFrames(t *testing.T) {
	rounds := 30000
	if testing.Short() {
		rounds = 3000
	}
	w, shards, _ := newMemWorld(t, 2)
	w.wild = true
	rng := rand.New(rand.NewPCG(8, 9))
	pool, err := uring.NewPool(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	peers := make([]*wildPeer, 3)
	roles := []dataplane.Role{dataplane.RoleClient, dataplane.RoleCS, dataplane.RoleAdmin}
	for i := range rounds {
		n := rng.IntN(len(peers))
		if peers[n] == nil || peers[n].dead {
			peers[n] = w.wildPeer(roles[n], uint64(90+n), pool)
			continue
		}
		h, payload := wildFrame(rng)
		crcs := make([]byte, h.CRCBytes())
		dataplane.PutCRCs(crcs, h.Offset, payload)
		if len(crcs) > 0 && rng.IntN(10) == 0 {
			crcs[0]++
		}
		peers[n].c.Send(&h, crcs, payload)
		if i%8 == 0 {
			w.turn()
		}
		if i%500 == 0 {
			for range 100 {
				w.turn()
			}
		}
		if shards[0].dead != nil {
			t.Fatal(shards[0].dead)
		}
	}
	// The chunk of the other test cases still works once its own coordinator has settled it.
	k := &memClient{t: t}
	w.Dial("a", func(c uring.Conn) uring.ConnHandler {
		k.c = session.NewConn(c, w, pool, simCred(dataplane.RoleClient, 6), true, k)
		return k.c
	}, func(uring.Conn, error) {})
	w.until("connect", func() bool { return k.open })
	k.c.Send(&dataplane.Header{Op: dataplane.OpPing}, nil, nil)
	w.until("an answer", func() bool { return k.answers == 1 })
}

func wildFrame(rng *rand.Rand) (dataplane.Header, []byte) {
	ops := []dataplane.Opcode{dataplane.OpRead, dataplane.OpWrite, dataplane.OpZero, dataplane.OpFlush,
		dataplane.OpPing, dataplane.OpStat, dataplane.OpReplicate, dataplane.OpCommit, dataplane.OpSeal,
		dataplane.OpPatch, dataplane.OpActivate, 33, 77}
	h := dataplane.Header{Op: ops[rng.IntN(len(ops))], ReqID: rng.Uint64N(1000),
		Chunk: chunkA + dataplane.ChunkID(rng.IntN(3)), Epoch: dataplane.Epoch(rng.IntN(3)),
		Seq: dataplane.Seq(rng.IntN(20)), Aux: uint32(rng.IntN(4))}
	switch rng.IntN(4) {
	case 0:
		h.Offset = uint32(rng.IntN(dataplane.ChunkSize))
	case 1:
		h.Offset = dataplane.ChunkSize - uint32(rng.IntN(3))*4096
	default:
		h.Offset = uint32(rng.IntN(8)) * 4096
	}
	if rng.IntN(20) == 0 {
		h.Seq, h.Aux, h.ReqID = dataplane.Seq(rng.Uint64()), rng.Uint32(), rng.Uint64()
	}
	if rng.IntN(30) == 0 {
		h.Flags = uint16(rng.IntN(128)) &^ dataplane.FlagData
	} else if rng.IntN(3) == 0 {
		h.Flags = []uint16{dataplane.FlagZero, dataplane.FlagChain, dataplane.FlagRecovery}[rng.IntN(3)]
	}
	room := uint32(dataplane.ChunkSize) - h.Offset
	var payload []byte
	switch {
	case h.Op == dataplane.OpActivate:
		cfg := control.ChunkConfig{Chunk: h.Chunk, Epoch: h.Epoch, Minimum: uint8(rng.IntN(3))}
		for range rng.IntN(4) {
			cfg.Members = append(cfg.Members, control.CSAddr{CS: dataplane.CSID(rng.IntN(4)),
				Addr: []string{"a", "b", "nowhere", ""}[rng.IntN(4)]})
		}
		payload = control.Marshal(&cfg)
		h.Offset = 0
	case h.Op >= dataplane.OpControlBase:
		h.Offset = 0
	case rng.IntN(3) > 0:
		n := []uint32{4096, 8192, 65536, 512, 1, 5000}[rng.IntN(6)]
		payload = make([]byte, min(n, room))
		rng.Uint32()
	default:
		h.Length = min(uint32(rng.IntN(20))*4096, room)
	}
	if len(payload) > 0 {
		h.Flags |= dataplane.FlagData
		h.Length = uint32(len(payload))
	}
	return h, payload
}
