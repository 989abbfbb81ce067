package simloop

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"pstorage/uring"
)

// doer is what an event does when its time has come, on its env's thread.
type doer interface{ do() }

type doFunc func()

func (f doFunc) do() { f() }

type event struct {
	when int64
	seq  uint64
	env  *Env // nil: of the simulation itself
	do   doer
}

// Sim is a simulated world: a clock, a queue of events, nodes.
type Sim struct {
	now    int64
	seq    uint64
	heap   []event
	envs   []*Env
	seed   uint64
	hash   uint64
	events uint64
	inTurn bool
	killed bool  // some of envs
	nodes  int   // ever made
	mem    arena // of what disks hold
	bufs   *Buffers

	// Limit is after how many events Run panics; 0: never.
	Limit uint64
}

// New returns a world at time 0 whose every decision follows from seed.
func New(seed uint64) *Sim { return &Sim{seed: seed, hash: 14695981039346656037} }

// UseSlabs says where disks made from now on take their memory from.
func (s *Sim) UseSlabs(from Slabs) { s.mem.from = from }

// UseBuffers says where networks made from now on take memory for what is on its way, and give it
// back to. Another simulation may use them when this one has been closed.
func (s *Sim) UseBuffers(from *Buffers) { s.bufs = from }

// Close gives the memory of the simulation's disks back. Nothing of it may be used any more.
func (s *Sim) Close() { s.mem.free() }

// Now is the virtual time in nanoseconds.
func (s *Sim) Now() int64 { return s.now }

// Hash sums up the history so far: every event's time, node and kind, and what Note was given.
func (s *Sim) Hash() uint64 { return s.hash }

// Events is how many events there were: turns of nodes, arrivals, what After asked for.
func (s *Sim) Events() uint64 { return s.events }

// Note adds v to the history's hash: for results that tests want to compare between runs.
func (s *Sim) Note(v uint64) {
	s.hash = (s.hash ^ v) * 0x9e3779b97f4a7c15
	s.hash ^= s.hash >> 29
}

// Rand returns a stream of random numbers of its own for the given concern, so that drawing more
// of one (the network, say) doesn't change another.
func (s *Sim) Rand(concern string) *rand.Rand {
	h := uint64(14695981039346656037)
	for i := 0; i < len(concern); i++ {
		h = (h ^ uint64(concern[i])) * 1099511628211
	}
	return rand.New(rand.NewPCG(s.seed, h))
}

// After calls f d nanoseconds from now, outside of every node: for a test's faults.
func (s *Sim) After(d int64, f func()) { s.push(s.now+d, nil, doFunc(f)) }

// Step moves on to the next thing that happens. It returns false if nothing is left to happen.
func (s *Sim) Step() bool { return s.step(1<<63 - 1) }

// Run steps until the condition holds, checked between steps, and returns true; or false when
// nothing is left to happen, or at maxTime (ns, absolute), with the clock moved there.
func (s *Sim) Run(until func() bool, maxTime int64) bool {
	for !until() {
		if !s.step(maxTime) {
			return false
		}
	}
	return true
}

func (s *Sim) step(limit int64) bool {
	if s.inTurn {
		panic("simloop: Step called from inside a turn")
	}
	var next *Env
	when, found := int64(0), false
	s.bury()
	for _, e := range s.envs {
		if w, ok := e.wake(); ok && (!found || w < when) {
			next, when, found = e, w, true
		}
	}
	if len(s.heap) > 0 && (!found || s.heap[0].when <= when) {
		when, found, next = s.heap[0].when, true, nil
	}
	if !found || when > limit {
		if found {
			s.now = max(s.now, limit)
		}
		return false
	}
	s.now = max(s.now, when)
	if s.events++; s.Limit > 0 && s.events > s.Limit {
		panic(fmt.Sprintf("simloop: more than %d events: something goes round and round", s.Limit))
	}
	if next != nil {
		next.turn()
		return true
	}
	ev := s.pop()
	switch {
	case ev.env == nil:
		s.Note(uint64(ev.when))
		ev.do.do()
	case !ev.env.dead:
		ev.env.inbox = append(ev.env.inbox, ev.do)
	}
	return true
}

// bury takes nodes that were killed off the list.
func (s *Sim) bury() {
	if s.killed {
		s.killed = false
		s.envs = slices.DeleteFunc(s.envs, func(e *Env) bool { return e.dead })
	}
}

func (s *Sim) push(when int64, e *Env, d doer) {
	s.seq++
	ev := event{when, s.seq, e, d}
	s.heap = append(s.heap, event{})
	i := len(s.heap) - 1
	for i > 0 {
		p := (i - 1) / 2
		if !ev.before(&s.heap[p]) {
			break
		}
		s.heap[i] = s.heap[p]
		i = p
	}
	s.heap[i] = ev
}

func (a *event) before(b *event) bool {
	return a.when < b.when || a.when == b.when && a.seq < b.seq
}

