package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/mds"
	"pstorage/perf"
)

// What the clients of a measurement of rates ask for at once.
const (
	rateServers   = 3
	rateClients   = 4
	rateWorkers   = 8 // per client
	lookupBatch   = 168
	allocateBatch = 64
)

// rateDirs are the directories of n servers.
func (o *mdsOptions) rateDirs(n int) (dirs []string) {
	for i := range n {
		dirs = append(dirs, filepath.Join(o.dir, fmt.Sprint("mds", i+1)))
	}
	return dirs
}

// startProfile writes a CPU profile of this process if one is asked for.
func (o *mdsOptions) startProfile(what string, node int) (stop func(), err error) {
	if o.profile == "" {
		return func() {}, nil
	}
	out, err := os.Create(filepath.Join(o.profile, fmt.Sprintf("%s%d.prof", what, node)))
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(out); err != nil {
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); out.Close() }, nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// group is three servers, each a process.
type group struct {
	peers   []mds.Peer
	procs   []*exec.Cmd
	clients []*control.Client
	leader  int // index
}

// rates measures what a group of three does per second of its leader's CPU time.
func (o *mdsOptions) rates(ctx context.Context) (f mds.Figures, err error) {
	g := &group{}
	defer func() { err = errors.Join(err, g.stop()) }()
	if err := o.startGroup(ctx, g); err != nil {
		return nil, err
	}
	f = mds.Figures{}
	began := time.Now()
	beats, err := g.startHeartbeats(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("heartbeats: %w", err)
	}
	defer beats.stop()
	f["connect_s"] = time.Since(began).Seconds()
	if err := g.measureHeartbeats(o, beats, f); err != nil {
		return nil, err
	}
	for _, row := range []struct {
		name string
		do   func(ctx context.Context, w int) (int, error)
	}{
		{"map_requests", g.lookups(o, 1)},
		{"lookups", g.lookups(o, lookupBatch)},
		{"allocs", g.allocations(o)},
	} {
		if err := g.measure(ctx, f, row.name, o.seconds, row.do); err != nil {
			return nil, fmt.Errorf("%s: %w", row.name, err)
		}
	}
	f["heartbeat_errors"] = float64(beats.failed.Load())
	beats.stop()
	if err := g.untilSilent(ctx); err != nil {
		return nil, err
	}
	f["idle_leader_cores"], err = g.share(o.seconds)
	f["heartbeat_leader_cores"] -= f["idle_leader_cores"]
	return f, err
}

// untilSilent waits until the leader takes no chunk server for one that is there any more.
func (g *group) untilSilent(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for there := 1; there > 0; {
		var doc control.ServicesDoc
		if err := g.clients[0].Admin(ctx, control.AdminListServices, nil, &doc); err != nil {
			return fmt.Errorf("wait until the heartbeats have ended: %w", err)
		}
		there = 0
		for _, c := range doc.CS {
			if c.Status == control.CSActive || c.Status == control.CSInactive {
				there++
			}
		}
		time.Sleep(50 * time.Millisecond) // before it is asked again
	}
	return nil
}

// startGroup makes and starts the servers, connects clients, and finds the leader.
func (o *mdsOptions) startGroup(ctx context.Context, g *group) error {
	for i := range rateServers {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer l.Close()
		g.peers = append(g.peers, mds.Peer{Node: uint32(i + 1), Addr: l.Addr().String()})
		l.Close()
	}
	b, err := json.Marshal(g.peers)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(o.dir, "peers.json"), b, 0o600); err != nil {
		return err
	}
	for _, d := range o.rateDirs(rateServers) {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	if _, err := o.child(ctx, "rates-state"); err != nil {
		return err
	}
	for i := range rateServers {
		cmd, err := o.command(context.WithoutCancel(ctx), "server", "--node", fmt.Sprint(i+1))
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			return err
		}
		g.procs = append(g.procs, cmd)
	}
	for i := range rateClients {
		c, err := g.dial(ctx, dataplane.RoleClient, uint64(i+1))
		if err != nil {
			return err
		}
		g.clients = append(g.clients, c)
	}
	wait, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := g.clients[0].Call(wait, control.OpStatFS, &control.Empty{},
		&control.StatFSReply{}); err != nil {
		return fmt.Errorf("no leader: %w", err)
	}
	at := g.clients[0].Leader()
	g.leader = slices.IndexFunc(g.peers, func(p mds.Peer) bool { return p.Addr == at })
	if g.leader < 0 {
		return fmt.Errorf("the leader is at %q, which is none of the servers", at)
	}
	return nil
}

