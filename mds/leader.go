package mds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// Times and limits of a leader's housekeeping.
const (
	leaderTick     = 25 * time.Millisecond
	placeViewLife  = 100 * time.Millisecond // free space and load in placement are that old at most
	relistAfter    = 30 * time.Second
	relistEvery    = 100 * time.Millisecond
	doubtEvery     = 5 * time.Second // between two inventories of a server that others want to exclude
	maxForget      = 1 << 18         // chunks to be forgotten that wait for one server
	forgetPerPush  = 32 << 10
	settledChanged = 10 * time.Second // see inventory
)

// leader is what this server knows and does while it leads: leases, connections to chunk servers,
// chunks in trouble, free space. It begins empty with each term.
type leader struct {
	term uint64
	r    *replica
	log  *slog.Logger
	base time.Time // of the monotonic clock
	ctx  context.Context
	stop func()
	idle sync.WaitGroup
	// reaping wakes runReap; without room, as it looks at the state itself.
	reaping chan struct{}

	mu     sync.Mutex // guards what follows; taken before fsm.mu
	free   sync.Cond  // an exclusion has been committed or given up
	leases *leases
	plan   *planner
	// recover finds and has copied what has too few members.
	recover *recoverer
	move    *mover // moves chunks that are whole
	drains  map[dataplane.CSID]*drain
	health  *peerHealth
	judging bool // whether a server can be done without is being found out
	// forfeitNs is when a server was last asked for its lease because it lost data; 0: never.
	forfeitNs int64
	noForfeit bool // a deliberate fault, for simulations
	conf      settings
	// states are the servers' states when they were last looked at, by id; "": not yet.
	states   []string
	statesNs int64
	named    []uint64 // by server: the reply that named it last
	replies  uint64
	classes  []uint8 // what recovery knew of the servers a tick ago, by id: see watchServers
	short    shortage
	cs       map[dataplane.CSID]*csLink
	byPeer   map[*control.Peer]dataplane.CSID
	view     placer
	viewNs   int64                     // when the view was made; 0: make it anew
	behind   string                    // why the record is an older copy of itself: see behind.go
	placing  map[dataplane.CSID]uint64 // chunks for it in allocations that are proposed
	anew     bool                      // chunks are being placed anew: see anew.go
	coming   uint64                    // chunks in allocations that are proposed

	parts    map[*control.Peer]*parts // inventories that are on their way
	refusals map[refusedKey]refusal

	relistNs int64 // not before then is the next inventory asked for
	full     fullness
	fence    fencer
	keepers  keepers  // guards itself
	clients  clients  // guards itself
	watch    mapWatch // guards itself
}

// csLink is the leader's view of a chunk server's process.
type csLink struct {
	peer           *control.Peer // nil: not connected
	instance       uint64
	refused        uint64 // instance that was refused last
	foreign        uint64 // node that was refused last: the server is another node's
	knocker        uint64 // instance that wants to register while another one serves
	knocksNs       int64  // since when; 0: that was told
	capacity, used uint64 // bytes, as last reported; zero capacity: not yet
	stats          control.CSStats
	statsNs        int64
	rates          csRates
	forget         []dataplane.ChunkID // freed, and not pushed yet
	pushed         bool                // it was told to forget some since its inventory was taken
	moved          []movedChunk        // moved away, and not pushed yet
}

// csRates are per second, over the last few heartbeats.
type csRates struct{ reads, writes, readBytes, writeBytes float64 }

// lead begins a leadership. The caller has confirmed the term by a barrier.
func lead(r *replica, term uint64) *leader {
	l := newLeader(r, term)
	l.base = time.Now()
	l.leases = newLeases(l.now())
	l.view.rng = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	l.begin()
	l.idle.Go(l.run)
	l.idle.Go(l.runReap)
	return l
}

// newLeader returns what a leader begins with.
func newLeader(r *replica, term uint64) *leader {
	l := &leader{term: term, r: r, log: r.log, plan: newPlanner(), reaping: make(chan struct{}),
		placing: make(map[dataplane.CSID]uint64),
		recover: newRecoverer(r.offlineTimeout()), move: newMover(), health: newHealth(),
		drains: make(map[dataplane.CSID]*drain), cs: make(map[dataplane.CSID]*csLink),
		byPeer: make(map[*control.Peer]dataplane.CSID)}
	l.free.L = &l.mu
	return l
}

// errDeposed is the cause with which a leadership's context ends.
var errDeposed = errors.New("the leadership ended")

// begin makes the context in which the leadership's own work runs, until stop.
func (l *leader) begin() {
	ctx, cancel := context.WithCancelCause(withTerm(context.Background(), l.term))
	l.ctx, l.stop = ctx, func() { cancel(errDeposed) }
}

// end waits until the leadership's own work has ended.
func (l *leader) end() {
	l.stop()
	l.idle.Wait()
}