func (s *Sim) pop() event {
	first := s.heap[0]
	n := len(s.heap) - 1
	last := s.heap[n]
	s.heap[n] = event{}
	s.heap = s.heap[:n]
	i := 0
	for c := 1; c < n; c = 2*i + 1 {
		if c+1 < n && s.heap[c+1].before(&s.heap[c]) {
			c++
		}
		if !s.heap[c].before(&last) {
			break
		}
		s.heap[i] = s.heap[c]
		i = c
	}
	if n > 0 {
		s.heap[i] = last
	}
	return first
}

// EnvOptions are a node's properties. The zero value is an exact clock.
type EnvOptions struct {
	// DriftPPM is by how many millionths the node's clock is fast (slow if negative).
	DriftPPM int64
}

// Env is one node: the uring.Env of everything that runs on it.
type Env struct {
	sim    *Sim
	id     int
	name   string
	opt    EnvOptions
	rng    *rand.Rand
	timers uring.TimerHeap
	turns  uring.TurnQueue
	inbox  []doer // due, in order
	spare  []doer
	busy   int64 // the next turn starts no earlier
	born   int64
	base   int64 // local clock at birth
	inTurn bool
	dead   bool
	onKill []func()
}

var _ uring.Env = (*Env)(nil)

// NewEnv adds a node with an exact clock.
func (s *Sim) NewEnv(name string) *Env { return s.NewEnvOptions(name, EnvOptions{}) }

// NewEnvOptions adds a node. A node that was killed comes back as a new Env.
func (s *Sim) NewEnvOptions(name string, o EnvOptions) *Env {
	s.nodes++
	e := &Env{sim: s, id: s.nodes, name: name, opt: o, born: s.now}
	e.rng = s.Rand(fmt.Sprintf("env %s %d", name, e.id))
	e.base = int64(e.rng.Uint64N(1 << 40)) // absolute values mean nothing
	s.envs = append(s.envs, e)
	return e
}

// Name is what NewEnv was given.
func (e *Env) Name() string { return e.name }

// Sim is the world that the node lives in.
func (e *Env) Sim() *Sim { return e.sim }

// Now implements uring.Env: the node's own clock.
func (e *Env) Now() int64 {
	d := e.sim.now - e.born
	return e.base + d + d/1_000_000*e.opt.DriftPPM
}

// Rand implements uring.Env.
func (e *Env) Rand() uint64 { return e.rng.Uint64() }

// Arm implements uring.Env.
func (e *Env) Arm(t *uring.Timer, d int64) {
	if d < 0 {
		panic(fmt.Sprintf("simloop: timer armed %d ns in the past", -d))
	}
	if !e.dead {
		e.timers.Arm(t, e.sim.now+d-d/1_000_000*e.opt.DriftPPM)
	}
}

// Disarm implements uring.Env.
func (e *Env) Disarm(t *uring.Timer) { e.timers.Disarm(t) }

// AtTurnEnd implements uring.Env.
func (e *Env) AtTurnEnd(t *uring.TurnEnder) { e.turns.Add(t) }

// Post runs f on the node, in one of its next turns.
func (e *Env) Post(f func()) { e.sim.push(e.sim.now, e, doFunc(f)) }

// Do runs f on the node as a turn of its own, now: for tests. Not to be called from inside a turn.
func (e *Env) Do(f func()) {
	if e.dead {
		panic("simloop: Do on a dead node " + e.name)
	}
	e.begin()
	f()
	e.end()
}

// Kill ends the node's process: nothing of it runs any more, connections are reset. What its disk
// was doing may or may not happen; what was written is kept (see Disk.PowerCut for more). It may
// be called from inside the node's own turn, which then runs to its end.
func (e *Env) Kill() {
	if e.dead {
		return
	}
	e.dead = true
	e.sim.killed = true
	e.inbox = nil
	for _, f := range e.onKill {
		f()
	}
}

// Dead says whether the node was killed.
func (e *Env) Dead() bool { return e.dead }

// wake is when the node's next turn starts, if there is anything to do.
func (e *Env) wake() (int64, bool) {
	if e.dead {
		return 0, false
	}
	if len(e.inbox) > 0 || !e.turns.Empty() {
		return max(e.busy, e.sim.now), true
	}
	w, ok := e.timers.Next()
	return max(w, e.busy), ok
}

func (e *Env) begin() {
	if e.sim.inTurn {
		panic("simloop: a turn inside a turn")
	}
	e.sim.inTurn, e.inTurn = true, true
	e.sim.Note(uint64(e.sim.now)<<8 ^ uint64(e.id))
}

func (e *Env) end() {
	if !e.dead {
		e.turns.Run()
	}
	e.sim.inTurn, e.inTurn = false, false
	e.busy = e.sim.now + 500 + int64(e.rng.Uint64N(4000))
}

// turn delivers what is due: timers first, then completions in order, then the turn's end.
func (e *Env) turn() {
	e.begin()
	for t := e.timers.Pop(e.sim.now); t != nil && !e.dead; t = e.timers.Pop(e.sim.now) {
		e.sim.Note(1)
		t.Fire()
	}
	batch := e.inbox
	e.inbox = e.spare[:0]
	for i, d := range batch {
		batch[i] = nil
		if !e.dead {
			e.sim.Note(2)
			d.do()
		}
	}
	e.spare = batch
	e.end()
}
