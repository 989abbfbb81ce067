package mds

import (
	"net"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// rawClient is a connection of client 7, on which requests are sent whenever a test says so.
type rawClient struct {
	t   *testing.T
	nc  *session.NetConn
	req uint64
}

func (c *testCluster) raw() *rawClient {
	c.t.Helper()
	conn, err := net.Dial("tcp", c.addrs[0])
	if err != nil {
		c.t.Fatal(err)
	}
	nc, err := session.Client(c.t.Context(), conn, c.cred(dataplane.RoleClient, 7),
		session.ServiceRPC)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { nc.Close() })
	return &rawClient{t: c.t, nc: nc}
}

// ask sends a request and takes its answer. ok says whether the connection is still there.
func (r *rawClient) ask(op dataplane.Opcode, req, reply any) (kind dataplane.Kind, ok bool) {
	r.t.Helper()
	r.req++
	h := dataplane.Header{Op: op, ReqID: r.req}
	if err := r.nc.WriteFrame(&h, control.Marshal(req)); err != nil {
		return 0, false
	}
	r.nc.SetReadDeadline(time.Now().Add(10 * time.Second))
	payload, err := r.nc.ReadFrame(&h, nil)
	if err != nil {
		return 0, false
	}
	if h.Status == dataplane.OK && reply != nil {
		if err := control.Unmarshal(payload, reply); err != nil {
			r.t.Fatal(err)
		}
	}
	return h.Status, true
}

// TestLateRequests: what a client sent over a connection that it gave up comes when it has gone on
// with the next one: a grant that it doesn't know of, and a Grow from before its truncation.
// Neither is done.
func TestLateRequests(t *testing.T) {
	c := newTestCluster(t, 1)
	file := c.client(dataplane.RoleClient, 8, nil).create(dataplane.RootID, "f",
		control.TypeFile).File
	before := c.raw()
	before.ask(control.OpGetAttr, &control.FileReq{File: file}, nil)
	now := c.raw()
	must := func(op dataplane.Opcode, req, reply any) {
		t.Helper()
		if kind, ok := now.ask(op, req, reply); !ok || kind != dataplane.OK {
			t.Fatalf("%s: %v, connected %v", control.OpName(op), kind, ok)
		}
	}
	acquire := &control.AcquireLeaseReq{File: file, Host: "h"}
	var lease control.LeaseReply
	must(control.OpAcquireLease, acquire, &lease)
	must(control.OpGrow, &control.GrowReq{File: file, Size: 9000, Token: lease.Token}, nil)
	must(control.OpSetAttr, &control.SetAttrReq{File: file, Mask: control.SetSize,
		Token: lease.Token}, nil)
	before.ask(control.OpGrow, &control.GrowReq{File: file, Size: 9000, Token: lease.Token}, nil)
	before.ask(control.OpAcquireLease, acquire, nil)
	var a control.Attr
	if must(control.OpGetAttr, &control.FileReq{File: file}, &a); a.Size != 0 {
		t.Errorf("%d bytes in a file that was cut to nothing", a.Size)
	}
	if kind, _ := now.ask(control.OpGrow, &control.GrowReq{File: file, Size: 1,
		Token: lease.Token}, nil); kind != dataplane.OK {
		t.Errorf("a Grow by who has the right to write: %v", kind)
	}
}
