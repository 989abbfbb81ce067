package mds

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// How the group of metadata servers grows and shrinks, one server at a time:
//
//	add-mds      the leader gives a number that was never used, and adds the server without a vote
//	Format       the new server's directory: its number, nothing else
//	catch up     by snapshot and log, from the leader
//	mds-ready    the new server tells the leader what it has applied; close to the end it gets a vote
//	remove-mds   the leader takes it out; if that is the leader itself, another one leads first
//	             the removed server asks (mds-ready), is told, marks its directory and stops
//
// A server without a vote doesn't count for the majority, so one that was added and never started
// costs nothing.

const (
	lastNodeKey   = "mds.last-node" // configuration: the highest number ever given to a server
	readyLag      = 2048            // log entries that a server with a vote may be behind at first
	memberEvery   = time.Second     // between two looks at the own membership
	leaderMissing = 5               // looks without a leader before others are asked
	memberTimeout = 3 * time.Second // of a question to the others
)

// VoterWarning says what is wrong with a number of voting metadata servers; "": nothing.
func VoterWarning(n int) string {
	switch {
	case n == 2 || n == 4:
		return fmt.Sprintf("%d metadata servers survive the loss of %d, as %d would: make another "+
			"one", n, (n-1)/2, n-1)
	case n > 5:
		return fmt.Sprintf("%d metadata servers: more than 5 only make changes slower", n)
	}
	return ""
}

// serverFacts is what removeCase knows of a metadata server.
type serverFacts struct {
	node  uint32
	voter bool
	down  bool // doesn't answer the leader
}

// removeVerdict is whether a metadata server may be removed.
type removeVerdict uint8

const (
	removeNow      removeVerdict = iota
	removeUnknown                // there is no such server
	removeLast                   // nobody would be left
	removeMajority               // those left that answer aren't a majority of those left
	removeRisky                  // another one doesn't answer, while this one does: only by force
)

// removeCase decides whether server node may be removed.
func removeCase(servers []serverFacts, node uint32, force bool) removeVerdict {
	var target *serverFacts
	left, answering := 0, 0
	for i := range servers {
		s := &servers[i]
		switch {
		case s.node == node:
			target = s
		case s.voter:
			left++
			if !s.down {
				answering++
			}
		}
	}
	switch {
	case target == nil:
		return removeUnknown
	case !target.voter:
		return removeNow
	case left == 0:
		return removeLast
	case answering < left/2+1:
		return removeMajority
	case answering < left && !target.down && !force:
		return removeRisky
	}
	return removeNow
}

// downServers are the members that don't answer the leader's heartbeats.
type downServers struct {
	mu     sync.Mutex
	failed map[raft.ServerID]time.Time // when the last heartbeat failed, if none went well since
}

// downFor is how long a failed heartbeat counts. While a server is down, its heartbeats fail again
// and again, each after at most raftTimeout for connecting and as much for the answer. One of a
// leadership that has ended can fail as late as that, too; if the server leads again by then,
// Raft never says that it was the last one.
const downFor = 3 * raftTimeout

func (d *downServers) has(id raft.ServerID, now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	at, failed := d.failed[id]
	return failed && now.Sub(at) < downFor
}

func (d *downServers) note(o raft.Observation, now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch e := o.Data.(type) {
	case raft.LeaderObservation:
		clear(d.failed) // a new leader finds out by itself
	case raft.FailedHeartbeatObservation:
		d.failed[e.PeerID] = now
	case raft.ResumedHeartbeatObservation:
		delete(d.failed, e.PeerID)
	}
}

// watchDown keeps r.down until the server stops.
func (r *replica) watchDown() {
	r.down.failed = map[raft.ServerID]time.Time{}
	events := make(chan raft.Observation, 64)
	observer := raft.NewObserver(events, true, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.FailedHeartbeatObservation,
			raft.ResumedHeartbeatObservation:
			return true
		}
		return false
	})
	r.raft.RegisterObserver(observer)
	r.running.Go(func() {
		for {
			select {
			case o := <-events:
				r.down.note(o, time.Now())
			case <-r.stopped:
				// Raft waits for those who listen.
				go func() {
					for range events {
					}
				}()
				r.raft.DeregisterObserver(observer)
				close(events)
				return
			}
		}
	})
}

