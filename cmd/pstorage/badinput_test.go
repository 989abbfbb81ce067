package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pstorage/dataplane/cluster"
	"pstorage/dataplane/session"
)

type refusedCase struct {
	status int
	says   string // parts of the line, separated by |
	args   string // with DIR, USED, BUSY, FREE replaced
	stdin  string
}

func (n *node) refusedAll(cases []refusedCase, replace ...string) {
	n.t.Helper()
	for _, c := range cases {
		var args []string
		for _, arg := range strings.Fields(c.args) {
			args = append(args, strings.NewReplacer(replace...).Replace(arg))
		}
		n.refused(c.stdin, c.status, strings.Split(c.says, "|"), args...)
	}
}

func TestUsageErrors(t *testing.T) {
	newNode(t).refusedAll([]refusedCase{
		{2, `unknown command "nonsense"`, "nonsense", ""},
		{2, "unknown flag|--help", "stat --nonsense", ""},
		{2, "-c", "make-mds -I -a 127.0.0.1 -r DIR -P", "secret123\n"},
		{2, "-c", "auth-node -P", "secret123\n"},
		{2, "table, json", "stat -o xml", ""},
		{2, "1, 3 or 5", "dev --mds 2", ""},
		{2, "--cs 0", "dev --cs 0", ""},
		{2, "exclude each other", "dev --no-mount --mount /tmp/x", ""},
		{2, "isn't used", "-c x dev", ""},
		{2, "goes with --wait", "stat --timeout 10m", ""},
		{2, "unexpected argument|extra", "version extra", ""},
	})
}

