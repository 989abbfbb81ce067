package main

import (
	"encoding/json"
	"math/rand/v2"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// drains removes chunk servers while everything else goes on, and calls some removals off, in a
// part of the runs. It has its own stream of random numbers, so the other runs are as without it.
type drains struct {
	w    *world
	rng  *rand.Rand
	left int // servers that may still go
	req  uint64
	open []*csNode // asked to go
}

// drainPeer names the administrator.
const drainPeer = 1 << 40

func (w *world) startDrains() {
	d := &drains{w: w, rng: w.sim.Rand("drains"), left: len(w.cs) - int(w.sc.replicas)}
	if d.left > 0 && d.rng.IntN(3) == 0 && w.liar == nil {
		d.next()
	}
}

func (d *drains) next() {
	d.w.sim.After(100*ms+int64(d.rng.ExpFloat64()*float64(sec)), func() {
		if d.w.calm {
			if d.rng.IntN(2) == 0 { // otherwise they end while all is well
				d.cancel(d.open)
			}
			return
		}
		if n := d.w.cs[d.rng.IntN(len(d.w.cs))]; d.left > 0 && n.id != 0 && !n.gone && !n.drained {
			d.left--
			n.drained = true
			d.open = append(d.open, n)
			d.ask(n, false, func(error) {})
			d.w.did(sceneDrain)
			d.w.trace("cs %d is to be drained", n.id)
		} else if len(d.open) > 0 && d.rng.IntN(3) == 0 {
			d.cancel(d.open[len(d.open)-1:])
		}
		d.next()
	})
}

// cancel calls removals off, until the metadata servers have said something about each.
func (d *drains) cancel(list []*csNode) {
	for _, n := range list {
		if n.gone {
			continue
		}
		d.ask(n, true, func(err error) {
			switch k := dataplane.KindOf(err); {
			case err == nil:
				n.drained = false
				d.w.trace("cs %d isn't drained after all", n.id)
			case k != dataplane.Invalid: // it is gone, or it wasn't being drained
				d.w.sim.After(100*ms, func() { d.cancel([]*csNode{n}) })
			}
		})
	}
}

func (d *drains) ask(n *csNode, cancel bool, done func(error)) {
	args, err := json.Marshal(control.RmCSArgs{CS: []uint32{uint32(n.id)}, Cancel: cancel})
	if err != nil {
		panic(err)
	}
	if !d.w.mds.sim.Leading() {
		done(dataplane.E("drain", dataplane.NotLeader, nil))
		return
	}
	d.req++
	d.w.mds.sim.Handle(dataplane.RoleAdmin, drainPeer, d.req, control.OpAdmin,
		&control.AdminReq{Command: control.AdminRmCS, Args: args},
		func(_ []byte, err error) { done(err) })
}

// removed notes that the metadata servers dropped this server when it was empty.
func (n *csNode) removed() {
	n.w.trace("cs %d was removed from the cluster", n.id)
	n.shard.SetLease(0)
	n.gone = true
	n.w.sim.After(0, func() { n.kill(false) })
}