// now is the monotonic clock in ns, never zero.
func (l *leader) now() int64 {
	if l.r.sim != nil {
		return l.r.sim.o.Now()
	}
	return int64(time.Since(l.base)) + 1
}

// valid says whether this is still the confirmed leadership, at some moment after the call.
func (l *leader) valid(ctx context.Context) error { return l.validBy(ctx, &l.r.verify) }

// validBy is valid with the others asked by way of that verifier.
func (l *leader) validBy(ctx context.Context, v *verifier) error {
	if l.r.sim != nil {
		return l.r.sim.valid(l)
	}
	if l.r.canary == canaryUnverified {
		return nil
	}
	if err := l.r.verifyWith(ctx, v); err != nil {
		return err
	}
	if l.ctx.Err() != nil || l.r.raft.CurrentTerm() != l.term {
		return l.r.notLeader()
	}
	return nil
}

// link returns the entry of a chunk server. mu is held.
func (l *leader) link(cs dataplane.CSID) *csLink {
	c := l.cs[cs]
	if c == nil {
		c = &csLink{}
		l.cs[cs] = c
	}
	return c
}

// connect notes over which connection a server's process is reached. mu is held.
func (l *leader) connect(cs dataplane.CSID, peer *control.Peer, instance uint64) *csLink {
	c := l.link(cs)
	if c.peer != nil && c.peer != peer {
		delete(l.byPeer, c.peer)
	}
	c.peer, c.instance = peer, instance
	l.byPeer[peer] = cs
	return c
}

// gone notes that a connection was lost.
func (l *leader) gone(peer *control.Peer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.parts, peer)
	cs, ok := l.byPeer[peer]
	if !ok {
		return
	}
	delete(l.byPeer, peer)
	c := l.cs[cs]
	if c.peer != peer {
		return
	}
	c.peer = nil
	if c.pushed {
		// A push may have been lost with the connection.
		l.leases.at(cs).relist = true
	}
}

// run does what must be done in time: settles, copies, what servers and clients are told.
func (l *leader) run() {
	l.initCluster()
	tick := time.NewTicker(leaderTick)
	defer tick.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-tick.C:
		}
		if l.isBehind() {
			continue
		}
		l.pushSettles()
		l.pushRecoveries()
		l.scanOn()
		l.pushForgets()
		l.pushMaps()
		l.relistOne()
		if l.r.fsm.removed() > 0 {
			select {
			case l.reaping <- struct{}{}:
			default: // it is at it
			}
		}
	}
}

// runReap frees the chunks of removed files when run says that there are some. A large file takes
// thousands of commands, one after the other, which the rest of the housekeeping doesn't wait for.
func (l *leader) runReap() {
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-l.reaping:
			l.reap()
		}
	}
}

// relistOne asks a server that has not registered with this leader for its inventory: the leader
// before may have freed chunks and not have told it. Likewise one that had copies when this leader
// was new. There is no hurry, and one goes at a time.
func (l *leader) relistOne() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if now < l.relistNs || now-l.leases.sinceNs < int64(relistAfter) {
		return
	}
	l.relistNs = now + int64(relistEvery)
	for cs, c := range l.cs {
		if e := l.leases.at(cs); c.peer != nil && (!e.registered || e.copies) && !e.relist {
			e.relist = true
			return
		}
	}
}

// initCluster names the cluster in the state, once.
func (l *leader) initCluster() {
	f := l.r.fsm
	f.mu.RLock()
	done := f.s.clusterID != (dataplane.ClusterID{})
	f.mu.RUnlock()
	if done {
		return
	}
	cred := l.r.stream.cred
	_, err := l.r.propose(l.ctx, &cmdInit{ClusterID: cred.Cluster, ClusterName: cred.ClusterName})
	if err != nil && l.ctx.Err() == nil {
		l.log.Warn("cluster not initialised; the next leader does it", "reason", err)
	}
}

// removed returns how many removed files still have chunks.
func (f *fsm) removed() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.s.orphans)
}

// reap frees chunks of removed files.
func (l *leader) reap() {
	for l.ctx.Err() == nil && l.r.fsm.removed() > 0 {
		res, err := l.r.propose(l.ctx, &cmdReap{})
		if err != nil {
			return // not the leader any more, or stopping
		}
		l.forget(res.Freed)
	}
}

// planFacts lets the planner see the state. Both locks are held.
type planFacts struct {
	l     *leader
	s     *State
	nowNs int64
}

func (w planFacts) chunk(id dataplane.ChunkID) *Record { return w.s.table.Lookup(id) }
func (w planFacts) live(cs dataplane.CSID) bool        { return w.l.leases.live(cs, w.nowNs) }
func (w planFacts) gone(cs dataplane.CSID) bool {
	return w.l.leases.verdict(cs, w.nowNs) == leaseGone
}

