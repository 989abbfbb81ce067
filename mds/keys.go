package mds

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// The cluster's keys are entries of its configuration that nobody is shown, so they are replicated
// and in the snapshots; the directories are readable by their owner only:
//
//	security.keys        the generations, with the private halves
//	security.node.ID     a node that was given a certificate; revoked ones stay
//	security.cs.ID       the node that a chunk server belongs to: see csowner.go
//
// A rotation is three steps, each a change of security.keys that every process learns of at once
// (control.OpKeys) and that is refused while a connected process isn't ready for it:
//
//	start    a new generation is accepted by everybody, besides the old one
//	switch   nodes have a key of the new one certified, and prove themselves with it
//	finish   the old one isn't accepted any more; connections made with it are closed
//
// A cluster of an older version has generation 0 only, the key in its nodes' files. Its first
// rotation gives all of them certificates; each node gets all roles, as it had until then.
const (
	keyPrefix  = "security."
	keysKey    = keyPrefix + "keys"
	nodePrefix = keyPrefix + "node."
)

// ClusterKeys are the keys of a cluster with their private halves.
type ClusterKeys struct {
	Generations []KeyGeneration `json:"generations"` // ascending
	Current     uint32          `json:"current"`
	// Founder is the node on which the cluster was made; only in FormatOptions.
	Founder *session.Certificate `json:"founder,omitempty"`
	Host    string               `json:"host,omitempty"` // of the founder
}

// KeyGeneration is a session.Generation with its private half.
type KeyGeneration struct {
	Number  uint32         `json:"number"`
	Key     session.Secret `json:"key"`
	Private session.Secret `json:"private"` // Ed25519 seed
}

// nodeRecord is what the cluster knows of a node.
type nodeRecord struct {
	Host    string `json:"host"`
	Roles   uint8  `json:"roles"`
	TimeNs  int64  `json:"time_ns"`
	Revoked bool   `json:"revoked,omitempty"`
}

func newGeneration(number uint32) KeyGeneration {
	return KeyGeneration{Number: number, Key: session.NewSecret(), Private: session.NewSecret()}
}

// NewClusterKeys makes the keys of a new cluster, and those of its first node, which has all roles.
func NewClusterKeys(cluster dataplane.ClusterID, host string, secure bool) (*ClusterKeys,
	session.KeySet) {
	c := &ClusterKeys{Generations: []KeyGeneration{newGeneration(1)}, Current: 1, Host: host}
	private := session.NewSecret()
	c.Founder = &session.Certificate{Roles: session.AllRoles, Generation: 1, Cluster: cluster,
		Node: newNodeID(), Public: session.PublicKey(&private)}
	k := c.public()
	k.Secure, k.Private = secure, private
	k.Cert = session.SignCertificate(c.Founder, &c.Generations[0].Private)
	return c, k
}

func newNodeID() uint64 { return nodeIDFrom(session.NewSecret()) }

// newNodeID gives a number to the node that asks for its first key. A request that is repeated gets
// the one that it was given before: only that is recorded.
func (c *call) newNodeID(public [32]byte) uint64 {
	le := binary.LittleEndian
	b := le.AppendUint64(le.AppendUint64(public[:], c.from.Peer), c.from.Req)
	return nodeIDFrom(sha256.Sum256(b))
}

func nodeIDFrom(s [32]byte) uint64 {
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | 1<<56
}

// public is what all nodes are told.
func (c *ClusterKeys) public() session.KeySet {
	k := session.KeySet{Current: c.Current}
	for i := range c.Generations {
		g := &c.Generations[i]
		p := session.Generation{Number: g.Number, Key: g.Key}
		if g.Number != 0 {
			p.Sign = session.PublicKey(&g.Private)
		}
		k.Generations = append(k.Generations, p)
	}
	return k
}

func (c *ClusterKeys) generation(number uint32) *KeyGeneration {
	for i := range c.Generations {
		if c.Generations[i].Number == number {
			return &c.Generations[i]
		}
	}
	return nil
}

