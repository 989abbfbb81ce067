package nettest

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/mds"
	"pstorage/perf/netlab"
)

const (
	clusterName = "net"
	mdsPort     = "2510"
	healWithin  = 60 * time.Second
	startWithin = 30 * time.Second
)

// server is a daemon with a node of its own.
type server struct {
	name   string
	node   *netlab.Node
	args   []string
	cmd    *exec.Cmd
	exited chan struct{} // closed when it has
}

// testCluster is a cluster of real processes.
type testCluster struct {
	t       *testing.T
	lab     *netlab.Lab
	dir     string
	bin     string
	mds, cs []*server
	clients []*netlab.Node
	key     session.NodeKey
	bs      []string
	mixed   bool // half of the chunk servers relay parts of writes
	journal string
	used    int64 // bytes of each store that have been written to before, as on a disk in use
}

// needs skips the test unless it was asked for and can run here.
func needs(t *testing.T) (bin string) {
	t.Helper()
	bin = os.Getenv("PSTORAGE_NET_BIN")
	if bin == "" {
		t.Skip("real processes on networks of their own: run it with make test-net")
	}
	if err := netlab.Available(); err != nil {
		t.Skip(err)
	}
	return bin
}

// newCluster makes and starts a cluster. Everything of it is gone when the test ends, but logs and
// histories of a failed one.
func newCluster(t *testing.T, lab string, mdsCount, csCount, clients int) *testCluster {
	t.Helper()
	bin := needs(t)
	parent := os.Getenv("PSTORAGE_NET_DIR")
	if parent == "" {
		parent = "/var/tmp"
	}
	l, err := netlab.Open(lab, parent)
	if err != nil {
		t.Fatal(err)
	}
	c := &testCluster{t: t, lab: l, dir: l.Dir(), bin: bin, mixed: lab == "faults", journal: "256M"}
	if lab == "rate" {
		// What is measured isn't to wait for what is written back to the one disk.
		c.journal, c.used = "1G", 1536<<20
	}
	t.Cleanup(func() {
		if t.Failed() || os.Getenv("PSTORAGE_NET_KEEP") != "" {
			c.keep(parent)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	c.must(os.Mkdir(filepath.Join(c.dir, "log"), 0o755))
	c.makeServers(mdsCount, csCount)
	for i := range clients {
		n := c.node(fmt.Sprint("client", i+1))
		c.configure(n)
		c.clients = append(c.clients, n)
	}
	for _, s := range c.mds {
		c.start(s)
	}
	for _, s := range c.cs {
		c.start(s)
	}
	c.await(startWithin, "the cluster is up", func() error { return c.up() })
	copies := min(3, csCount)
	c.pstorage("set-attr", "/", "failure-domain=disk",
		fmt.Sprintf("replicas=%d:%d", copies, max(1, copies-1)))
	return c
}

func (c *testCluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *testCluster) node(label string) *netlab.Node {
	n, err := c.lab.Add(label)
	c.must(err)
	return n
}

func (c *testCluster) etc(n *netlab.Node) string { return filepath.Join(c.dir, "etc", n.String()) }

// configure gives a node its key and the addresses of the metadata servers.
func (c *testCluster) configure(n *netlab.Node) *cluster.Conf {
	conf, err := cluster.At(c.etc(n), clusterName)
	c.must(err)
	c.must(conf.SaveBS(c.bs))
	c.must(conf.SaveKey(c.key))
	return conf
}

// makeServers formats all servers, each with a node and a configuration of its own.
func (c *testCluster) makeServers(mdsCount, csCount int) {
	c.key = session.NodeKey{ClusterName: clusterName}
	rand.Read(c.key.Cluster[:])
	var keys *mds.ClusterKeys
	keys, c.key.Keys = mds.NewClusterKeys(c.key.Cluster, "lab", false)
	verifier, err := session.NewVerifier("a password of the test")
	c.must(err)
	var peers []mds.Peer
	for i := range mdsCount {
		s := &server{name: fmt.Sprint("mds", i+1)}
		s.node = c.node(s.name)
		c.mds = append(c.mds, s)
		c.bs = append(c.bs, net.JoinHostPort(s.node.Addr(), mdsPort))
		peers = append(peers, mds.Peer{Node: uint32(i + 1), Addr: c.bs[i]})
	}
	for i, s := range c.mds {
		dir := filepath.Join(c.dir, s.name)
		c.must(mds.Format(dir, mds.FormatOptions{Keys: keys, Cluster: c.key.Cluster,
			ClusterName: clusterName,
			Verifier:    verifier, Addr: c.bs[i], Node: peers[i].Node, Peers: peers}))
		c.must(c.configure(s.node).AddDaemon(cluster.MDS, cluster.Daemon{Dir: dir, Addr: c.bs[i]}))
		s.args = []string{"pstorage-mdsd", "-c", clusterName}
	}
	for i := range csCount {
		s := &server{name: fmt.Sprint("cs", i+1)}
		s.node = c.node(s.name)
		c.configure(s.node)
		s.args = []string{"pstorage-csd", "-c", clusterName}
		from := os.Getenv("PSTORAGE_NET_RELAY")
		if from == "" && c.mixed && i%2 == 0 {
			from = "4K"
		}
		if from != "" {
			s.args = append(s.args, "--relay-from", from)
		}
		c.cs = append(c.cs, s)
		c.run(s.node, "make-cs", "-r", filepath.Join(c.dir, s.name), "-a", s.node.Addr()+":2520",
			"-s", c.journal, "--capacity", "8G")
		if c.used > 0 {
			c.must(fillHoles(filepath.Join(c.dir, s.name, "store"), c.used))
		}
	}
}

// command makes a command of one of our programs for a node.
func (c *testCluster) command(n *netlab.Node, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, args[0]), args[1:]...)
	cmd.Env = append(os.Environ(), cluster.EtcEnv+"="+c.etc(n))
	return cmd
}

// output runs a command on a node and returns what it printed. It is killed after 10 s.
func output(n *netlab.Node, cmd *exec.Cmd) ([]byte, error) {
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := n.Start(cmd); err != nil {
		return nil, err
	}
	kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
	defer kill.Stop()
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%s on %s: %w: %s", strings.Join(cmd.Args, " "), n, err,
			bytes.TrimSpace(diag.Bytes()))
	}
	return out.Bytes(), nil
}

