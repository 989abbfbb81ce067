package main

import (
	"fmt"
	"time"

	"pstorage/chunk"
	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/ssdcache"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// csNode is a chunk server's machine: disks, and the process that runs on them. The process is a
// real shard; what chunk.Run does around it (registration, heartbeats, reports) is here.
type csNode struct {
	w      *world
	index  int
	id     dataplane.CSID
	ip     string
	store  *simloop.Disk
	cache  *simloop.Disk
	drift  int64
	boot   uint64
	starts []uint64 // in the identity: since the last that registered for certain
	// confirmed is that one.
	confirmed uint64
	owner     uint64
	budget    int

	// Of the process.
	env        *simloop.Env
	mem        *pools
	pool       *uring.Pool
	shard      *chunk.Shard
	opening    bool
	instance   uint64
	registered bool
	asking     bool
	failed     string
	beat       uring.Timer
	report     uring.Timer
	seen       uint64 // the record of the metadata servers, in entries
	reports    []control.UnreachableReq
	dead       []deadProcess

	// Of the faults.
	gone     bool  // for good
	drained  bool  // it was to be removed from the cluster
	image    bool  // its disks are an old image of it
	excluded bool  // from some chunk
	ended    int64 // when a process of it last ended; 0: never
	// onExcluded, if set, is called when it is excluded from a chunk.
	onExcluded func()
}

// deadProcess is what a process left.
type deadProcess struct {
	shard *chunk.Shard
	mem   *pools
}

const slots = 12

func newCS(w *world, index int) *csNode {
	n := &csNode{w: w, index: index, ip: fmt.Sprintf("10.0.0.%d", index+1),
		drift: w.sc.drift(w.sim.Rand(fmt.Sprint("drift", index))), budget: 1 << 20}
	n.newProcess()
	super, size, owner := chunk.SimStore(slots, byte(index+1))
	n.owner = owner
	n.store = simloop.NewDisk(n.env, size, 4096, simloop.DiskOptions{})
	n.cache = simloop.NewDisk(n.env, w.sc.logSize, w.sc.align, simloop.DiskOptions{})
	n.store.WriteAt(super, 0)
	done := false
	n.env.Do(func() {
		ssdcache.Format(ssdcache.FormatOptions{Disk: n.cache, Env: n.env, Pool: n.pool, Owner: owner},
			func(err error) {
				if err != nil {
					panic(err)
				}
				done = true
			})
	})
	w.wait(func() bool { return done }, 60*sec, "format")
	n.open()
	return n
}

func (n *csNode) newProcess() {
	n.boot++
	start := uint64(n.index+1)<<32 | n.boot // stands for a random number
	if n.image {
		start |= 1 << 63
	}
	n.starts = append(n.starts, start)
	n.env = n.w.sim.NewEnvOptions(fmt.Sprintf("cs%d.%d", n.index+1, n.boot),
		simloop.EnvOptions{DriftPPM: n.drift})
	n.freeDead()
	n.mem = &pools{}
	var err error
	if n.pool, err = n.mem.pool(n.w.sc.buffers << 20); err != nil {
		panic(err)
	}
	n.shard, n.registered, n.asking, n.failed, n.seen = nil, false, false, "", 0
	n.reports = nil
	n.instance = n.env.Rand() | 1
	n.beat = uring.Timer{Fire: n.heartbeat}
	n.report = uring.Timer{Fire: n.sendReports}
	n.w.mds.procs[n.instance] = n
}

// open starts the shard.
func (n *csNode) open() {
	env := n.env
	n.opening = true
	env.Do(func() {
		chunk.Open(chunk.ShardOptions{Env: env, Net: n.w.net.Node(env, n.ip), Pool: n.pool,
			Store: n.store, Cache: n.cache, Cred: cred(dataplane.RoleCS, uint64(n.id)),
			Metadata: &csMeta{n, env}, ID: n.id, Log: n.w.log.With("cs", n.index+1),
			CRCBudget: n.budget, BypassFrom: n.w.sc.bypass, Canary: n.w.can.cs, NewPool: n.mem.pool,
			CRCFrames: n.w.sc.frames, Activated: func(id dataplane.ChunkID) { n.w.activated(n, id) },
			OnFail: func(err error) { n.failed = err.Error() }},
			func(sh *chunk.Shard, err error) {
				n.opening = false
				if err != nil {
					n.w.violate("cs %d can't start: %v", n.index+1, err)
					return
				}
				n.shard = sh
				if _, err := sh.Listen(n.ip + ":2600"); err != nil {
					panic(err)
				}
				n.heartbeat()
			})
	})
}

func (n *csNode) ask(role dataplane.Role, op dataplane.Opcode, req any, timeout time.Duration,
	once bool, done func([]byte, error)) {
	n.w.mds.ask(n.env, n.ip, role, n.instance, op, req, timeout, once, done)
}

const mdsTimeout = 5 * time.Second

// heartbeat is what chunk.Run's keepLease does: registers, then renews the lease.
func (n *csNode) heartbeat() {
	n.env.Arm(&n.beat, int64(dataplane.HeartbeatEvery))
	if n.asking {
		return
	}
	n.asking = true
	sent := n.env.Now()
	if !n.registered {
		n.register(sent)
		return
	}
	capacity, used := n.shard.Capacity()
	req := &control.HeartbeatReq{CS: n.id, Boot: n.boot, Failed: n.failed, Capacity: capacity,
		Used: used, Stats: n.shard.Stats(), FenceSeq: n.shard.FenceSeq(), Seen: n.seen}
	n.shard.Gauge(req)
	n.ask(dataplane.RoleCS, control.OpHeartbeat, req, dataplane.LeaseTime, true, func(p []byte,
		err error) {
		n.asking = false
		var reply control.HeartbeatReply
		if err == nil {
			err = control.Unmarshal(p, &reply)
		}
		n.seen = max(n.seen, reply.Index)
		switch k := dataplane.KindOf(err); {
		case k == dataplane.Fenced && n.drained:
			n.removed()
		case k == dataplane.Internal:
			n.w.violate("cs %d: %v", n.id, err)
		case err == nil && reply.Yield:
			n.w.trace("cs %d gives its lease up", n.id)
			n.shard.Yield()
			if !req.Yielded {
				n.heartbeat()
			}
		case err == nil && !n.fenced(&reply.Fences):
			n.heartbeat()
		case err == nil:
			n.shard.SetLease(sent + reply.LeaseNs)
		case k == dataplane.NotFound || k == dataplane.Conflict:
			n.w.trace("cs %d registers again: %v", n.id, err)
			n.registered = false
			n.heartbeat()
		}
	})
}

func (n *csNode) register(sent int64) {
	capacity, used := n.shard.Capacity()
	req := &control.RegisterCSReq{CS: n.id, Disk: [16]byte{byte(n.index + 1)}, Boot: n.boot,
		Addr: n.ip + ":2600", Host: n.ip, Path: "/cs", Capacity: capacity, Used: used,
		Chunks: n.shard.Inventory(), FenceSeq: n.shard.FenceSeq(), Starts: n.starts,
		Confirmed: n.confirmed, Seen: n.seen, Marks: true}
	n.ask(dataplane.RoleCS, control.OpRegisterCS, req, mdsTimeout, false,
		func(p []byte, err error) {
			n.asking = false
			var reply control.RegisterCSReply
			if err == nil {
				err = control.Unmarshal(p, &reply)
			}
			n.seen = max(n.seen, reply.Index)
			switch k := dataplane.KindOf(err); {
			case err == nil && n.image:
				n.letIn()
			case n.image && k == dataplane.Conflict:
				n.shard.SetLease(0)
				n.refused(err)
			case err == nil:
				n.id = reply.CS
				n.starts, n.confirmed = n.starts[len(n.starts)-1:], n.boot
				if int(n.id) != n.index+1 {
					panic(fmt.Sprintf("cs %d got id %d", n.index+1, n.id))
				}
				n.shard.SetID(n.id)
				n.shard.ForgetHeld(reply.Forget, req.Chunks)
				n.shard.RetireHeld(reply.RetiredOf(req.Chunks), req.Chunks)
				n.registered = true
				if n.fenced(&reply.Fences) {
					n.shard.SetLease(sent + reply.LeaseNs)
				} else {
					n.heartbeat()
				}
				n.w.trace("cs %d registered, boot %d, forgets %v, retires %v", n.id, n.boot,
					reply.Forget, reply.RetiredOf(req.Chunks))
			case k == dataplane.Internal:
				n.w.violate("cs %d may not register: %v", n.index+1, err)
			case k == dataplane.Denied || k == dataplane.Conflict || k == dataplane.WrongCluster:
				n.shard.SetLease(0)
				if k == dataplane.Denied && n.drained {
					n.removed()
					return
				}
				if n.failed == "" {
					n.w.violate("cs %d may not register: %v", n.index+1, err)
				}
			default:
				n.w.trace("cs %d can't register: %v", n.index+1, err)
			}
		})
}

// pushed takes what the metadata servers send by themselves.
func (n *csNode) pushed(op dataplane.Opcode, payload []byte) {
	n.env.Post(func() {
		if n.shard == nil {
			return
		}
		switch op {
		case control.OpSettle:
			var p control.SettlePush
			if err := control.Unmarshal(payload, &p); err != nil {
				panic(err)
			}
			n.shard.SettlePush(&p)
		case control.OpRecover:
			var p control.RecoverPush
			if err := control.Unmarshal(payload, &p); err != nil {
				panic(err)
			}
			for _, cfg := range p.Chunks {
				n.w.recovered[cfg.Chunk] = true
			}
			n.shard.RecoverPush(&p)
		case control.OpForget:
			var p control.ForgetPush
			if err := control.Unmarshal(payload, &p); err != nil {
				panic(err)
			}
			n.shard.ForgetPush(&p)
		case control.OpFence:
			var p control.FencePush
			if err := control.Unmarshal(payload, &p); err != nil {
				panic(err)
			}
			n.fenced(&p)
		case control.OpScrub:
			n.shard.ScrubStart()
		}
	})
}

// kill ends the process. certified: its supervisor tells the metadata servers.
func (n *csNode) kill(certified bool) {
	if n.env.Dead() {
		return
	}
	n.env.Kill()
	n.ended = n.w.sim.Now()
	n.w.count(n.shard)
	n.dead = append(n.dead, deadProcess{n.shard, n.mem})
	w, boot := n.w, n.boot
	w.mds.gone(n.ip, n.instance)
	delete(w.mds.procs, n.instance)
	n.shard = nil
	if !certified || n.id == 0 {
		return
	}
	host := w.sim.NewEnv(fmt.Sprintf("host%d.%d", n.id, boot))
	w.mds.ask(host, n.ip, dataplane.RoleSupervisor, host.Rand(), control.OpExited,
		&control.ExitedReq{CS: n.id, Boot: boot}, mdsTimeout, false, func([]byte, error) { host.Kill() })
}

// start starts the next process, after a power cut if cut is set.
func (n *csNode) start(cut bool) {
	if n.gone || !n.env.Dead() {
		return
	}
	if cut {
		n.store.PowerCut()
		n.cache.PowerCut()
	}
	n.newProcess()
	n.store.Attach(n.env)
	n.cache.Attach(n.env)
	n.open()
}

func (n *csNode) freeAll() {
	if !n.env.Dead() {
		n.w.count(n.shard)
		n.dead = append(n.dead, deadProcess{n.shard, n.mem})
		n.env.Kill()
	}
	n.freeDead()
}

// freeDead takes back the memory of processes that have ended. It isn't called in their turns.
func (n *csNode) freeDead() {
	for _, d := range n.dead {
		if d.shard != nil {
			d.shard.SimAbandon()
		}
		d.mem.free()
	}
	n.dead = n.dead[:0]
}

// csMeta is chunk.Metadata of one process.
type csMeta struct {
	n   *csNode
	env *simloop.Env
}

func (m *csMeta) ask(op dataplane.Opcode, req any, cb func(*control.ChunkConfig, error)) {
	m.n.ask(dataplane.RoleCS, op, req, mdsTimeout, false, func(p []byte, err error) {
		cfg := &control.ChunkConfig{}
		if err == nil {
			err = control.Unmarshal(p, cfg)
		}
		cb(cfg, err)
	})
}

// GetChunk implements chunk.Metadata.
func (m *csMeta) GetChunk(id dataplane.ChunkID, cb func(*control.ChunkConfig, error)) {
	m.ask(control.OpGetChunk, &control.GetChunkReq{Chunk: id}, cb)
}

// Reconfigure implements chunk.Metadata.
func (m *csMeta) Reconfigure(r *control.ReconfigureReq, cb func(*control.ChunkConfig, error)) {
	if !m.n.w.late.takes(m.n, r) {
		m.ask(control.OpReconfigure, r, cb)
	}
}

// Unreachable implements chunk.Metadata: reports are gathered for a moment.
func (m *csMeta) Unreachable(r *control.UnreachableReq) {
	n := m.n
	if len(n.reports) < 64 {
		n.reports = append(n.reports, *r)
	}
	if !n.report.Armed() {
		m.env.Arm(&n.report, 100*ms)
	}
}

func (n *csNode) sendReports() {
	for i := range n.reports {
		n.ask(dataplane.RoleCS, control.OpUnreachable, &n.reports[i], mdsTimeout, false,
			func([]byte, error) {})
	}
	n.reports = nil
}

// Event implements chunk.Metadata.
func (m *csMeta) Event(e *control.Event) {
	w := m.n.w
	w.trace("event %s: %s", e.Code, e.Message)
	w.events = append(w.events, *e)
	if e.Code == "replica-lost" && w.mayHaveLost(e.Message) {
		return
	}
	switch e.Code {
	case "chunk-lost", "block-lost", "replica-lost":
		w.violate("cs %d: %s: %s", m.n.index+1, e.Code, e.Message)
	case "crc-mismatch": // repaired or not: who damaged it?
		if !w.sc.rot && w.sc.weights[faultDeadDisk] == 0 {
			w.violate("cs %d: %s though no disk does damage: %s", m.n.index+1, e.Code, e.Message)
		}
	}
}
