package nettest

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pstorage/dataplane/control"
	"pstorage/perf/netlab"
)

// scene is the cluster under load, and what faults choose their victims with.
type scene struct {
	*testCluster
	rng  *rand.Rand
	load []*loader

	files  []string
	ids    map[uint32]*server // chunk servers
	chunks [][]uint32         // the members of each chunk, now: the head first
	heads  []map[uint32]int   // of the chunks of each client's file, and of how many
}

// fault is something that goes wrong for a while.
type fault struct {
	name   string
	sample bool          // a part of the short form
	hold   time.Duration // from injecting to mending
	goals  goals
	// inject makes it go wrong and returns what mends it, after having checked that it fired.
	inject func(s *scene) (mend func() error, err error)
}

// goals are what is wanted of a fault; 0: nothing.
type goals struct {
	write, readP99, meta time.Duration
	noCopy               bool // nothing is copied for it
}

// hostLost is what is wanted when a server is silent without a sign.
var hostLost = goals{write: 4 * time.Second, readP99: 100 * time.Millisecond}

// linkLost is what is wanted when both ends of a link can still be reached by all others.
var linkLost = hostLost

// faults are all faults, in the order of the test.
func faults() []fault {
	return []fault{
		{"kill -9 of a CS", true, time.Second, goals{write: 500 * time.Millisecond, noCopy: true},
			killChild},
		{"kill -9 of a CS and its supervisor", true, 5 * time.Second, goals{}, killSupervisor},
		{"kill -9 of the MDS leader", true, 3 * time.Second,
			goals{write: 250 * time.Millisecond, meta: 2500 * time.Millisecond}, killLeader},
		{"a CS cut from all", true, 6 * time.Second, hostLost, isolate(pickCS, true, true)},
		{"nothing reaches a CS", true, 6 * time.Second, hostLost, isolate(pickCS, false, true)},
		{"nothing comes from a CS", false, 6 * time.Second, hostLost, isolate(pickCS, true, false)},
		{"the MDS leader cut from all", false, 6 * time.Second, hostLost,
			isolate((*scene).leader, true, true)},
		{"link of two CS cut", true, 6 * time.Second, linkLost, cutPair},
		{"link of a client and a head that all others reach cut", true, 8 * time.Second, linkLost,
			cutHead(true, true)},
		{"nothing comes from a head to a client", false, 8 * time.Second, linkLost, cutHead(true, false)},
		{"link of a client and the MDS leader cut", false, 10 * time.Second,
			goals{write: 250 * time.Millisecond, readP99: 100 * time.Millisecond, meta: 6 * time.Second},
			cutLeader(func(s *scene) *netlab.Node { return s.clients[s.rng.IntN(len(s.clients))] })},
		{"link of a CS and the MDS leader cut", false, 10 * time.Second, hostLost,
			cutLeader(func(s *scene) *netlab.Node { return s.cs[s.rng.IntN(len(s.cs))].node })},
		{"links cut one by one, also one way, and healed in another order", true, time.Second, goals{},
			cutMany(6)},
		{"three groups that can't reach each other", false, 6 * time.Second, goals{}, cutGroups},
		{"a CS stopped with SIGSTOP", true, 5 * time.Second, hostLost, stopChild},
		{"a CS stopped for 30 s", false, 30 * time.Second, hostLost, stopChild},
		{"kill -9 of all servers at once", true, time.Second, goals{}, killAll},
	}
}

func pickCS(s *scene) (*server, error) { return s.cs[s.rng.IntN(len(s.cs))], nil }

// killChild kills one chunk server; its supervisor starts it again.
func killChild(s *scene) (func() error, error) {
	cs, _ := pickCS(s)
	pid, err := cs.child()
	if err != nil {
		return nil, err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return nil, err
	}
	return func() error {
		again, err := cs.child()
		if err == nil && again == pid {
			err = fmt.Errorf("%s still has the child %d", cs.name, pid)
		}
		return err
	}, nil
}

