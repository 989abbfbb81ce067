package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/client"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// load is a client that writes blocks and reads them back, all the time: what happens around it
// must not be seen by it.
type load struct {
	t      *testing.T
	client *client.Client
	stop   chan struct{}
	ended  sync.WaitGroup
	done   atomic.Int64 // rounds
	worst  atomic.Int64 // ns that a round took
	lost   atomic.Bool  // it may fail now
}

const loadWorkers = 4

func (n *node) startLoad() *load {
	n.t.Helper()
	c := n.open()
	l := &load{t: n.t, client: c, stop: make(chan struct{})}
	for i := range loadWorkers {
		a, err := c.Create(n.t.Context(), &control.CreateReq{Parent: dataplane.RootID,
			Name: fmt.Sprintf("load-%x-%d", c.ID(), i), Type: control.TypeFile, Mode: 0o644})
		if err != nil {
			n.t.Fatal(err)
		}
		f, err := c.OpenFile(n.t.Context(), a.File)
		if err != nil {
			n.t.Fatal(err)
		}
		l.ended.Go(func() { l.run(f) })
	}
	n.t.Cleanup(func() { l.end(0) })
	l.await(20)
	return l
}

func (l *load) run(f *client.File) {
	defer f.Close()
	block, back := make([]byte, 8192), make([]byte, 8192)
	for round := uint64(1); ; round++ {
		select {
		case <-l.stop:
			return
		default:
		}
		for at := 0; at < len(block); at += 8 {
			binary.LittleEndian.PutUint64(block[at:], round)
		}
		off := int64(round%64) * 8192
		started := time.Now()
		_, err := f.WriteAt(block, off)
		if err == nil {
			_, err = f.ReadAt(back, off)
		}
		if err != nil && err != io.EOF || !bytes.Equal(block, back) {
			if l.lost.Load() {
				return
			}
			l.t.Errorf("round %d: %v, equal %v", round, err, bytes.Equal(block, back))
			return
		}
		took := int64(time.Since(started))
		for worst := l.worst.Load(); took > worst && !l.worst.CompareAndSwap(worst, took); {
			worst = l.worst.Load() // of another worker
		}
		l.done.Add(1)
	}
}

// await waits for so many rounds from now on.
func (l *load) await(rounds int64) {
	l.t.Helper()
	from := l.done.Load()
	eventually(l.t, "reads and writes go on", func() bool { return l.done.Load() >= from+rounds })
}

// end stops the load; no round may have taken longer than most, 0: as long as it liked.
func (l *load) end(most time.Duration) {
	select {
	case <-l.stop:
		return
	default:
	}
	close(l.stop)
	if l.lost.Load() {
		l.client.Close()
	}
	l.ended.Wait()
	if !l.lost.Load() {
		l.client.Close()
	}
	worst := time.Duration(l.worst.Load())
	l.t.Logf("%d rounds, the longest took %v", l.done.Load(), worst)
	if most != 0 && worst > most {
		l.t.Errorf("a round took %v", worst)
	}
}