// find returns a member, or nil.
func (r *replica) find(node uint32) *raft.Server {
	s, _ := r.findAt(node)
	return s
}

// findAt is find, and says by which configuration, as raft wants it for the next one.
func (r *replica) findAt(node uint32) (s *raft.Server, index uint64) {
	f := r.raft.GetConfiguration()
	for _, s := range f.Configuration().Servers {
		if s.ID == serverID(node) {
			return &s, f.Index()
		}
	}
	return nil, f.Index()
}

// doc describes a member.
func (r *replica) doc(node uint32) control.MDSDoc {
	for _, d := range r.servers() {
		if d.ID == string(serverID(node)) {
			return d
		}
	}
	return control.MDSDoc{ID: string(serverID(node))}
}

// addMDS makes a server a member without a vote. Asked again with the same address, as after a
// lost answer, it gives the same number while that server has no vote.
func (c *call) addMDS(args *control.AddMDSArgs) (any, error) {
	if c.r.sim != nil {
		return nil, c.fail(dataplane.NotSupported, "there is no raft group here")
	}
	host, port, err := net.SplitHostPort(args.Addr)
	if err != nil || net.ParseIP(host) == nil || port == "" || port == "0" {
		return nil, c.fail(dataplane.Invalid, "address %.80q: ip:port is needed", args.Addr)
	}
	doc := &control.AddMDSDoc{}
	if c.id != nil && c.id.Verifier != nil {
		if doc.Verifier, err = json.Marshal(c.id.Verifier); err != nil {
			return nil, c.fail(dataplane.Internal, "the password's verifier: %v", err)
		}
	}
	f := c.r.raft.GetConfiguration()
	for _, s := range f.Configuration().Servers {
		if string(s.Address) != args.Addr {
			continue
		}
		if s.Suffrage == raft.Voter {
			return nil, c.fail(dataplane.Exists, "metadata server %s is at %s; remove it first "+
				"(pstorage rm-mds %s) if it is gone", s.ID, s.Address, s.ID)
		}
		doc.Node, doc.MDS = nodeOf(s.ID), c.r.servers()
		return doc, nil
	}
	if doc.Node, err = c.newNode(); err != nil {
		return nil, err
	}
	add := c.r.raft.AddNonvoter(serverID(doc.Node), raft.ServerAddress(args.Addr), f.Index(),
		raftTimeout)
	if err := add.Error(); err != nil {
		return nil, c.r.raftError(err)
	}
	doc.MDS = c.r.servers()
	c.memberEvent(control.Info, "mds-added", fmt.Sprintf(
		"metadata server %d at %s was added; it votes when it has caught up", doc.Node, args.Addr))
	return doc, nil
}

// newNode gives a number that no metadata server ever had: one that was removed while it was off
// still takes itself for a member.
func (c *call) newNode() (uint32, error) {
	last, version, err := c.lastNode()
	if err != nil {
		return 0, err
	}
	return last + 1, c.setLastNode(last+1, version)
}

// keepNumbers notes the highest number in use, before the server that has it may be removed.
func (c *call) keepNumbers() error {
	last, version, err := c.lastNode()
	if err != nil {
		return err
	}
	return c.setLastNode(last, version)
}

// lastNode is the highest number that is known to have been given to a metadata server, and the
// version of the configuration that says so.
func (c *call) lastNode() (last uint32, version uint64, err error) {
	c.r.fsm.mu.RLock()
	defer c.r.fsm.mu.RUnlock()
	for _, e := range c.r.fsm.s.config {
		if e.key == lastNodeKey {
			n, err := strconv.ParseUint(e.value, 10, 31)
			if err != nil {
				return 0, 0, c.fail(dataplane.Invalid, "configuration %s is %q, not a number",
					lastNodeKey, e.value)
			}
			last, version = uint32(n), e.version
		}
	}
	for _, s := range c.r.raft.GetConfiguration().Configuration().Servers {
		last = max(last, nodeOf(s.ID))
	}
	return last, version, nil
}

