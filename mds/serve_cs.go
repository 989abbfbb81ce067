package mds

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// The life of a chunk server's lease: it registers (registerCS: an id, the lease, what to delete),
// sends heartbeats (heartbeat: the lease goes on), and is excluded from chunks only when the
// lease has certainly run out (reconfigure). A registration and an exclusion of the same server
// never overlap: what the registration's reply says about its chunks is complete.

// instanceOf names the process behind a request: what it says, or else a mix of its peer id and
// the upper half of its request ids, which a control.Client draws at random when it is made.
func (c *call) instanceOf(said uint64) uint64 {
	if said != 0 {
		return said
	}
	const odd = 0x9e3779b97f4a7c15
	return (c.peer.ID+1)*odd ^ c.from.Req>>32
}

func (c *call) registerCS(req *control.RegisterCSReq) (any, error) {
	if err := c.wholeInventory(req); err != nil {
		return nil, err
	}
	if err := c.checkRegistration(req); err != nil {
		return nil, err
	}
	instance := c.instanceOf(req.Instance)
	if err := c.ownDisk(req.Disk); err != nil {
		return nil, err
	}
	id, known, err := c.beginRegistration(req, instance)
	if err != nil {
		return nil, err
	}
	defer c.endRegistration(id)
	if id != 0 {
		if err := c.checkRecord(id, req); err != nil {
			return nil, err
		}
	}
	cmd := &cmdRegisterCS{Instance: instance, CS: CS{ID: req.CS, Disk: req.Disk, Boot: req.Boot,
		Addr: req.Addr, Host: req.Host, Path: req.Path, Location: req.Location, Tier: req.Tier,
		Capacity: req.Capacity, Used: req.Used}}
	if n := len(req.Starts); n > 0 {
		cmd.CS.Start, cmd.Starts, cmd.Confirmed = req.Starts[n-1], req.Starts[:n-1], req.Confirmed
	}
	// It must not be left half done when the connection is lost: see reconfigure.
	res, err := c.r.propose(c.l.ctx, cmd)
	if err != nil {
		return nil, err
	}
	if err := res.err(c.name()); err != nil {
		c.registrationRefused(id, instance, res)
		return nil, err
	}
	if id == 0 {
		if err := c.own(res.CS); err != nil {
			return nil, err
		}
	}
	sameProcess := known != nil && known.Boot == req.Boot
	if !sameProcess {
		c.targetRestarted(res.CS)
	}
	c.l.listing(res.CS)
	reply, err := c.grantLease(res.CS, req, instance, c.inventory(res.CS, req.Chunks, sameProcess))
	if err != nil {
		return nil, err
	}
	if req.Marks {
		markRetired(reply, req.Chunks)
	}
	return reply, nil
}

func (c *call) checkRegistration(req *control.RegisterCSReq) error {
	for _, text := range []string{req.Addr, req.Host, req.Path, req.Location} {
		if len(text) > dataplane.MaxPathLen {
			return c.fail(dataplane.Invalid, "text of %d bytes", len(text))
		}
	}
	switch {
	case req.Addr == "" || req.Boot == 0 || req.Disk == [16]byte{}:
		return c.fail(dataplane.Invalid, "address, start counter and disk identity are needed")
	case req.Tier > 3:
		return c.fail(dataplane.Invalid, "tier %d: 0 to 3", req.Tier)
	case len(req.Starts) > control.MaxStarts || slices.Contains(req.Starts, 0):
		return c.fail(dataplane.Invalid, "%d starts: at most %d, and none of them 0",
			len(req.Starts), control.MaxStarts)
	}
	return nil
}

