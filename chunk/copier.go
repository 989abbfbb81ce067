package chunk

import (
	"encoding/binary"
	"fmt"
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// copier brings a chunk to one more server, while writes go on: because it lost a member, or
// because a member is to give its place up (leaving). It runs on the chunk's head when the metadata
// servers ask for it (RecoverPush):
//
//	begin   the chunk is made ready: a head is active and knows its members
//	seal    SEAL|FlagRecovery to the target. If it holds a replica that the dirty map covers it
//	        keeps that, from now on as an unfinished copy, and only the map's granules, and what
//	        the target touched above its commit mark, are dirty. Otherwise it drops whatever it has,
//	        takes a fresh slot, in which all reads as zeros, and all granules are dirty
//	pump    dirty granules (64 KiB) go over as patches; into a fresh slot not those of zeros. A
//	        granule is taken only when no write above the commit mark is on it
//	mirror  a write on granules that are neither dirty nor on their way goes to the target, too, as
//	        a patch behind theirs; any other write makes its granules dirty
//	pass    after the first pass into a fresh slot the target makes it durable; then passes over
//	        what is dirty, until that is little or there have been enough of them
//	join    a settle with the target in it: the members are sealed, the one that leaves as well; the
//	        rest goes over; the metadata servers change the members (epoch + 1); all are activated
//
// Whatever goes wrong before the metadata servers were asked ends the copier, and nothing has
// happened: the target holds something that nobody believes. The metadata servers ask again.
type copier struct {
	sh      *Shard
	r       *replica
	target  control.CSAddr
	leaving dataplane.CSID // 0: nobody
	epoch   dataplane.Epoch
	gen     uint32 // of the connection over which the target was sealed
	started bool   // the target was asked; from here on a seal of the chunk ends the copier
	ready   bool   // the target was sealed: dirty is what it lacks
	delta   bool   // it keeps what it had
	ended   bool

	dirty   granuleSet
	moving  granuleSet // on their way: what is written to them meanwhile makes them dirty
	sent    granuleSet // something was sent: zeros must be sent from now on, too
	next    int        // granule the pass looks at next
	pass    int
	flying  int
	window  int // parts that may be on their way
	mirrors int // mirrored writes on their way
	pumping bool
	damaged int    // granules that were found damaged, each time
	synced  bool   // what was written straight to the target's store is durable
	idle    func() // called when nothing is on its way any more
	parts   uint64 // sent, for the log
	until   int64  // begin gives up then
	paceAt  int64  // no part before that time
	theirs  uint64 // bytes per second that the target allows; 0: any
	timer   uring.Timer
}

// RecoverPush has the metadata servers' word: copy these chunks to those servers. What can't be
// started now is left; it is asked for again.
func (sh *Shard) RecoverPush(p *control.RecoverPush) {
	if sh.dead != nil || sh.stopping || len(p.Targets) != len(p.Chunks) ||
		len(p.Leaving) != 0 && len(p.Leaving) != len(p.Chunks) {
		return
	}
	for i := range p.Chunks {
		cfg, target, leaving := &p.Chunks[i], p.Targets[i], dataplane.CSID(0)
		if len(p.Leaving) > 0 {
			leaving = p.Leaving[i]
		}
		isMember := func(m control.CSAddr) bool { return m.CS == leaving }
		if len(sh.copiers) >= maxCopiers || target.CS == sh.id || target.CS == 0 ||
			len(cfg.Members) == 0 || cfg.Members[0].CS != sh.id ||
			leaving != 0 && !slices.ContainsFunc(cfg.Members, isMember) {
			continue
		}
		r := sh.find(cfg.Chunk) // one that nobody has written to is made by settling it
		if r == nil || r.copier != nil {
			continue
		}
		c := &copier{sh: sh, r: r, target: target, leaving: leaving, epoch: cfg.Epoch,
			window: copyFirst, until: sh.env.Now() + int64(copyPatience)}
		c.dirty.all()
		c.timer.Fire = c.begin
		r.copier = c
		sh.copiers = append(sh.copiers, c)
		sh.pace.watch()
		sh.env.Arm(&c.timer, 0)
	}
}

// end ends the copier; why is empty when the target has become a member.
func (c *copier) end(why string) {
	if c.ended {
		return
	}
	c.ended = true
	sh, r := c.sh, c.r
	sh.env.Disarm(&c.timer)
	r.copier = nil
	if s := r.settler; s != nil && s.join == c {
		s.join = nil
	}
	if i := slices.Index(sh.copiers, c); i >= 0 {
		sh.copiers = slices.Delete(sh.copiers, i, i+1)
	}
	if c.idle != nil {
		c.idle()
	}
	if why == "" {
		sh.stats.Copies++
		if c.delta {
			sh.stats.Deltas++
		}
		sh.slog.Info("chunk copied to a new member", "chunk", r.id, "cs", c.target.CS,
			"epoch", r.epoch, "parts", c.parts, "passes", c.pass, "delta", c.delta,
			"leaving", c.leaving)
		return
	}
	sh.slog.Info("copy of a chunk given up", "chunk", r.id, "cs", c.target.CS, "reason", why,
		"parts", c.parts, "passes", c.pass)
}

// begin waits until the chunk is active here, with all members.
func (c *copier) begin() {
	sh, r := c.sh, c.r
	switch {
	case r.state == active && r.epoch > c.epoch:
		c.end("the chunk has changed since it was asked for")
	case sh.env.Now() > c.until:
		c.end("its members don't come to one history")
		sh.forgetStranger(r)
	case r.state == active && r.epoch == c.epoch && r.isHead() && r.settler == nil && !r.broken:
		c.seal()
	default:
		if r.settler == nil {
			sh.settle(r, []dataplane.CSID{})
		}
		sh.env.Arm(&c.timer, int64(copyPause))
	}
}

// seal has the target make itself ready.
func (c *copier) seal() {
	if slices.ContainsFunc(c.r.members, func(m member) bool { return m.cs == c.target.CS }) {
		c.end("the target is a member")
		return
	}
	c.started = true
	c.timer.Fire = c.pump
	h := dataplane.Header{Op: dataplane.OpSeal, Flags: dataplane.FlagRecovery, Chunk: c.r.id,
		Epoch: c.epoch}
	if d := c.r.dirty; d != nil {
		h.Aux, h.Seq = uint32(d.since), d.mark
	}
	p := c.sh.peer(c.target.CS, c.target.Addr)
	p.call(h, nil, nil,
		func(a *dataplane.Header, crcs, payload []byte, _ *uring.Buf, err error) {
			switch {
			case c.ended:
			case err != nil:
				c.end(err.Error())
			case a.Status != dataplane.OK:
				c.end("the target refused: " + a.Status.String())
			default:
				c.gen = p.gen
				c.sealed(a, crcs, payload)
			}
		})
}

// sealed takes the target's answer.
func (c *copier) sealed(a *dataplane.Header, crcs, payload []byte) {
	// A copy of this epoch that was held, and begun again, has parts: a fresh one has none.
	if a.Epoch != c.epoch || a.Flags&dataplane.FlagData != 0 {
		t, err := parseSeal(a, crcs, payload)
		d := c.r.dirty
		if err != nil || d == nil || !d.covers(t.epoch, t.last) {
			c.end(fmt.Sprintf("the target kept a replica at epoch %d that isn't covered: %v", a.Epoch,
				err))
			return
		}
		c.delta, c.synced = true, true
		c.dirty = d.set
		for _, e := range t.ext {
			c.dirty.touch(e.off, e.length)
		}
		c.sent.all() // what it holds isn't zeros
		c.sh.slog.Info("only what changed is copied", "chunk", c.r.id, "cs", c.target.CS,
			"since", d.since, "epoch", c.epoch, "parts", c.dirty.count())
	}
	c.ready = true
	c.pump()
}

// peer is the target, wherever it is by now: an older address would end the connection to it.
func (c *copier) peer() *peer { return c.sh.peer(c.target.CS, "") }

// connected says whether the connection over which the target was sealed is still there.
func (c *copier) connected() bool {
	p := c.peer()
	return p.open && p.gen == c.gen
}

// wrote is told of a write that got its seq, before it can be committed.
func (c *copier) wrote(q *request, zero bool) {
	if !zero && c.ready && c.mirrors < copyMirrors && c.settledRange(q.off, q.length) &&
		c.connected() {
		c.mirror(q)
		return
	}
	c.dirty.touch(q.off, q.length)
}

// settledRange says whether the target has, or has been sent, all granules of a range.
func (c *copier) settledRange(off, length uint32) bool {
	for g := off / dataplane.PartSize; g*dataplane.PartSize < off+length; g++ {
		if c.dirty.has(int(g)) || c.moving.has(int(g)) {
			return false
		}
	}
	return true
}

// mirror sends a write to the target. Nobody waits for it but the settle at the end; should the
// write be undone, what the members touched above their commit marks is sent anew by then.
func (c *copier) mirror(q *request) {
	off, length := q.off, q.length
	for g := off / dataplane.PartSize; g*dataplane.PartSize < off+length; g++ {
		c.sent.set(int(g))
	}
	c.mirrors++
	c.sh.stats.CopyBytes += uint64(length)
	h := dataplane.Header{Op: dataplane.OpPatch, Flags: dataplane.FlagData, Chunk: c.r.id,
		Epoch: c.epoch, Offset: off, Length: length}
	// The connection is open: the frame is encoded in this call, so the write's memory may go.
	c.peer().call(h, q.crcs[:q.crcLen], q.data,
		func(a *dataplane.Header, _, _ []byte, _ *uring.Buf, err error) {
			c.mirrors--
			switch {
			case c.ended:
				return
			case err != nil:
				c.end(err.Error())
				return
			case a.Status == dataplane.Overloaded:
				c.dirty.touch(off, length)
			case a.Status != dataplane.OK:
				c.end("the target refused a write: " + a.Status.String())
				return
			}
			c.checkIdle()
		})
}

// whenIdle calls f, perhaps at once, when nothing is on its way to the target or the copier ended.
func (c *copier) whenIdle(f func()) {
	c.idle = f
	c.checkIdle()
}

func (c *copier) checkIdle() {
	if f := c.idle; f != nil && c.mirrors == 0 && c.flying == 0 {
		c.idle = nil
		f()
	}
}

// pump keeps some granules under way; at the end of a pass it begins the next one.
func (c *copier) pump() {
	c.pumping = true
	budget := copyBurst
	wait := int64(copyBreath) // others first
	for !c.ended && c.flying < c.window && budget > 0 && c.next < granules {
		if pause := c.pause(); pause > 0 {
			wait = max(wait, pause)
			break
		}
		g := c.pick()
		if g < 0 {
			break
		}
		budget--
		c.read(g)
	}
	c.pumping = false
	switch {
	case c.ended || c.timer.Armed():
	case c.next < granules:
		if c.flying < c.window {
			c.sh.env.Arm(&c.timer, wait)
		}
	case c.flying == 0:
		c.passEnd()
	}
}

// pick takes the next dirty granule of the pass, or -1. One with a write above the commit mark on
// it stays dirty.
func (c *copier) pick() int {
	for ; c.next < granules; c.next++ {
		g := c.next
		if c.dirty.has(g) && c.r.barrier(uint32(g)*dataplane.PartSize, dataplane.PartSize) == 0 {
			c.next++
			c.dirty.clear(g)
			c.moving.set(g)
			return g
		}
	}
	return -1
}

func (c *copier) passEnd() {
	if !c.synced {
		c.sync()
		return
	}
	c.pass++
	if n := c.dirty.count(); n <= copyRest || c.pass >= copyPasses && n <= copyRestMost ||
		c.pass >= copyPassesMost {
		c.join()
		return
	}
	c.next = 0
	c.sh.env.Arm(&c.timer, int64(copyBreath))
}

// sync has the target make durable what it wrote straight to its store, so that this needn't be
// done while writes wait.
func (c *copier) sync() {
	if !c.connected() {
		c.end("the connection to the target was lost")
		return
	}
	c.flying++
	h := dataplane.Header{Op: dataplane.OpPatch, Chunk: c.r.id, Epoch: c.epoch}
	c.peer().callWithin(copySyncTime, h, nil, nil,
		func(a *dataplane.Header, _, _ []byte, _ *uring.Buf, err error) {
			switch {
			case c.ended:
			case err != nil:
				c.end(err.Error())
			case a.Status != dataplane.OK:
				c.end("the target can't make the copy durable: " + a.Status.String())
			default:
				c.synced = true
				c.flying--
				c.pump()
			}
		})
}

// read reads a granule and sends it unless the target has it: as zeros.
func (c *copier) read(g int) {
	c.flying++
	off := uint32(g) * dataplane.PartSize
	if !c.sent.has(g) && c.sh.unwritten(c.r, off/dataplane.BlockSize,
		dataplane.PartSize/dataplane.BlockSize) {
		c.took(g)
		return
	}
	c.sh.readPart(c.r, off, dataplane.PartSize, func(crcs []byte, buf *uring.Buf, err error) {
		switch {
		case c.ended:
		case dataplane.KindOf(err) == dataplane.Overloaded:
			c.put(g)
		case dataplane.KindOf(err) == dataplane.BadCRC && c.damaged < copyDamaged:
			c.damaged++ // being repaired from another member
			c.next = min(c.next, g)
			c.put(g)
		case err != nil:
			c.end(err.Error())
		case !c.sent.has(g) && allZeros(crcs, buf.Bytes()[:dataplane.PartSize]):
			c.took(g)
		default:
			c.sent.set(g)
			c.send(g, crcs, buf)
		}
	})
}

func allZeros(crcs, data []byte) bool {
	for ; len(crcs) > 0; crcs = crcs[4:] {
		if binary.LittleEndian.Uint32(crcs) != zeroCRC {
			return false
		}
	}
	return isZero(data) // a checksum is no proof
}

// send patches the target; crcs and buf are good during the call.
func (c *copier) send(g int, crcs []byte, buf *uring.Buf) {
	if !c.connected() {
		c.end("the connection to the target was lost")
		return
	}
	c.parts++
	c.sh.stats.CopyBytes += dataplane.PartSize
	c.paid()
	h := dataplane.Header{Op: dataplane.OpPatch, Flags: dataplane.FlagData, Chunk: c.r.id,
		Epoch: c.epoch, Offset: uint32(g) * dataplane.PartSize, Length: dataplane.PartSize}
	c.peer().callBuf(h, crcs, buf,
		func(a *dataplane.Header, _, _ []byte, _ *uring.Buf, err error) {
			switch {
			case c.ended:
			case err != nil:
				c.end(err.Error())
			case a.Status == dataplane.Overloaded:
				c.window = max(c.window/2, 1)
				c.put(g)
			case a.Status != dataplane.OK:
				c.end("the target refused a part: " + a.Status.String())
			default:
				c.theirs = uint64(a.Aux) << 10
				c.window = min(c.window+1, copyParts)
				c.took(g)
			}
		})
}

// put gives a granule back to a later pass, because somebody has too much to do.
func (c *copier) put(g int) {
	c.dirty.set(g)
	c.moving.clear(g)
	c.flying--
	if !c.timer.Armed() {
		c.sh.env.Arm(&c.timer, int64(copyPause))
	}
	c.checkIdle()
}

func (c *copier) took(g int) {
	c.moving.clear(g)
	c.flying--
	if !c.pumping && !c.timer.Armed() {
		c.pump()
	}
	c.checkIdle()
}

// join settles the chunk with the target as a new member. Writes go on until the members are
// sealed.
func (c *copier) join() {
	sh, r := c.sh, c.r
	if r.state != active || r.settler != nil || r.broken || r.epoch != c.epoch || !c.connected() {
		c.end("the chunk or a member was disturbed")
		return
	}
	sh.settle(r, []dataplane.CSID{})
	if r.settler == nil {
		c.end("the chunk can't be settled now")
		return
	}
	r.settler.join, r.settler.soft = c, true
}

// rest is what the target must still get once all members are sealed: what was written since it was
// read, and everything that isn't the same at all members.
func (c *copier) rest(tails []memberTail) (need []extent) {
	for g := range granules {
		if c.dirty.has(g) {
			need = append(need, extent{0, uint32(g) * dataplane.PartSize, dataplane.PartSize})
		}
	}
	for i := range tails {
		need = append(need, tails[i].ext...)
	}
	return need
}

// ahead: somebody was told of a newer epoch of a chunk that is active here. It was committed, and
// the coordinator that asked for it has gone. A member may be the head in it.
func (sh *Shard) ahead(r *replica, epoch dataplane.Epoch) {
	if r.state != active || r.settler != nil ||
		!r.isHead() && r.askedAt != 0 && sh.env.Now()-r.askedAt < int64(settleRetry) {
		return
	}
	sh.slog.Info("there is a newer epoch of a chunk", "chunk", r.id, "epoch", epoch,
		"here", r.epoch)
	sh.settle(r, []dataplane.CSID{})
}

// dropJoin goes on without the new member.
func (s *settler) dropJoin(why string, err error) {
	s.soft = false
	if s.join != nil {
		s.join.end(fmt.Sprintf("%s: %v", why, err))
	}
}

// checkJoin makes sure that what the copier copied still is what the committed configuration lacks.
func (s *settler) checkJoin() {
	c := s.join
	if c != nil && (len(s.lost) > 0 || s.cfg.Epoch != c.epoch || !c.connected() ||
		slices.ContainsFunc(s.cfg.Members, func(m control.CSAddr) bool {
			return m.CS == c.target.CS
		})) {
		s.dropJoin("settle", dataplane.E("", dataplane.Conflict, nil))
	}
}

// joined is what exclude asks for when a copier's target joins: the members that stay without the
// one that leaves, and the target behind them.
func (s *settler) joined(stay []control.CSAddr, gens []uint32) ([]control.CSAddr, []uint32) {
	if i := slices.IndexFunc(stay, func(m control.CSAddr) bool {
		return m.CS == s.join.leaving
	}); i >= 0 {
		stay, gens = slices.Delete(stay, i, i+1), slices.Delete(gens, i, i+1)
	}
	return append(stay, s.join.target), append(gens, s.join.gen)
}

// dirtyToo is the dirty map that goes to a new member with its activation, so that it can be the
// head of the next copy; nil: none.
func (s *settler) dirtyToo(cs dataplane.CSID) *dirtyMap {
	r := s.r
	if s.join == nil || cs != s.join.target.CS || r.copying() || r.epoch == 0 {
		return nil
	}
	return r.dirtyFor(s.cfg.Epoch, s.verdict.last, isShort(s.cfg), nil)
}

// left ends a settle after which this server isn't a member any more. Its replica stays sealed
// until the metadata servers say that it can go.
func (s *settler) left() {
	sh, r := s.sh, s.r
	s.join.end("")
	sh.abandonFlight(r, dataplane.NotHead)
	s.end()
	r.sealer, r.askedAt = nil, sh.env.Now()
	sh.refuseWaiting(r, dataplane.NotHead)
}