// certify signs a certificate of the current generation.
func (c *ClusterKeys) certify(cluster dataplane.ClusterID, node uint64, roles uint8,
	public [32]byte) ([]byte, error) {
	g := c.generation(c.Current)
	if g == nil || g.Number == 0 {
		return nil, dataplane.E("certify a node", dataplane.NotSupported,
			errors.New("this cluster's nodes have no certificates yet (pstorage rotate-keys)"))
	}
	return session.SignCertificate(&session.Certificate{Roles: roles, Generation: g.Number,
		Cluster: cluster, Node: node, Public: public}, &g.Private), nil
}

// next is the step of a rotation that comes next.
func (c *ClusterKeys) next() string {
	switch last := c.Generations[len(c.Generations)-1].Number; {
	case len(c.Generations) == 1:
		return control.RotateStart
	case c.Current != last:
		return control.RotateSwitch
	}
	return control.RotateFinish
}

// step takes the next step.
func (c *ClusterKeys) step() {
	last := c.Generations[len(c.Generations)-1]
	switch c.next() {
	case control.RotateStart:
		c.Generations = append(c.Generations, newGeneration(last.Number+1))
	case control.RotateSwitch:
		c.Current = last.Number
	case control.RotateFinish:
		c.Generations = []KeyGeneration{last}
	}
}

// keysState is what the state says about keys.
type keysState struct {
	keys    *ClusterKeys // nil: generation 0 only
	version uint64       // of the entry
	set     session.KeySet
	nodes   map[uint64]nodeRecord
	secure  bool
	// versions are those of the nodes' entries.
	versions map[uint64]uint64
}

// keysOf reads the entries about keys. legacy is generation 0, for clusters that have no others.
func keysOf(s *State, legacy *session.Generation) (*keysState, error) {
	k := &keysState{nodes: map[uint64]nodeRecord{}, versions: map[uint64]uint64{}}
	version := uint64(0)
	var revoked []uint64
	for _, e := range s.config {
		id, isNode := strings.CutPrefix(e.key, nodePrefix)
		switch {
		case e.key == control.ConfigMode:
			version = max(version, e.version)
			k.secure = e.value == modeSecure
		case e.key == keysKey:
			version = max(version, e.version)
			k.keys, k.version = &ClusterKeys{}, e.version
			if err := json.Unmarshal([]byte(e.value), k.keys); err != nil {
				return nil, errCorrupt("the cluster's keys: %v", err)
			}
		case isNode:
			var n nodeRecord
			var b [8]byte
			_, err := hex.Decode(b[:], []byte(id))
			if err == nil && len(id) == 16 {
				err = json.Unmarshal([]byte(e.value), &n)
			}
			if err != nil {
				return nil, errCorrupt("node %.20q: %v", id, err)
			}
			k.nodes[nodeID(b)], k.versions[nodeID(b)] = n, e.version
			if n.Revoked {
				version = max(version, e.version)
				revoked = append(revoked, nodeID(b))
			}
		}
	}
	if k.keys != nil {
		k.set = k.keys.public()
	} else if legacy != nil {
		k.set.Generations = []session.Generation{*legacy}
	}
	slices.Sort(revoked)
	k.set.Version, k.set.Secure, k.set.Revoked = version, k.secure, revoked
	return k, nil
}

func nodeID(b [8]byte) (id uint64) {
	for _, v := range b {
		id = id<<8 | uint64(v)
	}
	return id
}

func nodeKey(id uint64) string { return fmt.Sprintf("%s%016x", nodePrefix, id) }

const (
	modeCRC    = "crc"
	modeSecure = "secure"
)

// legacy is generation 0 of this server's own keys, or nil.
func (s *server) legacy() *session.Generation {
	if s.cred == nil || s.cred.Ring == nil {
		return nil
	}
	if g := s.cred.Ring.Load().Generations; g[0].Number == 0 {
		return &g[0]
	}
	return nil
}

// keysNow reads the keys of the state as it is, and the channel that is closed when it changes.
func (s *server) keysNow() (*keysState, <-chan struct{}, error) {
	f := s.r.fsm
	changed := f.configChanged()
	f.mu.RLock()
	defer f.mu.RUnlock()
	k, err := keysOf(f.s, s.legacy())
	return k, changed, err
}

// keysAgain is after how long keys that couldn't be replaced are tried again.
const keysAgain = 5 * time.Second

