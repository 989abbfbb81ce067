package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"pstorage/dataplane/control"
)

const (
	stallGoal  = 500 * time.Millisecond // of a client, by an orderly restart of any one process
	stallLimit = 2 * time.Second        // for machines with other work to do: a lease's length
)

// prober writes, or reads, one block after the other and notes the longest time that one took.
type prober struct {
	mu      sync.Mutex
	longest time.Duration
	since   time.Time // of the one under way
	ops     int
	err     error
	stop    chan struct{}
	ended   sync.WaitGroup
}

func startProber(op func(i int) error) *prober {
	p := &prober{stop: make(chan struct{}), since: time.Now()}
	p.ended.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-p.stop:
				return
			case <-time.After(time.Millisecond):
			}
			p.mu.Lock()
			p.since = time.Now()
			p.mu.Unlock()
			err := op(i)
			p.mu.Lock()
			p.longest = max(p.longest, time.Since(p.since))
			p.ops++
			p.err = err
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	return p
}

// take returns the longest operation since the last call, the one that is under way included.
func (p *prober) take(t *testing.T) time.Duration {
	t.Helper()
	count := func() (int, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.ops, p.err
	}
	first, _ := count()
	eventually(t, "an operation ends", func() bool {
		n, err := count()
		return n > first || err != nil
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		t.Fatalf("after %d operations: %v", p.ops, p.err)
	}
	d := p.longest
	p.longest = 0
	return d
}

func (p *prober) end() {
	close(p.stop)
	p.ended.Wait()
}

// trio is a cluster of three nodes, each with a metadata server and a chunk server, and a fourth
// one that mounts it.
type trio struct {
	t      *testing.T
	nodes  []*node
	client *node
	mdsd   []*daemon
	csd    []*daemon
	mount  string
}

func newTrio(t *testing.T) *trio { return newTrioOf(t, "") }

// newTrioOf is newTrio with the programs in the directory bin.
func newTrioOf(t *testing.T, bin string) *trio {
	if why := cannotMount(); why != "" {
		t.Skip(why)
	}
	c := &trio{t: t}
	addr := freePort(t)
	for i := range 3 {
		n := newNode(t)
		n.bin = bin
		c.nodes = append(c.nodes, n)
		if i == 0 {
			n.ok(testPassword, "-c", "c1", "make-mds", "-I", "-a", addr, "-r", n.path("mds"), "-P")
		} else {
			n.ok(testPassword, "-c", "c1", "auth-node", "-P", "-b", addr)
			n.ok("", "-c", "c1", "make-mds", "-a", freePort(t), "-r", n.path("mds"))
		}
		d := n.start("pstorage-mdsd")
		d.waitFor("mds ready on")
		c.mdsd = append(c.mdsd, d)
		n.makeSmallCS("cs")
	}
	for _, n := range c.nodes {
		c.csd = append(c.csd, n.start("pstorage-csd"))
	}
	c.healthy(3)
	c.client = newNode(t)
	c.client.bin = bin
	c.client.ok(testPassword, "-c", "c1", "auth-node", "-P", "-b", addr)
	c.mount = c.client.path("mnt")
	if err := os.Mkdir(c.mount, 0o755); err != nil {
		t.Fatal(err)
	}
	c.mountIt()
	t.Cleanup(func() { c.client.run("", "pstorage", "umount", "--lazy", c.mount) })
	return c
}

// mountIt mounts the cluster on the client.
func (c *trio) mountIt() {
	c.t.Helper()
	if r := c.client.run("", "pstorage-mount", "-c", "c1", c.mount); r.status != 0 {
		c.t.Fatalf("mount: %s", r.stderr)
	}
}

// healthy waits until all servers are there, vote, and every chunk has all its copies.
func (c *trio) healthy(servers int) {
	c.t.Helper()
	var last control.StatDoc
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); {
		last = c.nodes[0].stat()
		up := 0
		for _, cs := range last.CS {
			if cs.Status == control.CSActive {
				up++
			}
		}
		votes := 0
		for _, m := range last.MDS {
			if m.Voter && !m.Down {
				votes++
			}
		}
		if up == servers && votes == 3 && last.Chunks.Degraded == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.t.Fatalf("never healthy: %+v", last)
}

// probe makes a file on the mount, and has one client write it with fdatasync, and one read it.
// end, which must be called before the servers stop, ends both and closes the file.
func (c *trio) probe() (writer, reader *prober, end func()) {
	c.t.Helper()
	file, err := os.OpenFile(filepath.Join(c.mount, "disk"), os.O_RDWR|os.O_CREATE|syscall.O_DIRECT,
		0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	buf := alignedBlock()
	write := func(i int) error {
		_, err := file.WriteAt(buf, int64(i%1024)*4096)
		if err == nil {
			err = syscall.Fdatasync(int(file.Fd()))
		}
		return err
	}
	for i := range 32 {
		if err := write(i); err != nil {
			c.t.Fatal(err)
		}
	}
	rbuf := alignedBlock()
	writer = startProber(write)
	reader = startProber(func(i int) error {
		_, err := file.ReadAt(rbuf, int64(i%32)*4096)
		return err
	})
	return writer, reader, func() {
		writer.end()
		reader.end()
		file.Close()
	}
}

// TestRollingRestart restarts one daemon after the other, as an upgrade does. A client that writes
// with fdatasync, and one that reads, are never held up for long.
func TestRollingRestart(t *testing.T) {
	c := newTrio(t)
	writer, reader, end := c.probe()
	defer end()
	time.Sleep(time.Second)
	t.Logf("undisturbed: write %v, read %v", writer.take(t), reader.take(t))
	restart := func(name string, list []*daemon, i int, program, says string, away time.Duration) {
		t.Helper()
		c.healthy(3)
		writer.take(t)
		reader.take(t)
		began := time.Now()
		list[i].stop()
		stopped := time.Since(began)
		time.Sleep(away)
		list[i] = c.nodes[i].start(program)
		list[i].waitFor(says)
		c.healthy(3)
		w, r := writer.take(t), reader.take(t)
		t.Logf("%s: stopped in %v, back after %v; longest write %v, read %v", name,
			stopped.Round(time.Millisecond), time.Since(began).Round(time.Millisecond),
			w.Round(time.Millisecond), r.Round(time.Millisecond))
		if w > stallLimit || r > stallLimit || os.Getenv("PSTORAGE_STRICT") != "" &&
			(w > stallGoal || r > stallGoal) {
			t.Errorf("%s: a client stood still for %v", name, max(w, r))
		}
	}
	for i := range 3 {
		restart(fmt.Sprint("mds on node ", i+1), c.mdsd, i, "pstorage-mdsd", "mds ready on", 0)
	}
	for i := range 3 {
		restart(fmt.Sprint("cs on node ", i+1), c.csd, i, "pstorage-csd", "ready on", 0)
	}
	away := 3
	if testing.Short() {
		away = 1
	}
	for i := range away { // a machine that is shut down, or one whose journal takes its time
		restart(fmt.Sprint("cs on node ", i+1, ", away"), c.csd, i, "pstorage-csd", "ready on",
			3*time.Second)
	}
}

// alignedBlock is 4 KiB of memory for direct I/O.
func alignedBlock() []byte {
	mem, err := syscall.Mmap(-1, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		panic(err)
	}
	return mem
}
