package mds

import (
	"math/rand/v2"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestEveryDegradedChunkHasAClass: whatever the servers and chunks are like, the classes add up to
// the degraded chunks.
func TestEveryDegradedChunkHasAClass(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		c := &census{starting: rng.IntN(8) == 0, copying: map[dataplane.ChunkID]bool{},
			failed: map[dataplane.ChunkID]bool{}, recover: recoverer{offline: time.Minute}}
		n := 2 + rng.IntN(8)
		for range n {
			l := lostFacts{live: rng.IntN(3) > 0, dead: rng.IntN(4) == 0,
				silent: time.Duration(rng.IntN(120)) * time.Second}
			c.servers = append(c.servers, l)
			l.live = l.live && !l.dead
			c.takers = append(c.takers, l)
			room := l.live && rng.IntN(2) == 0
			c.room = append(c.room, room)
			if room {
				c.open++
			}
			c.domains = append(c.domains, domains{})
		}
		var d control.StatDoc
		for i := range 200 {
			rec := &Record{ID: dataplane.NewChunkID(1, uint64(i)), Wanted: uint8(1 + rng.IntN(4)),
				Minimum: 1}
			var members []dataplane.CSID
			for _, cs := range rng.Perm(n)[:1+rng.IntN(min(n, 4))] {
				members = append(members, dataplane.CSID(cs))
			}
			rec.setMembers(members)
			if len(members) > 1 {
				rec.changeMembers(members[:1+rng.IntN(len(members))])
			}
			c.copying[rec.ID] = rng.IntN(5) == 0
			c.failed[rec.ID] = rng.IntN(5) == 0
			before := d.Recovery.Sum()
			degraded := d.Chunks.Degraded
			c.count(&d, rec)
			if d.Recovery.Sum()-before != d.Chunks.Degraded-degraded {
				t.Fatalf("seed %d, %+v: %+v", seed, rec, d.Recovery)
			}
		}
		if d.Recovery.Sum() != d.Chunks.Degraded || d.Chunks.Healthy+d.Chunks.Degraded != 200 {
			t.Fatalf("seed %d: %+v, %+v", seed, d.Chunks, d.Recovery)
		}
		recoveryReasons(&d, time.Minute, 1)
		if d.Chunks.Degraded > 0 && len(d.Reasons) == 0 {
			t.Fatalf("seed %d: no reason", seed)
		}
	}
}

// TestDegradedCase: each class is counted, and names its verdict.
func TestDegradedCase(t *testing.T) {
	seen := map[degradedClass]bool{}
	for v := range recoverVerdicts {
		for bits := range 16 {
			f := classFacts{degraded: true, verdict: v, starting: bits&1 != 0, copying: bits&2 != 0,
				failed: bits&4 != 0, room: bits&8 != 0}
			class := degradedCase(f)
			seen[class] = true
			var d control.RecoveryDoc
			class.add(&d)
			if d.Sum() != 1 {
				t.Errorf("%+v: class %d isn't counted", f, class)
			}
			if class == classNoPlace && (f.room || f.copying || v != recoverElsewhere) {
				t.Errorf("%+v: %d", f, class)
			}
		}
	}
	if len(seen) != int(degradedClasses)-1 {
		t.Errorf("%d classes of %d", len(seen), degradedClasses-1)
	}
	if degradedCase(classFacts{verdict: recoverOffline}) != classHealthy {
		t.Error("a chunk that isn't degraded")
	}
}
