package mds

import (
	"fmt"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestClients: who asks for files is listed as long as it is connected, and after that as long as it
// may write something; who only looks at the cluster isn't.
func TestClients(t *testing.T) {
	c := newTestCluster(t, 1)
	k := c.client(dataplane.RoleClient, 0xa1, nil)
	f := k.create(dataplane.RootID, "disk", control.TypeFile)
	c.client(dataplane.RoleAdmin, 0xa2, nil)
	var lease control.LeaseReply
	k.must(control.OpAcquireLease, &control.AcquireLeaseReq{File: f.File, Host: "h", Mount: "/m"},
		&lease)
	watcher := c.client(dataplane.RoleAdmin, 0xa3, nil)
	list := func() (found *control.ClientDoc) {
		var doc control.ClientsDoc
		watcher.admin(control.AdminListClients, nil, &doc)
		for i := range doc.Clients {
			switch d := &doc.Clients[i]; d.ID {
			case fmt.Sprintf("%x", 0xa1):
				found = d
			case fmt.Sprintf("%x", 0xa2), fmt.Sprintf("%x", 0xa3):
				t.Errorf("an administrator is listed: %+v", *d)
			}
		}
		return found
	}
	d := list()
	if d == nil || !d.Connected || d.Writes != 1 || len(d.Mounts) != 1 || d.Mounts[0] != "/m" ||
		d.Requests < 2 || d.Addr == "" {
		t.Fatalf("connected: %+v", d)
	}
	k.Close()
	eventually(t, "it is gone, with its right to write", func() bool {
		d := list()
		return d != nil && !d.Connected && d.Writes == 1 && d.Host == "h"
	})
}
