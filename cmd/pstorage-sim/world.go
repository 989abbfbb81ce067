package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/mds"
	"pstorage/uring/simloop"
)

const (
	us  = int64(time.Microsecond)
	ms  = int64(time.Millisecond)
	sec = int64(time.Second)
)

// config is what a run is made of.
type config struct {
	seed   uint64
	canary string
	trace  bool
	with   string // a kind of run that is drawn for every seed that it fits

	// scene, if set, takes the place of load and faults, after fix has changed the scenario.
	fix   func(*scenario)
	scene func(*world)
}

// result is what came of a run.
type result struct {
	violations []string
	scenario   string
	hash       uint64
	virtual    time.Duration
	ops        int
	counts     counts
	events     uint64
	stuck      time.Duration // how long operations took to end after the faults had
}

// world is a simulated cluster.
type world struct {
	cfg   config
	sc    scenario
	sim   *simloop.Sim
	net   *simloop.Net
	log   *slog.Logger
	rnd   *rand.Rand // times of messages to and from the metadata servers
	can   canary
	mds   *metaServers
	cs    []*csNode
	cl    []*client
	files []*file
	areas []area // of files that are used

	calm       bool // healing: no faults any more
	stopLoad   bool
	violations []string
	events     []control.Event
	configs    map[dataplane.ChunkID]control.ChunkConfig
	strand     *strand                    // nil: none
	late       *late                      // nil: none
	lone       *lone                      // nil: none
	image      *image                     // nil: none
	liar       *liar                      // nil: none
	recovered  map[dataplane.ChunkID]bool // a head was asked to add a member
	begun      map[dataplane.ChunkID]*activation
	ops        int
	counts     counts
	bufs       *simloop.Buffers
	unread     string // why a replica couldn't be read
	stuck      int64  // how long the last operation waited after the faults had ended, ns
}

var simKey = [32]byte{1, 2, 3}

func cred(role dataplane.Role, id uint64) *session.Credentials {
	return &session.Credentials{Cluster: dataplane.ClusterID{7}, ClusterName: "sim", Key: simKey,
		Role: role, ID: id}
}

// runSeed runs the cluster of one seed to its end.
func runSeed(cfg config) (res result) {
	w := &world{cfg: cfg, can: canaries[cfg.canary], bufs: takeBuffers(), areas: areas,
		configs:   map[dataplane.ChunkID]control.ChunkConfig{},
		recovered: map[dataplane.ChunkID]bool{}, begun: map[dataplane.ChunkID]*activation{}}
	w.sim = simloop.New(cfg.seed)
	w.sim.UseSlabs(&slabs)
	w.sim.UseBuffers(w.bufs)
	w.sim.Limit = 2_000_000 // a hundred times as many as usual
	w.rnd = w.sim.Rand("messages")
	w.sc = newScenario(w.sim.Rand("scenario"))
	w.chooseSingle()
	w.chooseGhost()
	w.chooseLeases()
	w.chooseStrand()
	w.sc.room = []int{0, 0, 1, 3}[w.sim.Rand("room").IntN(4)]
	if cfg.fix != nil {
		cfg.fix(&w.sc)
	}
	w.chooseMemory()
	w.chooseLone()
	w.choosePages()
	w.chooseBuffers()
	w.chooseImage()
	w.chooseLiar()
	w.stopLoad = cfg.scene != nil
	w.net = simloop.NewNet(w.sim, simloop.NetOptions{})
	w.log = slog.New(quiet{})
	if cfg.trace {
		w.log = slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug,
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					a.Value = slog.StringValue(w.at())
				}
				return a
			}}))
	}
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(stopRun); !ok {
				w.violations = append(w.violations, fmt.Sprintf("panic at %s: %v\n%s", w.at(), p,
					debug.Stack()))
			}
		}
		w.free()
		res = result{violations: w.violations, scenario: w.sc.String(), hash: w.sim.Hash(),
			virtual: time.Duration(w.sim.Now()), ops: w.ops, events: w.sim.Events(), counts: w.counts,
			stuck: time.Duration(w.stuck)}
	}()
	w.run()
	return res
}

