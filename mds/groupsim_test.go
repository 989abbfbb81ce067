package mds

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/perf"
	"pstorage/perf/history"
)

// simGroup is a group of whole metadata servers in a bubble of virtual time: raft, log on disk,
// state machine and handlers are the real ones; messages between them can be cut in each
// direction, a server can be stopped, and its clock can be fast or slow.
type simGroup struct {
	t     *testing.T
	rng   *rand.Rand
	dirs  []string
	drift []float64 // of each server's clock: its timeouts are that much longer
	wrong canary    // what is deliberately wrong
	late  bool      // messages take a while

	mu    sync.Mutex // guards what follows
	nodes []*simNode
	cut   [][]bool // cut[a][b]: nothing gets from a to b
}

// simNode is a running server.
type simNode struct {
	s      *server
	trans  *raft.InmemTransport
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	calls  sync.WaitGroup // requests being handled
	// awake is closed while the server isn't stopped. Requests to a stopped one wait, and are
	// handled by what it believed when it was stopped: then led is its leadership.
	awake chan struct{}
	led   *leader
}

var simCred = session.Credentials{Cluster: dataplane.ClusterID{7}, ClusterName: "sim",
	Role: dataplane.RoleMDS, ID: 1}

func simAddr(i int) raft.ServerAddress {
	return raft.ServerAddress(fmt.Sprint("10.0.0.", i+1, ":1"))
}

func newSimGroup(t *testing.T, rng *rand.Rand, n int, wrong canary) *simGroup {
	g := &simGroup{t: t, rng: rng, nodes: make([]*simNode, n), cut: make([][]bool, n),
		wrong: wrong, late: rng.IntN(2) == 0}
	var peers []Peer
	for i := range n {
		peers = append(peers, Peer{uint32(i + 1), string(simAddr(i))})
		g.cut[i] = make([]bool, n)
		g.drift = append(g.drift, []float64{0.5, 0.7, 1, 1.4, 2}[rng.IntN(5)])
	}
	for i := range n {
		dir := filepath.Join(simDir(t), "mds")
		g.dirs = append(g.dirs, dir)
		if err := Format(dir, FormatOptions{Cluster: simCred.Cluster, ClusterName: "sim",
			Addr: peers[i].Addr, Node: peers[i].Node, Peers: peers}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		g.start(i)
	}
	return g
}

// simDir returns a directory for a server, in memory if there is such a file system: nobody loses
// power here, and writing to a disk would take most of the time.
func simDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "pstorage-mds-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// lateLinks carries a server's messages to the others, each after a while.
type lateLinks struct {
	*raft.InmemTransport
	delay func() time.Duration
}

// AppendEntries implements raft.Transport.
func (l *lateLinks) AppendEntries(id raft.ServerID, target raft.ServerAddress,
	req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	time.Sleep(l.delay())
	return l.InmemTransport.AppendEntries(id, target, req, resp)
}

// AppendEntriesPipeline implements raft.Transport: one message at a time.
func (l *lateLinks) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (
	raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// maxDelay is the longest that a message of a late link takes.
const maxDelay = 30 * time.Millisecond

// links returns how server i's messages are carried: in half of the groups at once.
func (g *simGroup) links(trans *raft.InmemTransport) groupTransport {
	if !g.late {
		return trans
	}
	return &lateLinks{trans, func() time.Duration {
		return time.Duration(rand.Int64N(int64(maxDelay)))
	}}
}

// start starts server i.
func (g *simGroup) start(i int) {
	_, trans := raft.NewInmemTransport(simAddr(i))
	tune := func(c *raft.Config) {
		slow := func(d *time.Duration) { *d = time.Duration(float64(*d) * g.drift[i]) }
		slow(&c.HeartbeatTimeout)
		slow(&c.ElectionTimeout)
		slow(&c.LeaderLeaseTimeout)
		slow(&c.CommitTimeout)
		eagerSnapshots(c)
	}
	log := testLog().With("node", i+1)
	r, err := startReplicaOn(g.links(trans), newStreamLayer(string(simAddr(i)), &simCred),
		filepath.Join(g.dirs[i], raftDir), uint32(i+1), log, tune)
	if err != nil {
		g.t.Fatal(err)
	}
	r.canary = g.wrong
	ctx, cancel := context.WithCancel(context.Background())
	n := &simNode{s: &server{r: r, log: log}, trans: trans, ctx: ctx, cancel: cancel,
		done: make(chan struct{}), awake: make(chan struct{})}
	close(n.awake)
	go func() {
		defer close(n.done)
		n.s.watchLeadership(ctx, nil)
	}()
	g.mu.Lock()
	g.nodes[i] = n
	g.mu.Unlock()
	g.connect()
}

// connect makes the links what cut says.
func (g *simGroup) connect() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for a, from := range g.nodes {
		for b, to := range g.nodes {
			switch {
			case from == nil || a == b:
			case to == nil || g.cut[a][b]:
				from.trans.Disconnect(simAddr(b))
			default:
				from.trans.Connect(simAddr(b), to.trans)
			}
		}
	}
}

// stop ends server i in an orderly way.
func (g *simGroup) stop(i int) {
	g.mu.Lock()
	n := g.nodes[i]
	g.nodes[i] = nil
	g.mu.Unlock()
	g.connect()
	n.cancel()
	<-n.done
	n.calls.Wait()
	time.Sleep(2 * time.Second) // what was asked of raft is answered
	if err := n.s.r.shutdown(); err != nil {
		g.t.Error(err)
	}
}

func (g *simGroup) setCut(f func(a, b int) bool) {
	g.mu.Lock()
	for a := range g.cut {
		for b := range g.cut {
			g.cut[a][b] = a != b && f(a, b)
		}
	}
	g.mu.Unlock()
	g.connect()
}

// pause stops server i, as SIGSTOP would for whoever asks it; resume lets it go on.
func (g *simGroup) pause(i int) (resume func()) {
	g.mu.Lock()
	n := g.nodes[i]
	n.awake, n.led = make(chan struct{}), n.s.lead.Load()
	g.mu.Unlock()
	return func() { close(n.awake) }
}

func (g *simGroup) leader() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.IndexFunc(g.nodes, func(n *simNode) bool {
		return n != nil && n.s.lead.Load() != nil
	})
}

