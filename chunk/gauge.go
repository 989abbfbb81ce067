package chunk

import (
	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// What this server measures of itself and of others, for the metadata servers: they compare servers
// with each other and find the one that is slow, or that keeps writes from getting on.

// stallReport is how long a write waits for another server before that is reported.
const stallReport = int64(1e9)

// latency is a mean over the time between two heartbeats.
type latency struct {
	sum, n int64
	hist   WaitHistogram // of all time
}

func (l *latency) add(ns int64) {
	l.sum, l.n = l.sum+ns, l.n+1
	l.hist.add(ns)
}

// take returns the mean in ns, at least 1 if anything was measured, and begins anew.
func (l *latency) take() int64 {
	n := l.n
	if n == 0 {
		return 0
	}
	mean := max(1, l.sum/n)
	l.sum, l.n = 0, 0
	return mean
}

// gauges are the measurements of a shard.
type gauges struct {
	log, reads latency
	pending    int   // appends to the log
	progress   int64 // when the last of them was done, or the first of them began
	yielded    bool  // the lease was given up because the metadata servers asked for it

	fromLog, fromStore uint64 // blocks read for clients
}

func (g *gauges) appendBegins(now int64) {
	if g.pending == 0 {
		g.progress = now
	}
	g.pending++
}

func (g *gauges) appendEnds(now, began int64) {
	g.pending--
	g.progress = now
	g.log.add(now - began)
}

// peerGauge is what is measured of a peer.
type peerGauge struct {
	waits    latency
	answered int64 // when it answered a write last
}

// Gauge fills in what a heartbeat says about how well things get on.
func (sh *Shard) Gauge(req *control.HeartbeatReq) {
	now, g := sh.env.Now(), &sh.gauges
	req.Stats.LogWaitNs, req.Stats.ReadWaitNs = g.log.take(), g.reads.take()
	for _, q := range sh.reqs {
		if q.link != nil { // not answered yet
			req.Stats.Queue++
		}
	}
	if g.pending > 0 {
		req.StallNs = now - g.progress
	}
	req.StallNs = max(req.StallNs, sh.storeStall(now))
	req.Yielded = g.yielded
	stalls := make(map[*peer]int64)
	sh.eachWait(func(q *request, p *peer, direct bool) {
		if direct {
			stalls[p] = max(stalls[p], now-max(q.began, p.gauge.answered))
		}
	})
	for _, p := range sh.peerList {
		w := control.PeerWait{CS: p.cs, WaitNs: p.gauge.waits.take(), StallNs: stalls[p]}
		if w.WaitNs != 0 || w.StallNs >= stallReport/4 {
			req.Waits = append(req.Waits, w)
		}
	}
}

const (
	// storePatience is for how long the store may do nothing while somebody waits for it: a hard disk
	// empties its cache, or reads a sector again and again.
	storePatience = int64(2e9)

	// storeLost is how long one operation may take, whatever happens to the others.
	storeLost = int64(30e9)
)

// storeStall is for how long, beyond what is normal, the store has been silent to those who wait
// for it: reads, writes that are merged with what is there, ZEROs whose words are to be cleared,
// and writes for which the log has no room because nothing is written back.
func (sh *Shard) storeStall(now int64) int64 {
	st, oldest := sh.store, now
	for _, q := range sh.reqs {
		if q.rd.r != nil {
			oldest = min(oldest, q.rd.began)
		}
		if q.zero.left > 0 {
			oldest = min(oldest, q.zero.began)
		}
	}
	if st.writes > 0 && (len(sh.stalled)+len(sh.pausedLinks) > 0 || sh.gauges.yielded) {
		oldest = min(oldest, st.moved)
	}
	age := now - oldest
	return max(0, min(age, now-st.moved)-storePatience, age-storeLost)
}

// eachWait calls f for every write and every other server that hasn't acknowledged it. direct: the
// acknowledgement is of that server alone, and not of others behind it in a chain.
func (sh *Shard) eachWait(f func(q *request, p *peer, direct bool)) {
	for _, q := range sh.reqs {
		if q.r == nil || q.waiting == 0 {
			continue
		}
		switch q.phase {
		case phaseFlight:
			for i := range q.r.members {
				if p := q.r.members[i].peer; p != nil && q.waiting&(1<<i) != 0 {
					f(q, p, q.direct&(1<<i) != 0)
				}
			}
		case phaseMember:
			f(q, q.behind, q.direct != 0)
		}
	}
}

// reportStalls tells the metadata servers of chunks whose writes wait for another server for too
// long, so that they are settled without it if it is excluded.
func (sh *Shard) reportStalls(now int64) {
	var reports []*control.UnreachableReq
	byPeer := make(map[*peer]*control.UnreachableReq)
	sh.eachWait(func(q *request, p *peer, _ bool) {
		if now-q.began < stallReport {
			return
		}
		rep := byPeer[p]
		if rep == nil {
			rep = &control.UnreachableReq{CS: p.cs}
			byPeer[p] = rep
			reports = append(reports, rep)
		}
		held := control.HeldChunk{Chunk: q.r.id, Epoch: q.r.epoch}
		if n := len(rep.Chunks); n == 0 || rep.Chunks[n-1] != held {
			rep.Chunks = append(rep.Chunks, held)
		}
	})
	for _, rep := range reports {
		sh.md.Unreachable(rep)
	}
}

// Yield gives the lease up, because the metadata servers said that writes don't get on here.
// Clients whose writes this server has begun as the head are sent elsewhere; whether those writes
// survive is decided when their chunks are settled. It lasts until the next registration.
func (sh *Shard) Yield() {
	sh.SetLease(0)
	if sh.gauges.yielded || sh.dead != nil || sh.stopping {
		return
	}
	sh.gauges.yielded = true
	sh.slog.Warn("the lease was given up: writes don't get on here, and others go on without this "+
		"chunk server until they do", "cs", sh.id)
	rep := &control.UnreachableReq{CS: sh.id}
	for _, r := range sh.all() {
		busy := r.queue.n > 0 || r.flight.n > 0
		if r.isHead() && r.state == active && r.last != r.commit {
			busy = true
			sh.abandonFlight(r, dataplane.NoLease)
			r.broken = true
		}
		if r.settler == nil {
			sh.refuseWaiting(r, dataplane.NoLease)
		}
		if busy {
			rep.Chunks = append(rep.Chunks, control.HeldChunk{Chunk: r.id, Epoch: r.epoch})
		}
	}
	if len(rep.Chunks) > 0 {
		sh.md.Unreachable(rep)
	}
}
