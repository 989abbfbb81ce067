package mds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// The files of a metadata server's directory.
const (
	identityFile = "identity.json" // who this server is; written last by Format
	lockFile     = "lock"          // held (flock) by the process that serves the directory
	raftDir      = "raft"          // raft/log: the log; raft/snapshots; raft/stable: term and vote
	logDir       = "log"

	identityVersion = 1
)

var clusterName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,63}$`)

// identity is what identity.json holds.
type identity struct {
	Version     int               `json:"version"`
	ClusterID   []byte            `json:"cluster_id"`
	ClusterName string            `json:"cluster_name"`
	Node        uint32            `json:"node"`
	Addr        string            `json:"addr"`
	Verifier    *session.Verifier `json:"verifier,omitempty"`
	// Keys and Secure (all connections are encrypted) are of a new cluster: until the first leader
	// has put them into the state.
	Keys   *ClusterKeys `json:"keys,omitempty"`
	Secure bool         `json:"secure,omitempty"`
	// Removed: the cluster doesn't know this server any more.
	Removed bool `json:"removed,omitempty"`
}

// Peer is a metadata server of a new cluster.
type Peer struct {
	Node uint32 // its number, from 1
	Addr string // "ip:port"
}

// FormatOptions say which server Format makes.
type FormatOptions struct {
	Cluster     dataplane.ClusterID // random; the same for all servers of the cluster
	ClusterName string
	Addr        string // "ip:port" of this server, as others reach it
	// Verifier of the cluster's password: with it the server hands out the node key. Zero: none.
	Verifier session.Verifier
	// Keys of a new cluster, and whether it begins with all connections encrypted.
	Keys   *ClusterKeys
	Secure bool
	// Node is this server's number; 0 means 1.
	Node uint32
	// Peers are all servers of a new cluster of several, this one among them. Empty: it is alone.
	Peers []Peer
	// Join: the cluster exists, and has given this server its number (control.AdminAddMDS). It
	// starts with nothing and gets everything from the others.
	Join bool
}

// Format makes the directory of a metadata server of a new cluster. dir must not exist or be
// empty. When it fails nothing is left.
func Format(dir string, o FormatOptions) (err error) {
	op := "make a metadata server in " + dir
	if o.Node == 0 {
		o.Node = 1
	}
	if len(o.Peers) == 0 {
		o.Peers = []Peer{{o.Node, o.Addr}}
	}
	if err := o.check(op); err != nil {
		return err
	}
	undo, err := prepareDir(dir, op)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			undo()
		}
	}()
	if o.Join {
		if err := os.MkdirAll(filepath.Join(dir, raftDir, logDir), 0o700); err != nil {
			return dataplane.E(op, dataplane.IOError, err)
		}
	} else if err := bootstrap(dir, &o); err != nil {
		return dataplane.E(op, dataplane.KindOf(err), err)
	}
	id := identity{Version: identityVersion, ClusterID: o.Cluster[:], ClusterName: o.ClusterName,
		Node: o.Node, Addr: o.Addr, Keys: o.Keys, Secure: o.Secure}
	if len(o.Verifier.StoredKey) > 0 {
		id.Verifier = &o.Verifier
	}
	return id.write(dir, op)
}

func (o *FormatOptions) check(op string) error {
	mine := false
	for _, p := range o.Peers {
		host, port, err := net.SplitHostPort(p.Addr)
		if err != nil || net.ParseIP(host) == nil || port == "" || port == "0" {
			return dataplane.E(op, dataplane.Invalid,
				fmt.Errorf("address %q of server %d: ip:port is needed", p.Addr, p.Node))
		}
		mine = mine || p.Node == o.Node && p.Addr == o.Addr
	}
	switch {
	case !clusterName.MatchString(o.ClusterName):
		return dataplane.E(op, dataplane.Invalid, fmt.Errorf("cluster name %q: 1 to 63 letters, "+
			"digits, _ and -", o.ClusterName))
	case o.Cluster == dataplane.ClusterID{}:
		return dataplane.E(op, dataplane.Invalid, errors.New("no cluster id"))
	case !mine:
		return dataplane.E(op, dataplane.Invalid, errors.New("this server isn't among the peers"))
	}
	return nil
}

// prepareDir makes dir and says how to undo what Format does in it.
func prepareDir(dir, op string) (undo func(), err error) {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, dataplane.E(op, dataplane.IOError, err)
		}
		return func() { os.RemoveAll(dir) }, nil
	case err != nil:
		return nil, dataplane.E(op, dataplane.IOError, err)
	case len(entries) > 0:
		if id, err := readIdentity(dir); err == nil {
			return nil, dataplane.E(op, dataplane.Exists, fmt.Errorf(
				"it already holds metadata server %d of cluster %s", id.Node, id.ClusterName))
		}
		return nil, dataplane.E(op, dataplane.NotEmpty, errors.New("use an empty directory"))
	}
	return func() {
		os.RemoveAll(filepath.Join(dir, raftDir))
		os.Remove(filepath.Join(dir, identityFile))
		os.Remove(filepath.Join(dir, lockFile))
	}, nil
}

// bootstrap writes the first configuration of the raft group.
func bootstrap(dir string, o *FormatOptions) error {
	base := filepath.Join(dir, raftDir)
	if err := os.MkdirAll(filepath.Join(base, logDir), 0o700); err != nil {
		return dataplane.E("", dataplane.IOError, err)
	}
	rlog := newHCLog(slog.New(slog.DiscardHandler))
	st, err := openStore(base, rlog, func(error) {})
	if err != nil {
		return err
	}
	var servers raft.Configuration
	for _, p := range o.Peers {
		servers.Servers = append(servers.Servers, raft.Server{Suffrage: raft.Voter,
			ID: serverID(p.Node), Address: raft.ServerAddress(p.Addr)})
	}
	_, trans := raft.NewInmemTransport(raft.ServerAddress(o.Addr))
	err = raft.BootstrapCluster(raftConfig(o.Node, rlog), st.log, st.stable, st.snaps, trans, servers)
	if cerr := st.close(); err == nil {
		err = cerr
	}
	if err != nil {
		return dataplane.E("write the first log entry", dataplane.IOError, err)
	}
	return nil
}

// write makes the identity durable.
func (id *identity) write(dir, op string) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return dataplane.E(op, dataplane.Internal, err)
	}
	err = replaceFile(filepath.Join(dir, identityFile), append(b, '\n'))
	if err == nil {
		err = syncDir(dir)
	}
	if err == nil {
		err = syncDir(filepath.Dir(filepath.Clean(dir)))
	}
	if err != nil {
		return dataplane.E(op, dataplane.IOError, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func readIdentity(dir string) (*identity, error) {
	op := "read " + filepath.Join(dir, identityFile)
	b, err := os.ReadFile(filepath.Join(dir, identityFile))
	if err != nil {
		kind := dataplane.IOError
		if errors.Is(err, fs.ErrNotExist) {
			kind = dataplane.NotFound
			err = errors.New("no metadata server was made there; if its disk isn't mounted, mount it")
		}
		return nil, dataplane.E(op, kind, err)
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil {
		return nil, dataplane.E(op, dataplane.BadCRC, fmt.Errorf("%w; put it back from a copy, or take "+
			"this server out (pstorage rm-mds) and make a new one", err))
	}
	if id.Version != identityVersion {
		return nil, dataplane.E(op, dataplane.NotSupported,
			fmt.Errorf("version %d; this program knows %d", id.Version, identityVersion))
	}
	if len(id.ClusterID) != len(dataplane.ClusterID{}) || id.Node == 0 {
		return nil, dataplane.E(op, dataplane.BadCRC, errors.New("its contents make no sense"))
	}
	return &id, nil
}

// NodeIn returns the number of the metadata server that was made in dir.
func NodeIn(dir string) (uint32, error) {
	id, err := readIdentity(dir)
	if err != nil {
		return 0, err
	}
	return id.Node, nil
}

// lockDir keeps other processes away from a directory until the file is closed.
func lockDir(dir string) (*os.File, error) {
	op := "lock " + dir
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, dataplane.E(op, dataplane.IOError, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, dataplane.E(op, dataplane.Exists,
				errors.New("another metadata server is running in it"))
		}
		return nil, dataplane.E(op, dataplane.IOError, err)
	}
	return f, nil
}

// Options say what Run runs.
type Options struct {
	Dir string
	// Cred are what this server proves itself with; the role must be RoleMDS.
	Cred *session.Credentials
	// Addr to listen on, "ip:port"; empty: the one given to Format.
	Addr string
	Log  *slog.Logger // nil: slog.Default()
	// Ready is called once when the server listens.
	Ready func(addr string)
	// Leading is called when the server begins (true) and ceases to lead. It must not block.
	Leading func(bool)
	// Offline is how long a silent chunk server has to come back before its chunks are copied to
	// others; 0: 300 s. One whose disk failed has no time.
	Offline time.Duration

	// Servers returns where metadata servers of the cluster may be, besides those that this one
	// knows of by itself; nil: nowhere.
	Servers func() []string
	// OnServers is told where all metadata servers are when that has changed, while this one is a
	// member and there is a leader.
	OnServers func(addrs []string)
	// OnObserver is called once, before Ready; nil: nobody wants to know.
	OnObserver func(*Observer)

	tune func(*raft.Config) // tests
}

// Run serves a metadata server's directory until ctx ends or it can't go on. The error is nil if
// ctx ended.
func Run(ctx context.Context, o Options) (err error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	op := "start the metadata server in " + o.Dir
	id, err := readIdentity(o.Dir)
	if err != nil {
		return err
	}
	switch {
	case o.Cred == nil || o.Cred.Role != dataplane.RoleMDS:
		return dataplane.E(op, dataplane.Invalid, errors.New("no credentials of a metadata server"))
	case o.Cred.Cluster != dataplane.ClusterID(id.ClusterID):
		return dataplane.E(op, dataplane.WrongCluster, fmt.Errorf(
			"it belongs to cluster %s (%x), the key to %s (%v)", id.ClusterName, id.ClusterID,
			o.Cred.ClusterName, o.Cred.Cluster))
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if id.Removed {
		return removedError(id, o.Dir)
	}
	if o.Addr == "" {
		o.Addr = id.Addr
	}
	listener, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return dataplane.E(op, dataplane.Unreachable, err)
	}
	defer listener.Close()
	start := func() (*replica, error) {
		return startReplica(filepath.Join(o.Dir, raftDir), id.Node, id.Addr, o.Cred, o.Log, o.tune)
	}
	r, err := start()
	if dataplane.KindOf(err) == dataplane.BadCRC {
		if err = resync(ctx, id, &o, err); err == nil {
			r, err = start()
		}
	}
	if err != nil {
		return err
	}
	r.offline = o.Offline
	s := &server{r: r, log: o.Log, id: id, cred: o.Cred}
	return s.run(ctx, listener, id, &o)
}

// run serves until ctx ends or something fails, then stops everything in order.
func (s *server) run(ctx context.Context, listener net.Listener, id *identity, o *Options) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	so := &session.ServerOptions{Cred: o.Cred, Log: o.Log, Auth: s.passwordAuth(),
		Fails: session.NewFailures(clock())}
	served := make(chan error, 1)
	go func() {
		served <- session.Serve(ctx, listener, so, func(c *session.NetConn) { s.conn(ctx, c) })
	}()
	leading := make(chan struct{})
	go func() {
		defer close(leading)
		s.watchLeadership(ctx, o.Leading)
	}()
	keys := make(chan struct{})
	go func() {
		defer close(keys)
		s.watchKeys(ctx)
	}()
	member := make(chan struct{})
	go func() {
		defer close(member)
		s.watchMembership(ctx, o)
	}()
	o.Log.Info("metadata server is up", "node", id.Node, "addr", listener.Addr().String(),
		"cluster", id.ClusterName, "dir", o.Dir)
	observer := &Observer{s: s}
	if o.OnObserver != nil {
		o.OnObserver(observer)
	}
	if o.Ready != nil {
		o.Ready(listener.Addr().String())
	}
	var err error
	ended := false
	select {
	case <-ctx.Done():
	case err = <-s.r.failure:
	case err = <-served:
		ended = true
	}
	// Stop taking requests, then leave the group, then close the log.
	cancel()
	<-leading
	<-member
	<-keys
	observer.end()
	serr := s.r.shutdown()
	if !ended {
		if e := <-served; err == nil {
			err = e
		}
	}
	s.r.free()
	if err == nil {
		err = serr
	}
	o.Log.Info("metadata server stopped", "node", id.Node)
	return err
}

// conn serves one connection by the service it asked for.
func (s *server) conn(ctx context.Context, c *session.NetConn) {
	switch p := c.Peer(); {
	case p.Service == session.ServiceRPC:
		ctx, done := s.newest.admit(ctx, p)
		defer done()
		if err := control.ServeConn(ctx, c, s); err != nil {
			s.log.Info("connection ended", "reason", err)
		}
	case p.Service == session.ServiceRaft && p.Role == dataplane.RoleMDS:
		s.r.stream.take(c)
	case p.Service == session.ServiceRelay:
		s.relay(ctx, c)
	default:
		s.log.Warn("connection refused", "peer", p.String(), "service", p.Service,
			"reason", "no such service for that role")
		c.Close()
	}
}

// maxRelays is how many connections a follower passes on at a time.
const maxRelays = 1024

// relay passes a connection on to the leader, for one that doesn't reach it.
func (s *server) relay(ctx context.Context, c *session.NetConn) {
	defer s.relays.Add(-1)
	refused := "no leader is known, or it is this server"
	addr, id := s.r.raft.LeaderWithID()
	if s.relays.Add(1) > maxRelays {
		addr, refused = "", fmt.Sprintf("%d connections are passed on already", maxRelays)
	}
	if addr == "" || id == s.r.self {
		s.log.Info("connection not passed on", "peer", c.Peer().String(), "reason", refused)
		c.Close()
		return
	}
	s.log.Info("connection passed on to the leader", "peer", c.Peer().String(), "leader", addr)
	if err := control.Relay(ctx, c, string(addr)); err != nil {
		s.log.Warn("connection not passed on", "reason", err)
	}
}

// watchLeadership begins and ends leaderships.
func (s *server) watchLeadership(ctx context.Context, tell func(bool)) {
	drop := func() {
		if l := s.lead.Swap(nil); l != nil {
			l.end()
			s.log.Info("not leading any more", "term", l.term)
			if tell != nil {
				tell(false)
			}
		}
	}
	defer drop()
	for {
		select {
		case <-ctx.Done():
			return
		case gained := <-s.r.raft.LeaderCh():
			drop() // a leadership lost and gained again is a new one
			if !gained {
				continue
			}
			term := s.r.raft.CurrentTerm()
			// What earlier leaders committed must be applied before anything is read here.
			if s.r.canary == canaryHasty {
				s.log.Warn("leading without a barrier")
			} else if err := s.r.raft.Barrier(0).Error(); err != nil {
				s.log.Info("leadership lost at once", "reason", err)
				continue
			}
			if s.r.raft.CurrentTerm() != term {
				continue // the channel says it again
			}
			s.foundKeys(ctx)
			s.lead.Store(lead(s.r, term))
			s.log.Info("leading", "term", term)
			if tell != nil {
				tell(true)
			}
		}
	}
}
