package main

import (
	"io"
	"net/http"
	"testing"

	"pstorage/cmd/metrics"
)

// scrape asks a daemon's endpoint, whose answer must be in the format.
func scrape(t *testing.T, addr string) metrics.Families {
	t.Helper()
	answer, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v\n%s", answer.Status, err, text)
	}
	got, err := metrics.Parse(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return got
}

// TestMetrics asks real daemons.
func TestMetrics(t *testing.T) {
	n := newNode(t)
	addr := freePort(t)
	n.ok(testPassword, "-c", "c1", "make-mds", "-I", "-a", addr, "-r", n.path("c1-mds"), "-P")
	mdsMetrics, csMetrics := freePort(t), freePort(t)
	mdsd := n.start("pstorage-mdsd", "--metrics", mdsMetrics)
	mdsd.waitFor("mds ready on")
	n.makeSmallCS("c1-cs1")
	csd := n.start("pstorage-csd", "--metrics", csMetrics)
	csd.waitFor("ready on")
	eventually(t, "the leader knows the chunk server", func() bool {
		v, _ := scrape(t, mdsMetrics).Value("pstorage_cs_state", "cs", "1", "state", "active")
		return v == 1
	})
	got := scrape(t, mdsMetrics)
	for family, want := range map[string]float64{"pstorage_mds_leader": 1,
		"pstorage_mds_servers": 1, "pstorage_mds_member_up": 1} {
		if v, ok := got.Value(family, "cluster", "c1"); !ok || v != want {
			t.Errorf("%s: %v (%v), want %v", family, v, ok, want)
		}
	}
	if v, ok := got.Value("pstorage_chunks", "state", "all"); !ok || v != 0 {
		t.Errorf("chunks: %v, %v", v, ok)
	}
	for _, none := range []string{"pstorage_mds_map_watches",
		"pstorage_mds_map_changes_dropped", "pstorage_mds_map_watches_refused"} {
		if v, ok := got.Value(none, "cluster", "c1"); !ok || v != 0 {
			t.Errorf("%s: %v, %v", none, v, ok)
		}
	}
	if v, ok := got.Value("pstorage_mds_raft_applied_index"); !ok || v < 1 {
		t.Errorf("applied: %v, %v", v, ok)
	}
	eventually(t, "the chunk server tells what it measures", func() bool {
		v, _ := scrape(t, csMetrics).Value("pstorage_cs_lease", "cs", "1", "cluster", "c1")
		return v == 1
	})
	got = scrape(t, csMetrics)
	if v, ok := got.Value("pstorage_cs_capacity_bytes"); !ok || v != 1<<30 {
		t.Errorf("capacity: %v, %v", v, ok)
	}
	if v, ok := got.Value("pstorage_cs_up"); !ok || v != 1 {
		t.Errorf("up: %v, %v", v, ok)
	}
	// An address that is taken is an error at the start, not a service without metrics.
	r := n.run("", "pstorage-mdsd", "--metrics", mdsMetrics)
	if r.status != 1 {
		t.Errorf("a second one on the same address: status %d, %s", r.status, r.stderr)
	}
	csd.stop()
	mdsd.stop()
}
