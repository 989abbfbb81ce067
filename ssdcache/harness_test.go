package ssdcache

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// The world of the tests: a small key space, a model of what a prefix of all appends amounts to, a
// store that loses what wasn't checkpointed, and a log on a simulated disk.

const (
	testSlots  = 4
	testBlocks = 96 // of each slot
)

// change is one append, for the model. Its number in the history, from 1, is its Seq and the
// contents of its blocks.
type change struct {
	kind        RecordKind
	slot, block uint32
	n           uint32
}

type contents [testSlots][testBlocks]uint64 // tag of each block; 0: zeros

func (c *contents) apply(ch change, tag uint64) {
	switch ch.kind {
	case Data:
		for i := range ch.n {
			c[ch.slot][ch.block+i] = tag
		}
	case Zero:
		clear(c[ch.slot][ch.block : ch.block+ch.n])
	case Drop:
		clear(c[ch.slot][:])
	}
}

// fillTag makes b the contents with the given tag; tagOf reads it back and finds torn blocks.
func fillTag(b []byte, tag uint64) {
	for i := 0; i < len(b); i += 8 {
		le.PutUint64(b[i:], tag*0x9e3779b97f4a7c15)
	}
}

func tagOf(b []byte) (uint64, error) {
	first := le.Uint64(b)
	for i := 8; i < len(b); i += 8 {
		if le.Uint64(b[i:]) != first {
			return 0, fmt.Errorf("torn block: byte %d", i)
		}
	}
	return first * 0xf1de83e19937733d, nil // the inverse
}

var blockCRCs = map[uint64]uint32{}

func crcOfTag(tag uint64) uint32 {
	c, ok := blockCRCs[tag]
	if !ok {
		b := make([]byte, blockSize)
		fillTag(b, tag)
		c = dataplane.CRC(b)
		blockCRCs[tag] = c
	}
	return c
}

// storeWrite is a change of the store that isn't checkpointed.
type storeWrite struct {
	slot, block uint32
	tag         uint64
}

// fakeStore is the Backing. It survives crashes of the process and loses power with the disk.
type fakeStore struct {
	env     *simloop.Env
	log     *Log
	cur     contents
	durable contents
	pend    []storeWrite
	zeros   []change // wait for WriteBacks in flight on their range
	fail    error
	hold    bool // keep WriteBacks waiting
	waiting []func()
	slowest uint64 // ns
	bad     error  // what went wrong, by the tests' rules
	written uint64
	filled  int // gaps
	writing []*WriteBack
}

// begin finds out whether a block is in two WriteBacks at once.
func (s *fakeStore) begin(w *WriteBack) {
	for _, o := range s.writing {
		if o.Slot != w.Slot {
			continue
		}
		for b := max(o.Block, w.Block); b < min(o.Block+uint32(o.Blocks),
			w.Block+uint32(w.Blocks)); b++ {
			if !o.IsGap(int(b-o.Block)) && !w.IsGap(int(b-w.Block)) {
				s.bad = fmt.Errorf("block %d of slot %d is in two write-backs", b, w.Slot)
			}
		}
	}
	s.writing = append(s.writing, w)
}

func (s *fakeStore) set(slot, block uint32, tag uint64) {
	s.cur[slot][block] = tag
	s.pend = append(s.pend, storeWrite{slot, block, tag})
}

func (s *fakeStore) later(f func()) {
	env := s.env
	if s.hold {
		s.waiting = append(s.waiting, func() { env.Post(f) })
		return
	}
	if s.slowest == 0 { // every life has a store of another speed
		s.slowest = []uint64{1000, 300_000, 8_000_000}[env.Rand()%3]
	}
	env.Arm(&uring.Timer{Fire: f}, int64(env.Rand()%s.slowest))
}

func (s *fakeStore) release() {
	s.hold = false
	for _, f := range s.waiting {
		f()
	}
	s.waiting = nil
}

