package main

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"

	"pstorage/chunk"
	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// joinAs makes the node a member of cluster c1, at the metadata server mds, as a machine of that
// name with these roles.
func (n *node) joinAs(mds, host string, roles ...string) {
	n.t.Helper()
	bits, err := parseRoles(roles)
	if err != nil {
		n.t.Fatal(err)
	}
	conn, err := net.Dial("tcp", mds)
	if err != nil {
		n.t.Fatal(err)
	}
	password := strings.TrimSpace(testPassword)
	key, err := session.AuthNode(n.t.Context(), conn, "c1", password, host, bits)
	if err != nil {
		n.t.Fatal(err)
	}
	conf, err := cluster.At(n.etc, "c1")
	if err == nil {
		err = saveAuth(conf, []string{mds}, *key)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// dial connects to the metadata servers with the node's key, as a process of that role.
func (n *node) dial(role dataplane.Role) *control.Client {
	n.t.Helper()
	conf, err := cluster.Choose(n.etc, "c1")
	if err != nil {
		n.t.Fatal(err)
	}
	cred, err := conf.Credentials(role, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	client, err := control.Dial(n.t.Context(), control.Options{Addrs: conf.BSOrNone, Cred: &cred,
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { client.Close() })
	return client
}

// TestForeignNode: a node whose key is good for chunk servers knows everything about another node's
// one, and can't speak for it. A client sees nothing of the attempts.
func TestForeignNode(t *testing.T) {
	n := newNode(t)
	mds, _, _ := n.startSmall()
	l := n.startLoad()
	thief := newNode(t)
	thief.joinAs(mds, "elsewhere", "cs")
	id, err := chunk.ReadIdentity(n.path("c1-cs1"))
	if err != nil {
		t.Fatal(err)
	}
	disk, err := hex.DecodeString(id.Disk)
	if err != nil {
		t.Fatal(err)
	}
	as, host := thief.dial(dataplane.RoleCS), thief.dial(dataplane.RoleSupervisor)
	try := func(what string, k *control.Client, op dataplane.Opcode, req, reply any,
		want dataplane.Kind) {
		t.Helper()
		err := k.CallOnce(t.Context(), op, req, reply)
		if dataplane.KindOf(err) != want {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
		l.await(20)
	}
	for _, boot := range []uint64{id.Boot, id.Boot + 1} {
		try("a registration", as, control.OpRegisterCS, &control.RegisterCSReq{CS: id.CS,
			Disk: [16]byte(disk), Boot: boot, Addr: freePort(t), Host: "h", Path: "/p"},
			&control.RegisterCSReply{}, dataplane.Denied)
	}
	beat := &control.HeartbeatReq{CS: id.CS, Boot: id.Boot, Failed: "the thief says so"}
	try("a heartbeat", as, control.OpHeartbeat, beat, &control.HeartbeatReply{}, dataplane.NotFound)
	try("an exit", host, control.OpExited, &control.ExitedReq{CS: id.CS, Boot: id.Boot}, nil,
		dataplane.Denied)
	try("a refusal", host, control.OpRefused, &control.RefusedReq{CS: id.CS, Host: "elsewhere",
		Path: "/p", Reason: "the thief says so"}, nil, dataplane.OK)
	c := n.aChunk()
	try("an exclusion", as, control.OpReconfigure, &control.ReconfigureReq{Chunk: c.Chunk,
		Epoch: c.Epoch, Members: c.Members[1:]}, &control.ChunkConfig{}, dataplane.Denied)

	thief.refused("", 1, []string{"administrator", "--node"}, "adopt-cs", "-r", n.path("c1-cs1"))
	thief.refused("", 1, []string{"administrator"}, "adopt-cs", fmt.Sprint(id.CS), "--node",
		thief.nodeID())
	stat := n.stat()
	for _, c := range stat.CS {
		if c.Status != control.CSActive || c.Failed != "" {
			t.Errorf("cs %d is %s: %s", c.ID, c.Status, c.Failed)
		}
	}
	if events := n.ok("", "get-event", "-n", "50"); !strings.Contains(events, "elsewhere") {
		t.Errorf("no event names the thief:\n%s", events)
	}
	l.end(stallLimit)
}

// aChunk is the first chunk of some file of the cluster.
func (n *node) aChunk() control.ChunkMap {
	n.t.Helper()
	k := n.dial(dataplane.RoleClient)
	var dir control.ReadDirReply
	err := k.Call(n.t.Context(), control.OpReadDir, &control.ReadDirReq{Dir: dataplane.RootID}, &dir)
	if err != nil || len(dir.Entries) == 0 {
		n.t.Fatalf("%d files: %v", len(dir.Entries), err)
	}
	var m control.MapReply
	err = k.Call(n.t.Context(), control.OpGetMap, &control.MapReq{File: dir.Entries[0].Attr.File,
		Count: 1}, &m)
	if err != nil || len(m.Chunks) == 0 {
		n.t.Fatalf("%d chunks: %v", len(m.Chunks), err)
	}
	return m.Chunks[0]
}

// nodeID is the id of the node's key.
func (n *node) nodeID() string {
	n.t.Helper()
	conf, err := cluster.Choose(n.etc, "c1")
	if err != nil {
		n.t.Fatal(err)
	}
	key, err := conf.LoadKey()
	if err != nil {
		n.t.Fatal(err)
	}
	return fmt.Sprintf("%016x", key.Keys.Certificate().Node)
}

// TestMovedDisk: a chunk server's disk that turns up on another machine isn't served there until an
// administrator says so. On the same machine a new proof of the password is enough.
func TestMovedDisk(t *testing.T) {
	n := newNode(t)
	_, mds := n.makeCluster(1)
	csd := n.start("pstorage-csd")
	csd.waitFor("cs 1 ready on")
	csd.stop()

	n.ok(testPassword, "-c", "c1", "auth-node", "-P") // another key, another id
	csd = n.start("pstorage-csd")
	csd.waitFor("cs 1 ready on")
	csd.stop()
	if events := n.ok("", "get-event"); !strings.Contains(events, "proved the password anew") {
		t.Errorf("events:\n%s", events)
	}

	conf, err := cluster.At(n.etc, "c1")
	if err == nil {
		err = conf.RemoveDaemon(cluster.CS, n.path("c1-cs1"))
	}
	if err != nil {
		t.Fatal(err)
	}
	other, dir := newNode(t), n.path("c1-cs1")
	other.joinAs(mds, "elsewhere", "cs")
	otherConf, err := cluster.At(other.etc, "c1")
	if err == nil {
		err = otherConf.AddDaemon(cluster.CS, cluster.Daemon{Dir: dir, Addr: freePort(t)})
	}
	if err != nil {
		t.Fatal(err)
	}
	moved := other.start("pstorage-csd")
	moved.waitFor("refuses to serve this directory")
	eventually(t, "list-services says whose it is", func() bool {
		return strings.Contains(n.ok("", "list-services"), "adopt-cs")
	})
	other.refused("", 1, []string{"adopt-cs 1 --node " + other.nodeID()}, "adopt-cs", "-r", dir)
	n.refused("", 2, []string{"--node"}, "adopt-cs", "1")
	n.refused("", 1, []string{"list-keys"}, "adopt-cs", "1", "--node", "1111111111111111")
	n.refused("", 1, []string{"CS 9"}, "adopt-cs", "9", "--node", other.nodeID())
	fits(t, "adopt-cs", n.ok("", "adopt-cs", "1", "--node", other.nodeID(), "-o", "json"))
	if out := other.ok("", "adopt-cs", "-r", dir); !strings.Contains(out, "reload") {
		t.Errorf("adopt-cs -r says %q", out)
	}
	if err := moved.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	moved.waitFor("cs 1 ready on")
	eventually(t, "it is active", func() bool { return n.active() == 1 })

	// And back, by the node's own command; the old one's process has to give it up.
	n.ok("", "adopt-cs", "-r", dir)
	moved.waitFor("belongs to")
	csd = n.start("pstorage-csd")
	csd.waitFor("cs 1 ready on")
}
