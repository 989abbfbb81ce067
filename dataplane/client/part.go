package client

import (
	"fmt"

	"pstorage/dataplane"
	"pstorage/uring"
)

// partIndexBits of a request id are the part's place in the slab; the rest counts transmissions,
// so that a late answer to an older one is told apart.
const partIndexBits = 16

// part is one request to a chunk server: a range inside one chunk. It is in at most one list:
// waiting for a map entry (page.wait), for a peer (peer.wait) or for an answer (peer.sent); or its
// timer runs.
type part struct {
	next, prev *part
	list       *partList
	eng        *Engine
	op         *Op // nil: free
	file       *File
	timer      uring.Timer
	id         uint64 // count<<partIndexBits | index; the request id on the wire
	bufOff     int64  // in op.Buf
	index      uint32 // of the chunk in the file
	off, n     uint32 // range in the chunk, bytes
	code       dataplane.Opcode

	// Where it was last routed, and what came of it.
	chunk   dataplane.ChunkID
	epoch   dataplane.Epoch
	member  uint8  // index in the entry's members
	tried   uint8  // bit set of members that failed in this round
	hard    uint8  // those of tried that answered that the data is damaged or the disk failed
	rounds  uint8  // rounds in which all members failed hard
	retries uint16 // times it waited
	fresh   uint64 // the map entry must have been fetched after this e.seq
	sentAt  int64
	why     dataplane.Kind // last failure
	grant   uint32         // see File.proves

	twin  *part // the same read at another member, see hedge.go
	hedge bool  // it is the later one of the two: not counted in op.live
}

// payload is the memory of a read's answer or a write's data.
func (p *part) payload() []byte {
	if p.op.Kind == Zero {
		return zeros[:p.n]
	}
	return p.op.Buf[p.bufOff : p.bufOff+int64(p.n)]
}

var zeros [dataplane.BlockSize]byte

// cost is what counts against the bytes in flight of a peer.
func (p *part) cost() int {
	if p.code == dataplane.OpRead || p.code == dataplane.OpWrite {
		return int(p.n) + dataplane.HeaderSize
	}
	return dataplane.HeaderSize
}

// mayTake says whether f may have another part: no more than then are left for all others
// (dynamic thresholds, Choudhury and Hahne, 1998). So however many requests to chunks that nobody
// serves hang, the files that have none get on: with 4096 parts it takes twelve such files to hold
// up a thirteenth.
func (e *Engine) mayTake(f *File) bool { return f.held < e.spare }

// newPart takes a part for f, nil if it may have none.
func (e *Engine) newPart(f *File) *part {
	if !e.mayTake(f) {
		return nil
	}
	p := e.free
	e.free, p.next = p.next, nil
	e.spare--
	f.held++
	p.file = f
	p.chunk, p.epoch, p.member, p.tried, p.hard = 0, 0, 0, 0, 0
	p.rounds, p.retries, p.fresh, p.why, p.grant = 0, 0, 0, dataplane.OK, 0
	return p
}

func (e *Engine) freePart(p *part) {
	if p.list != nil || p.op == nil {
		panic(fmt.Sprintf("client: part %d freed twice or while listed", p.id))
	}
	if p.timer.Armed() {
		e.env.Disarm(&p.timer)
	}
	if p.twin != nil {
		panic(fmt.Sprintf("client: part %d freed while another one is its twin", p.id))
	}
	p.file.held--
	e.spare++
	p.op, p.file, p.hedge = nil, nil, false
	p.next, e.free = e.free, p
	if len(e.starving) > 0 {
		e.env.AtTurnEnd(&e.turn)
	}
}

// cancelPart forgets p wherever it is.
func (e *Engine) cancelPart(p *part) {
	if l := p.list; l != nil {
		l.remove(p)
		if l.peer != nil && l == &l.peer.sent {
			l.peer.forget(p)
		}
	}
	e.freePart(p)
}

// partOf returns the part that waits for an answer with this request id, or nil.
func (e *Engine) partOf(id uint64) *part {
	i := id & (1<<partIndexBits - 1)
	if i >= uint64(len(e.parts)) {
		return nil
	}
	p := &e.parts[i]
	if p.op == nil || p.id != id {
		return nil
	}
	return p
}

// partList is a list of parts, first in, first out.
type partList struct {
	head, tail *part
	peer       *peer // whose list it is, if it is one's
}

func (l *partList) push(p *part) {
	if p.list != nil {
		panic(fmt.Sprintf("client: part %d is in a list already", p.id))
	}
	p.list, p.next, p.prev = l, nil, l.tail
	if l.tail == nil {
		l.head = p
	} else {
		l.tail.next = p
	}
	l.tail = p
}

func (l *partList) remove(p *part) {
	if p.list != l {
		panic(fmt.Sprintf("client: part %d isn't in this list", p.id))
	}
	if p.prev == nil {
		l.head = p.next
	} else {
		p.prev.next = p.next
	}
	if p.next == nil {
		l.tail = p.prev
	} else {
		p.next.prev = p.prev
	}
	p.list, p.next, p.prev = nil, nil, nil
}

func (l *partList) pop() *part {
	p := l.head
	if p != nil {
		l.remove(p)
	}
	return p
}

// takeAll moves what is in l to dst, which must be empty.
func (l *partList) takeAll(dst *partList) {
	for p := l.pop(); p != nil; p = l.pop() {
		dst.push(p)
	}
}