func (s *fakeStore) WriteBack(w *WriteBack) {
	had := s.cur[w.Slot] // what gaps are filled with
	s.begin(w)
	s.later(func() {
		s.writing = slices.DeleteFunc(s.writing, func(o *WriteBack) bool { return o == w })
		w.Err = s.fail
		at, n := 0, 0
		for _, d := range w.Data {
			for ; len(d) > 0; d = d[blockSize:] {
				for ; w.IsGap(at); at++ {
					s.set(w.Slot, w.Block+uint32(at), had[w.Block+uint32(at)])
					s.filled++
				}
				tag, err := tagOf(d[:blockSize])
				if err == nil && le.Uint32(w.CRCs[4*at:]) != crcOfTag(tag) {
					err = fmt.Errorf("tag %d with another CRC", tag)
				}
				if err != nil {
					s.bad = fmt.Errorf("write-back of slot %d block %d: %w", w.Slot, w.Block, err)
				}
				s.set(w.Slot, w.Block+uint32(at), tag)
				at++
			}
			n++
		}
		if at != w.Blocks || len(w.CRCs) != 4*at || n > uring.MaxDiskBufs {
			s.bad = fmt.Errorf("write-back of %d blocks, data of %d in %d pieces", w.Blocks, at, n)
		}
		s.written += uint64(at)
		w.Done(w)
		s.applyZeros()
	})
}

func (s *fakeStore) Checkpoint(done func(error)) {
	s.later(func() {
		if s.fail == nil {
			s.durable, s.pend = s.cur, nil
		}
		done(s.fail)
	})
}

// zero is what an owner does with Zero and Drop: the store's blocks become zeros, after WriteBacks
// in flight on them, and before any later one.
func (s *fakeStore) zero(c change) {
	s.zeros = append(s.zeros, c)
	s.applyZeros()
}

func (s *fakeStore) applyZeros() {
	rest := s.zeros[:0]
	for _, c := range s.zeros {
		if s.log != nil && s.log.InWriteBack(c.slot, c.block, c.n) {
			rest = append(rest, c)
			continue
		}
		for i := range c.n {
			s.set(c.slot, c.block+i, 0)
		}
		if s.log != nil {
			s.log.StoreChanged(c.slot, c.block, c.n)
		}
	}
	s.zeros = rest
}

// crash keeps any part of what wasn't checkpointed.
func (s *fakeStore) crash(rng *rand.Rand) *fakeStore {
	c := &fakeStore{durable: s.durable}
	odds := rng.IntN(5)
	for _, w := range s.pend {
		if rng.IntN(4) < odds {
			c.durable[w.slot][w.block] = w.tag
		}
	}
	c.cur = c.durable
	return c
}

// rig is one log in its world.
type rig struct {
	t       testing.TB
	rng     *rand.Rand
	sim     *simloop.Sim
	env     *simloop.Env
	disk    *simloop.Disk
	dev     uring.Disk // what the log gets: disk, or something around it
	store   *fakeStore
	pool    *uring.Pool
	log     *Log
	opt     Options
	history []change
	acked   uint64
	replay  uint64 // highest seq seen in replay
	records int
	fails   int
	failed  error
	readers bool      // live reads, too
	reads   [3]uint64 // of blocks: in the log, there as a clean copy, in the store
}

const testOwner = 0xabc

