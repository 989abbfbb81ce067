package chunk

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// scrubAll has every server scrub its store, and waits for the end.
func (w *world) scrubAll() {
	w.t.Helper()
	for _, nd := range w.nodes {
		nd.env.Do(nd.sh.ScrubStart)
	}
	for _, nd := range w.nodes {
		w.must(func() bool { return nd.scrubbed() }, 600*sec, "end of the scrub")
	}
}

func (nd *node) scrubbed() bool {
	s := nd.sh.Stats()
	return !s.ScrubRunning && s.ScrubFinishedNs > 0
}

// flip damages a block in the store of a node.
func (nd *node) flip(id dataplane.ChunkID, block uint32) {
	nd.w.t.Helper()
	slot := nd.sh.chunks[id].slot
	if _, ok := nd.sh.log.Lookup(slot, block); ok {
		nd.w.t.Fatalf("block %d is still in the log; the test proves nothing", block)
	}
	nd.store.FlipBit(nd.sh.store.sb.block(slot, block)+int64(block)%4096, 3)
}

// Damage in what nobody reads is found and repaired, in chunks that nobody used since the start.
func TestScrubRepairsWhatNobodyReads(t *testing.T) {
	for victim := range 3 {
		w := settledInStore(t, uint64(300+victim))
		nd := w.nodes[victim]
		for _, b := range []uint32{0, 3, 17, 31, 100} {
			nd.flip(chunkA, b)
		}
		w.scrubAll()
		s := nd.sh.Stats()
		if s.ScrubBad != 5 || s.ScrubRepaired != 5 || s.ScrubLost != 0 || s.ScrubRead < 8*65536 ||
			s.ScrubDone != dataplane.ChunkSize || s.ScrubTotal != s.ScrubDone {
			t.Fatalf("cs %d: %+v", nd.cs, s)
		}
		if n := w.md.event("block-repaired"); n != 5 {
			t.Fatalf("%d events of repairs", n)
		}
		for _, o := range w.nodes {
			if s := o.sh.Stats(); o != nd && (s.ScrubBad != 0 || s.CRCErrors != 0) {
				t.Fatalf("cs %d: %+v", o.cs, s)
			}
		}
		w.equal(chunkA, 8*65536, 0, 1, 2)
	}
}

func TestScrubRepairsLostCRCPage(t *testing.T) {
	w := settledInStore(t, 310)
	nd := w.nodes[2]
	slot := nd.sh.chunks[chunkA].slot
	nd.store.FlipBit(nd.sh.store.sb.crcPage(slot*pagesPerSlot)+5, 1)
	w.scrubAll()
	if w.md.event("crc-page-damaged") == 0 {
		t.Fatal("the damage wasn't seen; the test proves nothing")
	}
	if s := nd.sh.Stats(); s.ScrubLost != 0 || s.ScrubRepaired != s.ScrubBad || s.ScrubBad < 128 {
		t.Fatalf("%+v", s)
	}
	w.equal(chunkA, 8*65536, 0, 1, 2)
}

// A disk that can't read some sectors.
func TestScrubRepairsUnreadable(t *testing.T) {
	w := settledInStore(t, 311)
	nd := w.nodes[1]
	slot := nd.sh.chunks[chunkA].slot
	at := nd.sh.store.sb.block(slot, 20)
	nd.store.Fault = func(op *uring.DiskOp) (f simloop.Fault) {
		n := int64(0)
		for _, b := range op.Bufs {
			n += int64(len(b))
		}
		if op.Kind == uring.DiskRead && op.Offset < at+8192 && at < op.Offset+n {
			f.Err = errors.New("unreadable")
		}
		return f
	}
	w.scrubAll()
	if s := nd.sh.Stats(); s.ScrubBad != 2 || s.ScrubRepaired != 2 || nd.failed != nil {
		t.Fatalf("%+v %v", s, nd.failed)
	}
	nd.store.Fault = nil
	w.equal(chunkA, 8*65536, 0, 1, 2)
}

