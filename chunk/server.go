package chunk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/uring"
)

// Options are what Run is given. Dir, Cred and MDS are needed.
type Options struct {
	Dir string // made by Format
	// ListenAddr is "ip" or "ip:port" (port 0: any); empty: what Format was told.
	ListenAddr string
	// Cred prove that this is a chunk server of the cluster; the id in it doesn't matter.
	Cred *session.Credentials
	// MDS returns the addresses of the metadata servers, "ip:port"; asked again and again.
	MDS func() []string
	Log *slog.Logger // nil: slog.Default()
	// Location of the node, "room/row/rack": for a server that Format wasn't told one of its own.
	Location string

	// OnIdentity is told once, before anything is served, which server and which start of it this
	// process is: what a supervisor certifies when it has exited.
	OnIdentity func(id dataplane.CSID, boot uint64)
	// OnReady is told once, when the first lease was granted.
	OnReady func(id dataplane.CSID, addr string)

	// OnObserve, if not nil, is told every second what the process says of itself, by a goroutine of
	// its own, from when it listens.
	OnObserve func(*Observation)

	PoolSize  int // bytes of buffers; 0: 64 MiB and the CRC budget
	CRCBudget int // bytes of CRC pages in memory; 0: by the capacity, see crcBudget

	RelayFrom int // see ShardOptions

	ScrubPeriod time.Duration // of a pass over the store; 0: 14 days; negative: only when asked
	ScrubRate   int64         // bytes per second of one that was asked for; 0: 64 MiB
}

// server is the process around a shard.
type server struct {
	o      Options
	log    *slog.Logger
	id     *Identity
	loop   *uring.Loop
	shard  *Shard // not nil once opened
	opened atomic.Bool
	client *control.Client
	md     *mdsClient
	addr   string
	took   time.Duration // to open the shard

	mu     sync.Mutex
	failed error // how the disk failed
	short  shortage
	freeAt func(path string) int64
	ready  bool
	full   bool          // no room for new chunks; of keepLease
	beat   chan struct{} // a heartbeat is wanted now
	seen   uint64        // the metadata servers' record, in entries; of keepLease
}

