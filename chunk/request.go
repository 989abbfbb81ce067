package chunk

import (
	"fmt"

	"pstorage/dataplane"
	"pstorage/ssdcache"
	"pstorage/uring"
)

// request is one READ, WRITE, ZERO, FLUSH, REPLICATE or PATCH being worked on. It comes out of the
// shard's slab and goes back to it when it was answered and nothing uses its memory any more.
type request struct {
	sh    *Shard
	index uint32 // in the slab
	gen   uint32 // counts uses, so that a late answer of a peer can't hit another request

	link *link // who asked; nil: nobody wants the answer any more
	hdr  dataplane.Header
	r    *replica
	next *request // in a requestList or the free list

	// A write's content, block-aligned by the time it gets its seq. data lies in buf or, until the
	// log and the connections have copied it, in a connection's receive buffer.
	off, length uint32
	seq         dataplane.Seq
	data        []byte
	buf         *uring.Buf // one reference is ours
	crcs        [4 * maxReadBlocks]byte
	crcLen      int

	phase   phase
	merging bool   // sub-block write: being read to be merged
	merged  bool   // it has been
	local   int    // what has to happen here: log append, then clearing of words
	waiting uint32 // head: bit per member that hasn't answered; member: bit 0: behind
	behind  *peer  // member: who it was passed on to, also when the chain is another by now
	status  dataplane.Kind
	relayed bool // member: passed on while it arrived

	line     lineState
	page     *crcPage // of a write that goes around the log
	atBypass int      // its place in bypass.all

	app  ssdcache.Append
	zero zeroing
	rd   blockRead
	due  int64 // read that waits: until when

	began  int64  // when it went to the log and to others
	direct uint32 // bits as in waiting: the answer is that of one server alone
}

// phase is what a request is waiting for; only what must be told apart.
type phase uint8

const (
	phaseNone   phase = iota
	phaseFlight       // head: has a seq
	phaseMember       // replicate or patch: has been appended
	phaseDone         // answered; the log may still use it
)

func (sh *Shard) newRequest(l *link, h *dataplane.Header, r *replica) *request {
	q := sh.freeReqs
	if q == nil {
		q = &request{sh: sh, index: uint32(len(sh.reqs))}
		q.app.Done = func(a *ssdcache.Append) { sh.appendDone(q) }
		q.zero.done = func(z *zeroing) {
			first := q.off / dataplane.BlockSize
			sh.log.StoreChanged(z.slot, first, z.end-first)
			sh.localDone(q)
		}
		q.rd.sh = sh
		q.rd.wait.ready = func(*crcPage) { q.rd.round() }
		q.rd.done = func(*blockRead) { sh.readDone(q) }
		sh.reqs = append(sh.reqs, q)
	} else {
		sh.freeReqs = q.next
		q.next = nil
	}
	q.link, q.hdr, q.r = l, *h, r
	q.began, q.direct = 0, 0
	q.off, q.length = h.Offset, h.Length
	l.inflight++
	r.refs++
	return q
}

// free gives q back to the slab. Its answer must have been sent.
func (sh *Shard) free(q *request) {
	if q.link != nil {
		panic(fmt.Sprintf("chunk: request freed without an answer: %v", &q.hdr))
	}
	if q.buf != nil {
		q.buf.Release()
		q.buf = nil
	}
	r := q.r
	q.data, q.r = nil, nil
	q.gen++
	q.seq, q.crcLen, q.local, q.waiting, q.behind = 0, 0, 0, 0, nil
	q.phase, q.merging, q.merged, q.relayed = phaseNone, false, false, false
	q.status, q.due = dataplane.OK, 0
	q.app.Data, q.app.CRCs, q.app.Buf, q.app.Err = nil, nil, nil, nil
	q.next, sh.freeReqs = sh.freeReqs, q
	sh.release(r)
}

// answer sends an empty reply.
func (sh *Shard) answer(q *request, status dataplane.Kind) {
	l := q.link
	if l == nil {
		return
	}
	q.link = nil
	h := &sh.out
	*h = q.hdr.Reply(status)
	h.Seq = q.seq
	if r := q.r; r != nil {
		if r.state == active {
			h.Epoch = r.epoch
		}
		h.Aux = uint32(r.life) // in which all members hold it, also if the head has been sealed since
		if r.memory && q.hdr.Op != dataplane.OpReplicate {
			h.Seq = 0 // its writer must not claim it: acked.go
		}
	}
	l.finish(h)
}

// drop answers and frees a request that has not been started.
func (sh *Shard) drop(q *request, status dataplane.Kind) {
	sh.answer(q, status)
	sh.free(q)
}

// keep makes q own its payload: a reference to buf, or a copy of what lies in a receive buffer.
// It is false if there is no memory.
func (q *request) keep(crcs, payload []byte, buf *uring.Buf) bool {
	q.crcLen = copy(q.crcs[:], crcs)
	if len(payload) == 0 {
		return true
	}
	if buf != nil {
		buf.Retain()
		q.buf, q.data = buf, payload
		return true
	}
	b := q.sh.pool.Get(len(payload))
	if b == nil {
		return false
	}
	q.buf = b
	q.data = b.Bytes()[:copy(b.Bytes(), payload)]
	return true
}

// id is the request id under which peers answer.
func (q *request) id() uint64 { return uint64(q.gen&callGenMask)<<32 | uint64(q.index) }

// byID finds the request that a peer's answer is for; nil if it is gone.
func (sh *Shard) byID(id uint64) *request {
	i := uint32(id)
	if int(i) >= len(sh.reqs) || sh.reqs[i].gen&callGenMask != uint32(id>>32) {
		return nil
	}
	return sh.reqs[i]
}