// beginRegistration keeps exclusions of the server away until endRegistration, and waits for those
// that are being committed. id is 0 and known nil for a disk that was never seen.
func (c *call) beginRegistration(req *control.RegisterCSReq, instance uint64) (
	id dataplane.CSID, known *CS, err error) {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	f := c.r.fsm
	f.mu.RLock()
	if id = f.s.byDisk[req.Disk]; id != 0 {
		known = f.s.server(id)
	}
	f.mu.RUnlock()
	if id == 0 {
		return 0, nil, nil
	}
	if k := l.cs[id]; k != nil && k.peer != nil && k.peer != c.peer && k.instance != instance &&
		l.leases.live(id, l.now()) {
		l.leases.at(id).knockedNs = l.now()
		k.knock(l, id, instance, req)
		return 0, nil, c.fail(dataplane.NotReady, "another process serves %s as CS %d, connected "+
			"from %s: if it was stopped its lease ends in a moment", req.Path, id, k.peer.Addr())
	}
	e := l.leases.at(id)
	e.registering++
	e.comingBoot = max(e.comingBoot, req.Boot)
	// Each exclusion ends, at the latest with this leadership, and wakes us up.
	for e.excluding > 0 || e.adding > 0 {
		l.free.Wait()
		e = l.leases.at(id)
	}
	return id, known, nil
}

// registrationRefused tells of a copied or rolled-back directory, or that this very record is one,
// once per process.
func (c *call) registrationRefused(id dataplane.CSID, instance uint64, res Result) {
	source, code := fmt.Sprintf("cs %d", id), "cs-rolled-back"
	switch {
	case id == 0:
		return
	case res.Kind == dataplane.Internal:
		source, code = "mds", "mds-rolled-back"
	case res.Kind != dataplane.Conflict:
		return
	}
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if k := c.l.link(id); k.refused != instance {
		k.refused = instance
		c.l.event(control.Fault, source, code, res.Msg)
	}
}

func (c *call) endRegistration(id dataplane.CSID) {
	if id == 0 {
		return
	}
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	e := c.l.leases.at(id)
	if e.registering--; e.registering == 0 {
		e.comingBoot, e.endedBoot = 0, 0
	}
}

// listing notes that a server's inventory is about to be compared with the state. What it was to be
// told until now comes of that; what is freed from now on may not.
func (l *leader) listing(cs dataplane.CSID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.link(cs)
	k.forget, k.pushed = nil, false
}

// findings is what comes of an inventory.
type findings struct {
	forget  []dataplane.ChunkID // it may delete them
	retired []dataplane.ChunkID // it has them as a former member, whose place nobody has taken
	missing []dataplane.ChunkID // it is a member, they were written to, and it has nothing (I8)
	copies  bool                // it has copies that were made for the leader before, perhaps
}

// inventory compares what a server holds with what it should. A process that registers again lists
// what it had a moment before, so a chunk that was changed only lately isn't held to be missing.
//
// A new leader doesn't know of the copies that the one before had made. The request to make members
// of their targets may be on its way, and a target that deleted its copy at the word of this leader
// would be one without data: copies stay until the leader isn't new any more.
func (c *call) inventory(cs dataplane.CSID, held []control.HeldChunk, sameProcess bool) findings {
	var forget, retired, missing []dataplane.ChunkID
	f, copies := c.r.fsm, false
	young := c.l.now()-c.l.leases.sinceNs < int64(relistAfter)
	// The state may change between two pieces, and what is compared with what was found in them is of
	// before. It can become a member of chunks meanwhile, by allocations; it holds nothing of those.
	f.mu.RLock()
	load, slots, newest := int(f.s.csLoad[cs]), f.s.table.Slots(), f.s.nowNs
	f.mu.RUnlock()
	here := 0
	for piece := range slices.Chunk(held, heldStep) {
		f.mu.RLock()
		for _, h := range piece {
			switch rec := f.s.table.Lookup(h.Chunk); {
			case rec != nil && rec.has(cs):
				here++
			case rec != nil && rec.wasMember(cs) && h.Epoch < rec.Epoch:
				retired = append(retired, h.Chunk)
			case rec != nil && young && (h.Epoch == 0 || h.Epoch == rec.Epoch):
				copies = true
			default:
				forget = append(forget, h.Chunk)
			}
		}
		f.mu.RUnlock()
		runtime.Gosched()
	}
	if here >= load {
		return findings{forget, retired, nil, copies}
	}
	if sameProcess {
		newest -= int64(settledChanged)
	}
	has := make(map[dataplane.ChunkID]struct{}, len(held))
	for _, h := range held {
		has[h.Chunk] = struct{}{}
	}
	c.l.scan(slots, func(_ *State, rec *Record) {
		if rec.Flags&flagCreated != 0 && rec.ChangedNs <= newest && rec.has(cs) {
			if _, ok := has[rec.ID]; !ok {
				missing = append(missing, rec.ID)
			}
		}
	})
	return findings{forget, retired, missing, copies}
}