// simClient is a client of the group: it repeats a request at one server after the other.
type simClient struct {
	g    *simGroup
	peer *control.Peer
	req  uint64
	at   int
	// astray says whether the next request goes to any server first, perhaps to one that led and
	// doesn't know yet that it was replaced; nil: never.
	astray func() bool
}

func (g *simGroup) client(role dataplane.Role, id uint64) *simClient {
	return &simClient{g: g, req: id << 32, peer: control.SimPeer(session.Peer{Role: role, ID: id},
		func(dataplane.Opcode, []byte) error { return nil })}
}

// simPatience is how long a client waits for one server.
const simPatience = 150 * time.Millisecond

func (k *simClient) call(ctx context.Context, op dataplane.Opcode, req, reply any) error {
	k.req++
	if k.astray != nil && k.astray() {
		k.at++
	}
	payload := control.Marshal(req)
	for ctx.Err() == nil {
		answer, err := k.try(ctx, op, payload)
		var elsewhere interface{ LeaderAddr() string }
		switch kind := dataplane.KindOf(err); {
		case errors.As(err, &elsewhere), kind == dataplane.TimedOut, kind == dataplane.Closed,
			kind == dataplane.Overloaded, errors.Is(err, context.DeadlineExceeded):
			k.at++
			if k.g.wrong == canaryForgetful {
				k.req++
			}
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if err == nil && reply != nil {
			err = control.Unmarshal(control.Marshal(answer), reply)
		}
		return err
	}
	return ctx.Err()
}

// try asks one server. An answer that comes too late is lost.
func (k *simClient) try(ctx context.Context, op dataplane.Opcode, payload []byte) (any, error) {
	k.g.mu.Lock()
	n := k.g.nodes[k.at%len(k.g.nodes)]
	if n != nil {
		n.calls.Add(1)
	}
	k.g.mu.Unlock()
	if n == nil {
		return nil, context.DeadlineExceeded
	}
	type outcome struct {
		answer any
		err    error
	}
	done, reqID := make(chan outcome, 1), k.req
	h, ok := handlers[op]
	assert(ok, "a request that servers know", op)
	go func() {
		defer n.calls.Done()
		k.g.mu.Lock()
		awake, l := n.awake, n.led
		k.g.mu.Unlock()
		select {
		case <-awake:
			l = n.s.lead.Load()
		default:
		}
		<-awake
		answer, err := n.s.handleBy(n.ctx, l, h, k.peer, reqID, op, payload)
		done <- outcome{answer, err}
	}()
	select {
	case o := <-done:
		return o.answer, o.err
	case <-time.After(simPatience):
		return nil, context.DeadlineExceeded
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// serveCS plays a chunk server until ctx ends.
func (g *simGroup) serveCS(ctx context.Context, n byte) {
	k := g.client(dataplane.RoleCS, 1000+uint64(n))
	reg := control.RegisterCSReq{Disk: [16]byte{n}, Boot: 1, Addr: fmt.Sprintf("10.1.0.%d:1", n),
		Host: fmt.Sprint("host", n), Path: "/cs", Capacity: 1000 * dataplane.ChunkSize,
		Instance: uint64(n)<<8 + 1}
	for ctx.Err() == nil {
		var r control.RegisterCSReply
		err := k.call(ctx, control.OpRegisterCS, &reg, &r)
		for err == nil && ctx.Err() == nil {
			reg.CS = r.CS
			time.Sleep(dataplane.HeartbeatEvery)
			err = k.call(ctx, control.OpHeartbeat, &control.HeartbeatReq{CS: r.CS, Boot: 1,
				Capacity: reg.Capacity, Instance: reg.Instance}, &control.HeartbeatReply{})
		}
	}
}

// disturb does one thing to the group, for a while, and says what.
func (g *simGroup) disturb() string {
	n := len(g.nodes)
	one := g.rng.IntN(n)
	if l := g.leader(); l >= 0 && g.rng.IntN(2) == 0 {
		one = l
	}
	wait := time.Duration(g.rng.IntN(4000)) * time.Millisecond
	defer time.Sleep(time.Duration(g.rng.IntN(1500)) * time.Millisecond)
	what := ""
	switch g.rng.IntN(6) {
	case 0:
		what = fmt.Sprintf("server %d cut off", one+1)
		g.setCut(func(a, b int) bool { return a == one || b == one })
	case 1:
		what = fmt.Sprintf("nothing comes from server %d", one+1)
		g.setCut(func(a, b int) bool { return a == one })
	case 2:
		what = fmt.Sprintf("nothing reaches server %d", one+1)
		g.setCut(func(a, b int) bool { return b == one })
	case 3:
		other := (one + 1) % n
		what = fmt.Sprintf("link %d-%d cut", one+1, other+1)
		g.setCut(func(a, b int) bool { return a == one && b == other || a == other && b == one })
	case 4:
		what = fmt.Sprintf("server %d stopped", one+1)
		g.setCut(func(a, b int) bool { return a == one || b == one })
		defer g.pause(one)()
	case 5:
		what = fmt.Sprintf("server %d restarted", one+1)
		g.stop(one)
		time.Sleep(wait)
		g.start(one)
		return what
	}
	time.Sleep(wait)
	g.setCut(func(a, b int) bool { return false })
	return what
}

// TestGroupLinearizable runs groups of servers through partitions, one-way cuts, stops, restarts
// and drifting clocks, and checks all that clients saw: there must be an order of all operations
// on names and chunk maps, one after the other, that explains it.
func TestGroupLinearizable(t *testing.T) {
	rounds := 4
	if testing.Short() {
		rounds = 1
	}
	if long() {
		rounds = 100
	}
	rng := testRand(t)
	for round := range rounds {
		seed := rng.Uint64()
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, wrong := range simulateGroup(t, rand.New(rand.NewPCG(seed, 1)), canaryNone) {
					t.Error(wrong)
				}
			})
		})
	}
}

