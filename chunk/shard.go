package chunk

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// ShardOptions are what a Shard is made of. All but the last group are needed.
type ShardOptions struct {
	Env      uring.Env
	Net      uring.Net
	Pool     *uring.Pool
	Store    uring.Disk
	Cache    uring.Disk // the log
	Cred     *session.Credentials
	Metadata Metadata
	// ID is this server's id; 0 until SetID, which must come before Serve.
	ID       dataplane.CSID
	Identity *Identity // what the superblock is compared with; nil (simulations): not compared

	Log *slog.Logger // nil: slog.Default()
	// SameDisk says that store and log lie on the same disk.
	SameDisk bool
	// BypassFrom is from how many bytes on writes of fresh blocks go around the log (bypass.go); 0:
	// streams of full parts do if SameDisk is set; negative: none.
	BypassFrom int
	// CRCBudget is how many bytes of CRC pages are kept in memory; 0: 64 MiB.
	CRCBudget int
	// ScrubPeriod is how long a pass of the scrubber over the store takes; 0: 14 days; negative: it
	// works only when ScrubStart is called. ScrubRate is how many bytes per second it reads at most;
	// 0: 64 MiB. WallClock is the time in ns since 1970, for when passes began; nil: Env.Now.
	ScrubPeriod time.Duration
	ScrubRate   int64
	WallClock   func() int64
	// RelayFrom is from how many bytes on, not yet received, a link of a chain passes a part on while
	// it arrives; NeverRelay: as a whole, when it is there.
	RelayFrom int
	// OnFail is told once that the disk or the log failed: nothing is served any more.
	OnFail func(error)
	// Canary breaks promises on purpose, for testing simulations; NewPool maps memory for the log,
	// nil: uring.NewPool.
	Canary  Canary
	NewPool func(size int) (*uring.Pool, error)
	// Activated, for simulations, is told of each chunk that is activated here, before anything else
	// happens with it; it may look (SimReplica, SimWord), and nothing else.
	Activated func(dataplane.ChunkID)
	// CRCFrames, for simulations, is how many CRC pages are kept in memory, in the place of CRCBudget:
	// so few that they make room for each other. 0: as many as the budget has room for.
	CRCFrames int
}

// crcFrames is how many CRC pages are kept in memory.
func (o *ShardOptions) crcFrames() int {
	if o.CRCFrames > 0 {
		return o.CRCFrames
	}
	return max(o.CRCBudget/dataplane.BlockSize, minFrames)
}

// Shard is a chunk server: all of it that happens on one thread. Its methods are called on that
// thread, but for those that say otherwise.
type Shard struct {
	env  uring.Env
	net  uring.Net
	pool *uring.Pool
	cred *session.Credentials
	gate *session.Gate
	md   Metadata
	id   dataplane.CSID
	slog *slog.Logger

	relayFrom int
	relayed   uint64 // parts

	store *store
	log   *ssdcache.Log
	// noReadCache: the log is on the store's disk, where a copy is no faster than the original.
	noReadCache bool
	cache       uring.Disk

	chunks     map[dataplane.ChunkID]*replica
	strangers  map[dataplane.ChunkID]*replica // those without a slot
	nextForget int64                          // no look for strangers that can go before

	links       map[linkKey]*link
	linkCount   int
	clients     int
	pausedLinks []*link
	peers       map[dataplane.CSID]*peer
	peerList    []*peer
	nextCall    uint64
	kept        [][]byte // memory of copied parts, see keepPart
	closer      func()

	out      dataplane.Header // being sent: connections copy it, but a local one would escape
	reqs     []*request
	freeReqs *request
	pieces   *readPiece

	settleQueue []*settler // requests wait for them
	settleAgain []*settler // the same, and were tried in vain
	settleIdle  []*settler // nobody waits yet
	idleFirst   bool       // of the last two
	settling    int
	repairs     []*repairing
	copiers     []*copier
	pace        copyPace
	scrub       scrubber
	bypass      bypass
	digests     int // being computed

	tellFirst, tellLast *replica
	tellTimer           uring.Timer
	pumpTimer           uring.Timer
	secondTimer         uring.Timer
	laterTimer          uring.Timer
	laters              []func()
	stalled             []*replica // whose writes wait for space
	watched             []*replica // whose reads wait for a commit mark
	claims              uint64     // marks that clients moved, see acked.go
	toDrop              []*replica // forgotten, their Drops still to be appended
	dropTimer           uring.Timer
	leaving             []*replica // dropped, their slots still in use
	pumping             bool       // pumpTimer is armed for the next millisecond

	gauges     gauges
	lease      atomic.Int64 // env time until which this server may serve
	full       atomic.Bool  // the file system has no space for new chunks
	dead       error
	onFail     func(error)
	stopping   bool
	closing    bool // nothing is being worked on any more
	stats      control.CSStats
	canary     Canary
	tellActive func(dataplane.ChunkID) // ShardOptions.Activated
	fences     fencing
}