// killSupervisor kills a node's chunk server with its supervisor: nobody certifies the exit.
func killSupervisor(s *scene) (func() error, error) {
	cs, _ := pickCS(s)
	return func() error { s.start(cs); return nil }, cs.kill()
}

func killLeader(s *scene) (func() error, error) {
	m, err := s.leader()
	if err != nil {
		return nil, err
	}
	return func() error { s.start(m); return nil }, m.kill()
}

// leader hides the cluster's: choosers of victims know the scene.
func (s *scene) leader() (*server, error) { return s.testCluster.leader() }

// stopChild stops a chunk server's process; its connections stay open.
func stopChild(s *scene) (func() error, error) {
	cs, _ := pickCS(s)
	pid, err := cs.child()
	if err != nil {
		return nil, err
	}
	return stop(cs.name, pid)
}

// stop stops a process of a server; mending checks that it was stopped.
func stop(name string, pid int) (func() error, error) {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return nil, err
	}
	return func() error {
		state, err := processState(pid)
		if err == nil && state != "T" {
			err = fmt.Errorf("%s was to be stopped, its state was %s", name, state)
		}
		return errors.Join(err, syscall.Kill(pid, syscall.SIGCONT))
	}, nil
}

// processState is the letter that /proc has for a process.
func processState(pid int) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	m := regexp.MustCompile(`\) (\w) `).FindSubmatch(text)
	if m == nil {
		return "", fmt.Errorf("process %d: %q", pid, text)
	}
	return string(m[1]), nil
}

func killAll(s *scene) (func() error, error) {
	all := slices.Concat(s.mds, s.cs)
	var errs []error
	for _, v := range all {
		errs = append(errs, v.cmd.Process.Kill())
	}
	for _, v := range all {
		<-v.exited
	}
	return func() error {
		for _, v := range all {
			s.start(v)
		}
		return nil
	}, errors.Join(errs...)
}

// nodes are all nodes.
func (s *scene) nodes() []*netlab.Node {
	all := slices.Clone(s.clients)
	for _, v := range slices.Concat(s.mds, s.cs) {
		all = append(all, v.node)
	}
	return all
}

// cut cuts links; mending checks that packets vanished, and heals in random order.
func (s *scene) cut(cuts []netlab.Cut) (func() error, error) {
	before, err := lost(cuts)
	if err != nil {
		return nil, err
	}
	if err := s.lab.Cut(cuts...); err != nil {
		return nil, err
	}
	return func() error {
		after, err := lost(cuts)
		if err == nil && after <= before {
			err = fmt.Errorf("no packet vanished on %v", cuts)
		}
		s.rng.Shuffle(len(cuts), func(i, j int) { cuts[i], cuts[j] = cuts[j], cuts[i] })
		return errors.Join(err, s.lab.Heal(cuts...))
	}, nil
}