// heldStep is how many chunks of an inventory are looked up before the state is let go for others;
// they lie all over it.
const heldStep = 1024

// scanStep is how many records are looked at before the state is let go for others.
const scanStep = 64 * recordsPerPage

// scan calls f for every chunk below the slot, holding the state for short moments only.
func (l *leader) scan(slots uint64, f func(s *State, rec *Record)) {
	fsm := l.r.fsm
	for from := uint64(0); from < slots && l.ctx.Err() == nil; from += scanStep {
		fsm.mu.RLock()
		s := fsm.s
		for slot := from; slot < min(from+scanStep, s.table.Slots()); slot++ {
			if rec := s.table.At(slot); rec != nil {
				f(s, rec)
			}
		}
		fsm.mu.RUnlock()
		runtime.Gosched() // who was woken meanwhile doesn't wait for the end of a turn, 10 ms
	}
}

const (
	// maxForgetReply bounds the list in a RegisterCSReply; the rest is for the next one.
	maxForgetReply = 64 << 10
	// maxRetiredReply likewise; if there are more they are marked.
	maxRetiredReply = 16 << 10
)

// markRetired puts marks in the place of a long list. held is the inventory.
func markRetired(reply *control.RegisterCSReply, held []control.HeldChunk) {
	if len(reply.Retired) <= maxRetiredReply {
		return
	}
	retired := make(map[dataplane.ChunkID]struct{}, len(reply.Retired))
	for _, id := range reply.Retired {
		retired[id] = struct{}{}
	}
	reply.Retired, reply.RetiredMarks = nil, make([]byte, (len(held)+7)/8)
	for i, h := range held {
		if _, ok := retired[h.Chunk]; ok {
			reply.RetiredMarks[i/8] |= 1 << (i % 8)
		}
	}
}

