package main

import (
	"fmt"
	"testing"

	"pstorage/uring"
	"pstorage/uring/simloop"
)

// Attack of the clones: the power of the site is cut in the middle of writes, so that the replicas
// of a chunk have one epoch and different contents, and nobody remembers, as the client is gone,
// too. All orders in which three servers may start again, times all ways in which their logs may
// have kept a part of the writes.

// clones is one case.
type clones struct {
	kept  [3]int // by server: how many of the writes its log has
	order [3]int // in which the servers start
	gap   int64  // between two of them
	two   bool   // the writes go to two chunks in turn
}

func (c clones) String() string {
	return fmt.Sprintf("kept %v, started in order %v every %d ms, two chunks %v", c.kept, c.order,
		c.gap/ms, c.two)
}

// cloneWrites are the writes in flight: the last one to blocks of the first.
func (c *clones) writes() []area {
	list := []area{{0, 8192}, {8192, 4096}, {4096, 8192}}
	if c.two {
		second := areas[1].off + areas[1].length/2
		list = []area{{0, 8192}, {second, 8192}, {4096, 8192}, {second + 4096, 4096}}
	}
	return list
}

func cloneScenario(s *scenario) {
	*s = scenario{servers: 3, clients: 2, replicas: 3, minimum: 2, logSize: 6 << 20, align: 4096,
		depth: 8, think: sec, mortal: 1, flushes: 16, buffers: manyBuffers}
}

// run is the scene. It returns how many writes were acknowledged before the power was cut.
func (c *clones) run(w *world, acked *int) {
	writer, reader, f := w.cl[0], w.cl[1], w.files[0]
	writer.env.Do(func() {
		writer.write(f, 0, 16<<10, false)
		writer.write(f, areas[1].off, 64<<10, false)
	})
	w.wait(w.quiet, 10*sec, "first writes")
	w.sim.Run(func() bool { return false }, w.sim.Now()+20*ms)
	for i, n := range w.cs {
		batches := 0
		n.cache.Fault = func(op *uring.DiskOp) (x simloop.Fault) {
			if op.Kind == uring.DiskWriteSync {
				if batches++; batches > c.kept[i] {
					x = simloop.Fault{Lost: true, Delay: 1000 * sec}
				}
			}
			return x
		}
	}
	list := c.writes()
	for i, a := range list {
		writer.env.Do(func() { writer.write(f, a.off, int(a.length), false) })
		w.sim.Run(func() bool { return false }, w.sim.Now()+4*ms)
		*acked = i + 1 - writer.running
	}
	writer.crash()
	for i, n := range w.cs {
		n.kill(false)
		n.cache.Fault = nil
		w.sim.After(10*ms, func() { w.mds.gone(n.ip, n.instance) })
		w.sim.After(100*ms+int64(c.place(i))*c.gap, func() { n.start(true) })
	}
	end := w.sim.Now() + 200*ms + 3*c.gap
	for w.sim.Now() < end {
		if reader.running < 4 {
			reader.env.Do(func() {
				for _, a := range list {
					reader.read(f, a.off, int(a.length))
				}
			})
		}
		w.sim.Run(func() bool { return false }, w.sim.Now()+15*ms)
	}
	writer.newProcess()
}

// place is when server i starts.
func (c *clones) place(i int) int {
	for at, s := range c.order {
		if s == i {
			return at
		}
	}
	panic("no such server")
}

func (c *clones) result(seed uint64, canary string) (r result, acked int) {
	r = runSeed(config{seed: seed, canary: canary, fix: cloneScenario,
		scene: func(w *world) { c.run(w, &acked) }})
	return r, acked
}

func (c *clones) check(t *testing.T, seed uint64) {
	t.Helper()
	r, acked := c.result(seed, "")
	for _, v := range r.violations {
		t.Errorf("%v: %s", c, v)
	}
	if most := min(c.kept[0], c.kept[1], c.kept[2]); len(r.violations) == 0 && acked != most {
		t.Errorf("%v: %d writes were acknowledged, and all servers kept %d", c, acked, most)
	}
}

// TestClonesFindCanaries: the scene finds what is wrong with settling.
func TestClonesFindCanaries(t *testing.T) {
	if raced {
		t.Skip("too slow with the race detector; .ci/test runs it without")
	}
	for _, canary := range []string{"no-patches", "serve-unsettled"} {
		found := 0
		list := cloneCases(false, 60*ms)
		for i := 0; i < len(list) && found == 0; i += 5 {
			r, _ := list[i].result(uint64(i), canary)
			found = len(r.violations)
		}
		if found == 0 {
			t.Errorf("canary %s isn't found", canary)
		}
	}
}

var bootOrders = [][3]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}

// cloneCases lists all cases; gap by gap.
func cloneCases(two bool, gaps ...int64) (list []clones) {
	one := clones{two: two}
	n := len(one.writes()) + 1
	for _, gap := range gaps {
		for k := range n * n * n {
			for _, order := range bootOrders {
				list = append(list, clones{kept: [3]int{k / n / n, k / n % n, k % n}, order: order, gap: gap,
					two: two})
			}
		}
	}
	return list
}

// TestAttackOfTheClones: with a short time between two starts all servers are there before anybody
// is excluded; with a long one the last is excluded, and comes back with what nobody else has.
func TestAttackOfTheClones(t *testing.T) {
	if raced {
		t.Skip("too slow with the race detector; .ci/test runs it without")
	}
	list := cloneCases(false, 60*ms)
	every := 1
	if testing.Short() {
		every = 7 // has no divisor in common with the number of orders or prefixes
	} else {
		list = append(list, cloneCases(false, 2600*ms)...)
	}
	list = append(list, cloneCases(true, 60*ms, 2600*ms)...)
	ran := 0
	for i := 0; i < len(list) && !t.Failed(); i += every {
		list[i].check(t, uint64(i))
		ran++
	}
	t.Logf("%d of %d cases", ran, len(list))
}
