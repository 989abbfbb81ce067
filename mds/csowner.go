package mds

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// A chunk server belongs to the node whose key it registered with first: no other node may register
// it, renew or end its lease, or change the members of its chunks. So a node's key, once stolen, is
// good for the chunk servers of that node only. Which node that is lies in the cluster's
// configuration, among the keys:
//
//	security.cs.ID    the node's id, 16 hexadecimal digits
//
// A node that proves the password anew gets another id; its chunk servers follow by themselves, as
// it has the same host name. To another host they go by control.AdminAdoptCS, an administrator's
// command. Peers without a certificate (of clusters made before there were any, until the first
// rotation of keys; in simulations) have no node: they are believed, as ever.
const csPrefix = keyPrefix + "cs."

func csKey(cs dataplane.CSID) string { return fmt.Sprintf("%s%08x", csPrefix, uint32(cs)) }

// configEntry finds an entry of the configuration; version 0: it isn't there.
func (s *State) configEntry(key string) configEntry {
	i, found := slices.BinarySearchFunc(s.config, key, func(e configEntry, key string) int {
		return strings.Compare(e.key, key)
	})
	if !found {
		return configEntry{}
	}
	return s.config[i]
}

// csOwner returns the node that a chunk server belongs to, 0 if there is none yet, and the version
// of that entry.
func (s *State) csOwner(cs dataplane.CSID) (node, version uint64) {
	e := s.configEntry(csKey(cs))
	b, err := hex.DecodeString(e.value)
	if err != nil || len(b) != 8 {
		return 0, e.version
	}
	return nodeID([8]byte(b)), e.version
}

// node returns what is known of a node.
func (s *State) node(id uint64) (r nodeRecord, known bool) {
	e := s.configEntry(nodeKey(id))
	return r, e.version != 0 && json.Unmarshal([]byte(e.value), &r) == nil
}

// ownership is whether a node may speak for a chunk server.
type ownership uint8

const (
	ownIt     ownership = iota // it may
	ownNobody                  // it may, by registering: nobody has
	ownBefore                  // it may, by registering: it proved the password anew since
	ownOther                   // another node's
)

// ownership decides whether a node may speak for a chunk server. node is 0 for a peer without a
// certificate.
func (s *State) ownership(cs dataplane.CSID, node uint64) ownership {
	owner, version := s.csOwner(cs)
	switch {
	case node == 0 || owner == node:
		return ownIt
	case version == 0:
		return ownNobody
	}
	before, known := s.node(owner)
	now, valid := s.node(node)
	if known && valid && !now.Revoked && now.Host != "" && now.Host == before.Host &&
		now.TimeNs > before.TimeNs {
		return ownBefore
	}
	return ownOther
}

// describeNode names a node for people.
func (s *State) describeNode(id uint64) string {
	if r, known := s.node(id); known {
		return fmt.Sprintf("node %016x (%s)", id, r.Host)
	}
	return fmt.Sprintf("node %016x", id)
}

// checkOwner refuses requests about a chunk server from a node that it doesn't belong to. One that
// may have it by registering gets NotReady.
func (c *call) checkOwner(s *State, cs dataplane.CSID) error {
	switch s.ownership(cs, c.peer.Node) {
	case ownIt, ownNobody:
		return nil
	case ownBefore:
		return c.fail(dataplane.NotReady, "CS %d registered with an older key of this node: register "+
			"again first", cs)
	}
	owner, _ := s.csOwner(cs)
	return c.fail(dataplane.Denied, "CS %d belongs to %s, and this is %s: if its disk was moved "+
		"here, say so with pstorage adopt-cs", cs, s.describeNode(owner), s.describeNode(c.peer.Node))
}

// own makes a chunk server that registers this node's, or refuses that.
func (c *call) own(cs dataplane.CSID) error {
	f := c.r.fsm
	f.mu.RLock()
	state := f.s.ownership(cs, c.peer.Node)
	owner, version := f.s.csOwner(cs)
	var err error
	if state == ownOther {
		err = c.checkOwner(f.s, cs)
	}
	f.mu.RUnlock()
	switch state {
	case ownIt:
		return nil
	case ownOther:
		c.tellForeign(cs, err)
		return err
	}
	switch err := c.setOwner(cs, c.peer.Node, version); {
	case dataplane.KindOf(err) == dataplane.Conflict:
		// Perhaps by the same process, over a connection that it gave up; a conflict would end it.
		return c.fail(dataplane.NotReady, "CS %d is being registered: ask again", cs)
	case err != nil:
		return err
	}
	if owner != 0 {
		c.l.event(control.Info, fmt.Sprintf("cs %d", cs), "cs-node-changed", fmt.Sprintf(
			"belongs to node %016x now: %s proved the password anew; before: node %016x",
			c.peer.Node, c.peer.Name, owner))
	}
	return nil
}

