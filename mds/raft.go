package mds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

// Raft's times. With three servers a new leader serves within about 1 s of the old one's death, 2 s
// if votes are split (see silence.go); a server that is alone needs no patience.
const (
	electionTime  = 450 * time.Millisecond
	leaderLease   = 350 * time.Millisecond
	raftTimeout   = 5 * time.Second
	snapshotsKept = 2
	logCache      = 1024 // entries kept in memory for followers
)

// fsm is the state machine as raft sees it.
type fsm struct {
	log      *slog.Logger
	onFail   func(error)
	onConfig func()
	observe  atomic.Pointer[applyWatch] // measures while it isn't nil

	mu       stateLock // guards what follows; apply holds it for a few commands at a time
	s        *State
	config   chan struct{} // closed when the configuration changes; nil: nobody waits
	failed   error         // set for ever when an entry can't be applied
	lockedAt time.Time     // when it was locked for a change, while that is measured
}

// applied is the response to a log entry.
type applied struct {
	results []Result
	err     error
}

var _ raft.BatchingFSM = (*fsm)(nil)

// ApplyBatch implements raft.BatchingFSM.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	changed := false
	for i, l := range logs {
		switch l.Type {
		case raft.LogCommand:
			out[i] = f.applyEntry(l)
		case raft.LogConfiguration:
			changed = true
		}
	}
	if changed && f.onConfig != nil {
		f.onConfig()
	}
	return out
}

// commandsPerLock is how many commands are applied before readers get their turn.
const commandsPerLock = 8

func (f *fsm) applyEntry(l *raft.Log) applied {
	defer f.observe.Load().applied(time.Now())
	nowNs, commands, err := decodeEntry(l.Data)
	f.lock()
	defer f.unlock()
	if f.failed == nil && err != nil {
		f.failed = fmt.Errorf("log entry %d can't be applied; this server stops: %w", l.Index, err)
		f.onFail(f.failed)
	}
	if f.failed != nil {
		return applied{err: f.failed}
	}
	config := f.s.configVer
	defer func() { f.configured(config) }()
	results := make([]Result, len(commands))
	for i, c := range commands {
		if i%commandsPerLock == commandsPerLock-1 {
			f.unlock()
			f.lock()
		}
		f.s.applyOne(nowNs, c, &results[i])
	}
	return applied{results: results}
}

// configured tells who waits for it that the configuration has changed. mu is held.
func (f *fsm) configured(before uint64) {
	if f.config != nil && f.s.configVer != before {
		close(f.config)
		f.config = nil
	}
}

// configChanged returns a channel that is closed when the cluster's configuration changes.
func (f *fsm) configChanged() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.config == nil {
		f.config = make(chan struct{})
	}
	return f.config
}

// lock locks the state for a change of it or for what a snapshot does to it.
func (f *fsm) lock() {
	f.mu.Lock()
	if f.observe.Load() != nil {
		f.lockedAt = time.Now()
	}
}

func (f *fsm) unlock() {
	w, at := f.observe.Load(), f.lockedAt
	f.lockedAt = time.Time{}
	f.mu.Unlock()
	if w != nil && !at.IsZero() {
		w.held.add(time.Since(at))
	}
}

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// Snapshot implements raft.FSM: it only captures.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	f.lock()
	defer f.unlock()
	if f.failed != nil {
		return nil, f.failed
	}
	sn, err := f.s.Capture()
	if err != nil {
		return nil, err
	}
	return &fsmSnapshot{f, sn}, nil
}

// Restore implements raft.FSM.
func (f *fsm) Restore(in io.ReadCloser) error {
	s, err := Restore(in)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	config := f.s.configVer
	f.s.Close()
	f.s = s
	f.configured(config)
	return nil
}

// fsmSnapshot writes a captured state.
type fsmSnapshot struct {
	f  *fsm
	sn *Snapshot
}

// Persist implements raft.FSMSnapshot; it runs beside Apply.
func (p *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	start := time.Now()
	if err := p.sn.Write(&pacedWriter{w: sink, since: start}); err != nil {
		if dataplane.KindOf(err) == dataplane.BadCRC {
			// Raft would only try again. What is on the disk is good: it is to be started from that.
			p.f.onFail(dataplane.E("go on with damaged metadata in memory", dataplane.IOError, err))
		}
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return dataplane.E("write snapshot", dataplane.IOError, err)
	}
	p.f.log.Info("snapshot written", "took", time.Since(start).Round(time.Millisecond))
	return nil
}

// pacedWriter writes at half speed, in small pieces: a snapshot has a minute, and what is applied
// and served meanwhile has a millisecond.
type pacedWriter struct {
	w     io.Writer
	since time.Time
}

// Pieces of a pacedWriter, and its pause behind each of them.
const (
	pacedPiece = 128 << 10
	pacedMost  = 2 * time.Millisecond
)

