package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"strings"
	"testing"

	"pstorage/dataplane/cluster"
)

// unpack returns the members of a report by their names within it.
func unpack(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, _ := f.Stat(); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	members := map[string]string{}
	for r := tar.NewReader(zip); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return members
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(path.Clean(h.Name), "/")
		members[name] = string(text)
	}
}

// TestReport: everything is in it, and no key and no password, wherever they were written.
func TestReport(t *testing.T) {
	n := newNode(t)
	mdsd, _ := n.makeCluster(0)
	conf, err := cluster.Choose(n.etc, "c1")
	if err != nil {
		t.Fatal(err)
	}
	key, err := conf.LoadKey()
	if err != nil {
		t.Fatal(err)
	}
	secret := key.Keys.Generations[0].Key
	keyHex := hex.EncodeToString(secret[:])
	password := strings.TrimSpace(testPassword)
	n.ok("", "set-config", "user.note="+password)
	n.ok("", "set-config", "capacity.limit=10T")
	log := "level=INFO msg=fine\nkey=" + keyHex + " x\npassword=\"" + password + "\"\n" +
		base64.StdEncoding.EncodeToString(secret[:]) + "\n" + strings.ToUpper(keyHex) + "\n" +
		"Authorization: Bearer " + "abcdefghijklmnop\n" + string(secret[:]) + "\nthe end\n"
	if err := os.WriteFile(n.path("csd.log"), []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	file := n.path("r.tar.gz")
	n.ok("", "report", "-f", file, "--log", n.path("csd.log"), "--log", n.path("none.log"))
	got := unpack(t, file)
	for _, name := range []string{"version.json", "stat.json", "services.json", "events.json",
		"config.json", "node.txt", "bs.list", "mds.list", "logs/1-csd.log", "errors.txt"} {
		if len(got[name]) == 0 {
			t.Errorf("%s is missing", name)
		}
		if strings.HasSuffix(name, ".json") && !json.Valid([]byte(got[name])) {
			t.Errorf("%s isn't JSON: %s", name, got[name])
		}
	}
	for name, text := range got {
		for _, secret := range []string{keyHex, strings.ToUpper(keyHex), string(secret[:]), password,
			base64.StdEncoding.EncodeToString(secret[:]), "abcdefghijklmnop"} {
			if strings.Contains(text, secret) {
				t.Errorf("%s has a secret: %q", name, secret)
			}
		}
	}
	for name, says := range map[string]string{"config.json": "10T", "node.txt": "Linux version",
		"logs/1-csd.log": "the end", "errors.txt": "none.log", "stat.json": `"c1"`} {
		if !strings.Contains(got[name], says) {
			t.Errorf("%s doesn't say %q: %q", name, says, got[name])
		}
	}
	n.refused("", 1, []string{"exists"}, "report", "-f", file)

	// The cluster needn't be up.
	mdsd.stop()
	n.ok("", "report", "-f", n.path("down.tar.gz"))
	down := unpack(t, n.path("down.tar.gz"))
	if down["stat.json"] != "" || !strings.Contains(down["errors.txt"], "cluster's state") ||
		down["bs.list"] == "" {
		t.Errorf("without a metadata server: %q", down["errors.txt"])
	}
}

// TestRedactorLeavesTheRest: names and counters that only sound secret stay.
func TestRedactorLeavesTheRest(t *testing.T) {
	r := &redactor{}
	for _, text := range []string{`{"key": "capacity.limit", "value": "10T"}`, "token=5", "key 12",
		"check the node's key, or get a new one"} {
		if got := r.clean([]byte(text)); !bytes.Equal(got, []byte(text)) {
			t.Errorf("%q became %q", text, got)
		}
	}
	for text, want := range map[string]string{
		`{"password": "a b"}`: `{"password": "[removed]"}`,
		"PASSWD=x y":          "PASSWD=[removed] y",
	} {
		if got := string(r.clean([]byte(text))); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}
