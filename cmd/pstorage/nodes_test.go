package main

import (
	"testing"

	"pstorage/dataplane/control"
)

// TestNodesOf: servers are grouped by machine, and a machine is as well as its servers.
func TestNodesOf(t *testing.T) {
	doc := nodesOf(&control.ServicesDoc{
		MDS: []control.MDSDoc{{ID: "1", Addr: "10.0.0.1:2510", Leader: true},
			{ID: "2", Addr: "10.0.0.2:2510", Down: true}, {ID: "3", Addr: "10.0.0.9:2510"}},
		CS: []control.CSDoc{
			{ID: 1, Host: "b", Addr: "10.0.0.2:2520", Status: control.CSActive, Capacity: 10, Used: 4},
			{ID: 2, Host: "a", Addr: "10.0.0.1:2520", Status: control.CSActive, Chunks: 7},
			{ID: 3, Host: "a", Addr: "10.0.0.1:2521", Status: control.CSIll, Chunks: 2},
			{ID: 4, Host: "c", Addr: "10.0.0.3:2520", Status: control.CSOffline},
			{ID: 5, Host: "c", Addr: "10.0.0.3:2521", Status: control.CSDropped}}})
	want := []struct {
		name, status string
		mds, cs      int
	}{{"10.0.0.9", "up", 1, 0}, {"a", "up", 1, 2}, {"b", "partly up", 1, 1}, {"c", "down", 0, 1}}
	if len(doc.Nodes) != len(want) {
		t.Fatalf("%+v", doc.Nodes)
	}
	for i, w := range want {
		n := doc.Nodes[i]
		if n.Name != w.name || n.Status != w.status || len(n.MDS) != w.mds || len(n.CS) != w.cs {
			t.Errorf("%+v, want %+v", n, w)
		}
	}
	if a := doc.Nodes[1]; a.Chunks != 9 || len(a.Addrs) != 1 || !a.MDS[0].Leader {
		t.Errorf("%+v", a)
	}
}