// kinds are what -with takes: kinds of runs that only a part of the seeds are.
var kinds = []string{"buffers", "hang", "image", "liar", "misread", "pages"}

// drawn says whether a run is of a kind, which its seed drew or not.
func (w *world) drawn(kind string, drew bool) bool {
	return (drew || w.cfg.with == kind) && w.cfg.scene == nil
}

// stopRun is panicked to end a run that has violated enough.
type stopRun struct{}

// quiet is a log handler that drops everything before it is formatted.
type quiet struct{}

func (quiet) Enabled(context.Context, slog.Level) bool  { return false }
func (quiet) Handle(context.Context, slog.Record) error { return nil }
func (q quiet) WithAttrs([]slog.Attr) slog.Handler      { return q }
func (q quiet) WithGroup(string) slog.Handler           { return q }

func (w *world) at() string { return fmt.Sprintf("%.6f", float64(w.sim.Now())/1e9) }

func (w *world) violate(format string, args ...any) {
	text := w.at() + " " + fmt.Sprintf(format, args...)
	w.log.Error("VIOLATION " + text)
	w.violations = append(w.violations, text)
	if len(w.violations) >= 20 {
		panic(stopRun{})
	}
}

func (w *world) trace(format string, args ...any) {
	if w.cfg.trace {
		fmt.Println(w.at(), "#", fmt.Sprintf(format, args...))
	}
}

// wait runs the world until the condition holds.
func (w *world) wait(until func() bool, within int64, what string) bool {
	if w.sim.Run(until, w.sim.Now()+within) {
		return true
	}
	w.violate("%s: not within %v", what, time.Duration(within))
	return false
}

func (w *world) run() {
	w.mds = newMetaServers(w)
	for i := range w.sc.servers {
		n := newCS(w, i)
		w.cs = append(w.cs, n)
		if !w.wait(func() bool { return n.registered }, 20*sec, "chunk server registered") {
			return
		}
	}
	for i := range w.sc.clients {
		w.makeFile(i)
	}
	for i := range w.sc.clients {
		w.cl = append(w.cl, newClient(w, i))
	}
	if w.cfg.scene != nil {
		w.cfg.scene(w)
		if len(w.violations) == 0 {
			w.heal()
		}
		return
	}
	newFaults(w).start()
	w.startDrains()
	end := w.sim.Now() + w.sc.length
	w.sim.Run(func() bool { return len(w.violations) > 0 || w.liar.done() }, end)
	if len(w.violations) == 0 {
		w.heal()
	}
}

// free gives memory outside the Go heap back.
func (w *world) free() {
	for _, n := range w.cs {
		n.freeAll()
	}
	for _, c := range w.cl {
		c.freeAll()
	}
	if w.mds != nil {
		w.mds.close()
	}
	w.sim.Close()
	giveBuffers(w.bufs)
}

// metaServers are the metadata servers: one leader at a time, on one of three nodes.
type metaServers struct {
	w      *world
	sim    *mds.Sim
	envs   []*simloop.Env
	ips    []string
	leader int
	commit int64 // when the last command in flight is committed
	req    uint64
	procs  map[uint64]*csNode // processes that registered, to be pushed to
}

func newMetaServers(w *world) *metaServers {
	m := &metaServers{w: w, procs: map[uint64]*csNode{}}
	rng := w.sim.Rand("mds")
	for i := range 3 {
		ip := fmt.Sprintf("10.0.1.%d", i+1)
		m.ips = append(m.ips, ip)
		env := w.sim.NewEnvOptions(fmt.Sprintf("mds%d", i+1),
			simloop.EnvOptions{DriftPPM: w.sc.drift(rng)})
		m.envs = append(m.envs, env)
		w.net.Node(env, ip)
	}
	m.sim = mds.NewSim(mds.SimOptions{Log: w.log, Rand: rng, Canary: w.can.mds,
		Now:     func() int64 { return m.envs[m.leader].Now() + 1 },
		Wall:    func() int64 { return 1e18 + w.sim.Now() },
		Commit:  m.replicate,
		Push:    m.push,
		Applied: w.applied, Offline: 5 * time.Second})
	m.sim.Lead()
	m.tick()
	return m
}

