package nettest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
	"pstorage/perf"
	"pstorage/perf/history"
	"pstorage/perf/netlab"
)

// metaEnv makes the test's binary a client of the metadata servers: its value is a metaRole in
// JSON.
const metaEnv = "PSTORAGE_NETTEST_META"

// metaRole says what such a client does. It ends when its standard input does.
type metaRole struct {
	Etc     string
	Number  int
	Seed    uint64
	Began   int64  // by now()
	History string // where what happened is written to, at the end
}

const (
	metaWorkers = 4                      // of each client
	metaDirLife = 500 * time.Millisecond // all clients work in one directory for so long
	metaAnswer  = 30 * time.Second       // no operation may take longer
)

// dirHistory is what one worker did in one directory.
type dirHistory struct {
	Dir int64
	Ops []history.MetaOp
}

// run is such a client's process.
func (r *metaRole) run() error {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	conf, err := cluster.Choose(r.Etc, clusterName)
	if err != nil {
		return err
	}
	cred, err := conf.Credentials(dataplane.RoleClient, 0)
	if err != nil {
		return err
	}
	k, err := control.Dial(context.Background(), control.Options{Cred: &cred, Addrs: conf.BSOrNone})
	if err != nil {
		return err
	}
	defer k.Close()
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // whatever ends it
		stop()
	}()
	all := make([][]dirHistory, metaWorkers)
	errs := make([]error, metaWorkers)
	var work sync.WaitGroup
	for w := range metaWorkers {
		work.Go(func() { all[w], errs[w] = r.work(ctx, k, w) })
	}
	work.Wait()
	b, err := json.Marshal(slices.Concat(all...))
	if err == nil {
		err = os.WriteFile(r.History, b, 0o600)
	}
	return errors.Join(append(errs, err)...)
}

// work does operations until ctx ends, in the directory of the moment.
func (r *metaRole) work(ctx context.Context, k *control.Client, w int) (done []dirHistory,
	err error) {
	call := func(_ context.Context, op dataplane.Opcode, req, reply any) error {
		ctx, cancel := context.WithTimeout(context.Background(), metaAnswer)
		defer cancel()
		if reply == nil {
			reply = &control.Empty{}
		}
		return k.Call(ctx, op, req, reply)
	}
	rng := rand.New(rand.NewPCG(r.Seed, uint64(w)))
	for ctx.Err() == nil {
		number := (now() - r.Began) / int64(metaDirLife)
		var dir control.Attr
		if err := call(ctx, control.OpCreate, &control.CreateReq{Parent: dataplane.RootID,
			Name: fmt.Sprint("meta", number), Type: control.TypeDir, Mode: 0o755}, &dir); err != nil {
			return done, err
		}
		m := perf.MetaLoad{Dir: dir.File, Client: r.Number*metaWorkers + w, Rand: rng, Call: call,
			Now: now}
		for ctx.Err() == nil && (now()-r.Began)/int64(metaDirLife) == number {
			if err := m.Step(ctx); err != nil {
				return done, err
			}
			time.Sleep(metaPace)
		}
		done = append(done, dirHistory{number, m.Ops})
	}
	return done, nil
}

// metaClient is a running client.
type metaClient struct {
	cmd     *exec.Cmd
	in      io.Closer
	history string
}

// startMeta starts clients of the metadata servers, one on each client's node.
func (c *testCluster) startMeta(seed uint64) (all []*metaClient) {
	c.t.Helper()
	began := now()
	for i, n := range c.clients {
		m := &metaClient{history: filepath.Join(c.dir, fmt.Sprint("meta", i))}
		role, err := json.Marshal(metaRole{Etc: c.etc(n), Number: i, Seed: seed + uint64(i),
			Began: began, History: m.history})
		c.must(err)
		m.cmd = exec.Command(os.Args[0])
		m.cmd.Env = append(os.Environ(), metaEnv+"="+string(role))
		log, err := os.Create(filepath.Join(c.dir, "log", fmt.Sprint("meta", i)))
		c.must(err)
		defer log.Close()
		m.cmd.Stderr = log
		m.in, err = m.cmd.StdinPipe()
		c.must(err)
		c.must(n.Start(m.cmd))
		all = append(all, m)
	}
	return all
}

// finishMeta ends the clients and returns what was done in each directory.
func (c *testCluster) finishMeta(all []*metaClient) map[int64][]history.MetaOp {
	c.t.Helper()
	dirs := map[int64][]history.MetaOp{}
	for _, m := range all {
		c.must(m.in.Close())
	}
	for _, m := range all {
		if err := m.cmd.Wait(); err != nil {
			c.t.Errorf("a client of the metadata servers: %v; its log says why", err)
			continue
		}
		b, err := os.ReadFile(m.history)
		c.must(err)
		var list []dirHistory
		c.must(json.Unmarshal(b, &list))
		for _, d := range list {
			dirs[d.Dir] = append(dirs[d.Dir], d.Ops...)
		}
	}
	return dirs
}

// judgeMeta checks that there is an order of all operations that explains what was seen.
func judgeMeta(t *testing.T, dirs map[int64][]history.MetaOp) {
	t.Helper()
	ops := 0
	for number, list := range dirs {
		ops += len(list)
		if wrong, unknown := history.CheckMeta(list, time.Minute); wrong != "" || unknown {
			t.Errorf("directory %d isn't linearizable (not found out: %v): %s", number, unknown, wrong)
		}
	}
	t.Logf("%d metadata operations in %d directories checked", ops, len(dirs))
	if ops < 100 {
		t.Error("that is too little to say anything")
	}
}

