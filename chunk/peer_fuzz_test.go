package chunk

import (
	"bytes"
	"slices"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/uring"
)

// lyingLink stands between two chunk servers: it passes on what the first asks, and answers as a
// fuzzer says, until that has nothing more to say; then as the second one does.
type lyingLink struct {
	w    *memWorld
	in   *wildInput
	pool *uring.Pool
	ask  *session.Conn // of the one that asks
	tell *session.Conn // to the one that answers
	open bool
	wait []lyingFrame // until the connection is open
}

type lyingFrame struct {
	h             dataplane.Header
	crcs, payload []byte
}

// listenLying has the chunk server cs, which listens at to, reached at addr by the chunk server by.
func (w *memWorld) listenLying(addr, to string, cs, by dataplane.CSID, in *wildInput,
	pool *uring.Pool) {
	w.ports[addr] = func(c uring.Conn) uring.ConnHandler {
		l := &lyingLink{w: w, in: in, pool: pool}
		l.ask = session.NewConn(c, w, pool, simCred(dataplane.RoleCS, uint64(cs)), false, l)
		w.Dial(to, func(c uring.Conn) uring.ConnHandler {
			l.tell = session.NewConn(c, w, pool, simCred(dataplane.RoleCS, uint64(by)), true,
				(*lyingEnd)(l))
			return l.tell
		}, func(uring.Conn, error) {})
		return l.ask
	}
}

func (l *lyingLink) Open(*session.Conn) {}

func (l *lyingLink) Closed(_ *session.Conn, err error) {
	if l.tell != nil {
		l.tell.Close(err)
	}
}

func (l *lyingLink) Frame(_ *session.Conn, h *dataplane.Header, crcs, payload []byte,
	_ *uring.Buf) {
	if !l.open {
		l.wait = append(l.wait, lyingFrame{*h, bytes.Clone(crcs), bytes.Clone(payload)})
		return
	}
	l.tell.Send(h, crcs, payload)
}

// lyingEnd is the end of a lyingLink at the one that answers.
type lyingEnd lyingLink

func (l *lyingEnd) Open(*session.Conn) {
	l.open = true
	for i := range l.wait {
		f := &l.wait[i]
		l.tell.Send(&f.h, f.crcs, f.payload)
	}
	l.wait = nil
}

func (l *lyingEnd) Closed(_ *session.Conn, err error) { l.ask.Close(err) }

func (l *lyingEnd) Frame(_ *session.Conn, h *dataplane.Header, crcs, payload []byte, _ *uring.Buf) {
	if len(l.in.b) == 0 {
		l.ask.Send(h, crcs, payload)
		return
	}
	mode, reply := l.in.byte(), *h
	if mode&1 != 0 {
		reply.Status = dataplane.Kind(l.in.byte())
	}
	if mode&2 != 0 {
		reply.Seq, reply.Aux = dataplane.Seq(l.in.uint(1)), uint32(l.in.uint(1))
	}
	if mode&4 != 0 {
		reply.Seq, reply.Aux = dataplane.Seq(l.in.uint(8)), uint32(l.in.uint(4))
		reply.Epoch = dataplane.Epoch(l.in.uint(4))
	}
	if mode&8 != 0 {
		reply.Op, reply.ReqID = dataplane.Opcode(l.in.byte()), reply.ReqID+l.in.uint(1)
	}
	if mode&16 != 0 {
		reply.Flags = uint16(l.in.uint(2))&^dataplane.FlagData | dataplane.FlagReply
		reply.Offset, reply.Chunk = uint32(l.in.uint(1))*dataplane.BlockSize,
			reply.Chunk+dataplane.ChunkID(l.in.uint(1))
	}
	if mode&32 != 0 { // another payload, a run, what the fuzzer says, or none
		n := l.in.byte()
		switch {
		case n == 0:
			payload = nil
			reply.Length = uint32(l.in.uint(2))
		case n < 64:
			n := min(int(n), len(l.in.b))
			payload, l.in.b = l.in.b[:n], l.in.b[n:]
		default:
			payload = bytes.Repeat([]byte{n}, int(n-63)*512)
		}
	}
	if reply.Flags &^= dataplane.FlagData; len(payload) > 0 {
		if int(min(reply.Offset, dataplane.ChunkSize))+len(payload) > dataplane.ChunkSize {
			reply.Offset = 0
		}
		reply.Flags |= dataplane.FlagData
		reply.Length = uint32(len(payload))
	}
	crcs = make([]byte, reply.CRCBytes())
	dataplane.PutCRCs(crcs, reply.Offset, payload)
	if mode&64 != 0 && len(crcs) > 0 {
		crcs[0]++
	}
	times := byte(1)
	if mode&128 != 0 {
		times = l.in.byte() % 3
	}
	for range times {
		l.ask.Send(&reply, crcs, payload)
	}
}

