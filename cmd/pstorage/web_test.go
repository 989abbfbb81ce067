package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"pstorage/cmd/web"
)

// TestWebPage: every metadata server shows the page, also one that doesn't lead, and a flag that
// would let everybody read it is refused.
func TestWebPage(t *testing.T) {
	n := newNode(t)
	_, addr := n.makeCluster(1)
	csd := n.start("pstorage-csd")
	csd.waitFor("ready on")
	other := newNode(t)
	other.ok(testPassword, "-c", "c1", "auth-node", "-P", "-b", addr)
	other.ok("", "-c", "c1", "make-mds", "-a", freePort(t), "-r", other.path("mds2"))
	at := freePort(t)
	mdsd := other.start("pstorage-mdsd", "--web", at)
	mdsd.waitFor("mds ready on")
	get := func(path string) string {
		resp, err := http.Get("http://" + at + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %v %s", path, resp.StatusCode, err, text)
		}
		return string(text)
	}
	if page := get("/"); !strings.Contains(page, "<h1>pstorage") {
		t.Errorf("the page: %q", page)
	}
	eventually(t, "the page of the follower shows the disk", func() bool {
		var s web.State
		if err := json.Unmarshal([]byte(get("/api/state?cluster=c1")), &s); err != nil {
			t.Fatal(err)
		}
		return s.Stat != nil && len(s.Stat.CS) == 1 && len(s.Stat.MDS) == 2 && len(s.Points) > 0
	})
	r := other.run("", "pstorage-mdsd", "--web", "0.0.0.0:0")
	if r.status != 2 || !strings.Contains(r.stderr, "--web-token") {
		t.Errorf("open to all: %+v", r)
	}
}
