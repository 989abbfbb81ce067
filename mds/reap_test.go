package mds

import (
	"log/slog"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// TestReapHoldsNothingUp: while the chunks of a removed file are being freed, which for a large one
// takes minutes, servers are told what they are to be told.
func TestReapHoldsNothingUp(t *testing.T) {
	s, err := measuredState(MeasureOptions{Cred: &session.Credentials{
		Cluster: dataplane.ClusterID{1}, ClusterName: "test"}, Chunks: 3 * freeStep, Files: 1,
		Servers: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var res Result
	s.applyOne(1, &cmdUnlink{UnlinkReq: control.UnlinkReq{Parent: dataplane.RootID,
		Name: "image0"}}, &res)
	if err := res.err("unlink"); err != nil || len(s.orphans) != 1 {
		t.Fatalf("%v, %d files wait for their end", err, len(s.orphans))
	}
	log := slog.New(slog.DiscardHandler)
	r := &replica{log: log, fsm: &fsm{log: log, s: s}, proposals: make(chan *proposal),
		stopped: make(chan struct{}), raft: newTestCluster(t, 1).nodes[0].r.raft}
	l := lead(r, 1)
	defer l.end()
	late := time.After(10 * time.Second)
	select {
	case p := <-r.proposals: // which is never answered
		if _, ok := p.cmd.(*cmdReap); !ok {
			t.Fatalf("%T is proposed", p.cmd)
		}
	case <-late:
		t.Fatal("nothing is freed")
	}
	told := make(chan dataplane.Opcode, 1)
	peer := control.SimPeer(session.Peer{Role: dataplane.RoleCS, ID: 1},
		func(op dataplane.Opcode, _ []byte) error {
			select {
			case told <- op:
			default:
			}
			return nil
		})
	l.mu.Lock()
	l.connect(1, peer, 1)
	l.mu.Unlock()
	l.forget([]freedChunk{{id: dataplane.NewChunkID(1, 0),
		replicas: [dataplane.MaxReplicas]Replica{{CS: 1}}}})
	select {
	case op := <-told:
		if op != control.OpForget {
			t.Errorf("it is told %s", control.OpName(op))
		}
	case <-late:
		t.Error("a server isn't told what to forget while a file is being freed")
	}
}