// reconfigured is what the metadata servers make of a request, if they take it: members are those
// that it names.
func (w *memWorld) reconfigured(r *control.ReconfigureReq) bool {
	cfg := w.chunks[r.Chunk]
	if cfg == nil || cfg.Epoch != r.Epoch {
		return false
	}
	next := *cfg
	next.Created = next.Created || r.SetCreated
	if len(r.Members) > 0 {
		next.Epoch++
		next.Members = nil
		for _, cs := range r.Members {
			next.Members = append(next.Members, control.CSAddr{CS: cs, Addr: w.addrs[cs]})
		}
	}
	w.chunks[r.Chunk] = &next
	return true
}

// trio is three servers of which the first two have a chunk, and reach each other and the third by
// links that lie; and a client of the first. Another chunk is at the first only.
type trio struct {
	*memWorld
	shards []*Shard
	pool   *uring.Pool
	in     *wildInput
	client *wildPeer
	reqID  uint64
	own    dataplane.ChunkID
	want   []byte
	base   []int
}

func newTrio(t *testing.T, in *wildInput) *trio {
	w, shards, guard := newMemWorldOf(t, 3, 16<<20)
	x := &trio{memWorld: w, shards: shards, pool: guardPool(t), in: in, own: chunkA + 1,
		want: pattern(5, dataplane.PartSize)}
	w.wild = true
	w.addrs = map[dataplane.CSID]string{1: "to1", 2: "to2", 3: "to3"}
	// Both others reach the first as the second; who asks is of no importance to it.
	w.listenLying("to1", "a", 1, 2, in, x.pool)
	w.listenLying("to2", "b", 2, 1, in, x.pool)
	w.listenLying("to3", "c", 3, 1, in, x.pool)
	cfg := w.chunks[chunkA]
	cfg.Members = []control.CSAddr{{CS: 1, Addr: "to1"}, {CS: 2, Addr: "to2"}}
	own := control.ChunkConfig{Chunk: x.own, Epoch: 1, Minimum: 1,
		Members: []control.CSAddr{{CS: 1, Addr: "a"}}}
	w.chunks[x.own] = &own
	left := in.b
	in.b = nil // until both chunks are there
	for i, id := range []dataplane.ChunkID{x.own, chunkA} {
		crcs := make([]byte, 4*dataplane.Blocks(0, dataplane.PartSize))
		dataplane.PutCRCs(crcs, 0, x.want)
		guard.c.Send(&dataplane.Header{Op: dataplane.OpWrite, Chunk: id, Epoch: 1, ReqID: uint64(i + 1),
			Flags: dataplane.FlagData, Length: dataplane.PartSize}, crcs, x.want)
		w.until("a first write", func() bool { return guard.answers == i+1 })
	}
	x.turns(200)
	for _, sh := range shards {
		x.base = append(x.base, sh.pool.InUse())
	}
	in.b = left
	return x
}

func (x *trio) turns(n int) {
	for range n {
		x.turn()
	}
}

// rest lets 5 s pass, in which nobody asks for anything.
func (x *trio) rest() {
	for range 2500 {
		x.now += 2e6
		x.turn()
	}
}

// send sends a request of a client for the chunk that both have.
func (x *trio) send(op dataplane.Opcode, block, blocks uint32, data byte) {
	if x.client == nil || x.client.dead {
		x.client = x.wildPeer(dataplane.RoleClient, 77, x.pool)
	}
	x.reqID++
	h := dataplane.Header{Op: op, Chunk: chunkA, Epoch: x.chunks[chunkA].Epoch, ReqID: x.reqID,
		Offset: block * dataplane.BlockSize, Length: blocks * dataplane.BlockSize}
	var payload []byte
	switch op {
	case dataplane.OpWrite:
		h.Flags = dataplane.FlagData
		payload = bytes.Repeat([]byte{data}, int(h.Length))
	case dataplane.OpFlush, dataplane.OpStat:
		h.Offset, h.Length = 0, 0
	}
	crcs := make([]byte, h.CRCBytes())
	dataplane.PutCRCs(crcs, h.Offset, payload)
	x.client.c.Send(&h, crcs, payload)
}