// grantLease ends a registration.
func (c *call) grantLease(cs dataplane.CSID, req *control.RegisterCSReq, instance uint64,
	found findings) (*control.RegisterCSReply, error) {
	l, missing := c.l, found.missing
	if l.ctx.Err() != nil {
		return nil, c.r.notLeader()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if e := l.leases.at(cs); e.endedBoot == req.Boot {
		l.noteExit(cs, req.Boot, e.endedStop)
		return nil, c.fail(dataplane.NotReady, "CS %d: this process, start %d, has ended, as its "+
			"supervisor says", cs, req.Boot)
	}
	l.leases.registered(cs, now)
	l.leases.at(cs).copies = found.copies
	l.plan.registered(cs)
	l.returned(cs)
	l.move.wake()
	if k := l.link(cs); k.peer != c.peer && k.pushed {
		l.leases.at(cs).relist = true // pushed since the inventory, over a connection it has no more
	}
	k := l.connect(cs, c.peer, instance)
	k.capacity, k.used, k.stats, k.statsNs = req.Capacity, req.Used, control.CSStats{}, 0
	forget := slices.DeleteFunc(found.forget, func(id dataplane.ChunkID) bool {
		return l.recover.keeps(id, cs)
	})
	lease := dataplane.LeaseTime
	if len(forget) > maxForgetReply {
		// A push may come when it has become a member again: it is asked for its inventory anew. Until
		// then it serves nothing of the rest, which may have other members by now.
		if rest := forget[maxForgetReply:]; req.Marks {
			found.retired = append(found.retired, rest...)
		} else {
			lease = 0
		}
		forget = forget[:maxForgetReply]
		l.leases.at(cs).relist = true
	}
	l.stillRetired(cs, found.retired)
	for _, id := range missing {
		if !l.plan.lacks(id, cs, now) {
			l.log.Warn("too many missing chunks; the rest is found when they are used", "cs", cs)
			break
		}
	}
	if len(missing) > 0 {
		l.event(control.Fault, fmt.Sprintf("cs %d", cs), "chunks-missing", fmt.Sprintf(
			"%d chunks that it should hold are missing from %s: they are taken from it",
			len(missing), req.Path))
	}
	delete(l.refusals, refusedKey{cs: cs})
	delete(l.refusals, refusedKey{host: req.Host, path: req.Path})
	l.viewNs = 0
	l.recover.nextNs = 0
	reply := &control.RegisterCSReply{CS: cs, LeaseNs: int64(lease), Forget: forget,
		Retired: found.retired, Index: c.r.index()}
	l.fenceAck(cs, req.FenceSeq)
	f := c.r.fsm
	f.mu.RLock()
	reply.Fences = f.s.fencesAfter(req.FenceSeq)
	f.mu.RUnlock()
	return reply, nil
}

// event adds to the event log, without waiting for it.
func (l *leader) event(sev control.Severity, source, code, message string) {
	l.log.Warn(message, "source", source, "code", code)
	l.background(func() {
		ctx, cancel := context.WithTimeout(l.ctx, raftTimeout)
		defer cancel()
		// Without a majority there is no event log; the line above is all there can be.
		_, _ = l.r.propose(ctx, &cmdAddEvent{Severity: sev, Source: source, Code: code,
			Message: message})
	})
}

// heartbeatCase is what a heartbeat means.
type heartbeatCase uint8

const (
	beatOK       heartbeatCase = iota
	beatUnknown                // register
	beatOther                  // another process registered since: do not serve
	beatAgain                  // register again: chunks may have been taken from it
	beatFailed                 // its disk failed: no lease
	beatDropped                // removed from the cluster
	beatNotReady               // a registration is on its way
)

// beatFacts is what judgeBeat decides on.
type beatFacts struct {
	known, samePro, fenced, dropped bool
	excluding, registering, exited  bool
	failed, relist                  bool
}

// judgeBeat decides whether a heartbeat renews a lease.
func judgeBeat(f beatFacts) heartbeatCase {
	switch {
	case !f.known:
		return beatUnknown
	case f.dropped:
		return beatDropped
	case !f.samePro:
		return beatOther
	case f.failed:
		return beatFailed
	case f.registering:
		return beatNotReady
	case f.fenced || f.excluding || f.exited || f.relist:
		return beatAgain
	}
	return beatOK
}

func (c *call) heartbeat(req *control.HeartbeatReq) (any, error) {
	// The leadership is confirmed after the request came: a leader that was replaced must not
	// prolong a lease that its successor believes to end.
	if err := c.l.validBy(c.ctx, &c.r.beats); err != nil {
		return nil, err
	}
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if req.CS == 0 || int(req.CS) > MaxCS {
		return nil, c.fail(dataplane.NotFound, "CS %d: register first", req.CS)
	}
	f := c.r.fsm
	f.mu.RLock()
	known := f.s.server(req.CS)
	mine := f.s.ownership(req.CS, c.peer.Node) == ownIt
	f.mu.RUnlock()
	switch {
	case known == nil:
		return nil, c.fail(dataplane.NotFound, "CS %d: register first", req.CS)
	case !mine: // a registration says why, or makes it so
		return nil, c.fail(dataplane.NotFound, "CS %d isn't registered by this node's key", req.CS)
	}
	if err := c.checkSeen(req.CS, req.Seen); err != nil {
		return nil, err
	}
	e := l.leases.at(req.CS)
	if req.Failed != "" && known.Failed == "" && known.Boot == req.Boot && !e.failed {
		l.diskFailed(req.CS, req.Failed)
	}
	instance := c.instanceOf(req.Instance)
	same := known.Boot == req.Boot && known.Instance == instance
	if same && e.withheld && !known.Dropped && !e.failed && e.exitedBoot == 0 {
		if reply := l.yielding(req, l.now()); reply != nil {
			l.connect(req.CS, c.peer, instance).report(req, l.now())
			return reply, nil
		}
		return nil, c.fail(dataplane.NotFound, "CS %d: register again", req.CS)
	}
	switch judgeBeat(beatFacts{known: true, dropped: known.Dropped,
		samePro: same,
		fenced:  known.Fenced && !l.leases.unfenced, failed: e.failed || known.Failed != "",
		excluding: e.excluding > 0, registering: e.registering > 0,
		exited: e.exitedBoot != 0, relist: e.relist}) {
	case beatDropped:
		return nil, c.fail(dataplane.Fenced, "CS %d was removed from the cluster: it serves nothing any "+
			"more, and its directory may be deleted", req.CS)
	case beatOther:
		return nil, c.fail(dataplane.Conflict, "CS %d: another process registered, start %d; this "+
			"is start %d", req.CS, known.Boot, req.Boot)
	case beatFailed:
		return nil, c.fail(dataplane.Denied, "CS %d: its disk failed", req.CS)
	case beatNotReady:
		return nil, c.fail(dataplane.NotReady, "CS %d is registering", req.CS)
	case beatAgain:
		return nil, c.fail(dataplane.NotFound, "CS %d: register again", req.CS)
	}
	now := l.now()
	l.health.report(req.CS, req, now)
	if req.Yielded {
		return nil, c.fail(dataplane.NotFound, "CS %d: register again", req.CS)
	}
	e.answeredNs = now
	if k := l.cs[req.CS]; k != nil && k.peer != nil && k.peer != c.peer && k.pushed {
		e.relist = true // it came by a new connection before the old one was known to be lost
	}
	l.connect(req.CS, c.peer, instance).report(req, now)
	l.fenceAck(req.CS, req.FenceSeq)
	f.mu.RLock()
	defer f.mu.RUnlock()
	return &control.HeartbeatReply{LeaseNs: int64(dataplane.LeaseTime),
		Fences: f.s.fencesAfter(req.FenceSeq), Index: c.r.index()}, nil
}

// diskFailed notes a failed disk, for good. mu is held.
func (l *leader) diskFailed(cs dataplane.CSID, how string) {
	l.leases.at(cs).failed = true
	l.viewNs = 0
	l.log.Error("the disk of a chunk server failed", "cs", cs, "reason", how)
	l.background(func() {
		ctx, cancel := context.WithTimeout(l.ctx, raftTimeout)
		defer cancel()
		if _, err := l.r.propose(ctx, &cmdMarkCS{CS: cs, Failed: how}); err != nil {
			l.log.Warn("failed disk not recorded; the next heartbeat says it again", "cs", cs,
				"reason", err)
			l.mu.Lock()
			l.leases.at(cs).failed = false
			l.mu.Unlock()
		}
	})
}

// report takes the figures of a heartbeat.
func (k *csLink) report(req *control.HeartbeatReq, nowNs int64) {
	dt := float64(nowNs-k.statsNs) / float64(time.Second)
	if k.statsNs != 0 && dt > 0 {
		rate := func(old *float64, before, after uint64) {
			now := 0.0
			if after > before {
				now = float64(after-before) / dt
			}
			*old = *old*0.7 + now*0.3
		}
		rate(&k.rates.reads, k.stats.Reads, req.Stats.Reads)
		rate(&k.rates.writes, k.stats.Writes, req.Stats.Writes)
		rate(&k.rates.readBytes, k.stats.ReadBytes, req.Stats.ReadBytes)
		rate(&k.rates.writeBytes, k.stats.WriteBytes, req.Stats.WriteBytes)
	}
	k.capacity, k.used, k.stats, k.statsNs = req.Capacity, req.Used, req.Stats, nowNs
}

func (c *call) exited(req *control.ExitedReq) (any, error) {
	if err := c.l.valid(c.ctx); err != nil {
		return nil, err
	}
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	f := c.r.fsm
	f.mu.RLock()
	known := f.s.server(req.CS)
	mine := c.checkOwner(f.s, req.CS)
	f.mu.RUnlock()
	switch {
	case known == nil:
		return nil, c.fail(dataplane.NotFound, "CS %d", req.CS)
	case mine != nil && c.peer.Role != dataplane.RoleAdmin:
		return nil, mine
	}
	if e := l.leases.at(req.CS); e.registering > 0 {
		if e.comingBoot != req.Boot {
			return nil, nil // another one is here
		}
		e.endedBoot, e.endedStop = req.Boot, req.Planned // it is given no lease any more
	}
	l.noteExit(req.CS, req.Boot, req.Planned)
	return nil, nil
}

// noteExit notes that a process has ended, once, if it is the one that registered last. mu is held.
func (l *leader) noteExit(cs dataplane.CSID, boot uint64, planned bool) {
	f := l.r.fsm
	f.mu.RLock()
	known := f.s.server(cs)
	f.mu.RUnlock()
	if known.Boot != boot || l.leases.at(cs).exitedBoot == boot {
		return
	}
	l.leases.exited(cs, boot, planned, l.now())
	l.viewNs = 0
	severity, code, what := control.Warning, "cs-exited", "exited"
	if planned {
		severity, code, what = control.Info, "cs-stopped", "was stopped"
	}
	l.event(severity, fmt.Sprintf("cs %d", cs), code, fmt.Sprintf("the process of %s on %s "+
		"(start %d) %s", known.Path, known.Host, boot, what))
}

func (c *call) unreachable(req *control.UnreachableReq) (any, error) {
	if err := c.l.valid(c.ctx); err != nil {
		return nil, err
	}
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	f := c.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.s.server(req.CS) == nil {
		return nil, c.fail(dataplane.NotFound, "CS %d", req.CS)
	}
	now := l.now()
	for _, h := range req.Chunks {
		if rec := f.s.table.Lookup(h.Chunk); rec != nil && rec.has(req.CS) {
			l.plan.report(h.Chunk, now)
			if c.peer.Role == dataplane.RoleClient {
				l.plan.cannotReach(h.Chunk, req.CS, now)
			}
		}
	}
	// A server that is there but doesn't answer for a chunk may lack it. The leader before may
	// have known; this one asks for the inventory, once.
	e := l.leases.at(req.CS)
	if !e.registered && l.leases.live(req.CS, now) && l.cs[req.CS] != nil &&
		now-l.leases.sinceNs > int64(leaseOut) {
		e.relist = true
	}
	return nil, nil
}

func (c *call) getChunk(req *control.GetChunkReq) (any, error) {
	if err := c.l.valid(c.ctx); err != nil {
		return nil, err
	}
	l, f := c.l, c.r.fsm
	l.mu.Lock()
	defer l.mu.Unlock()
	f.mu.RLock()
	defer f.mu.RUnlock()
	rec := f.s.table.Lookup(req.Chunk)
	if rec == nil {
		return nil, c.fail(dataplane.NotFound, "chunk %v", req.Chunk)
	}
	reply := l.config(f.s, rec, l.now())
	reply.Former = l.formerOf(f.s, rec, l.now())
	return &reply, nil
}

func (c *call) reconfigure(req *control.ReconfigureReq) (any, error) {
	if len(req.Members) > dataplane.MaxReplicas || len(req.Lost) > dataplane.MaxReplicas {
		return nil, c.fail(dataplane.Invalid, "%d members, %d that lost data", len(req.Members),
			len(req.Lost))
	}
	if err := c.l.valid(c.ctx); err != nil {
		return nil, err
	}
	if err := c.mayReconfigure(req.Chunk); err != nil {
		return nil, err
	}
	out, added, moved, err := c.beginExclusion(req)
	if err != nil {
		return nil, err
	}
	defer c.endExclusion(out, added)
	before := c.l.recordOf(req.Chunk)
	// A lost connection doesn't take the command back. As long as it may still be committed no
	// registration of the excluded may begin, so the wait is only for the end of the leadership.
	res, err := c.r.propose(c.l.ctx, &cmdReconfigure{Chunk: req.Chunk, Epoch: req.Epoch,
		Members: req.Members, SetCreated: req.SetCreated,
		Moved:    len(moved) > 0 && len(out) == 0,
		Handover: len(moved) == 1 && before.Present == 1 && before.Epoch == req.Epoch})
	if err == nil {
		err = res.err(c.name())
	}
	if err != nil {
		return nil, err
	}
	l, f := c.l, c.r.fsm
	l.mu.Lock()
	defer l.mu.Unlock()
	f.mu.RLock()
	defer f.mu.RUnlock()
	l.displaced(&before, &res.Rec)
	if res.Rec.Epoch != before.Epoch {
		l.watch.changed(&res.Rec)
	}
	if len(out) == 0 {
		l.forgetMoved(&res.Rec, moved)
	}
	reply := l.config(f.s, &res.Rec, l.now())
	return &reply, nil
}

// beginExclusion checks that every member which the request leaves out may be excluded (invariant
// I4), and that those that it adds can be added; and keeps registrations of both away until
// endExclusion. Those in moved were sealed by the asker, as it was asked for a move: they needn't
// lose their leases.
func (c *call) beginExclusion(req *control.ReconfigureReq) (out, added,
	moved []dataplane.CSID, err error) {
	if len(req.Members) == 0 {
		return nil, nil, nil, nil
	}
	l, f := c.l, c.r.fsm
	l.mu.Lock()
	defer l.mu.Unlock()
	f.mu.RLock()
	defer f.mu.RUnlock()
	rec := f.s.table.Lookup(req.Chunk)
	if rec == nil || rec.Epoch != req.Epoch {
		return nil, nil, nil, nil // the command says what is wrong
	}
	now := l.now()
	if added, err = c.checkAdded(f.s, rec, req.Members, now); err != nil {
		return nil, nil, nil, err
	}
	for _, m := range rec.members() {
		stays := false
		for _, k := range req.Members {
			stays = stays || k == m.CS
		}
		if stays {
			continue
		}
		v := l.leases.verdict(m.CS, now)
		lacks := rec.Flags&flagCreated != 0 && l.plan.isMissing(rec.ID, m.CS) &&
			v != leaseReturning
		if v != leaseGone && !lacks {
			if l.recover.movesAway(rec.ID, rec.Epoch, m.CS, req.Members) {
				moved = append(moved, m.CS)
				continue
			}
			if v == leaseHeld && slices.Contains(req.Lost, m.CS) {
				l.forfeit(m.CS, rec.ID)
				return nil, nil, nil, c.fail(dataplane.NotReady, "CS %d lost data of chunk %v, but has a "+
					"lease, which it is asked for", m.CS, rec.ID)
			}
			// If it never got what it was added for, its inventory will say so.
			if e := l.leases.at(m.CS); now-e.doubtNs > int64(doubtEvery) {
				e.doubtNs, e.relist = now, true
			}
			return nil, nil, nil, c.fail(dataplane.NotReady, "CS %d may still serve chunk %v and can't be "+
				"excluded now", m.CS, rec.ID)
		}
		out = append(out, m.CS)
	}
	for _, m := range out {
		l.leases.at(m).excluding++
	}
	for _, m := range added {
		l.leases.at(m).adding++
	}
	return out, added, moved, nil
}

func (c *call) endExclusion(out, added []dataplane.CSID) {
	if len(out)+len(added) == 0 {
		return
	}
	c.l.mu.Lock()
	for _, m := range added {
		c.l.leases.at(m).adding--
	}
	for _, m := range out {
		c.l.leases.at(m).excluding--
	}
	c.l.mu.Unlock()
	c.l.free.Broadcast()
}