func (m *metaServers) close() {
	m.w.calm = true
	m.sim.Close()
}

// tick is the leader's housekeeping.
func (m *metaServers) tick() {
	m.sim.Tick()
	m.w.sim.After(25*ms, m.tick)
}

// replicate stands for raft: commands are committed in their order.
func (m *metaServers) replicate(done func()) {
	m.commit = max(m.commit, m.w.sim.Now()+m.w.between(100*us, 800*us))
	m.w.sim.After(m.commit-m.w.sim.Now(), done)
}

// change makes another node the leader, after a time without one.
func (m *metaServers) change(gap int64) {
	if !m.sim.Leading() {
		return
	}
	m.sim.Depose()
	m.w.sim.After(gap, func() {
		m.leader = (m.leader + 1) % len(m.envs)
		m.w.trace("mds %d leads", m.leader+1)
		m.sim.Lead()
	})
}

// between returns a random time.
func (w *world) between(from, to int64) int64 { return from + w.rnd.Int64N(to-from) }

// delay is how long a control message takes; now and then very long.
func (w *world) delay() int64 {
	if w.rnd.IntN(40) == 0 {
		return w.between(ms, 300*ms)
	}
	return w.between(50*us, 400*us)
}

// rpc is one request to the metadata servers: asked again until it is answered or too late.
type rpc struct {
	w        *world
	env      *simloop.Env
	ip       string
	role     dataplane.Role
	peer     uint64
	id       uint64
	op       dataplane.Opcode
	req      any
	deadline int64
	once     bool
	done     func(payload []byte, err error)
	ended    bool
}

// ask sends a request from a process. done is called once on its thread, unless it dies.
func (m *metaServers) ask(env *simloop.Env, ip string, role dataplane.Role, peer uint64,
	op dataplane.Opcode, req any, timeout time.Duration, once bool,
	done func(payload []byte, err error)) {
	m.req++
	c := &rpc{w: m.w, env: env, ip: ip, role: role, peer: peer, id: m.req, op: op, req: req,
		deadline: m.w.sim.Now() + int64(timeout), once: once, done: done}
	m.w.sim.After(int64(timeout), func() {
		c.end(nil, dataplane.E(control.OpName(op), dataplane.TimedOut, nil))
	})
	c.send()
}

func (c *rpc) end(payload []byte, err error) {
	if c.ended || c.env.Dead() {
		return
	}
	c.ended = true
	c.env.Post(func() { c.done(payload, err) })
}

// again tries once more after a while, unless once is all.
func (c *rpc) again(wait int64, err error) {
	if c.once {
		if err != nil {
			c.end(nil, err)
		}
		return
	}
	c.w.sim.After(wait, func() {
		if !c.ended && !c.env.Dead() {
			c.send()
		}
	})
}

// retransmit is what TCP does while the way is cut.
func (c *rpc) retransmit() {
	c.w.sim.After(200*ms, func() {
		if !c.ended && !c.env.Dead() {
			c.send()
		}
	})
}

func (c *rpc) send() {
	w, m := c.w, c.w.mds
	to := m.leader
	w.sim.After(w.delay(), func() {
		switch {
		case c.ended || c.env.Dead():
		case w.net.IsCut(c.ip, m.ips[to]):
			c.retransmit()
		case !m.sim.Leading() || m.leader != to:
			c.again(20*ms, dataplane.E(control.OpName(c.op), dataplane.NotLeader, nil))
		default:
			m.sim.Handle(c.role, c.peer, c.id, c.op, c.req, func(payload []byte, err error) {
				c.answered(to, payload, err)
			})
		}
	})
}

