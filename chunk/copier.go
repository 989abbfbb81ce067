package chunk

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/uring"
)

// copier brings a chunk that lost a member to one more server, while writes go on. It runs on the
// chunk's head when the metadata servers ask for it (RecoverPush):
//
//	begin   the chunk is made ready: a head is active and knows its members
//	seal    SEAL|FlagRecovery to the target: it drops whatever it had of the chunk, takes a fresh
//	        slot, in which all reads as zeros, and believes in nothing until it is activated
//	pump    granules (64 KiB) that hold anything but zeros go over as patches. A write marks its
//	        granules in dirty. A granule is taken only when no write above the commit mark is on
//	        it: its mark is cleared, then it is read, so what comes later marks it again
//	pass    passes over what is dirty, until that is little or there have been enough of them
//	join    a settle with the target in it: the members are sealed, the rest goes over, the
//	        metadata servers add the target (epoch + 1), all are activated
//
// Whatever goes wrong before the metadata servers were asked ends the copier, and nothing has
// happened: the target holds something that nobody believes. The metadata servers ask again.
type copier struct {
	sh      *Shard
	r       *replica
	target  control.CSAddr
	epoch   dataplane.Epoch
	gen     uint32 // of the connection over which the target was sealed
	started bool   // the target was asked; from here on a seal of the chunk ends the copier
	ended   bool

	dirty   granuleSet
	sent    granuleSet // something was sent: zeros must be sent from now on, too
	next    int        // granule the pass looks at next
	pass    int
	flying  int
	pumping bool
	parts   uint64 // sent, for the log
	until   int64  // begin gives up then
	timer   uring.Timer
}

// granules of a chunk: as large as a part.
const granules = dataplane.ChunkSize / dataplane.PartSize

type granuleSet [granules / 64]uint64

func (s *granuleSet) set(g int)      { s[g/64] |= 1 << (g % 64) }
func (s *granuleSet) clear(g int)    { s[g/64] &^= 1 << (g % 64) }
func (s *granuleSet) has(g int) bool { return s[g/64]&(1<<(g%64)) != 0 }

func (s *granuleSet) count() (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}

// touch marks the granules of a range.
func (s *granuleSet) touch(off, length uint32) {
	for g := off / dataplane.PartSize; g*dataplane.PartSize < off+length; g++ {
		s.set(int(g))
	}
}

