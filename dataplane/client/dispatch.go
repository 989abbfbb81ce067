package client

import (
	"fmt"
	"time"

	"pstorage/dataplane"
)

// This file decides where a part goes: to the MDS for the map, nowhere (a hole), to the head
// (everything that changes the chunk), or to one of the members (reads).

// readRegion is how much of a chunk, in bytes, is read from the same member as long as it is well:
// each member's cache then holds another part of the data.
const readRegion = 1 << 20

// dispatch sends p on its way. p is in no list and its timer doesn't run.
func (e *Engine) dispatch(p *part) {
	f := p.file
	ent, pg := f.entry(p.index)
	if ent.call != 0 && p.code == dataplane.OpRead && ent.state == present && ent.fetched > p.fresh {
		// Somebody else wants a newer map, most likely a write that waits, and its question may hang
		// for seconds. What is known serves reads until a chunk server says otherwise.
		e.route(p, ent)
		return
	}
	if ent.call == 0 {
		switch {
		case ent.state == unknown:
			f.fetchCold(p.index)
		case ent.state == absent && p.op.Kind == Write:
			f.allocate(p.index)
		case ent.state == absent && !e.freshHole(ent, p),
			ent.fetched <= p.fresh && e.env.Now()-ent.at >= refetchAfter:
			f.fetchOne(p.index)
		case ent.state == absent:
			e.hole(p)
			return
		default:
			e.route(p, ent)
			return
		}
	}
	pg.wait.push(p)
}

// freshHole says whether the absence of a chunk is known newly enough for p.
func (e *Engine) freshHole(ent *entry, p *part) bool {
	if ent.fetched > p.op.begin && ent.fetched > p.fresh {
		return true
	}
	ttl := int64(e.opt.HoleTTL)
	return ttl > 0 && p.fresh == 0 && e.env.Now()-ent.at <= ttl
}

// hole ends a part of a chunk that doesn't exist: it reads as zeros, is zero, and has nothing to
// flush.
func (e *Engine) hole(p *part) {
	if p.code == dataplane.OpRead {
		clear(p.payload())
	}
	if f, i := p.file, p.index; p.op.Kind == Zero && i%pageChunks == pageChunks-1 {
		f.passed = append(f.passed, i/pageChunks)
	}
	e.partDone(p, nil)
}

// route picks the member for p and hands it over.
func (e *Engine) route(p *part, ent *entry) {
	if p.chunk != ent.chunk || p.epoch != ent.epoch {
		p.chunk, p.epoch = ent.chunk, ent.epoch
		p.tried, p.hard, p.rounds = 0, 0, 0
	}
	if p.code != dataplane.OpRead {
		p.member = 0
		p.file.proves(p, ent)
		pr := e.peer(ent.members[0])
		if !pr.usable() {
			pr.want()
			pr.report(p.chunk, p.epoch)
			p.why = dataplane.Unreachable
			e.refresh(p)
			e.later(p)
			return
		}
		pr.take(p)
		return
	}
	m := e.pickReader(p, ent)
	if m < 0 {
		e.roundOver(p, ent)
		return
	}
	p.member = uint8(m)
	p.file.proves(p, ent)
	e.peer(ent.members[m]).take(p)
}

// diskTime is from how many ns of mean latency on a read is worth more elsewhere than in a cache:
// a disk with moving parts is at work, or a long queue.
const diskTime = int64(5 * time.Millisecond)

// queue is what a read would wait behind at pr, as far as that matters.
func (pr *peer) queue(p *part) int {
	if pr.pace.of(p.n).mean < diskTime {
		return 0
	}
	return pr.count
}

