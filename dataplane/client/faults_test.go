package client

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"pstorage/dataplane"
)

// with returns a world with one file of one written chunk, its bytes, and the chunk.
func with(t *testing.T, change ...func(*Options)) (*world, *File, []byte, *fakeChunk) {
	t.Helper()
	w := newWorld(t, 3, 3, change...)
	f := w.file(0)
	data := w.random(int(4 * mib))
	w.write(f, 0, data)
	return w, f, data, w.chunks[w.meta.files[f.id].chunks[0]]
}

// TestEveryStatus: for each kind of answer, once by one server, the ops succeed (retried) or fail.
func TestEveryStatus(t *testing.T) {
	for kind := dataplane.OK + 1; kind.Valid(); kind++ {
		for _, op := range []*Op{{Kind: Read, Buf: make([]byte, 4096)},
			{Kind: Write, Buf: make([]byte, 4096)}, {Kind: Zero, Length: 8192}} {
			w, f, data, _ := with(t)
			left := 2
			for _, cs := range w.cs {
				cs.refuse = func(h *dataplane.Header) dataplane.Kind {
					if h.Op == dataplane.OpPing || left == 0 {
						return dataplane.OK
					}
					left--
					return kind
				}
			}
			op.File = f
			w.run(op)
			act := actions[kind].write
			if op.Kind == Read {
				act = actions[kind].read
			}
			if (act == actFail) != (op.Err != nil) {
				t.Errorf("%v answered %v: error %v", op.Kind, kind, op.Err)
			}
			if op.Err != nil && dataplane.KindOf(op.Err) != kind {
				t.Errorf("%v answered %v: error %v", op.Kind, kind, op.Err)
			}
			if op.Err == nil && left != 0 {
				t.Errorf("%v answered %v: %d refusals not used", op.Kind, kind, left)
			}
			if op.Kind == Read && op.Err == nil && !bytes.Equal(op.Buf, data[:4096]) {
				t.Errorf("%v: wrong data", kind)
			}
		}
	}
}

// TestKindsCovered: the table has a row for each kind, and retries what the vocabulary says that
// the library retries.
func TestKindsCovered(t *testing.T) {
	k := dataplane.Kind(0)
	for ; k.Valid(); k++ {
		if int(k) >= len(actions) {
			t.Fatalf("no row for %v", k)
		}
		if k != dataplane.OK && k.Retry() && (actions[k].read == actFail || actions[k].write == actFail) {
			t.Errorf("%v may be retried and isn't", k)
		}
	}
	if len(actions) != int(k) {
		t.Errorf("%d rows for %d kinds", len(actions), k)
	}
}

func TestStaleMap(t *testing.T) {
	w, f, data, ch := with(t)
	// The head is excluded while the client isn't looking.
	old := ch.members[0]
	ch.exclude(old)
	fetches := w.meta.calls["map"]
	if got := w.read(f, 0, len(data)); !bytes.Equal(got, data) {
		t.Error("wrong data")
	}
	w.write(f, 100, []byte("hello"))
	if !bytes.Equal(ch.data[100:105], []byte("hello")) {
		t.Error("the write isn't there")
	}
	if got := w.meta.calls["map"] - fetches; got > 3 {
		t.Errorf("%d map fetches for one stale entry", got)
	}
	// All chunks were freed and made anew under another id.
	ff := w.meta.files[f.id]
	delete(w.chunks, ff.chunks[0])
	delete(ff.chunks, 0)
	w.meta.make(ff, 0).data[7] = 7
	if got := w.read(f, 0, 4096); got[7] != 7 {
		t.Error("old chunk's data")
	}
	delete(w.chunks, ff.chunks[0])
	delete(ff.chunks, 0)
	if got := w.read(f, 0, 4096); !bytes.Equal(got, make([]byte, 4096)) {
		t.Error("a freed chunk doesn't read as zeros")
	}
}

