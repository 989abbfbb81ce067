package chunk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

const chunkA = dataplane.ChunkID(1<<40 | 5)

func TestWriteReplicates(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	for i := range 20 {
		n := []int{4096, 8192, 65536, 32768}[i%4]
		w.mustWrite(chunkA, uint32(i)*65536, pattern(uint64(i), n))
	}
	for i := range 20 {
		n := []int{4096, 8192, 65536, 32768}[i%4]
		for m := range 3 {
			got := w.read(chunkA, uint32(i)*65536, uint32(n), m)
			if !bytes.Equal(got, pattern(uint64(i), n)) {
				t.Fatalf("write %d at member %d: other content", i, m)
			}
		}
	}
	if got := w.read(chunkA, 40<<20, 4096, 1); !bytes.Equal(got, make([]byte, 4096)) {
		t.Fatal("a block never written isn't zeros")
	}
}

// load keeps n writers busy, each rewriting its own blocks with rising tags, and remembers what was
// acknowledged.
type load struct {
	w     *world
	id    dataplane.ChunkID
	size  int
	acked []uint64 // by writer: highest tag acknowledged
	sent  []uint64
	stop  bool
}

func startLoad(w *world, id dataplane.ChunkID, writers, size int) *load {
	l := &load{w: w, id: id, size: size, acked: make([]uint64, writers), sent: make([]uint64, writers)}
	for i := range writers {
		w.cl.env.Do(func() { l.next(i) })
	}
	return l
}

func (l *load) off(i int) uint32 { return uint32(i * 65536) }

func (l *load) next(i int) {
	if l.stop {
		return
	}
	tag := l.sent[i] + 1
	l.sent[i] = tag
	l.w.cl.do(l.id, dataplane.Header{Op: dataplane.OpWrite, Offset: l.off(i)},
		pattern(uint64(i+1)<<24|tag, l.size), 0, func([]byte) {
			l.acked[i] = tag
			l.next(i)
		})
}

func (l *load) total() (n uint64) {
	for _, a := range l.acked {
		n += a
	}
	return n
}

// check reads every writer's blocks at the given member: what was acknowledged last, or later.
func (l *load) check(member int) {
	l.w.t.Helper()
	for i := range l.acked {
		got := l.w.read(l.id, l.off(i), uint32(l.size), member)
		for b := 0; b < l.size; b += dataplane.BlockSize {
			tag := binary.LittleEndian.Uint64(got[b:]) >> 20 & 0xffffff
			if tag < l.acked[i] || tag > l.sent[i] {
				l.w.t.Fatalf("member %d, writer %d, block %d: tag %d, acknowledged %d, sent %d", member,
					i, b/dataplane.BlockSize, tag, l.acked[i], l.sent[i])
			}
			want := pattern(uint64(i+1)<<24|tag, l.size)[b : b+dataplane.BlockSize]
			if !bytes.Equal(got[b:b+dataplane.BlockSize], want) {
				l.w.t.Fatalf("member %d, writer %d: block torn", member, i)
			}
		}
	}
}

// equal compares the replicas byte by byte.
func (w *world) equal(id dataplane.ChunkID, bytesToo uint32, nodes ...int) {
	w.t.Helper()
	first := w.nodes[nodes[0]].contents(id, 0, bytesToo)
	for _, n := range nodes[1:] {
		got := w.nodes[n].contents(id, 0, bytesToo)
		for i := 0; i < len(first); i += dataplane.BlockSize {
			if !bytes.Equal(first[i:i+dataplane.BlockSize], got[i:i+dataplane.BlockSize]) {
				w.t.Fatalf("cs %d and %d differ in block %d", nodes[0]+1, n+1, i/dataplane.BlockSize)
			}
		}
	}
}

func TestMemberDiesWritesGoOn(t *testing.T) {
	for _, victim := range []int{0, 1, 2} {
		t.Run(fmt.Sprintf("cs%d", victim+1), func(t *testing.T) {
			w := newWorld(t, uint64(10+victim), 3)
			w.md.add(chunkA, 1, 1, 2, 3)
			small := startLoad(w, chunkA, 8, 4096)
			w.must(func() bool { return small.total() > 500 }, 10*sec, "first writes")
			w.nodes[victim].kill()
			before := small.total()
			w.must(func() bool { return small.total() > before+500 }, 20*sec, "writes after the death")
			small.stop = true
			w.run(sec)
			cfg := w.md.chunks[chunkA]
			if cfg.Epoch != 2 || len(cfg.Members) != 2 {
				t.Fatalf("epoch %d, members %v", cfg.Epoch, cfg.Members)
			}
			small.check(0)
			small.check(1)
		})
	}
}

