package main

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"pstorage/dataplane"
	dpclient "pstorage/dataplane/client"
	"pstorage/dataplane/control"
	"pstorage/uring"
	"pstorage/uring/simloop"
)

// client is one client machine: the real engine, and a workload. It is the only writer of the file
// with its number, and reads all files.
type client struct {
	w     *world
	index int
	ip    string
	drift int64
	rng   *rand.Rand
	boot  int

	// Of the process.
	env     *simloop.Env
	mem     pools
	eng     *dpclient.Engine
	peer    uint64
	handles []*dpclient.File
	running int
	idle    uring.Timer
}

func newClient(w *world, index int) *client {
	c := &client{w: w, index: index, ip: fmt.Sprintf("10.0.2.%d", index+1),
		rng:   w.sim.Rand(fmt.Sprint("load", index)),
		drift: w.sc.drift(w.sim.Rand(fmt.Sprint("client drift", index)))}
	c.newProcess()
	return c
}

func (c *client) newProcess() {
	w := c.w
	c.boot++
	c.env = w.sim.NewEnvOptions(fmt.Sprintf("client%d.%d", c.index+1, c.boot),
		simloop.EnvOptions{DriftPPM: c.drift})
	pool, err := c.mem.pool(32 << 20)
	if err != nil {
		panic(err)
	}
	c.peer = c.env.Rand() | 1
	var meta dpclient.Metadata = &clientMeta{c}
	if w.sc.leases {
		meta = &leasedMeta{clientMeta{c}}
	}
	c.eng = dpclient.NewEngine(dpclient.Options{Env: c.env, Net: w.net.Node(c.env, c.ip),
		Pool: pool, Cred: cred(dataplane.RoleClient, c.peer), Meta: meta, MaxParts: 128,
		PeerParts: w.sc.room, Log: w.log.With("client", c.index+1)})
	c.handles = nil
	for _, f := range w.files {
		h, err := c.eng.OpenFile(&control.Attr{File: f.id, Type: control.TypeFile, Size: fileSize,
			Policy: control.Policy{AckMemory: w.sc.memory}},
			fmt.Sprint("f", f.id))
		if err != nil {
			panic(err)
		}
		c.handles = append(c.handles, h)
	}
	c.running = 0
	c.idle = uring.Timer{Fire: c.more}
	c.env.Do(func() { c.more() })
}

// crash ends the process; what it was writing may or may not happen, at any time.
func (c *client) crash() {
	c.env.Kill()
	c.mem.free()
	c.w.files[c.index].abandon()
}

func (c *client) freeAll() {
	if !c.env.Dead() {
		c.env.Kill()
		c.mem.free()
	}
}

// more keeps some operations under way.
func (c *client) more() {
	if c.w.stopLoad {
		return
	}
	for range 1 + c.rng.IntN(c.w.sc.depth) {
		if c.running >= c.w.sc.depth || !c.one() {
			break
		}
	}
	if !c.idle.Armed() {
		c.env.Arm(&c.idle, c.rng.Int64N(2*c.w.sc.think))
	}
}

// one starts an operation. It is false if the one chosen can't be started now.
func (c *client) one() bool {
	sc := &c.w.sc
	if c.rng.IntN(100) < sc.reads {
		f := c.w.files[c.rng.IntN(len(c.w.files))]
		off, n := c.pick(f)
		c.read(f, off, n)
		return true
	}
	f := c.w.files[c.index]
	off, n := c.pick(f)
	if !f.free(off, n) {
		return false
	}
	c.write(f, off, n, sc.zeros > 0 && !f.whole && c.rng.IntN(100) < sc.zeros)
	return true
}

// pick chooses a range within one of the file's areas.
func (c *client) pick(f *file) (off int64, n int) {
	sc := &c.w.sc
	size := sc.sizes[c.rng.IntN(len(sc.sizes))]
	a := c.w.areas[0]
	if c.rng.IntN(4) == 0 {
		a = c.w.areas[1]
	}
	if len(c.w.areas) > 2 {
		a = c.w.areas[c.rng.IntN(len(c.w.areas))]
	}
	unit := 4096
	if !f.whole && !sc.memory {
		unit = 512
	}
	most := min(size, int(a.length))
	n = most
	if c.rng.IntN(2) == 0 {
		n = c.rng.IntN(most) + 1
	}
	n = (n + unit - 1) / unit * unit
	if n > 4096 && c.rng.IntN(2) == 0 {
		unit = 4096 // aligned, mostly
		n &^= 4095
	}
	room := (a.length - int64(n)) / int64(unit)
	off = a.off + c.rng.Int64N(room+1)*int64(unit)
	return off, n
}

// submit starts an op and keeps the account.
func (c *client) submit(op *dpclient.Op, done func()) {
	c.running++
	c.w.ops++
	op.Done = func(op *dpclient.Op) {
		c.running--
		defer c.w.recycle(op)
		if op.Err != nil {
			c.w.violate("client %d: %v at %d (%d bytes): %v", c.index+1, op.Kind, op.Offset,
				len(op.Buf), op.Err)
		} else {
			done()
		}
	}
	c.eng.Submit(op)
}

