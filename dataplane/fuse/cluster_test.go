package fuse

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pstorage/chunk"
	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/mds"
	"pstorage/uring"
)

// These tests mount a real cluster: a metadata server, three chunk servers and the mount are
// processes (this binary again), so that each can be killed.

// roleCred are the credentials of a role in the test's cluster.
func roleCred(role dataplane.Role, id uint64) *session.Credentials {
	return &session.Credentials{Cluster: dataplane.ClusterID{7}, ClusterName: "test",
		Key: [32]byte{1, 2, 3}, Role: role, ID: id, Name: fmt.Sprint(role, id)}
}

// runRole is the main of such a process: ROLE DIR MDS-ADDRESS [TRANSPORT]. It says "ready" and runs
// until it is told to end.
func runRole(args []string) error {
	role, dir, addr := args[0], args[1], args[2]
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With("role", role)
	slog.SetDefault(log)
	mdsAddrs := control.FixedAddrs(addr)
	switch role {
	case "mds":
		err := mds.Format(dir, mds.FormatOptions{Cluster: dataplane.ClusterID{7},
			ClusterName: "test", Addr: addr})
		if err != nil && dataplane.KindOf(err) != dataplane.Exists {
			return err
		}
		return mds.Run(ctx, mds.Options{Dir: dir, Cred: roleCred(dataplane.RoleMDS, 1), Log: log,
			Leading: func(yes bool) {
				if yes {
					fmt.Println("ready")
				}
			}})
	case "cs":
		if _, err := chunk.ReadIdentity(dir); err != nil {
			err := chunk.Format(dir, chunk.FormatOptions{Cluster: dataplane.ClusterID{7},
				ClusterName: "test", Addr: "127.0.0.1", LogSize: 256 << 20, Capacity: 1 << 30})
			if err != nil {
				return err
			}
		}
		return chunk.Run(ctx, chunk.Options{Dir: dir, Cred: roleCred(dataplane.RoleCS, 1), Log: log,
			MDS: mdsAddrs, OnReady: func(dataplane.CSID, string) { fmt.Println("ready") }})
	case "mount":
		mountedOn = dir
		c, err := client.Open(ctx, client.ClientOptions{Cred: roleCred(dataplane.RoleClient, 0),
			MDSAddrs: mdsAddrs, Log: log,
			Loop: uring.LoopOptions{Ring: uring.RingOptions{Flags: LoopFlags}}})
		if err != nil {
			return err
		}
		o := Options{Client: c, Mountpoint: dir, Log: log, AllowOther: true, OverRing: Off}
		if args[3] == "ring" {
			o.OverRing = On
		}
		s, err := Mount(ctx, o)
		if err != nil {
			return err
		}
		fmt.Println("ready")
		s.Wait()
		return c.Close()
	}
	return fmt.Errorf("no role %q", role)
}

// process is one of the cluster's.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	log  *os.File
	done chan error

	stdin io.Closer // its end is the end of the process
}

func startRole(t testing.TB, logDir string, args ...string) *process {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(logDir, args[0]+"-"+filepath.Base(args[1])+".log"),
		os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0600)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(os.Args[0]), log: log, done: make(chan error, 1)}
	p.cmd.Env = append(os.Environ(), "PSTORAGE_FUSE_ROLE="+strings.Join(args, "\n"))
	p.cmd.Stderr = log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		text, _ := os.ReadFile(log.Name())
		t.Fatalf("%v didn't start: %s", args, text)
	}
	go func() { p.done <- p.cmd.Wait() }()
	return p
}

// end sends sig and waits.
func (p *process) end(sig syscall.Signal) {
	p.t.Helper()
	p.cmd.Process.Signal(sig)
	select {
	case err := <-p.done:
		if sig == syscall.SIGTERM && err != nil {
			p.t.Errorf("%s: %v", p.log.Name(), err)
		}
	case <-time.After(20 * time.Second):
		p.t.Errorf("%s doesn't end", p.log.Name())
		p.cmd.Process.Kill()
		<-p.done
	}
	p.log.Close()
}

// realCluster is a running cluster with a mount.
type realCluster struct {
	t     testing.TB
	dir   string // of everything
	addr  string
	mds   *process
	cs    []*process
	mount *process
	at    string

	transport string
}

// overBothClusters runs test on a cluster for each transport.
func overBothClusters(t *testing.T, test func(t *testing.T, c *realCluster)) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) { test(t, startCluster(t, transport)) })
	}
}

func startCluster(t testing.TB, transport string) *realCluster {
	t.Helper()
	needTransport(t, transport)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &realCluster{t: t, transport: transport, dir: t.TempDir(), addr: l.Addr().String(),
		cs: make([]*process, 3)}
	l.Close()
	c.startServers()
	c.startMount("mnt1")
	t.Cleanup(func() {
		c.umount()
		for _, p := range append(c.cs, c.mds) {
			if p != nil {
				p.end(syscall.SIGTERM)
			}
		}
		if t.Failed() {
			logs, _ := filepath.Glob(filepath.Join(c.dir, "*.log"))
			for _, name := range logs {
				text, _ := os.ReadFile(name)
				t.Logf("%s:\n%s", filepath.Base(name), text[max(0, len(text)-3000):])
			}
		}
	})
	return c
}

func (c *realCluster) startServers() {
	c.mds = startRole(c.t, c.dir, "mds", filepath.Join(c.dir, "mds"), c.addr)
	for i := range c.cs {
		c.startCS(i)
	}
}

func (c *realCluster) startCS(i int) {
	c.cs[i] = startRole(c.t, c.dir, "cs", filepath.Join(c.dir, fmt.Sprint("cs", i)), c.addr)
}