// A block of which there is no second copy is reported, and the pass goes on.
func TestScrubReportsLostBlock(t *testing.T) {
	w := settledInStore(t, 312)
	w.nodes[0].kill()
	w.nodes[2].kill()
	nd := w.nodes[1]
	nd.flip(chunkA, 3)
	nd.env.Do(nd.sh.ScrubStart)
	w.must(nd.scrubbed, 600*sec, "end of the scrub")
	if s := nd.sh.Stats(); s.ScrubBad != 1 || s.ScrubLost != 1 || s.ScrubRepaired != 0 {
		t.Fatalf("%+v", s)
	}
	if w.md.event("block-not-repaired")+w.md.event("block-lost") != 1 {
		t.Fatal("no event")
	}
}

// A pass goes on after a restart, orderly or not, where it was.
func TestScrubResumes(t *testing.T) {
	for _, cut := range []bool{false, true} {
		w := settledInStore(t, 313)
		nd := w.nodes[0]
		nd.env.Do(func() {
			nd.sh.scrub.rate = 1 << 19 // one step in two seconds
			nd.sh.ScrubStart()
		})
		w.must(func() bool { return nd.sh.Stats().ScrubDone >= 40<<20 }, 600*sec, "part of the pass")
		before := nd.sh.Stats()
		if !cut {
			stopped := false
			nd.env.Do(func() {
				nd.sh.Stop(func(err error) {
					if err != nil {
						t.Error(err)
					}
					stopped = true
				})
			})
			w.must(func() bool { return stopped }, 10*sec, "stop")
		} else {
			w.run(12 * sec)
		}
		nd.restart(cut)
		after := nd.sh.Stats()
		if !after.ScrubRunning || !after.ScrubManual || after.ScrubStartedNs != before.ScrubStartedNs ||
			after.ScrubDone < before.ScrubDone-(8<<20) || after.ScrubRead < before.ScrubRead/2 {
			t.Fatalf("cut %v: %+v after %+v", cut, after, before)
		}
		w.must(nd.scrubbed, 600*sec, "the rest")
		if s := nd.sh.Stats(); s.ScrubDone != dataplane.ChunkSize {
			t.Fatalf("%+v", s)
		}
	}
}

// A scheduled pass takes its period, and the next one follows.
func TestScrubPeriod(t *testing.T) {
	w := settledInStore(t, 314)
	nd := w.nodes[0]
	nd.env.Do(func() {
		nd.sh.scrub.period = int64(10 * time.Minute)
		nd.sh.scrub.start()
	})
	w.must(func() bool { return nd.sh.Stats().ScrubRunning }, 1200*sec, "start")
	began := nd.sh.Stats().ScrubStartedNs
	w.must(nd.scrubbed, 700*sec, "end")
	if took := nd.sh.Stats().ScrubFinishedNs - began; took < 60*sec || took > 620*sec {
		t.Fatalf("a pass of 10 minutes took %d s", took/sec)
	}
	w.must(func() bool { return nd.sh.Stats().ScrubRunning }, 700*sec, "the next")
	if next := nd.sh.Stats().ScrubStartedNs - began; next < 599*sec || next > 620*sec {
		t.Fatalf("the next pass began after %d s", next/sec)
	}
}

// A scheduled pass keeps its period also while clients are at work all the time, and one that can't
// is an event, once.
func TestScrubPeriodUnderLoad(t *testing.T) {
	const step = 50 * ms // less than a busy server takes for one
	const period = dataplane.ChunkSize / scrubBytes * step
	w := settledInStore(t, 317)
	nd := w.nodes[0]
	w.read(chunkA, 0, 4096, 0) // settles
	l := startLoad(w, chunkA, 4, 4096)
	pass := func(rate int64) (took int64) {
		nd.env.Do(func() {
			nd.sh.scrub.period, nd.sh.scrub.rate = period, rate
			nd.sh.scrub.rec = scrubRecord{}
			nd.sh.scrub.begin(0)
			nd.sh.scrub.start()
		})
		w.must(func() bool { return nd.sh.Stats().ScrubDone == dataplane.ChunkSize }, 60*sec, "end")
		return w.sim.Now() - nd.sh.Stats().ScrubStartedNs
	}
	if took := pass(scrubRate); took > period {
		t.Fatalf("a pass of %d ms took %d ms", period/ms, took/ms)
	}
	if n := w.md.event("scrub-late"); n != 0 {
		t.Fatalf("%d events of a pass in time", n)
	}
	for i := range 2 {
		if took := pass(scrubBytes); took < 2*period {
			t.Fatalf("a slow pass took %d ms; the test proves nothing", took/ms)
		}
		if n := w.md.event("scrub-late"); n != i+1 {
			t.Fatalf("%d events of %d passes that took too long", n, i+1)
		}
	}
	l.stop = true
}