// pickReader returns the index of the member to read from, or -1 if all were tried in this round
// or can't be reached: of those that the MDS calls live (of all, if none of them is) the one with
// the shortest queue, if their disks are slow; then the one with the highest hash of (chunk,
// region, server). Only the head, unless its data is damaged, as long as the chunk is unproven.
func (e *Engine) pickReader(p *part, ent *entry) int {
	best, bestHash, bestLive, bestQueue := -1, uint64(0), false, 0
	region := uint64(p.chunk)<<6 ^ uint64(p.off/readRegion)
	n := int(ent.n)
	if p.file.unproven(ent) && p.hard&1 == 0 {
		n = 1
	}
	for i := 0; i < n; i++ {
		if p.tried&(1<<i) != 0 {
			continue
		}
		pr := e.peer(ent.members[i])
		if !pr.usable() {
			pr.want()
			p.tried |= 1 << i
			p.why = dataplane.Unreachable
			continue
		}
		h := mix(region ^ uint64(pr.id)*0x9e3779b97f4a7c15)
		live := pr.live && !e.avoid(p, ent, i)
		q := pr.queue(p)
		if best < 0 || live && !bestLive || live == bestLive &&
			(q < bestQueue || q == bestQueue && h > bestHash) {
			best, bestHash, bestLive, bestQueue = i, h, live, q
		}
	}
	return best
}

// mix is a 64-bit finalizer: every bit of the input changes half the bits of the output.
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// hardRounds is how often all members must have answered that the data is damaged before a read
// fails.
const hardRounds = 2

// mapRounds: one in so many rounds of a read waits for a new map.
const mapRounds = 32

// roundOver: no member is left to ask. The read fails if all of them said that the data is
// damaged, often enough; otherwise it waits, and starts over, with a new map if there is one by
// then.
func (e *Engine) roundOver(p *part, ent *entry) {
	if p.hard == uint8(1<<ent.n-1) {
		p.rounds++
		if p.rounds >= hardRounds {
			e.log.Error("all members of a chunk fail to read", "file", p.file.id, "chunk", p.chunk,
				"offset", p.off, "length", p.n, "last", p.why)
			e.partDone(p, e.partError(p, dataplane.IOError, fmt.Errorf(
				"damaged on all %d members, tried %d times", ent.n, p.rounds)))
			return
		}
		e.refresh(p)
	} else {
		p.rounds = 0
		for i := 0; i < int(ent.n); i++ {
			if p.tried&^p.hard&(1<<i) != 0 {
				e.peer(ent.members[i]).reportIfDown(p.chunk, p.epoch)
			}
		}
		// The map is asked for, and most times not waited for: the metadata servers may be silent, and
		// who refused may be the one that serves next. What they say of the file counts in the end.
		switch {
		case p.retries%mapRounds == mapRounds-1:
			e.refresh(p)
		case ent.call == 0 && e.env.Now()-ent.at >= refetchAfter:
			p.file.fetchOne(p.index)
		}
	}
	p.tried, p.hard = 0, 0
	e.later(p)
}

// refresh demands a map entry fetched after now.
func (e *Engine) refresh(p *part) {
	e.seq++
	p.fresh = e.seq
}

// later tries p again after a pause.
func (e *Engine) later(p *part) {
	if p.retries++; p.retries == 1<<15 {
		p.retries -= mapRounds // it goes on to count rounds
	}
	e.stats.Retries++
	if p.timer.Fire == nil {
		p.timer.Fire = func() { p.eng.dispatch(p) }
	}
	d := e.backoff(int(p.retries))
	e.sayWaiting(p)
	e.env.Arm(&p.timer, d)
}

// sayWaiting tells people why an operation takes long, once a second for all.
func (e *Engine) sayWaiting(p *part) {
	if p.retries < 12 || !e.mayLog(quietMinimum) {
		return
	}
	e.log.Warn("an operation waits", "op", p.op.Kind.String(), "file", p.file.id,
		"chunk", p.chunk.String(), "epoch", p.epoch, "tries", p.retries, "why", p.why.String())
}

// partError is the error of a part, with all that is known about where.
func (e *Engine) partError(p *part, kind dataplane.Kind, err error) error {
	return dataplane.E(fmt.Sprintf("%s, bytes %d to %d of chunk %v (number %d) epoch %d",
		p.file.what(p.op.Kind), p.off, uint64(p.off)+uint64(p.n), p.chunk, p.index, p.epoch),
		kind, err)
}