// step does one thing that has the servers ask each other.
func (x *trio) step(what, arg byte) {
	cfg := *x.chunks[chunkA]
	head := x.shards[0]
	if cs := cfg.Members[0].CS; cs >= 1 && int(cs) <= len(x.shards) {
		head = x.shards[cs-1]
	}
	third := control.CSAddr{CS: 3, Addr: x.addrs[3]}
	switch what % 11 {
	case 0, 1:
		x.send(dataplane.OpWrite, uint32(arg%16), 1+uint32(arg>>4), arg)
	case 2:
		x.send(dataplane.OpZero, uint32(arg%16), 1+uint32(arg>>4), 0)
	case 3:
		x.send(dataplane.OpRead, uint32(arg%16), 1+uint32(arg>>4), 0)
	case 4:
		x.send(dataplane.OpFlush, 0, 0, 0)
	case 5:
		p := &control.SettlePush{Chunks: []control.ChunkConfig{cfg}, Lead: arg&4 != 0}
		if arg&8 != 0 {
			p.Lost = []dataplane.CSID{2}
		}
		x.shards[arg%3].SettlePush(p)
	case 6:
		p := &control.RecoverPush{Chunks: []control.ChunkConfig{cfg}, Targets: []control.CSAddr{third}}
		if arg&1 != 0 {
			p.Leaving = []dataplane.CSID{cfg.Members[arg>>1%byte(len(cfg.Members))].CS}
		}
		head.RecoverPush(p)
	case 7:
		x.shards[arg%3].ScrubStart()
	case 8:
		x.now += int64(arg&15) << 20
		x.turns(int(arg))
	case 9:
		for _, p := range x.shards[arg%3].peerList {
			if p.open {
				p.c.Close(nil)
			}
		}
	case 10:
		damageRuns(x.disks[arg%2*2+1].mem) // a cache
	}
	x.turns(1 + int(what>>4))
}

// damageRuns changes a bit in each block on a disk that looks like data that send made.
func damageRuns(mem []byte) {
	for b := range slices.Chunk(mem, dataplane.BlockSize) {
		if b[100] != 0 && b[100] == b[101] && b[100] == b[4000] {
			b[200] ^= 1
		}
	}
}

// check fails the test if a server failed, keeps memory, or changed what only it has.
func (x *trio) check(t *testing.T) {
	for i, sh := range x.shards {
		if sh.dead != nil {
			t.Fatalf("server %d failed: %v", i+1, sh.dead)
		}
		if n := sh.pool.InUse() - x.base[i]; n > 4<<20 {
			t.Errorf("server %d keeps %d bytes", i+1, n)
		}
	}
	r := x.shards[0].chunks[x.own]
	if r == nil {
		return // it was to be forgotten
	}
	var got []byte
	x.shards[0].readPart(r, 0, dataplane.PartSize, func(_ []byte, b *uring.Buf, err error) {
		if err != nil {
			t.Fatal(err)
		}
		got = bytes.Clone(b.Bytes()[:dataplane.PartSize])
	})
	x.until("read of the chunk that one server has", func() bool { return got != nil })
	if !bytes.Equal(got, x.want) {
		t.Error("a chunk changed of which nobody was told anything")
	}
}

// FuzzPeerReplies has chunk servers get arbitrary answers from each other while they write, settle,
// copy and scrub: they must not panic, nor fail, nor keep memory.
func FuzzPeerReplies(f *testing.F) {
	steps := []byte{0, 3, 1, 7, 5, 0, 8, 20, 6, 0, 8, 200, 0, 9, 5, 6, 8, 50, 6, 3, 8, 200, 7, 0, 2,
		33, 3, 18, 9, 0, 8, 100, 4, 0, 5, 9, 8, 100}
	f.Add(steps, []byte{})
	f.Add([]byte{0, 3, 8, 50, 6, 0, 8, 255, 8, 255, 8, 255, 8, 255, 0, 20, 8, 255, 6, 1, 8, 255, 8,
		255, 8, 255, 1, 7, 4, 0, 8, 255, 6, 1, 8, 255, 8, 255, 5, 4, 8, 255}, []byte{}) // copies end
	damage := []byte{0, 0x43, 8, 50, 10, 0, 3, 0x43, 8, 255, 10, 1, 7, 1, 8, 255, 5, 13, 3, 0x43, 8,
		255, 1, 0x43, 8, 50, 10, 0, 6, 0, 8, 255, 3, 0x43, 8, 255}
	f.Add(damage, []byte{}) // damaged members are repaired
	f.Add(damage, bytes.Repeat([]byte{0, 0, 1, byte(dataplane.BadCRC), 96, 200, 0}, 40))
	f.Add(steps, bytes.Repeat([]byte{1, byte(dataplane.BadCRC), 0, 0, 2, 1, 1, 0}, 20))
	f.Add(steps, bytes.Repeat([]byte{1, byte(dataplane.StaleEpoch), 32, 70, 128, 1, 0}, 20))
	f.Add(steps, bytes.Repeat([]byte{32, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17,
		18, 19, 20, 8, 3, 1, 192}, 20))
	f.Add(slices.Concat(steps, steps), bytes.Repeat([]byte{4, 255, 255, 255, 255, 255, 255, 255, 255,
		255, 255, 255, 255, 9, 0, 0, 0, 64}, 30))
	f.Fuzz(func(t *testing.T, steps, answers []byte) {
		if len(steps) > 256 || len(answers) > 4096 {
			t.Skip("long inputs find nothing that short ones don't")
		}
		in := &wildInput{answers}
		x := newTrio(t, in)
		defer closeMemWorld(t, x.shards, x.pool)
		for i := 0; i+1 < len(steps); i += 2 {
			x.step(steps[i], steps[i+1])
		}
		x.turns(200)
		in.b = nil
		x.rest() // what waits for answers goes on, or ends
		x.check(t)
	})
}