func (c *call) setLastNode(last uint32, version uint64) error {
	_, err := c.change(&cmdSetConfig{Key: lastNodeKey,
		Value: strconv.FormatUint(uint64(last), 10), Version: version})
	return err
}

// nodeOf is the number in a server's id.
func nodeOf(id raft.ServerID) uint32 {
	n, err := strconv.ParseUint(string(id), 10, 32)
	assert(err == nil, "id of a metadata server", id)
	return uint32(n)
}

func (c *call) memberEvent(sev control.Severity, code, message string) {
	_, err := c.change(&cmdAddEvent{Severity: sev, Source: "mds " + string(c.r.self), Code: code,
		Message: message})
	if err != nil {
		c.log.Warn("an event isn't written", "code", code, "message", message, "err", err)
	}
}

// removeMDS takes a server out of the group.
func (c *call) removeMDS(args *control.RemoveMDSArgs) (any, error) {
	if c.r.sim != nil {
		return nil, c.fail(dataplane.NotSupported, "there is no raft group here")
	}
	f := c.r.raft.GetConfiguration()
	switch removeCase(c.r.facts(f.Configuration()), args.Node, args.Force) {
	case removeUnknown:
		return nil, c.fail(dataplane.NotFound, "metadata server %d", args.Node)
	case removeLast:
		return nil, c.fail(dataplane.Invalid,
			"metadata server %d is the only one: without it the cluster's metadata is lost", args.Node)
	case removeMajority:
		return nil, c.fail(dataplane.NotReady, "of the servers that would be left too few answer "+
			"for a majority; start them first")
	case removeRisky:
		return nil, c.fail(dataplane.NotReady, "another metadata server doesn't answer, and this "+
			"one does: start or remove the other one first, or use --force")
	}
	doc := &control.RemoveMDSDoc{Removed: c.r.doc(args.Node)}
	if serverID(args.Node) == c.r.self {
		if err := c.r.raft.LeadershipTransfer().Error(); err != nil {
			return nil, c.fail(dataplane.NotReady, "server %d leads, and no other one takes over: %w",
				args.Node, err)
		}
		return nil, c.r.notLeader() // the new leader is asked
	}
	if err := c.keepNumbers(); err != nil {
		return nil, err
	}
	if err := c.r.raft.RemoveServer(serverID(args.Node), f.Index(), raftTimeout).Error(); err != nil {
		return nil, c.r.raftError(err)
	}
	doc.MDS = c.r.servers()
	c.memberEvent(control.Warning, "mds-removed", fmt.Sprintf(
		"metadata server %d at %s was removed", args.Node, doc.Removed.Addr))
	return doc, nil
}

// facts is what removeCase knows of the servers of a configuration.
func (r *replica) facts(conf raft.Configuration) (list []serverFacts) {
	for _, s := range conf.Servers {
		list = append(list, serverFacts{node: nodeOf(s.ID), voter: s.Suffrage == raft.Voter,
			down: r.down.has(s.ID, time.Now())})
	}
	return list
}

