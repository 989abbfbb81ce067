package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
)

const testPassword = "correct horse battery\n"

// makeCluster makes cluster c1 on the node, with its metadata server running and n chunk servers
// that don't run yet.
func (n *node) makeCluster(servers int) (mdsd *daemon, addr string) {
	n.t.Helper()
	addr = freePort(n.t)
	n.ok(testPassword, "-c", "c1", "make-mds", "-I", "-a", addr, "-r", n.path("c1-mds"), "-P")
	mdsd = n.start("pstorage-mdsd")
	if line := mdsd.waitFor("mds ready on"); line != "mds ready on "+addr {
		n.t.Errorf("mdsd says %q", line)
	}
	for i := range servers {
		n.makeSmallCS(fmt.Sprintf("c1-cs%d", i+1))
	}
	return mdsd, addr
}

func (n *node) makeSmallCS(name string, more ...string) {
	n.t.Helper()
	args := []string{"-c", "c1", "make-cs", "-r", n.path(name), "-a", freePort(n.t),
		"-s", "64M", "--capacity", "1G"}
	n.ok("", append(args, more...)...)
}

// stat returns the parsed answer of stat -o json.
func (n *node) stat() (doc control.StatDoc) {
	n.t.Helper()
	if err := json.Unmarshal([]byte(n.ok("", "stat", "-o", "json")), &doc); err != nil {
		n.t.Fatal(err)
	}
	return doc
}

func (n *node) active() int {
	active := 0
	for _, c := range n.stat().CS {
		if c.Status == control.CSActive {
			active++
		}
	}
	return active
}