// While clients are at work the scrubber does a few steps a second only, but goes on.
func TestScrubGivesWay(t *testing.T) {
	w := settledInStore(t, 315)
	nd := w.nodes[0]
	w.read(chunkA, 0, 4096, 0) // settles
	l := startLoad(w, chunkA, 4, 4096)
	w.run(sec)
	quiet := l.total()
	w.run(sec)
	quiet = l.total() - quiet
	before := nd.store.Ops[uring.DiskRead]
	nd.env.Do(nd.sh.ScrubStart)
	start := nd.sh.Stats().ScrubDone
	from := l.total()
	w.run(sec)
	if n := l.total() - from; n < quiet*9/10 {
		t.Fatalf("%d writes in a second with the scrubber, %d without", n, quiet)
	}
	if n := nd.store.Ops[uring.DiskRead] - before; n > 40 {
		t.Fatalf("%d reads of the store in a second under load", n)
	}
	w.must(func() bool { return nd.sh.Stats().ScrubDone > start+(2<<20) }, 60*sec, "progress")
	l.stop = true
	w.must(nd.scrubbed, 60*sec, "end")
}

// Asking again for a pass restarts a scheduled one, also in the middle of a step.
func TestScrubStartInTheMiddle(t *testing.T) {
	w := settledInStore(t, 316)
	nd := w.nodes[0]
	for i := range 50 {
		nd.env.Do(func() {
			nd.sh.ScrubStart()
			nd.sh.scrub.rec.flags &^= scrubManual // as if it were a scheduled one
			nd.sh.scrub.period = 1
		})
		w.run(int64(i) * ms / 3)
	}
	nd.env.Do(func() {
		nd.sh.scrub.period = -1
		nd.sh.ScrubStart()
	})
	w.must(nd.scrubbed, 60*sec, "end")
	if s := nd.sh.Stats(); s.ScrubDone != dataplane.ChunkSize || s.ScrubBad != 0 {
		t.Fatalf("%+v", s)
	}
}

func TestScrubRecord(t *testing.T) {
	want := scrubRecord{flags: scrubRunning, slot: 7, block: 512, startedNs: 1, finishedNs: 2, done: 3,
		read: 4, bad: 5, repaired: 6, lost: 7, mismatches: 8}
	b := make([]byte, scrubRecordSize)
	want.put(b)
	var got scrubRecord
	if err := got.decode(b); err != nil || got != want {
		t.Fatalf("%+v, %v", got, err)
	}
	for i := range b {
		b[i] ^= 4
		if err := got.decode(b); err == nil || got != (scrubRecord{}) {
			t.Fatalf("byte %d: taken", i)
		}
		b[i] ^= 4
	}
	if err := got.decode(make([]byte, scrubRecordSize)); err != nil || got != (scrubRecord{}) {
		t.Fatal("zeros aren't the record of a new store")
	}
	for name, bad := range map[string]scrubRecord{"flags": {flags: 4}, "slot": {slot: maxSlots + 1},
		"block": {block: 1}, "end": {block: 16640}, "time": {startedNs: -1}} {
		bad.put(b)
		if got.decode(b) == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzScrubRecord(f *testing.F) {
	b := make([]byte, scrubRecordSize)
	(&scrubRecord{flags: scrubManual, slot: 1}).put(b)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var s, again scrubRecord
		if s.decode(b) != nil {
			return
		}
		out := make([]byte, scrubRecordSize)
		s.put(out)
		if again.decode(out) != nil || again != s {
			t.Fatalf("%+v became %+v", s, again)
		}
	})
}

