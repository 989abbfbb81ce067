package nettest

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
)

// TestDiscover: a machine that knows nothing but the cluster's name finds its metadata servers by
// multicast, and nothing of a cluster of another name.
func TestDiscover(t *testing.T) {
	c := newCluster(t, "d", 3, 1, 1)
	guest := c.node("guest")
	find := func(name string) (found []string) {
		cmd := c.command(guest, "pstorage", "-c", name, "discover", "-o", "json")
		out, _ := output(guest, cmd) // it fails when nothing is found
		var doc struct {
			Ways []struct {
				Way   string
				Addrs []string
			}
		}
		if len(out) > 0 {
			c.must(json.Unmarshal(out, &doc))
		}
		for _, w := range doc.Ways {
			if w.Way == "mdns" {
				found = w.Addrs
			}
		}
		slices.Sort(found)
		return found
	}
	want := slices.Clone(c.bs)
	slices.Sort(want)
	c.await(startWithin, "all are found", func() error {
		if found := find(clusterName); !slices.Equal(found, want) {
			return fmt.Errorf("found %v, want %v", found, want)
		}
		return nil
	})
	if found := find("another"); len(found) != 0 {
		t.Errorf("found %v for another cluster", found)
	}
}