// TestIssueLines runs the lines that set up a cluster, as a person would type them.
func TestIssueLines(t *testing.T) {
	n := newNode(t)
	mdsd, addr := n.makeCluster(2)

	// The node that made the cluster may prove the password again; so may another node.
	n.ok(testPassword, "-c", "c1", "auth-node", "-P")
	other := newNode(t)
	other.refused("wrong horse\n", 1, []string{"password"}, "-c", "c1", "auth-node", "-P", "-b", addr)
	other.refused(testPassword, 1, []string{"cluster"}, "-c", "c2", "auth-node", "-P", "-b", addr)
	other.ok(testPassword, "-c", "c1", "auth-node", "-P", "-b", addr)
	if other.stat().Cluster != "c1" {
		t.Error("the second node can't ask for the state")
	}

	other.wrongKey()
	if err := os.Mkdir(n.path("ssd"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.makeSmallCS("c1-cs3", "-j", n.path("ssd"), "-t", "1")
	if _, err := os.Stat(n.path("ssd/c1-c1-cs3.journal")); err != nil {
		t.Errorf("the journal isn't where -j says: %v", err)
	}
	csd := n.start("pstorage-csd")
	for range 3 {
		csd.waitFor("ready on")
	}
	eventually(t, "three chunk servers are active", func() bool { return n.active() == 3 })

	for _, args := range []string{"stat", "top", "list-services", "get-event", "get-attr /",
		"file-info /"} {
		out := n.ok("", strings.Fields("-c c1 "+args)...)
		if strings.Contains(args, "s") && len(out) < 20 {
			t.Errorf("%s prints only %q", args, out)
		}
	}
	for _, args := range []string{"stat", "list-services", "get-event", "get-attr /", "version"} {
		out := n.ok("", append(strings.Fields(args), "-o", "json")...)
		if !json.Valid([]byte(out)) {
			t.Errorf("%s -o json isn't JSON: %q", args, out)
		}
	}
	n.refused("", 1, []string{"not found"}, "file-info", "/no/such/file")
	n.ok("", "set-attr", "/", "replicas=2:1")
	if out := n.ok("", "get-attr", "/"); !strings.Contains(out, "2:1") {
		t.Errorf("set-attr didn't set: %q", out)
	}

	n.csBadInput()
	follower := n.start("pstorage", "get-event", "--follow", "-o", "json")
	n.restartsKilledChild(csd)
	if line := follower.waitFor("cs-exited"); !json.Valid([]byte(line)) {
		t.Errorf("a followed event isn't a line of JSON: %q", line)
	}
	csd.stop()
	mdsd.stop()
	for _, text := range []string{csd.out.text(), mdsd.out.text()} {
		if strings.Contains(text, "panic") || strings.Contains(text, "goroutine ") {
			t.Errorf("a daemon panicked:\n%s", text)
		}
	}
}

// wrongKey: a node whose key isn't the cluster's is told so, and what to do.
func (n *node) wrongKey() {
	n.t.Helper()
	conf, err := cluster.Choose(n.etc, "c1")
	if err != nil {
		n.t.Fatal(err)
	}
	key, err := conf.LoadKey()
	if err != nil {
		n.t.Fatal(err)
	}
	key.Keys.Generations[0].Key[0] ^= 1
	if err := conf.SaveKey(key); err != nil {
		n.t.Fatal(err)
	}
	n.refused("", 1, []string{"key", "auth-node"}, "stat")
	n.refused("", 1, []string{"key", "auth-node"}, "stat", "--wait")
}

// csBadInput: make-cs on a running node with three chunk servers.
func (n *node) csBadInput() {
	n.t.Helper()
	n.addKey("c9", "127.0.0.1:1")
	n.refusedAll([]refusedCase{
		{1, "one of cluster c1 lives there already", "-c c1 make-cs -r OWN", ""},
		{1, `another cluster, "c1"`, "-c c9 make-cs -r OWN", ""},
		{1, "isn't empty", "-c c1 make-cs -r MDS", ""},
		{2, "-r", "-c c1 make-cs", ""},
		{2, "tiers are 0 to 3", "-c c1 make-cs -r DIR -t 4", ""},
		{2, "size", "-c c1 make-cs -r DIR -s lots", ""},
		{1, "no directory", "-c c1 make-cs -r DIR -j DIR/none/journal", ""},
		{1, "/dev/null|a character device already|a new file", "-c c1 make-cs -r DIR -j /dev/null", ""},
		{1, "in use", "-c c1 make-cs -r DIR -a BUSY", ""},
		{1, "address of this machine", "-c c1 make-cs -r DIR -a 192.0.2.1", ""},
		{1, "several", "stat", ""},
	}, "OWN", n.path("c1-cs1"), "MDS", n.path("c1-mds"), "DIR", n.path("new"),
		"BUSY", listening(n.t))
	if err := os.RemoveAll(filepath.Join(n.etc, "clusters/c9")); err != nil {
		n.t.Fatal(err)
	}
}

// restartsKilledChild: kill -9 of a chunk server's process; the supervisor starts another.
func (n *node) restartsKilledChild(csd *daemon) {
	n.t.Helper()
	out, err := exec.Command("pgrep", "-P", fmt.Sprint(csd.cmd.Process.Pid)).Output()
	if err != nil {
		n.t.Fatalf("no children: %v", err)
	}
	children := strings.Fields(string(out))
	if len(children) != 3 {
		n.t.Fatalf("%d children, want 3", len(children))
	}
	var victim int
	fmt.Sscan(children[0], &victim)
	before := strings.Count(csd.out.text(), " ready on ")
	if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
	eventually(n.t, "another child serves", func() bool {
		return strings.Count(csd.out.text(), " ready on ") == before+1
	})
	csd.waitFor("exit reported to the metadata servers")
	eventually(n.t, "three are active again", func() bool { return n.active() == 3 })
}

// TestNewCSIsPickedUp: a running supervisor starts what make-cs makes.
func TestNewCSIsPickedUp(t *testing.T) {
	n := newNode(t)
	n.makeCluster(0)
	csd := n.start("pstorage-csd")
	csd.waitFor("waiting for one")
	n.makeSmallCS("c1-cs1")
	csd.waitFor("cs 1 ready on")
}

// TestForeignDirectory: a directory that was moved to another cluster's node isn't served, and
// isn't tried for ever.
func TestForeignDirectory(t *testing.T) {
	first, second := newNode(t), newNode(t)
	first.makeCluster(1)
	addr := freePort(t)
	second.ok(testPassword, "-c", "c1", "make-mds", "-I", "-a", addr, "-r", second.path("m"), "-P")
	conf, err := cluster.Choose(second.etc, "c1")
	if err != nil {
		t.Fatal(err)
	}
	err = conf.AddDaemon(cluster.CS, cluster.Daemon{Dir: first.path("c1-cs1")})
	if err != nil {
		t.Fatal(err)
	}
	csd := second.start("pstorage-csd")
	csd.waitFor("refuses to serve this directory")
	if n := strings.Count(csd.out.text(), "starting it again"); n != 0 {
		t.Errorf("a refusal was tried again %d times", n)
	}
}

func needMount(t *testing.T) {
	t.Helper()
	if why := cannotMount(); why != "" {
		t.Skipf("no mount here: %s", why)
	}
}

// shell runs a line in another process: a test must not use the mount itself, and its own process
// could hang on it.
func shell(t *testing.T, line string, args ...string) string {
	t.Helper()
	out, err := exec.Command("timeout", append([]string{"60", "sh", "-euc", line, "sh"},
		args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", line, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// someData makes a file with n random bytes and returns its hash.
func someData(t *testing.T, path string, n int) string {
	t.Helper()
	source := rand.NewChaCha8([32]byte{byte(n)})
	data := make([]byte, n)
	source.Read(data)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

const hashOf = `sha256sum <"$1" | cut -d" " -f1`

// TestMount mounts, writes, unmounts, restarts everything, and reads the same again.
func TestMount(t *testing.T) {
	needMount(t)
	n := newNode(t)
	mdsd, _ := n.makeCluster(3)
	csd := n.start("pstorage-csd")
	for i := 1; i <= 3; i++ {
		csd.waitFor(fmt.Sprintf("cs %d ready on", i))
	}
	mnt := n.path("pcs")
	r := n.run("", "pstorage-mount", "-c", "c1", mnt)
	if r.status != 1 || !strings.Contains(r.stderr, "mkdir -p") {
		t.Errorf("no mount point: status %d, %q", r.status, r.stderr)
	}
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	pidFile := n.path("mount.pid")
	mount := func() {
		t.Helper()
		r := n.run("", "pstorage-mount", "-c", "c1", "--pidfile", pidFile, "--log",
			n.path("mount.log"), mnt)
		if r.status != 0 {
			log, _ := os.ReadFile(n.path("mount.log"))
			t.Fatalf("mount: %s\n%s", r.stderr, log)
		}
	}
	t.Cleanup(func() { detachMount(mnt) })
	mount()
	want := someData(t, n.path("data"), 3<<20+123)
	shell(t, `cp "$1" "$2" && sync "$2"`, n.path("data"), mnt+"/copy")
	if got := shell(t, hashOf, mnt+"/copy"); got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
	if out := n.ok("", "file-info", "/copy"); !strings.Contains(out, "3:2") {
		t.Errorf("file-info: %s", out)
	}
	shell(t, `umount "$1"`, mnt)
	eventually(t, "the mount's process ends", func() bool {
		_, err := os.Stat(pidFile)
		return err != nil
	})
	csd.stop()
	mdsd.stop()

	mdsd = n.start("pstorage-mdsd")
	mdsd.waitFor("mds ready on")
	csd = n.start("pstorage-csd")
	for i := 1; i <= 3; i++ {
		csd.waitFor(fmt.Sprintf("cs %d ready on", i))
	}
	mount()
	if got := shell(t, hashOf, mnt+"/copy"); got != want {
		t.Errorf("after the restart: hash %s, want %s", got, want)
	}
	shell(t, `fusermount3 -u "$1" 2>/dev/null || umount "$1"`, mnt)
}

// TestDev: start, write, lose a chunk server, stop, start, read.
func TestDev(t *testing.T) {
	n := newNode(t)
	args := []string{"dev", "--dir", n.path("dev"), "--log-size", "64M", "--capacity", "1G"}
	started := time.Now()
	d := n.start("pstorage", args...)
	line := d.waitFor("ready")
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("ready after %v, want less than 5 s", took)
	}
	t.Log(line)
	n.etc = n.path("dev/etc")
	r := n.run("", "pstorage", args...)
	if r.status != 1 || !strings.Contains(r.stderr, "running already") {
		t.Errorf("a second one: status %d, %q", r.status, r.stderr)
	}
	eventually(t, "three chunk servers are active", func() bool { return n.active() == 3 })
	mounted := cannotMount() == ""
	mnt := n.path("dev/mnt")
	var want string
	if mounted {
		want = someData(t, n.path("data"), 2<<20)
		shell(t, `cp "$1" "$2" && sync "$2"`, n.path("data"), mnt+"/copy")
	}

	if err := syscall.Kill(n.pidOf("cs3"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.waitFor("cs3 has ended")
	eventually(t, "one chunk server is missing", func() bool { return n.active() == 2 })
	if mounted {
		if got := shell(t, hashOf, mnt+"/copy"); got != want {
			t.Errorf("without cs3: hash %s, want %s", got, want)
		}
		shell(t, `cp "$1" "$2" && sync "$2"`, n.path("data"), mnt+"/copy2")
	}
	before := ports(t, n)
	d.stop()
	if left := processesIn(n.path("dev")); left != "" {
		t.Errorf("processes are left:\n%s", left)
	}

	d = n.start("pstorage", args...)
	d.waitFor("ready")
	eventually(t, "three are active after the restart", func() bool { return n.active() == 3 })
	if after := ports(t, n); after != before {
		t.Errorf("addresses changed from %s to %s", before, after)
	}
	if mounted {
		for _, name := range []string{"copy", "copy2"} {
			if got := shell(t, hashOf, filepath.Join(mnt, name)); got != want {
				t.Errorf("%s after the restart: hash %s, want %s", name, got, want)
			}
		}
	}
	// kill -9 of the mount's process and of the command: the daemons stop, and the next start
	// clears away the dead mount.
	if mounted {
		syscall.Kill(n.pidOf("mount"), syscall.SIGKILL)
		d.waitFor("mount has ended")
	}
	d.cmd.Process.Kill()
	<-d.done
	d = n.start("pstorage", args...)
	d.waitFor("ready")
	if mounted {
		if got := shell(t, hashOf, mnt+"/copy"); got != want {
			t.Errorf("after kill -9: hash %s, want %s", got, want)
		}
	}
	d.stop()
}

// pidOf returns the process id of a daemon of the development cluster.
func (n *node) pidOf(name string) int {
	n.t.Helper()
	text, err := os.ReadFile(n.path("dev/run/" + name + ".pid"))
	if err != nil {
		n.t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil || pid <= 1 {
		n.t.Fatalf("PID file of %s has %q", name, text)
	}
	return pid
}

// ports returns the addresses in the configuration.
func ports(t *testing.T, n *node) string {
	t.Helper()
	conf, err := cluster.Choose(n.etc, "")
	if err != nil {
		t.Fatal(err)
	}
	mds, err1 := conf.Daemons(cluster.MDS)
	cs, err2 := conf.Daemons(cluster.CS)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return fmt.Sprint(mds, cs)
}

// processesIn lists processes that have dir in their command line.
func processesIn(dir string) string {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var b strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err == nil && bytes.Contains(text, []byte(dir)) {
			fmt.Fprintf(&b, "%s %q\n", file, text)
		}
	}
	return b.String()
}

// TestDevRefused: nothing is changed in a directory that isn't a development cluster's.
func TestDevRefused(t *testing.T) {
	n := newNode(t)
	full := n.path("full")
	if err := os.Mkdir(full, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(full, "thesis.tex"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	n.refused("", 1, []string{"thesis.tex", "--dir"}, "dev", "--dir", full)
	n.refused("", 1, []string{"white space"}, "dev", "--dir", n.path("a b"))
}
