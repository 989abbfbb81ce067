package mds

import (
	"encoding/json"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// TestNodeAskedForTwice: a request for a node's key that is repeated, as its answer was lost, gets
// the certificate of a node that the cluster knows: one that it doesn't can neither be revoked nor
// have its next key certified.
func TestNodeAskedForTwice(t *testing.T) {
	s := newFuzzSim()
	defer s.Close()
	cluster := dataplane.ClusterID{7}
	s.srv.cred = &session.Credentials{Cluster: cluster}
	keys, _ := NewClusterKeys(cluster, "h", false)
	keys.Founder = nil
	b, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	do(t, s.srv.r.fsm.s, 1, &cmdSetConfig{Key: keysKey, Value: string(b), Any: true})
	s.peers[dataplane.RoleMDS] = control.SimPeer(session.Peer{Role: dataplane.RoleMDS, ID: 1,
		Secure: true}, nil)
	req := control.Marshal(&control.GrantNodeReq{Public: [32]byte{9}, Roles: session.AllRoles,
		Host: "host"})
	for i := range 2 {
		s.reqID = 41 // of the one before
		answer, err := s.ask(dataplane.RoleMDS, control.OpGrantNode, req)
		if err != nil {
			t.Fatal(err)
		}
		var set session.KeySet
		if err := json.Unmarshal(answer.(*control.KeysReply).Keys, &set); err != nil {
			t.Fatal(err)
		}
		node := set.Certificate().Node
		if _, known := s.srv.r.fsm.s.node(node); !known {
			t.Errorf("answer %d: the cluster doesn't know node %016x", i+1, node)
		}
	}
}