func (g *group) dial(ctx context.Context, role dataplane.Role, id uint64) (*control.Client, error) {
	var addrs []string
	for _, p := range g.peers {
		addrs = append(addrs, p.Addr)
	}
	return control.Dial(ctx, control.Options{Addrs: control.FixedAddrs(addrs...), Log: quietLog(),
		Cred: mdsCred(role, id)})
}

func (g *group) stop() (err error) {
	for _, c := range g.clients {
		c.Close()
	}
	for _, p := range g.procs {
		p.Process.Signal(os.Interrupt)
	}
	for _, p := range g.procs {
		err = errors.Join(err, p.Wait())
	}
	return err
}

// cpu returns the CPU time that the leader has used.
func (g *group) cpu() (time.Duration, error) {
	s, err := perf.SampleCPU([]int{g.procs[g.leader].Process.Pid})
	return time.Duration(s.Since(nil)), err
}

// measure calls do from all workers for the time, and adds NAME_per_s, which is per second of the
// leader's CPU time (with that of the heartbeats meanwhile), NAME_wall_per_s, NAME_leader_cores,
// and percentiles of how long the calls took.
func (g *group) measure(ctx context.Context, f mds.Figures, name string, seconds float64,
	do func(ctx context.Context, w int) (int, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var done atomic.Int64
	var work sync.WaitGroup
	var stop atomic.Bool
	failed := make(chan error, rateClients*rateWorkers)
	took := make([][]time.Duration, rateClients*rateWorkers)
	for w := range rateClients * rateWorkers {
		work.Go(func() {
			for !stop.Load() {
				began := time.Now()
				n, err := do(ctx, w)
				took[w] = append(took[w], time.Since(began))
				if err != nil {
					failed <- err
					return
				}
				done.Add(int64(n))
			}
		})
	}
	time.Sleep(500 * time.Millisecond) // until it flows evenly
	cpu, err := g.cpu()
	began, before := time.Now(), done.Load()
	time.Sleep(time.Duration(seconds * float64(time.Second)))
	seconds, n := time.Since(began).Seconds(), float64(done.Load()-before)
	after, err2 := g.cpu()
	stop.Store(true)
	work.Wait()
	select {
	case err := <-failed:
		return err
	default:
	}
	f[name+"_per_s"] = n / (after - cpu).Seconds()
	f[name+"_wall_per_s"] = n / seconds
	f[name+"_leader_cores"] = (after - cpu).Seconds() / seconds
	all := slices.Concat(took...)
	slices.Sort(all)
	for suffix, permille := range map[string]int{"p50": 500, "p99": 990, "p999": 999} {
		f[name+"_"+suffix+"_ms"] = all[(len(all)-1)*permille/1000].Seconds() * 1e3
	}
	return errors.Join(err, err2)
}

// lookups asks for the maps of the first chunks of random files.
func (g *group) lookups(o *mdsOptions, batch uint32) func(context.Context, int) (int, error) {
	batch = min(batch, max(1, uint32(o.chunks/uint64(o.files))))
	return func(ctx context.Context, w int) (int, error) {
		file := dataplane.RootID + 1 + dataplane.FileID(rand.IntN(o.files))
		var reply control.MapReply
		err := g.clients[w%rateClients].Call(ctx, control.OpGetMap,
			&control.MapReq{File: file, First: 0, Count: batch}, &reply)
		if err == nil && len(reply.Chunks) != int(batch) {
			err = fmt.Errorf("%d chunks of file %d, not %d", len(reply.Chunks), file, batch)
		}
		return len(reply.Chunks), err
	}
}

// allocations makes chunks behind the end of files, one file per worker.
func (g *group) allocations(o *mdsOptions) func(context.Context, int) (int, error) {
	next := make([]uint32, rateClients*rateWorkers)
	for i := range next {
		next[i] = uint32(o.chunks/uint64(o.files)) + 2
	}
	return func(ctx context.Context, w int) (int, error) {
		file := dataplane.RootID + 1 + dataplane.FileID(w%o.files)
		var reply control.MapReply
		err := g.clients[w%rateClients].Call(ctx, control.OpAllocate,
			&control.MapReq{File: file, First: next[w], Count: allocateBatch}, &reply)
		next[w] += allocateBatch
		return len(reply.Chunks), err
	}
}

// heartbeats are those of all chunk servers, each over a connection of its own.
type heartbeats struct {
	cancel       context.CancelFunc
	servers      sync.WaitGroup
	sent, failed atomic.Int64
	twice        atomic.Bool // as often as usual
}

func (h *heartbeats) stop() {
	h.cancel()
	h.servers.Wait()
}

// startHeartbeats returns when each server's first heartbeat has been answered.
func (g *group) startHeartbeats(ctx context.Context, o *mdsOptions) (*heartbeats, error) {
	ctx, cancel := context.WithCancel(ctx)
	h := &heartbeats{cancel: cancel}
	ready := make(chan struct{}, o.servers)
	for i := range o.servers {
		h.servers.Go(func() { g.beat(ctx, dataplane.CSID(i+1), h, ready) })
	}
	late := time.After(time.Minute)
	for range o.servers {
		select {
		case <-ready:
			continue
		case <-late:
		case <-ctx.Done():
		}
		h.stop()
		return nil, fmt.Errorf("not all chunk servers connected within a minute; %d heartbeats "+
			"failed", h.failed.Load())
	}
	return h, nil
}

// beat is one chunk server.
func (g *group) beat(ctx context.Context, cs dataplane.CSID, h *heartbeats, ready chan struct{}) {
	c, err := g.dial(ctx, dataplane.RoleCS, uint64(cs))
	if err != nil {
		h.failed.Add(1)
		return
	}
	defer c.Close()
	next := time.NewTimer(dataplane.HeartbeatEvery)
	defer next.Stop()
	for first := true; ; first = false {
		var reply control.HeartbeatReply
		err := c.Call(ctx, control.OpHeartbeat, mds.MeasureHeartbeat(cs), &reply)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			h.failed.Add(1)
		}
		h.sent.Add(1)
		if first {
			ready <- struct{}{}
		}
		select {
		case <-ctx.Done():
			return
		case <-next.C:
			every := dataplane.HeartbeatEvery
			if h.twice.Load() {
				every /= 2
			}
			next.Reset(every)
		}
	}
}

