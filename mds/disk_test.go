package mds

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// eagerSnapshots makes raft take snapshots all the time and keep a short log.
func eagerSnapshots(c *raft.Config) {
	c.SnapshotInterval = 20 * time.Millisecond
	c.SnapshotThreshold = 32
	c.TrailingLogs = 8
}

func snapshots(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, raftDir, "snapshots", "*", "state.bin"))
	if err != nil {
		t.Fatal(err)
	}
	var done []string
	for _, s := range list {
		if !strings.Contains(s, ".tmp") {
			done = append(done, s)
		}
	}
	return done
}

// snapshotIndex reads the index from the name: term-index-time.
func snapshotIndex(t *testing.T, path string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.Split(filepath.Base(filepath.Dir(path)), "-")[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// damage changes one byte in the middle of a file.
func damage(t *testing.T, path string, at int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if at < 0 {
		at = len(b) / 2
	}
	b[at] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// runOnce runs a server that is expected to fail.
func (c *testCluster) runOnce(i int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return Run(ctx, Options{Dir: c.dirs[i], Cred: c.cred(dataplane.RoleMDS, uint64(i+1)),
		Log: testLog()})
}

// TestUnfinishedSnapshots: what a killed process has written of a snapshot takes no space for ever.
func TestUnfinishedSnapshots(t *testing.T) {
	c := newTestCluster(t, 1)
	c.stop(0)
	dir := filepath.Join(c.dirs[0], raftDir, snapshotDir, "2-81920-1795000000000"+unfinished)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "state.bin"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

// TestRestartFromSnapshot restarts from snapshot and log; then both snapshots are damaged in turn.
func TestRestartFromSnapshot(t *testing.T) {
	c := prepareTestCluster(t, 1)
	c.tune = eagerSnapshots
	c.start(0)
	k := c.client(dataplane.RoleClient, 7, nil)
	for i := range 200 {
		k.create(dataplane.RootID, fmt.Sprint(i), control.TypeFile)
	}
	eventually(t, "two snapshots", func() bool { return len(snapshots(t, c.dirs[0])) == 2 })
	for i := range 3 {
		c.stop(0)
		c.start(0)
		var list control.ReadDirReply
		k.must(control.OpReadDir, &control.ReadDirReq{Dir: dataplane.RootID}, &list)
		if len(list.Entries) != 200+i {
			t.Fatalf("%d entries", len(list.Entries))
		}
		k.create(dataplane.RootID, fmt.Sprint("more", i), control.TypeFile)
	}
	c.stop(0)
	list := snapshots(t, c.dirs[0])
	slices.SortFunc(list, func(a, b string) int { return snapshotIndex(t, a) - snapshotIndex(t, b) })
	damage(t, list[len(list)-1], -1)
	if err := c.runOnce(0); dataplane.KindOf(err) == dataplane.OK {
		t.Errorf("runs with its newest snapshot damaged")
	} else {
		t.Log(err)
	}
	damage(t, list[0], -1)
	if err := c.runOnce(0); dataplane.KindOf(err) == dataplane.OK {
		t.Errorf("runs with all snapshots damaged")
	} else {
		t.Log(err)
	}
}

// TestDamagedLog says that a damaged log entry stops the server, with a reason.
func TestDamagedLog(t *testing.T) {
	c := newTestCluster(t, 1)
	k := c.client(dataplane.RoleClient, 7, nil)
	k.create(dataplane.RootID, "some-name-to-find", control.TypeFile)
	c.stop(0)
	logs, err := filepath.Glob(filepath.Join(c.dirs[0], raftDir, logDir, "*.log"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	b, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	damage(t, logs[0], bytes.Index(b, []byte("some-name-to-find")))
	err = c.runOnce(0)
	if err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("runs with a damaged log, or says it badly: %v", err)
	}
	t.Log(err)
}

// TestCatchUpBySnapshot lets a server miss more than the log keeps.
func TestCatchUpBySnapshot(t *testing.T) {
	c := prepareTestCluster(t, 3)
	c.tune = eagerSnapshots
	for i := range 3 {
		c.start(i)
	}
	k := c.client(dataplane.RoleClient, 7, nil)
	away := (c.leader() + 1) % 3
	c.stop(away)
	for i := range 300 {
		k.create(dataplane.RootID, fmt.Sprint(i), control.TypeFile)
	}
	c.start(away)
	c.stop(c.leader())
	k.create(dataplane.RootID, "last", control.TypeFile)
	var list control.ReadDirReply
	k.must(control.OpReadDir, &control.ReadDirReq{Dir: dataplane.RootID}, &list)
	if len(list.Entries) != 301 {
		t.Errorf("%d entries, want 301", len(list.Entries))
	}
}