// Open reads the store and replays the log, and calls done with the shard, which isn't serving yet,
// or with an error.
func Open(o ShardOptions, done func(*Shard, error)) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.CRCBudget == 0 {
		o.CRCBudget = 64 << 20
	}
	cred := *o.Cred
	cred.ID = uint64(o.ID)
	sh := &Shard{env: o.Env, net: o.Net, pool: o.Pool, cred: &cred, gate: session.NewGate(o.Env),
		md: o.Metadata, id: o.ID,
		slog: o.Log, cache: o.Cache, onFail: o.OnFail, canary: o.Canary, relayFrom: o.RelayFrom,
		tellActive: o.Activated,
		chunks:     map[dataplane.ChunkID]*replica{},
		strangers:  map[dataplane.ChunkID]*replica{},
		links:      map[linkKey]*link{},
		peers:      map[dataplane.CSID]*peer{}}
	sh.noReadCache = o.SameDisk
	sh.tellTimer.Fire = sh.tellCommit
	sh.pumpTimer.Fire = sh.pump
	sh.secondTimer.Fire = sh.everySecond
	sh.laterTimer.Fire = sh.runLater
	sh.dropTimer.Fire = sh.dropNext
	sh.scrub.init(sh, &o)
	sh.pace.init(sh)
	sh.store = newStore(o.Store, o.Env, o.Pool, o.Log)
	sh.store.onFail = sh.fail
	sh.bypass.init(sh, &o)
	sh.store.bypassed = sh.bypass.writesTo
	sh.store.onDamaged = sh.pageDamaged
	(&opener{sh: sh, o: &o, done: done}).start()
}

// SetID says which id the metadata servers gave this server.
// It is called at each registration.
func (sh *Shard) SetID(id dataplane.CSID) {
	sh.id, sh.cred.ID = id, uint64(id)
	sh.gauges.yielded = false
}

// SetLease allows serving until the given time of the shard's Env, in ns. Any thread may call it.
func (sh *Shard) SetLease(until int64) { sh.lease.Store(until) }

// SetFull says whether there is no space for new chunks. Any thread may call it.
func (sh *Shard) SetFull(full bool) { sh.full.Store(full) }

// Listen starts to accept connections on addr and returns the address bound.
func (sh *Shard) Listen(addr string) (string, error) {
	bound, closer, err := sh.net.Listen(addr, sh.attach)
	if err != nil {
		return "", err
	}
	sh.closer = sh.listenLocal(bound, closer)
	sh.env.Arm(&sh.secondTimer, 1e9)
	sh.scrub.start()
	return bound, nil
}

// listenLocal takes the connections of this host, too, where that goes by a shorter way. It returns
// what ends the listening. Without it they come as all others do.
func (sh *Shard) listenLocal(bound string, closer func()) func() {
	local, ok := sh.net.(uring.LocalNet)
	if !ok {
		return closer
	}
	closeLocal, err := local.ListenLocal(bound, sh.attach)
	if err != nil {
		sh.slog.Warn("connections of this host go over TCP", "error", err)
		return closer
	}
	return func() { closer(); closeLocal() }
}