// TestUnsettled: after a start of the servers only the head answers, once it was asked.
func TestUnsettled(t *testing.T) {
	w, f, data, ch := with(t)
	settled := false
	for _, cs := range w.cs {
		cs.refuse = func(h *dataplane.Header) dataplane.Kind {
			switch {
			case h.Op == dataplane.OpPing || settled:
				return dataplane.OK
			case cs.id != ch.members[0]:
				return dataplane.NotHead
			}
			w.sim.After(5e6, func() { settled = true })
			return dataplane.NotReady
		}
	}
	begin := w.sim.Now()
	if got := w.read(f, 0, len(data)); !bytes.Equal(got, data) {
		t.Error("wrong data")
	}
	if took := w.sim.Now() - begin; took > 100e6 {
		t.Errorf("took %d ms", took/1e6)
	}
}

// TestHeadDies: writes wait until the MDS excludes the head, reads go on at once.
func TestHeadDies(t *testing.T) {
	w, f, data, ch := with(t)
	head := ch.members[0]
	w.cs[head-1].env.Kill()
	begin := w.sim.Now()
	if got := w.read(f, 0, len(data)); !bytes.Equal(got, data) {
		t.Error("wrong data")
	}
	if took := w.sim.Now() - begin; took > 300e6 {
		t.Errorf("reads waited %d ms for a dead server", took/1e6)
	}
	var ops []*Op
	for i := range int64(100) {
		ops = append(ops, &Op{Kind: Write, File: f, Offset: i * 4096,
			Buf: bytes.Repeat([]byte{byte(i)}, 4096)})
	}
	done := w.start(ops...)
	w.sim.Run(func() bool { return false }, w.sim.Now()+3e9)
	if *done != 0 {
		t.Fatalf("%d writes done without a head", *done)
	}
	if n := len(w.meta.reports); n < 2 || n > 10 || w.meta.reports[0] != head {
		t.Errorf("reports in 3 s: %v", w.meta.reports)
	}
	ch.exclude(head)
	begin = w.sim.Now()
	w.sim.Run(func() bool { return *done == len(ops) }, begin+10e9)
	w.ok(ops...)
	if took := w.sim.Now() - begin; took > 500e6 || *done != len(ops) {
		t.Errorf("%d writes done %d ms after the exclusion", *done, took/1e6)
	}
	w.check()
	for i, op := range ops {
		if !bytes.Equal(ch.data[op.Offset:op.Offset+4096], op.Buf) {
			t.Fatalf("write %d isn't there", i)
		}
	}
}

// TestHeadRestarts: it comes back at another address, in the same epoch.
func TestHeadRestarts(t *testing.T) {
	w, f, _, ch := with(t)
	head := ch.members[0]
	w.cs[head-1].env.Kill()
	op := &Op{Kind: Write, File: f, Buf: w.random(1 << 20)}
	done := w.start(op)
	w.sim.Run(func() bool { return false }, w.sim.Now()+1e9)
	cs := w.startCS(head)
	begin := w.sim.Now()
	w.sim.Run(func() bool { return *done == 1 }, begin+10e9)
	w.ok(op)
	if took := w.sim.Now() - begin; took > 1e9 || *done != 1 {
		t.Errorf("%d done %d ms after the restart", *done, took/1e6)
	}
	if cs.conns != 1 {
		t.Errorf("%d connections", cs.conns)
	}
	if !bytes.Equal(ch.data[:1<<20], op.Buf) {
		t.Error("wrong data")
	}
}

// TestConnectionsReset: again and again, in the middle of a stream of writes and reads.
func TestConnectionsReset(t *testing.T) {
	w, f, data, ch := with(t)
	for range 20 {
		off := w.rng.Int64N(2 * mib)
		wr := &Op{Kind: Write, File: f, Offset: off, Buf: w.random(int(mib))}
		rd := &Op{Kind: Read, File: f, Offset: 3 * mib, Buf: make([]byte, mib)}
		done := w.start(wr, rd)
		for i := range 4 {
			w.sim.Run(func() bool { return *done == 2 }, w.sim.Now()+w.rng.Int64N(400e3))
			w.net.Reset("10.0.0.1", w.cs[i%3].ip)
		}
		if !w.sim.Run(func() bool { return *done == 2 }, w.sim.Now()+10e9) {
			t.Fatal("not done")
		}
		w.ok(wr, rd)
		w.check()
		copy(data[off:], wr.Buf)
		if !bytes.Equal(rd.Buf, data[3*mib:]) {
			t.Fatal("wrong data read")
		}
	}
	if !bytes.Equal(ch.data[:len(data)], data) {
		t.Error("wrong data written")
	}
	if w.eng.stats.ConnsLost < 20 {
		t.Errorf("only %d connections were lost", w.eng.stats.ConnsLost)
	}
}