func (c *realCluster) startMount(name string) {
	c.t.Helper()
	c.at = filepath.Join(c.dir, name)
	if err := os.Mkdir(c.at, 0700); err != nil {
		c.t.Fatal(err)
	}
	c.mount = startRole(c.t, c.dir, "mount", c.at, c.addr, c.transport)
}

func (c *realCluster) umount() {
	if c.mount == nil {
		return
	}
	if err := unix.Unmount(c.at, 0); err != nil {
		c.t.Errorf("unmount: %v", err)
		unix.Unmount(c.at, unix.MNT_DETACH|unix.MNT_FORCE)
	}
	select {
	case err := <-c.mount.done:
		if err != nil {
			c.t.Errorf("the mount ended: %v", err)
		}
	case <-time.After(20 * time.Second):
		c.t.Error("the mount doesn't end")
		c.mount.cmd.Process.Kill()
	}
	c.mount = nil
}

// killAll ends everything at once, without warning, and clears the mountpoint.
func (c *realCluster) killAll() {
	for _, p := range append(c.cs, c.mds, c.mount) {
		p.end(syscall.SIGKILL)
	}
	c.mount = nil
	if err := unix.Unmount(c.at, unix.MNT_DETACH); err != nil {
		c.t.Errorf("clear the mountpoint: %v", err)
	}
}

func randomBytes(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 0))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

func (c *realCluster) run(name string, args ...string) string {
	c.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestClusterKillAll: what was written is there after everything was killed and started again.
func TestClusterKillAll(t *testing.T) { overBothClusters(t, testClusterKillAll) }

func testClusterKillAll(t *testing.T, c *realCluster) {
	data := randomBytes(1, 70<<20)
	check := func() {
		t.Helper()
		got, err := os.ReadFile(filepath.Join(c.at, "d", "f"))
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v; or other ones", len(got), err)
		}
	}
	must(t, os.Mkdir(filepath.Join(c.at, "d"), 0755))
	f, err := os.Create(filepath.Join(c.at, "d", "f"))
	must(t, err)
	_, err = f.Write(data)
	must(t, err)
	rng := rand.New(rand.NewPCG(2, 2))
	for range 200 { // of any size and alignment
		off := rng.IntN(len(data) - 20000)
		n := rng.IntN(20000)
		for i := range n {
			data[off+i] ^= 0x55
		}
		_, err = f.WriteAt(data[off:off+n], int64(off))
		must(t, err)
	}
	must(t, f.Sync())
	check()
	c.killAll()
	f.Close()
	c.startServers()
	c.startMount("mnt2")
	check()
}

// TestClusterLosesServer: I/O goes on while a chunk server is killed.
func TestClusterLosesServer(t *testing.T) { overBothClusters(t, testClusterLosesServer) }

func testClusterLosesServer(t *testing.T, c *realCluster) {
	const size = 32 << 20
	f, err := os.Create(filepath.Join(c.at, "f"))
	must(t, err)
	defer f.Close()
	data := randomBytes(3, size)
	_, err = f.Write(data)
	must(t, err)
	rng := rand.New(rand.NewPCG(4, 4))
	var slowest time.Duration
	for i := range 600 {
		if i == 200 {
			c.cs[1].end(syscall.SIGKILL)
			c.cs[1] = nil
		}
		off := rng.IntN(size/4096) * 4096
		p := data[off : off+4096]
		for j := range p {
			p[j]++
		}
		begin := time.Now()
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatalf("write %d: %v", i, err)
		}
		got := make([]byte, 4096)
		if _, err := f.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("read %d: %v, or other data", i, err)
		}
		slowest = max(slowest, time.Since(begin))
	}
	t.Logf("the slowest write and read took %v", slowest)
	if slowest > 15*time.Second {
		t.Error("too long")
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("other data at the end: %v", err)
	}
}

// TestClusterImage: an ext4 image through a loop device with direct I/O, and fio with verification.
func TestClusterImage(t *testing.T) { overBothClusters(t, testClusterImage) }

func testClusterImage(t *testing.T, c *realCluster) {
	image := filepath.Join(c.at, "image")
	must(t, os.WriteFile(image, nil, 0600))
	must(t, os.Truncate(image, 256<<20))
	out, err := exec.Command("losetup", "--direct-io=on", "--show", "-f", image).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "-d", dev).Run()
	if got := c.run("losetup", "-n", "-O", "DIO", dev); got != "1" {
		t.Errorf("direct I/O is %q", got)
	}
	c.run("mkfs.ext4", "-q", dev)
	at := t.TempDir()
	c.run("mount", dev, at)
	data := randomBytes(5, 20<<20)
	must(t, os.WriteFile(filepath.Join(at, "big"), data, 0600))
	c.run("umount", at)
	c.run("fsck.ext4", "-f", "-n", dev)
	c.run("mount", dev, at)
	got, err := os.ReadFile(filepath.Join(at, "big"))
	c.run("umount", at)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("other data in the image: %v", err)
	}
	if _, err := exec.LookPath("fio"); err != nil {
		t.Log("no fio here")
		return
	}
	for _, bs := range []int{512, 4096, 70 << 10, 1 << 20} {
		c.run("fio", "--name=v", "--filename="+filepath.Join(c.at, "fio"), "--size=24m",
			"--bs="+strconv.Itoa(bs), "--rw=randwrite", "--verify=crc32c", "--ioengine=libaio",
			"--iodepth=32", "--direct=1", "--io_size="+strconv.Itoa(min(24<<20, 2000*bs)),
			"--verify_fatal=1", "--verify_state_save=0")
	}
}
