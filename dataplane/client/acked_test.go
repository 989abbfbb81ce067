package client

import (
	"testing"

	"pstorage/dataplane"
)

// ackedWorld has a file with one chunk, written once; block reads a block of it and returns what
// the read told its server.
func ackedWorld(t *testing.T) (w *world, f *File, ch *fakeChunk, block func() dataplane.Seq) {
	w = newWorld(t, 9, 3)
	f = w.file(dataplane.ChunkSize)
	w.write(f, 0, w.random(4*dataplane.BlockSize))
	for _, c := range w.chunks {
		ch = c
	}
	return w, f, ch, func() dataplane.Seq {
		t.Helper()
		w.read(f, 0, dataplane.BlockSize)
		last := w.cs[0]
		for _, cs := range w.cs {
			if cs.lastRead > last.lastRead {
				last = cs
			}
		}
		return last.claim
	}
}

// TestReadsTellOfAcknowledged: a read carries the highest seq that was acknowledged to this client
// in the epoch, and nothing else.
func TestReadsTellOfAcknowledged(t *testing.T) {
	w, f, ch, block := ackedWorld(t)
	w.write(f, 0, w.random(dataplane.BlockSize))
	if ch.writes != 2 || block() != 2 {
		t.Errorf("%d writes acknowledged, the read says %d", ch.writes, block())
	}
	head := w.cs[ch.members[0]-1]
	tries := 0
	head.refuse = func(h *dataplane.Header) dataplane.Kind {
		if h.Op != dataplane.OpWrite || tries == 3 {
			return dataplane.OK
		}
		tries++
		ch.writes++ // it got a seq, and was given up
		return dataplane.NotReady
	}
	op := &Op{Kind: Write, File: f, Buf: w.random(dataplane.BlockSize)}
	done := w.start(op)
	w.sim.Run(func() bool { return tries == 2 }, w.sim.Now()+10e9)
	if *done != 0 || block() != 2 {
		t.Errorf("the read says %d after refused writes", block())
	}
	w.sim.Run(func() bool { return *done == 1 }, w.sim.Now()+10e9)
	if w.ok(op); ch.writes != 6 || block() != 6 {
		t.Errorf("the read says %d after %d writes", block(), ch.writes)
	}
	ch.exclude(ch.members[2])
	if got := block(); got != 0 {
		t.Errorf("the read says %d in an epoch without a write", got)
	}
	w.write(f, 0, w.random(dataplane.BlockSize))
	if block() != 7 {
		t.Errorf("the read says %d in the new epoch", block())
	}
	head.life = 5
	w.write(f, 0, w.random(dataplane.BlockSize))
	if block() != 7 {
		t.Errorf("the read says %d: a write that may be in memory only", block())
	}
}

// TestSilentHeadIsSpokenFor: a head falls silent. The other members are told what it acknowledged
// last, within the time of a hedge, for the sake of other readers; and only once.
func TestSilentHeadIsSpokenFor(t *testing.T) {
	for _, dies := range []bool{false, true} {
		w, f, ch, block := ackedWorld(t)
		for w.eng.peer(ch.members[1]).state != peerUp || w.eng.peer(ch.members[2]).state != peerUp {
			for i := range int64(ch.writes + 8) {
				w.read(f, i*readRegion, dataplane.BlockSize)
			}
		}
		block()
		w.write(f, 0, w.random(dataplane.BlockSize))
		head := w.cs[ch.members[0]-1]
		if dies {
			head.env.Kill()
		} else {
			head.silent = true
		}
		for i := range 20 {
			w.start(&Op{Kind: Write, File: f, Offset: int64(i) * dataplane.BlockSize,
				Buf: w.random(dataplane.BlockSize)})
		}
		w.sim.Run(func() bool { return false }, w.sim.Now()+40e6)
		for _, id := range ch.members[1:] {
			told := w.cs[id-1].told
			if len(told) != 1 || told[0].Seq != 2 || told[0].Epoch != 1 || w.chunks[told[0].Chunk] != ch {
				t.Errorf("dies: %v: server %d was told %v", dies, id, told)
			}
		}
		w.sim.Run(func() bool { return false }, w.sim.Now()+2e9)
		for _, id := range ch.members[1:] {
			if n := len(w.cs[id-1].told); n > 1 {
				t.Errorf("dies: %v: server %d was told %d times", dies, id, n)
			}
		}
		if len(head.told) != 0 {
			t.Error("the head was told")
		}
	}
}
