package main

import (
	"testing"

	"pstorage/dataplane/cluster"
)

// TestAuthNodeLesserKey: a node with servers keeps a key that is good for them.
func TestAuthNodeLesserKey(t *testing.T) {
	n := newNode(t)
	n.makeCluster(1)
	auth := func(roles string) []string {
		return []string{"-c", "c1", "auth-node", "-P", "--role", roles}
	}
	n.refused(testPassword, 1, []string{"cs.list", "add cs to --role"}, auth("client")...)
	n.refused(testPassword, 1, []string{"mds.list", "add mds to --role"}, auth("cs,admin")...)
	n.ok(testPassword, auth("cs,mds,admin")...)
	csd := n.start("pstorage-csd")
	csd.waitFor("cs 1 ready on")

	guest := newNode(t)
	conf, err := cluster.Choose(n.etc, "c1")
	if err != nil {
		t.Fatal(err)
	}
	guest.ok(testPassword, append(auth("client"), "-b", conf.BSOrNone()[0])...)
	guest.ok("", "stat")
}