// RecoverPush has the metadata servers' word: copy these chunks to those servers. What can't be
// started now is left; it is asked for again.
func (sh *Shard) RecoverPush(p *control.RecoverPush) {
	if sh.dead != nil || sh.stopping || len(p.Targets) != len(p.Chunks) {
		return
	}
	for i := range p.Chunks {
		cfg, target := &p.Chunks[i], p.Targets[i]
		if len(sh.copiers) >= maxCopiers || target.CS == sh.id || target.CS == 0 ||
			len(cfg.Members) == 0 || cfg.Members[0].CS != sh.id {
			continue
		}
		r := sh.find(cfg.Chunk) // one that nobody has written to is made by settling it
		if r == nil || r.copier != nil {
			continue
		}
		c := &copier{sh: sh, r: r, target: target, epoch: cfg.Epoch,
			until: sh.env.Now() + int64(copyPatience)}
		for g := range granules {
			c.dirty.set(g)
		}
		c.timer.Fire = c.begin
		r.copier = c
		sh.copiers = append(sh.copiers, c)
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
	if why == "" {
		sh.slog.Info("chunk copied to a new member", "chunk", r.id, "cs", c.target.CS,
			"epoch", r.epoch, "parts", c.parts, "passes", c.pass)
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
	p := c.sh.peer(c.target.CS, c.target.Addr)
	p.call(dataplane.Header{Op: dataplane.OpSeal, Flags: dataplane.FlagRecovery, Chunk: c.r.id,
		Epoch: c.epoch}, nil, nil,
		func(a *dataplane.Header, _, _ []byte, _ *uring.Buf, err error) {
			switch {
			case c.ended:
			case err != nil:
				c.end(err.Error())
			case a.Status != dataplane.OK:
				c.end("the target refused: " + a.Status.String())
			default:
				c.gen = p.gen
				c.pump()
			}
		})
}

// connected says whether the connection over which the target was sealed is still there.
func (c *copier) connected() bool {
	p := c.sh.peer(c.target.CS, c.target.Addr)
	return p.open && p.gen == c.gen
}

// wrote marks what a write touches. It is called before the write can be committed.
func (c *copier) wrote(off, length uint32) { c.dirty.touch(off, length) }

// pump keeps some granules under way; at the end of a pass it begins the next one.
func (c *copier) pump() {
	c.pumping = true
	budget := copyBurst
	for !c.ended && c.flying < copyParts && budget > 0 {
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
		if c.flying < copyParts {
			c.sh.env.Arm(&c.timer, int64(copyBreath)) // others first
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
			return g
		}
	}
	return -1
}

func (c *copier) passEnd() {
	c.pass++
	if c.dirty.count() <= copyRest || c.pass >= copyPasses {
		c.join()
		return
	}
	c.next = 0
	c.sh.env.Arm(&c.timer, int64(copyBreath))
}

// read reads a granule and sends it unless the target has it: as zeros.
func (c *copier) read(g int) {
	c.flying++
	off := uint32(g) * dataplane.PartSize
	c.sh.readPart(c.r, off, dataplane.PartSize, func(crcs []byte, buf *uring.Buf, err error) {
		switch {
		case c.ended:
		case dataplane.KindOf(err) == dataplane.Overloaded:
			c.put(g)
		case err != nil:
			c.end(err.Error())
		case !c.sent.has(g) && allZeros(crcs, buf.Bytes()[:dataplane.PartSize]):
			c.took()
		default:
			c.sent.set(g)
			c.send(g, slices.Clone(crcs), slices.Clone(buf.Bytes()[:dataplane.PartSize]))
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

// send patches the target; crcs and data are the call's own.
func (c *copier) send(g int, crcs, data []byte) {
	if !c.connected() {
		c.end("the connection to the target was lost")
		return
	}
	c.parts++
	h := dataplane.Header{Op: dataplane.OpPatch, Flags: dataplane.FlagData, Chunk: c.r.id,
		Epoch: c.epoch, Offset: uint32(g) * dataplane.PartSize, Length: uint32(len(data))}
	c.sh.peer(c.target.CS, c.target.Addr).call(h, crcs, data,
		func(a *dataplane.Header, _, _ []byte, _ *uring.Buf, err error) {
			switch {
			case c.ended:
			case err != nil:
				c.end(err.Error())
			case a.Status == dataplane.Overloaded:
				c.put(g)
			case a.Status != dataplane.OK:
				c.end("the target refused a part: " + a.Status.String())
			default:
				c.took()
			}
		})
}

// put gives a granule back to a later pass, because somebody has too much to do.
func (c *copier) put(g int) {
	c.dirty.set(g)
	c.flying--
	if !c.timer.Armed() {
		c.sh.env.Arm(&c.timer, int64(copyPause))
	}
}

func (c *copier) took() {
	c.flying--
	if !c.pumping && !c.timer.Armed() {
		c.pump()
	}
}

// join settles the chunk with the target as a new member.
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
	r.settler.join = c
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

// sealTarget takes SEAL|FlagRecovery: this server isn't a member at the committed epoch h.Epoch,
// and a copy of the chunk is coming. What is here of it is older, or an unfinished copy.
func (sh *Shard) sealTarget(l *link, h *dataplane.Header) {
	r := sh.chunks[h.Chunk]
	switch {
	case sh.dead != nil:
		l.refuse(h, dataplane.IOError)
		return
	case r != nil && (h.Epoch <= r.epoch || h.Epoch < r.sealEpoch):
		l.refuse(h, dataplane.StaleEpoch)
		return
	case sh.lease.Load() == 0:
		l.refuse(h, dataplane.NotReady) // see seal: the inventory of its registration is on its way
		return
	case !sh.log.Room():
		l.refuse(h, dataplane.Overloaded)
		return
	}
	sh.Forget([]dataplane.ChunkID{h.Chunk})
	if r = sh.find(h.Chunk); r == nil {
		l.refuse(h, dataplane.Overloaded)
		return
	}
	if !sh.makeSlot(r) {
		sh.forgetStranger(r)
		l.refuse(h, dataplane.NoSpace)
		return
	}
	r.state, r.sealer, r.sealEpoch = sealed, l, h.Epoch
	l.reply(h, dataplane.OK)
}

// target says whether this replica is a copy that was never activated. It has a slot and no epoch.
// Whatever it holds, some of it may be missing.
func (r *replica) target() bool { return r.slot != noSlot && r.epoch == 0 }

// ahead: somebody was told of a newer epoch of a chunk that is active here. It was committed, and
// the coordinator that asked for it has gone.
func (sh *Shard) ahead(r *replica, epoch dataplane.Epoch) {
	if r.isHead() && r.state == active && r.settler == nil {
		sh.slog.Info("there is a newer epoch of a chunk", "chunk", r.id, "epoch", epoch,
			"here", r.epoch)
		sh.settle(r, []dataplane.CSID{})
	}
}

// ForgetHeld is Forget for the answer to a registration: held is the inventory that was sent. A
// chunk that has come anew since then stays.
func (sh *Shard) ForgetHeld(ids []dataplane.ChunkID, held []control.HeldChunk) {
	epochs := make(map[dataplane.ChunkID]dataplane.Epoch, len(held))
	for _, h := range held {
		epochs[h.Chunk] = h.Epoch
	}
	for _, id := range ids {
		if r := sh.chunks[id]; r != nil && r.epoch == epochs[id] {
			sh.Forget([]dataplane.ChunkID{id})
		}
	}
}

// dropJoin goes on without the new member.
func (s *settler) dropJoin(why string, err error) {
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