func (sh *Shard) leased() bool {
	return (sh.env.Now() < sh.lease.Load() || sh.canary.NoLease) && sh.dead == nil
}

// find returns the replica of a chunk; for one that isn't here a stranger, which a settling may
// give a slot. nil: there are too many of those.
func (sh *Shard) find(id dataplane.ChunkID) *replica {
	r := sh.chunks[id]
	if r != nil {
		return r
	}
	if len(sh.strangers) >= maxStrangers {
		sh.forgetStrangers()
	}
	if len(sh.strangers) >= maxStrangers || id == 0 {
		return nil
	}
	r = &replica{id: id, slot: noSlot}
	sh.chunks[id], sh.strangers[id] = r, r
	return r
}

// all returns the replicas in the order of their ids.
func (sh *Shard) all() []*replica {
	list := slices.Collect(maps.Values(sh.chunks))
	slices.SortFunc(list, func(a, b *replica) int { return cmp.Compare(a.id, b.id) })
	return list
}

// forgetStranger drops a replica that has nothing and that nobody waits for.
func (sh *Shard) forgetStranger(r *replica) {
	if r.unused() && r.state != sealed {
		delete(sh.strangers, r.id)
		delete(sh.chunks, r.id)
	}
}

// forgetStrangers drops those whose settling was given up, here or by a coordinator that has been
// silent about them for long: if it goes on after all it is refused, and seals them again.
func (sh *Shard) forgetStrangers() {
	if sh.env.Now() < sh.nextForget {
		return
	}
	sh.nextForget = sh.env.Now() + int64(strangerRest)/10
	for id, r := range sh.strangers {
		if r.unused() && sh.env.Now()-r.sealedAt > int64(strangerRest) {
			delete(sh.strangers, id)
			delete(sh.chunks, id)
		}
	}
}

// unused says that a replica has nothing, and that nobody waits for it.
func (r *replica) unused() bool {
	return r.slot == noSlot && r.settler == nil && r.queue.n == 0 && r.reads.n == 0 && r.refs == 0 &&
		r.copier == nil
}

// release drops a use of the replica's slot.
func (sh *Shard) release(r *replica) {
	r.refs--
	if r.refs < 0 {
		panic(fmt.Sprintf("chunk: %d uses of chunk %v", r.refs, r.id))
	}
	if r.gone && r.refs == 0 {
		sh.pumpSoon()
	}
}

// later calls f in another turn.
func (sh *Shard) later(f func()) {
	sh.laters = append(sh.laters, f)
	sh.env.Arm(&sh.laterTimer, 0)
}

func (sh *Shard) runLater() {
	list := sh.laters
	sh.laters = nil
	for _, f := range list {
		f()
	}
}

// tight says whether a write has to wait for the log, which lets in what it can write back.
func (sh *Shard) tight() bool { return !sh.log.Room() || sh.bypass.crowded() }

// stall has the chunk's queue looked at again soon.
func (sh *Shard) stall(r *replica) {
	if !r.stalled {
		r.stalled = true
		sh.stalled = append(sh.stalled, r)
	}
	sh.pumpSoon()
}

// watch has the chunk's waiting reads answered in the end.
func (sh *Shard) watch(r *replica) {
	if !r.watched {
		r.watched = true
		sh.watched = append(sh.watched, r)
	}
	if !sh.pumpTimer.Armed() {
		sh.env.Arm(&sh.pumpTimer, int64(readPatience)/4)
	}
}

func (sh *Shard) pumpSoon() {
	if !sh.pumpTimer.Armed() || !sh.pumping {
		sh.pumping = true
		sh.env.Arm(&sh.pumpTimer, int64(pumpEvery))
	}
}

func (sh *Shard) pumpNow() { sh.env.Arm(&sh.pumpTimer, 0) }

