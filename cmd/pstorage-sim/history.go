package main

import (
	"encoding/binary"
	"fmt"
	"slices"

	"pstorage/dataplane"
	"pstorage/perf/history"
)

// A file is a row of registers, one per aligned block of 4 KiB. Every write has a tag of its own,
// repeated through all it writes, so a block's content is known from 8 tags, one per sector.
//
// Two kinds of files:
//
//   - those whose writer lives for ever: it never has two writes on one block at the same time, so
//     the versions of a block are in one order, known beforehand, also with writes of parts of
//     blocks and zeros. Each read is checked when it returns (rowReader).
//   - those whose writer crashes: a write in flight then may happen at any later time. They have
//     whole blocks with tags only, and the history of each block is checked at the end (package
//     history).
const (
	sectorSize = 512
	sectors    = dataplane.BlockSize / sectorSize
	fileSize   = 2 * dataplane.ChunkSize
	never      = history.Never
)

// area is a range of files that is used.
type area struct{ off, length int64 }

// areas: one inside a chunk, one across the border between the first and the second. Runs may have
// others (pages.go).
var areas = []area{{0, 320 << 10}, {dataplane.ChunkSize - 32<<10, 64 << 10}}

// content is what a block holds: a tag per sector; 0 is zeros.
type content [sectors]uint64

// version is one write of a block.
type version struct {
	inv, ret int64 // ret: never until it is acknowledged
	content  content
	lost     int64 // write-ack=memory: since when it is known to be gone; 0: it isn't
}

// block is one register.
type block struct {
	off      int64
	versions []version
	floor    int          // index of the newest version that is known to be visible
	durable  int          // write-ack=memory: index of the newest that may not be lost
	doubtful int          // of the newest that a flush said may be lost
	writing  bool         // a write of the living writer is in flight
	history  []history.Op // of files whose writer crashes
}

type file struct {
	w       *world
	index   int
	id      dataplane.FileID
	whole   bool  // the writer crashes
	flushed int64 // write-ack=memory: when the last flush that ended began
	writer  int   // the client to which it was handed over; 0: it wasn't
	blocks  map[int64]*block
	tags    uint64
}

func newFile(w *world, index int) *file {
	f := &file{w: w, index: index, blocks: map[int64]*block{}, whole: w.sc.mortal > index}
	for _, a := range w.areas {
		for off := a.off; off < a.off+a.length; off += dataplane.BlockSize {
			f.blocks[off] = &block{off: off, versions: []version{{inv: -1, ret: -1}}}
		}
	}
	return f
}

func (f *file) newTag() uint64 {
	f.tags++
	return uint64(f.index+1)<<48 | f.tags
}

// touched calls fn for each block in the range, with the sectors [from, to) of it that are in it.
func (f *file) touched(off int64, n int, fn func(b *block, from, to int)) {
	for at := off &^ (dataplane.BlockSize - 1); at < off+int64(n); at += dataplane.BlockSize {
		from := max(off-at, 0) / sectorSize
		to := min(off+int64(n)-at, dataplane.BlockSize) / sectorSize
		fn(f.blocks[at], int(from), int(to))
	}
}

// free says whether no write is in flight in the range.
func (f *file) free(off int64, n int) bool {
	ok := true
	f.touched(off, n, func(b *block, _, _ int) { ok = ok && !b.writing })
	return ok
}

// invoke notes that a write begins.
func (f *file) invoke(off int64, n int, tag uint64) {
	now := f.w.sim.Now()
	f.touched(off, n, func(b *block, from, to int) {
		b.writing = true
		if f.whole {
			b.history = append(b.history,
				history.Op{Value: tag, Inv: now, Ret: never, Write: true})
			return
		}
		v := version{inv: now, ret: never, content: b.versions[len(b.versions)-1].content}
		for i := from; i < to; i++ {
			v.content[i] = tag
		}
		b.versions = append(b.versions, v)
	})
}

// acked notes that a write was acknowledged.
func (f *file) acked(off int64, n int) {
	now := f.w.sim.Now()
	f.touched(off, n, func(b *block, _, _ int) {
		b.writing = false
		if f.whole {
			for i := len(b.history) - 1; i >= 0; i-- {
				if b.history[i].Write {
					b.history[i].Ret = now
					return
				}
			}
		}
		b.versions[len(b.versions)-1].ret = now
		b.floor = len(b.versions) - 1
	})
}

