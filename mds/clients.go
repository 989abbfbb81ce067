package mds

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// clients are those that are connected to the leader and have asked for files: mounts, block
// devices, programs with the library. It guards itself, as every request of theirs comes by.
type clients struct {
	mu   sync.Mutex
	list map[*control.Peer]*clientSeen
}

// clientSeen is one connection. Times are of the leader's clock, ns.
type clientSeen struct {
	sinceNs, heardNs int64
	requests         uint64
}

// note notes a request. A client that asks only for keys is there, and idle.
func (k *clients) note(p *control.Peer, op dataplane.Opcode, l *leader) {
	asks := isClientOp(op)
	if !asks && (op != control.OpKeys || p.Role != dataplane.RoleClient) {
		return
	}
	now := l.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	c := k.list[p]
	if c == nil {
		if k.list == nil {
			k.list = make(map[*control.Peer]*clientSeen)
		}
		c = &clientSeen{sinceNs: now, heardNs: now}
		k.list[p] = c
	}
	if asks {
		c.heardNs = now
		c.requests++
	}
}

func (k *clients) gone(p *control.Peer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.list, p)
}

// isClientOp says whether an operation is what a user of files asks for, and not what any process
// of a cluster, or a person, does.
func isClientOp(op dataplane.Opcode) bool {
	return op >= control.OpLookup && op <= control.OpRenewLeases
}

// clientDocs lists the clients: those that are connected, and those that still have the right to
// write files.
func (c *call) clientDocs() (*control.ClientsDoc, error) {
	l := c.l
	byID := make(map[uint64]*control.ClientDoc)
	l.clients.mu.Lock()
	now := l.now()
	for p, seen := range l.clients.list {
		d := byID[p.ID]
		if d == nil {
			d = &control.ClientDoc{ID: fmt.Sprintf("%x", p.ID), Mounts: []string{}, Connected: true,
				IdleMs: maxSilence}
			byID[p.ID] = d
		}
		d.Host, d.Addr = p.Name, p.Addr()
		d.AgeMs = max(d.AgeMs, (now-seen.sinceNs)/int64(time.Millisecond))
		d.IdleMs = min(d.IdleMs, (now-seen.heardNs)/int64(time.Millisecond))
		d.Requests += seen.requests
	}
	l.clients.mu.Unlock()

	held := func(id uint64, lease *fileLease) {
		d := byID[id]
		if d == nil {
			d = &control.ClientDoc{ID: fmt.Sprintf("%x", id), Host: cutClient(lease.host),
				Mounts: []string{}}
			byID[id] = d
		}
		d.Writes++
		mount := cutClient(lease.mount)
		if mount != "" && len(d.Mounts) < maxMountsShown && !slices.Contains(d.Mounts, mount) {
			d.Mounts = append(d.Mounts, mount)
		}
	}
	if err := l.scanLeases(held); err != nil {
		return nil, err
	}
	l.mu.Lock()
	for id, d := range byID {
		if !d.Connected {
			d.IdleMs = l.silent(id).Milliseconds()
		}
	}
	l.mu.Unlock()
	doc := &control.ClientsDoc{Clients: []control.ClientDoc{}}
	for _, d := range byID {
		slices.Sort(d.Mounts)
		doc.Clients = append(doc.Clients, *d)
	}
	slices.SortFunc(doc.Clients, func(a, b control.ClientDoc) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.ID, b.ID))
	})
	if len(doc.Clients) > maxClientsShown {
		doc.More = uint64(len(doc.Clients) - maxClientsShown)
		doc.Clients = doc.Clients[:maxClientsShown]
	}
	return doc, nil
}

const (
	// With these bounds the document fits one message.
	maxClientsShown = 1000
	maxMountsShown  = 4   // of one client
	maxClientText   = 128 // bytes of a host's name or a mount
	maxSilence      = int64(1<<63 - 1)
)

func cutClient(text string) string { return text[:min(len(text), maxClientText)] }

// scanLeases calls f for every file that somebody may write, holding the state for short moments
// only.
func (l *leader) scanLeases(f func(holder uint64, lease *fileLease)) error {
	fsm := l.r.fsm
	for page := 0; ; page += leasePages {
		fsm.mu.RLock()
		pages := fsm.s.files.pages
		end := min(page+leasePages, len(pages))
		for i := page; i < end; i++ {
			for j := range pages[i] {
				if file := &pages[i][j]; file.id != 0 && file.lease != nil && file.lease.holder != 0 {
					f(file.lease.holder, file.lease)
				}
			}
		}
		fsm.mu.RUnlock()
		if end == len(pages) {
			return nil
		}
		if l.ctx.Err() != nil {
			return l.r.notLeader()
		}
	}
}

const leasePages = 128 // looked at in one go
