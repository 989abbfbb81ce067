package mds

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// damages are what may be wrong with the directory of a server whose log has an entry that holds
// the text.
var damages = map[string]func(t *testing.T, dir, text string){
	"log entry": func(t *testing.T, dir, text string) {
		logs, err := filepath.Glob(filepath.Join(dir, raftDir, logDir, "*.log"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range logs {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if at := bytes.Index(b, []byte(text)); at >= 0 {
				damage(t, path, at)
				return
			}
		}
		t.Fatal("no log has the entry")
	},
	"snapshot": func(t *testing.T, dir, _ string) {
		list := snapshots(t, dir)
		if len(list) == 0 {
			t.Fatal("no snapshot")
		}
		for _, path := range list {
			damage(t, path, -1)
		}
	},
	"term and vote": func(t *testing.T, dir, _ string) {
		damage(t, filepath.Join(dir, raftDir, stableFile), -1)
	},
	"term and vote, lost": func(t *testing.T, dir, _ string) {
		if err := os.Remove(filepath.Join(dir, raftDir, stableFile)); err != nil {
			t.Fatal(err)
		}
	},
	"watermark": func(t *testing.T, dir, _ string) {
		damage(t, filepath.Join(dir, raftDir, logDir, markFile), 10)
	},
}

// TestDamagedServerBeginsAnew damages one of three servers. It doesn't serve what it has; it gets
// a new number and everything from the others, and votes again: then another one can be lost.
func TestDamagedServerBeginsAnew(t *testing.T) {
	for name, do := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := prepareTestCluster(t, 3)
			c.tune = eagerSnapshots
			for i := range 3 {
				c.start(i)
			}
			k := c.client(dataplane.RoleClient, 7, nil)
			admin := c.client(dataplane.RoleAdmin, 8, nil)
			for i := range 100 {
				k.create(dataplane.RootID, fmt.Sprint("file", i), control.TypeFile)
			}
			hurt := (c.leader() + 1) % 3
			eventually(t, "a snapshot", func() bool { return len(snapshots(t, c.dirs[hurt])) > 0 })
			k.create(dataplane.RootID, "last-of-all", control.TypeFile)
			eventually(t, "that it has everything", func() bool {
				f := c.nodes[hurt].r.fsm
				f.mu.RLock()
				defer f.mu.RUnlock()
				return f.s.files.get(dataplane.RootID).dir.find("last-of-all") != 0
			})
			c.stop(hurt)
			do(t, c.dirs[hurt], "last-of-all")

			// Without others that it knows of it refuses.
			if err := c.runOnce(hurt); dataplane.KindOf(err) != dataplane.BadCRC {
				t.Fatalf("alone: %v", err)
			}
			c.servers = func() []string { return c.addrs }
			c.start(hurt)
			eventually(t, "its vote", func() bool {
				var s control.ServicesDoc
				admin.admin(control.AdminListServices, nil, &s)
				for _, m := range s.MDS {
					if m.Addr == c.addrs[hurt] {
						// The number after the last, or after one that a lost answer took.
						return m.ID >= "4" && m.Voter && len(s.MDS) == 3
					}
				}
				return false
			})
			if _, err := os.Stat(filepath.Join(c.dirs[hurt], damagedDir)); err != nil {
				t.Error("what was damaged wasn't kept: ", err)
			}
			c.stop((hurt + 1) % 3) // its vote counts now
			k.create(dataplane.RootID, "afterwards", control.TypeFile)
			c.stop(hurt)
			c.start(hurt) // as its new self
			k.create(dataplane.RootID, "at last", control.TypeFile)
			var list control.ReadDirReply
			k.must(control.OpReadDir, &control.ReadDirReq{Dir: dataplane.RootID}, &list)
			if len(list.Entries) != 103 {
				t.Errorf("%d files, want 103", len(list.Entries))
			}
		})
	}
}

// TestTwoDamagedServersWait damages two of three: nobody can say what was acknowledged, so nothing
// is served, and nothing is thrown away.
func TestTwoDamagedServersWait(t *testing.T) {
	c := newTestCluster(t, 3)
	k := c.client(dataplane.RoleClient, 7, nil)
	k.create(dataplane.RootID, "some-name-to-find", control.TypeFile)
	for i := range 3 {
		c.stop(i)
	}
	c.start(2)
	damages["term and vote"](t, c.dirs[0], "")
	damages["term and vote"](t, c.dirs[1], "")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := Run(ctx, Options{Dir: c.dirs[0], Cred: c.cred(dataplane.RoleMDS, 1), Log: testLog(),
		Servers: func() []string { return c.addrs }})
	if err == nil {
		t.Error("a damaged server served")
	}
	if _, err := os.Stat(filepath.Join(c.dirs[0], damagedDir)); err == nil {
		t.Error("its files were put aside with no majority to replace them")
	}
}

