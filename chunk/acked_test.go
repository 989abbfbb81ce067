package chunk

import (
	"bytes"
	"testing"

	"pstorage/dataplane"
)

// lostMark writes a block and ends the head's process at the moment of the answer: no other member
// knows that the write is committed. It returns the answer and the content.
func lostMark(t *testing.T, seed uint64) (w *world, ack dataplane.Header, data []byte) {
	t.Helper()
	w = newWorld(t, seed, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 8192))
	for _, nd := range w.nodes[1:] {
		r := nd.sh.chunks[chunkA]
		w.must(func() bool { return r.state == active && r.commit == 1 }, sec, "the first mark")
	}
	data = pattern(2, 4096)
	cfg, err := w.md.get(chunkA)
	if err != nil {
		t.Fatal(err)
	}
	w.cl.env.Do(func() {
		w.cl.ask(1, dataplane.Header{Op: dataplane.OpWrite, Chunk: chunkA, Epoch: cfg.Epoch}, data,
			func(a *dataplane.Header, _ []byte) { ack = *a })
	})
	w.must(func() bool { return ack.Op != 0 }, sec, "the answer to the write")
	w.nodes[0].kill()
	if ack.Status != dataplane.OK || ack.Seq != 2 || ack.Epoch != cfg.Epoch || ack.Aux != 0 {
		t.Fatalf("the write was answered %v", &ack)
	}
	for _, nd := range w.nodes[1:] {
		if r := nd.sh.chunks[chunkA]; r.commit != 1 || r.durable != 2 {
			t.Fatalf("cs %d is at %d/%d/%d", nd.cs, r.commit, r.durable, r.last)
		}
	}
	return w, ack, data
}

// readOf asks for the first block, telling of seq; got is the answer when there is one.
func (w *world) readOf(cs dataplane.CSID, epoch dataplane.Epoch, seq dataplane.Seq) (got *[]byte) {
	got = new([]byte)
	w.cl.env.Do(func() {
		w.cl.ask(cs, dataplane.Header{Op: dataplane.OpRead, Chunk: chunkA, Epoch: epoch,
			Length: 4096, Seq: seq}, nil, func(a *dataplane.Header, p []byte) {
			*got = append([]byte(a.Status.String()+" "), p...)
		})
	})
	return got
}

func (w *world) tell(cs dataplane.CSID, epoch dataplane.Epoch, seq dataplane.Seq) {
	w.cl.env.Do(func() {
		w.cl.ask(cs, dataplane.Header{Op: dataplane.OpCommit, Chunk: chunkA, Epoch: epoch, Seq: seq},
			nil, func(*dataplane.Header, []byte) {})
	})
}

// TestReadOfAcknowledged: the head falls silent before it has told anybody that a write that it
// answered is committed. Other members answer reads of the block when the writer says so.
func TestReadOfAcknowledged(t *testing.T) {
	w, ack, data := lostMark(t, 31)
	want := append([]byte("ok "), data...)
	waits := w.readOf(2, ack.Epoch, 0)
	w.readOf(3, ack.Epoch, 1)
	w.tell(2, ack.Epoch-1, ack.Seq)
	w.tell(2, ack.Epoch+1, ack.Seq)
	w.tell(2, ack.Epoch, ack.Seq-1)
	w.run(20 * ms)
	if *waits != nil {
		t.Fatalf("a member answered a read without knowing that the write is committed: %.20q", *waits)
	}
	got := w.readOf(3, ack.Epoch, ack.Seq)
	w.must(func() bool { return *got != nil }, 5*ms, "the writer's read")
	if !bytes.Equal(*got, want) {
		t.Errorf("read %.20q", *got)
	}
	w.tell(2, ack.Epoch, ack.Seq)
	w.must(func() bool { return *waits != nil }, 5*ms, "the read of somebody else")
	if !bytes.Equal(*waits, want) {
		t.Errorf("read %.20q", *waits)
	}
	for _, nd := range w.nodes[1:] {
		if r := nd.sh.chunks[chunkA]; r.claimed != 2 || r.commit != 1 || nd.sh.claims != 1 {
			t.Errorf("cs %d: mark %d, claimed %d, %d times", nd.cs, r.commit, r.claimed, nd.sh.claims)
		}
	}
}

// TestClaimIsBounded: what a client says doesn't let more be read than the member has durable, ends
// with the activation, and isn't believed by a head or with write-ack=memory.
func TestClaimIsBounded(t *testing.T) {
	w, ack, _ := lostMark(t, 32)
	sh := w.nodes[1].sh
	r := sh.chunks[chunkA]
	w.nodes[1].env.Do(func() {
		r.memory = true
		sh.claim(r, 2)
		if r.claimed != 0 {
			t.Errorf("claimed %d with write-ack=memory", r.claimed)
		}
		r.memory = false
		r.accept(3, 4096, 4096) // on its way to the log
		sh.claim(r, maxSeq)
		if r.claimed != 2 || r.hidden(0, 4096) != 0 || r.hidden(4096, 4096) != 3 {
			t.Errorf("claimed %d, durable %d", r.claimed, r.durable)
		}
		if r.commit != 1 || r.barrier(0, 4096) != 2 {
			t.Errorf("the commit mark is %d", r.commit)
		}
		r.last, r.ext = 2, r.ext[:len(r.ext)-1]
	})
	var e slotEntry
	if r.fillEntry(&e); e.commit != 1 {
		t.Errorf("the slot table keeps the mark %d", e.commit)
	}
	// Only the epoch that follows ends the claim; it goes on above what was acknowledged.
	w.mustWrite(chunkA, 4096, pattern(3, 4096))
	if r.epoch == ack.Epoch || r.claimed != 0 || r.commit < 2 {
		t.Errorf("epoch %d after %d: mark %d, claimed %d", r.epoch, ack.Epoch, r.commit, r.claimed)
	}
	head := r
	if !head.isHead() {
		t.Fatal("server 2 isn't the head after the exclusion of 1")
	}
	w.nodes[1].env.Do(func() {
		sh.claim(head, maxSeq)
		if head.claimed != 0 {
			t.Errorf("a head believes that %d is committed", head.claimed)
		}
	})
}
