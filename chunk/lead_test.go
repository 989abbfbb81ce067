package chunk

import (
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// lead tells node i, as the metadata servers do, that it is to become the head.
func (w *world) lead(i int, id dataplane.ChunkID, lost ...dataplane.CSID) {
	cfg, err := w.md.get(id)
	if err != nil {
		w.t.Fatal(err)
	}
	nd := w.nodes[i]
	nd.env.Post(func() {
		nd.sh.SettlePush(&control.SettlePush{Chunks: []control.ChunkConfig{*cfg}, Lost: lost,
			Lead: true})
	})
}

func (w *world) head(id dataplane.ChunkID) dataplane.CSID {
	cfg, err := w.md.get(id)
	if err != nil {
		w.t.Fatal(err)
	}
	return cfg.Members[0].CS
}

// Each member becomes the head in turn, while writes go on. Nothing acknowledged is lost, and the
// one that was the head takes part as a member.
func TestLead(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	l := startLoad(w, chunkA, 4, 8192)
	for round := range 12 {
		w.run(20 * ms)
		i := (round + 1) % 3
		w.lead(i, chunkA)
		want := dataplane.CSID(i + 1)
		w.must(func() bool { return w.head(chunkA) == want }, sec, "change the head")
		before := l.acked[0]
		w.must(func() bool { return l.acked[0] > before+3 }, sec, "go on with writes")
	}
	l.stop = true
	w.run(100 * ms)
	cfg, _ := w.md.get(chunkA)
	if len(cfg.Members) != 3 || cfg.Epoch != 13 {
		t.Errorf("members %v at epoch %d", cfg.Members, cfg.Epoch)
	}
	w.equal(chunkA, 4*dataplane.PartSize, 0, 1, 2)
}

// A member leads in the same epoch in which a lost one is excluded, though the head is there.
func TestLeadWithExclusion(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	w.nodes[1].kill()
	w.run(3 * sec)
	w.lead(2, chunkA, 2)
	w.must(func() bool { return w.head(chunkA) == 3 }, 2*sec, "change the head")
	w.mustWrite(chunkA, 4096, pattern(2, 4096))
	if cfg, _ := w.md.get(chunkA); len(cfg.Members) != 2 || cfg.Epoch != 2 {
		t.Errorf("members %v at epoch %d", cfg.Members, cfg.Epoch)
	}
	w.equal(chunkA, dataplane.PartSize, 0, 2)
}

// Who is to lead and can't, because a member doesn't answer, gives it up in time: the head goes on.
func TestLeadGoesStale(t *testing.T) {
	w := newWorld(t, 1, 3)
	w.md.add(chunkA, 2, 1, 2, 3)
	w.mustWrite(chunkA, 0, pattern(1, 4096))
	w.md.refuse = true // nobody is excluded
	w.nodes[2].kill()
	w.lead(1, chunkA)
	r := w.nodes[1].sh.chunks[chunkA]
	w.must(func() bool { return r.settler != nil && r.settler.tries > 3 }, 5*sec, "try")
	w.must(func() bool { return r.settler == nil }, int64(lostStale)+sec, "give up")
	w.nodes[2].restart(false)
	w.mustWrite(chunkA, 4096, pattern(2, 4096))
	if w.head(chunkA) != 1 {
		t.Error("the head changed")
	}
	w.equal(chunkA, dataplane.PartSize, 0, 1, 2)
}