// ownDisk is own for a directory that registers; one that was never seen gets its number first.
func (c *call) ownDisk(disk [16]byte) error {
	f := c.r.fsm
	f.mu.RLock()
	id := f.s.byDisk[disk]
	f.mu.RUnlock()
	if id == 0 {
		return nil
	}
	return c.own(id)
}

// setOwner makes a chunk server a node's, by compare-and-set.
func (c *call) setOwner(cs dataplane.CSID, node, version uint64) error {
	res, err := c.r.propose(c.l.ctx, &cmdSetConfig{Key: csKey(cs),
		Value: fmt.Sprintf("%016x", node), Version: version})
	if err != nil {
		return err
	}
	return res.err(c.name())
}

// tellForeign writes an event about a chunk server that another node wants to register, once per
// node.
func (c *call) tellForeign(cs dataplane.CSID, err error) {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	if k := c.l.link(cs); k.foreign != c.peer.Node {
		k.foreign = c.peer.Node
		c.l.event(control.Fault, fmt.Sprintf("cs %d", cs), "cs-wrong-node", err.Error())
	}
}

// mayReconfigure refuses changes of a chunk's members by a node that has none of them.
func (c *call) mayReconfigure(chunk dataplane.ChunkID) error {
	f := c.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	rec := f.s.table.Lookup(chunk)
	if rec == nil {
		return nil // the command says what is wrong
	}
	var err error
	for _, m := range rec.members() {
		if err = c.checkOwner(f.s, m.CS); err == nil {
			return nil
		}
	}
	return err
}

// adoptCS gives chunk servers to another node.
func (c *call) adoptCS(args *control.AdoptCSArgs) (any, error) {
	if len(args.CS) == 0 || len(args.CS) > maxAdopt {
		return nil, c.fail(dataplane.Invalid, "%d chunk servers: 1 to %d", len(args.CS), maxAdopt)
	}
	node := c.peer.Node
	if args.Node != "" {
		b, err := hex.DecodeString(args.Node)
		if err != nil || len(b) != 8 {
			return nil, c.fail(dataplane.Invalid, "%.80q isn't a node's id: see pstorage list-keys",
				args.Node)
		}
		node = nodeID([8]byte(b))
	}
	doc := &control.AdoptCSDoc{CS: []control.AdoptedDoc{}}
	for _, id := range args.CS {
		adopted, err := c.adopt(dataplane.CSID(id), node)
		if err != nil {
			return nil, err
		}
		doc.CS = append(doc.CS, *adopted)
	}
	return doc, nil
}

const maxAdopt = 1024 // chunk servers in one command

func (c *call) adopt(id dataplane.CSID, node uint64) (*control.AdoptedDoc, error) {
	f := c.r.fsm
	f.mu.RLock()
	known, s := f.s.server(id), f.s
	record, valid := s.node(node)
	owner, version := s.csOwner(id)
	before, _ := s.node(owner)
	f.mu.RUnlock()
	switch {
	case known == nil || known.Dropped:
		return nil, c.fail(dataplane.NotFound, "CS %d isn't a chunk server of this cluster, or was "+
			"removed from it", id)
	case node == 0:
		return nil, c.fail(dataplane.NotSupported, "this cluster's nodes have no certificates, so that "+
			"chunk servers belong to none (pstorage rotate-keys)")
	case !valid || record.Revoked:
		return nil, c.fail(dataplane.NotFound, "node %016x isn't one that was given a key, or was "+
			"revoked: see pstorage list-keys", node)
	}
	doc := &control.AdoptedDoc{CS: uint32(id), Node: fmt.Sprintf("%016x", node), Host: record.Host}
	if owner != 0 {
		doc.Before, doc.BeforeHost = fmt.Sprintf("%016x", owner), before.Host
	}
	switch {
	case owner == node:
		return doc, nil
	case c.peer.Role != dataplane.RoleAdmin:
		return nil, c.fail(dataplane.Denied, "CS %d belongs to node %s (%s), and only an administrator "+
			"may give it to another: on a node whose key is one's, pstorage adopt-cs %d --node %s", id,
			doc.Before, doc.BeforeHost, id, doc.Node)
	}
	if err := c.setOwner(id, node, version); err != nil {
		return nil, err
	}
	c.l.event(control.Warning, fmt.Sprintf("cs %d", id), "cs-adopted", fmt.Sprintf(
		"belongs to node %s (%s) now, by an administrator on %s; before: node %s (%s)", doc.Node,
		doc.Host, c.peer.Name, doc.Before, doc.BeforeHost))
	return doc, nil
}