func TestMakeMDSRefused(t *testing.T) {
	n := newNode(t)
	used := n.path("used")
	if err := os.MkdirAll(used, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(used, "photo.jpg"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.refusedAll([]refusedCase{
		{1, "only letters, digits|-c", "-c a/b make-mds -I -a FREE -r DIR -P", "secret123\n"},
		{1, "only letters, digits", "-c ../x make-mds -I -a FREE -r DIR -P", "secret123\n"},
		{1, "64 characters", "-c " + strings.Repeat("x", 64) + " make-mds -I -a FREE -r DIR -P",
			"secret123\n"},
		{2, "password|with -I", "-c c1 make-mds -a FREE -r DIR -P", "secret123\n"},
		{1, "key|auth-node", "-c c1 make-mds -a FREE -r DIR", ""},
		{2, "-p|-P", "-c c1 make-mds -I -a FREE -r DIR", ""},
		{2, "-a", "-c c1 make-mds -I -r DIR -P", "secret123\n"},
		{2, "-r", "-c c1 make-mds -I -a FREE -P", "secret123\n"},
		{1, "isn't a terminal|-P", "-c c1 make-mds -I -a FREE -r DIR -p", "secret123\n"},
		{1, "password|empty", "-c c1 make-mds -I -a FREE -r DIR -P", "\n"},
		{1, "password|empty", "-c c1 make-mds -I -a FREE -r DIR -P", ""},
		{1, "UTF-8", "-c c1 make-mds -I -a FREE -r DIR -P", "\xff\xfe\xfd\n"},
		{1, "longer than", "-c c1 make-mds -I -a FREE -r DIR -P", strings.Repeat("x", 2000)},
		{1, "isn't empty|photo.jpg|-r", "-c c1 make-mds -I -a FREE -r USED -P", "secret123\n"},
		{1, "not a directory", "-c c1 make-mds -I -a FREE -r USED/photo.jpg -P", "secret123\n"},
		{1, "not a directory", "-c c1 make-mds -I -a FREE -r USED/photo.jpg/x -P", "secret123\n"},
		{1, "may not contain #", "-c c1 make-mds -I -a FREE -r DIR#x -P", "secret123\n"},
		{1, "in use|another port", "-c c1 make-mds -I -a BUSY -r DIR -P", "secret123\n"},
		{1, "address of this machine", "-c c1 make-mds -I -a 192.0.2.1 -r DIR -P", "secret123\n"},
		{1, "can't connect", "-c c1 make-mds -I -a 0.0.0.0 -r DIR -P", "secret123\n"},
		{1, "ip or ip:port", "-c c1 make-mds -I -a example -r DIR -P", "secret123\n"},
	}, "DIR", n.path("mds"), "USED", used, "BUSY", listening(t), "FREE", freePort(t))
}

// TestMakeMDSUndone: what was made before a later step fails is taken back.
func TestMakeMDSUndone(t *testing.T) {
	n := newNode(t)
	if err := os.RemoveAll(n.etc); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.etc, []byte("in the way"), 0o644); err != nil {
		t.Fatal(err)
	}
	n.refused("secret123\n", 1, []string{"not a directory"}, "-c", "c1", "make-mds", "-I",
		"-a", freePort(t), "-r", n.path("deep/mds"), "-P")
}

// TestMakeMDSLeaves: what was there before, in the directory of the cluster's configuration, stays
// when the cluster doesn't come about. Here the list has a line for the directory already.
func TestMakeMDSLeaves(t *testing.T) {
	n := newNode(t)
	at := filepath.Join(n.etc, "clusters/c1")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := n.path("deep/mds")
	for name, text := range map[string]string{"discovery": "list\n", "mds.list": dir + "\n"} {
		if err := os.WriteFile(filepath.Join(at, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n.refused("secret123\n", 1, []string{"mds.list", "already"}, "-c", "c1", "make-mds", "-I",
		"-a", freePort(t), "-r", dir, "-P")
}

func TestCommandsWithoutCluster(t *testing.T) {
	n := newNode(t)
	n.refusedAll([]refusedCase{
		{1, "belongs to none|auth-node", "stat", ""},
		{1, "no key|auth-node", "-c c1 stat", ""},
		{1, "no key", "-c c1 make-cs -r DIR", ""},
		{1, "no key", "-c c1 list-services", ""},
		{1, "-b ADDR", "-c c1 auth-node -P", "secret123\n"},
		{1, "ip or ip:port", "-c c1 auth-node -b where -P", "secret123\n"},
		{1, "127.0.0.1:1|pstorage-mdsd", "-c c1 auth-node -b 127.0.0.1:1 -P", "secret123\n"},
	}, "DIR", n.path("cs"))
	for _, program := range []string{"pstorage-mdsd", "pstorage-mount"} {
		args := []string{"-c", "c1"}
		if program == "pstorage-mount" {
			args = append(args, n.dir)
		}
		r := n.run("", program, args...)
		if r.status != 1 || !strings.HasPrefix(r.stderr, program+": ") ||
			strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "no key") {
			t.Errorf("%s: status %d, %q", program, r.status, r.stderr)
		}
	}
}

// addKey gives the node a key of a cluster that nobody serves.
func (n *node) addKey(name, bs string) *cluster.Conf {
	n.t.Helper()
	conf, err := cluster.At(n.etc, name)
	if err == nil {
		err = conf.SaveKey(session.NodeKey{ClusterName: name, Cluster: [16]byte{1},
			Keys: session.LegacyKeys([32]byte{1})})
	}
	if err == nil && bs != "" {
		err = conf.SaveBS([]string{bs})
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return conf
}

func TestUnreachableCluster(t *testing.T) {
	n := newNode(t)
	conf := n.addKey("c1", "127.0.0.1:1")
	n.refusedAll([]refusedCase{
		{1, "pstorage-mdsd|127.0.0.1:1: connection refused", "stat", ""},
		{1, "already|" + conf.KeyPath(), "-c c1 make-mds -I -a FREE -r DIR -P", "secret123\n"},
	}, "DIR", n.path("mds"), "FREE", freePort(t))
	n.addKey("c2", "")
	n.refusedAll([]refusedCase{
		{1, "several: c1, c2|-c", "stat", ""},
		{1, "bs.list", "-c c2 stat", ""},
	})
	if err := os.Chmod(conf.KeyPath(), 0o644); err != nil {
		t.Fatal(err)
	}
	n.refused("", 1, []string{"others can read it", "chmod 600"}, "-c", "c1", "stat")
}

// TestHelp: every command has help with an example.
func TestHelp(t *testing.T) {
	n := newNode(t)
	for _, cmd := range newRoot().Commands() {
		if cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "completion" {
			continue
		}
		out := n.ok("", cmd.Name(), "--help")
		if !strings.Contains(out, "Examples:") || !strings.Contains(out, "Usage:") {
			t.Errorf("%s --help has no example: %q", cmd.Name(), out)
		}
	}
	for _, program := range []string{"pstorage", "pstorage-mdsd", "pstorage-csd", "pstorage-mount"} {
		r := n.run("", program, "--help")
		if r.status != 0 || !strings.Contains(r.stdout, "Examples:") {
			t.Errorf("%s --help: status %d, %q", program, r.status, r.stdout)
		}
	}
}
