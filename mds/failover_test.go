package mds

import (
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// oneChunk makes a file with one chunk on three servers and returns its configuration.
func oneChunk(t *testing.T, k *client) control.ChunkConfig {
	t.Helper()
	f := k.create(dataplane.RootID, "f", control.TypeFile)
	var m control.MapReply
	k.must(control.OpAllocate, &control.MapReq{File: f.File, Count: 1}, &m)
	var conf control.ChunkConfig
	k.must(control.OpGetChunk, &control.GetChunkReq{Chunk: m.Chunks[0].Chunk}, &conf)
	return conf
}

// TestServerLost plays the loss of a chunk server: no exclusion while its lease may be valid, then
// a settle, the exclusion, and what the lost one learns when it comes back.
func TestServerLost(t *testing.T) {
	c := newTestCluster(t, 1)
	k := c.client(dataplane.RoleClient, 7, nil)
	servers := map[dataplane.CSID]*testCS{}
	stops := map[dataplane.CSID]func(){}
	for n := range byte(3) {
		s := c.newCS(n + 1)
		servers[s.id] = s
		stops[s.id] = s.keepAlive()
	}
	conf := oneChunk(t, k)
	lost, first, second := servers[conf.Members[0].CS], servers[conf.Members[1].CS],
		servers[conf.Members[2].CS]
	defer func() { stops[first.id](); stops[second.id]() }()
	first.must(control.OpReconfigure, &control.ReconfigureReq{Chunk: conf.Chunk, Epoch: 1,
		SetCreated: true}, &conf)
	if !conf.Created || conf.Epoch != 1 {
		t.Fatalf("created: %+v", conf)
	}
	exclude := &control.ReconfigureReq{Chunk: conf.Chunk, Epoch: 1,
		Members: []dataplane.CSID{first.id, second.id}}
	first.wantKind(dataplane.NotReady, control.OpReconfigure, exclude)

	stops[lost.id]()
	silent := time.Now()
	unreachable := &control.UnreachableReq{CS: lost.id, Chunks: []control.HeldChunk{{
		Chunk: conf.Chunk, Epoch: 1}}}
	var push control.SettlePush
	for waiting := true; waiting; {
		k.must(control.OpUnreachable, unreachable, nil)
		select {
		case push = <-first.settle:
			waiting = false
		case <-time.After(100 * time.Millisecond):
		}
		if time.Since(silent) > 5*time.Second {
			t.Fatal("no settle")
		}
	}
	t.Logf("settle %v after the last heartbeat began to be missed", time.Since(silent))
	if d := time.Since(silent); d < dataplane.LeaseTime-dataplane.HeartbeatEvery {
		t.Errorf("too early, after %v", d)
	}
	if len(push.Chunks) != 1 || push.Chunks[0].Chunk != conf.Chunk || len(push.Lost) != 1 ||
		push.Lost[0] != lost.id || len(push.Chunks[0].Members) != 3 || !push.Chunks[0].Created {
		t.Fatalf("settle %+v", push)
	}
	first.must(control.OpReconfigure, exclude, &conf)
	first.must(control.OpReconfigure, exclude, &conf) // again, after a lost reply
	if conf.Epoch != 2 || len(conf.Members) != 2 || conf.Members[0].CS != first.id {
		t.Fatalf("after the exclusion: %+v", conf)
	}
	var stat control.StatDoc
	c.client(dataplane.RoleAdmin, 9, nil).admin(control.AdminStat, nil, &stat)
	if stat.Health != "degraded" || stat.Chunks.Degraded != 1 || stat.Chunks.BelowMinimum != 0 {
		t.Errorf("stat: %+v", stat)
	}

	// The same process comes back: its lease isn't renewed before it has heard what to delete.
	if err := lost.beat(); dataplane.KindOf(err) != dataplane.NotFound {
		t.Fatalf("heartbeat of an excluded server: %v", err)
	}
	lost.reg.Chunks = []control.HeldChunk{{Chunk: conf.Chunk, Epoch: 1}}
	r := lost.register()
	if len(r.Forget) != 0 || len(r.Retired) != 1 || r.Retired[0] != conf.Chunk {
		t.Errorf("registered: %+v", r)
	}
	if err := lost.beat(); err != nil {
		t.Error(err)
	}
}

// TestServerExited says that a certified exit is enough, and that a quick restart costs nothing.
func TestServerExited(t *testing.T) {
	c := newTestCluster(t, 1)
	k := c.client(dataplane.RoleClient, 7, nil)
	sup := c.client(dataplane.RoleSupervisor, 8, nil)
	servers := map[dataplane.CSID]*testCS{}
	stops := map[dataplane.CSID]func(){}
	for n := range byte(3) {
		s := c.newCS(n + 1)
		servers[s.id] = s
		stops[s.id] = s.keepAlive()
	}
	conf := oneChunk(t, k)
	head, next := servers[conf.Members[0].CS], servers[conf.Members[1].CS]
	defer func() { stops[next.id](); stops[conf.Members[2].CS]() }()
	next.must(control.OpReconfigure, &control.ReconfigureReq{Chunk: conf.Chunk, Epoch: 1,
		SetCreated: true}, nil)
	// A new leader excludes nobody for a lease time, which must pass in fact.
	time.Sleep(leaseOut)
	stops[head.id]()

	// It exits and is back before the grace is over: with its chunk nothing happens.
	gone := &testCS{client: c.client(dataplane.RoleCS, 2000, nil)}
	gone.reg = control.RegisterCSReq{Disk: [16]byte{77}, Boot: 1, Addr: "127.0.0.1:9", Host: "x",
		Path: "/x", Capacity: 1, Instance: 5}
	gone.register()
	sup.must(control.OpExited, &control.ExitedReq{CS: gone.id, Boot: 1}, nil)
	if err := gone.beat(); dataplane.KindOf(err) != dataplane.NotFound {
		t.Errorf("heartbeat of an exited process: %v", err)
	}
	sup.must(control.OpExited, &control.ExitedReq{CS: gone.id, Boot: 99}, nil) // another process

	// A process that restarts without the chunk has lost data: it is taken from it.
	head.reg.Boot++
	head.reg.Instance++
	old := head.reg.Instance - 1
	head.register()
	push := <-next.settle
	if len(push.Lost) != 1 || push.Lost[0] != head.id || push.Chunks[0].Chunk != conf.Chunk {
		t.Fatalf("settle %+v", push)
	}
	next.must(control.OpReconfigure, &control.ReconfigureReq{Chunk: conf.Chunk, Epoch: 1,
		Members: []dataplane.CSID{next.id, conf.Members[2].CS}}, nil)
	eventually(t, "a heartbeat that is told to register again", func() bool {
		return dataplane.KindOf(head.beat()) == dataplane.NotFound
	})
	head.register()
	// The old process, or a copy of its directory, is refused.
	clone := *head
	clone.reg.Instance, clone.reg.Boot = old, head.reg.Boot-1
	clone.client = c.client(dataplane.RoleCS, 3000, nil)
	clone.wantKind(dataplane.NotReady, control.OpRegisterCS, &clone.reg) // the real one lives
	if err := clone.beat(); dataplane.KindOf(err) != dataplane.Conflict {
		t.Errorf("heartbeat of the older process: %v", err)
	}
}