// watchKeys keeps this server's own ring as the state says, until ctx ends. It has the private
// halves, so it certifies itself.
func (s *server) watchKeys(ctx context.Context) {
	if s.cred.Ring == nil {
		return
	}
	for {
		k, changed, err := s.keysNow()
		if err == nil && len(k.set.Generations) > 0 {
			err = s.cred.Ring.Update(&k.set, func(public [32]byte) ([]byte, error) {
				node, roles := newNodeID(), session.AllRoles
				if c := s.cred.Ring.Load().Certificate(); c != nil {
					node, roles = c.Node, c.Roles
				}
				return k.keys.certify(s.cred.Cluster, node, roles, public)
			})
		}
		var again <-chan time.Time
		if err != nil {
			s.log.Error("this server's keys can't be replaced", "err", err)
			again = time.After(keysAgain)
		}
		select {
		case <-changed:
		case <-again:
		case <-ctx.Done():
			return
		}
	}
}

// foundKeys puts the keys of a new cluster into the state, once.
func (s *server) foundKeys(ctx context.Context) {
	if s.id == nil || s.id.Keys == nil {
		return
	}
	k, _, err := s.keysNow()
	if err != nil || k.keys != nil {
		return
	}
	keys := *s.id.Keys
	founder := keys.Founder
	keys.Founder, keys.Host = nil, ""
	record := &nodeRecord{Host: s.id.Keys.Host, Roles: founder.Roles,
		TimeNs: time.Now().UnixNano()}
	err = s.setKey(ctx, origin{}, nodeKey(founder.Node), record, 0)
	if dataplane.KindOf(err) == dataplane.Conflict {
		err = nil // an earlier leader began with it
	}
	if err == nil && s.id.Secure {
		_, err = s.r.propose(ctx, &cmdSetConfig{Key: control.ConfigMode, Value: modeSecure,
			Any: true})
	}
	if err == nil {
		err = s.setKey(ctx, origin{}, keysKey, &keys, 0)
	}
	if err != nil {
		s.log.Warn("the cluster's keys aren't recorded yet", "err", err)
	}
}

// setKey replaces an entry about keys, by compare-and-set on its version.
func (s *server) setKey(ctx context.Context, from origin, key string, value any,
	version uint64) error {
	b, err := json.Marshal(value)
	if err != nil {
		return dataplane.E("encode "+key, dataplane.Internal, err)
	}
	res, err := s.r.propose(ctx, &cmdSetConfig{origin: from, Key: key, Value: string(b),
		Version: version})
	if err != nil {
		return err
	}
	return res.err("change the cluster's keys")
}

// secret refuses what may not be seen by others on the way.
func (c *call) secret() error {
	if !c.peer.Secure {
		return c.fail(dataplane.Denied, "keys are sent over encrypted connections only: is the peer's "+
			"program of an older version?")
	}
	return c.l.valid(c.ctx)
}

// keysRequest answers OpKeys, when there are newer keys than the asker's or it has waited enough.
func (c *call) keysRequest(req *control.KeysReq) (any, error) {
	if err := c.secret(); err != nil {
		return nil, err
	}
	c.l.keepers.heard(c.peer, req, c.l.now())
	wait := min(time.Duration(req.WaitMs)*time.Millisecond, control.MaxKeysWait)
	late := time.NewTimer(wait)
	defer late.Stop()
	for {
		k, changed, err := c.keysNow()
		if err != nil {
			return nil, err
		}
		// While a new cluster's keys aren't recorded yet there is nothing to tell.
		if k.set.Version > req.Version && len(k.set.Generations) > 0 {
			b, err := json.Marshal(&k.set)
			return &control.KeysReply{Keys: b}, err
		}
		select {
		case <-changed:
		case <-late.C:
			return &control.KeysReply{}, nil
		case <-c.ctx.Done():
			return nil, c.ctx.Err()
		case <-c.l.ctx.Done():
			return nil, c.r.notLeader()
		}
	}
}

