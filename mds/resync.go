package mds

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// A metadata server whose log, snapshot or vote is damaged may have forgotten what it promised:
// entries that it acknowledged, a vote that it gave. It must not take part again under its number,
// and it doesn't guess. Nor need anybody come: the others have everything.
//
//	find     the start fails with BadCRC; nothing is served, nothing is changed
//	ask      the leader takes the old number out of the group, as rm-mds does and under the same
//	         conditions, and adds a new one without a vote at the same address
//	begin    the new number is written down, durably; what was damaged is put aside, to be looked
//	         at; the server starts with nothing and gets everything from the leader, then its vote
//
// Each step may be repeated after a crash: the leader answers an address that waits for its vote
// with the same number, and a configuration entry says whose place is being given away.

const (
	// replacingKey and the number of a damaged server are the configuration that holds its address
	// from its removal until its successor, which has written its own number down, gets a vote.
	replacingKey = "mds.replacing."
	damagedDir   = "raft.damaged" // where the files of a damaged server are put
	anewDir      = "raft.new"     // what takes their place, while it is made
	resyncEvery  = time.Second    // between two questions, while the others can't do without it
)

// resync gives the damaged server in o.Dir a new number and an empty log. damage is what was found;
// it is returned if there is nobody to ask.
func resync(ctx context.Context, id *identity, o *Options, damage error) error {
	if len(otherServers(id, o)) == 0 {
		return damage
	}
	o.Log.Error("the metadata on this server is damaged; it asks the others for a new place",
		"node", id.Node, "err", damage)
	node, err := askForPlace(ctx, id, o)
	if err != nil {
		return errors.Join(damage, err)
	}
	op := "begin anew in " + o.Dir
	old := id.Node
	id.Node = node
	if err := id.write(o.Dir, op); err != nil {
		return err
	}
	if err := putAside(o.Dir); err != nil {
		return dataplane.E(op, dataplane.IOError, err)
	}
	o.Log.Warn("this metadata server begins anew and gets everything from the others", "was", old,
		"node", node, "damaged files", filepath.Join(o.Dir, damagedDir))
	return nil
}

// otherServers are the addresses of the cluster's other servers, as far as this node knows.
func otherServers(id *identity, o *Options) (addrs []string) {
	if o.Servers == nil {
		return nil
	}
	for _, a := range o.Servers() {
		if a != id.Addr {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// askForPlace asks the leader for a new number until there is one, ctx ends, or the leader says
// that there is no place for this server any more.
func askForPlace(ctx context.Context, id *identity, o *Options) (uint32, error) {
	k, err := control.Dial(ctx, control.Options{Cred: o.Cred, Log: o.Log,
		Addrs: func() []string { return otherServers(id, o) }})
	if err != nil {
		return 0, err
	}
	defer k.Close()
	for {
		var reply control.MDSReadyReply
		err := k.Call(ctx, control.OpMDSReady, &control.MDSReadyReq{Node: id.Node, Damaged: id.Addr},
			&reply)
		switch {
		case err == nil && reply.Node == 0:
			return 0, dataplane.E("", dataplane.NotSupported, errors.New("the other metadata servers "+
				"are of an older version: remove this one (pstorage rm-mds) and make it anew"))
		case err == nil:
			return reply.Node, nil
		case dataplane.KindOf(err) != dataplane.NotReady:
			return 0, err
		}
		o.Log.Warn("no new place yet", "reason", err)
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(resyncEvery):
		}
	}
}

// putAside moves what was damaged away, and an empty log in its place: in one step, as a server
// that has none doesn't start.
func putAside(dir string) error {
	aside, anew := filepath.Join(dir, damagedDir), filepath.Join(dir, anewDir)
	if err := errors.Join(os.RemoveAll(aside), os.RemoveAll(anew)); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(anew, logDir), 0o700); err != nil {
		return err
	}
	if err := errors.Join(syncDir(anew), syncDir(dir)); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, anew, unix.AT_FDCWD, filepath.Join(dir, raftDir),
		unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("exchange %s and %s: %w", anew, raftDir, err)
	}
	if err := os.Rename(anew, aside); err != nil {
		return err
	}
	return syncDir(dir)
}

// replaceDamaged gives the place of a damaged server to its successor, at the same address.
func (c *call) replaceDamaged(req *control.MDSReadyReq) (any, error) {
	old := c.r.find(req.Node)
	switch {
	case old != nil && string(old.Address) != req.Damaged:
		return nil, c.fail(dataplane.Conflict, "metadata server %d is at %s, not at %.80q", req.Node,
			old.Address, req.Damaged)
	case old == nil && c.replacing(req.Node) != req.Damaged:
		return nil, c.fail(dataplane.NotFound, "metadata server %d isn't a member", req.Node)
	case old != nil && old.Suffrage == raft.Voter:
		if err := c.takeOut(req); err != nil {
			return nil, c.later(err)
		}
	}
	doc, err := c.addMDS(&control.AddMDSArgs{Addr: req.Damaged})
	if err != nil {
		return nil, c.later(err)
	}
	return &control.MDSReadyReply{Node: doc.(*control.AddMDSDoc).Node}, nil
}

// later has a damaged server ask again when the group was changed by somebody else meanwhile.
func (c *call) later(err error) error {
	switch dataplane.KindOf(err) {
	case dataplane.Conflict, dataplane.Internal: // a number, the configuration of raft
		return c.fail(dataplane.NotReady, "%v", err)
	}
	return err
}

// takeOut removes a damaged server from the group, if the others can do without it.
func (c *call) takeOut(req *control.MDSReadyReq) error {
	f := c.r.raft.GetConfiguration()
	switch removeCase(c.r.facts(f.Configuration()), req.Node, true) {
	case removeNow:
	case removeLast, removeMajority:
		return c.fail(dataplane.NotReady, "metadata server %d is damaged, and without it too few "+
			"answer for a majority; start the others first", req.Node)
	default:
		return c.fail(dataplane.NotFound, "metadata server %d isn't a member", req.Node)
	}
	c.memberEvent(control.Fault, "mds-damaged", fmt.Sprintf("the metadata on server %d at %s is "+
		"damaged; it begins anew with what the others have", req.Node, req.Damaged))
	if err := c.keepNumbers(); err != nil {
		return err
	}
	key := replacingKey + fmt.Sprint(req.Node)
	if _, err := c.change(&cmdSetConfig{Key: key, Value: req.Damaged, Any: true}); err != nil {
		return err
	}
	err := c.r.raft.RemoveServer(serverID(req.Node), f.Index(), raftTimeout).Error()
	return c.r.raftError(err)
}

// replacing is the address of the damaged server with that number, if its place is being given
// away, or "".
func (c *call) replacing(node uint32) string {
	f := c.r.fsm
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, e := range f.s.config {
		if e.key == replacingKey+fmt.Sprint(node) {
			return e.value
		}
	}
	return ""
}

// replaced forgets whose place was given to the server at an address.
func (c *call) replaced(addr string) error {
	f := c.r.fsm
	var keys []string
	f.mu.RLock()
	for _, e := range f.s.config {
		if strings.HasPrefix(e.key, replacingKey) && e.value == addr {
			keys = append(keys, e.key)
		}
	}
	f.mu.RUnlock()
	for _, key := range keys {
		if _, err := c.change(&cmdSetConfig{Key: key, Any: true}); err != nil {
			return err
		}
	}
	return nil
}
