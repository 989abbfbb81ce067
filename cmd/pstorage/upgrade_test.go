package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/cluster"
)

// open opens the cluster as a client of the node.
func (n *node) open() *client.Client {
	n.t.Helper()
	conf, err := cluster.Choose(n.etc, "c1")
	if err != nil {
		n.t.Fatal(err)
	}
	cred, err := conf.Credentials(dataplane.RoleClient, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	c, err := client.Open(n.t.Context(), client.ClientOptions{Cred: &cred, MDSAddrs: conf.BSOrNone,
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

// hashesOf reads files whole, and says what sha256sum would.
func (n *node) hashesOf(paths ...string) (sums string) {
	n.t.Helper()
	c := n.open()
	defer c.Close()
	for _, path := range paths {
		f, err := c.OpenPath(n.t.Context(), "/"+path)
		if err != nil {
			n.t.Fatal(err)
		}
		a, err := c.Resolve(n.t.Context(), "/"+path)
		if err != nil {
			n.t.Fatal(err)
		}
		hash := sha256.New()
		if _, err := io.Copy(hash, io.NewSectionReader(f, 0, int64(a.Size))); err != nil {
			n.t.Fatal(path, err)
		}
		f.Close()
		sums += fmt.Sprintf("%x  %s\n", hash.Sum(nil), path)
	}
	return sums
}

// TestUpgradeRecorded starts today's programs on a cluster that an earlier version made and left,
// one chunk server killed; see testdata/upgrade/record. Its data are there, it takes new ones, and
// its nodes get certificates.
func TestUpgradeRecorded(t *testing.T) {
	n := newNode(t)
	tarball, err := filepath.Abs("testdata/upgrade/v1.tgz")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "-C", n.dir, "-xzf", tarball).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	for _, name := range []string{"mds.list", "cs.list"} { // they were elsewhere
		path := filepath.Join(n.etc, "clusters/c1", name)
		text, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "/pstorage-recorded",
				n.dir)), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(n.path("sums"))
	if err != nil {
		t.Fatal(err)
	}
	start := func() (mdsd, csd *daemon) {
		t.Helper()
		mdsd = n.start("pstorage-mdsd")
		mdsd.waitFor("mds ready on")
		csd = n.start("pstorage-csd")
		for i := 1; i <= 3; i++ {
			csd.waitFor(fmt.Sprintf("cs %d ready on", i))
		}
		return mdsd, csd
	}
	check := func(when string) {
		t.Helper()
		n.ok("", "stat", "--wait")
		if got := n.hashesOf("random", "dir/text"); got != string(want) {
			t.Errorf("%s: read\n%swant\n%s", when, got, want)
		}
		if a := n.ok("", "get-attr", "/sparse"); !strings.Contains(a, "209715200") {
			t.Errorf("%s: get-attr /sparse:\n%s", when, a)
		}
	}
	mdsd, csd := start()
	check("at first")
	l := n.startLoad()
	if keys := n.ok("", "list-keys"); !strings.Contains(keys, "no certificates") {
		t.Errorf("list-keys before the first rotation:\n%s", keys)
	}
	n.ok("", "rotate-keys")
	l.await(50)
	l.end(0)
	if keys := n.ok("", "list-keys"); !strings.Contains(keys, "generation 1") {
		t.Errorf("list-keys after it:\n%s", keys)
	}
	n.ok("", "set-config", "mode=secure")
	csd.stop()
	mdsd.stop()
	start()
	check("with certificates, encrypted")
}

// TestUpgradeRolling replaces the programs of an earlier version, in the directory that
// PSTORAGE_OLD_BIN names, by today's on a cluster that is in use: metadata servers, chunk servers,
// then the mount. A client that writes and one that reads are never held up for long.
func TestUpgradeRolling(t *testing.T) {
	old := os.Getenv("PSTORAGE_OLD_BIN")
	if old == "" || os.Getenv("PSTORAGE_LONG") == "" {
		t.Skip("PSTORAGE_LONG=1 and PSTORAGE_OLD_BIN=DIR, with an earlier version's programs, run it")
	}
	c := newTrioOf(t, old)
	want := someData(t, c.client.path("data"), 8<<20)
	shell(t, `cp "$1" "$2" && sync "$2"`, c.client.path("data"), c.mount+"/copy")
	same := func(when string) {
		t.Helper()
		if got := shell(t, hashOf, c.mount+"/copy"); got != want {
			t.Errorf("%s: hash %s, want %s", when, got, want)
		}
	}
	writer, reader, end := c.probe()
	ended := false
	defer func() {
		if !ended {
			end()
		}
	}()
	upgrade := func(name string, list []*daemon, i int, program, says string) {
		t.Helper()
		c.healthy(3)
		list[i].stop()
		c.nodes[i].bin = "" // today's
		list[i] = c.nodes[i].start(program)
		list[i].waitFor(says)
		c.healthy(3)
		w, r := writer.take(t), reader.take(t)
		t.Logf("%s: longest write %v, read %v", name, w.Round(time.Millisecond),
			r.Round(time.Millisecond))
		if max(w, r) > 2*stallLimit {
			t.Errorf("%s: a client stood still for %v", name, max(w, r))
		}
		same(name)
	}
	for i := range 3 {
		upgrade(fmt.Sprint("mds ", i+1), c.mdsd, i, "pstorage-mdsd", "mds ready on")
	}
	for i := range 3 {
		upgrade(fmt.Sprint("cs ", i+1), c.csd, i, "pstorage-csd", "ready on")
	}
	ended = true
	end()
	same("the old mount")
	c.client.bin = ""
	c.client.ok("", "umount", "--lazy", c.mount)
	c.mountIt()
	same("a new mount")
	c.client.ok("", "rotate-keys")
	c.healthy(3)
	same("new keys")
	if stat := c.nodes[0].stat(); stat.Health != "healthy" {
		t.Errorf("%s: %v", stat.Health, stat.Reasons)
	}
}