func newRig(t testing.TB, seed uint64, segments, segSize int) *rig {
	r := &rig{t: t, rng: rand.New(rand.NewPCG(seed, 77)), sim: simloop.New(seed)}
	r.env = r.sim.NewEnv("cs")
	size := int64(firstBlock*blockSize + segments*segSize)
	r.disk = simloop.NewDisk(r.env, size, 512, simloop.DiskOptions{})
	r.dev = r.disk
	r.store = &fakeStore{}
	r.newPool()
	err := r.wait(func(done func(error)) {
		Format(FormatOptions{Disk: r.dev, Env: r.env, Pool: r.pool, Owner: testOwner,
			SegmentSize: segSize}, done)
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) newPool() {
	var err error
	if r.pool, err = uring.NewPool(24 << 20); err != nil {
		r.t.Fatal(err)
	}
}

// wait runs f on the node until it calls back.
func (r *rig) wait(f func(done func(error))) error {
	r.t.Helper()
	fin, res := false, error(nil)
	r.env.Do(func() { f(func(err error) { fin, res = true, err }) })
	if !r.sim.Run(func() bool { return fin }, r.sim.Now()+600e9) {
		r.t.Fatal("never done")
	}
	return res
}

func (r *rig) open() error {
	r.store.env, r.store.log = r.env, nil
	r.replay, r.records, r.fails, r.failed = 0, 0, 0, nil
	o := r.opt
	if o.MaxSlots == 0 {
		o.MaxSlots = testSlots
	}
	o.Disk, o.Env, o.Pool, o.Owner = r.dev, r.env, r.pool, testOwner
	o.Backing, o.Log = r.store, slog.New(slog.NewTextHandler(io.Discard, nil))
	o.OnFail = func(err error) { r.fails++; r.failed = err }
	return r.wait(func(done func(error)) {
		Open(o, r.onRecord, func(l *Log, err error) {
			r.log, r.store.log = l, l
			done(err)
		})
	})
}

func (r *rig) onRecord(rec *Record) {
	if rec.Kind == Moved {
		return // contents are checked
	}
	seq := uint64(rec.Seq)
	r.records++
	if seq <= r.replay || seq > uint64(len(r.history)) {
		r.t.Fatalf("record %d replayed after %d", seq, r.replay)
	}
	r.replay = seq
	want := r.history[seq-1]
	if got := changeOf(rec); got != want {
		r.t.Fatalf("record %d: %+v, was %+v", seq, got, want)
	}
	if want.kind == Meta && string(rec.Meta) != metaOf(seq) {
		r.t.Fatalf("record %d: meta %q", seq, rec.Meta)
	}
	if want.kind == Zero || want.kind == Drop {
		r.store.zero(want)
	}
}

func changeOf(rec *Record) change {
	c := change{rec.Kind, rec.Slot, rec.Offset / blockSize, rec.Length / blockSize}
	if c.kind == Drop {
		c.n = testBlocks
	}
	return c
}

func metaOf(seq uint64) string { return fmt.Sprintf("meta of %d", seq) }

// append adds a change to the log and the history. Data goes by Buf or by copy, as chance wants.
func (r *rig) append(c change) *Append {
	r.history = append(r.history, c)
	tag := uint64(len(r.history))
	a := &Append{Record: Record{Kind: c.kind, Slot: c.slot, Chunk: dataplane.NewChunkID(1,
		uint64(c.slot)), Epoch: 1, Seq: dataplane.Seq(tag)}}
	switch c.kind {
	case Data, Zero:
		a.Offset, a.Length = c.block*blockSize, c.n*blockSize
	case Meta:
		a.Meta = []byte(metaOf(tag))
	}
	if c.kind == Data {
		buf := r.pool.Get(int(a.Length))
		if buf == nil {
			r.t.Fatal("pool exhausted")
		}
		defer buf.Release()
		a.Data = buf.Bytes()[:a.Length]
		fillTag(a.Data, tag)
		a.CRCs = make([]byte, 4*c.n)
		for i := range c.n {
			le.PutUint32(a.CRCs[4*i:], crcOfTag(tag))
		}
		if r.rng.IntN(2) == 0 {
			a.Buf = buf
		}
	}
	a.Done = func(a *Append) {
		if a.Err != nil {
			return
		}
		if r.acked+1 != tag {
			r.t.Fatalf("append %d acknowledged after %d", tag, r.acked)
		}
		r.acked = tag
		if c.kind == Zero || c.kind == Drop {
			r.store.zero(c)
		}
	}
	r.log.Append(a)
	return a
}

func (r *rig) randomChange() change {
	c := change{slot: r.rng.Uint32N(testSlots), n: 1}
	switch k := r.rng.IntN(40); {
	case k == 0:
		return change{kind: Drop, slot: c.slot, n: testBlocks}
	case k < 3:
		c.kind, c.n = Zero, 1+r.rng.Uint32N(30)
	case k < 6:
		return change{kind: Meta, slot: c.slot}
	default:
		c.kind = Data
		if r.rng.IntN(3) == 0 {
			c.n = 1 + r.rng.Uint32N(16)
		}
	}
	c.block = r.rng.Uint32N(testBlocks - c.n + 1)
	return c
}

// stateAfter is what the first k appends amount to.
func (r *rig) stateAfter(k uint64) (c contents) {
	for i := range k {
		c.apply(r.history[i], i+1)
	}
	return c
}

// check compares log and store with what must be there: all that was acknowledged, and of the rest
// a prefix. Without log records the acknowledged is all there is.
func (r *rig) check() {
	r.t.Helper()
	k := r.replay
	if r.records == 0 {
		k = r.acked
	}
	if k < r.acked {
		r.t.Fatalf("acknowledged up to %d, found up to %d", r.acked, k)
	}
	want := r.stateAfter(k)
	buf := make([]byte, blockSize)
	for slot := range uint32(testSlots) {
		for block := range uint32(testBlocks) {
			got := r.store.cur[slot][block]
			p, ok := r.log.Lookup(slot, block)
			if ok {
				r.disk.ReadAt(buf, int64(p)*blockSize)
				var err error
				if got, err = tagOf(buf); err != nil || crcOfTag(got) != r.log.CRC(p) {
					r.t.Fatalf("slot %d block %d at %d: tag %d %v", slot, block, p, got, err)
				}
			}
			if got != want[slot][block] {
				r.t.Fatalf("slot %d block %d: got write %d (in the log: %v), want %d of %d (acked %d)",
					slot, block, got, ok, want[slot][block], k, r.acked)
			}
		}
	}
	r.history, r.acked = r.history[:k], k
}

// readBlocks reads some blocks as a chunk server does: what isn't in the log comes from the store,
// as it was at some moment until the read is done, and is offered to the read cache.
func (r *rig) readBlocks(slot, block, n uint32) {
	log, store, env := r.log, r.store, r.env
	buf := make([]byte, n*blockSize)
	crcs := make([]byte, 4*n)
	for i := uint32(0); i < n; i++ {
		p, ok := log.Lookup(slot, block+i)
		if ok {
			r.readLogged(p, slot, block+i)
			continue
		}
		r.reads[2]++
		ticket := log.Ticket()
		take := func() {
			tag := store.cur[slot][block+i]
			fillTag(buf[i*blockSize:][:blockSize], tag)
			le.PutUint32(crcs[4*i:], crcOfTag(tag))
		}
		at := r.rng.IntN(3)
		if at == 0 {
			take()
		}
		env.Arm(&uring.Timer{Fire: func() {
			if at == 1 {
				take()
			}
			env.Arm(&uring.Timer{Fire: func() {
				if at == 2 {
					take()
				}
				if log.closing == nil {
					log.Admit(ticket, slot, block+i, 1, buf[i*blockSize:][:blockSize], crcs[4*i:4*i+4])
				}
			}}, int64(r.rng.IntN(3_000_000)))
		}}, int64(r.rng.IntN(500_000)))
	}
}

func (r *rig) readLogged(p Pos, slot, block uint32) {
	log, crc := r.log, r.log.CRC(p)
	r.reads[0]++
	if log.idx.state[p]&isClean != 0 {
		r.reads[1]++
	}
	b := r.pool.Get(blockSize)
	op := &ReadOp{Pos: p, Blocks: 1, Buf: b.Bytes()[:blockSize]}
	op.Done = func(op *ReadOp) {
		if op.Err == nil && dataplane.CRC(op.Buf) != crc {
			r.t.Fatalf("slot %d block %d at %d: not what it was when the read began", slot, block, p)
		}
		b.Release()
	}
	log.Read(op)
}

// checkCopies compares all clean blocks in the log with the newest writes, but for ranges that are
// just being zeroed.
func (r *rig) checkCopies() {
	var busy contents
	for seq := r.acked; seq < uint64(len(r.history)); seq++ {
		if c := r.history[seq]; c.kind == Zero || c.kind == Drop {
			busy.apply(change{Data, c.slot, c.block, c.n}, 1)
		}
	}
	for _, c := range r.store.zeros {
		busy.apply(change{Data, c.slot, c.block, c.n}, 1)
	}
	want := r.stateAfter(uint64(len(r.history)))
	for slot := range uint32(testSlots) {
		for block := range uint32(testBlocks) {
			p, ok := r.log.Lookup(slot, block)
			if !ok || busy[slot][block] != 0 || r.log.dirty(p) {
				continue
			}
			if r.log.CRC(p) != crcOfTag(want[slot][block]) {
				r.t.Fatalf("slot %d block %d: a clean copy at %d isn't write %d", slot, block, p,
					want[slot][block])
			}
		}
	}
}

// powerCut ends the process and the power, and makes a new process.
func (r *rig) powerCut() {
	r.env.Kill()
	r.disk.PowerCut()
	r.restart(r.store.crash(r.rng))
}

// kill ends the process only.
func (r *rig) kill() {
	r.env.Kill()
	s := r.store
	s.durable = s.cur
	r.restart(&fakeStore{cur: s.cur, durable: s.cur})
}

func (r *rig) restart(s *fakeStore) {
	r.dispose()
	r.env = r.sim.NewEnv("cs")
	r.disk.Attach(r.env)
	r.store = s
	r.newPool()
}

// dispose gives back memory outside the Go heap, whatever state the log is in.
func (r *rig) dispose() {
	if r.log != nil && !r.log.closed {
		err := errors.Join(r.log.idx.close(), r.log.cache.close(),
			unix.Munmap(r.log.spill.Arena()))
		if err != nil {
			r.t.Fatal(err)
		}
	}
	r.log = nil
	if err := unix.Munmap(r.pool.Arena()); err != nil {
		r.t.Fatal(err)
	}
}