// renewKey certifies a new key of a node. One without a certificate gets one: the roles it has had.
func (c *call) renewKey(req *control.RenewKeyReq) (any, error) {
	if err := c.secret(); err != nil {
		return nil, err
	}
	k, _, err := c.keysNow()
	if err != nil {
		return nil, err
	}
	if k.keys == nil {
		return nil, c.fail(dataplane.NotSupported, "this cluster's nodes have no certificates")
	}
	node := c.peer.Node
	record, known := k.nodes[node]
	switch {
	case node == 0:
		node = c.newNodeID(req.Public)
		record = nodeRecord{Host: c.peer.Name, Roles: session.AllRoles, TimeNs: c.keyTime()}
	case !known || record.Revoked:
		return nil, c.fail(dataplane.Denied, "node %016x was revoked", node)
	}
	return c.certify(k, node, record, known, req.Public)
}

// keyTime is the time that a node's record gets: later than those of all records that there are, as
// of two of one host the later one counts (ownership), and the clock of an earlier leader may have
// been ahead.
func (c *call) keyTime() int64 {
	f := c.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	return max(time.Now().UnixNano(), f.s.nowNs+1)
}

// certify signs a node's key, and records the node if it is new.
func (c *call) certify(k *keysState, node uint64, record nodeRecord, known bool,
	public [32]byte) (any, error) {
	cert, err := k.keys.certify(c.cred.Cluster, node, record.Roles, public)
	if err != nil {
		return nil, err
	}
	if !known {
		if err := c.setKey(c.ctx, c.from, nodeKey(node), &record, 0); err != nil {
			return nil, err
		}
	}
	return &control.RenewKeyReply{Cert: cert}, nil
}

// grantNode makes a node for a metadata server, to which its user has proved the password.
func (c *call) grantNode(req *control.GrantNodeReq) (any, error) {
	if err := c.secret(); err != nil {
		return nil, err
	}
	k, _, err := c.keysNow()
	if err != nil {
		return nil, err
	}
	set := k.set
	if len(set.Generations) == 0 {
		return nil, c.fail(dataplane.NotReady, "the cluster's keys aren't recorded yet: try again")
	}
	if k.keys != nil {
		if k.keys.Current == 0 {
			return nil, c.fail(dataplane.NotReady, "keys are being rotated: try again later")
		}
		host := strings.ToValidUTF8(req.Host[:min(len(req.Host), session.MaxHostName)], "?")
		record := nodeRecord{Host: host, Roles: req.Roles & session.AllRoles,
			TimeNs: c.keyTime()}
		node := c.newNodeID(req.Public)
		reply, err := c.certify(k, node, record, false, req.Public)
		if err != nil {
			return nil, err
		}
		set.Cert = reply.(*control.RenewKeyReply).Cert
		c.l.event(control.Info, fmt.Sprintf("node %016x", node), "node-added", fmt.Sprintf(
			"%s proved the password and was given a key for: %s", host,
			strings.Join(roleNames(record.Roles), ", ")))
	}
	set.Revoked, set.Version = nil, 0 // the node is told at its first connection: see OpKeys
	b, err := json.Marshal(&set)
	return &control.KeysReply{Keys: b}, err
}

func roleNames(roles uint8) []string {
	names := []string{}
	for r := dataplane.RoleClient; r <= dataplane.RoleSupervisor; r++ {
		if roles&session.RoleBit(r) != 0 {
			names = append(names, r.String())
		}
	}
	return names
}

// grant asks the leader for a node: this server has checked the password.
func (s *server) grant(ctx context.Context, req *session.NodeRequest) (*session.KeySet, error) {
	k, err := control.Dial(ctx, control.Options{Cred: s.cred, Log: s.log,
		Addrs: func() (addrs []string) {
			for _, m := range s.r.servers() {
				addrs = append(addrs, m.Addr)
			}
			return addrs
		}})
	if err != nil {
		return nil, err
	}
	defer k.Close()
	var reply control.KeysReply
	err = k.Call(ctx, control.OpGrantNode, &control.GrantNodeReq{Public: req.Public,
		Roles: req.Roles, Host: req.Host}, &reply)
	switch dataplane.KindOf(err) {
	case dataplane.OK:
	case dataplane.Unreachable, dataplane.TimedOut:
		return nil, dataplane.E("make a node", dataplane.NotReady, err)
	default:
		return nil, err
	}
	set := &session.KeySet{}
	if err := json.Unmarshal(reply.Keys, set); err != nil {
		return nil, dataplane.E("make a node", dataplane.Internal, err)
	}
	return set, nil
}
