package mds

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// TestNodeAskedForTwice: a request for a node's key that is repeated, as its answer was lost, gets
// the certificate of a node that the cluster knows: one that it doesn't can neither be revoked nor
// have its next key certified.
func TestNodeAskedForTwice(t *testing.T) {
	s := newKeysSim(t)
	req := control.Marshal(&control.GrantNodeReq{Public: [32]byte{9}, Roles: session.AllRoles,
		Host: "host"})
	for i := range 2 {
		s.reqID = 41 // of the one before
		node := s.grant(t, req)
		if _, known := s.srv.r.fsm.s.node(node); !known {
			t.Errorf("answer %d: the cluster doesn't know node %016x", i+1, node)
		}
	}
}

// TestNodeByALateClock: the clock of the leader that gave a host its key was years ahead. The host
// proves the password anew, at a leader whose clock is right, and gets its chunk servers back.
func TestNodeByALateClock(t *testing.T) {
	s := newKeysSim(t)
	st := s.srv.r.fsm.s
	ahead := time.Now().AddDate(10, 0, 0).UnixNano()
	const cs, before = dataplane.CSID(3), 5
	do(t, st, ahead, &cmdSetConfig{Key: nodeKey(before), Any: true,
		Value: fmt.Sprintf(`{"host":"host","time_ns":%d}`, ahead)})
	do(t, st, 1, &cmdSetConfig{Key: csKey(cs), Value: fmt.Sprintf("%016x", before), Any: true})
	node := s.grant(t, control.Marshal(&control.GrantNodeReq{Public: [32]byte{9},
		Roles: session.AllRoles, Host: "host"}))
	if got := st.ownership(cs, node); got != ownBefore {
		t.Errorf("the host's new key may register its chunk server: %d, want %d", got, ownBefore)
	}
}

// TestRevokedTwice: a request to revoke a node, by its host's name, that is repeated, as its answer
// was lost, is answered as it was.
func TestRevokedTwice(t *testing.T) {
	s := newKeysSim(t)
	s.grant(t, control.Marshal(&control.GrantNodeReq{Public: [32]byte{9}, Roles: session.AllRoles,
		Host: "host"}))
	args := control.Marshal(&control.AdminReq{Command: control.AdminRevokeNode,
		Args: []byte(`{"node":"host"}`)})
	for i := range 2 {
		s.reqID = 77 // of the one before
		if _, err := s.ask(dataplane.RoleAdmin, control.OpAdmin, args); err != nil {
			t.Errorf("answer %d: %v", i+1, err)
		}
	}
}

// keysSim is a cluster whose nodes have certificates.
type keysSim struct{ *fuzzSim }

func newKeysSim(t *testing.T) keysSim {
	t.Helper()
	s := newFuzzSim()
	t.Cleanup(s.Close)
	cluster := dataplane.ClusterID{7}
	keys, own := NewClusterKeys(cluster, "h", false)
	s.srv.cred = &session.Credentials{Cluster: cluster, Ring: session.NewRing(&own, nil)}
	keys.Founder = nil
	b, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	do(t, s.srv.r.fsm.s, 1, &cmdSetConfig{Key: keysKey, Value: string(b), Any: true})
	s.peers[dataplane.RoleMDS] = control.SimPeer(session.Peer{Role: dataplane.RoleMDS, ID: 1,
		Secure: true}, nil)
	return keysSim{s}
}

// grant asks for a node.
func (s keysSim) grant(t *testing.T, req []byte) uint64 {
	t.Helper()
	answer, err := s.ask(dataplane.RoleMDS, control.OpGrantNode, req)
	if err != nil {
		t.Fatal(err)
	}
	var set session.KeySet
	if err := json.Unmarshal(answer.(*control.KeysReply).Keys, &set); err != nil {
		t.Fatal(err)
	}
	return set.Certificate().Node
}