func (w planFacts) broken(cs dataplane.CSID) bool {
	c := w.s.server(cs)
	return c == nil || c.Dropped || c.Failed != "" || w.l.leases.at(cs).failed
}

func (w planFacts) heard(cs dataplane.CSID) (lastNs, backNs int64) {
	e := w.l.leases.at(cs)
	return max(e.answeredNs, w.l.leases.sinceNs), e.backNs
}

// pushSettles asks chunk servers to settle what the planner says.
func (l *leader) pushSettles() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.plan.queue) == 0 {
		return
	}
	f := l.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	now := l.now()
	// Chunks with the same coordinator and the same lost members go together.
	type group struct {
		to   dataplane.CSID
		lost [dataplane.MaxReplicas]dataplane.CSID
		lead bool
	}
	groups := make(map[group]*control.SettlePush)
	var anew []dataplane.ChunkID
	for _, t := range l.plan.step(now, planFacts{l, f.s, now}, nil) {
		if t.anew {
			anew = append(anew, t.chunk)
			continue
		}
		rec := f.s.table.Lookup(t.chunk)
		g := group{to: t.to, lead: t.lead}
		var lost []dataplane.CSID
		for i, m := range rec.members() {
			if t.lost&(1<<i) != 0 {
				g.lost[len(lost)] = m.CS
				lost = append(lost, m.CS)
			}
		}
		p := groups[g]
		if p == nil {
			p = &control.SettlePush{Lost: lost, Lead: t.lead}
			groups[g] = p
		}
		p.Chunks = append(p.Chunks, l.config(f.s, rec, now))
		if len(p.Chunks) == settlePerPush {
			l.push(t.to, control.OpSettle, p)
			delete(groups, g)
		}
	}
	for g, p := range groups {
		l.push(g.to, control.OpSettle, p)
	}
	if len(anew) > 0 && !l.anew { // what is found meanwhile is found again
		l.anew = true
		l.background(func() { l.placeAnew(anew) })
	}
}

// push sends a message to a chunk server. mu is held.
func (l *leader) push(cs dataplane.CSID, op dataplane.Opcode, msg any) bool {
	c := l.cs[cs]
	if c == nil || c.peer == nil {
		return false
	}
	if err := c.peer.Push(op, msg); err != nil {
		l.log.Warn("push failed", "cs", cs, "op", control.OpName(op), "reason", err)
		return false
	}
	return true
}

// forget queues freed chunks for the servers that held them.
func (l *leader) forget(freed []freedChunk) {
	if len(freed) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range freed {
		for _, m := range f.replicas {
			if m.CS == 0 {
				break
			}
			c := l.link(m.CS)
			if len(c.forget) >= maxForget {
				// It learns by its next inventory.
				c.forget = nil
				l.leases.at(m.CS).relist = true
			}
			c.forget = append(c.forget, f.id)
		}
	}
}

// pushForgets tells chunk servers what to delete.
func (l *leader) pushForgets() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for cs, c := range l.cs {
		for len(c.forget) > 0 && c.peer != nil {
			n := min(len(c.forget), forgetPerPush)
			if !l.push(cs, control.OpForget, &control.ForgetPush{Chunks: c.forget[:n]}) {
				break
			}
			c.forget, c.pushed = c.forget[n:], true
		}
		if len(c.forget) == 0 {
			c.forget = nil
		}
	}
	l.pushMoved()
}

// config describes a chunk to chunk servers. Both locks are held, fsm.mu for reading.
func (l *leader) config(s *State, rec *Record, nowNs int64) control.ChunkConfig {
	c := control.ChunkConfig{Chunk: rec.ID, File: rec.File, Index: rec.Index, Epoch: rec.Epoch,
		Created: rec.Flags&flagCreated != 0, Minimum: rec.Minimum, Ack: rec.Ack, Wanted: rec.Wanted,
		Members: make([]control.CSAddr, 0, rec.Present), Fence: s.leaseOf(rec.File).fence}
	for _, m := range rec.members() {
		c.Members = append(c.Members, l.addr(s, m.CS, nowNs))
	}
	return c
}

// addr says where a chunk server is. Both locks are held.
func (l *leader) addr(s *State, cs dataplane.CSID, nowNs int64) control.CSAddr {
	a := control.CSAddr{CS: cs, Live: l.leases.live(cs, nowNs), Ill: l.health.isIll(cs)}
	if c := s.server(cs); c != nil {
		a.Addr = c.Addr
	}
	return a
}