// Write implements io.Writer.
func (p *pacedWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 && err == nil {
		var k int
		k, err = p.w.Write(b[:min(len(b), pacedPiece)])
		n, b = n+k, b[k:]
		time.Sleep(min(time.Since(p.since), pacedMost))
		p.since = time.Now()
	}
	return n, err
}

// Release implements raft.FSMSnapshot.
func (p *fsmSnapshot) Release() {
	p.f.lock()
	p.sn.Release()
	p.f.unlock()
}

// store is the durable part of a raft member.
type store struct {
	log    *raftLog
	stable *stableStore
	snaps  *raft.FileSnapshotStore
}

// openStore opens the log and the snapshots under dir, which must exist. onFail is told when the
// log can't be written any more.
func openStore(dir string, log *hcLog, onFail func(error)) (*store, error) {
	st := &store{}
	var err error
	if st.stable, err = openStable(dir); err != nil {
		return nil, err
	}
	if st.log, err = openRaftLog(filepath.Join(dir, logDir), segmentSize,
		onFail); err != nil {
		return nil, err
	}
	if err = dropUnfinished(filepath.Join(dir, snapshotDir)); err == nil {
		st.snaps, err = raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, log)
	}
	if err != nil {
		st.close()
		return nil, dataplane.E("open the snapshots in "+dir, dataplane.IOError, err)
	}
	if err := st.checkStable(dir); err != nil {
		st.close()
		return nil, err
	}
	return st, nil
}

// snapshotDir is where raft keeps its snapshots, and unfinished how those end that aren't complete.
const (
	snapshotDir = "snapshots"
	unfinished  = ".tmp"
)