// Replicas that differ although their checksums are right are reported by the head.
func TestScrubComparesReplicas(t *testing.T) {
	w := settledInStore(t, 320)
	w.scrubAll()
	if w.md.event("replica-mismatch") != 0 {
		t.Fatal("equal replicas differ")
	}
	nd := w.nodes[2]
	nd.env.Do(func() { // block 5 gets the content of block 6, with the right checksum
		st, slot := nd.sh.store, nd.sh.chunks[chunkA].slot
		b := make([]byte, 4096)
		nd.store.ReadAt(b, st.sb.block(slot, 6))
		nd.store.WriteAt(b, st.sb.block(slot, 5))
		p := st.cache.get(slot * pagesPerSlot)
		if p == nil {
			t.Fatal("the CRC page isn't in memory")
		}
		p.setWord(5, p.word(6))
	})
	w.scrubAll()
	s := w.nodes[0].sh.Stats()
	if w.md.event("replica-mismatch") != 1 || s.ScrubMismatches != 1 {
		t.Fatalf("%d events, %+v", w.md.event("replica-mismatch"), s)
	}
	for _, nd := range w.nodes {
		if s := nd.sh.Stats(); s.ScrubBad != 0 {
			t.Fatalf("cs %d: %+v", nd.cs, s)
		}
	}
}

// Chunks that are written to while replicas are compared are no mismatch: in the log of one and
// destaged on another, zeroed, or on their way.
func TestScrubComparesUnderLoad(t *testing.T) {
	w := settledInStore(t, 321)
	w.read(chunkA, 0, 4096, 0)
	for i := range 4 {
		l := startLoad(w, chunkA, 4, 4096)
		w.run(20 * ms)
		l.stop = true
		for _, nd := range w.nodes { // some compare at once, some later
			nd.env.Do(nd.sh.ScrubStart)
			w.run(int64(i) * ms)
		}
		w.scrubAll()
	}
	if w.md.event("replica-mismatch") != 0 {
		t.Fatal("equal replicas differ")
	}
}

func TestDigestWords(t *testing.T) {
	for _, x := range []uint32{0, 1, 2, 3, 4, 5, 1 << 31} {
		for _, zeros := range []bool{false, true} {
			if zeros && x != 0 {
				continue
			}
			if a, b := plainWord(x), plainWord(word(x^zeroCRC, zeros)); a != b {
				t.Errorf("checksum %x: %x in the log, %x in the store", x, a, b)
			}
		}
	}
}

// A member whose answer says that it differs is excluded before the answer comes.
func TestScrubComparesWithFormerMember(t *testing.T) {
	w := settledInStore(t, 322)
	w.scrubAll()
	head, nd := w.nodes[0], w.nodes[2]
	nd.env.Do(func() {
		p := nd.sh.store.cache.get(nd.sh.chunks[chunkA].slot * pagesPerSlot)
		p.setWord(5, p.word(6))
	})
	w.net.Cut(nd.ip, head.ip, true)
	head.env.Do(func() { head.sh.scrub.chunkDone(head.sh.chunks[chunkA]) })
	w.run(50 * ms)
	cfg, _ := w.md.get(chunkA)
	head.env.Do(func() {
		head.sh.SettlePush(&control.SettlePush{Chunks: []control.ChunkConfig{*cfg},
			Lost: []dataplane.CSID{nd.cs}})
	})
	w.must(func() bool { return len(head.sh.chunks[chunkA].members) == 2 }, sec, "exclusion")
	w.net.Cut(nd.ip, head.ip, false)
	w.must(func() bool { return w.md.event("replica-mismatch") == 1 }, sec, "the report")
	if e := w.md.events[len(w.md.events)-1]; !strings.Contains(e.Message, "what cs 3 has") {
		t.Errorf("%s", e.Message)
	}
}