// capacityOf returns the bytes for chunks of a server and how many of them are free. A chunk that
// was allocated takes its full size, written or not. mu is held.
func (l *leader) capacityOf(s *State, c *CS) (size, free uint64) {
	size, used := c.Capacity, c.Used
	if k := l.cs[c.ID]; k != nil && k.capacity > 0 {
		size, used = k.capacity, k.used
	}
	used = max(used, uint64(s.csLoad[c.ID])*dataplane.ChunkSize)
	if used > size {
		return size, 0
	}
	return size, size - used
}

// refreshView makes the view for placement anew when it is old. Both locks are held.
func (l *leader) refreshView(s *State) {
	now := l.now()
	if l.viewNs != 0 && now-l.viewNs < int64(placeViewLife) {
		return
	}
	l.viewNs = now
	nodes := l.view.nodes[:0]
	domains := domainsOf{ids: make(map[string]uint32)}
	busiest := 1.0
	for _, c := range s.cs {
		if c == nil || c.Dropped || c.Failed != "" || c.Fenced || !l.leases.live(c.ID, now) {
			continue
		}
		size, free := l.capacityOf(s, c)
		placing := l.placing[c.ID] * dataplane.ChunkSize
		n := node{cs: c.ID, tier: c.Tier, domain: domains.of(c), size: size,
			free: free - min(free, placing), chunks: uint64(s.csLoad[c.ID]), leaves: c.Releasing,
			closed: c.Releasing || l.health.isIll(c.ID)}
		if k := l.cs[c.ID]; k != nil {
			n.load = k.rates.reads + k.rates.writes
			busiest = max(busiest, n.load)
			n.busy = k.stats.LogUsed/3 > k.stats.LogSize/4
		}
		nodes = append(nodes, n)
	}
	for i := range nodes {
		nodes[i].load /= busiest
	}
	l.view.nodes = nodes
	l.view.reindex()
	for _, a := range l.recover.active {
		if i := l.view.indexOf(a.target); i >= 0 && nodes[i].free >= dataplane.ChunkSize {
			nodes[i].take()
		}
		if i := l.view.indexOf(a.leaving); i >= 0 && nodes[i].chunks > 0 {
			nodes[i].chunks--
		}
	}
}

// allocate makes the chunks of a file's range that don't exist. When not all can be placed those
// that can are made; the error is set when none is. What the command skips, because a server was
// dropped meanwhile, is placed again without that server. It ends with the command, also if nobody
// waits for the answer any more: until then the command's chunks count.
func (l *leader) allocate(req control.MapReq) error {
	op := fmt.Sprintf("allocate chunks %d+%d of file %d", req.First, req.Count, req.File)
	for made := false; ; made = true {
		c, err := l.placeMissing(req, op)
		if made && dataplane.KindOf(err) == dataplane.NoSpace {
			return nil
		}
		if err != nil || len(c.Chunks) == 0 {
			return err
		}
		res, err := l.r.propose(l.ctx, c)
		l.mu.Lock()
		l.countPlacing(c, false)
		l.mu.Unlock()
		if err == nil {
			err = res.err(op)
		}
		if err != nil {
			return err
		}
	}
}

// countPlacing counts the chunks of a command that is proposed, until it is over: the view for
// placement, when it is made anew meanwhile, doesn't see them in the state yet, nor does the
// capacity limit. For a moment they may count twice. mu is held.
func (l *leader) countPlacing(c *cmdAllocate, begins bool) {
	if begins {
		l.coming += uint64(len(c.Chunks))
	} else {
		l.coming -= uint64(len(c.Chunks))
	}
	for i := range c.Chunks {
		p := &c.Chunks[i]
		for _, cs := range p.members[:p.n] {
			if begins {
				l.placing[cs]++
			} else if l.placing[cs]--; l.placing[cs] == 0 {
				delete(l.placing, cs)
			}
		}
	}
}

// placeMissing decides where the missing chunks of a range go, and counts them as being placed.
func (l *leader) placeMissing(req control.MapReq, op string) (*cmdAllocate, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	file := f.s.live(req.File)
	switch {
	case l.behind != "":
		return nil, dataplane.E(op, dataplane.NotReady, errors.New(l.behind))
	case file == nil:
		return nil, dataplane.E(op, dataplane.NotFound, nil)
	case file.typ != control.TypeFile:
		return nil, dataplane.E(op, dataplane.Invalid, errors.New("not a regular file"))
	}
	c := &cmdAllocate{File: req.File}
	for i := req.First; i < req.First+req.Count; i++ {
		if file.slots.get(i) != 0 {
			continue
		}
		l.refreshView(f.s)
		var p placed
		err := l.overLimit(f.s, len(c.Chunks))
		if err == nil {
			p, err = l.view.place(file.policy, i)
		}
		if err != nil {
			if len(c.Chunks) > 0 {
				break
			}
			l.viewNs = 0
			l.noSpace(err)
			return nil, err
		}
		c.Chunks = append(c.Chunks, p)
	}
	l.countPlacing(c, true)
	return c, nil
}
