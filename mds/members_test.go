package mds

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestRemoveCase goes through all groups of up to five servers in all states: what is allowed keeps
// a majority of those left that answers, and only force takes a healthy one while another is down.
func TestRemoveCase(t *testing.T) {
	for n := 1; n <= 5; n++ {
		for bits := range 1 << (2 * n) {
			var servers []serverFacts
			for i := range n {
				servers = append(servers, serverFacts{node: uint32(i + 1),
					voter: bits>>(2*i)&1 != 0, down: bits>>(2*i)&2 != 0})
			}
			for node := uint32(0); node <= uint32(n); node++ {
				for _, force := range []bool{false, true} {
					got := removeCase(servers, node, force)
					if err := checkRemove(servers, node, force, got); err != nil {
						t.Errorf("%+v, server %d, force %v: %d: %v", servers, node, force, got, err)
					}
				}
			}
		}
	}
}

func checkRemove(servers []serverFacts, node uint32, force bool, got removeVerdict) error {
	left, up := 0, 0
	for _, s := range servers {
		if s.node != node && s.voter {
			left++
			if !s.down {
				up++
			}
		}
	}
	switch {
	case node == 0:
		if got != removeUnknown {
			return fmt.Errorf("nobody is that")
		}
	case !servers[node-1].voter:
		if got != removeNow {
			return fmt.Errorf("one without a vote can always go")
		}
	case got == removeNow:
		if left == 0 || 2*up <= left {
			return fmt.Errorf("%d of %d left answer", up, left)
		}
		if up < left && !servers[node-1].down && !force {
			return fmt.Errorf("not without force")
		}
	case 2*up > left && left > 0 && (force || up == left || servers[node-1].down):
		return fmt.Errorf("nothing speaks against it")
	}
	return nil
}

// TestDownServers: a server whose heartbeats fail is down until one goes well, or until none has
// failed for long: the last one of an ended leadership fails after the next has begun, and if no
// other fails, Raft says nothing more.
func TestDownServers(t *testing.T) {
	const peer = "2"
	type step struct {
		at   time.Duration
		data any // nil: nothing happens
		down bool
	}
	failed, resumed := raft.FailedHeartbeatObservation{PeerID: peer},
		raft.ResumedHeartbeatObservation{PeerID: peer}
	cycle := 2*raftTimeout + electionTime // a slow failure and the pause after it
	for name, steps := range map[string][]step{
		"recovers": {{0, failed, true}, {1, resumed, false}},
		"stays down": {{0, failed, true}, {cycle, nil, true}, {cycle, failed, true},
			{2 * cycle, nil, true}},
		"another leads": {{0, failed, true}, {1, raft.LeaderObservation{}, false}},
		"of an older reign": {{0, raft.LeaderObservation{}, false}, {1, failed, true},
			{1 + downFor, nil, false}},
	} {
		d := downServers{failed: map[raft.ServerID]time.Time{}}
		start := time.Unix(1, 0)
		for i, s := range steps {
			now := start.Add(s.at)
			d.note(raft.Observation{Data: s.data}, now)
			if got := d.has(peer, now); got != s.down {
				t.Errorf("%s, step %d: down %v, want %v", name, i, got, s.down)
			}
			if d.has("3", now) {
				t.Errorf("%s, step %d: another server is down", name, i)
			}
		}
	}
}

// join makes and starts another server by the cluster's own word, and returns its index.
func (c *testCluster) join(admin *client) (i int, node uint32) {
	c.t.Helper()
	addr := freeAddrs(c.t, 1)[0]
	var doc, again control.AddMDSDoc
	admin.admin(control.AdminAddMDS, control.AddMDSArgs{Addr: addr}, &doc)
	admin.admin(control.AdminAddMDS, control.AddMDSArgs{Addr: addr}, &again) // a lost answer
	if doc.Node == 0 || again.Node != doc.Node {
		c.t.Fatalf("number %d, then %d", doc.Node, again.Node)
	}
	dir := filepath.Join(c.t.TempDir(), "mds")
	err := Format(dir, FormatOptions{Cluster: c.node.Cluster, ClusterName: "test", Addr: addr,
		Node: doc.Node, Join: true})
	if err != nil {
		c.t.Fatal(err)
	}
	c.addrs, c.dirs = append(c.addrs, addr), append(c.dirs, dir)
	c.stops = append(c.stops, nil)
	c.leads = append(c.leads, new(atomic.Bool))
	c.nodes = append(c.nodes, nil)
	i = len(c.addrs) - 1
	c.start(i)
	eventually(c.t, "the new server's vote", func() bool {
		var s control.ServicesDoc
		admin.admin(control.AdminListServices, nil, &s)
		for _, m := range s.MDS {
			if m.ID == fmt.Sprint(doc.Node) {
				return m.Voter
			}
		}
		return false
	})
	return i, doc.Node
}