func TestCorruptRead(t *testing.T) {
	w, f, data, ch := with(t)
	w.cs[ch.members[0]-1].corrupt = true
	w.cs[ch.members[1]-1].corrupt = true
	if got := w.read(f, 0, len(data)); !bytes.Equal(got, data) {
		t.Error("wrong data")
	}
	if w.eng.stats.BadCRCs == 0 {
		t.Error("the fault never fired")
	}
	// All members damaged: an error, after every one was asked twice.
	w.cs[ch.members[2]-1].corrupt = true
	before := w.eng.stats.Parts
	op := &Op{Kind: Read, File: f, Buf: make([]byte, 4096)}
	w.run(op)
	if dataplane.KindOf(op.Err) != dataplane.IOError || op.N != 0 {
		t.Errorf("N %d, error %v", op.N, op.Err)
	}
	if got := w.eng.stats.Parts - before; got != 6 {
		t.Errorf("%d requests before the read failed", got)
	}
	// One is only unreachable: the data may be safe there, so the read waits.
	w.cs[ch.members[2]-1].env.Kill()
	op = &Op{Kind: Read, File: f, Buf: make([]byte, 4096)}
	done := w.start(op)
	w.sim.Run(func() bool { return false }, w.sim.Now()+20e9)
	if *done != 0 {
		t.Fatalf("a read failed with one member unreachable: %v", op.Err)
	}
	if !slices.Contains(w.meta.reports, ch.members[2]) {
		t.Errorf("not reported: %v", w.meta.reports)
	}
	w.startCS(ch.members[2])
	w.sim.Run(func() bool { return *done == 1 }, w.sim.Now()+10e9)
	w.ok(op)
	if !bytes.Equal(op.Buf, data[:4096]) {
		t.Error("wrong data")
	}
}

// TestSilentServer: it takes requests and says nothing: pinged, then given up.
func TestSilentServer(t *testing.T) {
	w, f, data, ch := with(t)
	head := w.cs[ch.members[0]-1]
	head.silent = true
	begin := w.sim.Now()
	if got := w.read(f, 0, len(data)); !bytes.Equal(got, data) {
		t.Error("wrong data")
	}
	if took := w.sim.Now() - begin; took > 4e9 {
		t.Errorf("reads took %d ms", took/1e6)
	}
	op := &Op{Kind: Write, File: f, Buf: w.random(4096)}
	done := w.start(op)
	w.sim.Run(func() bool { return false }, w.sim.Now()+7e9)
	if *done != 0 || len(w.meta.reports) == 0 {
		t.Errorf("done %d, reports %v", *done, w.meta.reports)
	}
	ch.exclude(head.id)
	w.sim.Run(func() bool { return *done == 1 }, w.sim.Now()+10e9)
	w.ok(op)
	w.check()
}

// TestRefusingHead: one that answers, but without a lease, is reported: nothing else would end it.
func TestRefusingHead(t *testing.T) {
	for _, kind := range []dataplane.Kind{dataplane.NoLease, dataplane.IOError} {
		w := newWorld(t, 71, 3)
		f := w.file(dataplane.ChunkSize)
		w.write(f, 0, w.random(4096))
		var ch *fakeChunk
		for _, ch = range w.chunks {
		}
		head := w.cs[ch.members[0]-1]
		head.refuse = func(h *dataplane.Header) dataplane.Kind {
			if h.Op == dataplane.OpPing {
				return dataplane.OK
			}
			return kind
		}
		op := &Op{Kind: Write, File: f, Buf: w.random(4096)}
		done := w.start(op)
		w.sim.Run(func() bool { return len(w.meta.reports) > 0 }, w.sim.Now()+5e9)
		if !slices.Contains(w.meta.reports, head.id) {
			t.Errorf("%v: reports %v", kind, w.meta.reports)
		}
		ch.exclude(head.id)
		w.sim.Run(func() bool { return *done == 1 }, w.sim.Now()+10e9)
		w.ok(op)
		w.check()
	}
}