// abandon: the writer crashed.
func (f *file) abandon() {
	for _, b := range f.blocks {
		b.writing = false
	}
}

// marks of a block when a read begins.
type marks struct{ floor, durable int }

// reading is a read in flight.
type reading struct {
	f     *file
	off   int64
	n     int
	inv   int64
	marks []marks
}

func (f *file) beginRead(off int64, n int) *reading {
	r := &reading{f: f, off: off, n: n, inv: f.w.sim.Now()}
	f.touched(off, n, func(b *block, _, _ int) {
		r.marks = append(r.marks, marks{b.floor, b.durable})
	})
	return r
}

// returned checks what a read returned. who is for people.
func (r *reading) returned(p []byte, who string) {
	f, i, at := r.f, 0, r.off
	if len(p) != r.n {
		f.w.violate("%s: read of %d bytes at %d of file %d returned %d", who, r.n, r.off, f.index+1,
			len(p))
		return
	}
	f.touched(r.off, r.n, func(b *block, from, to int) {
		var c content
		ok := true
		for s := from; s < to; s++ {
			c[s], ok = sectorTag(p[:sectorSize])
			p = p[sectorSize:]
			if !ok {
				f.w.violate("%s: torn sector at %d of file %d", who, b.off+int64(s*sectorSize), f.index+1)
			}
			at += sectorSize
			f.w.sim.Note(c[s])
		}
		r.block(b, r.marks[i], from, to, &c, who)
		i++
	})
}

// sectorTag is the tag of a sector; false if it has several.
func sectorTag(p []byte) (uint64, bool) {
	tag := binary.LittleEndian.Uint64(p)
	for i := 8; i < len(p); i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != tag {
			return tag, false
		}
	}
	return tag, true
}

func (r *reading) block(b *block, then marks, from, to int, c *content, who string) {
	f, floor := r.f, then.floor
	if f.whole {
		for s := from + 1; s < to; s++ {
			if c[s] != c[from] {
				f.w.violate("%s: torn block at %d of file %d: %x", who, b.off, f.index+1, c[from:to])
				return
			}
		}
		b.history = append(b.history, history.Op{Value: c[from], Inv: r.inv, Ret: f.w.sim.Now()})
		return
	}
	for k := min(floor, b.floor); k < len(b.versions); k++ {
		v := &b.versions[k]
		if slices.Equal(v.content[from:to], c[from:to]) && (v.lost == 0 || r.inv <= v.lost) {
			if v.lost == 0 {
				b.floor = max(b.floor, k)
			}
			return
		}
	}
	if f.w.sc.memory && b.fellBack(f.w, then, from, to, c) {
		return
	}
	f.w.violate("%s: block at %d of file %d: %s", who, b.off, f.index+1,
		b.explain(r.inv, floor, from, to, c))
}

// explain says what is wrong with what was read.
func (b *block) explain(inv int64, floor, from, to int, c *content) string {
	for k := floor - 1; k >= 0; k-- {
		v := &b.versions[k]
		if slices.Equal(v.content[from:to], c[from:to]) {
			return fmt.Sprintf("old data: read since %s returned version %d (%x), written %s to %s, "+
				"after version %d (%x, written %s, acknowledged %s) was visible", history.When(inv), k,
				c[from:to], history.When(v.inv), history.When(v.ret), floor, b.versions[floor].content[from:to],
				history.When(b.versions[floor].inv), history.When(b.versions[floor].ret))
		}
	}
	return fmt.Sprintf("content %x isn't any version's; newest is %d (%x)", c[from:to],
		len(b.versions)-1, b.versions[len(b.versions)-1].content[from:to])
}

// checkHistories checks the files whose writers crashed.
func (f *file) checkHistories() {
	if !f.whole {
		return
	}
	for _, a := range f.w.areas {
		for off := a.off; off < a.off+a.length; off += dataplane.BlockSize {
			if why := history.Check(f.blocks[off].history); why != "" {
				f.w.violate("block at %d of file %d: %s", off, f.index+1, why)
			}
		}
	}
}
