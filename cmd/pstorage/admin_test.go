package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"strings"
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
			control.ServeConn(ctx, nc, slowMDS{takes})
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