// TestRefusedForLong: a read that was refused for hours still learns that its file is gone.
func TestRefusedForLong(t *testing.T) {
	w, f, _, _ := with(t)
	for _, cs := range w.cs {
		cs.refuse = func(h *dataplane.Header) dataplane.Kind {
			if h.Op == dataplane.OpRead {
				return dataplane.NotReady
			}
			return dataplane.OK
		}
	}
	op := &Op{Kind: Read, File: f, Buf: make([]byte, 4096)}
	done := w.start(op)
	w.sim.Run(func() bool { return *done > 0 }, w.sim.Now()+int64(4*time.Hour))
	w.meta.files[f.id].deleted = true
	w.sim.Run(func() bool { return *done > 0 }, w.sim.Now()+int64(time.Minute))
	if *done == 0 || dataplane.KindOf(op.Err) != dataplane.NotFound {
		t.Errorf("done %d, %v", *done, op.Err)
	}
}

// TestStuckServer: it answers pings, but not requests: reads go elsewhere, writes stay there.
func TestStuckServer(t *testing.T) {
	w, f, data, ch := with(t)
	head := w.cs[ch.members[0]-1]
	head.stuck = true
	w.cs[ch.members[1]-1].stuck = true
	rd := &Op{Kind: Read, File: f, Buf: make([]byte, len(data))}
	w.run(rd)
	w.ok(rd)
	if !bytes.Equal(rd.Buf, data) {
		t.Error("wrong data")
	}
	if w.eng.stats.Failovers == 0 {
		t.Error("no read met a stuck server")
	}
	w.cs[ch.members[1]-1].stuck = false
	wr := &Op{Kind: Write, File: f, Buf: w.random(4096)}
	lost := w.eng.stats.ConnsLost
	done := w.start(wr)
	w.sim.Run(func() bool { return false }, w.sim.Now()+20e9)
	if *done != 0 || w.eng.stats.ConnsLost != lost {
		t.Errorf("done %d, connections lost %d", *done, w.eng.stats.ConnsLost-lost)
	}
	head.stuck = false
	w.net.Reset("10.0.0.1", head.ip)
	w.sim.Run(func() bool { return *done == 1 }, w.sim.Now()+10e9)
	w.ok(wr)
}

// TestUnreachableHost: packets vanish, nothing refuses a connection.
func TestUnreachableHost(t *testing.T) {
	w, f, data, ch := with(t)
	head := ch.members[0]
	w.net.Isolate(w.cs[head-1].ip, true)
	begin := w.sim.Now()
	if got := w.read(f, 0, len(data)); !bytes.Equal(got, data) {
		t.Error("wrong data")
	}
	if took := w.sim.Now() - begin; took > 4e9 {
		t.Errorf("reads took %d ms", took/1e6)
	}
	op := &Op{Kind: Write, File: f, Buf: w.random(4096)}
	done := w.start(op)
	w.sim.Run(func() bool { return len(w.meta.reports) > 0 }, w.sim.Now()+10e9)
	ch.exclude(head)
	begin = w.sim.Now()
	w.sim.Run(func() bool { return *done == 1 }, begin+10e9)
	w.ok(op)
	if took := w.sim.Now() - begin; took > 500e6 {
		t.Errorf("%d ms after the exclusion", took/1e6)
	}
	w.net.Isolate(w.cs[head-1].ip, false)
	w.sim.Run(func() bool { return false }, w.sim.Now()+5e9)
	w.check()
}

