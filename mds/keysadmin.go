package mds

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// keepers are the processes that keep their keys up to date, as far as the leader knows: each asks
// again and again.
type keepers struct {
	mu   sync.Mutex
	list map[*control.Peer]keeper
}

type keeper struct {
	version    uint64
	generation uint32 // that it proves itself with
	heardNs    int64
}

// keeperGone is how long a process that doesn't ask any more is remembered.
const keeperGone = 3 * control.MaxKeysWait

func (k *keepers) heard(p *control.Peer, req *control.KeysReq, nowNs int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.list == nil {
		k.list = make(map[*control.Peer]keeper)
	}
	for p, e := range k.list {
		if nowNs-e.heardNs > int64(keeperGone) {
			delete(k.list, p)
		}
	}
	k.list[p] = keeper{req.Version, req.Generation, nowNs}
}

func (k *keepers) gone(p *control.Peer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.list, p)
}

// keysSettle is how long a leader waits for processes to say which keys they have.
const keysSettle = control.MaxKeysWait / 2

// behind lists the processes that aren't ready for a step: those with other keys than the newest,
// and connected chunk servers and metadata servers that never asked for any.
func (c *call) behind(k *keysState) []string {
	l, list := c.l, []string{}
	finishing := k.keys != nil && k.keys.next() == control.RotateFinish
	if l.now() < int64(keysSettle) {
		list = append(list, "the metadata server leads only since a moment ago")
	}
	l.keepers.mu.Lock()
	asks := make(map[*control.Peer]bool)
	for p, e := range l.keepers.list {
		asks[p] = true
		if e.version < k.set.Version || finishing && e.generation != k.keys.Current {
			list = append(list, p.String())
		}
	}
	l.keepers.mu.Unlock()
	l.mu.Lock()
	for id, link := range l.cs {
		if link.peer != nil && !asks[link.peer] {
			list = append(list, fmt.Sprintf("cs %d: its program may be of an older version", id))
		}
	}
	l.mu.Unlock()
	for _, m := range c.r.servers() {
		if m.Down {
			list = append(list, fmt.Sprintf("metadata server %s at %s doesn't answer", m.ID, m.Addr))
		}
	}
	slices.Sort(list)
	return list
}

// repeated says whether this very request was carried out before, and came again over another
// connection.
func (c *call) repeated() bool {
	f := c.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	e, seen := f.s.seen[dedupeKey{c.from.Peer, c.from.Req}]
	return seen && e.kind == dataplane.OK
}

// rotateKeys takes a step of a rotation.
func (c *call) rotateKeys(args *control.RotateKeysArgs) (any, error) {
	k, _, err := c.keysNow()
	if err != nil {
		return nil, err
	}
	keys := k.keys
	if keys == nil {
		old := c.legacy()
		if old == nil {
			return nil, c.fail(dataplane.NotSupported, "this server has no keys that can be rotated")
		}
		keys = &ClusterKeys{Generations: []KeyGeneration{{Key: old.Key}}}
	}
	if c.repeated() {
		return c.keysDoc() // the answer was lost: the old connection's key isn't accepted any more
	}
	if args.Step != keys.next() {
		return nil, c.fail(dataplane.Conflict, "the next step of the rotation is %q, not %.20q",
			keys.next(), args.Step)
	}
	if args.Step != control.RotateStart && !args.Force {
		if list := c.behind(k); len(list) > 0 {
			return nil, c.fail(dataplane.NotReady, "these haven't the newest keys yet: %s",
				strings.Join(list, "; "))
		}
	}
	keys.step()
	if err := c.setKey(c.ctx, c.from, keysKey, keys, k.version); err != nil {
		return nil, err
	}
	c.l.event(control.Info, "mds", "keys-rotated", fmt.Sprintf(
		"rotation of the cluster's keys, step %s: generation %d is current", args.Step, keys.Current))
	return c.keysDoc()
}

// revokeNode takes a node's key away.
func (c *call) revokeNode(args *control.RevokeNodeArgs) (any, error) {
	k, _, err := c.keysNow()
	if err != nil {
		return nil, err
	}
	if c.repeated() {
		return c.keysDoc() // the answer was lost; by its host's name the node isn't found any more
	}
	var found []uint64
	id, perr := strconv.ParseUint(args.Node, 16, 64)
	for node, r := range k.nodes {
		if perr == nil && node == id || !r.Revoked && r.Host == args.Node {
			found = append(found, node)
		}
	}
	if len(found) != 1 {
		return nil, c.fail(dataplane.NotFound, "%d nodes are called %.80q: name one by its id, see "+
			"pstorage list-keys", len(found), args.Node)
	}
	node := found[0]
	record := k.nodes[node]
	if own := c.cred.Ring.Load().Certificate(); own != nil && own.Node == node {
		return nil, c.fail(dataplane.Invalid, "node %016x is the one that the leading metadata server "+
			"runs on: remove that server first (pstorage rm-mds)", node)
	}
	if !record.Revoked {
		record.Revoked = true
		err := c.setKey(c.ctx, c.from, nodeKey(node), &record, k.versions[node])
		if err != nil {
			return nil, err
		}
		c.l.event(control.Warning, fmt.Sprintf("node %016x", node), "node-revoked",
			"the key of "+record.Host+" isn't accepted any more")
	}
	return c.keysDoc()
}

// keysDoc describes keys and nodes.
func (c *call) keysDoc() (any, error) {
	k, _, err := c.keysNow()
	if err != nil {
		return nil, err
	}
	doc := &control.KeysDoc{Mode: modeCRC, Accepted: []uint32{}, Next: control.RotateStart,
		Behind: c.behind(k), Nodes: []control.NodeDoc{}}
	if k.secure {
		doc.Mode = modeSecure
	}
	for _, g := range k.set.Generations {
		doc.Accepted = append(doc.Accepted, g.Number)
	}
	if k.keys != nil {
		doc.Generation, doc.Next = k.keys.Current, k.keys.next()
	}
	connected := c.l.keepers.perNode()
	for id, r := range k.nodes {
		doc.Nodes = append(doc.Nodes, control.NodeDoc{ID: fmt.Sprintf("%016x", id), Host: r.Host,
			Roles: roleNames(r.Roles), TimeNs: r.TimeNs, Revoked: r.Revoked,
			Connected: connected[id]})
	}
	slices.SortFunc(doc.Nodes, func(a, b control.NodeDoc) int {
		return cmp.Or(strings.Compare(a.Host, b.Host), strings.Compare(a.ID, b.ID))
	})
	return doc, nil
}

func (k *keepers) perNode() map[uint64]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := make(map[uint64]int)
	for p := range k.list {
		n[p.Node]++
	}
	return n
}

// passwordAuth is how this server hands out keys, or nil if it has no password.
func (s *server) passwordAuth() *session.PasswordAuth {
	if s.id.Verifier == nil {
		return nil
	}
	ring := s.cred.Ring
	if ring == nil {
		keys := session.LegacyKeys(s.cred.Key)
		ring = session.NewRing(&keys, nil)
	}
	return &session.PasswordAuth{Verifier: *s.id.Verifier, Cluster: s.cred.Cluster,
		ClusterName: s.id.ClusterName, Ring: ring, Limit: session.NewPasswordFailures(clock()),
		Grant: s.grant}
}

// clock returns a monotonic clock in ns.
func clock() func() int64 {
	base := time.Now()
	return func() int64 { return int64(time.Since(base)) }
}
