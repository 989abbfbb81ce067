package mds

import (
	"fmt"
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
