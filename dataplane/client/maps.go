package client

import (
	"fmt"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// This file is the cache of chunk maps: per file, which chunks exist, their epochs and members.
// An entry is unknown, absent or present. A present entry is believed until a chunk server says
// otherwise (its epoch protects it); an absent one only if it was fetched after the operation that
// looks at it began, because another client may have made the chunk (Options.HoleTTL relaxes that).

type entryState uint8

const (
	unknown entryState = iota
	absent
	present
)

// entry is what is known of one chunk.
type entry struct {
	chunk   dataplane.ChunkID
	fetched uint64 // e.seq when the answer was asked for
	at      int64  // time of the same, ns
	epoch   dataplane.Epoch
	call    uint32 // number of the fetch or allocation that is under way for it; 0: none
	state   entryState
	dirty   bool          // in f.dirty
	lost    bool          // some of what was written since the last flush is gone
	wrote   written       // last, and may not be durable; see OpFlush
	flushed written       // the same, when the flush under way began
	acked   dataplane.Seq // highest acknowledged one of epoch, see acked.go
	proven  uint32        // the grant since which the head has answered: File.unproven
	n       uint8
	members [dataplane.MaxReplicas]dataplane.CSID
}

// written is which chunk was written to in which life: the file may have been cut since, and have
// another one there.
type written struct {
	chunk dataplane.ChunkID
	life  uint16
}

// pageChunks entries (4 GiB of file) make a page, so that a sparse file costs little.
const pageChunks = 64

type page struct {
	entries [pageChunks]entry
	wait    partList // parts whose entry has a call under way
}

// refetchAfter is how old, in ns, what is known of a chunk must be to be asked for again: many
// requests that find out at the same time that the map is old share one question.
const refetchAfter = int64(5 * time.Millisecond)

// maxAhead is how many chunks at most are allocated at once for a sequential writer.
const maxAhead = 8

// entry returns the entry of chunk index and its page, which is made if need be.
func (f *File) entry(index uint32) (*entry, *page) {
	i := int(index / pageChunks)
	for i >= len(f.pages) {
		f.pages = append(f.pages, nil)
	}
	if f.pages[i] == nil {
		f.pages[i] = new(page)
	}
	return &f.pages[i].entries[index%pageChunks], f.pages[i]
}

// mapCall is one question to the MDS.
type mapCall struct {
	file         *File
	first, count uint32
	number, gen  uint32
	seq          uint64
	at           int64
}

// newCall claims those of the chunks [first, first+count) that may be claimed.
func (f *File) newCall(first, count uint32, may func(*entry) bool) *mapCall {
	e := f.eng
	f.calls++
	if f.calls == 0 {
		f.calls++
	}
	e.seq++
	c := &mapCall{file: f, first: first, count: count, number: f.calls, gen: f.gen, seq: e.seq,
		at: e.env.Now()}
	for i := first; i < first+count; i++ {
		if ent, _ := f.entry(i); ent.call == 0 && may(ent) {
			ent.call = c.number
		}
	}
	return c
}

// fetchCold asks for a chunk that isn't known and those behind it: more of them each time, so that
// a large file's map is complete soon.
func (f *File) fetchCold(index uint32) {
	first := index &^ (pageChunks - 1)
	count := min(f.span, maxChunks-first)
	f.span = min(f.span*2, control.MaxMapRange)
	f.fetch(f.newCall(first, count, func(ent *entry) bool { return ent.state == unknown }))
}

// maxChunks is how many chunks the largest file has.
const maxChunks = MaxFileSize / dataplane.ChunkSize

// fetchOne asks for a chunk again.
func (f *File) fetchOne(index uint32) {
	f.fetch(f.newCall(index, 1, func(*entry) bool { return true }))
}

func (f *File) fetch(c *mapCall) {
	f.eng.stats.MapFetches++
	f.eng.meta.GetMap(f.id, c.first, c.count, func(r *control.MapReply, err error) {
		f.onMap(c, r, err)
	})
}

// allocate makes a chunk that is absent; for a sequential writer a few more, if they are absent.
func (f *File) allocate(index uint32) {
	count := uint32(1)
	if index == f.alloc.next && index > 0 {
		count = f.alloc.ahead
	}
	first, last := index, min(index+count, maxChunks)
	for i := first + 1; i < last; i++ {
		if ent, _ := f.entry(i); ent.state != absent || ent.call != 0 {
			last = i
		}
	}
	count = last - first
	f.alloc.next, f.alloc.ahead = last, min(count*2, maxAhead)
	f.eng.stats.Allocations++
	c := f.newCall(first, count, func(*entry) bool { return true })
	f.eng.meta.Allocate(f.id, first, count, func(r *control.MapReply, err error) {
		if err == nil && (len(r.Chunks) == 0 || r.Chunks[0].Index != first) {
			err = dataplane.E("allocate a chunk", dataplane.Internal,
				fmt.Errorf("chunk %d isn't in the answer", first))
		}
		f.onMap(c, r, err)
	})
}

// onMap takes over an answer and lets go on what waited for it.
func (f *File) onMap(c *mapCall, r *control.MapReply, err error) {
	e := f.eng
	if e.closed {
		return
	}
	if err == nil {
		err = checkMap(c, r)
	}
	again := err != nil && e.metaRetry(err, "map of a file", f)
	if err == nil {
		e.learnServers(r.Servers)
	}
	next := 0
	for i := c.first; i < c.first+c.count; i++ {
		var m *control.ChunkMap
		if err == nil && next < len(r.Chunks) && r.Chunks[next].Index == i {
			m = &r.Chunks[next]
			next++
		}
		ent, _ := f.entry(i)
		if ent.call != c.number {
			continue
		}
		ent.call = 0
		if err == nil && c.gen == f.gen {
			ent.take(m, c)
		}
	}
	for i := c.first; i < c.first+c.count; i = i&^(pageChunks-1) + pageChunks {
		_, pg := f.entry(i)
		var waiting partList
		pg.wait.takeAll(&waiting)
		for p := waiting.pop(); p != nil; p = waiting.pop() {
			ent, _ := f.entry(p.index)
			switch inCall := p.index >= c.first && p.index < c.first+c.count; {
			case ent.call != 0 || err == nil || !inCall:
				e.dispatch(p)
			case again:
				p.why = dataplane.KindOf(err)
				e.later(p)
			default:
				e.partDone(p, err)
			}
		}
	}
	for _, i := range f.passed {
		f.dropHoles(i)
	}
	f.passed = f.passed[:0]
}

// checkMap refuses an answer that isn't in the order and bounds it must have.
func checkMap(c *mapCall, r *control.MapReply) error {
	last := int64(c.first) - 1
	for i := range r.Chunks {
		m := &r.Chunks[i]
		if int64(m.Index) <= last || m.Index >= c.first+c.count || m.Chunk == 0 || m.Epoch == 0 ||
			len(m.Members) == 0 || len(m.Members) > dataplane.MaxReplicas {
			return dataplane.E("map of a file", dataplane.Malformed, fmt.Errorf(
				"chunk %v, index %d, epoch %d, %d members", m.Chunk, m.Index, m.Epoch, len(m.Members)))
		}
		last = int64(m.Index)
	}
	return nil
}

// take makes ent what the answer says; m is nil for an absent chunk.
func (ent *entry) take(m *control.ChunkMap, c *mapCall) {
	ent.fetched, ent.at = c.seq, c.at
	if m == nil {
		ent.state, ent.chunk, ent.epoch, ent.n, ent.acked = absent, 0, 0, 0, 0
		return
	}
	if ent.state == present && ent.chunk == m.Chunk && m.Epoch < ent.epoch {
		return // the answer overtook a newer one
	}
	if ent.chunk != m.Chunk || ent.epoch != m.Epoch {
		ent.acked = 0
	}
	ent.state, ent.chunk, ent.epoch = present, m.Chunk, m.Epoch
	ent.n = uint8(copy(ent.members[:], m.Members))
}

// forgetFrom drops what is known of the chunks from index first on.
func (f *File) forgetFrom(first uint32) {
	for i, pg := range f.pages {
		if pg == nil || uint32(i+1)*pageChunks <= first {
			continue
		}
		for j := range pg.entries {
			if ent := &pg.entries[j]; uint32(i*pageChunks+j) >= first {
				ent.state, ent.chunk, ent.epoch, ent.n, ent.acked = unknown, 0, 0, 0, 0
			}
		}
	}
	f.alloc.next, f.alloc.ahead, f.span = 0, 0, pageChunks
}

// dropHoles forgets page number i if there is nothing in it: an operation that zeroes a sparse file
// of petabytes passes millions of chunks that don't exist.
func (f *File) dropHoles(i uint32) {
	pg := f.pages[i]
	if pg == nil || pg.wait.head != nil {
		return
	}
	for j := range pg.entries {
		if ent := &pg.entries[j]; ent.state != absent || ent.call != 0 || ent.dirty {
			return
		}
	}
	f.pages[i] = nil
}

// learnServers takes over where chunk servers are.
func (e *Engine) learnServers(servers []control.CSAddr) {
	for i := range servers {
		s := &servers[i]
		pr := e.peer(s.CS)
		pr.live, pr.pace.ill = s.Live, s.Ill
		if s.Addr != "" && s.Addr != pr.addr {
			pr.move(s.Addr)
		}
	}
}