func TestTimeout(t *testing.T) {
	w, f, _, _ := with(t)
	for _, cs := range w.cs {
		cs.silent = true
	}
	fails := func(op *Op) {
		t.Helper()
		op.File, op.Timeout = f, 300e6
		begin := w.sim.Now()
		w.run(op)
		if dataplane.KindOf(op.Err) != dataplane.TimedOut {
			t.Errorf("%v: %v", op.Kind, op.Err)
		}
		if took := w.sim.Now() - begin; took < 300e6 || took > 310e6 {
			t.Errorf("%v took %d ms", op.Kind, took/1e6)
		}
	}
	fails(&Op{Kind: Read, Buf: make([]byte, 3<<20)})
	fails(&Op{Kind: Write, Buf: make([]byte, 3<<20)})
	fails(&Op{Kind: Zero, Length: 1 << 20})
	for _, cs := range w.cs {
		cs.silent = false
	}
	w.meta.fail = func(string) error { return dataplane.E("", dataplane.Unreachable, nil) }
	fails(&Op{Kind: Write, Offset: 1 << 30, Buf: make([]byte, 10)})
	fails(&Op{Kind: Read, Offset: 1 << 30, Buf: make([]byte, 10)})
	w.sim.Run(func() bool { return false }, w.sim.Now()+10e9) // late answers find nobody
	w.check()
}

// TestLateAnswer: the answer to a read that was given up isn't taken for that of a later one, from
// the same place, after a write.
func TestLateAnswer(t *testing.T) {
	w, f, _, _ := with(t, func(o *Options) { o.MaxParts = 1 })
	for _, cs := range w.cs {
		cs.hold = 100e6
	}
	rd := &Op{Kind: Read, File: f, Buf: make([]byte, 4096), Timeout: 50e6}
	if w.run(rd); dataplane.KindOf(rd.Err) != dataplane.TimedOut {
		t.Fatalf("%v", rd.Err)
	}
	data := w.random(4096)
	w.write(f, 0, data)
	for range 200 { // one of them is under way when the late answer comes
		if got := w.read(f, 0, 4096); !bytes.Equal(got, data) {
			t.Fatal("old data")
		}
		for _, cs := range w.cs {
			cs.hold = 500e3
		}
	}
	if w.eng.stats.Late != 1 {
		t.Errorf("%d late answers", w.eng.stats.Late)
	}
}

// TestNoSpace: a write that needs a new chunk waits until there is space, without an error.
func TestNoSpace(t *testing.T) {
	w, f, _, _ := with(t)
	full := true
	w.meta.fail = func(what string) error {
		if what == "allocate" && full {
			return dataplane.E("allocate", dataplane.NoSpace, nil)
		}
		return nil
	}
	op := &Op{Kind: Write, File: f, Offset: dataplane.ChunkSize, Buf: w.random(100)}
	done := w.start(op)
	w.sim.Run(func() bool { return false }, w.sim.Now()+10e9)
	if n := w.meta.calls["allocate"]; *done != 0 || n > 80 {
		t.Errorf("done %d, %d allocations tried in 10 s", *done, n)
	}
	full = false
	w.sim.Run(func() bool { return *done == 1 }, w.sim.Now()+1e9)
	w.ok(op)
}

func TestFlush(t *testing.T) {
	w, f, _, ch := with(t)
	flush := &Op{Kind: Flush, File: f}
	w.run(flush)
	w.ok(flush)
	head := w.cs[ch.members[0]-1]
	if head.served[dataplane.OpFlush] != 0 {
		t.Error("a flush was sent for durable writes")
	}
	f.ackMemory = true
	w.write(f, 0, w.random(100))
	fua := &Op{Kind: Write, File: f, Offset: dataplane.ChunkSize, Buf: w.random(100), FUA: true}
	w.run(fua)
	w.ok(fua)
	w.run(flush)
	w.ok(flush)
	total := 0
	for _, cs := range w.cs {
		total += cs.served[dataplane.OpFlush]
	}
	if head.served[dataplane.OpFlush] != 1 || total != 1 {
		t.Errorf("%d flushes at the head, %d in all", head.served[dataplane.OpFlush], total)
	}
	// Two that come while a round is under way share the next; a failing one leaves things dirty.
	w.write(f, 0, w.random(100))
	slow := head.refuse
	left := 3
	head.refuse = func(h *dataplane.Header) dataplane.Kind {
		if h.Op == dataplane.OpFlush && left > 0 {
			left--
			return dataplane.NotReady
		}
		return dataplane.OK
	}
	second, third := &Op{Kind: Flush, File: f}, &Op{Kind: Flush, File: f}
	w.run(flush, second, third)
	w.ok(flush, second, third)
	head.refuse = func(h *dataplane.Header) dataplane.Kind {
		if h.Op == dataplane.OpFlush {
			return dataplane.Denied
		}
		return dataplane.OK
	}
	w.write(f, 0, w.random(100))
	w.run(flush)
	if dataplane.KindOf(flush.Err) != dataplane.Denied {
		t.Errorf("flush: %v", flush.Err)
	}
	head.refuse = slow
	before := head.served[dataplane.OpFlush]
	w.run(flush)
	w.ok(flush)
	if head.served[dataplane.OpFlush] != before+1 {
		t.Error("after a failed flush the chunk wasn't flushed again")
	}
}