// dropUnfinished removes what is left of snapshots that were being written when a process ended:
// raft never does, and each of them may be as large as all metadata.
func dropUnfinished(dir string) error {
	list, err := withSuffix(dir, unfinished)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, path := range list {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// checkStable says whether the term is lost: it was durable before the first entry or snapshot.
func (s *store) checkStable(dir string) error {
	list, err := s.snaps.List()
	if err != nil {
		return dataplane.E("list the snapshots in "+dir, dataplane.IOError, err)
	}
	last, err := s.log.LastIndex()
	if err == nil && len(s.stable.values) == 0 && (last > 0 || len(list) > 0) {
		err = errCorrupt("%s is lost; this server could vote twice", filepath.Join(dir, stableFile))
	}
	return err
}

func (s *store) close() error { return s.log.close() }

func serverID(id uint32) raft.ServerID { return raft.ServerID(strconv.FormatUint(uint64(id), 10)) }

func raftConfig(id uint32, log *hcLog) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = serverID(id)
	c.HeartbeatTimeout, c.ElectionTimeout = electionTime, electionTime
	c.LeaderLeaseTimeout = leaderLease
	c.CommitTimeout = 20 * time.Millisecond
	c.MaxAppendEntries = 512
	c.BatchApplyCh = true
	c.ShutdownOnRemove = false
	c.TrailingLogs = 16384
	c.SnapshotThreshold = 65536
	c.SnapshotInterval = 30 * time.Second
	c.NoLegacyTelemetry = true
	c.NoSnapshotRestoreOnStart = true // see loadSnapshot
	c.Logger = log
	return c
}

// streamLayer carries raft between servers: connections of the session's raft service on the port
// that everything else uses too.
type streamLayer struct {
	addr   raft.ServerAddress
	cred   *session.Credentials
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newStreamLayer(addr string, cred *session.Credentials) *streamLayer {
	return &streamLayer{addr: raft.ServerAddress(addr), cred: cred,
		conns: make(chan net.Conn, 16), closed: make(chan struct{})}
}

// take hands over a connection that asked for the raft service.
func (s *streamLayer) take(c net.Conn) {
	select {
	case s.conns <- c:
	case <-s.closed:
		c.Close()
	}
}

// Accept implements net.Listener.
func (s *streamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (s *streamLayer) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

type streamAddr string

func (a streamAddr) Network() string { return "tcp" }
func (a streamAddr) String() string  { return string(a) }

// Addr implements net.Listener.
func (s *streamLayer) Addr() net.Addr { return streamAddr(s.addr) }

// Dial implements raft.StreamLayer.
func (s *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", string(addr))
	if err != nil {
		return nil, err
	}
	nc, err := session.Client(ctx, conn, s.cred, session.ServiceRaft)
	if err != nil {
		return nil, err
	}
	if nc.Peer().Role != dataplane.RoleMDS {
		nc.Close()
		return nil, dataplane.E("connect to "+string(addr), dataplane.Denied,
			fmt.Errorf("%v is not a metadata server", nc.Peer()))
	}
	return nc, nil
}

// replica is this server as a member of the raft group.
type replica struct {
	log    *slog.Logger
	raft   *raft.Raft
	fsm    *fsm
	store  *store
	trans  groupTransport
	stream *streamLayer
	self   raft.ServerID
	// offline: see Options.Offline.
	offline time.Duration

	failure   chan error // gets the reason when the server can't go on
	proposals chan *proposal
	entries   chan *entryInFlight
	stopped   chan struct{} // closed when raft is being shut down
	started   chan struct{} // closed when the log of the start has been applied: see giveBack
	running   sync.WaitGroup
	verify    verifier
	beats     verifier    // for heartbeats
	alone     atomic.Bool // the short times of a server that is alone are set
	down      downServers
	sim       *Sim // nil but in simulations: stands for raft, the clock and threads
	canary    canary
}

// canary is a deliberate fault of a simulated group, which its check must find.
type canary uint8

const (
	canaryNone       canary = iota
	canaryForgetful         // clients repeat a request under a new id
	canaryUnverified        // a leader answers without asking the others whether it still leads
	canaryHasty             // a new leader doesn't wait for what earlier ones have committed
)

// groupTransport carries raft's messages.
type groupTransport interface {
	raft.Transport
	raft.WithClose
}

// startReplica opens what is under dir and joins the group.
func startReplica(dir string, id uint32, addr string, cred *session.Credentials,
	logger *slog.Logger, tune func(*raft.Config)) (*replica, error) {
	rlog := newHCLog(logger)
	stream := newStreamLayer(addr, cred)
	trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: stream,
		MaxPool: 4, Timeout: raftTimeout, Logger: rlog, MsgpackUseNewTimeFormat: true})
	return startReplicaOn(trans, stream, dir, id, logger, tune)
}

// startReplicaOn is startReplica with the group's messages carried by trans.
func startReplicaOn(trans groupTransport, stream *streamLayer, dir string, id uint32,
	logger *slog.Logger, tune func(*raft.Config)) (*replica, error) {
	rlog := newHCLog(logger)
	r := &replica{log: logger, self: serverID(id), failure: make(chan error, 1),
		proposals: make(chan *proposal, 4096), entries: make(chan *entryInFlight, entriesInFlight),
		stopped: make(chan struct{}), started: make(chan struct{}),
		beats: verifier{gather: beatGather}}
	r.stream, r.trans = stream, trans
	st, err := openStore(dir, rlog, r.fail)
	if err != nil {
		trans.Close()
		return nil, err
	}
	r.store = st
	reconfigured := make(chan struct{}, 1)
	r.fsm = &fsm{log: logger, s: NewState(), onFail: r.fail, onConfig: func() {
		select {
		case reconfigured <- struct{}{}:
		default:
		}
	}}
	if err := st.loadSnapshot(dir, r.fsm); err != nil {
		trans.Close()
		st.close()
		r.fsm.s.Close()
		return nil, err
	}
	debug.FreeOSMemory() // what reading the snapshot needed
	conf := raftConfig(id, rlog)
	if tune != nil {
		tune(conf)
	}
	var logs *raft.LogCache
	if logs, err = raft.NewLogCache(logCache, st.log); err == nil {
		r.raft, err = raft.NewRaft(conf, r.fsm, termGuard{logs}, st.stable, st.snaps, r.trans)
	}
	if err != nil {
		r.trans.Close()
		st.close()
		r.fsm.s.Close()
		return nil, dataplane.E("start the metadata server in "+dir, dataplane.IOError, err)
	}
	r.watchDown()
	r.setTimes()
	r.running.Go(r.runProposals)
	r.running.Go(r.runResults)
	r.running.Go(func() { r.runTimes(reconfigured) })
	last := r.raft.LastIndex()
	r.running.Go(func() { r.giveBack(last) })
	return r, nil
}

// giveBack gives the system back what applying the log at the start took, when it has been applied
// up to last. By itself the runtime does so over many minutes.
func (r *replica) giveBack(last uint64) {
	defer close(r.started)
	tick := time.NewTicker(silenceTick)
	defer tick.Stop()
	for r.raft.AppliedIndex() < last {
		select {
		case <-tick.C:
		case <-r.stopped:
			return
		}
	}
	debug.FreeOSMemory()
}

// runTimes keeps raft's times what they should be.
func (r *replica) runTimes(reconfigured <-chan struct{}) {
	tick := time.NewTicker(silenceTick)
	defer tick.Stop()
	s := newSilence()
	for {
		if r.alone.Load() {
			tick.Stop() // it follows nobody
		}
		select {
		case <-reconfigured:
			r.setTimes()
			tick.Reset(silenceTick)
		case <-tick.C:
			r.watchSilence(&s)
		case <-r.stopped:
			return
		}
	}
}

// loadSnapshot restores the newest snapshot. Raft would take an older one if that is damaged, and
// then miss log entries; so a damaged or missing one is an error here.
func (s *store) loadSnapshot(dir string, f *fsm) error {
	op := "start the metadata server in " + dir
	damaged := func(err error) error {
		switch kind := dataplane.KindOf(err); kind {
		case dataplane.NotSupported, dataplane.NoSpace: // a newer version; no memory
			return dataplane.E(op, kind, err)
		}
		return dataplane.E(op, dataplane.BadCRC, fmt.Errorf("its metadata is damaged (%w); this "+
			"server's directory must be made anew from the others", err))
	}
	list, err := s.snaps.List()
	if err != nil {
		return dataplane.E(op, dataplane.IOError, err)
	}
	index := uint64(0)
	if len(list) > 0 {
		index = list[0].Index
		stop := prefetch(filepath.Join(dir, snapshotDir, list[0].ID, "state.bin"))
		_, in, err := s.snaps.Open(list[0].ID)
		if err == nil {
			err = f.Restore(in)
			in.Close()
		}
		stop()
		if err != nil {
			return damaged(fmt.Errorf("snapshot %s: %w", list[0].ID, err))
		}
	}
	first, err := s.log.FirstIndex()
	if err != nil {
		return dataplane.E(op, dataplane.IOError, err)
	}
	if first > index+1 {
		return damaged(fmt.Errorf("the newest snapshot ends at %d, the log begins at %d", index,
			first))
	}
	return nil
}

// fail ends the server for a reason that can't be mended by going on.
func (r *replica) fail(err error) {
	select {
	case r.failure <- err:
	default:
	}
}

// voters returns how many servers vote, by the newest configuration.
func (r *replica) voters() (n int) {
	for _, s := range r.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			n++
		}
	}
	return n
}

