package chunk

import (
	"errors"
	"fmt"
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// settler brings the members of one chunk to one history. It runs on the chunk's head, or on
// another member when the metadata servers say so because the head is lost. Attempts, each from
// the start, until one succeeds or nobody needs the chunk:
//
//	getConfig   the committed members and epoch
//	reachAll    all members that stay answer a PING: nothing is stopped before that
//	sealAll     SEAL; every member says what it has
//	copyNext    decide(): what is missing goes from the winner to the others
//	exclude     members that are lost, or another head: epoch + 1 at the metadata servers, by
//	            compare-and-set
//	activate    all but the head; a new chunk is marked created; the head
//
// A step's answers are recognised by the attempt they belong to.
type settler struct {
	sh       *Shard
	r        *replica
	attempt  int
	lost     []dataplane.CSID // to be excluded, as the metadata servers said
	lostAt   int64            // when they said so last
	lead     bool             // this server is to become the head, as they said then
	cfg      *control.ChunkConfig
	stay     []control.CSAddr // members that stay, in order
	tails    []memberTail
	head     int      // index of the tail of who leads in the winner's epoch; -1: not known
	gens     []uint32 // the connections over which members were sealed
	verdict  verdict
	told     []dataplane.CSID // of whose loss was reported
	term     uint16
	life     uint16 // of this attempt's activation: memory.go; 0: not chosen yet
	pending  int
	copying  int
	nextCopy int
	copyAt   uint32 // bytes of the copy nextCopy that are under way
	stepErr  error
	retry    uring.Timer
	join     *copier         // with the member that is to be added
	soft     bool            // writes go on: nobody was sealed yet
	forget   dataplane.Epoch // at the end, unless the replica is of this epoch by then; 0: don't
	sure     bool            // the attempt before found members that lost data, too
	owes     bool            // sealed others for an exclusion: somebody must activate them again
	running  bool            // counts for maxSettling
	queued   bool            // somebody waits for it, and it waits for its turn
	tried    bool            // in vain, since the metadata servers told news
	tries    int
}

// settle makes sure that the chunk is being settled, because a request needs it or, with lost
// members, because the metadata servers said so.
func (sh *Shard) settle(r *replica, lost []dataplane.CSID) {
	if sh.dead != nil || sh.stopping {
		return
	}
	s := r.settler
	if s == nil {
		if now := sh.env.Now(); lost == nil && r.askedAt != 0 && now-r.askedAt < int64(settleRetry) {
			sh.refuseAll(r, dataplane.NotHead) // others settle it
			return
		}
		s = &settler{sh: sh, r: r}
		s.retry.Fire = s.turn
		r.settler = s
		if lost != nil {
			s.lost, s.lostAt = slices.Clone(lost), sh.env.Now()
		}
		s.wait(lost != nil || s.wanted())
		return
	}
	s.soft = false
	if len(lost) > 0 {
		s.tried = s.tried && len(s.lost) > 0
		s.lostAt = sh.env.Now()
	}
	for _, cs := range lost {
		if !slices.Contains(s.lost, cs) {
			s.lost = append(s.lost, cs)
		}
	}
	switch {
	case s.retry.Armed():
		if len(lost) > 0 {
			sh.env.Arm(&s.retry, 0) // what it waits for has come
		}
	case !s.running && (!s.queued || len(lost) > 0):
		s.wait(true) // now somebody waits for it, or for more than before
	}
}

// wanted says whether a request waits for the chunk.
func (s *settler) wanted() bool {
	return s.r.queue.n > 0 || s.r.reads.n > 0 || s.r.flight.n > 0
}

// wait has the settler wait for its turn.
func (s *settler) wait(wanted bool) {
	sh := s.sh
	switch {
	case wanted && !s.tried:
		sh.settleQueue = append(sh.settleQueue, s)
	case wanted:
		sh.settleAgain = append(sh.settleAgain, s)
	default:
		sh.settleIdle = append(sh.settleIdle, s)
	}
	s.queued = wanted
	sh.nextSettler()
}

// nextSettler starts settlers that wait for their turn.
func (sh *Shard) nextSettler() {
	for sh.settling < maxSettling {
		s := sh.waitingSettler()
		if s == nil {
			return
		}
		s.running, s.queued = true, false
		sh.settling++
		sh.env.Arm(&s.retry, 0)
	}
}

// waitingSettler returns whose turn it is: first one that somebody waits for. Those that were tried
// in vain don't keep out others, as they may need somebody who isn't there: they come when there is
// none of the first kind, and take turns with those that nobody waits for.
func (sh *Shard) waitingSettler() *settler {
	sh.idleFirst = !sh.idleFirst
	lists := [...]*[]*settler{&sh.settleQueue, &sh.settleAgain, &sh.settleIdle}
	if sh.idleFirst {
		lists[1], lists[2] = lists[2], lists[1]
	}
	for _, l := range lists {
		for len(*l) > 0 {
			s := (*l)[0]
			*l = (*l)[1:]
			if !s.running && !s.retry.Armed() && s.r.settler == s {
				return s
			} // else: it was in another list, too, or has ended
		}
	}
	return nil
}

// turn is reached when the settler may begin an attempt, or when its pause is over.
func (s *settler) turn() {
	if s.running {
		s.begin()
		return
	}
	s.wait(s.wanted() || len(s.lost) > 0 || s.alone())
}

// pause ends the settler's turn; it wants the next one after d.
func (s *settler) pause(d int64) {
	s.leave()
	s.sh.env.Arm(&s.retry, d)
	s.sh.nextSettler()
}

// leave gives its place among those at work to others.
func (s *settler) leave() {
	if s.running {
		s.running = false
		s.sh.settling--
	}
}

// begun says whether something was, or is about to be, asked of other members.
func (s *settler) begun() bool { return s.running || s.attempt > 0 }

// end is the end of the settler.
func (s *settler) end() {
	sh, r := s.sh, s.r
	s.attempt++
	sh.env.Disarm(&s.retry)
	s.leave()
	s.dropJoin("settle", errors.New("ended"))
	r.settler = nil
	r.broken = true // unless it ended with success
	if r.sealer == any(s) {
		r.sealer = nil
	}
	sh.nextSettler()
	if s.forget != 0 && !r.gone {
		push := &control.ForgetPush{Chunks: []dataplane.ChunkID{r.id},
			Epochs: []dataplane.Epoch{s.forget}}
		sh.later(func() { sh.ForgetPush(push) })
	}
}

// again ends the attempt; another one begins soon, if anybody still needs it.
func (s *settler) again(why string, err error) {
	sh := s.sh
	s.attempt++
	s.tries++
	s.tried = true
	s.dropJoin(why, err)
	if s.tries == 1 || s.tries%50 == 0 {
		sh.slog.Info("chunk can't be settled yet", "chunk", s.r.id, "step", why, "tries", s.tries,
			"err", err)
	}
	sh.impatient(s.r)
	patience := idleTries
	if s.alone() {
		patience = aloneTries
	}
	if len(s.lost) == 0 && s.r.queue.n == 0 && s.r.reads.n == 0 && s.r.last == s.r.commit &&
		s.tries > patience {
		s.end()
		return
	}
	wait := int64(settleRetry)
	if k := dataplane.KindOf(err); k == dataplane.Conflict || k == dataplane.NotReady {
		// Another coordinator is at work, too, or a member isn't ready for anybody: two that come back
		// after the same time would stop each other again.
		wait += int64(sh.env.Rand() % uint64(settleRetry))
	}
	s.pause(wait)
}

// alone says whether this server has had the members changed, and they aren't activated: others may
// have gone on in the epoch before, and nobody else may ever hear of the new one.
func (s *settler) alone() bool { return s.cfg != nil && s.cfg.Epoch > s.r.epoch }

// giveUp ends the settler: the chunk isn't ours to settle.
func (s *settler) giveUp(status dataplane.Kind) {
	s.end()
	s.r.askedAt = s.sh.env.Now()
	s.sh.refuseAll(s.r, status)
	s.sh.forgetStranger(s.r)
}

// refuseAll answers everything that waits for the chunk.
func (sh *Shard) refuseAll(r *replica, status dataplane.Kind) {
	if r.isHead() {
		sh.abandonFlight(r, status)
	}
	sh.refuseWaiting(r, status)
}

// refuseWaiting answers what waits and was not started.
func (sh *Shard) refuseWaiting(r *replica, status dataplane.Kind) {
	sh.refuseReads(r, status)
	sh.refuseFlushes(r, status)
	var keep requestList
	for q := r.queue.cut(); q != nil; {
		next := q.next
		if q.merging { // its memory is in use until all is read, which the disk may never do
			q.status = status
			sh.answer(q, status)
			keep.push(q)
		} else {
			sh.drop(q, status)
		}
		q = next
	}
	r.queue = keep
}

// begin starts an attempt.
func (s *settler) begin() {
	if s.owes && len(s.lost) == 0 && !s.lead && s.r.state == active && !s.r.isHead() && !s.alone() {
		s.giveUp(dataplane.NotHead) // the head did it
		return
	}
	if !s.sh.leased() {
		// Others may be about to go on without this server: it must not stop them.
		if !s.alone() {
			s.giveUp(dataplane.NoLease)
			return
		}
		s.sh.refuseAll(s.r, dataplane.NoLease)
		s.pause(int64(settleRetry))
		return
	}
	s.attempt++
	if s.yields() {
		s.sh.impatient(s.r)
		s.pause(int64(settleRetry))
		return
	}
	if s.sh.env.Now()-s.lostAt > int64(lostStale) {
		s.lost, s.lead = nil, false
	}
	s.term, s.life = uint16(s.sh.env.Rand()), 0
	at := s.attempt
	s.sh.md.GetChunk(s.r.id, func(cfg *control.ChunkConfig, err error) {
		if s.attempt == at {
			s.haveConfig(cfg, err)
		}
	})
}

// yields says whether the attempt must wait, as the replica was sealed by another coordinator that
// is at work, and only that one has the metadata servers' word. Else the head, which clients ask
// all the time, would stop it again and again before all is copied.
func (s *settler) yields() bool {
	l, other := s.r.sealer.(*link)
	return other && l.open && s.r.state == sealed && len(s.lost) == 0 && !s.lead &&
		s.sh.env.Now()-s.r.sealedAt < int64(settleYield)
}

func (s *settler) haveConfig(cfg *control.ChunkConfig, err error) {
	sh, r := s.sh, s.r
	switch kind := dataplane.KindOf(err); {
	case kind == dataplane.NotFound || kind == dataplane.UnknownChunk:
		s.giveUp(dataplane.UnknownChunk)
		return
	case err != nil:
		s.again("get the configuration", err)
		return
	case cfg.Chunk != r.id || cfg.Epoch < r.epoch || len(cfg.Members) > dataplane.MaxReplicas:
		s.again("get the configuration", fmt.Errorf("%v at epoch %d, but %v at %d is here",
			cfg.Chunk, cfg.Epoch, r.id, r.epoch))
		return
	}
	s.cfg = cfg
	s.stay = s.stay[:0]
	me := false
	for _, m := range cfg.Members {
		me = me || m.CS == sh.id
		if !slices.Contains(s.lost, m.CS) {
			s.stay = append(s.stay, m)
		}
	}
	if len(s.stay) == len(cfg.Members) {
		s.lost = nil // excluded already
	}
	switch {
	case !me:
		s.giveUp(dataplane.UnknownChunk)
	case len(s.lost) == 0 && cfg.Members[0].CS != sh.id && !s.owes && !s.lead:
		s.giveUp(dataplane.NotHead)
	case len(s.stay) == 0 || !slices.ContainsFunc(s.stay,
		func(m control.CSAddr) bool { return m.CS == sh.id }):
		s.giveUp(dataplane.NotReady)
	default:
		s.checkJoin()
		s.reachAll()
	}
}

// each asks every member that stays; mine is called instead for this server. next is called when
// all have answered without an error.
func (s *settler) each(what string, list []control.CSAddr, ask func(i int, p *peer,
	done func(error)), mine func(i int, done func(error)), next func()) {
	at := s.attempt
	s.pending, s.stepErr = len(list), nil
	if len(list) == 0 {
		next()
		return
	}
	done := func(err error) {
		if s.attempt != at {
			return
		}
		if err != nil && s.stepErr == nil {
			s.stepErr = err
		}
		if s.pending--; s.pending > 0 {
			return
		}
		if s.stepErr != nil {
			s.again(what, s.stepErr)
			return
		}
		next()
	}
	for i, m := range list {
		if s.attempt != at {
			return
		}
		if m.CS == s.sh.id {
			mine(i, done)
		} else {
			ask(i, s.sh.peer(m.CS, m.Addr), done)
		}
	}
}

// reachAll makes sure that all members that stay can be reached.
func (s *settler) reachAll() {
	s.each("reach all members", s.stay, func(i int, p *peer, done func(error)) {
		p.callWithin(reachTimeout, dataplane.Header{Op: dataplane.OpPing}, nil, nil,
			func(_ *dataplane.Header, _, _ []byte, _ *uring.Buf, err error) {
				s.unreachable(p, err)
				done(err)
			})
	}, func(i int, done func(error)) { done(nil) }, s.sealAll)
}

// unreachable reports a member that can't be asked, or whose disk failed: one that answers pings
// may have to be excluded, too.
func (s *settler) unreachable(p *peer, err error) {
	switch dataplane.KindOf(err) {
	case dataplane.IOError, dataplane.Unreachable, dataplane.TimedOut, dataplane.Closed:
		s.sh.md.Unreachable(&control.UnreachableReq{CS: p.cs,
			Chunks: []control.HeldChunk{{Chunk: s.r.id, Epoch: s.cfg.Epoch}}})
	}
}

// sealAll stops all members and learns what they have.
func (s *settler) sealAll() {
	s.soft = false
	s.owes = s.owes || len(s.lost) > 0 || s.lead
	s.tails = make([]memberTail, len(s.stay))
	s.gens = make([]uint32, len(s.stay))
	h := dataplane.Header{Op: dataplane.OpSeal, Chunk: s.r.id, Epoch: s.cfg.Epoch,
		Aux: dataplane.PartSize}
	s.each("seal", s.stay, func(i int, p *peer, done func(error)) {
		p.call(h, nil, nil,
			func(a *dataplane.Header, crcs, payload []byte, _ *uring.Buf, err error) {
				if err == nil {
					var t memberTail
					if t, err = parseSeal(a, crcs, payload); err == nil {
						s.tails[i], s.gens[i] = t, p.gen
					}
				}
				s.unreachable(p, err)
				done(err)
			})
	}, func(i int, done func(error)) {
		st := s.sh.seal(s.r, s.cfg.Epoch, s, func() {
			s.tails[i] = tailOf(s.r)
			done(nil)
		})
		if st != dataplane.OK {
			done(dataplane.E("seal", st, nil))
		}
	}, func() {
		if s.join == nil {
			s.decided()
			return
		}
		at := s.attempt
		s.join.whenIdle(func() {
			if s.attempt == at {
				s.decided()
			}
		})
	})
}

func (s *settler) decided() {
	if s.r.state != sealed || s.r.sealer != any(s) {
		s.again("seal", errors.New("another coordinator has sealed this server's replica"))
		return
	}
	s.verdict = decide(s.cfg.Created, s.tails)
	s.sh.slog.Debug("settling", "chunk", s.r.id, "epoch", s.cfg.Epoch, "tails", s.tails,
		"verdict", s.verdict)
	s.head = -1
	if s.tails[s.verdict.winner].epoch == s.cfg.Epoch {
		s.head = slices.IndexFunc(s.stay, func(m control.CSAddr) bool {
			return m.CS == s.cfg.Members[0].CS
		})
	}
	if s.verdict.dataLost && len(s.lost) > 0 {
		// Only a copy that wasn't finished is left: those to be excluded have the data (I7).
		s.lost = nil
		s.again("find a member with the data", errors.New("only those that are away have it"))
		return
	}
	if s.verdict.dataLost {
		s.sh.event(control.Fault, "chunk-lost", fmt.Sprintf(
			"chunk %v: none of the members that are left has its data", s.r.id))
		s.again("find a member with the data", nil)
		return
	}
	if len(s.verdict.lost) == 0 {
		s.sure = false
	} else if !s.sure {
		// Another coordinator may have come in between the answers of two members.
		s.sure = true
		s.again("find all that was acknowledged on all members", nil)
		return
	}
	s.tellLost()
	if s.sh.canary.NoPatches {
		s.verdict.copies = nil
	}
	if c := s.join; c != nil {
		if len(s.verdict.lost) > 0 {
			s.dropJoin("settle", errors.New("a member lost data"))
		} else {
			s.verdict.copies = slices.DeleteFunc(s.verdict.copies, func(x tailCopy) bool {
				return s.stay[x.to].CS == c.leaving
			})
			s.verdict.copies = appendCopies(s.verdict.copies, len(s.stay), c.rest(s.tails))
		}
	}
	s.nextCopy, s.copyAt, s.copying, s.stepErr = 0, 0, 0, nil
	s.copyMore()
}

// tellLost reports members that lost data, each once.
func (s *settler) tellLost() {
	begun := begun(s.tails, s.cfg.Epoch)
	for _, i := range s.verdict.lost {
		cs := s.stay[i].CS
		if slices.Contains(s.told, cs) {
			continue
		}
		s.told = append(s.told, cs)
		if s.tails[i].unknown && (!begun || s.verdict.last == 0) {
			// Most likely it was being added, or activated as the head, and its process ended.
			s.sh.event(control.Warning, "replica-missing", fmt.Sprintf(
				"chunk %v: cs %d doesn't have it; it is excluded", s.r.id, cs))
			continue
		}
		s.sh.event(control.Fault, "replica-lost", fmt.Sprintf(
			"chunk %v: cs %d lost data that it had acknowledged; it is excluded", s.r.id, cs))
	}
}

// toLead has this server become the head in the change of the configuration that is under way, or
// in one of its own. It is for the one that the metadata servers named; s may be nil.
func (s *settler) toLead() {
	if s != nil {
		s.tried = s.tried && s.lead
		s.lead, s.lostAt = true, s.sh.env.Now()
	}
}

// takeLead puts this server first. It returns false if it was, or if it isn't to be the head.
func (s *settler) takeLead(stay []control.CSAddr, gens []uint32, ids []dataplane.CSID) bool {
	i := slices.Index(ids, s.sh.id)
	if !s.lead || i <= 0 {
		return false
	}
	m, g := stay[i], gens[i]
	copy(stay[1:i+1], stay[:i])
	copy(gens[1:i+1], gens[:i])
	copy(ids[1:i+1], ids[:i])
	stay[0], gens[0], ids[0] = m, g, s.sh.id
	return true
}

// exclude takes lost members out of the configuration, adds the new one, or changes the head.
func (s *settler) exclude() {
	var stay []control.CSAddr
	var ids, lost []dataplane.CSID
	var gens []uint32
	for i, m := range s.stay {
		switch {
		case !slices.Contains(s.verdict.lost, i):
			stay, ids, gens = append(stay, m), append(ids, m.CS), append(gens, s.gens[i])
		case !s.tails[i].unknown: // what a server doesn't have at all its inventory tells
			lost = append(lost, m.CS)
		}
	}
	join := s.join != nil
	if join && !s.join.connected() {
		// What it had may be gone: it must not be added, and nothing else may have told us.
		s.again("add the new member", errors.New("the connection to it was lost"))
		return
	}
	if join {
		stay, gens = s.joined(stay, gens)
		ids = ids[:0]
		for _, m := range stay {
			ids = append(ids, m.CS)
		}
		s.r.unsure = s.cfg.Epoch
	}
	led := !join && s.takeLead(stay, gens, ids)
	s.stay, s.gens = stay, gens
	// An addition that failed may have been only delayed. It must not be committed once the chunk
	// takes writes without the new member, or a move once the member that leaves serves reads again:
	// an epoch in between makes sure of that.
	if !join && !led && len(ids) == len(s.cfg.Members) && !s.unsure() {
		s.activateOthers()
		return
	}
	if s.sh.canary.NoExclude && !join {
		cfg := *s.cfg
		cfg.Members = stay
		s.cfg, s.lost = &cfg, nil
		s.activateOthers()
		return
	}
	s.beforeAsking(func() { s.changeMembers(ids, lost) })
}

// unsure says whether the committed epoch may yet be left by a change that the head asked for.
func (s *settler) unsure() bool {
	return s.r.unsure == s.cfg.Epoch || slices.ContainsFunc(s.tails, func(t memberTail) bool {
		return t.unsure && t.epoch == s.cfg.Epoch
	})
}

// changeMembers asks the metadata servers for a configuration with these members, without those
// that lost data, too.
func (s *settler) changeMembers(ids, lost []dataplane.CSID) {
	at := s.attempt
	s.sh.md.Reconfigure(&control.ReconfigureReq{Chunk: s.r.id, Epoch: s.cfg.Epoch, Members: ids,
		Lost: lost},
		func(cfg *control.ChunkConfig, err error) {
			switch {
			case s.attempt != at:
			case err != nil:
				if dataplane.KindOf(err) == dataplane.NotReady {
					s.lost = nil // they are back; or we are told again
				}
				s.again("change the members", err)
			case !sameMembers(cfg, ids):
				s.again("change the members", fmt.Errorf("the answer has other members"))
			default:
				s.sh.slog.Info("members changed", "chunk", s.r.id, "epoch", cfg.Epoch, "members", ids)
				s.lost, s.lead = nil, false
				s.cfg = cfg
				s.activateOthers()
			}
		})
}

func sameMembers(cfg *control.ChunkConfig, ids []dataplane.CSID) bool {
	return slices.EqualFunc(cfg.Members, ids,
		func(m control.CSAddr, id dataplane.CSID) bool { return m.CS == id })
}

// activateOthers activates all members but the head, which starts to write at once.
func (s *settler) activateOthers() {
	s.activateList(s.cfg.Members[1:], func() {
		if s.cfg.Members[0].CS == s.sh.id {
			// This head doesn't write before the settler has ended: so the mark "created" can come
			// last, and a member that fails before it has lost nothing.
			s.activateList(s.cfg.Members[:1], func() { s.markCreated(s.succeed) })
			return
		}
		s.markCreated(func() { s.activateList(s.cfg.Members[:1], s.succeed) })
	})
}

func (s *settler) activateList(list []control.CSAddr, next func()) {
	s.r.setFile(s.sh, s.cfg)
	payload := control.Marshal(s.cfg)
	crcs := crcsOf(payload)
	h := dataplane.Header{Op: dataplane.OpActivate, Flags: dataplane.FlagData, Chunk: s.r.id,
		Epoch: s.cfg.Epoch, Length: uint32(len(payload)), Seq: s.verdict.last,
		Aux: uint32(s.lifeFor())<<16 | uint32(s.term)}
	s.each("activate", list, func(i int, p *peer, done func(error)) {
		h, crcs, payload := h, crcs, payload
		if d := s.dirtyToo(list[i].CS); d != nil {
			payload = d.append(slices.Clone(payload))
			crcs = crcsOf(payload)
			h.Length, h.Flags = uint32(len(payload)), h.Flags|dataplane.FlagRecovery
		}
		p.call(h, crcs, payload,
			func(a *dataplane.Header, _, _ []byte, _ *uring.Buf, err error) {
				if err == nil && a.Status != dataplane.OK {
					err = dataplane.E("activate at "+p.String(), a.Status, nil)
				}
				done(err)
			})
	}, func(i int, done func(error)) {
		o := activateOrder{s.cfg, s.verdict.last, s.term, s.lifeFor(), nil}
		s.sh.activate(s.r, o, s, done)
	}, next)
}

// markCreated tells the metadata servers that writes may be acknowledged from now on.
func (s *settler) markCreated(next func()) {
	if s.cfg.Created {
		next()
		return
	}
	at := s.attempt
	s.sh.md.Reconfigure(&control.ReconfigureReq{Chunk: s.r.id, Epoch: s.cfg.Epoch, SetCreated: true},
		func(_ *control.ChunkConfig, err error) {
			switch {
			case s.attempt != at:
			case err != nil:
				s.again("mark the chunk as created", err)
			default:
				next()
			}
		})
}

// succeed: all members have one history. Writes that were in flight are part of it, but only enough
// members make them acknowledged; otherwise the client asks again until there are.
func (s *settler) succeed() {
	sh, r := s.sh, s.r
	for i, m := range s.stay {
		if m.CS == sh.id {
			continue
		}
		if p := sh.peer(m.CS, m.Addr); !p.open || p.gen != s.gens[i] {
			s.again("keep all members", fmt.Errorf("the connection to %v was lost", p))
			return
		}
	}
	if s.cfg.Members[0].CS != sh.id && s.join != nil && s.join.leaving == sh.id {
		s.left()
		return
	}
	if s.join != nil {
		s.join.end("")
	}
	if r.state != active || r.epoch != s.cfg.Epoch || r.term != s.term {
		s.again("keep all members", errors.New("another server has settled it meanwhile"))
		return
	}
	s.end()
	r.broken, r.askedAt = false, 0 // the others' turn is over
	status := dataplane.OK
	if len(r.members) < r.minimum {
		status = dataplane.BelowMinimum
	}
	for r.flight.n > 0 {
		before := r.flight.n
		for _, q := range r.flight.slots {
			if q != nil && q.seq <= r.commit {
				r.flight.remove(q.seq)
				sh.finishWrite(q, status)
			}
		}
		if r.flight.n == before {
			panic(fmt.Sprintf("chunk: %d writes in flight above seq %d after settling", before, r.commit))
		}
	}
	r.told, r.toldAt = r.commit, sh.env.Now()
	sh.flushed(r)
	sh.pumpReads(r)
	sh.pumpWrites(r)
}