// TestGroupCanary says that the faults and the check can find something: each deliberate fault is
// found.
func TestGroupCanary(t *testing.T) {
	for _, c := range []struct {
		what  string
		wrong canary
		short bool // found within seconds
	}{
		{"requests that were carried out twice", canaryForgetful, true},
		{"reads answered by leaders that were replaced", canaryUnverified, true},
		{"reads of what isn't applied yet", canaryHasty, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			if testing.Short() && !c.short {
				t.Skip("takes half a minute")
			}
			rng := testRand(t)
			for round := range canaryRounds {
				seed, found := rng.Uint64(), false
				synctest.Test(t, func(t *testing.T) {
					found = len(simulateGroup(t, rand.New(rand.NewPCG(seed, 1)), c.wrong)) > 0
				})
				if found {
					t.Logf("found in round %d", round)
					return
				}
			}
			t.Errorf("not found in %d rounds", canaryRounds)
		})
	}
}

// canaryRounds is how many groups may run until a fault is found.
const canaryRounds = 100

// simulateGroup returns what is wrong with the histories.
func simulateGroup(t *testing.T, rng *rand.Rand, fault canary) (wrong []string) {
	const clients, dirs, steps = 5, 12, 24
	g := newSimGroup(t, rng, 3+2*rng.IntN(2), fault)
	began := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	var servers, load sync.WaitGroup
	for n := range byte(4) {
		servers.Go(func() { g.serveCS(ctx, n+1) })
	}
	admin := g.client(dataplane.RoleClient, 1)
	var loads []*perf.MetaLoad // one after the other per directory
	for d := range dirs {
		var a control.Attr
		if err := admin.call(ctx, control.OpCreate, &control.CreateReq{Parent: dataplane.RootID,
			Name: fmt.Sprint("dir", d), Type: control.TypeDir, Mode: 0o755}, &a); err != nil {
			t.Fatal(err)
		}
		for c := range clients {
			loads = append(loads, &perf.MetaLoad{Dir: a.File, Client: c,
				Rand: rand.New(rand.NewPCG(rng.Uint64(), uint64(c))),
				Now:  func() int64 { return int64(time.Since(began)) }})
		}
	}
	for c := range clients {
		k := g.client(dataplane.RoleClient, 10+uint64(c))
		stray := rand.New(rand.NewPCG(rng.Uint64(), 2))
		k.astray = func() bool { return stray.IntN(4) == 0 }
		load.Go(func() {
			for d := range dirs {
				m := loads[d*clients+c]
				m.Call = k.call
				for range steps {
					if err := m.Step(ctx); err != nil {
						t.Error(err)
						return
					}
					time.Sleep(time.Duration(m.Rand.IntN(100)) * time.Millisecond)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { load.Wait(); close(done) }()
	faults := 0
	for over := false; !over; faults++ {
		t.Logf("%7.3f s: %s", time.Since(began).Seconds(), g.disturb())
		select {
		case <-done:
			over = true
		default:
		}
	}
	for d := range dirs {
		var ops []history.MetaOp
		for _, m := range loads[d*clients : (d+1)*clients] {
			ops = append(ops, m.Ops...)
		}
		if len(ops) < clients*steps/2 {
			t.Fatalf("%d operations in directory %d", len(ops), d)
		}
		if text, _ := history.CheckMeta(ops, 0); text != "" {
			wrong = append(wrong, fmt.Sprintf("directory %d: %s", d, text))
		}
	}
	t.Logf("%d servers, %d faults, %d operations in %v", len(g.nodes), faults,
		dirs*clients*steps, time.Since(began))
	cancel()
	servers.Wait()
	for i := range g.nodes {
		g.stop(i)
	}
	synctest.Wait()
	return wrong
}
