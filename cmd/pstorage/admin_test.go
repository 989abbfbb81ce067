package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/cluster"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// slowMDS is a metadata server that takes its time for commands about many files.
type slowMDS struct{ takes time.Duration }

func (s slowMDS) Handle(ctx context.Context, _ *control.Peer, _ uint64, _ dataplane.Opcode,
	p []byte) (any, error) {
	var req control.AdminReq
	if err := control.Unmarshal(p, &req); err != nil {
		return nil, err
	}
	var doc any = control.ConfigDoc{}
	switch req.Command {
	case control.AdminSetAttr:
		doc = control.AttrDoc{Path: "/many"}
		s.sleep(ctx)
	case control.AdminRevoke:
		doc = control.RevokeDoc{Free: 7}
		s.sleep(ctx)
	}
	b, err := json.Marshal(doc)
	return &control.AdminReply{Doc: b}, err
}

func (s slowMDS) sleep(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(s.takes):
	}
}

func (s slowMDS) Gone(*control.Peer) {}

// withSlowMDS makes a node of a cluster whose metadata server is slow.
func withSlowMDS(t *testing.T, takes time.Duration) *node {
	t.Helper()
	return withMDS(t, slowMDS{takes})
}

// withMDS makes a node of a cluster whose metadata server is mds.
func withMDS(t *testing.T, mds control.Handler) *node {
	t.Helper()
	n := newNode(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	key := session.NodeKey{Cluster: dataplane.ClusterID{1}, ClusterName: "c1",
		Keys: session.LegacyKeys([32]byte{7})}
	conf, err := cluster.At(n.etc, "c1")
	if err == nil {
		err = conf.SaveKey(key)
	}
	if err == nil {
		err = conf.SaveBS([]string{l.Addr().String()})
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		o := &session.ServerOptions{Log: slog.New(slog.DiscardHandler),
			Cred: &session.Credentials{Cluster: key.Cluster, ClusterName: "c1", Key: [32]byte{7},
				Role: dataplane.RoleMDS, ID: 1, Name: "mds"}}
		err := session.Serve(ctx, l, o, func(nc *session.NetConn) {
			control.ServeConn(ctx, nc, mds)
		})
		if err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return n
}

// TestLongWork: commands about many files wait for longer than others, and say what for.
func TestLongWork(t *testing.T) {
	t.Parallel() // it takes longer than adminTimeout
	n := withSlowMDS(t, adminTimeout+500*time.Millisecond)
	for _, line := range []string{"set-attr -R -p /many tier=1", "revoke -R /many",
		"revoke --client 1 --all"} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			r := n.run("", "pstorage", strings.Fields(line)...)
			if r.status != 0 || !strings.Contains(r.stderr, "has been at it") {
				t.Errorf("status %d, %q", r.status, r.stderr)
			}
		})
	}
}

// TestLongWorkInterrupted: who stops waiting is told that the work goes on.
func TestLongWorkInterrupted(t *testing.T) {
	n := withSlowMDS(t, time.Hour)
	d := n.start("pstorage", "set-attr", "-R", "-p", "/many", "tier=1")
	d.waitFor("has been at it")
	d.stop()
	if text := d.out.text(); d.cmd.ProcessState.ExitCode() != 1 ||
		!strings.Contains(text, "interrupted; the metadata server goes on") {
		t.Errorf("it says %q", text)
	}
}

// mutedMDS is a metadata server that doesn't answer the second question after events, nor the first
// one after a revocation, as in an election.
type mutedMDS struct{ asked, waits atomic.Int32 }

func (m *mutedMDS) Handle(ctx context.Context, _ *control.Peer, _ uint64, _ dataplane.Opcode,
	p []byte) (any, error) {
	var req control.AdminReq
	if err := control.Unmarshal(p, &req); err != nil {
		return nil, err
	}
	muted := slowMDS{adminTimeout + 500*time.Millisecond}
	var doc any = control.ConfigDoc{}
	switch req.Command {
	case control.AdminEvents:
		n := m.asked.Add(1)
		if n == 2 {
			muted.sleep(ctx)
		}
		e := control.EventDoc{ID: uint64(n), Code: fmt.Sprint("event-", n)}
		doc = control.EventsDoc{Events: []control.EventDoc{e}}
	case control.AdminRevoke:
		doc = control.RevokeDoc{Revoked: []control.LeaseDoc{{Path: "/a"}}, Seq: 1, Waiting: []uint32{1}}
	case control.AdminRevokeWait:
		if m.waits.Add(1) == 1 {
			muted.sleep(ctx)
		}
		doc = control.RevokeDoc{Seq: 1}
	}
	b, err := json.Marshal(doc)
	return &control.AdminReply{Doc: b}, err
}

func (m *mutedMDS) Gone(*control.Peer) {}

// TestFollowElection: who follows events sees an election through.
func TestFollowElection(t *testing.T) {
	t.Parallel() // it takes longer than adminTimeout
	n := withMDS(t, &mutedMDS{})
	d := n.start("pstorage", "get-event", "--follow")
	d.waitFor("event-1")
	d.waitFor("no answer, trying again")
	d.waitFor("event-3")
	d.stop()
	if status := d.cmd.ProcessState.ExitCode(); status != 0 {
		t.Errorf("status %d", status)
	}
}

// TestRevokeElection: a revocation that was made is waited for through an election; and if nobody
// answers for too long it isn't said that it wasn't made.
func TestRevokeElection(t *testing.T) {
	t.Parallel()
	n := withMDS(t, &mutedMDS{})
	if out := n.ok("", "revoke", "/a"); !strings.Contains(out, "/a: client") {
		t.Errorf("it prints %q", out)
	}
	n = withMDS(t, &mutedMDS{})
	n.says(1, "it was taken away, but", "revoke", "/a", "--timeout", "1s")
}
