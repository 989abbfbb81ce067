package main

import (
	"fmt"
	"io"

	"net/netip"
	"os"
	"strings"
	"testing"

	"pstorage/dataplane/cluster"
)

// TestMakeMDSMeanwhile: two people make a cluster. Both commands have looked at everything and wait
// for a password; the one whose password comes later takes nothing of the other's.
func TestMakeMDSMeanwhile(t *testing.T) {
	for _, c := range []struct {
		name, dir string // of the later one; the earlier one makes c1 in mds
		there     bool   // the directory is there before
		says      string
	}{
		{"c1", "mds", false, "already"},
		{"c1", "other", false, "already"},
		{"c2", "mds", false, "isn't empty"},
		{"c2", "mds", true, "isn't empty"},
	} {
		t.Run(fmt.Sprintf("%s in %s, %v", c.name, c.dir, c.there), func(t *testing.T) {
			n := newNode(t)
			if c.there {
				if err := os.Mkdir(n.path(c.dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			prepare := func(name, dir string) func() error {
				conf, err := cluster.At(n.etc, name)
				if err != nil {
					t.Fatal(err)
				}
				made, err := checkNewDir(n.path(dir), "-r")
				if err != nil {
					t.Fatal(err)
				}
				servers := []newServer{{made, netip.MustParseAddrPort(freePort(t))}}
				return func() error {
					return initCluster(conf, servers, "password1", false, io.Discard)
				}
			}
			earlier, later := prepare("c1", "mds"), prepare(c.name, c.dir)
			if err := earlier(); err != nil {
				t.Fatal(err)
			}
			before := n.snapshot()
			if err := later(); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the later one: %v", err)
			}
			if after := n.snapshot(); after != before {
				t.Errorf("it changed something:\nbefore:\n%s\nafter:\n%s", before, after)
			}
		})
	}
}

// TestMakeMDSTwice: a second make-mds with the address of a server that was made and doesn't run
// yet would make a second directory of that very server.
func TestMakeMDSTwice(t *testing.T) {
	n := newNode(t)
	n.makeCluster(0)
	other := newNode(t)
	conf, err := cluster.Choose(n.etc, "c1")
	if err != nil {
		t.Fatal(err)
	}
	other.ok(testPassword, "-c", "c1", "auth-node", "-P", "-b", conf.BSOrNone()[0])
	addr := freePort(t)
	other.ok("", "make-mds", "-c", "c1", "-a", addr, "-r", other.path("mds"))
	other.refused("", 1, []string{other.path("mds"), "rm-mds 2"}, "make-mds", "-c", "c1", "-a", addr,
		"-r", other.path("again"))
	other.start("pstorage-mdsd").waitFor("mds ready on")
	eventually(t, "it votes", func() bool { return n.mds(addr).Voter })

	// Removed from elsewhere it makes room, whatever is left of it here.
	third := newNode(t)
	third.ok(testPassword, "-c", "c1", "auth-node", "-P", "-b", conf.BSOrNone()[0])
	addr = freePort(t)
	third.ok("", "make-mds", "-c", "c1", "-a", addr, "-r", third.path("mds"))
	n.ok("", "rm-mds", "3")
	third.ok("", "make-mds", "-c", "c1", "-a", addr, "-r", third.path("again"))
}
