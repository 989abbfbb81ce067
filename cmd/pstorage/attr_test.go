package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pstorage/cmd/cli"
	"pstorage/dataplane/control"
)

func TestParseAttrs(t *testing.T) {
	tests := []struct {
		pairs []string
		want  string // JSON; empty: usage error
	}{
		{[]string{"replicas=3:2"}, `{"path":"/x","replicas":3,"minimum":2}`},
		{[]string{"replicas=3"}, `{"path":"/x","replicas":3,"minimum":2}`},
		{[]string{"replicas=1"}, `{"path":"/x","replicas":1,"minimum":1}`},
		{[]string{"tier=3", "write-ack=memory", "failure-domain=rack"},
			`{"path":"/x","failure_domain":"rack","tier":3,"write_ack":"memory"}`},
		{[]string{"replicas=9"}, ""},
		{[]string{"replicas=0"}, ""},
		{[]string{"replicas=2:3"}, ""},
		{[]string{"replicas=2:0"}, ""},
		{[]string{"replicas="}, ""},
		{[]string{"replicas"}, ""},
		{[]string{"tier=4"}, ""},
		{[]string{"tier=-1"}, ""},
		{[]string{"write-ack=tape"}, ""},
		{[]string{"failure-domain=moon"}, ""},
		{[]string{"colour=red"}, ""},
		{[]string{"tier=1", "colour=red"}, ""},
	}
	for _, test := range tests {
		change, err := parseAttrs("/x", test.pairs)
		if (err != nil) != (test.want == "") {
			t.Errorf("%v: error %v", test.pairs, err)
			continue
		}
		if err != nil {
			if cli.Status(err) != cli.ExitUsage {
				t.Errorf("%v: status %d", test.pairs, cli.Status(err))
			}
			continue
		}
		if got, _ := json.Marshal(change); string(got) != test.want {
			t.Errorf("%v: %s, want %s", test.pairs, got, test.want)
		}
	}
}

// TestClusterPath says which path inside which cluster is meant.
func TestClusterPath(t *testing.T) {
	mounts := []cli.Mount{{Mountpoint: "/pcs", Root: "/", Source: "pstorage://one"},
		{Mountpoint: "/pcs/two", Root: "/", Source: "pstorage://two"},
		{Mountpoint: "/x", Root: "/", Source: "named"},
		{Mountpoint: "/srv/vm", Root: "/old", Source: "pstorage://two"}, // hidden by the next
		{Mountpoint: "/srv/vm", Root: "/vm", Source: "pstorage://one"},
		{Mountpoint: "/srv/gone", Root: "/gone//deleted", Source: "pstorage://one"}}
	for _, c := range []struct{ cluster, path, wantCluster, want string }{
		{"", "/images/a", "", "/images/a"},
		{"one", "/pcsimages", "one", "/pcsimages"},
		{"", "/pcs", "one", "/"},
		{"one", "/pcs/images/", "one", "/images"},
		{"", "/pcs/two/a", "two", "/a"},
		{"two", "/pcs/a", "refused", ""},
		{"", "/x/a", "", "/a"},
		{"", "/srv/vm", "one", "/vm"}, // mount --bind /pcs/vm /srv/vm
		{"one", "/srv/vm/web1/", "one", "/vm/web1"},
		{"", "/srv/gone/a", "refused", ""},
	} {
		cluster := c.cluster
		got, err := clusterPath(mounts, &cluster, c.path)
		if refused := c.wantCluster == "refused"; refused != (err != nil) ||
			!refused && (got != c.want || cluster != c.wantCluster) {
			t.Errorf("%+v: %q in %q, %v", c, got, cluster, err)
		}
	}
}

// TestClusterPathLink: a path that leads to a mount by a symbolic link is one on the mount, and not
// the same path inside the cluster, where something else may be.
func TestClusterPathLink(t *testing.T) {
	dir := t.TempDir()
	mnt, link := filepath.Join(dir, "mnt"), filepath.Join(dir, "data")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("mnt/prod", link); err != nil {
		t.Fatal(err)
	}
	mounts := []cli.Mount{{Mountpoint: mnt, Root: "/", Source: "pstorage://one"}}
	cluster := ""
	got, err := clusterPath(mounts, &cluster, filepath.Join(link, "a"))
	if got != "/prod/a" || cluster != "one" || err != nil {
		t.Errorf("%q in %q, %v", got, cluster, err)
	}
}

// TestFileInfoWriter: who writes a file is shown, also while it has no chunks.
func TestFileInfoWriter(t *testing.T) {
	const writer = "writer: client abc on a (/mnt)\n"
	lease := &control.LeaseDoc{Client: 0xabc, Host: "a", Mount: "/mnt"}
	for name, c := range map[string]struct {
		doc  control.FileInfoDoc
		want bool
	}{
		"no chunks":      {control.FileInfoDoc{Writer: lease}, true},
		"a chunk":        {control.FileInfoDoc{Writer: lease, List: make([]control.ChunkDoc, 1)}, true},
		"nobody's right": {control.FileInfoDoc{List: make([]control.ChunkDoc, 1)}, false},
	} {
		out := string(render(func(tab *table) { showFileInfo(tab, c.doc) }))
		if strings.Contains(out, writer) != c.want {
			t.Errorf("%s: %s", name, out)
		}
	}
}
