package chunk

import (
	"maps"
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// Fences keep writes of clients out that may not write a file any more. A write carries the token
// of its client's lease; the head refuses it if that is below the file's fence: when it comes, and
// again when it leaves a queue (writeStatus). A replica learns its fence by OpFence or a reply to a
// heartbeat (Fence), and by the configuration that it is activated with, so nothing has to be
// durable here: after a start every chunk is activated anew.
//
// A fence counts as being in force (FenceSeq) when writes that had got their seq before are
// committed, or given up to a settling: from then on nothing older can appear at a head that
// serves. Other members, whose head is lost or settles, may not have heard of such a write that the
// settling keeps; so who gets the file reads each chunk at its head first (File.unproven).
type fencing struct {
	tokens  map[dataplane.FileID]uint64 // as far as told since the start; never the whole list
	applied uint64                      // fences up to this number are refused against
	drained uint64                      // and are in force
	drains  []drain
	timer   uring.Timer
	onForce func() // drained moved
}

// drain is a replica with writes in flight that are older than a fence.
type drain struct {
	r    *replica
	upTo dataplane.Seq
	term uint16
}

// drainEvery is how often it is looked whether those writes are through.
const drainEvery = int64(1e6) // ns

// Fence takes over fences. It is false if some before them are missing. onForce, which may be nil,
// is called when FenceSeq has changed, perhaps at once.
func (sh *Shard) Fence(p *control.FencePush, onForce func()) bool {
	f := &sh.fences
	if p.After > f.applied {
		return false
	}
	if f.tokens == nil {
		f.tokens = make(map[dataplane.FileID]uint64)
	}
	f.applied = max(f.applied, p.Seq)
	f.onForce = onForce
	changed := make(map[dataplane.FileID]bool, len(p.Fences))
	for _, ff := range p.Fences {
		if ff.Token > f.tokens[ff.File] {
			f.tokens[ff.File] = ff.Token
			changed[ff.File] = true
		}
	}
	if len(changed) > 0 {
		// There may be hundreds of thousands of chunks, and a fence for each disk of a host that died.
		for _, r := range sh.store.owners {
			if r != nil && r.file != 0 && changed[r.file] {
				sh.fenceReplica(r)
			}
		}
		for _, id := range slices.Sorted(maps.Keys(sh.strangers)) {
			if r := sh.strangers[id]; changed[r.file] {
				sh.fenceReplica(r)
			}
		}
	}
	sh.drainFences()
	return true
}

// fenceReplica has r refuse older tokens from now on.
func (sh *Shard) fenceReplica(r *replica) {
	r.fence = max(r.fence, sh.fences.tokens[r.file])
	if r.state == active && r.isHead() && r.last > r.commit {
		sh.fences.drains = append(sh.fences.drains, drain{r, r.last, r.term})
	}
	if r.queue.n > 0 {
		sh.stall(r) // those that wait are told soon
	}
}

// FenceSeq is the number up to which fences are in force.
func (sh *Shard) FenceSeq() uint64 { return sh.fences.drained }

// drainFences moves FenceSeq when no older write is in flight any more.
func (sh *Shard) drainFences() {
	f := &sh.fences
	keep := f.drains[:0]
	for _, d := range f.drains {
		// In another state or term everything in flight was given up: a settling decides what
		// remains, before anybody reads or writes.
		if d.r.state == active && d.r.term == d.term && d.r.commit < d.upTo && !d.r.gone {
			keep = append(keep, d)
			if d.r.broken && d.r.settler == nil {
				sh.settle(d.r, nil) // given up for want of a lease; nobody else may ever need it
			}
		}
	}
	clear(f.drains[len(keep):])
	f.drains = keep
	if len(keep) > 0 {
		f.timer.Fire = sh.drainFences
		if !f.timer.Armed() {
			sh.env.Arm(&f.timer, drainEvery)
		}
		return
	}
	if f.drained != f.applied {
		f.drained = f.applied
		if f.onForce != nil {
			f.onForce()
		}
	}
}

// setFile notes of which file r is and what was told of its fence, by the configuration or before.
func (r *replica) setFile(sh *Shard, cfg *control.ChunkConfig) {
	r.file = cfg.File
	r.fence = max(r.fence, cfg.Fence, sh.fences.tokens[cfg.File])
	cfg.Fence = r.fence // it goes on to the other members
}

// takeFences hands what a reply brought to the shard. It is false while fences are missing: the
// lease in the reply must not be used then.
func (s *server) takeFences(p *control.FencePush) (complete bool, err error) {
	if p.Seq == 0 {
		return true, nil // a server of an older version, or nothing was ever fenced
	}
	err = s.onLoop(func(done func(error)) {
		complete = s.shard.Fence(p, s.beatSoon) && !p.More
		done(nil)
	})
	if err == nil && !complete {
		s.beatSoon()
	}
	return complete, err
}

// beatSoon has keepLease send a heartbeat now.
func (s *server) beatSoon() {
	select {
	case s.beat <- struct{}{}:
	default:
	}
}
