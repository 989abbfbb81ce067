package client

import (
	"context"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// This file takes what the metadata servers tell of changed chunk maps by themselves, see
// control.MapPush. Without it the client finds out when a chunk server refuses what an old map led
// to, or doesn't answer; with it a file that is idle meanwhile goes on without that.

// MapChanged takes over changed members of chunks that the engine knows. It is called on the
// engine's thread. Pushes may come late, twice or not at all.
func (e *Engine) MapChanged(f *File, p *control.MapPush) {
	if e.closed || p.File != f.id || !p.Valid() {
		return
	}
	e.learnServers(p.Servers)
	for i := range p.Chunks {
		m := &p.Chunks[i]
		ent := f.known(m.Index)
		if ent == nil || ent.state != present || ent.chunk != m.Chunk || ent.epoch >= m.Epoch {
			continue
		}
		ent.epoch, ent.acked = m.Epoch, 0
		ent.n = uint8(copy(ent.members[:], m.Members))
		e.stats.MapPushes++
	}
}

// known returns the entry of a chunk, or nil if nothing is known of any near it.
func (f *File) known(index uint32) *entry {
	i := int(index / pageChunks)
	if i >= len(f.pages) || f.pages[i] == nil {
		return nil
	}
	return &f.pages[i].entries[index%pageChunks]
}

// pushed takes a message that the metadata servers sent by themselves.
func (c *Client) pushed(op dataplane.Opcode, payload []byte) {
	if op != control.OpMapChanged {
		return // of a later version, and no answer is expected
	}
	p := new(control.MapPush)
	if err := control.Unmarshal(payload, p); err != nil {
		c.log.Warn("a message about a changed chunk map isn't understood", "err", err)
		return
	}
	c.mu.Lock()
	f := c.files[p.File]
	c.mu.Unlock()
	if f != nil {
		c.loop.Post(func() { c.eng.MapChanged(f, p) })
	}
}

// watchAgain asks over a new connection to be told of changes of the files that are open.
func (c *Client) watchAgain() {
	req := &control.WatchMapsReq{}
	c.mu.Lock()
	for id := range c.files {
		if req.Files = append(req.Files, id); len(req.Files) == control.MaxWatched {
			break
		}
	}
	c.mu.Unlock()
	if len(req.Files) == 0 {
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(c.ctx, reportTime)
		defer cancel()
		if err := c.ctl.Call(ctx, control.OpWatchMaps, req, nil); err != nil {
			c.log.Debug("changed chunk maps won't be told", "err", err)
		}
	}()
}
