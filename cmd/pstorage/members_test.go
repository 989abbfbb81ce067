package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

// TestGrowMetadataServers makes three metadata servers of one by the lines of the manual, kills the
// first one, removes it, and goes on.
func TestGrowMetadataServers(t *testing.T) {
	n := newNode(t)
	mdsd, addr := n.makeCluster(1)
	second, third := freePort(t), freePort(t)
	n.refused("", 2, []string{"password"}, "-c", "c1", "make-mds", "-a", second, "-r", n.path("x"),
		"-P")
	n.refused("", 1, []string{addr}, "-c", "c1", "make-mds", "-a", addr, "-r", n.path("x"))
	stranger := newNode(t)
	stranger.refused("", 1, []string{"auth-node"}, "-c", "c1", "make-mds", "-a", second,
		"-r", n.path("x"))

	// On nodes of their own, each joins and votes.
	daemons := map[string]*daemon{}
	for i, at := range []string{second, third} {
		other := newNode(t)
		other.ok(testPassword, "-c", "c1", "auth-node", "-P", "-b", addr)
		out := other.ok("", "-c", "c1", "make-mds", "-a", at, "-r", other.path("mds"))
		if warned := strings.Contains(out, "Warning"); warned != (i == 0) {
			t.Errorf("with %d servers: %s", i+2, out)
		}
		daemons[at] = other.start("pstorage-mdsd")
		daemons[at].waitFor("mds ready on")
		eventually(t, "the new server votes", func() bool { return n.mds(at).Voter })
		if i == 0 {
			continue
		}
		b, err := other.readBS()
		if err != nil || !strings.Contains(string(b), second) || !strings.Contains(string(b), third) {
			t.Errorf("bs.list of the third node: %s %v", b, err)
		}
	}
	n.ok("", "set-attr", "/", "replicas=1:1")
	// This node's list follows, as its own daemon is a metadata server.
	eventually(t, "bs.list names all three", func() bool {
		b, err := n.readBS()
		return err == nil && strings.Contains(string(b), second) && strings.Contains(string(b), third)
	})
	mdsd.cmd.Process.Kill()
	<-mdsd.done
	eventually(t, "the others serve", func() bool { return n.stat().Cluster == "c1" })
	eventually(t, "the first one is seen to be down", func() bool { return n.mds(addr).Down })
	out := n.ok("", "rm-mds", "1")
	if !strings.Contains(out, "removed") || !strings.Contains(out, "Warning") {
		t.Errorf("rm-mds: %s", out)
	}
	n.refused("", 1, []string{"not found"}, "rm-mds", "1")
	n.refused("", 2, []string{"number"}, "rm-mds", "first")
	if out := n.ok("", "get-attr", "/"); !strings.Contains(out, "1:1") {
		t.Errorf("get-attr: %s", out)
	}
	for _, d := range daemons {
		d.stop()
	}
}

// readBS returns what is in bs.list.
func (n *node) readBS() ([]byte, error) {
	conf, err := cluster.Choose(n.etc, "c1")
	if err != nil {
		return nil, err
	}
	return os.ReadFile(conf.BSPath())
}

// mds returns the metadata server at an address.
func (n *node) mds(addr string) control.MDSDoc {
	n.t.Helper()
	var doc control.ServicesDoc
	err := json.Unmarshal([]byte(n.ok("", "list-services", "-o", "json")), &doc)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, m := range doc.MDS {
		if m.Addr == addr {
			return m
		}
	}
	n.t.Fatalf("no metadata server at %s: %+v", addr, doc.MDS)
	return control.MDSDoc{}
}
