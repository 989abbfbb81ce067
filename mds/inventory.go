package mds

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// maxInventory is the most chunks that a chunk server can hold: what its parts may add up to.
const maxInventory = 1 << 18

// parts is what came of an inventory that is too long for one message. It counts for nothing until
// the registration comes over the same connection, and is gone with that.
type parts struct {
	n    uint32
	held []control.HeldChunk
}

// inventoryPart keeps a part of an inventory until the registration.
func (c *call) inventoryPart(req *control.InventoryReq) (any, error) {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.parts[c.peer]
	if req.Part == 0 {
		p = &parts{}
	}
	switch {
	case p == nil || p.n != req.Part:
		delete(l.parts, c.peer)
		return nil, c.fail(dataplane.NotReady, "part %d of the inventory: begin with the first",
			req.Part)
	case len(p.held)+len(req.Chunks) > maxInventory:
		delete(l.parts, c.peer)
		return nil, c.fail(dataplane.TooLarge, "more than %d chunks", maxInventory)
	}
	if l.parts == nil {
		l.parts = map[*control.Peer]*parts{}
	}
	p.n++
	p.held = append(p.held, req.Chunks...)
	l.parts[c.peer] = p
	return nil, nil
}

// wholeInventory puts the parts before the list of the registration.
func (c *call) wholeInventory(req *control.RegisterCSReq) error {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.parts[c.peer]
	delete(l.parts, c.peer)
	if req.Parts == 0 {
		return nil
	}
	if p == nil || p.n != req.Parts {
		return c.fail(dataplane.NotReady, "%d parts of the inventory should have come before: begin "+
			"with the first", req.Parts)
	}
	req.Chunks = append(p.held, req.Chunks...)
	return nil
}

// refusal is why a chunk server's process refuses to serve, as its supervisor says.
type refusal struct {
	reason string
	ns     int64 // when that was said last
}

const (
	// refusalLife is how long a refusal counts after it was said last.
	refusalLife = 2 * time.Minute
	maxRefusals = 1024
)

// refusedKey names a directory: by its chunk server, or if that isn't known by host and path.
type refusedKey struct {
	cs         dataplane.CSID
	host, path string
}

// refused notes that a process refuses to serve its directory. The first report of a reason is an
// event.
func (c *call) refused(req *control.RefusedReq) (any, error) {
	if err := c.l.valid(c.ctx); err != nil {
		return nil, err
	}
	if len(req.Host) > dataplane.MaxNameLen || len(req.Path) > dataplane.MaxPathLen ||
		req.Reason == "" {
		return nil, c.fail(dataplane.Invalid, "host, path and reason are needed")
	}
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	key, source := refusedKey{host: req.Host, path: req.Path}, "host "+req.Host
	f := c.r.fsm
	if req.CS == 0 { // its identity is missing, or not this cluster's
		f.mu.RLock()
		if cs := f.s.serverAt(req.Host, req.Path); cs != 0 && c.checkOwner(f.s, cs) == nil {
			key, source = refusedKey{cs: cs}, fmt.Sprintf("cs %d", cs)
		}
		f.mu.RUnlock()
	} else {
		f.mu.RLock()
		known := f.s.server(req.CS) != nil
		mine := c.checkOwner(f.s, req.CS) == nil
		f.mu.RUnlock()
		if !known {
			return nil, c.fail(dataplane.NotFound, "CS %d", req.CS)
		}
		if mine { // else it says nothing about the server, only about a directory over there
			key, source = refusedKey{cs: req.CS}, fmt.Sprintf("cs %d", req.CS)
		}
	}
	if l.refusals == nil {
		l.refusals = map[refusedKey]refusal{}
	}
	old, known := l.refusals[key]
	if !known && len(l.refusals) >= maxRefusals {
		maps.DeleteFunc(l.refusals, func(_ refusedKey, r refusal) bool {
			return now-r.ns > int64(refusalLife)
		})
	}
	if !known && len(l.refusals) >= maxRefusals {
		return nil, c.fail(dataplane.Overloaded, "too many refusals")
	}
	reason := req.Reason[:min(len(req.Reason), maxEventText)]
	l.refusals[key] = refusal{reason, now}
	if old.reason != reason {
		l.event(control.Fault, source, "cs-refused", fmt.Sprintf("the chunk server in %s on %s "+
			"refuses to serve: %s", req.Path, req.Host, reason))
	}
	return nil, nil
}

// serverAt is the chunk server that has its directory there; 0: there is none, or more than one.
func (s *State) serverAt(host, path string) (at dataplane.CSID) {
	for _, c := range s.cs {
		if c == nil || c.Dropped || c.Host != host || c.Path != path {
			continue
		}
		if at != 0 {
			return 0
		}
		at = c.ID
	}
	return at
}

// refusalOf is why a server doesn't serve; "": nothing is known. mu is held.
func (l *leader) refusalOf(cs dataplane.CSID, nowNs int64) string {
	r, ok := l.refusals[refusedKey{cs: cs}]
	if !ok || nowNs-r.ns > int64(refusalLife) {
		return ""
	}
	return r.reason
}

// homeless lists the directories that refuse and don't say whose they are, by host and path. mu is
// held.
func (l *leader) homeless(nowNs int64) (list []control.RefusedDoc) {
	for k, r := range l.refusals {
		if k.cs == 0 && nowNs-r.ns <= int64(refusalLife) {
			list = append(list, control.RefusedDoc{Host: k.host, Path: k.path, Reason: r.reason})
		}
	}
	slices.SortFunc(list, func(a, b control.RefusedDoc) int {
		return slices.Compare([]string{a.Host, a.Path}, []string{b.Host, b.Path})
	})
	return list
}

// twinAfter is how long a second process may want to register before it is told of: one that was
// stopped is gone by then.
const twinAfter = 2 * leaseOut

// knock notes that a process wants to register as a server that another one is: two of them run,
// most likely because a directory was copied. mu is held.
func (k *csLink) knock(l *leader, cs dataplane.CSID, instance uint64, req *control.RegisterCSReq) {
	switch now := l.now(); {
	case k.knocker != instance:
		k.knocker, k.knocksNs = instance, now
	case k.knocksNs != 0 && now-k.knocksNs > int64(twinAfter):
		k.knocksNs = 0
		l.event(control.Fault, fmt.Sprintf("cs %d", cs), "cs-twice", fmt.Sprintf("a second process, on "+
			"%s at %s with directory %s, says that it is this chunk server, which %s is: one of the two "+
			"directories is a copy. It isn't let in; stop it and remove the copy", req.Host, req.Addr,
			req.Path, k.peer.Addr()))
	}
}