// lost counts packets that vanished on the way to the ends of cuts.
func lost(cuts []netlab.Cut) (uint64, error) {
	var sum uint64
	seen := map[*netlab.Node]bool{}
	for _, c := range cuts {
		if seen[c.To] {
			continue
		}
		seen[c.To] = true
		n, err := c.To.Lost()
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// isolate cuts a server from all others: what it sends (from), what it is sent (to), or both.
func isolate(pick func(*scene) (*server, error), from, to bool) func(*scene) (func() error, error) {
	return func(s *scene) (func() error, error) {
		victim, err := pick(s)
		if err != nil {
			return nil, err
		}
		var cuts []netlab.Cut
		for _, n := range s.nodes() {
			if n == victim.node {
				continue
			}
			if from {
				cuts = append(cuts, netlab.Cut{From: victim.node, To: n})
			}
			if to {
				cuts = append(cuts, netlab.Cut{From: n, To: victim.node})
			}
		}
		return s.cut(cuts)
	}
}

// cutPair cuts the link of a chunk's head and another member of it.
func cutPair(s *scene) (func() error, error) {
	c := s.chunks[s.rng.IntN(len(s.chunks))]
	a, b := s.ids[c[0]], s.ids[c[1+s.rng.IntN(len(c)-1)]]
	if a == nil || b == nil {
		return nil, fmt.Errorf("no server has the id of a member: %v", c)
	}
	return s.cut(netlab.Both(a.node, b.node))
}

// learnChunks asks for the members of all chunks of the clients' files.
func (s *scene) learnChunks(files []string) error {
	stat, err := s.stat()
	if err != nil {
		return err
	}
	s.ids = map[uint32]*server{}
	for _, d := range stat.CS {
		for _, v := range s.cs {
			if strings.HasPrefix(d.Addr, v.node.Addr()+":") {
				s.ids[d.ID] = v
			}
		}
	}
	n := s.clients[0]
	s.chunks, s.heads = nil, nil
	for _, file := range files {
		heads := map[uint32]int{}
		s.heads = append(s.heads, heads)
		cmd := s.command(n, "pstorage", "-c", clusterName, "file-info", file, "-o", "json")
		out, err := output(n, cmd)
		if err != nil {
			return err
		}
		var doc control.FileInfoDoc
		if err := json.Unmarshal(out, &doc); err != nil {
			return err
		}
		for _, c := range doc.List {
			if len(c.Members) > 1 {
				s.chunks = append(s.chunks, c.Members)
				heads[c.Members[0]]++
			}
		}
	}
	if len(s.chunks) == 0 {
		return errors.New("the clients' files have no chunks with copies")
	}
	return nil
}

// cutHead cuts the link of a client and the server that is the head of most of the chunks that it
// writes: what the server sends (from), what it is sent (to), or both.
func cutHead(from, to bool) func(*scene) (func() error, error) {
	return func(s *scene) (func() error, error) {
		i := s.rng.IntN(len(s.clients))
		most := uint32(0)
		for id, n := range s.heads[i] {
			if best := s.heads[i][most]; n > best || n == best && id < most {
				most = id
			}
		}
		head := s.ids[most]
		if head == nil {
			return nil, fmt.Errorf("no server is the head of a chunk of client %d: %v", i+1, s.heads)
		}
		var cuts []netlab.Cut
		if from {
			cuts = append(cuts, netlab.Cut{From: head.node, To: s.clients[i]})
		}
		if to {
			cuts = append(cuts, netlab.Cut{From: s.clients[i], To: head.node})
		}
		return s.cut(cuts)
	}
}

// cutLeader cuts the link of a node and the leader of the metadata servers, which reach all others.
func cutLeader(pick func(*scene) *netlab.Node) func(*scene) (func() error, error) {
	return func(s *scene) (func() error, error) {
		m, err := s.leader()
		if err != nil {
			return nil, err
		}
		return s.cut(netlab.Both(pick(s), m.node))
	}
}

// cutMany cuts n links one after the other, half of them one way only, and heals them in random
// order, 300 ms apart.
func cutMany(n int) func(*scene) (func() error, error) {
	const apart = 300 * time.Millisecond
	return func(s *scene) (func() error, error) {
		all := s.nodes()
		var steps [][]netlab.Cut
		for len(steps) < n {
			i, j := s.rng.IntN(len(all)), s.rng.IntN(len(all))
			if i == j {
				continue
			}
			step := []netlab.Cut{{From: all[i], To: all[j]}}
			if s.rng.IntN(2) == 0 {
				step = netlab.Both(all[i], all[j])
			}
			if err := s.lab.Cut(step...); err != nil {
				return nil, err
			}
			steps = append(steps, step)
			time.Sleep(apart)
		}
		return func() error {
			vanished, err := lost(slices.Concat(steps...))
			if err == nil && vanished == 0 {
				err = fmt.Errorf("no packet vanished on %v", steps)
			}
			s.rng.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
			for _, step := range steps {
				err = errors.Join(err, s.lab.Heal(step...))
				time.Sleep(apart)
			}
			return errors.Join(err, s.lab.HealAll()) // a link may have been cut twice
		}, nil
	}
}

// cutGroups makes three groups of nodes.
func cutGroups(s *scene) (func() error, error) {
	all := s.nodes()
	s.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	var cuts []netlab.Cut
	for i, a := range all {
		for j, b := range all {
			if i%3 != j%3 {
				cuts = append(cuts, netlab.Cut{From: a, To: b})
			}
		}
	}
	return s.cut(cuts)
}

// seedOf is the seed of this run: chosen, or by the clock.
func seedOf(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano()) % 1e9
	if text := os.Getenv("PSTORAGE_NET_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal("PSTORAGE_NET_SEED: ", err)
		}
	}
	t.Logf("seed %d (again: PSTORAGE_NET_SEED=%d make test-net)", seed, seed)
	return seed
}

