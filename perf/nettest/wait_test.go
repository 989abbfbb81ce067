package nettest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// waitFor is how long a writer that can't go on is watched.
const waitFor = 3 * time.Second

// TestWritersWait: below the minimum of copies, above the capacity limit and out of space, writers
// wait without an error and go on by themselves, what can be read is read meanwhile, and stat and
// an event say what is going on.
func TestWritersWait(t *testing.T) {
	needs(t)
	c := newCluster(t, "wait", 1, 3, 2)
	mnt := c.mount(c.clients[1])
	files := c.registerFiles(mnt)
	w, r := c.writer(0, files[0]), c.writer(1, files[1])
	wrote := func(k *child, tag, n int) {
		t.Helper()
		k.hear(fmt.Sprint("wrote ", n, " <nil>"))
	}
	// What is read later is written first: a head that is killed in the millisecond before its
	// commit mark has reached the others leaves reads waiting until it is excluded.
	r.tell("write 9")
	wrote(r, 9, fenceBlocks)
	w.tell("write 1")
	wrote(w, 1, fenceBlocks)
	waits := func(reason, event string) {
		t.Helper()
		c.await(20*time.Second, "stat says why writers wait", func() error { return c.says(reason) })
		c.await(20*time.Second, "an event says it", func() error { return c.hasEvent(event) })
		select {
		case line := <-w.lines:
			t.Fatalf("the writer doesn't wait: %q", line)
		case <-time.After(waitFor):
		}
	}
	reads := func() {
		t.Helper()
		begun := time.Now()
		r.tell("read")
		if have := r.hear("have"); have != "[9]" {
			t.Fatalf("read %s", have)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("reading took %v", took)
		}
	}

	c.must(errors.Join(c.cs[1].kill(), c.cs[2].kill()))
	w.tell("write 2")
	waits("fewer members than needed to write", "below-minimum")
	reads()
	c.start(c.cs[1])
	c.start(c.cs[2])
	wrote(w, 2, fenceBlocks)
	c.await(healWithin, "the cluster is healthy", c.up)

	c.pstorage("set-config", "capacity.limit=64M")
	const filled = 16 // more than were allocated ahead
	w.tell(fmt.Sprint("fill ", filled))
	waits("capacity.limit", "no-space")
	reads()
	c.pstorage("set-config", "capacity.limit=")
	wrote(w, 0, filled)

	// Two less than would fit without the other file, which has four chunks at least and is then
	// removed: how many were allocated ahead doesn't matter.
	n := c.size() - 2
	w.tell(fmt.Sprint("fill ", n))
	waits("servers with room", "no-space")
	reads()
	r.tell("quit")
	r.hear("bye")
	c.must(os.Remove(filepath.Join(mnt, filepath.Base(files[1]))))
	wrote(w, 0, n)
}

// says looks for a reason in what stat says.
func (c *testCluster) says(reason string) error {
	doc, err := c.stat()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(doc.Reasons, func(s string) bool {
		return strings.Contains(strings.ToLower(s), reason)
	}) {
		return fmt.Errorf("%s, %q", doc.Health, doc.Reasons)
	}
	return nil
}

// hasEvent looks for an event.
func (c *testCluster) hasEvent(code string) error {
	n := c.clients[0]
	out, err := output(n, c.command(n, "pstorage", "-c", clusterName, "get-event", "-o", "json"))
	if err != nil {
		return err
	}
	var doc control.EventsDoc
	if err := json.Unmarshal(out, &doc); err != nil {
		return err
	}
	for _, e := range doc.Events {
		if e.Code == code {
			return nil
		}
	}
	return fmt.Errorf("no event %s among %d", code, len(doc.Events))
}

// size is how many chunks fit on each server.
func (c *testCluster) size() int {
	c.t.Helper()
	doc, err := c.stat()
	c.must(err)
	size := 1 << 20
	for _, cs := range doc.CS {
		size = min(size, int(cs.Capacity)/dataplane.ChunkSize)
	}
	return size
}