// FuzzPushes tells chunk servers anything as their metadata servers do, which don't: they must not
// panic, nor fail, nor keep memory.
func FuzzPushes(f *testing.F) {
	add := func(list ...any) {
		var b []byte
		for i, p := range list {
			raw := control.Marshal(p)
			b = append(b, pushKind(p), byte(i), byte(len(raw)), byte(len(raw)>>8))
			b = append(b, raw...)
		}
		f.Add(b)
	}
	cfg := control.ChunkConfig{Chunk: chunkA, Epoch: 1, Minimum: 1, Created: true,
		Members: []control.CSAddr{{CS: 1, Addr: "to1"}, {CS: 2, Addr: "to2"}}}
	next := cfg
	next.Epoch, next.Members = 2, []control.CSAddr{{CS: 3, Addr: "to3"}, {CS: 1, Addr: "to1"}}
	third := []control.CSAddr{{CS: 3, Addr: "to3"}}
	add(&control.SettlePush{Chunks: []control.ChunkConfig{cfg}, Lead: true},
		&control.RecoverPush{Chunks: []control.ChunkConfig{cfg}, Targets: third},
		&control.ForgetPush{Chunks: []dataplane.ChunkID{chunkA}, Epochs: []dataplane.Epoch{2}},
		&control.FencePush{Seq: 2, Fences: []control.FileFence{{File: 1, Token: 9}}})
	add(&control.SettlePush{Chunks: []control.ChunkConfig{next, cfg}, Lost: []dataplane.CSID{2, 1}},
		&control.RecoverPush{Chunks: []control.ChunkConfig{next}, Targets: third,
			Leaving: []dataplane.CSID{1}},
		&control.ForgetPush{Chunks: []dataplane.ChunkID{chunkA, 7}})
	add(&control.SettlePush{Chunks: []control.ChunkConfig{{Chunk: chunkA}, {}, {Chunk: 99, Epoch: 3,
		Members: third}}, Lead: true}, &control.SettlePush{Lead: true}, &control.RecoverPush{},
		&control.RecoverPush{Chunks: []control.ChunkConfig{cfg}, Targets: cfg.Members[1:]})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4096 {
			t.Skip("long inputs find nothing that short ones don't")
		}
		x := newTrio(t, &wildInput{})
		defer closeMemWorld(t, x.shards, x.pool)
		for in := (wildInput{b}); len(in.b) > 0; {
			kind, where := in.byte(), in.byte()
			n := min(int(in.uint(2)), len(in.b))
			raw := in.b[:n]
			in.b = in.b[n:]
			x.send(dataplane.OpWrite, uint32(where%16), 1, where)
			if where&32 != 0 {
				x.turns(int(where))
			}
			x.pushed(x.shards[where%3], kind, raw)
			x.turns(int(where >> 4))
		}
		x.rest()
		x.check(t)
	})
}

func pushKind(p any) byte {
	switch p.(type) {
	case *control.SettlePush:
		return 0
	case *control.RecoverPush:
		return 1
	case *control.ForgetPush:
		return 2
	}
	return 3
}

// pushed does what server.push does on the loop.
func (x *trio) pushed(sh *Shard, kind byte, raw []byte) {
	switch kind % 4 {
	case 0:
		if p := new(control.SettlePush); control.Unmarshal(raw, p) == nil {
			sh.SettlePush(p)
		}
	case 1:
		if p := new(control.RecoverPush); control.Unmarshal(raw, p) == nil {
			sh.RecoverPush(p)
		}
	case 2:
		if p := new(control.ForgetPush); control.Unmarshal(raw, p) == nil {
			sh.ForgetPush(p)
		}
	default:
		if p := new(control.FencePush); control.Unmarshal(raw, p) == nil {
			sh.Fence(p, nil)
		}
	}
}
