package nettest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"pstorage/perf/netlab"
)

// progressWithin is how long it may take until every client's next write and read are done.
const progressWithin = 30 * time.Second

// loader is a running client.
type loader struct {
	node        *netlab.Node
	history     string
	cmd         *exec.Cmd
	in          io.Closer
	wrote, read atomic.Int64
	diag        bytes.Buffer // what it said; to be read when it has ended
	done        chan error
}

// registerFiles makes the files that the clients use, through the mount.
func (c *testCluster) registerFiles(mnt string) []string {
	c.t.Helper()
	var names []string
	for i := range c.clients {
		name := fmt.Sprint("/registers", i+1)
		out, err := exec.Command("truncate", "-s", fmt.Sprint(int64(fileChunks)<<26),
			filepath.Join(mnt, name)).CombinedOutput()
		if err != nil {
			c.t.Fatalf("truncate: %v: %s", err, out)
		}
		names = append(names, name)
	}
	return names
}

// startLoad starts the clients.
func (c *testCluster) startLoad(files []string, seed uint64) []*loader {
	c.t.Helper()
	c.must(os.Mkdir(filepath.Join(c.dir, "history"), 0o755))
	disk := filepath.Join(c.dir, "disk")
	c.must(os.WriteFile(disk, make([]byte, diskBlocks*blockSize), 0o644))
	var all []*loader
	for i, n := range c.clients {
		l := &loader{node: n, done: make(chan error, 1),
			history: filepath.Join(c.dir, "history", n.String())}
		role, err := json.Marshal(clientRole{Etc: c.etc(n), Files: files, Own: i,
			Seed: seed + uint64(i), Disk: disk, History: l.history})
		c.must(err)
		l.cmd = exec.Command(os.Args[0])
		l.cmd.Env = append(os.Environ(), roleEnv+"="+string(role))
		l.cmd.Stderr = &l.diag
		in, err := l.cmd.StdinPipe()
		c.must(err)
		out, err := l.cmd.StdoutPipe()
		c.must(err)
		c.must(n.Start(l.cmd))
		l.in = in
		go l.follow(out)
		all = append(all, l)
	}
	return all
}

// follow reads what a client tells, until it ends.
func (l *loader) follow(out io.Reader) {
	for s := bufio.NewScanner(out); s.Scan(); {
		var w, r int64
		if n, _ := fmt.Sscan(s.Text(), &w, &r); n == 2 {
			l.wrote.Store(w)
			l.read.Store(r)
		}
	}
	l.done <- l.cmd.Wait()
}

// progress waits until every client has had something acknowledged, written and read, since now.
func (c *testCluster) progress(load []*loader) {
	c.t.Helper()
	for _, l := range load {
		w, r := l.wrote.Load(), l.read.Load()
		c.await(progressWithin, l.node.String()+" goes on", func() error {
			// Two more: the first may have been answered before we asked.
			if l.wrote.Load() < w+writers+1 || l.read.Load() < r+readers+1 {
				return fmt.Errorf("%d writes and %d reads since", l.wrote.Load()-w, l.read.Load()-r)
			}
			return nil
		})
	}
}

// finish ends the clients and returns what each of them did.
func (c *testCluster) finish(loaders []*loader) [][]event {
	c.t.Helper()
	for _, l := range loaders {
		c.must(l.in.Close())
	}
	var all [][]event
	for _, l := range loaders {
		select {
		case err := <-l.done:
			if err != nil {
				c.t.Errorf("%s: %v: %s", l.node, err, tail(l.diag.Bytes()))
				continue
			}
		case <-time.After(giveUpAfter + 10*time.Second):
			c.t.Fatalf("%s doesn't end", l.node)
		}
		events, err := load(l.history)
		c.must(err)
		all = append(all, events)
	}
	return all
}

// tail is the end of what a process said.
func tail(b []byte) []byte { return b[max(0, len(b)-4000):] }

// fioLoop runs fio with verification on a mount, again and again.
type fioLoop struct {
	stop chan struct{}
	done chan error
	runs int // complete; to be read after done
}

func (c *testCluster) startFio(n *netlab.Node, mnt string, seed uint64) *fioLoop {
	f := &fioLoop{stop: make(chan struct{}), done: make(chan error, 1)}
	go func() {
		for ; ; f.runs++ {
			select {
			case <-f.stop:
				f.done <- nil
				return
			default:
			}
			cmd := exec.Command("fio", "--name=verify", "--directory="+mnt, "--size=8m",
				"--rw=randwrite", "--bsrange=4k-256k", "--direct=1", "--ioengine=psync", "--thread",
				"--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0", "--rate=2m",
				fmt.Sprint("--randseed=", seed+uint64(f.runs)))
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			err := n.Start(cmd)
			if err == nil {
				err = cmd.Wait()
			}
			if err != nil {
				f.done <- fmt.Errorf("fio, run %d: %w: %s", f.runs, err, tail(out.Bytes()))
				return
			}
		}
	}()
	return f
}

// finish ends the loop after the run that is under way.
func (f *fioLoop) finish() error {
	close(f.stop)
	select {
	case err := <-f.done:
		if err == nil && f.runs == 0 {
			err = errors.New("fio didn't complete a single run")
		}
		return err
	case <-time.After(2 * time.Minute):
		return errors.New("fio doesn't end")
	}
}
