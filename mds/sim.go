package mds

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// SimOptions are what the world of a Sim does for it. All are needed.
type SimOptions struct {
	// Now is the monotonic clock of the leader of the moment in ns, above zero.
	Now func() int64
	// Commit stands for raft: it calls done later, when a majority has the entry.
	Commit func(done func())
	// Push delivers what the leader sends to a chunk server's process by itself.
	Push func(instance uint64, op dataplane.Opcode, payload []byte)
	// Wall is the clock that commands are stamped with, ns since 1970.
	Wall func() int64
	// Applied is called after each command that was applied.
	Applied func()
	// Rand decides about placement and about entries in flight when a leadership ends.
	Rand *rand.Rand
	Log  *slog.Logger
	// Offline is how long a silent server has to come back before its chunks are copied to others;
	// 0: 300 s.
	Offline time.Duration
	// Canary is a deliberate fault, for testing tests.
	Canary SimCanary
}

// SimCanary are deliberate faults of a leader. Each breaks a promise that a simulation checks.
type SimCanary struct {
	NoLeaseWait bool // members are excluded though their lease may be valid
	NoFence     bool // an excluded member's lease goes on
	NoFenceWait bool // a file changes hands before the chunk servers have the fence
	NoTermWait  bool // a new leader doesn't wait for the leases that the one before gave
	TrustImages bool // an old image of a server's directory may register
	NoForfeit   bool // a server that lost data isn't asked for its lease
}

// Sim is the metadata servers for simulations: the real handlers, state machine, leases and planner
// in one thread. Raft, the network and the clock are the world's. A handler that waits for its
// command to be committed is a coroutine, so others run in between, always in the same order.
type Sim struct {
	o       SimOptions
	srv     *server
	l       *leader // nil: no leader now
	term    uint64
	applied uint64 // commands
	cur     *simTask
	waiting []*simTask // for their commands to be committed
	spawned []func()
	pushes  []simPush
	peers   map[uint64]*control.Peer
	chunks  []control.ChunkConfig // what Chunks returned; nil: something was applied since
}

// simTask is a handler being run.
type simTask struct {
	next  func() (command, bool)
	stop  func()
	yield func(command) bool
	cmd   command
	l     *leader
	res   Result
	err   error
}

type simPush struct {
	to      uint64
	op      dataplane.Opcode
	payload []byte
}

// NewSim returns metadata servers with an empty state and no leader.
func NewSim(o SimOptions) *Sim {
	s := &Sim{o: o, peers: make(map[uint64]*control.Peer)}
	r := &replica{log: o.Log, sim: s, offline: o.Offline}
	r.fsm = &fsm{log: o.Log, s: NewState(), onFail: func(err error) { panic(err) }}
	r.fsm.s.trustsImages = o.Canary.TrustImages
	s.srv = &server{r: r, log: o.Log}
	return s
}

// Close frees memory and ends what is under way.
func (s *Sim) Close() {
	s.Depose()
	s.srv.r.fsm.s.Close()
}

// Lead begins a leadership, with nothing but the replicated state.
func (s *Sim) Lead() {
	if s.l != nil {
		panic("mds: a leader already")
	}
	s.term++
	l := newLeader(s.srv.r, s.term)
	l.leases = newLeases(s.o.Now())
	if s.o.Canary.NoTermWait {
		l.leases.sinceNs -= 2 * int64(leaseOut)
	}
	l.leases.hasty = s.o.Canary.NoLeaseWait
	l.leases.unfenced = s.o.Canary.NoFence
	l.noForfeit = s.o.Canary.NoForfeit
	l.fence.hasty = s.o.Canary.NoFenceWait
	l.view.rng = s.o.Rand
	l.begin()
	s.l = l
	s.srv.lead.Store(l)
}

// Depose ends the leadership. Commands in flight are committed or lost; nobody is told which.
func (s *Sim) Depose() {
	l := s.l
	if l == nil {
		return
	}
	s.l = nil
	s.srv.lead.Store(nil)
	l.stop()
	kept := s.o.Rand.IntN(len(s.waiting) + 1) // a prefix of the log survives
	for ; len(s.waiting) > 0; kept-- {
		t := s.waiting[0]
		if kept > 0 {
			s.apply(t)
		}
		t.err = s.srv.r.notLeader()
		s.resume(t)
	}
}

// Leading says whether there is a leader.
func (s *Sim) Leading() bool { return s.l != nil }

// Handle gives a request to the leader. peer names the asking process and role what it is. reply
// is called once, now or later.
func (s *Sim) Handle(role dataplane.Role, peer, reqID uint64, op dataplane.Opcode, req any,
	reply func(payload []byte, err error)) {
	p := s.peers[peer]
	if p == nil {
		p = control.SimPeer(session.Peer{Role: role, ID: peer},
			func(op dataplane.Opcode, payload []byte) error {
				s.pushes = append(s.pushes, simPush{peer, op, payload})
				return nil
			})
		s.peers[peer] = p
	}
	payload := control.Marshal(req)
	if op == control.OpRegisterCS && s.excluding(req.(*control.RegisterCSReq).Disk) {
		reply(nil, s.srv.r.notLeader()) // it would wait; here the asker does
		return
	}
	s.start(func() {
		answer, err := s.srv.Handle(context.Background(), p, reqID, op, payload)
		if err != nil || answer == nil {
			reply(nil, err)
			return
		}
		reply(control.Marshal(answer), nil)
	})
	s.flush()
}