func TestMemberRestartsQuickly(t *testing.T) {
	for _, victim := range []int{0, 2} {
		w := newWorld(t, uint64(20+victim), 3)
		w.md.add(chunkA, 2, 1, 2, 3)
		l := startLoad(w, chunkA, 6, 65536)
		w.must(func() bool { return l.total() > 100 }, 10*sec, "first writes")
		w.nodes[victim].restart(false)
		before := l.total()
		w.must(func() bool { return l.total() > before+100 }, 10*sec, "writes after the restart")
		l.stop = true
		w.run(sec)
		if cfg := w.md.chunks[chunkA]; cfg.Epoch != 1 {
			t.Fatalf("a restart cost an epoch: %d", cfg.Epoch)
		}
		for m := range 3 {
			l.check(m)
		}
		w.equal(chunkA, 8*65536, 0, 1, 2)
	}
}

func TestPowerCutOfAll(t *testing.T) {
	seeds := 40
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		w := newWorld(t, uint64(1000+seed), 3)
		w.md.add(chunkA, 2, 1, 2, 3)
		size := []int{4096, 12288, 65536}[seed%3]
		l := startLoad(w, chunkA, 1+seed%7, size)
		w.must(func() bool { return l.total() > uint64(20+seed*3) }, 10*sec, "first writes")
		for _, nd := range w.nodes {
			nd.kill()
		}
		for _, nd := range w.nodes {
			nd.restart(true)
		}
		before := l.total()
		w.must(func() bool { return l.total() > before+20 }, 20*sec, "writes after the power cut")
		l.stop = true
		w.run(sec)
		for m := range 3 {
			l.check(m)
		}
		w.equal(chunkA, 8*65536, 0, 1, 2)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// settled writes some blocks, waits until they are in the store, and restarts all servers, so that
// reads come from there.
func settledInStore(t *testing.T, seed uint64) *world {
	w := newWorld(t, seed, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	for i := range 8 {
		w.mustWrite(chunkA, uint32(i)*65536, pattern(uint64(i+1), 65536))
	}
	for i := range 4000 { // fill segments, so that the ones before are destaged
		if i%16 == 0 {
			w.mustWrite(chunkA, 32<<20+uint32(i)*4096, pattern(uint64(i), 65536))
		}
	}
	w.run(20 * sec)
	for _, nd := range w.nodes {
		nd.kill()
	}
	for _, nd := range w.nodes {
		nd.restart(false)
	}
	return w
}

func TestDamagedBlockIsRepaired(t *testing.T) {
	w := settledInStore(t, 77)
	nd := w.nodes[1]
	slot := nd.sh.chunks[chunkA].slot
	if _, ok := nd.sh.log.Lookup(slot, 3); ok {
		t.Fatal("the block is still in the log; the test proves nothing")
	}
	nd.store.FlipBit(nd.sh.store.sb.block(slot, 3)+100, 3)
	var st dataplane.Kind
	answered := false
	w.read(chunkA, 0, 4096, 0) // settles
	w.cl.env.Do(func() {
		w.cl.ask(2, dataplane.Header{Op: dataplane.OpRead, Chunk: chunkA, Epoch: 1, Offset: 3 * 4096,
			Length: 4096}, nil, func(h *dataplane.Header, _ []byte) { st, answered = h.Status, true })
	})
	w.must(func() bool { return answered }, sec, "answer")
	if st != dataplane.BadCRC {
		t.Fatalf("a damaged block was answered %v", st)
	}
	w.must(func() bool { return w.md.event("block-repaired") == 1 }, 5*sec, "repair")
	if got := w.read(chunkA, 0, 65536, 1); !bytes.Equal(got, pattern(1, 65536)) {
		t.Fatal("other content after the repair")
	}
	w.equal(chunkA, 8*65536, 0, 1, 2)
}

func TestDamagedCRCPageIsRepaired(t *testing.T) {
	w := settledInStore(t, 78)
	nd := w.nodes[2]
	slot := nd.sh.chunks[chunkA].slot
	nd.store.FlipBit(nd.sh.store.sb.crcPage(slot*pagesPerSlot)+5, 1)
	w.read(chunkA, 0, 4096, 0)
	for i := range 8 {
		got := w.read(chunkA, uint32(i)*65536, 65536, 2)
		if !bytes.Equal(got, pattern(uint64(i+1), 65536)) {
			t.Fatalf("part %d: other content", i)
		}
	}
	if w.md.event("crc-page-damaged") == 0 {
		t.Fatal("the damage wasn't seen; the test proves nothing")
	}
	w.must(func() bool { return w.md.event("block-repaired") >= 16 }, 20*sec, "repair")
	for i := range 8 * 16 {
		w.read(chunkA, uint32(i)*4096, 4096, 2)
	}
	w.run(20 * sec)
	for _, e := range w.md.events {
		if e.Code == "block-lost" {
			t.Fatal(e.Message)
		}
	}
	w.equal(chunkA, 8*65536, 0, 1, 2)
}

// A replica whose slot entry is damaged is excluded, also if there is an activation record in the
// log: what it held before the log begins would read as zeros.
func TestDamagedSlotEntryExcludesReplica(t *testing.T) {
	for _, activated := range []bool{false, true} {
		damagedSlotEntry(t, activated)
	}
}

func damagedSlotEntry(t *testing.T, activated bool) {
	w := settledInStore(t, 79)
	if activated {
		w.read(chunkA, 0, 4096, 0)
	}
	nd := w.nodes[2]
	slot := nd.sh.chunks[chunkA].slot
	for _, n := range w.nodes {
		n.kill()
	}
	nd.store.FlipBit(nd.sh.store.sb.tablePage(slot)+int64(slot%entriesInPage)*entrySize+9, 1)
	nd.store.FlipBit(nd.sh.store.sb.stage, 1) // it may have an intact copy
	for _, n := range w.nodes {
		n.restart(false)
	}
	w.read(chunkA, 0, 4096, 0)
	if cfg := w.md.chunks[chunkA]; cfg.Epoch != 2 || len(cfg.Members) != 2 {
		t.Fatalf("activated %v: epoch %d, %d members", activated, cfg.Epoch, len(cfg.Members))
	}
	for i := range 9 {
		got := w.read(chunkA, uint32(i%8)*65536, 65536, i)
		if !bytes.Equal(got, pattern(uint64(i%8+1), 65536)) {
			t.Fatalf("activated %v, part %d: other content", activated, i%8)
		}
	}
}

func TestDiskFailureIsReportedAndServiceGoesOn(t *testing.T) {
	for victim := range 2 {
		w := newWorld(t, uint64(50+victim), 3)
		w.md.add(chunkA, 2, 1, 2, 3)
		l := startLoad(w, chunkA, 4, 4096)
		w.must(func() bool { return l.total() > 50 }, 10*sec, "first writes")
		nd := w.nodes[victim]
		nd.cache.FailRange(0, nd.cache.Size(), simloop.ErrIO, uring.DiskWriteSync)
		w.must(func() bool { return nd.failed != nil }, 10*sec, "failure noticed")
		if w.md.event("disk-failed") != 1 {
			t.Fatal("no event")
		}
		// What the metadata servers do with Heartbeat.Failed.
		nd.diedAt = w.sim.Now() - 10*sec
		w.md.report(nd.cs)
		before := l.total()
		w.must(func() bool { return l.total() > before+50 }, 20*sec, "writes without the disk")
		l.stop = true
		w.run(sec)
		if cfg := w.md.chunks[chunkA]; len(cfg.Members) != 2 || cfg.Epoch != 2 {
			t.Fatalf("epoch %d, members %v", cfg.Epoch, cfg.Members)
		}
		l.check(0)
		l.check(1)
		var st dataplane.Kind
		w.cl.env.Do(func() {
			h := dataplane.Header{Op: dataplane.OpRead, Chunk: chunkA, Epoch: 1, Length: 4096}
			w.cl.ask(nd.cs, h, nil, func(h *dataplane.Header, _ []byte) { st = h.Status })
		})
		w.must(func() bool { return st != 0 }, sec, "answer")
		if st != dataplane.IOError && st != dataplane.NoLease {
			t.Fatalf("a failed server answers %v", st)
		}
	}
}

func TestBelowMinimumWritesWait(t *testing.T) {
	w := newWorld(t, 60, 3)
	w.md.add(chunkA, 3, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	w.nodes[2].kill()
	done := false
	w.write(chunkA, 0, pattern(2, 4096), &done)
	w.must(func() bool { return w.md.chunks[chunkA].Epoch == 2 }, 20*sec, "exclusion")
	w.run(sec)
	if done {
		t.Fatal("a write below the minimum was acknowledged")
	}
	if got := w.read(chunkA, 8192, 4096, 0); !bytes.Equal(got, make([]byte, 4096)) {
		t.Fatal("a read below the minimum failed")
	}
	w.md.chunks[chunkA].Minimum = 2 // as if the policy was changed: the next settling learns of it
	w.nodes[0].env.Do(func() {
		cfg, _ := w.md.get(chunkA)
		w.nodes[0].sh.SettlePush(&control.SettlePush{Chunks: []control.ChunkConfig{*cfg}})
	})
	w.must(func() bool { return done }, 10*sec, "the write after the change")
}

func TestForgottenSlotIsUsedAgain(t *testing.T) {
	w := newWorld(t, 61, 1)
	for i := range 2 * w.slots {
		id := dataplane.ChunkID(1<<40) + dataplane.ChunkID(i+1)
		w.md.add(id, 1, 1)
		if got := w.read(id, 65536, 65536, 0); !bytes.Equal(got, make([]byte, 65536)) {
			t.Fatalf("chunk %d begins with old content", i)
		}
		w.mustWrite(id, 65536, pattern(uint64(i+1), 65536))
		if i%3 == 2 {
			w.nodes[0].restart(i%2 == 0)
		}
		if i+1 >= w.slots { // the disk is full: the oldest goes
			old := id - dataplane.ChunkID(w.slots) + 1
			nd := w.nodes[0]
			delete(w.md.chunks, old)
			nd.env.Do(func() { nd.sh.Forget([]dataplane.ChunkID{old}) })
			w.must(func() bool { return len(nd.sh.store.free) > 0 }, 10*sec, "a free slot")
		}
	}
	for i := range 2 * w.slots {
		id := dataplane.ChunkID(1<<40) + dataplane.ChunkID(i+1)
		if w.md.chunks[id] == nil {
			continue
		}
		if got := w.read(id, 65536, 65536, 0); !bytes.Equal(got, pattern(uint64(i+1), 65536)) {
			t.Fatalf("chunk %d: other content", i)
		}
	}
}

// A new chunk on a full server is refused in a way that says so, and nothing else suffers.
func TestFullServer(t *testing.T) {
	w := newWorld(t, 62, 1)
	w.md.add(chunkA, 1, 1)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	nd := w.nodes[0]
	nd.sh.SetFull(true)
	w.md.add(chunkA+1, 1, 1)
	done := false
	w.write(chunkA+1, 0, pattern(2, 4096), &done)
	w.run(2 * sec)
	if done {
		t.Fatal("a chunk was made without space")
	}
	w.mustWrite(chunkA, 4096, pattern(3, 4096))
	nd.sh.SetFull(false)
	w.must(func() bool { return done }, 10*sec, "the write when there is space")
}

// A later connection of the same client ends the older one.
func TestNewerConnectionReplacesOlder(t *testing.T) {
	w := newWorld(t, 63, 1)
	w.md.add(chunkA, 1, 1)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	first := w.cl.conns[1]
	w.cl.env.Do(func() {
		delete(w.cl.conns, 1)
		w.cl.conn(1)
	})
	w.mustWrite(chunkA, 0, pattern(2, 4096))
	lost := false
	w.cl.env.Do(func() {
		h := dataplane.Header{Op: dataplane.OpPing, ReqID: 1}
		first.c.Send(&h, nil, nil)
	})
	w.run(sec)
	lost = w.nodes[0].sh.linkCount == 1
	if !lost {
		t.Fatalf("%d connections", w.nodes[0].sh.linkCount)
	}
}