// run runs a pstorage command on a node; it must work.
func (c *testCluster) run(n *netlab.Node, args ...string) {
	c.t.Helper()
	_, err := output(n, c.command(n, append([]string{"pstorage", "-c", clusterName}, args...)...))
	c.must(err)
}

// pstorage runs a pstorage command on the first client.
func (c *testCluster) pstorage(args ...string) { c.run(c.clients[0], args...) }

// start starts a server's process.
func (c *testCluster) start(s *server) {
	c.t.Helper()
	log, err := os.OpenFile(filepath.Join(c.dir, "log", s.name), os.O_WRONLY|os.O_CREATE|os.O_APPEND,
		0o644)
	c.must(err)
	defer log.Close()
	cmd := c.command(s.node, s.args...)
	cmd.Stdout, cmd.Stderr = log, log
	c.must(s.node.Start(cmd))
	s.cmd, s.exited = cmd, make(chan struct{})
	go func() {
		_ = cmd.Wait() // killed, most times
		close(s.exited)
	}()
}

// kill kills a server's process with -9 and returns when it is gone.
func (s *server) kill() error {
	select {
	case <-s.exited:
		return fmt.Errorf("%s wasn't running: %v", s.name, s.cmd.ProcessState)
	default:
	}
	if err := s.cmd.Process.Kill(); err != nil {
		return err
	}
	<-s.exited
	return nil
}

// child is the process id of a supervisor's only child.
func (s *server) child() (int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			continue // that thread has ended
		}
		if fields := strings.Fields(string(text)); len(fields) > 0 {
			return strconv.Atoi(fields[0])
		}
	}
	return 0, fmt.Errorf("%s has no child", s.name)
}

// stat asks for the state of the cluster.
func (c *testCluster) stat() (*control.StatDoc, error) {
	n := c.clients[0]
	out, err := output(n, c.command(n, "pstorage", "-c", clusterName, "stat", "-o", "json"))
	if err != nil {
		return nil, err
	}
	doc := new(control.StatDoc)
	return doc, json.Unmarshal(out, doc)
}

// up says why the cluster isn't as it should be: all servers active, all chunks with all copies.
func (c *testCluster) up() error {
	doc, err := c.stat()
	if err != nil {
		return err
	}
	if sum := doc.Recovery.Sum(); sum != doc.Chunks.Degraded {
		// Recovery stops at nothing in silence: each degraded chunk is in one class.
		c.t.Errorf("%d chunks are degraded, stat accounts for %d: %+v", doc.Chunks.Degraded, sum,
			doc.Recovery)
	}
	active := 0
	for _, cs := range doc.CS {
		if cs.Status == control.CSActive {
			active++
		}
	}
	if active != len(c.cs) || doc.Health != "healthy" || doc.Chunks.Healthy != doc.Chunks.Total {
		return fmt.Errorf("%s: %d of %d chunk servers active, chunks %+v, %q", doc.Health, active,
			len(c.cs), doc.Chunks, doc.Reasons)
	}
	return nil
}

// leader returns the metadata server that leads.
func (c *testCluster) leader() (*server, error) {
	doc, err := c.stat()
	if err != nil {
		return nil, err
	}
	for _, m := range doc.MDS {
		for _, s := range c.mds {
			if m.Leader && strings.HasPrefix(m.Addr, s.node.Addr()+":") {
				return s, nil
			}
		}
	}
	return nil, errors.New("no metadata server leads")
}

// await waits until what doesn't return an error any more.
func (c *testCluster) await(within time.Duration, name string, what func() error) {
	c.t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := what()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("waited %v until %s: %v", within, name, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// mount mounts the cluster on a node and returns the directory.
func (c *testCluster) mount(n *netlab.Node) string {
	c.t.Helper()
	dir := filepath.Join(c.dir, "mnt")
	c.must(os.Mkdir(dir, 0o755))
	s := &server{name: "mount", node: n,
		args: []string{"pstorage-mount", "-f", "-c", clusterName, dir}}
	c.start(s)
	c.await(startWithin, "the mount is there", func() error {
		var own, parent unix.Stat_t
		if err := errors.Join(unix.Stat(dir, &own), unix.Stat(c.dir, &parent)); err != nil {
			return err
		}
		if own.Dev == parent.Dev {
			return errors.New("not mounted yet")
		}
		return nil
	})
	c.t.Cleanup(func() { // before the servers go, which its processes may wait for
		_ = unix.Unmount(dir, unix.MNT_DETACH) // the lab's Close reports what stays
	})
	return dir
}

// keep copies logs and histories of a failed test to where they stay.
func (c *testCluster) keep(parent string) {
	to, err := os.MkdirTemp(parent, "pstorage-net-failed-")
	if err != nil {
		c.t.Log(err)
		return
	}
	for _, sub := range []string{"log", "history"} {
		from := filepath.Join(c.dir, sub)
		err := os.CopyFS(filepath.Join(to, sub), os.DirFS(from))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			c.t.Log(err)
		}
	}
	c.t.Log("logs and histories are kept in ", to)
}
