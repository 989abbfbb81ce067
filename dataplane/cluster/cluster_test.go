package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

func testConf(t *testing.T, name string) *Conf {
	t.Helper()
	conf, err := At(t.TempDir(), name)
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

func testKey(name string) session.NodeKey {
	k := session.NodeKey{ClusterName: name}
	for i := range k.Cluster {
		k.Cluster[i] = byte(i)
	}
	var key [32]byte
	for i := range key {
		key[i] = byte(0xff - i)
	}
	k.Keys = session.LegacyKeys(key)
	return k
}

func wantKind(t *testing.T, err error, kind dataplane.Kind) {
	t.Helper()
	if dataplane.KindOf(err) != kind {
		t.Fatalf("error %v is of kind %v, want %v", err, dataplane.KindOf(err), kind)
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "test_cluster", "A-9_", strings.Repeat("x", 63), "_-"} {
		if err := CheckName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	bad := []string{"", "-a", strings.Repeat("x", 64), "a b", "a/b", "..", ".", "a.b", "ä", "a\n",
		"a\x00"}
	for _, name := range bad {
		if err := CheckName(name); dataplane.KindOf(err) != dataplane.Invalid {
			t.Errorf("%q: %v, want Invalid", name, err)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: error has more than one line: %q", name, err)
		}
	}
}

func TestEtcDir(t *testing.T) {
	t.Setenv(EtcEnv, "")
	if EtcDir() != "/etc/pstorage" {
		t.Errorf("default is %s", EtcDir())
	}
	t.Setenv(EtcEnv, "/somewhere")
	if EtcDir() != "/somewhere" {
		t.Errorf("%s is not followed: %s", EtcEnv, EtcDir())
	}
}

func TestListAndChoose(t *testing.T) {
	etc := t.TempDir()
	names, err := List(etc)
	if err != nil || len(names) != 0 {
		t.Fatalf("List of nothing: %v, %v", names, err)
	}
	_, err = Choose(etc, "")
	wantKind(t, err, dataplane.NotFound)
	_, err = Choose(etc, "one")
	wantKind(t, err, dataplane.NotFound)
	_, err = Choose(etc, "bad/name")
	wantKind(t, err, dataplane.Invalid)

	save := func(name string) {
		conf, err := At(etc, name)
		if err == nil {
			err = conf.SaveKey(testKey(name))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	save("one")
	if err := os.MkdirAll(filepath.Join(etc, "clusters", "nokey"), 0o755); err != nil {
		t.Fatal(err)
	}
	conf, err := Choose(etc, "")
	if err != nil || conf.Name() != "one" {
		t.Fatalf("the only cluster isn't chosen: %v, %v", conf, err)
	}
	save("two")
	_, err = Choose(etc, "")
	wantKind(t, err, dataplane.Invalid)
	if conf, err = Choose(etc, "two"); err != nil || conf.Name() != "two" {
		t.Fatalf("two isn't chosen: %v, %v", conf, err)
	}
	if names, _ = List(etc); !reflect.DeepEqual(names, []string{"one", "two"}) {
		t.Fatalf("List: %v", names)
	}
}

// TestRestorer: what a cluster that didn't come about leaves is what was there before.
func TestRestorer(t *testing.T) {
	begin := func(conf *Conf) {
		t.Helper()
		err := errors.Join(conf.AddDaemon(MDS, Daemon{Dir: "/mds"}),
			conf.SaveBS([]string{"127.0.0.1"}), conf.SaveKey(testKey(conf.Name())))
		if err != nil {
			t.Fatal(err)
		}
	}
	restorer := func(conf *Conf) func() error {
		t.Helper()
		restore, err := conf.Restorer()
		if err != nil {
			t.Fatal(err)
		}
		return restore
	}
	conf := testConf(t, "fresh")
	restore := restorer(conf)
	for range 2 { // once with nothing made
		if err := restore(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(conf.Path()); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the directory is there: %v", err)
		}
		begin(conf)
	}

	conf = testConf(t, "prepared")
	if err := os.MkdirAll(conf.Path(), 0o755); err != nil {
		t.Fatal(err)
	}
	had := map[string]string{"discovery": "list\n", "bs.list": "# by hand\n10.0.0.1\n"}
	for name, text := range had {
		if err := os.WriteFile(filepath.Join(conf.Path(), name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	restore = restorer(conf)
	begin(conf)
	if err := restore(); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(conf.Path())
	if err != nil || len(entries) != len(had) {
		t.Errorf("left are %v, %v", entries, err)
	}
	for name, text := range had {
		path := filepath.Join(conf.Path(), name)
		got, err := os.ReadFile(path)
		if info, _ := os.Stat(path); err != nil || string(got) != text || info.Mode() != 0o640 {
			t.Errorf("%s: %q, %v, %v", name, got, info.Mode(), err)
		}
	}
}

func TestKeyRoundTrip(t *testing.T) {
	conf := testConf(t, "c1")
	_, err := conf.LoadKey()
	wantKind(t, err, dataplane.NotFound)

	want := testKey("c1")
	if err := conf.SaveKey(want); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(conf.KeyPath())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	got, err := conf.LoadKey()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v, %v", got, err)
	}
	cred, err := conf.Credentials(dataplane.RoleAdmin, 0)
	if err != nil || !reflect.DeepEqual(cred.Ring.Load(), &want.Keys) ||
		cred.Cluster != want.Cluster || cred.ID == 0 ||
		cred.ClusterName != "c1" || cred.Role != dataplane.RoleAdmin {
		t.Fatalf("credentials %v, %v", cred, err)
	}
	wantKind(t, conf.SaveKey(testKey("other")), dataplane.WrongCluster)
}

func TestKeyRefused(t *testing.T) {
	good := string(AppendKey(nil, testKey("c1")))
	resum := func(body string) string { return body + crcLine(body) }
	body := good[:strings.LastIndex(good, "crc32c")]
	tests := []struct {
		name, text string
		mode       fs.FileMode
		kind       dataplane.Kind
		says       string
	}{
		{"group can read", good, 0o640, dataplane.Denied, "chmod 600"},
		{"all can read", good, 0o604, dataplane.Denied, "chmod 600"},
		{"empty", "", 0o600, dataplane.Malformed, "not a pstorage key"},
		{"other file", "root:x:0:0\n", 0o600, dataplane.Malformed, "not a pstorage key"},
		{"newer", "pstorage-key 3\n", 0o600, dataplane.Malformed, "newer version"},
		{"no last line", body, 0o600, dataplane.Malformed, "cut short"},
		{"no last newline", good[:len(good)-1], 0o600, dataplane.Malformed, "cut short"},
		{"flipped", strings.Replace(good, "key ff", "key fe", 1), 0o600, dataplane.Malformed, "checksum"},
		{"of another cluster", string(AppendKey(nil, testKey("c2"))), 0o600,
			dataplane.WrongCluster, "cluster c2"},
		{"missing field", resum("pstorage-key 1\nname c1\n"), 0o600, dataplane.Malformed, "missing"},
		{"field twice", resum(body + "name c1\n"), 0o600, dataplane.Malformed, "twice"},
		{"unknown field", resum(body + "colour red\n"), 0o600, dataplane.Malformed, "unknown field"},
		{"short key", resum("pstorage-key 1\nkey ff\n"), 0o600, dataplane.Malformed, "64 hex"},
		{"not hex", resum("pstorage-key 1\nkey " + strings.Repeat("zz", 32) + "\n"), 0o600,
			dataplane.Malformed, "not hexadecimal"},
		{"bad name", resum("pstorage-key 1\nname a/b\n"), 0o600, dataplane.Malformed, "name"},
		{"huge", good + strings.Repeat("#", maxKeyBytes), 0o600, dataplane.Malformed, "larger"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			conf := testConf(t, "c1")
			if err := conf.writeAtomic("auth.key", []byte(test.text), test.mode); err != nil {
				t.Fatal(err)
			}
			_, err := conf.LoadKey()
			wantKind(t, err, test.kind)
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %q doesn't say %q", err, test.says)
			}
			if !strings.Contains(err.Error(), conf.KeyPath()) {
				t.Errorf("error %q doesn't name the file", err)
			}
		})
	}
}

func crcLine(body string) string {
	return fmt.Sprintf("crc32c %08x\n", dataplane.CRC([]byte(body)))
}

func FuzzParseKey(f *testing.F) {
	f.Add(AppendKey(nil, testKey("c1")))
	f.Add(AppendKey(nil, certKey("c1", 3)))
	secure := testKey("c1")
	secure.Keys.Secure = true
	f.Add(AppendKey(nil, secure))
	f.Add([]byte("pstorage-key 1\ncrc32c 00000000\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		k, err := ParseKey(text)
		if err != nil {
			return
		}
		first := AppendKey(nil, k)
		again, err := ParseKey(first)
		if err != nil || !bytes.Equal(AppendKey(nil, again), first) {
			t.Fatalf("accepted key doesn't survive: %v, %v", again, err)
		}
	})
}

// certKey is the key of a node with a certificate, which the key of generation 1 has signed.
func certKey(name string, node uint64) session.NodeKey {
	k := testKey(name)
	sign, private := session.Secret{1}, session.Secret{2, byte(node)}
	k.Keys = session.KeySet{Version: 9, Secure: true, Current: 1, Revoked: []uint64{1, 5},
		Generations: []session.Generation{{Number: 1, Key: session.Secret{3},
			Sign: session.PublicKey(&sign)}},
		Private: private,
		Cert: session.SignCertificate(&session.Certificate{Roles: session.AllRoles, Generation: 1,
			Cluster: k.Cluster, Node: node, Public: session.PublicKey(&private)}, &sign)}
	return k
}

// Nothing of the keys is lost in the file, of no kind of cluster.
func TestKeyVersions(t *testing.T) {
	secure := testKey("c1") // without certificates, but encrypted
	secure.Keys.Secure = true
	for name, c := range map[string]struct {
		key     session.NodeKey
		version string
	}{
		"older":             {testKey("c1"), keyVersion1},
		"older, encrypted":  {secure, keyVersion2},
		"with certificates": {certKey("c1", 3), keyVersion2},
	} {
		text := AppendKey(nil, c.key)
		got, err := ParseKey(text)
		if err != nil || !reflect.DeepEqual(got, c.key) || !bytes.HasPrefix(text, []byte(c.version)) {
			t.Errorf("%s: %.20s: %v, %+v", name, text, err, got.Keys)
		}
	}
}

// A process of a cluster that is gone neither takes nor replaces the key of the new one.
func TestKeyFileOfNewCluster(t *testing.T) {
	conf := testConf(t, "c1")
	if err := conf.SaveKey(certKey("c1", 3)); err != nil {
		t.Fatal(err)
	}
	cred, err := conf.Credentials(dataplane.RoleClient, 0)
	if err != nil {
		t.Fatal(err)
	}
	again := certKey("c1", 4)
	again.Cluster[0]++
	again.Keys = session.LegacyKeys([32]byte{8})
	if err := conf.SaveKey(again); err != nil {
		t.Fatal(err)
	}
	wantKind(t, cred.Ring.Reload(), dataplane.WrongCluster)
	newer := certKey("c1", 3).Keys
	newer.Version++
	wantKind(t, cred.Ring.Update(&newer, nil), dataplane.WrongCluster)
	if k, err := conf.LoadKey(); err != nil || !reflect.DeepEqual(k, again) {
		t.Errorf("the new cluster's key was replaced: %v", err)
	}
	if c := cred.Ring.Load(); c.Version != newer.Version || c.Certificate().Node != 3 {
		t.Errorf("version %d, node %d", c.Version, c.Certificate().Node)
	}
}

func TestBS(t *testing.T) {
	conf := testConf(t, "c1")
	_, err := conf.LoadBS()
	wantKind(t, err, dataplane.IOError)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("cause is lost: %v", err)
	}
	if err := conf.SaveBS([]string{"127.0.0.1", "10.0.0.1:99", "::1", "[::2]:7"}); err != nil {
		t.Fatal(err)
	}
	got, err := conf.LoadBS()
	want := []string{"127.0.0.1:2510", "10.0.0.1:99", "[::1]:2510", "[::2]:7"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v, %v", got, err)
	}
	for text, says := range map[string]string{
		"# nothing\n\n":           "names no metadata server",
		"127.0.0.1\nhost1:2510\n": "line 2",
		"127.0.0.1:0\n":           "port is 0",
		"127.0.0.1:65536\n":       "line 1",
		"1.2.3.4 5.6.7.8\n":       "line 1",
	} {
		if err := os.WriteFile(conf.BSPath(), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := conf.LoadBS(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: error %v doesn't say %q", text, err, says)
		}
	}
}

func TestDaemons(t *testing.T) {
	conf := testConf(t, "c1")
	got, err := conf.Daemons(CS)
	if err != nil || got != nil {
		t.Fatalf("no list: %v, %v", got, err)
	}
	first := Daemon{Dir: "/pstorage/cs1", Addr: "127.0.0.1:2520"}
	second := Daemon{Dir: "/pstorage/cs2"}
	for _, d := range []Daemon{first, second} {
		if err := conf.AddDaemon(CS, d); err != nil {
			t.Fatal(err)
		}
	}
	wantKind(t, conf.AddDaemon(CS, Daemon{Dir: "/pstorage/cs1"}), dataplane.Exists)
	for _, dir := range []string{"", "rel", "/", "/a b", "/a\nb", "/a#b"} {
		wantKind(t, conf.AddDaemon(CS, Daemon{Dir: dir}), dataplane.Invalid)
	}
	got, err = conf.Daemons(CS)
	if err != nil || !reflect.DeepEqual(got, []Daemon{first, second}) {
		t.Fatalf("got %v, %v", got, err)
	}
	if mds, err := conf.Daemons(MDS); err != nil || mds != nil {
		t.Fatalf("MDS list: %v, %v", mds, err)
	}
	// What a person wrote stays: a comment, and a last line without its newline.
	text, _ := os.ReadFile(conf.ListPath(CS))
	text = append(text, "# my comment\n/pstorage/cs3"...)
	if err := os.WriteFile(conf.ListPath(CS), text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := conf.AddDaemon(CS, Daemon{Dir: "/pstorage/cs4"}); err != nil {
		t.Fatal(err)
	}
	if err := conf.RemoveDaemon(CS, "/pstorage/cs1"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, conf.RemoveDaemon(CS, "/pstorage/cs1"), dataplane.NotFound)
	got, err = conf.Daemons(CS)
	want := []Daemon{second, {Dir: "/pstorage/cs3"}, {Dir: "/pstorage/cs4"}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %v, %v", got, err)
	}
	if text, _ = os.ReadFile(conf.ListPath(CS)); !strings.Contains(string(text), "# my comment\n") {
		t.Error("the comment is lost")
	}
}

func TestDaemonsMalformed(t *testing.T) {
	conf := testConf(t, "c1")
	if err := conf.AddDaemon(CS, Daemon{Dir: "/pstorage/cs1"}); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"relative", "/a b", "/a addr=host:1", "/a addr=127.0.0.1",
		"/a x=1"} {
		if err := os.WriteFile(conf.ListPath(CS), []byte("/ok\n"+line+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := conf.Daemons(CS)
		wantKind(t, err, dataplane.Malformed)
		if !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: error %q doesn't name the line", line, err)
		}
	}
}

// TestAddDaemonConcurrent: no line is lost when several commands add at the same time.
func TestAddDaemonConcurrent(t *testing.T) {
	conf := testConf(t, "c1")
	const n = 8
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := conf.AddDaemon(CS, Daemon{Dir: "/cs" + string(rune('a'+i))}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, err := conf.Daemons(CS)
	if err != nil || len(got) != n {
		t.Fatalf("%d of %d lines are there: %v, %v", len(got), n, got, err)
	}
	entries, _ := os.ReadDir(conf.Path())
	if len(entries) != 1 {
		t.Errorf("temporary files are left: %v", entries)
	}
}
