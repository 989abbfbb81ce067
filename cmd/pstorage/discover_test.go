package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestDiscover: what bs.list has is found by its way, names that come from the network or a file
// are checked, and a node with nothing is told what to do.
func TestDiscover(t *testing.T) {
	n := newNode(t)
	_, addr := n.makeCluster(0)
	// The networks of this machine are none of the test's business: nobody is asked there.
	node := filepath.Join(n.etc, "discovery")
	if text, err := os.ReadFile(node); err != nil || string(text) != "list\n" {
		t.Fatalf("the test's node asks others: %q, %v", text, err)
	}
	var doc discoverDoc
	out := n.ok("", "-c", "c1", "discover", "-o", "json")
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		t.Fatal(err)
	}
	var ways []string
	for _, w := range doc.Ways {
		ways = append(ways, w.Way)
	}
	if !slices.Equal(ways, []string{"list"}) || doc.Cluster != "c1" ||
		!slices.Equal(doc.Ways[0].Addrs, []string{addr}) {
		t.Errorf("found %s", out)
	}
	if out := n.ok("", "discover"); !strings.Contains(out, addr) {
		t.Errorf("as a table: %q", out)
	}
	file := filepath.Join(n.etc, "clusters", "c1", "discovery")
	if err := os.WriteFile(file, []byte("list\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out = n.ok("", "discover", "-o", "json")
	if doc = (discoverDoc{}); json.Unmarshal([]byte(out), &doc) != nil || len(doc.Ways) != 1 {
		t.Errorf("with list only: %s", out)
	}
	n.ok("", "stat")
	if err := os.WriteFile(file, []byte("carrier-pigeon\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.refused("", 1, []string{"dns, mdns and list", "mend or remove"}, "discover")
	n.refused("", 1, []string{"letters"}, "-c", "a.b/c", "discover")
}