// pump looks again at everything that waits for space or time.
func (sh *Shard) pump() {
	if sh.closing {
		return // what is left doesn't get the disks any more
	}
	sh.pumping = false
	stalled := sh.stalled
	sh.stalled = nil
	for _, r := range stalled {
		r.stalled = false
		sh.takeDue(r)
		sh.pumpWrites(r)
	}
	paused := sh.pausedLinks
	sh.pausedLinks = nil
	for _, l := range paused {
		if l.paused && l.open {
			l.throttle()
			if l.paused {
				sh.pausedLinks = append(sh.pausedLinks, l)
			}
		}
	}
	watched := sh.watched
	sh.watched = nil
	for _, r := range watched {
		r.watched = false
		sh.impatient(r)
		if r.reads.n > 0 {
			sh.watch(r)
		}
	}
	sh.freeLeaving()
	sh.clearResidue()
	if len(sh.stalled)+len(sh.pausedLinks)+len(sh.leaving) > 0 {
		sh.pumpSoon()
	}
}

// everySecond does what isn't urgent.
func (sh *Shard) everySecond() {
	now := sh.env.Now()
	for _, p := range sh.peerList {
		p.ping(now)
	}
	sh.reportStalls(now)
	sh.env.Arm(&sh.secondTimer, int64(pingAfter))
}

// fail ends service: the disk or the log can't be trusted any more. It is reported, and whatever
// is asked from now on is answered with IOError. Nothing is retried.
func (sh *Shard) fail(err error) {
	if sh.dead != nil {
		return
	}
	sh.dead = err
	sh.store.dead = err
	sh.slog.Error("this chunk server stops serving: its disk failed", "cs", sh.id, "err", err)
	for _, q := range sh.reqs {
		if q.link != nil && !q.merging {
			sh.answer(q, dataplane.IOError)
		}
	}
	for _, r := range sh.all() {
		sh.refuseWaiting(r, dataplane.IOError)
	}
	sh.pumpNow() // paused connections get their answers, too
	sh.event(control.Fault, "disk-failed", "the disk failed and is not used any more: "+err.Error())
	if sh.onFail != nil {
		sh.onFail(err)
	}
}

func (sh *Shard) event(sev control.Severity, code, msg string) {
	sh.slog.Warn(msg, "code", code)
	sh.md.Event(&control.Event{Severity: sev, Code: code, Message: msg})
}

// SettlePush has the metadata servers' word: settle these chunks, without those members.
func (sh *Shard) SettlePush(p *control.SettlePush) {
	for i := range p.Chunks {
		cfg := &p.Chunks[i]
		r := sh.find(cfg.Chunk)
		if r == nil {
			continue // asked again later
		}
		lost := []dataplane.CSID{}
		for _, m := range cfg.Members {
			for _, cs := range p.Lost {
				if m.CS == cs {
					lost = append(lost, cs)
				}
			}
		}
		sh.settle(r, lost)
		if p.Lead {
			r.settler.toLead()
		}
	}
}

// Inventory lists the chunks that are here.
func (sh *Shard) Inventory() []control.HeldChunk {
	var list []control.HeldChunk
	for _, r := range sh.store.owners {
		if r != nil && !r.gone {
			list = append(list, control.HeldChunk{Chunk: r.id, Epoch: r.heldEpoch()})
		}
	}
	return list
}

// Capacity is how many bytes of chunks fit, and how many are taken.
func (sh *Shard) Capacity() (capacity, used uint64) {
	n := uint64(len(sh.store.entries))
	return n * dataplane.ChunkSize, uint64(sh.store.taken()) * dataplane.ChunkSize
}

// Stats are counters since the start.
func (sh *Shard) Stats() control.CSStats {
	s := sh.stats
	s.Clients = uint32(sh.clients)
	s.FromLog, s.FromStore = sh.gauges.fromLog, sh.gauges.fromStore
	s.Chunks = uint64(sh.store.taken())
	sh.scrub.stats(&s)
	if sh.log != nil {
		ls := sh.log.Stats()
		s.LogSize = uint64(sh.cache.Size())
		if ls.Segments > 0 {
			s.LogUsed = s.LogSize * uint64(ls.Dirty) / uint64(ls.Segments)
		}
	}
	return s
}

