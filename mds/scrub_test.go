package mds

import (
	"slices"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestScrubStart: one chunk server, or all, are told to scrub, by administrators only.
func TestScrubStart(t *testing.T) {
	c := newTestCluster(t, 1)
	admin := c.client(dataplane.RoleAdmin, 8, nil)
	a, b := c.newCS(1), c.newCS(2)
	told := func(s *testCS) {
		t.Helper()
		select {
		case <-s.scrub:
		case <-time.After(10 * time.Second):
			t.Fatalf("cs %d wasn't told to scrub", s.id)
		}
	}
	var doc control.ScrubDoc
	admin.admin(control.AdminScrubStart, control.ScrubArgs{CS: uint32(b.id)}, &doc)
	if !slices.Equal(doc.Told, []uint32{uint32(b.id)}) || len(doc.Silent) != 0 {
		t.Errorf("one: %+v", doc)
	}
	told(b)
	doc = control.ScrubDoc{}
	admin.admin(control.AdminScrubStart, control.ScrubArgs{}, &doc)
	if len(doc.Told) != 2 || len(doc.Silent) != 0 {
		t.Errorf("all: %+v", doc)
	}
	told(a)
	told(b)
	if len(a.scrub) != 0 {
		t.Error("the wrong one was told, too")
	}
	start := &control.AdminReq{Command: control.AdminScrubStart, Args: []byte(`{"cs":9}`)}
	admin.wantKind(dataplane.NotFound, control.OpAdmin, start)
	c.client(dataplane.RoleClient, 7, nil).wantKind(dataplane.Denied, control.OpAdmin, start)
}