func (c *rpc) answered(from int, payload []byte, err error) {
	w := c.w
	w.sim.After(w.delay(), func() {
		switch kind := dataplane.KindOf(err); {
		case c.ended || c.env.Dead():
		case w.net.IsCut(w.mds.ips[from], c.ip):
			c.w.sim.After(200*ms, func() { c.answered(from, payload, err) })
		case kind == dataplane.NotLeader || kind == dataplane.Closed ||
			err != nil && kind == dataplane.Internal:
			c.again(20*ms, dataplane.E(control.OpName(c.op), dataplane.NotLeader, nil))
		default:
			c.end(payload, err)
		}
	})
}

// push delivers what the leader sends by itself, or not.
func (m *metaServers) push(instance uint64, op dataplane.Opcode, payload []byte) {
	n, from := m.procs[instance], m.ips[m.leader]
	if op == control.OpMapChanged {
		m.tellClient(instance, from, op, payload)
		return
	}
	m.w.sim.After(m.w.delay(), func() {
		if n != nil && n.instance == instance && !n.env.Dead() && !m.w.net.IsCut(from, n.ip) {
			n.pushed(op, payload)
		}
	})
}

// tellClient brings a push to a client's process, if that still lives: soon, and now and then once
// more much later, when it may be of no use any more.
func (m *metaServers) tellClient(peer uint64, from string, op dataplane.Opcode, payload []byte) {
	tell := func() {
		for _, c := range m.w.cl {
			if c.peer == peer && !c.env.Dead() && !m.w.net.IsCut(from, c.ip) {
				c.pushed(op, payload)
			}
		}
	}
	m.w.sim.After(m.w.delay(), tell)
	if m.w.between(0, 4) == 0 {
		m.w.sim.After(m.w.between(100*ms, 5*sec), tell)
	}
}

// gone tells the leader that a process's connection was reset.
func (m *metaServers) gone(ip string, instance uint64) {
	m.w.sim.After(m.w.delay(), func() {
		if !m.w.net.IsCut(ip, m.ips[m.leader]) {
			m.sim.Gone(instance)
		}
	})
}

// applied checks what the metadata servers committed: I3 and I4.
func (w *world) applied() {
	for _, c := range w.mds.sim.Chunks() {
		w.prefixes(c.Chunk)
		old, known := w.configs[c.Chunk]
		w.configs[c.Chunk] = c
		if !known {
			continue
		}
		same := len(old.Members) == len(c.Members)
		for i := 0; same && i < len(c.Members); i++ {
			same = old.Members[i].CS == c.Members[i].CS
		}
		// An addition whose outcome its head doesn't know is called off by an epoch of its own.
		calledOff := same && c.Epoch == old.Epoch+1 && w.recovered[c.Chunk]
		if same != (old.Epoch == c.Epoch) && !calledOff || c.Epoch > old.Epoch+1 || c.Epoch < old.Epoch {
			w.violate("chunk %v: epoch %d with %v became %d with %v", c.Chunk, old.Epoch, old.Members,
				c.Epoch, c.Members)
		}
		if same {
			continue
		}
		w.trace("chunk %v: epoch %d, members %v", c.Chunk, c.Epoch, c.Members)
		w.strand.moved(w, &old, &c)
		for _, m := range old.Members {
			if !hasMember(&c, m.CS) {
				w.excluded(&c, m.CS)
			}
		}
	}
}

// excluded checks that a member doesn't serve a chunk any more from which it is being excluded.
func (w *world) excluded(c *control.ChunkConfig, id dataplane.CSID) {
	n := w.cs[id-1]
	n.excluded = true
	if n.onExcluded != nil {
		n.onExcluded()
	}
	if n.shard == nil || n.env.Dead() || !n.shard.Leased() {
		return
	}
	if r, ok := n.shard.SimReplica(c.Chunk); ok && r.Active {
		w.violate("I4: cs %d is excluded from chunk %v while it has a lease and serves it", id, c.Chunk)
	}
}

func hasMember(c *control.ChunkConfig, id dataplane.CSID) bool {
	for _, m := range c.Members {
		if m.CS == id {
			return true
		}
	}
	return false
}