// startSmall runs cluster c1 with three chunk servers, and returns the addresses to attack.
func (n *node) startSmall() (mds, cs string, pids []int) {
	n.t.Helper()
	mdsd, mds := n.makeCluster(3)
	csd := n.start("pstorage-csd")
	eventually(n.t, "three chunk servers are active", func() bool { return n.active() == 3 })
	pids = []int{mdsd.cmd.Process.Pid}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", csd.cmd.Process.Pid))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, thread := range threads {
		children, err := os.ReadFile(thread)
		if err != nil {
			continue // a thread that has ended
		}
		for _, text := range strings.Fields(string(children)) {
			pid, err := strconv.Atoi(text)
			if err != nil {
				n.t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	if len(pids) != 4 {
		n.t.Fatalf("a metadata server and three chunk servers have the processes %v", pids)
	}
	return mds, n.stat().CS[0].Addr, pids
}

// rss is the resident memory of processes, MiB.
func rss(t *testing.T, pids []int) (sum int) {
	t.Helper()
	for _, pid := range pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, text, _ := strings.Cut(string(status), "VmRSS:")
		kb, err := strconv.Atoi(strings.Fields(text)[0])
		if err != nil {
			t.Fatal(err)
		}
		sum += kb >> 10
	}
	return sum
}

// TestKeysUnderLoad: keys are rotated, the mode is changed and nodes are revoked while a client
// reads and writes: it sees no error.
func TestKeysUnderLoad(t *testing.T) {
	n := newNode(t)
	mds, _, _ := n.startSmall()
	guest, late := newNode(t), newNode(t)
	guest.ok(testPassword, "-c", "c1", "auth-node", "-P", "-b", mds, "--role", "client")
	late.ok(testPassword, "-c", "c1", "auth-node", "-P", "-b", mds)
	guest.refused("", 1, []string{"auth-node --role"}, "-c", "c1", "make-cs", "-r", guest.path("cs"),
		"-a", freePort(t))
	guest.ok("", "stat")
	// It may take the cluster's new list of nodes into its key file meanwhile, so not "refused".
	guest.fails(1, "administrators", "set-config", "rebalance=off")

	l := n.startLoad()
	n.ok("", "set-config", "mode=secure")
	l.await(50)
	n.ok("", "rotate-keys")
	l.await(50)
	n.ok("", "rotate-keys")
	l.await(50)
	n.ok("", "set-config", "mode=crc")
	l.await(50)
	if out := n.ok("", "list-keys"); !strings.Contains(out, "generation 3") {
		t.Error(out)
	}
	for _, name := range []string{"security.keys", "private"} {
		if out := n.ok("", "get-config", "-o", "json"); strings.Contains(out, name) {
			t.Errorf("get-config shows %s", name)
		}
	}
	// Who wasn't there has an old key, and gets a new one by the password.
	late.fails(1, "auth-node", "stat")
	late.ok(testPassword, "-c", "c1", "auth-node", "-P")
	late.ok("", "stat")

	guest.ok(testPassword, "-c", "c1", "auth-node", "-P", "--role", "client")
	conf, err := cluster.Choose(guest.etc, "c1")
	if err != nil {
		t.Fatal(err)
	}
	key, err := conf.LoadKey()
	if err != nil {
		t.Fatal(err)
	}
	other := guest.startLoad()
	other.lost.Store(true)
	cred, err := conf.Credentials(dataplane.RoleClient, 0)
	if err != nil {
		t.Fatal(err)
	}
	n.ok("", "revoke-node", fmt.Sprintf("%016x", key.Keys.Certificate().Node))
	for _, c := range n.stat().CS {
		eventually(t, "the revoked client is refused", func() bool {
			nc, err := dialSession(t, c.Addr, &cred)
			if err == nil {
				nc.Close()
			}
			return dataplane.KindOf(err) == dataplane.Denied
		})
	}
	before := other.done.Load()
	l.await(100)
	if more := other.done.Load() - before; more > loadWorkers {
		t.Errorf("the revoked client did %d rounds", more)
	}
	guest.fails(1, "auth-node", "stat")
	l.await(50)
	l.end(5 * time.Second)
}

// TestAttackers: strangers and nodes that misbehave cost bounded memory, are put out, and a client
// goes on meanwhile.
func TestAttackers(t *testing.T) {
	n := newNode(t)
	mds, cs, pids := n.startSmall()
	l := n.startLoad()
	before := rss(t, pids)
	for _, addr := range []string{mds, cs} {
		for name, attack := range map[string]func(*attacker){
			"10,000 connections":  (*attacker).flood,
			"slow-loris":          (*attacker).slow,
			"garbage":             (*attacker).garbage,
			"a wrong key":         (*attacker).wrongKey,
			"an oversize message": (*attacker).oversize,
		} {
			a := &attacker{t: t, addr: addr}
			attack(a)
			t.Logf("%s at %s: memory %d MiB, before %d", name, addr, rss(t, pids), before)
			l.await(20)
			a.close()
		}
	}
	n.memberAttacks(cs)
	l.await(50)
	after := rss(t, pids)
	if after > before+128 {
		t.Errorf("memory has grown from %d to %d MiB", before, after)
	}
	n.ok("", "stat")
	l.end(5 * time.Second)
}

// attacker is somebody on the network, at an address of its own.
type attacker struct {
	t     *testing.T
	addr  string
	conns []net.Conn
}

func (a *attacker) dial() net.Conn {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 66, 6)}, Timeout: 5 * time.Second}
	c, err := d.Dial("tcp", a.addr)
	if err != nil {
		a.t.Fatalf("the server doesn't accept connections any more: %v", err)
	}
	a.conns = append(a.conns, c)
	return c
}

func (a *attacker) close() {
	for _, c := range a.conns {
		c.Close()
	}
	a.conns = nil
}