// TestTruncated: what was known of chunks behind the new end is forgotten, also what is on its way.
func TestTruncated(t *testing.T) {
	w, f, _, _ := with(t)
	w.write(f, 3*dataplane.ChunkSize, w.random(4096))
	ff := w.meta.files[f.id]
	rd := &Op{Kind: Read, File: f, Offset: 100 * dataplane.ChunkSize, Buf: make([]byte, 1)}
	done := w.start(rd)
	w.env.Do(func() {
		ff.size = dataplane.ChunkSize + 1
		delete(w.chunks, ff.chunks[3])
		delete(ff.chunks, 3)
		f.setSize(ff.size)
	})
	w.sim.Run(func() bool { return *done == 1 }, w.sim.Now()+1e9)
	if f.Size() != ff.size {
		t.Errorf("size %d", f.Size())
	}
	// A map that is on its way during the truncation names a chunk that isn't the file's any more,
	// though its server hasn't heard of that.
	w.meta.make(ff, 70).data[0] = 1
	ff.size = 71 * dataplane.ChunkSize
	w.env.Do(func() { f.setSize(ff.size) })
	rd = &Op{Kind: Read, File: f, Offset: 70 * dataplane.ChunkSize, Buf: make([]byte, 1)}
	done = w.start(rd)
	w.sim.Run(func() bool { return false }, w.sim.Now()+300e3) // the MDS has answered
	w.env.Do(func() {
		delete(ff.chunks, 70)
		f.setSize(70 * dataplane.ChunkSize)
		f.setSize(ff.size)
	})
	w.sim.Run(func() bool { return *done == 1 }, w.sim.Now()+1e9)
	if rd.N != 1 || rd.Buf[0] != 0 {
		t.Errorf("%d bytes, %v from a chunk that was freed", rd.N, rd.Buf)
	}
	ff.size = 5 * dataplane.ChunkSize
	w.env.Do(func() { f.setSize(ff.size) })
	if got := w.read(f, 3*dataplane.ChunkSize, 4096); !bytes.Equal(got, make([]byte, 4096)) {
		t.Error("old data behind a truncation")
	}
}

// TestRoomOfACanceledOp: what waits for room at a server is sent when the operation that took it is
// called off, though that server answers nothing any more that anybody waits for.
func TestRoomOfACanceledOp(t *testing.T) {
	w, f, _, ch := with(t, func(o *Options) { o.PeerParts = 1 })
	head := w.cs[ch.members[0]-1]
	head.stuck = true // takes the first write and doesn't answer it
	first := &Op{Kind: Write, File: f, Buf: w.random(4096)}
	w.start(first)
	w.sim.Run(func() bool { return false }, w.sim.Now()+10e6)
	head.stuck = false
	second := &Op{Kind: Write, File: f, Offset: 8192, Buf: w.random(4096)}
	done := w.start(second)
	w.sim.Run(func() bool { return false }, w.sim.Now()+10e6)
	if *done != 0 {
		t.Fatal("there was room for two")
	}
	w.env.Do(func() { w.eng.Cancel(first) })
	if !w.sim.Run(func() bool { return *done == 1 }, w.sim.Now()+5e9) {
		t.Fatal("the second write isn't done 5 s after the first one made room")
	}
	w.ok(second)
}