// measureHeartbeats takes the leader's share of a core with nothing but heartbeats, and what of it
// is theirs: it is more by that if they come twice as often.
func (g *group) measureHeartbeats(o *mdsOptions, h *heartbeats, f mds.Figures) error {
	beats := func() (cores, perS float64, err error) {
		before, began := h.sent.Load(), time.Now()
		cores, err = g.share(o.seconds)
		return cores, float64(h.sent.Load()-before) / time.Since(began).Seconds(), err
	}
	cores, perS, err := beats()
	if err != nil {
		return err
	}
	h.twice.Store(true)
	defer h.twice.Store(false)
	time.Sleep(dataplane.HeartbeatEvery) // until all of them do
	more, morePerS, err := beats()
	f["heartbeat_leader_cores"], f["heartbeats_per_s"] = cores, perS
	f["heartbeat_twice_leader_cores"], f["heartbeats_twice_per_s"] = more, morePerS
	if err == nil && morePerS <= perS {
		err = fmt.Errorf("the clients sent no more heartbeats than before (%.0f a second) when they "+
			"were to send twice as many: the machine is too busy", morePerS)
	}
	if err != nil {
		return err
	}
	f["heartbeat_added_cores"] = (more - cores) / (morePerS - perS) * perS
	return nil
}

// share returns the leader's share of a core.
func (g *group) share(seconds float64) (float64, error) {
	before, err := g.cpu()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	time.Sleep(time.Duration(seconds * float64(time.Second)))
	after, err := g.cpu()
	return (after - before).Seconds() / time.Since(began).Seconds(), err
}
