package client

import (
	"bytes"
	"context"
	"testing"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// TestIdleFileLearnsOfExclusion takes a member out of a chunk that a client knows and doesn't use:
// the client has the new map before it asks for anything or meets an error. Then a leader that
// knows nothing of the client is told anew what it watches.
func TestIdleFileLearnsOfExclusion(t *testing.T) {
	c := newCluster(t, 3)
	f := c.create("f")
	defer f.Close()
	data := bytes.Repeat([]byte{7}, 8192)
	_, err := f.WriteAt(data, 0)
	check(t, err)
	var was, now entry
	look := func(e *entry) func() { return func() { e0, _ := f.entry(0); *e = *e0 } }
	check(t, c.client.onLoop(look(&was)))
	before := c.client.Stats()

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	lost := was.members[2]
	c.exclude(ctx, &was)
	for c.client.Stats().MapPushes == before.MapPushes {
		if ctx.Err() != nil {
			t.Fatal("the client wasn't told")
		}
		time.Sleep(time.Millisecond)
	}
	check(t, c.client.onLoop(look(&now)))
	after := c.client.Stats()
	if now.chunk != was.chunk || now.epoch != was.epoch+1 || now.n != 2 ||
		now.members[0] == lost || now.members[1] == lost {
		t.Errorf("chunk %v, epoch %d, %d members %v without %d", now.chunk, now.epoch, now.n,
			now.members[:now.n], lost)
	}
	if after.MapFetches != before.MapFetches || after.Parts != before.Parts ||
		after.Failovers != before.Failovers || after.Retries != before.Retries {
		t.Errorf("not idle: %+v, then %+v", before, after)
	}
	got := make([]byte, len(data))
	_, err = f.ReadAt(got, 0)
	check(t, err)
	if !bytes.Equal(got, data) || c.client.Stats().MapFetches != before.MapFetches {
		t.Errorf("read afterwards: %v, %+v", bytes.Equal(got, data), c.client.Stats())
	}
}

// exclude takes the last of three members out of a chunk, as a settling would.
func (c *cluster) exclude(ctx context.Context, ent *entry) {
	c.t.Helper()
	ask := func(role dataplane.Role, op dataplane.Opcode, req any) error {
		ctl, err := control.Dial(ctx, control.Options{Cred: c.as(role, 99),
			Addrs: control.FixedAddrs(c.addr), Log: c.quiet})
		if err != nil {
			return err
		}
		defer ctl.Close()
		return ctl.Call(ctx, op, req, nil)
	}
	check(c.t, ask(dataplane.RoleSupervisor, control.OpExited,
		&control.ExitedReq{CS: ent.members[2], Boot: 1, Planned: true}))
	for {
		err := ask(dataplane.RoleCS, control.OpReconfigure, &control.ReconfigureReq{
			Chunk: ent.chunk, Epoch: ent.epoch, Members: ent.members[:2]})
		if dataplane.KindOf(err) != dataplane.NotReady {
			check(c.t, err)
			return
		}
	}
}

// mapPushOf is a push that fits what the world's MDS would say of a chunk.
func mapPushOf(f *File, w *world, index uint32) *control.MapPush {
	id := w.meta.files[f.id].chunks[index]
	ch := w.chunks[id]
	p := &control.MapPush{File: f.id, Chunks: []control.ChunkMap{{Index: index, Chunk: id,
		Epoch: ch.epoch, Members: ch.members}}}
	for _, cs := range ch.members {
		p.Servers = append(p.Servers, control.CSAddr{CS: cs, Addr: w.cs[cs-1].addr, Live: true})
	}
	return p
}

// TestMapPushesThatMeanNothing gives the engine pushes that are late, of another chunk, of a chunk
// that isn't known, or make no sense.
func TestMapPushesThatMeanNothing(t *testing.T) {
	w := newWorld(t, 1, 3)
	defer w.pool.Close()
	f := w.file(1 << 30)
	w.write(f, 0, []byte{1})
	was, _ := f.entry(0)
	known := *was
	for what, change := range map[string]func(p *control.MapPush){
		"same epoch":         func(p *control.MapPush) { p.Chunks[0].Members = []dataplane.CSID{9} },
		"older epoch":        func(p *control.MapPush) { p.Chunks[0].Epoch = known.epoch - 1 },
		"another file":       func(p *control.MapPush) { p.File++; p.Chunks[0].Epoch++ },
		"another chunk":      func(p *control.MapPush) { p.Chunks[0].Chunk++; p.Chunks[0].Epoch++ },
		"an unknown chunk":   func(p *control.MapPush) { p.Chunks[0].Index = 3; p.Chunks[0].Epoch++ },
		"far behind the end": func(p *control.MapPush) { p.Chunks[0].Index = 1<<32 - 1 },
		"no members":         func(p *control.MapPush) { p.Chunks[0].Members = nil; p.Chunks[0].Epoch++ },
		"too many members": func(p *control.MapPush) {
			p.Chunks[0].Members = make([]dataplane.CSID, dataplane.MaxReplicas+1)
			p.Chunks[0].Epoch++
		},
	} {
		p := mapPushOf(f, w, 0)
		change(p)
		w.env.Do(func() { w.eng.MapChanged(f, p) })
		if *was != known || len(f.pages) != 1 || w.eng.stats.MapPushes != 0 {
			t.Errorf("%s is taken: %+v", what, *was)
		}
	}
}

// FuzzMapChanged tells the engine anything about a file: it must not panic, and reads and writes
// must go on, by asking again if what it was told was wrong.
func FuzzMapChanged(f *testing.F) {
	const newest = 1000 // epoch of the chunk, of which the client knows an older one
	example := newWorld(f, 1, 3)
	file := example.file(1 << 20)
	example.write(file, 0, []byte{1})
	for _, epoch := range []dataplane.Epoch{2, newest} {
		p := mapPushOf(file, example, 0)
		p.Chunks[0].Epoch = epoch
		f.Add(control.Marshal(p))
		p.Chunks[0].Members = []dataplane.CSID{1 << 20, 2}
		f.Add(control.Marshal(p))
	}
	example.pool.Close()
	f.Add(control.Marshal(&control.MapPush{File: 100, Servers: []control.CSAddr{{CS: 1,
		Addr: "10.9.9.9:1"}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		p := new(control.MapPush)
		if len(b) > 4096 || control.Unmarshal(b, p) != nil {
			t.Skip("not a message")
		}
		for i := range p.Chunks {
			if p.Chunks[i].Epoch > newest {
				t.Skip("metadata servers don't tell of what they haven't committed")
			}
		}
		w := newWorld(t, 1, 3)
		defer w.pool.Close()
		file := w.file(1 << 20)
		want := w.random(20_000)
		w.write(file, 0, want)
		for _, ch := range w.chunks {
			ch.epoch = newest
		}
		w.env.Do(func() { w.eng.MapChanged(file, p) })
		if got := w.read(file, 0, len(want)); !bytes.Equal(got, want) {
			t.Fatal("the file reads wrong")
		}
		w.write(file, 0, want)
	})
}
