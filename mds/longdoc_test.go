package mds

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestManyServers: the documents about a cluster of 3,000 chunk servers fit a message.
func TestManyServers(t *testing.T) {
	s := newFuzzSim()
	defer s.Close()
	fail := func(_ []byte, err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(3000) {
		do(t, s.srv.r.fsm.s, 1e18, &cmdRegisterCS{Instance: i + 1, CS: CS{Disk: [16]byte{1, byte(i),
			byte(i >> 8)}, Boot: 1, Addr: fmt.Sprintf("10.0.%d.%d:2600", i>>8, i&255),
			Host: fmt.Sprint("storage", i), Path: "/var/lib/pstorage/disk", Capacity: 1 << 44}})
		s.Handle(dataplane.RoleCS, 1000+i, 1, control.OpHeartbeat, &control.HeartbeatReq{
			CS: dataplane.CSID(i + 1), Boot: 1, Instance: i + 1, Capacity: 1 << 44,
			Stats: control.CSStats{Reads: 1e9 * i, Writes: 1e9 * i, Chunks: i}}, fail)
	}
	for _, command := range []string{control.AdminStat, control.AdminListServices} {
		s.Handle(dataplane.RoleAdmin, 7, 1, control.OpAdmin, &control.AdminReq{Command: command,
			Packs: true}, func(b []byte, err error) {
			if fail(b, err); len(b) > dataplane.MaxControlPayload {
				t.Errorf("%s: an answer of %d bytes, a message has %d", command, len(b),
					dataplane.MaxControlPayload)
			}
		})
	}
}

// TestNewestEvents: if not all of the newest events that are asked for fit an answer, the oldest of
// them are left out.
func TestNewestEvents(t *testing.T) {
	s := newFuzzSim()
	defer s.Close()
	for i := range 3 * maxEventsReply {
		do(t, s.srv.r.fsm.s, 1e18, &cmdAddEvent{Source: "cs 1", Code: fmt.Sprint("e", i),
			Message: strings.Repeat("x", i%800)})
	}
	newest := s.srv.r.fsm.s.nextEvent - 1
	for _, args := range []control.EventsArgs{{Limit: 5, Last: true},
		{Limit: maxEventsReply, Last: true}} {
		answer, err := s.ask(dataplane.RoleAdmin, control.OpAdmin,
			control.Marshal(adminReq(t, control.AdminEvents, args)))
		if err != nil {
			t.Fatal(err)
		}
		var doc control.EventsDoc
		if err := json.Unmarshal(answer.(*control.AdminReply).Doc, &doc); err != nil {
			t.Fatal(err)
		}
		list := doc.Events
		if n := len(list); n == 0 || n > args.Limit || list[n-1].ID != newest ||
			list[0].ID != newest-uint64(n)+1 || args.Limit < 10 && n != args.Limit {
			t.Errorf("%d asked for: %d, from %d to %d; the newest is %d", args.Limit, n, list[0].ID,
				list[n-1].ID, newest)
		}
	}
}