// TestNewerVersionIsNoDamage says that a server which meets a snapshot of a newer version keeps it,
// also when there are others to get everything from.
func TestNewerVersionIsNoDamage(t *testing.T) {
	c := prepareTestCluster(t, 1)
	s := richState(t)
	defer s.Close()
	b := dump(t, s)
	n := binary.LittleEndian.Uint32(b[4:])
	b[8+len(snapMagic)] = snapVersion + 1
	crc := dataplane.CRCAdd(dataplane.CRC(make([]byte, 4)), b[:8+n])
	binary.LittleEndian.PutUint32(b[8+n:], crc)
	snaps, err := raft.NewFileSnapshotStoreWithLogger(filepath.Join(c.dirs[0], raftDir), 2,
		newHCLog(testLog()))
	if err != nil {
		t.Fatal(err)
	}
	_, trans := raft.NewInmemTransport("127.0.0.1:1")
	sink, err := snaps.Create(raft.SnapshotVersionMax, 1, 1, raft.Configuration{}, 1, trans)
	if err == nil {
		_, err = sink.Write(b)
	}
	if err == nil {
		err = sink.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = Run(ctx, Options{Dir: c.dirs[0], Cred: c.cred(dataplane.RoleMDS, 1), Log: testLog(),
		Servers: func() []string { return []string{"127.0.0.1:1"} }})
	if dataplane.KindOf(err) != dataplane.NotSupported {
		t.Errorf("a newer snapshot: %v", err)
	}
}

// TestTwoPlacesAtATime: the leader loses its term between the removal of two damaged servers of
// five and the addition of their successors. Each gets its place from the next one all the same,
// and nobody else does.
func TestTwoPlacesAtATime(t *testing.T) {
	c := newTestCluster(t, 5)
	lead := c.leader()
	s := c.nodes[lead]
	k := &call{server: s, l: s.lead.Load(), ctx: t.Context(),
		peer: control.SimPeer(session.Peer{Role: dataplane.RoleMDS, ID: 9}, nil)}
	var hurt []*control.MDSReadyReq
	for i := range c.addrs {
		if i != lead && len(hurt) < 2 {
			c.stop(i)
			hurt = append(hurt, &control.MDSReadyReq{Node: uint32(i + 1), Damaged: c.addrs[i]})
		}
	}
	for _, req := range hurt {
		if err := k.takeOut(req); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := k.replaceDamaged(&control.MDSReadyReq{Node: hurt[0].Node,
		Damaged: hurt[1].Damaged}); dataplane.KindOf(err) != dataplane.NotFound {
		t.Errorf("one at another address: %v", err)
	}
	for i, req := range hurt {
		got, err := k.replaceDamaged(req)
		if err != nil || got.(*control.MDSReadyReply).Node != uint32(6+i) {
			t.Errorf("%+v: %+v, %v", req, got, err)
		}
		// The answer may be lost. Once the new number is in use the old one is worth nothing.
		again, err := k.replaceDamaged(req)
		if err != nil || again.(*control.MDSReadyReply).Node != uint32(6+i) {
			t.Errorf("%+v asks again: %+v, %v", req, again, err)
		}
	}
	for i, req := range hurt {
		got, err := k.mdsReady(&control.MDSReadyReq{Node: uint32(6 + i), Applied: 1 << 40})
		if err != nil || !got.(*control.MDSReadyReply).Voter {
			t.Errorf("server %d, which has caught up: %+v, %v", 6+i, got, err)
		}
		if _, err := k.replaceDamaged(req); dataplane.KindOf(err) != dataplane.NotFound {
			t.Errorf("%+v after its successor got a vote: %v", req, err)
		}
	}
}

// TestPutAside: what was damaged is kept, the last of it, and an empty log is in its place; also
// after a crash that left something behind.
func TestPutAside(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"first", "second"} {
		for path, b := range map[string]string{filepath.Join(raftDir, stableFile): text,
			filepath.Join(anewDir, stableFile): "of a crash"} {
			if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o700),
				os.WriteFile(filepath.Join(dir, path), []byte(b), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if err := putAside(dir); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, damagedDir, stableFile))
		if err != nil || string(b) != text {
			t.Errorf("%q, %v is kept, not %q", b, err, text)
		}
		for path, want := range map[string]int{raftDir: 1, filepath.Join(raftDir, logDir): 0, ".": 2} {
			if list, err := os.ReadDir(filepath.Join(dir, path)); err != nil || len(list) != want {
				t.Errorf("%s: %v, %v", path, list, err)
			}
		}
	}
}
