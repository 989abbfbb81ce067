package mds

import (
	"context"
	"net"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/session"
)

// Followers pass a connection on to the leader, which finds out itself who that is. The leader has
// nobody to pass it on to.
func TestRelay(t *testing.T) {
	c := newTestCluster(t, 3)
	leader := c.leader()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cred := c.cred(dataplane.RoleClient, 7)
	dial := func(i int) net.Conn {
		conn, err := net.Dial("tcp", c.addrs[i])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	direct, err := session.Client(ctx, dial(leader), cred, session.ServiceRPC)
	if err != nil {
		t.Fatal(err)
	}
	through := func(i int) (*session.NetConn, error) {
		relay, err := session.Client(ctx, dial(i), cred, session.ServiceRelay)
		if err != nil {
			t.Fatalf("server %d: %v", i, err)
		}
		return session.Client(ctx, relay, cred, session.ServiceRPC)
	}
	for i := range c.addrs {
		if i == leader {
			if nc, err := through(i); err == nil {
				t.Errorf("the leader passed a connection on to %v", nc.Peer())
			}
			continue
		}
		var nc *session.NetConn
		eventually(t, "the follower knows the leader", func() bool {
			nc, err = through(i)
			return err == nil
		})
		if nc.Peer() != direct.Peer() {
			t.Errorf("through server %d came %v, not the leader %v", i, nc.Peer(), direct.Peer())
		}
		ping := dataplane.Header{Op: dataplane.OpPing, ReqID: 9}
		var h dataplane.Header
		nc.SetDeadline(time.Now().Add(10 * time.Second))
		if err := nc.WriteFrame(&ping, nil); err != nil {
			t.Error(err)
		}
		if _, err := nc.ReadFrame(&h, nil); err != nil || h.ReqID != 9 {
			t.Errorf("ping through server %d: %v, %v", i, &h, err)
		}
		// Any number of them can't be had.
		c.nodes[i].relays.Add(maxRelays)
		if nc, err := through(i); err == nil {
			t.Errorf("server %d passed one connection too many on to %v", i, nc.Peer())
		}
		c.nodes[i].relays.Add(-maxRelays)
		if _, err := through(i); err != nil {
			t.Errorf("server %d, with room again: %v", i, err)
		}
	}
}