// isAlone says whether this server is the only voter: then nobody else can be the leader.
func (r *replica) isAlone() bool {
	servers := r.raft.GetConfiguration().Configuration().Servers
	return len(servers) == 1 && servers[0].ID == r.self && servers[0].Suffrage == raft.Voter
}

// setTimes fits the election times to the size of the group.
func (r *replica) setTimes() {
	alone := r.isAlone()
	if r.alone.Swap(alone) == alone {
		return
	}
	c := r.raft.ReloadableConfig()
	c.HeartbeatTimeout, c.ElectionTimeout = electionTime, electionTime
	if alone {
		// A shorter time also makes raft look at once whether it should be the leader; it can't
		// be below the leader's lease, which means nothing to a server that is alone.
		c.HeartbeatTimeout, c.ElectionTimeout = leaderLease, leaderLease
	}
	if err := r.raft.ReloadConfig(c); err != nil {
		r.log.Warn("raft timeouts not changed", "reason", err)
	}
}

// shutdown leaves the group's work in an orderly way and closes the log.
func (r *replica) shutdown() error {
	if r.raft.State() == raft.Leader && !r.isAlone() {
		// The others needn't wait for an election; if it fails they will.
		if err := r.raft.LeadershipTransfer().Error(); err != nil {
			r.log.Info("leadership not handed over", "reason", err)
		}
	}
	close(r.stopped)
	// First what is on its way: raft never answers an entry that waits for its turn when it stops.
	r.running.Wait()
	err := r.raft.Shutdown().Error()
	r.trans.Close()
	if cerr := r.store.close(); err == nil {
		err = cerr
	}
	if err != nil {
		return dataplane.E("stop the metadata server", dataplane.IOError, err)
	}
	return nil
}

// free gives the memory of the state back, after the last request has been handled.
func (r *replica) free() {
	r.fsm.mu.Lock()
	r.fsm.s.Close()
	r.fsm.mu.Unlock()
}

// notLeader tells a client where the leader is.
type notLeader struct{ addr string }

func (e *notLeader) Error() string {
	if e.addr == "" {
		return "not the leader, and none is known"
	}
	return "not the leader: that is " + e.addr
}

// LeaderAddr is the "ip:port" of the leader, or "".
func (e *notLeader) LeaderAddr() string { return e.addr }

// notLeader returns the error for requests that only the leader answers.
func (r *replica) notLeader() error {
	if r.sim != nil {
		return &notLeader{}
	}
	addr, id := r.raft.LeaderWithID()
	if id == r.self {
		addr = "" // elected, and not ready yet
	}
	return &notLeader{string(addr)}
}

// raftError makes our kind of error of raft's.
func (r *replica) raftError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost),
		errors.Is(err, raft.ErrLeadershipTransferInProgress),
		errors.Is(err, raft.ErrAbortedByRestore), errors.Is(err, errOtherTerm):
		return r.notLeader()
	case errors.Is(err, raft.ErrRaftShutdown):
		return dataplane.E("metadata server", dataplane.Closed, err)
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return dataplane.E("metadata server", dataplane.Overloaded, err)
	}
	return dataplane.E("metadata server", dataplane.Internal, err)
}
