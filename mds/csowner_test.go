package mds

import (
	"encoding/json"
	"fmt"
	"testing"

	"pstorage/dataplane"
)

// TestOwnership: a chunk server is the node's that registered it first, and that machine's again
// when it has proved the password anew; an older or a revoked key of a machine of that name isn't.
func TestOwnership(t *testing.T) {
	s := NewState()
	defer s.Close()
	set := func(key, value string) {
		do(t, s, 1, &cmdSetConfig{Key: key, Value: value, Any: true})
	}
	node := func(id uint64, r nodeRecord) {
		b, err := json.Marshal(&r)
		if err != nil {
			t.Fatal(err)
		}
		set(nodeKey(id), string(b))
	}
	const cs = dataplane.CSID(7)
	node(1, nodeRecord{Host: "a", TimeNs: 10})
	node(2, nodeRecord{Host: "a", TimeNs: 20})
	node(3, nodeRecord{Host: "a", TimeNs: 5})
	node(4, nodeRecord{Host: "a", TimeNs: 30, Revoked: true})
	node(5, nodeRecord{Host: "b", TimeNs: 40})
	node(6, nodeRecord{TimeNs: 40})
	if got := s.ownership(cs, 1); got != ownNobody {
		t.Errorf("before a registration: %d", got)
	}
	set(csKey(cs), fmt.Sprintf("%016x", 1))
	set(csKey(8), "nonsense")
	for node, want := range map[uint64]ownership{0: ownIt, 1: ownIt, 2: ownBefore, 3: ownOther,
		4: ownOther, 5: ownOther, 6: ownOther, 9: ownOther} {
		if got := s.ownership(cs, node); got != want {
			t.Errorf("node %d: %d, want %d", node, got, want)
		}
	}
	if got := s.ownership(8, 1); got != ownOther {
		t.Errorf("an entry that can't be read: %d", got)
	}
	// A node without a host name is nobody's successor.
	node(7, nodeRecord{TimeNs: 1})
	set(csKey(9), fmt.Sprintf("%016x", 7))
	if got := s.ownership(9, 6); got != ownOther {
		t.Errorf("no host names: %d", got)
	}
}