// write writes n bytes of a new tag, or zeros.
func (c *client) write(f *file, off int64, n int, zero bool) {
	tag := uint64(0)
	op := &dpclient.Op{Kind: dpclient.Zero, File: c.handles[f.index], Offset: off, Length: int64(n)}
	if !zero {
		tag = f.newTag()
		buf := c.w.bufs.Get(n)
		for i := 0; i < n; i += 8 {
			binary.LittleEndian.PutUint64(buf[i:], tag)
		}
		op = &dpclient.Op{Kind: dpclient.Write, File: c.handles[f.index], Offset: off, Buf: buf}
	}
	if c.w.sc.memory && !zero {
		op.FUA = c.rng.IntN(8) == 0
	}
	c.w.trace("client %d writes %x at %d +%d", c.index+1, tag, off, n)
	f.invoke(off, n, tag)
	c.submit(op, func() {
		c.w.sim.Note(tag)
		c.w.trace("client %d has written %x", c.index+1, tag)
		f.acked(off, n)
		if op.FUA {
			f.wroteDurably(off, n)
		}
		if c.rng.IntN(c.w.sc.flushes) == 0 {
			c.flush(f)
		}
		if c.rng.IntN(4) == 0 && !c.w.stopLoad {
			c.read(f, off, n) // while only this client and the head know that it is committed
		}
	})
}

// read reads a range and has every block checked.
func (c *client) read(f *file, off int64, n int) {
	r := f.beginRead(off, n)
	op := &dpclient.Op{Kind: dpclient.Read, File: c.handles[f.index], Offset: off,
		Buf: c.w.bufs.Get(n)}
	c.submit(op, func() { r.returned(op.Buf[:op.N], fmt.Sprintf("client %d", c.index+1)) })
}

// pushed takes what the metadata servers tell of changed chunk maps.
func (c *client) pushed(op dataplane.Opcode, payload []byte) {
	c.env.Post(func() {
		var p control.MapPush
		if err := control.Unmarshal(payload, &p); err != nil || op != control.OpMapChanged {
			panic(fmt.Sprint("push to a client: ", control.OpName(op), " ", err))
		}
		for _, h := range c.handles {
			if h.ID() == p.File {
				c.eng.MapChanged(h, &p)
			}
		}
	})
}

// clientMeta is the engine's way to the metadata servers.
type clientMeta struct{ c *client }

func (m *clientMeta) ask(op dataplane.Opcode, req any, done func([]byte, error)) {
	c := m.c
	c.w.mds.ask(c.env, c.ip, dataplane.RoleClient, c.peer, op, req, mdsTimeout, false, done)
}

func askFor[T any](m *clientMeta, op dataplane.Opcode, req any, cb func(*T, error)) {
	m.ask(op, req, func(p []byte, err error) {
		reply := new(T)
		if err == nil {
			err = control.Unmarshal(p, reply)
		}
		if err != nil {
			reply = nil
		}
		cb(reply, err)
	})
}

// GetMap implements client.Metadata.
func (m *clientMeta) GetMap(file dataplane.FileID, first, count uint32,
	cb func(*control.MapReply, error)) {
	askFor(m, control.OpGetMap, &control.MapReq{File: file, First: first, Count: count,
		Watch: true}, cb)
}

// Allocate implements client.Metadata.
func (m *clientMeta) Allocate(file dataplane.FileID, first, count uint32,
	cb func(*control.MapReply, error)) {
	askFor(m, control.OpAllocate, &control.MapReq{File: file, First: first, Count: count,
		Watch: true}, cb)
}

// Grow implements client.Metadata.
func (m *clientMeta) Grow(file dataplane.FileID, size, token uint64,
	cb func(*control.Attr, error)) {
	askFor(m, control.OpGrow, &control.GrowReq{File: file, Size: size, Token: token}, cb)
}

// GetAttr implements client.Metadata.
func (m *clientMeta) GetAttr(file dataplane.FileID, cb func(*control.Attr, error)) {
	askFor(m, control.OpGetAttr, &control.FileReq{File: file}, cb)
}

// Unreachable implements client.Metadata.
func (m *clientMeta) Unreachable(cs dataplane.CSID, chunks []control.HeldChunk) {
	m.ask(control.OpUnreachable, &control.UnreachableReq{CS: cs, Chunks: chunks},
		func([]byte, error) {})
}

// makeFile makes the file of client i and its policy.
func (w *world) makeFile(i int) {
	env := w.sim.NewEnv("admin")
	f := newFile(w, i)
	step := 0
	ask := func(op dataplane.Opcode, req any, done func(*control.Attr)) {
		w.mds.ask(env, "10.0.3.1", dataplane.RoleClient, 1, op, req, time.Minute, false,
			func(p []byte, err error) {
				var a control.Attr
				if err == nil {
					err = control.Unmarshal(p, &a)
				}
				if err != nil {
					panic(err)
				}
				done(&a)
			})
	}
	ask(control.OpCreate, &control.CreateReq{Parent: dataplane.RootID, Name: fmt.Sprint("f", i),
		Type: control.TypeFile, Mode: 0o644}, func(a *control.Attr) {
		f.id = a.File
		pol := a.Policy
		pol.Replicas, pol.Minimum, pol.AckMemory = w.sc.replicas, w.sc.minimum, w.sc.memory
		ask(control.OpSetAttr, &control.SetAttrReq{File: f.id, Mask: control.SetPolicy, Policy: pol},
			func(*control.Attr) {
				ask(control.OpGrow, &control.GrowReq{File: f.id, Size: fileSize},
					func(*control.Attr) { step++ })
			})
	})
	w.wait(func() bool { return step == 1 }, 60*sec, "file made")
	env.Kill()
	w.files = append(w.files, f)
}

// recycle takes back the memory of an operation that is done.
func (w *world) recycle(op *dpclient.Op) {
	if len(op.Buf) > 0 {
		w.bufs.Put(op.Buf)
		op.Buf = nil
	}
}