// firstAnswer is when the first operation returned that was asked for after a moment.
func firstAnswer(dirs map[int64][]history.MetaOp, after int64) int64 {
	first := history.Never
	for _, list := range dirs {
		for i := range list {
			if list[i].Inv > after {
				first = min(first, list[i].Ret)
			}
		}
	}
	return first
}

// leaderKills is how often TestKillLeader kills.
func leaderKills() int {
	if n, err := strconv.Atoi(os.Getenv("PSTORAGE_KILLS")); err == nil {
		return n
	}
	if os.Getenv("PSTORAGE_LONG") == "1" {
		return 100
	}
	return 3
}

// TestKillLeader kills the metadata servers' leader again and again, with -9, under load. No
// acknowledged command may be lost, a new leader must serve within 2 s, and reads and writes of
// chunks that exist must not notice.
func TestKillLeader(t *testing.T) {
	needs(t)
	seed := seedOf(t)
	c := newCluster(t, "leader", 3, 3, 2)
	files := c.registerFiles(c.mount(c.clients[1]))
	load := c.startLoad(files, seed)
	c.progress(load)
	meta := c.startMeta(seed)
	var kills []int64
	for range leaderKills() {
		c.await(healWithin, "the cluster is healthy", c.up)
		c.progress(load)
		m, err := c.leader()
		c.must(err)
		kills = append(kills, now())
		c.must(m.kill())
		c.await(healWithin, "another one leads", func() error {
			other, err := c.leader()
			if err == nil && other == m {
				err = errors.New("not yet")
			}
			return err
		})
		c.start(m)
	}
	c.progress(load)
	dirs, events := c.finishMeta(meta), c.finish(load)
	judgeMeta(t, dirs)
	judge(t, events)
	var serves, writes, reads durations
	for _, at := range kills {
		serves = append(serves, firstAnswer(dirs, at)-at)
		d := during(events, at, at+int64(3*time.Second))
		writes, reads = append(writes, d[kindWrite]...), append(reads, d[kindRead]...)
	}
	slices.Sort(serves)
	t.Logf("%d kills; a new leader answers after %s (median), %s (longest); in the 3 s after a kill "+
		"the longest write took %s, the longest read %s, p99 %s and %s", len(kills),
		ms(time.Duration(serves[len(serves)/2])), ms(serves.max()), ms(writes.max()), ms(reads.max()),
		ms(writes.p99()), ms(reads.p99()))
	if serves.max() > healWithin {
		t.Error("after a kill no operation was answered")
	}
	times := time.Duration(farOff)
	if goalsHeld() {
		times = 1
	}
	if serves.max() > times*2*time.Second || max(writes.max(), reads.max()) > times*time.Second {
		t.Errorf("goals: a new leader within %v, and no read or write of more than %v",
			times*2*time.Second, times*time.Second)
	}
}

// metaFaults are what happens to metadata servers beside being killed.
var metaFaults = map[string]func(s *scene, m *server) (func() error, error){
	"cut from all": func(s *scene, m *server) (func() error, error) {
		return isolate(func(*scene) (*server, error) { return m, nil }, true, true)(s)
	},
	"nothing reaches it": func(s *scene, m *server) (func() error, error) {
		return isolate(func(*scene) (*server, error) { return m, nil }, false, true)(s)
	},
	"nothing comes from it": func(s *scene, m *server) (func() error, error) {
		return isolate(func(*scene) (*server, error) { return m, nil }, true, false)(s)
	},
	// A follower is cut from the leader: followers have nothing to say to each other.
	"cut from one other": func(s *scene, m *server) (func() error, error) {
		other, err := s.leader()
		if err != nil {
			return nil, err
		}
		if other == m {
			other = s.mds[(slices.Index(s.mds, m)+1)%len(s.mds)]
		}
		return s.cut(netlab.Both(m.node, other.node))
	},
	"stopped": func(_ *scene, m *server) (func() error, error) {
		return stop(m.name, m.cmd.Process.Pid)
	},
}

// TestMetadataFaults partitions and stops metadata servers, the leader and others, while clients
// work on names and chunk maps. All that they saw must be linearizable.
func TestMetadataFaults(t *testing.T) {
	needs(t)
	seed := seedOf(t)
	c := newCluster(t, "meta", 3, 3, 2)
	s := &scene{testCluster: c, rng: rand.New(rand.NewPCG(seed, 1))}
	meta := c.startMeta(seed)
	var names []string
	for name := range metaFaults {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for _, leads := range []bool{true, false} {
			c.await(healWithin, "the cluster is healthy", c.up)
			m, err := c.leader()
			c.must(err)
			if !leads {
				m = c.mds[(slices.Index(c.mds, m)+1)%len(c.mds)]
			}
			mend, err := metaFaults[name](s, m)
			c.must(err)
			time.Sleep(2*time.Second + time.Duration(s.rng.IntN(1000))*time.Millisecond)
			c.must(mend())
			t.Logf("%s (leader: %v): %s", m.name, leads, name)
		}
	}
	c.await(healWithin, "the cluster is healthy", c.up)
	judgeMeta(t, c.finishMeta(meta))
}