// mdsReady answers a metadata server that asks for its place.
func (c *call) mdsReady(req *control.MDSReadyReq) (any, error) {
	if c.r.sim != nil {
		return nil, c.fail(dataplane.NotSupported, "there is no raft group here")
	}
	if err := c.l.valid(c.ctx); err != nil {
		return nil, err
	}
	if req.Damaged != "" {
		return c.replaceDamaged(req)
	}
	s, index := c.r.findAt(req.Node)
	switch {
	case s == nil:
		return nil, c.fail(dataplane.NotFound, "metadata server %d isn't a member", req.Node)
	case s.Suffrage == raft.Voter:
		return &control.MDSReadyReply{Voter: true}, nil
	case req.Applied+readyLag < c.r.raft.LastIndex():
		return &control.MDSReadyReply{}, nil
	}
	if err := c.replaced(string(s.Address)); err != nil {
		return nil, err
	}
	// Of the members as they were seen here: one that is being removed meanwhile would be added anew.
	if err := c.r.raft.AddVoter(s.ID, s.Address, index, raftTimeout).Error(); err != nil {
		return nil, c.r.raftError(err)
	}
	n := c.r.voters()
	c.memberEvent(control.Info, "mds-votes", fmt.Sprintf(
		"metadata server %d has caught up and votes; %d do", req.Node, n))
	return &control.MDSReadyReply{Voter: true}, nil
}

// mdsList says where the metadata servers are.
func (c *call) mdsList(*control.Empty) (any, error) {
	reply := &control.MDSListReply{}
	for _, s := range c.r.servers() {
		reply.Addrs = append(reply.Addrs, s.Addr)
	}
	return reply, nil
}

// removedError is why a server that was removed doesn't start.
func removedError(id *identity, dir string) error {
	return dataplane.E("serve "+dir, dataplane.Fenced, fmt.Errorf("metadata server %d was removed "+
		"from cluster %s and can't come back: remove this directory, and make a new server with "+
		"pstorage make-mds", id.Node, id.ClusterName))
}

// watchMembership asks for the vote of a server that has none, and notices that a server was
// removed. A server that follows a leader as a voter has nothing to ask.
func (s *server) watchMembership(ctx context.Context, o *Options) {
	tick := time.NewTicker(memberEvery)
	defer tick.Stop()
	var known []string
	for missing := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		me := s.r.find(s.id.Node)
		_, leader := s.r.raft.LeaderWithID()
		if missing++; leader != "" && me != nil {
			missing = 0
			known = s.tellServers(o, known)
		}
		if waits := me != nil && me.Suffrage == raft.Nonvoter; !waits && missing < leaderMissing {
			continue
		}
		err := s.askMembership(ctx, o)
		if dataplane.KindOf(err) == dataplane.NotFound {
			s.id.Removed = true
			if werr := s.id.write(o.Dir, "mark "+o.Dir+" as removed"); werr != nil {
				s.log.Error("this server was removed, and that can't be written down", "err", werr)
			}
			s.r.fail(removedError(s.id, o.Dir))
			return
		}
		if err != nil && ctx.Err() == nil {
			s.log.Debug("asking the other metadata servers for this one's place", "err", err)
		}
	}
}

// tellServers calls OnServers if the addresses aren't the known ones any more, and returns them.
func (s *server) tellServers(o *Options, known []string) []string {
	var addrs []string
	for _, m := range s.r.servers() {
		addrs = append(addrs, m.Addr)
	}
	if o.OnServers != nil && !slices.Equal(addrs, known) {
		o.OnServers(addrs)
	}
	return addrs
}

// askMembership asks the leader, wherever it is.
func (s *server) askMembership(ctx context.Context, o *Options) error {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	k, err := control.Dial(ctx, control.Options{Cred: o.Cred, Log: s.log, Addrs: func() []string {
		var addrs []string
		for _, m := range s.r.servers() {
			if m.ID != string(s.r.self) {
				addrs = append(addrs, m.Addr)
			}
		}
		if o.Servers != nil {
			for _, a := range o.Servers() {
				if a != s.id.Addr {
					addrs = append(addrs, a)
				}
			}
		}
		return addrs
	}})
	if err != nil {
		return err
	}
	defer k.Close()
	var reply control.MDSReadyReply
	err = k.Call(ctx, control.OpMDSReady, &control.MDSReadyReq{Node: s.id.Node,
		Applied: s.r.raft.AppliedIndex()}, &reply)
	if err == nil && reply.Voter {
		s.log.Info("this metadata server votes")
	}
	return err
}
