package mds

import (
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// TestFreedWhileRegistering: a chunk is freed after a registration's inventory was compared with
// the state, and before its reply. The server is told to forget it, or asked for its inventory
// again; what is pushed over the connection that it had before may be lost.
func TestFreedWhileRegistering(t *testing.T) {
	c := newTestCluster(t, 1)
	servers := map[dataplane.CSID]*testCS{}
	for n := range byte(3) {
		s := c.newCS(n + 1)
		servers[s.id] = s
	}
	k := c.client(dataplane.RoleClient, 7, nil)
	conf := oneChunk(t, k)
	s := servers[conf.Members[1].CS]
	l := c.nodes[0].lead.Load()
	told := make(chan dataplane.Opcode, 100)
	who := session.Peer{Role: dataplane.RoleCS, ID: 1000 + uint64(s.reg.Disk[0])}
	again := &call{server: c.nodes[0], ctx: t.Context(), l: l, op: control.OpRegisterCS,
		peer: control.SimPeer(who, func(op dataplane.Opcode, _ []byte) error {
			told <- op
			return nil
		})}

	l.listing(s.id)
	held := []control.HeldChunk{{Chunk: conf.Chunk, Epoch: conf.Epoch}}
	found := again.inventory(s.id, held, true)
	if len(found.forget) > 0 {
		t.Fatalf("to be forgotten: %v", found.forget)
	}
	k.must(control.OpUnlink, &control.UnlinkReq{Parent: dataplane.RootID, Name: "f"}, nil)
	if _, err := again.grantLease(s.id, &s.reg, s.reg.Instance, found); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is told", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		select {
		case op := <-told:
			return op == control.OpForget
		default:
			return l.leases.at(s.id).relist
		}
	})
}
