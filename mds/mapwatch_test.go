package mds

import (
	"slices"
	"testing"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// checkWatch compares a mapWatch's accounts with each other.
func checkWatch(t *testing.T, w *mapWatch) {
	t.Helper()
	n := 0
	for file, list := range w.files {
		if len(list) == 0 || len(list) > maxFileWatchers {
			t.Errorf("%d watch file %d", len(list), file)
		}
		n += len(list)
	}
	m := 0
	for _, k := range w.peers {
		if len(k.files) > control.MaxWatched || len(k.changes) > maxMapChanges {
			t.Errorf("%d files, %d changes", len(k.files), len(k.changes))
		}
		m += len(k.files)
	}
	if n != w.watches || m != w.watches {
		t.Errorf("%d watches: %d by file, %d by connection", w.watches, n, m)
	}
}

func watchingPeer(id uint64) *control.Peer {
	return control.SimPeer(session.Peer{Role: dataplane.RoleClient, ID: id}, nil)
}

// TestMapWatchBounds fills what a leader remembers for clients, in all directions.
func TestMapWatchBounds(t *testing.T) {
	var w mapWatch
	one := watchingPeer(1)
	for f := range dataplane.FileID(control.MaxWatched + 10) {
		w.add(one, f+1)
		w.add(one, f+1) // twice is once
	}
	checkWatch(t, &w)
	if len(w.files[10]) != 0 || len(w.files[11]) != 1 || w.watches != control.MaxWatched {
		t.Errorf("the oldest give way: %d watches", w.watches)
	}
	const file = 5000
	for id := range uint64(maxFileWatchers + 5) {
		w.add(watchingPeer(id+2), file)
	}
	checkWatch(t, &w)
	rec := Record{ID: dataplane.NewChunkID(1, 0), File: file, Epoch: 2}
	for range maxMapChanges + 3 {
		w.changed(&rec)
	}
	checkWatch(t, &w)
	w.lost(2) // that were taken, and a peer didn't read
	want := MapWatchDoc{Watches: control.MaxWatched + maxFileWatchers, Refused: 5,
		Dropped: 3*maxFileWatchers + 2}
	if got := w.doc(); got != want || len(w.due) != maxFileWatchers {
		t.Errorf("%+v, want %+v; %d to be told", got, want, len(w.due))
	}
	for p := range w.peers {
		if p != one {
			w.gone(p)
			w.gone(p) // nothing more
			break
		}
	}
	checkWatch(t, &w)
	if news := w.take(); len(news) != maxFileWatchers-1 || len(news[0].changes) != maxMapChanges {
		t.Errorf("%d are told", len(news))
	}
	if w.take() != nil {
		t.Error("told twice")
	}
	w.gone(one)
	checkWatch(t, &w)
}

// TestMapPushed plays an exclusion and looks what clients are told: one that watches, one that
// watches by WatchMapsReq as after a new connection, and one of a version that doesn't.
func TestMapPushed(t *testing.T) {
	c := newTestCluster(t, 1)
	told := [3]chan control.MapPush{}
	watchers := [3]*client{}
	for i := range told {
		told[i] = make(chan control.MapPush, 10)
		watchers[i] = c.client(dataplane.RoleClient, uint64(7+i),
			func(op dataplane.Opcode, payload []byte) {
				var p control.MapPush
				if err := control.Unmarshal(payload, &p); err != nil || op != control.OpMapChanged {
					t.Errorf("push %s: %v", control.OpName(op), err)
				}
				told[i] <- p
			})
	}
	servers := map[dataplane.CSID]*testCS{}
	stops := map[dataplane.CSID]func(){}
	for n := range byte(3) {
		s := c.newCS(n + 1)
		servers[s.id] = s
		stops[s.id] = s.keepAlive()
	}
	conf := oneChunk(t, watchers[2])
	defer func() { stops[conf.Members[0].CS](); stops[conf.Members[1].CS]() }()
	var m control.MapReply
	watchers[0].must(control.OpGetMap, &control.MapReq{File: conf.File, Count: 1, Watch: true}, &m)
	watchers[1].must(control.OpWatchMaps, &control.WatchMapsReq{
		Files: []dataplane.FileID{conf.File, 12345}}, nil)
	watchers[1].wantKind(dataplane.Invalid, control.OpWatchMaps, &control.WatchMapsReq{
		Files: make([]dataplane.FileID, control.MaxWatched+1)})
	watchers[2].must(control.OpGetMap, &control.MapReq{File: conf.File, Count: 1}, &m)

	first, lost := servers[conf.Members[0].CS], servers[conf.Members[2].CS]
	// What doesn't change the members is told to nobody.
	first.must(control.OpReconfigure, &control.ReconfigureReq{Chunk: conf.Chunk, Epoch: 1,
		SetCreated: true}, &conf)
	stops[lost.id]()
	c.client(dataplane.RoleSupervisor, 20, nil).must(control.OpExited, &control.ExitedReq{CS: lost.id,
		Boot: lost.reg.Boot, Planned: true}, nil)
	stay := []dataplane.CSID{conf.Members[0].CS, conf.Members[1].CS}
	eventually(t, "the exclusion", func() bool {
		return first.Call(t.Context(), control.OpReconfigure, &control.ReconfigureReq{
			Chunk: conf.Chunk, Epoch: 1, Members: stay}, nil) == nil
	})
	for _, ch := range told[:2] {
		p := <-ch
		if !p.Valid() || p.File != conf.File || len(p.Chunks) != 1 || len(p.Servers) != 2 ||
			p.Chunks[0].Chunk != conf.Chunk || p.Chunks[0].Epoch != 2 ||
			!slices.Equal(p.Chunks[0].Members, stay) || p.Servers[0].Addr == "" {
			t.Errorf("told %+v", p)
		}
	}
	select {
	case p := <-told[2]:
		t.Errorf("a client that didn't ask is told %+v", p)
	default:
	}
}
