package mds

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestNoSpaceIsSaid: when a writer is turned away for want of space, stat and an event say so.
func TestNoSpaceIsSaid(t *testing.T) {
	c := newTestCluster(t, 1)
	admin := c.client(dataplane.RoleAdmin, 8, nil)
	ask := func(command string, doc any) {
		t.Helper()
		var reply control.AdminReply
		admin.must(control.OpAdmin, &control.AdminReq{Command: command}, &reply)
		if err := json.Unmarshal(reply.Doc, doc); err != nil {
			t.Fatal(err)
		}
	}
	says := func() bool {
		var stat control.StatDoc
		ask(control.AdminStat, &stat)
		return stat.Health == "critical" && strings.Contains(strings.Join(stat.Reasons, "\n"),
			"no space for new chunks")
	}
	if says() {
		t.Error("stat speaks of no space before anybody asked for any")
	}
	k := c.client(dataplane.RoleClient, 7, nil)
	f := k.create(dataplane.RootID, "disk.img", control.TypeFile)
	for range 2 {
		k.wantKind(dataplane.NoSpace, control.OpAllocate, &control.MapReq{File: f.File, Count: 1})
	}
	if !says() {
		t.Error("stat doesn't speak of no space while a writer waits")
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		var doc control.EventsDoc
		ask(control.AdminEvents, &doc)
		n := 0
		for _, e := range doc.Events {
			if e.Code == "no-space" && e.Severity == "fault" {
				n++
			}
		}
		if n == 1 {
			return
		}
		if n > 1 || time.Now().After(deadline) {
			t.Fatalf("%d events of no space, want 1: %+v", n, doc.Events)
		}
	}
}
