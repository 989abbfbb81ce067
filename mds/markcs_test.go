package mds

import (
	"strings"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestReleasingIsReplicated: the removal of a server is state: it survives a new registration and a
// snapshot, is called off or ends only when nothing is left, and then the server is gone for good.
func TestReleasingIsReplicated(t *testing.T) {
	s := NewState()
	defer s.Close()
	for i := range byte(3) {
		do(t, s, 1, &cmdRegisterCS{Instance: 5, CS: CS{Disk: [16]byte{i + 1}, Boot: 1, Addr: "a",
			Host: "h", Path: "/p", Capacity: 100 * dataplane.ChunkSize}})
	}
	fill(t, s, "file", 1)
	rec := *s.table.At(0)
	out := rec.members()[0].CS
	do(t, s, 2, &cmdMarkCS{CS: out, Drain: drainStart})
	do(t, s, 3, &cmdRegisterCS{Instance: 6, CS: CS{ID: out, Disk: s.cs[out].Disk, Boot: 2, Addr: "a",
		Host: "h", Path: "/p"}})
	if !s.cs[out].Releasing {
		t.Fatal("a new registration ends the removal")
	}
	do(t, s, 4, &cmdMarkCS{CS: out, Drain: drainDone})
	if s.cs[out].Dropped || !s.cs[out].Releasing {
		t.Fatalf("dropped with a chunk on it: %+v", s.cs[out])
	}
	do(t, s, 5, &cmdMarkCS{CS: out, Drain: drainCancel})
	do(t, s, 5, &cmdMarkCS{CS: out, Drain: drainDone})
	if s.cs[out].Dropped || s.cs[out].Releasing {
		t.Fatalf("called off: %+v", s.cs[out])
	}
	do(t, s, 6, &cmdMarkCS{CS: out, Drain: drainStart})

	// The chunk moves: who leaves isn't fenced, as it was sealed.
	var members []dataplane.CSID
	for id := dataplane.CSID(1); id <= 3; id++ {
		if rec.has(id) && id != out {
			members = append(members, id)
		}
	}
	if len(members) == 0 {
		t.Fatalf("chunk %+v", rec)
	}
	do(t, s, 7, &cmdReconfigure{Chunk: rec.ID, Epoch: rec.Epoch, Members: members, Moved: true})
	if s.cs[out].Fenced || s.csLoad[out] != 0 {
		t.Fatalf("moved away: %+v, %d chunks", s.cs[out], s.csLoad[out])
	}
	do(t, s, 8, &cmdMarkCS{CS: out, Drain: drainDone})
	if !s.cs[out].Dropped || s.cs[out].Releasing {
		t.Fatalf("empty: %+v", s.cs[out])
	}
	var codes []string
	s.events.each(func(e *control.Event) bool {
		codes = append(codes, e.Code)
		return true
	})
	if all := strings.Join(codes, " "); !strings.Contains(all, "cs-releasing") ||
		!strings.Contains(all, "cs-release-cancelled") || !strings.Contains(all, "cs-dropped") {
		t.Errorf("events: %s", all)
	}
}

// TestSettings reads and checks entries of the configuration.
func TestSettings(t *testing.T) {
	for entry, ok := range map[string]bool{"rebalance=on": true, "rebalance=maybe": false,
		"capacity.limit=10T": true, "capacity.limit=10GiB": true, "capacity.limit=0": false,
		"capacity.limit=-1": false, "capacity.limit=99999999999P": false, "user.note=x": true,
		"recovery.per-server=4": true, "recovery.per-server=0": false, "recovery.total=5000": false,
		"recovery.offline-timeout=10m": true, "recovery.offline-timeout=1ms": false,
		"no.such=1": false, "no.such=": false, "capacity.limit=": true, "user.note=": true,
		"old.there=": true, "old.there=1": false, "security.keys=": false,
		"security.node.1=": false, "mds.last-node=": false, "mds.last-node=7": false} {
		key, value, _ := strings.Cut(entry, "=")
		there := !strings.HasPrefix(key, "no.")
		if err := checkConfig(key, value, there); (err == nil) != ok {
			t.Errorf("%s: %v", entry, err)
		}
	}
	s := readSettings([]configEntry{{"capacity.limit", "3G", 1}, {"rebalance", "off", 2},
		{"recovery.total", "nonsense", 3}}, 3)
	if s.limit != 3<<30 || s.rebalance || s.total != maxRecoveries || s.perServer != recoverPerCS {
		t.Errorf("%+v", s)
	}
	for _, key := range control.ConfigKeys {
		if configKeys[key] == nil {
			t.Errorf("%s is listed, and unknown", key)
		}
	}
	if len(configKeys) != len(control.ConfigKeys) {
		t.Error("keys that aren't listed")
	}
}