// flood opens 10,000 connections that say nothing, a thousand of them at a time, and checks that
// the server has closed the first of each thousand by itself.
func (a *attacker) flood() {
	for range 10 {
		for range 1000 {
			a.dial()
		}
		a.closed(a.conns[0])
		a.close()
	}
}

// closed fails the test unless the server closes the connection within the time of a handshake.
func (a *attacker) closed(c net.Conn) {
	a.t.Helper()
	c.SetReadDeadline(time.Now().Add(session.HandshakeTime + 2*time.Second))
	_, err := io.Copy(io.Discard, c)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		a.t.Error("the server didn't close the connection")
	}
}

// slow sends the beginning of a handshake, a byte now and then.
func (a *attacker) slow() {
	for range 2 * session.MaxUnproven {
		a.dial().Write([]byte("PS"))
	}
	c := a.dial()
	for _, b := range []byte("PSHK\x01\x02\x40\x00") {
		c.Write([]byte{b})
		time.Sleep(50 * time.Millisecond) // is what a slow-loris does
	}
	a.closed(c)
}

func (a *attacker) garbage() {
	for i := range 100 {
		c := a.dial()
		c.Write(bytes.Repeat([]byte{byte(i), 0xff, 'P'}, 1<<14))
		a.closed(c)
	}
}

// oversize claims a message much larger than any there is.
func (a *attacker) oversize() {
	for _, magic := range []string{"PSHK", "PSPW"} {
		c := a.dial()
		c.Write([]byte(magic + "\x01\x02\xff\xff"))
		a.closed(c)
	}
}

func (a *attacker) wrongKey() {
	keys := session.LegacyKeys([32]byte{1})
	cred := &session.Credentials{ClusterName: "c1", Role: dataplane.RoleMDS, ID: 1,
		Ring: session.NewRing(&keys, nil)}
	for range 200 {
		nc, err := session.Client(a.t.Context(), a.dial(), cred, session.ServiceRPC)
		if err == nil {
			nc.Close()
			a.t.Error("a wrong key got in")
		}
	}
}

// memberAttacks is what a node with a valid client's key does beyond its rights.
func (n *node) memberAttacks(cs string) {
	n.t.Helper()
	guest := newNode(n.t)
	conf, err := cluster.Choose(n.etc, "c1")
	if err != nil {
		n.t.Fatal(err)
	}
	guest.ok(testPassword, "-c", "c1", "auth-node", "-P", "-b", conf.BSOrNone()[0], "--role",
		"client")
	if conf, err = cluster.Choose(guest.etc, "c1"); err != nil {
		n.t.Fatal(err)
	}
	cred, err := conf.Credentials(dataplane.RoleClient, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	for _, role := range []dataplane.Role{dataplane.RoleCS, dataplane.RoleMDS, dataplane.RoleAdmin,
		dataplane.RoleSupervisor} {
		posing := cred
		posing.Role, posing.ID = role, 2
		for _, addr := range []string{cs, conf.BSOrNone()[0]} {
			nc, err := dialSession(n.t, addr, &posing)
			if err == nil {
				nc.Close()
				n.t.Errorf("a client's key got in as %v", role)
			}
		}
	}
	// As a client it may connect, and what only chunk servers may do is denied.
	nc, err := dialSession(n.t, cs, &cred)
	if err != nil {
		n.t.Fatal(err)
	}
	defer nc.Close()
	for _, op := range []dataplane.Opcode{dataplane.OpSeal, dataplane.OpPatch, dataplane.OpActivate,
		dataplane.OpReplicate, dataplane.OpDigest} {
		if err := nc.WriteFrame(&dataplane.Header{Op: op, ReqID: 1, Chunk: 1 << 40}, nil); err != nil {
			n.t.Fatal(err)
		}
		var h dataplane.Header
		if _, err := nc.ReadFrame(&h, nil); err != nil || h.Status != dataplane.Denied {
			n.t.Errorf("op %d: %v, %v", op, h.Status, err)
		}
	}
	// A frame that claims more than fits ends the connection.
	nc.WriteFrame(&dataplane.Header{Op: dataplane.OpRead, Length: 1 << 30}, nil)
	var h dataplane.Header
	if _, err := nc.ReadFrame(&h, nil); err == nil {
		n.t.Errorf("a read of 1 GiB was answered: %v", &h)
	}
}

func dialSession(t *testing.T, addr string, cred *session.Credentials) (*session.NetConn, error) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return session.Client(t.Context(), c, cred, session.ServiceRPC)
}