// Run serves the chunk server in o.Dir until ctx ends, then stops in an orderly way and returns
// nil. An error says why it can't serve (any more); another start can't mend one of the kinds
// WrongCluster, Denied, Conflict and Invalid.
func Run(ctx context.Context, o Options) error {
	s := &server{o: o, log: o.Log, beat: make(chan struct{}, 1), freeAt: freeAt}
	if s.log == nil {
		s.log = slog.Default()
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := s.identify(); err != nil {
		return err
	}
	if err := settleJournal(s.o.Dir, s.id, s.log); err != nil {
		s.log.Warn("a change of the journal isn't ended", "dir", s.o.Dir, "err", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := s.startLoop(); err != nil {
		return err
	}
	runDone := make(chan error, 1)
	go func() { runDone <- s.loop.Run() }()
	err = s.serve(ctx)
	s.loop.Stop()
	if e := <-runDone; err == nil {
		err = e
	}
	if e := s.loop.Close(); err == nil {
		err = e
	}
	return err
}

// lockDir makes sure that only one process serves the directory.
func lockDir(dir string) (*os.File, error) {
	what := "serve chunk server " + dir
	if _, err := ReadIdentity(dir); errors.Is(err, ErrNoIdentity) {
		return nil, dataplane.E(what, dataplane.Invalid, missingIdentity(dir, err))
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, startError(what, path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, dataplane.E(what, dataplane.Exists,
				ErrServed)
		}
		return nil, fmt.Errorf("%s: lock it: %w", what, err)
	}
	return f, nil
}

// identify checks whose the directory is.
func (s *server) identify() error {
	id, err := ReadIdentity(s.o.Dir)
	what := "serve chunk server " + s.o.Dir
	if err != nil {
		return dataplane.E(what, dataplane.Invalid, err)
	}
	if id.cluster() != s.o.Cred.Cluster {
		return dataplane.E(what, dataplane.WrongCluster, fmt.Errorf("it belongs to cluster %q (id %s), "+
			"the key is for %q (id %v). Nothing was changed. Put back the disk that belongs there, or take "+
			"its line out of cs.list", id.ClusterName, id.Cluster, s.o.Cred.ClusterName,
			s.o.Cred.Cluster))
	}
	if err := id.checkRolledBack(); err != nil {
		return dataplane.E(what, dataplane.Conflict, err)
	}
	s.id = id
	return nil
}

const (
	// crcFixed and crcPerTiB are the bytes of CRC pages in memory, of 1 GiB for each TiB of chunks. A
	// block whose page isn't there takes a second read of the disk. The whole server, with 110 MB for
	// the rest of it, stays within 300 MB per TiB: a page takes some 10 % more than itself.
	crcFixed  = 64 << 20
	crcPerTiB = 64 << 20
)

// crcBudget is how many bytes of CRC pages a server of some capacity keeps in memory, if so many
// are asked for (0: what is right for it); never more than there are.
func crcBudget(capacity uint64, asked int) int {
	all := int(capacity / dataplane.ChunkSize * crcBytesSlot)
	if asked == 0 {
		asked = crcFixed + int(capacity>>20)*(crcPerTiB>>20)
	}
	return max(min(asked, all), 1<<20)
}

func (s *server) startLoop() error {
	s.o.CRCBudget = crcBudget(s.id.Capacity, s.o.CRCBudget)
	if s.o.PoolSize == 0 {
		s.o.PoolSize = 64<<20 + s.o.CRCBudget
	}
	var err error
	s.loop, err = uring.NewLoop(uring.LoopOptions{PoolSize: s.o.PoolSize, Log: s.log})
	return err
}

// onLoop calls f on the loop's thread; f calls done when it has ended.
func (s *server) onLoop(f func(done func(error))) error {
	result := make(chan error, 1)
	s.loop.Post(func() {
		f(func(err error) {
			select {
			case result <- err:
			default: // ended already
			}
		})
	})
	select {
	case err := <-result:
		return err
	case <-s.loop.Done():
		return errors.New("the event loop ended")
	}
}

// serve is the life of the server on a running loop.
func (s *server) serve(ctx context.Context) error {
	mctx, stopMDS := context.WithCancel(context.WithoutCancel(ctx))
	defer stopMDS()
	cred := *s.o.Cred
	cred.Role, cred.ID = dataplane.RoleCS, uint64(s.id.CS)
	var err error
	s.client, err = control.Dial(mctx, control.Options{Addrs: s.o.MDS, Cred: s.o.Cred, Log: s.log,
		OnPush: s.push})
	if err != nil {
		return err
	}
	defer s.client.Close()
	s.md = newMDSClient(mctx, s.client, s.loop.Post, s.log)
	defer func() { stopMDS(); s.md.ended.Wait() }()
	if err := s.open(ctx, &cred); err != nil {
		return err
	}
	if err = s.countStart(); err == nil {
		err = s.listen()
	}
	if err == nil {
		var observing sync.WaitGroup
		octx, stop := context.WithCancel(ctx)
		observing.Go(func() { s.observe(octx) })
		err = s.keepLease(ctx)
		stop()
		observing.Wait()
	}
	e := s.stop()
	if e == nil {
		e = s.keepStamp()
	}
	if err == nil {
		err = e
	}
	return err
}

// open opens the disks and the shard. Nothing was written if it fails, unless a disk failed.
func (s *server) open(ctx context.Context, cred *session.Credentials) error {
	what := "serve chunk server " + s.o.Dir
	storePath, logPath := filepath.Join(s.o.Dir, storeFile), s.id.logPath(s.o.Dir)
	for _, path := range []string{storePath, logPath} {
		if err := awaitWrites(ctx, path, s.log); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	started := time.Now()
	var md Metadata = s.md
	if s.md == nil {
		md = offlineMetadata{}
	}
	err := s.onLoop(func(done func(error)) {
		store, err := s.loop.OpenDisk(storePath, uring.DiskOptions{LowDepth: 8, Lock: true})
		if err != nil {
			done(openError(what, "its store", storePath, err))
			return
		}
		cache, err := s.loop.OpenDisk(logPath, uring.DiskOptions{LowDepth: 8, Lock: true})
		if err != nil {
			store.Close()
			done(openError(what, "its journal", logPath, err))
			return
		}
		Open(ShardOptions{Env: s.loop, Net: s.loop, Pool: s.loop.Pool(), Store: store, Cache: cache,
			Cred: cred, Metadata: md, ID: s.id.CS, Identity: s.id, Log: s.log,
			SameDisk:  sameDisk(storePath, logPath),
			CRCBudget: s.o.CRCBudget, OnFail: s.diskFailed, ScrubPeriod: s.o.ScrubPeriod,
			ScrubRate: s.o.ScrubRate, RelayFrom: s.o.RelayFrom,
			WallClock: func() int64 { return time.Now().UnixNano() }},
			func(sh *Shard, err error) {
				if err != nil {
					store.Close()
					cache.Close()
					done(startError(what, storePath, dataplane.E(what, dataplane.KindOf(err),
						fmt.Errorf("%w (store %s, journal %s)%s", err, storePath, logPath, putBack(err)))))
					return
				}
				s.shard = sh
				s.opened.Store(true)
				done(nil)
			})
	})
	s.took = time.Since(started)
	return err
}

// listen takes connections, and says so.
func (s *server) listen() error {
	err := s.onLoop(func(done func(error)) {
		addr, err := s.listenAddr()
		if err == nil {
			s.addr, err = s.shard.Listen(addr)
		}
		done(err)
	})
	if err == nil {
		s.log.Info("chunk server opened", "chunks", len(s.shard.chunks), "addr", s.addr,
			"boot", s.id.Boot, "took", s.took)
	}
	return err
}

// openError explains a missing file.
func openError(what, which, path string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return dataplane.E(what, dataplane.Invalid, fmt.Errorf("%s is missing: %w; without it data that "+
			"was acknowledged is lost. Nothing was changed. Mount or put back its disk; if it is gone for "+
			"good, remove this chunk server (pstorage rm-cs --force) and make a new one: the other copies "+
			"of its chunks are complete", which, err))
	}
	return startError(what, path, err)
}

// listenAddr is the address to listen on, which is also what others are told.
func (s *server) listenAddr() (string, error) {
	addr := s.o.ListenAddr
	if addr == "" {
		addr = s.id.Addr
	}
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(addr, "0")
	}
	ap, err := netip.ParseAddrPort(addr)
	if err != nil || ap.Addr().IsUnspecified() {
		return "", dataplane.E("listen on "+addr, dataplane.Invalid,
			errors.New("not an address of this machine that others can connect to"))
	}
	return addr, nil
}

// diskFailed is Shard's OnFail.
func (s *server) diskFailed(err error) {
	s.mu.Lock()
	s.failed = err
	s.foundFull(err)
	s.mu.Unlock()
}

// failure is how the disk failed, or nil.
func (s *server) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// push takes what the metadata servers send by themselves.
func (s *server) push(op dataplane.Opcode, payload []byte) {
	if !s.opened.Load() {
		return // nothing was asked of us yet
	}
	sh := s.shard
	switch op {
	case control.OpSettle:
		p := &control.SettlePush{}
		if err := control.Unmarshal(payload, p); err != nil {
			s.log.Error("message of the metadata server", "err", err)
			return
		}
		s.loop.Post(func() { sh.SettlePush(p) })
	case control.OpRecover:
		p := &control.RecoverPush{}
		if err := control.Unmarshal(payload, p); err != nil {
			s.log.Error("message of the metadata server", "err", err)
			return
		}
		s.loop.Post(func() { sh.RecoverPush(p) })
	case control.OpFence:
		p := &control.FencePush{}
		if err := control.Unmarshal(payload, p); err != nil {
			s.log.Error("message of the metadata server", "err", err)
			return
		}
		s.loop.Post(func() { sh.Fence(p, s.beatSoon) })
	case control.OpForget:
		p := &control.ForgetPush{}
		if err := control.Unmarshal(payload, p); err != nil {
			s.log.Error("message of the metadata server", "err", err)
			return
		}
		s.loop.Post(func() { sh.ForgetPush(p) })
	case control.OpScrub:
		s.loop.Post(sh.ScrubStart)
	}
}

// warnEvery is how often it is said that there is no lease.
const warnEvery = 30 * time.Second

// keepLease registers and sends heartbeats until ctx ends. A lease counts from the moment at which
// its heartbeat was sent.
func (s *server) keepLease(ctx context.Context) error {
	tick := time.NewTicker(dataplane.HeartbeatEvery)
	defer tick.Stop()
	registered, first := false, true
	var pause time.Duration // before the next attempt to register
	var warned time.Time    // that there is no lease
	for ctx.Err() == nil {
		var err error
		if !registered {
			err = s.register(ctx)
			registered = err == nil
			first = first && !registered
			pause = min(max(2*pause, registerSoon), dataplane.HeartbeatEvery)
		} else {
			err = s.heartbeat(ctx)
			if k := dataplane.KindOf(err); k == dataplane.Fenced {
				s.shard.SetLease(0)
				s.log.Error("this chunk server was removed from the cluster: it ends now and serves "+
					"nothing any more; its directory may be deleted", "cs", s.id.CS, "dir", s.o.Dir)
				return dataplane.E("serve chunk server "+s.o.Dir, dataplane.Denied, err)
			} else if k == dataplane.NotFound || k == dataplane.Conflict {
				s.log.Info("registering again", "reason", err)
				registered = false
				continue
			}
		}
		if err != nil && !registered {
			switch k := dataplane.KindOf(err); k {
			case dataplane.Denied, dataplane.Conflict, dataplane.WrongCluster:
				s.shard.SetLease(0)
				if k == dataplane.Conflict && first { // else another process took over from this one
					return s.markRolledBack(err)
				}
				return dataplane.E("register chunk server "+s.o.Dir, dataplane.KindOf(err), err)
			}
		}
		switch {
		case err == nil:
			warned = time.Time{}
		case ctx.Err() == nil && time.Since(warned) >= warnEvery:
			s.log.Warn("no lease from the metadata servers", "err", err, "said again in", warnEvery)
			warned = time.Now()
		}
		if s.spaceIsBack() {
			return dataplane.E("serve chunk server "+s.o.Dir, dataplane.NoSpace,
				errors.New("its file system was full, and may have room again: a new start goes on from "+
					"the log"))
		}
		var soon <-chan time.Time
		if !registered {
			soon = time.After(pause)
		} else {
			pause = 0
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-s.beat:
		case <-soon:
		}
	}
	return nil
}

// registerSoon is the pause after the first attempt to register that failed: the metadata server
// may not have noticed yet that the process before has ended.
const registerSoon = 30 * time.Millisecond

func (s *server) register(ctx context.Context) error {
	req := &control.RegisterCSReq{CS: s.id.CS, Disk: s.id.diskUUID(), Boot: s.id.Boot, Addr: s.addr,
		Path: s.o.Dir, Tier: s.id.Tier, Location: cmp.Or(s.id.Location, s.o.Location),
		Starts: s.id.Starts, Confirmed: s.id.Confirmed, Seen: s.seen, Marks: true}
	req.Host, _ = os.Hostname()
	if err := s.onLoop(func(done func(error)) {
		req.FenceSeq = s.shard.FenceSeq()
		req.Chunks = s.shard.Inventory()
		req.Capacity, req.Used = s.shard.Capacity()
		done(nil)
	}); err != nil {
		return err
	}
	held := req.Chunks
	var err error
	if req.Chunks, req.Parts, err = s.tellInventory(ctx, held); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, mdsTimeout)
	defer cancel()
	sent := uring.Boottime()
	reply := &control.RegisterCSReply{}
	if err := s.client.Call(ctx, control.OpRegisterCS, req, reply); err != nil {
		return err
	}
	if s.id.CS == 0 {
		s.id.CS = reply.CS
		if err := s.id.write(s.o.Dir); err != nil {
			return fmt.Errorf("keep the id %d given by the metadata servers: %w", reply.CS, err)
		}
		if s.o.OnIdentity != nil {
			s.o.OnIdentity(s.id.CS, s.id.Boot)
		}
	} else if reply.CS != s.id.CS {
		return dataplane.E("register", dataplane.Conflict,
			fmt.Errorf("this is chunk server %d, the metadata servers say %d", s.id.CS, reply.CS))
	}
	s.seen = max(s.seen, reply.Index)
	s.startConfirmed()
	s.md.setSource(fmt.Sprintf("cs %d", s.id.CS))
	retired := reply.RetiredOf(held)
	if err := s.onLoop(func(done func(error)) {
		s.shard.SetID(s.id.CS)
		s.shard.ForgetHeld(reply.Forget, held)
		s.shard.RetireHeld(retired, held)
		done(nil)
	}); err != nil {
		return err
	}
	ok, err := s.takeFences(&reply.Fences)
	if err != nil {
		return err
	}
	if ok {
		s.shard.SetLease(sent + reply.LeaseNs)
	} // else: heartbeats bring the rest
	s.log.Info("registered", "cs", s.id.CS, "addr", s.addr, "lease", time.Duration(reply.LeaseNs),
		"forget", len(reply.Forget), "retired", len(retired))
	if !s.ready {
		s.ready = true
		if s.o.OnReady != nil {
			s.o.OnReady(s.id.CS, s.addr)
		}
	}
	return nil
}

func (s *server) heartbeat(ctx context.Context) error {
	req := &control.HeartbeatReq{CS: s.id.CS, Boot: s.id.Boot, Seen: s.seen}
	if err := s.onLoop(func(done func(error)) {
		req.FenceSeq = s.shard.FenceSeq()
		req.Stats = s.shard.Stats()
		req.Capacity, req.Used = s.shard.Capacity()
		s.shard.Gauge(req)
		done(nil)
	}); err != nil {
		return err
	}
	req.Stats.Allocated = allocated(filepath.Join(s.o.Dir, storeFile))
	req.Capacity = s.checkSpace(req.Capacity, req.Used, req.Stats.Allocated)
	if err := s.failure(); err != nil {
		req.Failed = failedText(err)
	}
	// A part of the lease, so that a server that doesn't answer leaves time to ask another one.
	ctx, cancel := context.WithTimeout(ctx, dataplane.LeaseTime/3)
	defer cancel()
	sent := uring.Boottime()
	reply := &control.HeartbeatReply{}
	if err := s.client.CallOnce(ctx, control.OpHeartbeat, req, reply); err != nil {
		return err
	}
	s.seen = max(s.seen, reply.Index)
	if reply.Yield {
		return s.yield(ctx, req.Yielded)
	}
	ok, err := s.takeFences(&reply.Fences)
	if err != nil || !ok {
		return err
	}
	s.shard.SetLease(sent + reply.LeaseNs)
	return nil
}

// yield gives the lease up, and says so at once.
func (s *server) yield(ctx context.Context, said bool) error {
	err := s.onLoop(func(done func(error)) {
		s.shard.Yield()
		done(nil)
	})
	if err != nil || said {
		return err
	}
	return s.heartbeat(ctx)
}

const stopTimeout = 20 * time.Second

// stop ends the shard in an orderly way.
func (s *server) stop() error {
	result := make(chan error, 1)
	s.loop.Post(func() { s.shard.Stop(func(err error) { result <- err }) })
	select {
	case err := <-result:
		if err == nil {
			s.log.Info("chunk server stopped")
		}
		return err
	case <-time.After(stopTimeout):
		return dataplane.E("stop chunk server "+s.o.Dir, dataplane.TimedOut, nil)
	case <-s.loop.Done():
		return errors.New("the event loop ended")
	}
}
