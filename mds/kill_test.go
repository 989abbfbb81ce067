package mds

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// serverEnv makes the test's binary run a metadata server instead: the JSON of a childOptions.
const serverEnv = "MDS_TEST_SERVER"

type childOptions struct {
	Dir  string
	Node testNode
	ID   uint64
}

// TestMain runs the tests, or plays a metadata server that a test can kill.
func TestMain(m *testing.M) {
	text := os.Getenv(serverEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var o childOptions
	err := json.Unmarshal([]byte(text), &o)
	if err == nil {
		// The parent's end of the pipe closes when the parent dies.
		go func() { io.Copy(io.Discard, os.Stdin); os.Exit(3) }()
		err = Run(context.Background(), Options{Dir: o.Dir, Log: testLog(),
			Cred: &session.Credentials{Cluster: o.Node.Cluster, ClusterName: o.Node.ClusterName,
				Key: o.Node.Key, Role: dataplane.RoleMDS, ID: o.ID},
			Leading: func(on bool) {
				fmt.Println(map[bool]string{true: "leading", false: "following"}[on])
			}})
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// child is a metadata server in a process of its own.
type child struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	leads atomic.Bool
	ended chan struct{}
}

func (c *testCluster) spawn(i int) *child {
	c.t.Helper()
	text, err := json.Marshal(childOptions{c.dirs[i], c.node, uint64(i + 1)})
	if err != nil {
		c.t.Fatal(err)
	}
	k := &child{cmd: exec.Command(os.Args[0]), ended: make(chan struct{})}
	k.cmd.Env = append(os.Environ(), serverEnv+"="+string(text))
	k.cmd.Stderr = os.Stderr
	k.stdin, err = k.cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := k.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		defer close(k.ended)
		var word string
		for {
			if _, err := fmt.Fscanln(out, &word); err != nil {
				break
			}
			k.leads.Store(word == "leading")
		}
		k.leads.Store(false)
		k.cmd.Wait()
	}()
	return k
}

// kill is kill -9.
func (k *child) kill() {
	k.cmd.Process.Kill()
	<-k.ended
}

// TestKillLeader kills the leader again and again while files are created. Nothing that was
// acknowledged is lost, and a new leader serves soon.
func TestKillLeader(t *testing.T) {
	kills := 2
	if long() {
		kills = 100
	}
	if n, err := strconv.Atoi(os.Getenv("PSTORAGE_KILLS")); err == nil {
		kills = n
	}
	c := prepareTestCluster(t, 3)
	children := make([]*child, 3)
	for i := range children {
		children[i] = c.spawn(i)
	}
	defer func() {
		for _, k := range children {
			k.kill()
		}
	}()
	var acked sync.Map
	var count, lastNs, worstNs atomic.Int64
	var workers sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	k := c.client(dataplane.RoleClient, 7, nil)
	k.create(dataplane.RootID, "first", control.TypeFile)
	lastNs.Store(time.Now().UnixNano())
	for w := range 4 {
		workers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("w%d-%d", w, i)
				k.create(dataplane.RootID, name, control.TypeFile)
				acked.Store(name, true)
				count.Add(1)
				now := time.Now().UnixNano()
				if stall := now - lastNs.Swap(now); stall > worstNs.Load() {
					worstNs.Store(stall)
				}
			}
		})
	}
	var elections []time.Duration
	for range kills {
		was := count.Load()
		eventually(t, "progress", func() bool { return count.Load() > was+50 })
		victim := -1
		eventually(t, "a leader", func() bool {
			for i, k := range children {
				if k.leads.Load() {
					victim = i
				}
			}
			return victim >= 0
		})
		children[victim].kill()
		killed := time.Now()
		was = count.Load()
		eventually(t, "another leader", func() bool {
			return slices.ContainsFunc(children, func(k *child) bool { return k.leads.Load() })
		})
		elections = append(elections, time.Since(killed))
		eventually(t, "progress without it", func() bool { return count.Load() > was+50 })
		children[victim] = c.spawn(victim)
	}
	cancel()
	workers.Wait()
	found := map[string]bool{}
	for after, more := "", true; more; {
		var list control.ReadDirReply
		k.must(control.OpReadDir, &control.ReadDirReq{Dir: dataplane.RootID, After: after}, &list)
		for _, e := range list.Entries {
			found[e.Name] = true
			after = e.Name
		}
		more = list.More
	}
	acked.Range(func(name, _ any) bool {
		if !found[name.(string)] {
			t.Errorf("%s was acknowledged and is lost", name)
		}
		return true
	})
	slices.Sort(elections)
	median := elections[len(elections)/2]
	t.Logf("%d files, %d kills; another leader after %v (median), %v (9 of 10), %v (longest); "+
		"longest time without progress %v", count.Load(), kills, median, elections[len(elections)*9/10],
		elections[len(elections)-1], time.Duration(worstNs.Load()))
	if long() && median > 2*time.Second { // a few, beside other tests, may take longer
		t.Error("a new leader must serve within 2 s")
	}
}

// long says whether tests may take minutes.
func long() bool { return !testing.Short() && os.Getenv("PSTORAGE_LONG") == "1" }