var errStopping = errors.New("this chunk server is being stopped")

// Stop ends service in an orderly way: no new work, what is in flight is finished, commit marks and
// tables are made durable, the log is closed. done is called at the end.
func (sh *Shard) Stop(done func(error)) {
	if sh.stopping {
		panic("chunk: stopped twice")
	}
	sh.stopping = true
	if sh.closer != nil {
		sh.closer()
	}
	for _, l := range sh.links {
		l.c.PauseRecv(true)
		if q := l.arrived(); q != nil {
			sh.drop(q, dataplane.NotReady) // the rest of it isn't received any more
		}
	}
	for _, r := range sh.all() {
		if r.settler != nil {
			r.settler.end()
		}
		sh.refuseWaiting(r, dataplane.NotReady)
	}
	for len(sh.repairs) > 0 {
		sh.repairs[0].end("stopping")
	}
	for len(sh.copiers) > 0 {
		sh.copiers[0].end("stopping")
	}
	sh.scrub.stop()
	sh.store.holes.drain()
	for _, r := range sh.toDrop { // it is said once more that they can go
		sh.release(r)
	}
	sh.toDrop = nil
	tries := 0
	var t uring.Timer
	t.Fire = func() {
		if tries++; tries == stopPatience {
			// Members that don't answer: the writes may or may not survive, and aren't acknowledged.
			for _, r := range sh.all() {
				if r.isHead() {
					sh.abandonFlight(r, dataplane.NotReady)
				} else {
					sh.abandonHeld(r)
				}
			}
			for _, p := range sh.peerList {
				sh.linkLost(p)
			}
			sh.store.holes.stop()
			sh.leaving = nil // only space is lost, until their slots are used again
		}
		if sh.idle() || sh.dead != nil {
			sh.closeAll(done)
			return
		}
		sh.env.Arm(&t, int64(pumpEvery))
	}
	sh.env.Arm(&t, int64(pumpEvery))
}

// stopPatience is how many rounds of a millisecond a stop waits for other members.
const stopPatience = 500

// idle says whether no request is being worked on, and nothing else uses the disks, but for what
// the log itself waits for.
func (sh *Shard) idle() bool {
	for _, q := range sh.reqs {
		if q.r != nil {
			return false
		}
	}
	for _, r := range sh.store.owners {
		if r != nil && r.refs > 0 {
			return false // a part of a copy that is being read or written, for one
		}
	}
	return sh.scrub.idle() && sh.digests == 0 && sh.store.holes.idle() && !sh.bypass.loading &&
		len(sh.leaving) == 0 && sh.store.punching == 0
}

func (sh *Shard) closeAll(done func(error)) {
	sh.closing = true
	for _, l := range sh.links {
		l.c.Close(errStopping)
	}
	for _, p := range sh.peerList {
		sh.env.Disarm(&p.redial)
		if p.c != nil {
			p.c.Close(errStopping)
		}
	}
	timers := []*uring.Timer{&sh.tellTimer, &sh.pumpTimer, &sh.secondTimer, &sh.laterTimer,
		&sh.dropTimer, &sh.pace.timer, &sh.fences.timer}
	for _, t := range timers {
		sh.env.Disarm(t)
	}
	for _, p := range sh.peerList {
		for _, c := range p.calls {
			sh.env.Disarm(&c.timer)
		}
		p.calls = nil
	}
	if sh.dead != nil {
		done(sh.dead)
		return
	}
	sh.store.flush(func(err error) {
		if err != nil {
			done(err)
			return
		}
		sh.log.Close(func(err error) {
			if e := sh.store.close(); err == nil {
				err = e
			}
			if e := sh.cache.Close(); err == nil {
				err = e
			}
			done(err)
		})
	})
}