// repeatOf is how often each fault is to happen: PSTORAGE_NET_REPEAT, or once.
func repeatOf(t *testing.T) int {
	text := os.Getenv("PSTORAGE_NET_REPEAT")
	if text == "" {
		return 1
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("PSTORAGE_NET_REPEAT=%q: a number from 1 on is needed", text)
	}
	return n
}

// TestFaults runs the faults one after the other under load and checks all histories at the end.
// PSTORAGE_NET_FAULTS is a pattern that chooses some of them, PSTORAGE_NET_REPEAT how often each
// happens.
func TestFaults(t *testing.T) {
	needs(t)
	choice, err := regexp.Compile(os.Getenv("PSTORAGE_NET_FAULTS"))
	if err != nil {
		t.Fatal("PSTORAGE_NET_FAULTS: ", err)
	}
	seed := seedOf(t)
	c := newCluster(t, "faults", 3, 6, 2)
	s := &scene{testCluster: c, rng: rand.New(rand.NewPCG(seed, 1))}
	mnt := c.mount(c.clients[1])
	s.files = c.registerFiles(mnt)
	s.load = c.startLoad(s.files, seed)
	fio := c.startFio(c.clients[1], mnt, seed)
	var done []window
	for _, f := range faults() {
		if testing.Short() && !f.sample || !choice.MatchString(f.name) {
			continue
		}
		for range repeatOf(t) {
			done = append(done, s.suffer(f))
		}
	}
	if len(done) == 0 {
		t.Fatal("no fault has been chosen")
	}
	if err := fio.finish(); err != nil {
		t.Error(err)
	}
	t.Logf("fio: %d runs with verification", fio.runs)
	events := c.finish(s.load)
	judge(t, events)
	report(t, events, done)
}

// suffer has one fault happen and waits until it is over.
func (s *scene) suffer(f fault) window {
	s.t.Helper()
	s.await(healWithin, "the cluster is healthy before: "+f.name, s.up)
	s.progress(s.load)
	s.must(s.learnChunks(s.files))
	w := window{fault: f, begin: now()}
	counter, before := s.copied()
	mend, err := f.inject(s)
	if err != nil {
		s.t.Fatalf("%s: %v", f.name, err)
	}
	time.Sleep(f.hold)
	w.mended = now()
	if err := mend(); err != nil {
		s.t.Fatalf("%s: %v", f.name, err)
	}
	s.progress(s.load)
	s.await(healWithin, "the cluster is healthy after: "+f.name, s.up)
	w.end = now()
	if who, after := s.copied(); who == counter {
		w.copied = after - before
	}
	s.t.Logf("%s: healthy %.1f s after its end", f.name, float64(w.end-w.mended)/1e9)
	return w
}

// copied is how many chunks the leader of now has had copied, and who that is: each counts its own.
func (s *scene) copied() (leader string, n int64) {
	doc, err := s.stat()
	s.must(err)
	for _, m := range doc.MDS {
		if m.Leader {
			leader = m.Addr
		}
	}
	return leader, int64(doc.Chunks.Recovered)
}