// TestGrowAndShrink makes three servers of one while files are made, loses the first, removes it,
// replaces it, and removes the leader.
func TestGrowAndShrink(t *testing.T) {
	c := newTestCluster(t, 1)
	k := c.client(dataplane.RoleClient, 7, nil)
	admin := c.client(dataplane.RoleAdmin, 8, nil)
	if err := admin.try(control.OpAdmin, &control.AdminReq{Command: control.AdminRemoveMDS,
		Args: []byte(`{"node":1}`)}, nil); dataplane.KindOf(err) != dataplane.Invalid {
		t.Errorf("the only server was removed: %v", err)
	}
	for i := range 50 {
		k.create(dataplane.RootID, fmt.Sprintf("before%d", i), control.TypeFile)
	}
	second, _ := c.join(admin)
	third, node := c.join(admin)
	if node != 3 {
		t.Errorf("the third server is number %d", node)
	}
	// Clients that were started with one address find the others only by asking.
	var list control.MDSListReply
	k.must(control.OpMDSList, &control.Empty{}, &list)
	if len(list.Addrs) != 3 {
		t.Fatalf("list %v", list.Addrs)
	}
	k = c.client(dataplane.RoleClient, 9, nil)
	admin = c.client(dataplane.RoleAdmin, 10, nil)

	first := 0
	c.stop(first)
	k.create(dataplane.RootID, "with-two", control.TypeFile)
	eventually(t, "that the first server is down", func() bool {
		var s control.ServicesDoc
		admin.admin(control.AdminListServices, nil, &s)
		for _, m := range s.MDS {
			if m.ID == "1" {
				return m.Down
			}
		}
		return false
	})
	// A healthy one isn't removed while another is down: one of two that would be left.
	admin.refused(control.AdminRemoveMDS, control.RemoveMDSArgs{Node: 2}, dataplane.NotReady)
	admin.refused(control.AdminRemoveMDS, control.RemoveMDSArgs{Node: 9}, dataplane.NotFound)
	var removed control.RemoveMDSDoc
	admin.admin(control.AdminRemoveMDS, control.RemoveMDSArgs{Node: 1}, &removed)
	if removed.Removed.Addr != c.addrs[first] || len(removed.MDS) != 2 {
		t.Errorf("removed: %+v", removed)
	}
	// It comes back, learns of it, and never starts again.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	options := Options{Dir: c.dirs[first], Cred: c.cred(dataplane.RoleMDS, 1), Log: testLog(),
		Servers: func() []string { return c.addrs }}
	for range 2 {
		err := Run(ctx, options)
		if dataplane.KindOf(err) != dataplane.Fenced || !strings.Contains(err.Error(), "removed") {
			t.Errorf("the removed server: %v", err)
		}
	}
	fourth, node := c.join(admin)
	if node != 4 {
		t.Errorf("the next server is number %d, a number was used twice", node)
	}
	leader := c.leader()
	nodes := map[int]uint32{second: 2, third: 3, fourth: 4}
	admin.admin(control.AdminRemoveMDS, control.RemoveMDSArgs{Node: nodes[leader]}, &removed)
	if err := c.stops[leader](); dataplane.KindOf(err) != dataplane.Fenced && err != nil {
		t.Errorf("the removed leader ended with %v", err)
	}
	c.stops[leader] = nil
	k.create(dataplane.RootID, "at-last", control.TypeFile)
	var dir control.ReadDirReply
	k.must(control.OpReadDir, &control.ReadDirReq{Dir: dataplane.RootID}, &dir)
	if len(dir.Entries) != 52 {
		t.Errorf("%d files, want 52", len(dir.Entries))
	}
}

// refused makes a request that must fail.
func (c *client) refused(command string, args any, kind dataplane.Kind) {
	c.t.Helper()
	b, err := json.Marshal(args)
	if err != nil {
		c.t.Fatal(err)
	}
	err = c.try(control.OpAdmin, &control.AdminReq{Command: command, Args: b}, nil)
	if dataplane.KindOf(err) != kind {
		c.t.Errorf("%s %+v: %v, want kind %v", command, args, err, kind)
	}
}