// excluding says whether exclusions of a server are being committed.
func (s *Sim) excluding(disk [16]byte) bool {
	id := s.srv.r.fsm.s.byDisk[disk]
	return s.l != nil && id != 0 &&
		(s.l.leases.at(id).excluding > 0 || s.l.leases.at(id).adding > 0)
}

// Gone says that the connection of a process was lost.
func (s *Sim) Gone(peer uint64) {
	if p := s.peers[peer]; p != nil {
		s.srv.Gone(p)
		delete(s.peers, peer)
	}
}

// Tick is the leader's housekeeping, to be called every few ms.
func (s *Sim) Tick() {
	l := s.l
	if l == nil {
		return
	}
	if l.isBehind() {
		return
	}
	l.pushSettles()
	l.pushRecoveries()
	l.pushForgets()
	l.pushMaps()
	s.startSpawned()
	if len(s.srv.r.fsm.s.orphans) > 0 {
		s.start(l.reap)
	}
	s.flush()
}

// flush sends pushes in an order that doesn't depend on that of maps.
func (s *Sim) flush() {
	slices.SortStableFunc(s.pushes, func(a, b simPush) int {
		if c := cmp.Compare(a.to, b.to); c != 0 {
			return c
		}
		if c := cmp.Compare(a.op, b.op); c != 0 {
			return c
		}
		return slices.Compare(a.payload, b.payload)
	})
	for _, p := range s.pushes {
		s.o.Push(p.to, p.op, p.payload)
	}
	s.pushes = s.pushes[:0]
}

// valid stands for leader.valid.
func (s *Sim) valid(l *leader) error {
	if s.l != l {
		return s.srv.r.notLeader()
	}
	return nil
}

// propose stands for replica.propose: the coroutine sleeps until the command was committed.
func (s *Sim) propose(c command) (Result, error) {
	t := s.cur
	if s.l == nil || t.l != s.l {
		return Result{}, s.srv.r.notLeader()
	}
	t.res, t.err = Result{}, nil
	if !t.yield(c) {
		return Result{}, errStopped()
	}
	return t.res, t.err
}

// start runs f as a coroutine.
func (s *Sim) start(f func()) {
	t := &simTask{l: s.l}
	t.next, t.stop = iter.Pull(func(yield func(command) bool) {
		t.yield = yield
		f()
	})
	s.resume(t)
}

// resume runs t until it waits or ends.
func (s *Sim) resume(t *simTask) {
	if i := slices.Index(s.waiting, t); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
	before := s.cur
	s.cur = t
	cmd, more := t.next()
	s.cur = before
	if more {
		t.cmd = cmd
		s.waiting = append(s.waiting, t)
		s.o.Commit(func() { s.committed(t, cmd) })
	}
	s.startSpawned()
}

// startSpawned starts what runs beside the leader's other work, unless a handler is being run.
func (s *Sim) startSpawned() {
	for len(s.spawned) > 0 && s.cur == nil {
		f := s.spawned[0]
		s.spawned = s.spawned[1:]
		s.start(f)
	}
}

// committed applies the command that t waits for, unless its leadership ended before.
func (s *Sim) committed(t *simTask, cmd command) {
	if !slices.Contains(s.waiting, t) || t.cmd != cmd {
		return
	}
	s.apply(t)
	s.resume(t)
	s.flush()
}

func (s *Sim) apply(t *simTask) {
	res, err := s.srv.r.fsm.s.Apply(encodeEntry(s.o.Wall(), t.cmd))
	if err == nil && len(res) != 1 {
		err = errors.New("no result")
	}
	if err != nil {
		panic(err)
	}
	t.res, s.chunks = res[0], nil
	s.applied++
	s.o.Applied()
}

// background runs f beside the leader's other work.
func (l *leader) background(f func()) {
	if s := l.r.sim; s != nil {
		s.spawned = append(s.spawned, f)
		return
	}
	go f()
}

// Chunks lists all chunks as committed. The list isn't to be changed: who waits for something asks
// for it after each event.
func (s *Sim) Chunks() []control.ChunkConfig {
	if s.chunks != nil {
		return s.chunks
	}
	list := []control.ChunkConfig{}
	st := s.srv.r.fsm.s
	for slot := range st.table.Slots() {
		rec := st.table.At(slot)
		if rec == nil || rec.State != stateUsed {
			continue
		}
		c := control.ChunkConfig{Chunk: rec.ID, File: rec.File, Index: rec.Index, Epoch: rec.Epoch,
			Created: rec.Flags&flagCreated != 0, Minimum: rec.Minimum}
		for _, m := range rec.members() {
			c.Members = append(c.Members, control.CSAddr{CS: m.CS})
		}
		list = append(list, c)
	}
	s.chunks = list
	return list
}

// Events lists the event log.
func (s *Sim) Events() (list []control.Event) {
	st := s.srv.r.fsm.s
	st.events.each(func(e *control.Event) bool {
		list = append(list, *e)
		return true
	})
	return list
}
