package chunk

import (
	"slices"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// replicaState is where a replica stands; see "The life of a chunk" in ARCHITECTURE.md.
//
//	state     | serves                        | leaves by
//	----------+-------------------------------+-------------------------------------------
//	unsettled | nothing                       | SEAL -> sealed
//	sealed    | FlagRecovery reads, patches   | ACTIVATE by whoever sealed it -> active
//	active    | reads; as head: writes        | SEAL -> sealed
type replicaState uint8

const (
	unsettled replicaState = iota
	sealed
	active
)

func (s replicaState) String() string {
	return [...]string{"unsettled", "sealed", "active"}[s]
}

const noSlot = ^uint32(0)

// member is one entry of a chunk's configuration, resolved.
type member struct {
	cs   dataplane.CSID
	peer *peer // nil: this server
}

// replica is one chunk on this server.
type replica struct {
	history
	memoryAck
	id    dataplane.ChunkID
	slot  uint32 // noSlot: nothing is kept of it
	state replicaState
	refs  int32 // requests that use the slot
	gone  bool  // forgotten: the slot is free once nobody uses it
	// dropped: the log has that durable. Not before may the slot table say so: an activation record
	// would bring the chunk back, without what had left the log.
	dropped bool

	// Of the last activation.
	members []member
	self    int // index of this server in members
	minimum int
	wanted  int              // members that it should have; 0: not known
	file    dataplane.FileID // 0: not known yet
	fence   uint64           // smallest lease token that may write
	term    uint16           // tells writes of this activation from those sent before it
	broken  bool             // head: a member's connection was lost; settle before the next write
	noChain int64            // no chain before this time

	lostBlocks []missingBlock // damaged, and looked for in vain; at most maxMissing

	busy int32 // requests that this server's log or store isn't done with

	// Writes that wait for their turn to be appended, behind one that goes around the log; and how
	// far the last writes were one behind the other.
	line        requestList
	run, runEnd uint32

	// While sealed: who may patch and activate (a *link or a *settler), and the promise to answer
	// him once everything accepted is durable; sealOver tells him that it can't be kept, may be nil.
	sealer    any
	sealEpoch dataplane.Epoch
	sealWait  func()
	sealOver  func()
	sealedAt  int64 // when another coordinator last sealed or patched it

	// Head: writes in flight by seq; requests that wait. Member: writes that came too early.
	flight    seqRing
	queue     requestList   // writes that wait: settling, an earlier write of the same block, space
	reads     requestList   // reads that wait: settling, a commit mark
	claimed   dataplane.Seq // of this activation: acknowledged to a client, as it says; see acked.go
	pumping   bool
	pumpAgain bool
	stalled   bool // in the shard's list of those that wait for space
	watched   bool // in the shard's list of those whose reads wait
	settler   *settler
	askedAt   int64 // when others were last said to be the ones to settle; 0: never

	// Head: the chunk is being copied to a new member; the metadata servers were asked at this epoch
	// to add one, and may yet do so. On record, see hold.go.
	copier *copier
	unsure dataplane.Epoch

	// Of a copy to here that was never activated: parts were written straight to the store; no more
	// are, from now on; those are durable. And when it was paced last.
	direct, flushed, kept bool
	directs               int // such writes in flight
	pacedAt               int64

	// Head: the commit mark as the members know it.
	told     dataplane.Seq
	toldAt   int64
	inTell   bool
	nextTell *replica
}

// settling says whether writes wait for a settler. One that adds a member lets them go on until it
// seals the others.
func (r *replica) settling() bool { return r.settler != nil && !r.settler.soft }

// isHead says whether this server orders the chunk's writes.
func (r *replica) isHead() bool { return len(r.members) > 0 && r.self == 0 }

// fillEntry writes what the slot table keeps of r. It is never ahead of the log.
func (r *replica) fillEntry(e *slotEntry) {
	if r.dropped {
		*e = slotEntry{pages: e.pages}
		return
	}
	e.chunk, e.epoch = r.id, r.epoch
	e.last, e.commit = r.durable, r.commit
	e.tailOff, e.tailLen, e.inOrder = r.tail()
	e.unfinished, e.dirty = r.unfinished, r.dirty
	e.unsure = r.unsure != 0 && r.unsure == r.epoch
}

// configure takes the members of an activation. It is false if this server isn't among them.
func (r *replica) configure(sh *Shard, cfg *control.ChunkConfig) bool {
	self := slices.IndexFunc(cfg.Members, func(m control.CSAddr) bool { return m.CS == sh.id })
	if self < 0 || len(cfg.Members) > dataplane.MaxReplicas {
		return false
	}
	r.self = self
	r.members = r.members[:0]
	for i, m := range cfg.Members {
		if i == self {
			r.members = append(r.members, member{cs: m.CS})
			continue
		}
		r.members = append(r.members, member{m.CS, sh.peer(m.CS, m.Addr)})
	}
	r.minimum, r.wanted = int(cfg.Minimum), int(cfg.Wanted)
	r.setFile(sh, cfg)
	r.broken, r.noChain = false, 0
	return true
}

// seqRing finds the request of a seq among at most MaxInflightPerChunk consecutive ones.
type seqRing struct {
	slots []*request
	n     int // how many are set
}

func (g *seqRing) get(seq dataplane.Seq) *request {
	if g.n == 0 {
		return nil
	}
	q := g.slots[int(seq)&(len(g.slots)-1)]
	if q == nil || q.seq != seq {
		return nil
	}
	return q
}

// put adds q. It is false if a request at a distance of a ring's size is there.
func (g *seqRing) put(q *request) bool {
	for {
		if len(g.slots) > 0 {
			at := &g.slots[int(q.seq)&(len(g.slots)-1)]
			if *at == nil {
				*at = q
				g.n++
				return true
			}
			if len(g.slots) >= dataplane.MaxInflightPerChunk {
				return false
			}
		}
		g.grow()
	}
}

func (g *seqRing) grow() {
	old := g.slots
	g.slots = make([]*request, max(16, 2*len(old)))
	for _, q := range old {
		if q != nil {
			g.slots[int(q.seq)&(len(g.slots)-1)] = q
		}
	}
}

func (g *seqRing) remove(seq dataplane.Seq) {
	at := &g.slots[int(seq)&(len(g.slots)-1)]
	if *at == nil || (*at).seq != seq {
		panic("chunk: removed a seq that isn't in flight")
	}
	*at = nil
	g.n--
}

// requestList is a FIFO of requests, linked through request.next.
type requestList struct {
	first, last *request
	n           int
}

func (l *requestList) push(q *request) {
	q.next = nil
	if l.first == nil {
		l.first = q
	} else {
		l.last.next = q
	}
	l.last = q
	l.n++
}

// cut takes the whole list.
func (l *requestList) cut() *request {
	q := l.first
	*l = requestList{}
	return q
}

// take takes q out of the list, wherever it is.
func (l *requestList) take(q *request) {
	var before *request
	for o := l.first; o != q; o = o.next {
		before = o
	}
	l.remove(before, q)
}

// remove takes q, which follows before (nil: it is the first), out of the list.
func (l *requestList) remove(before, q *request) {
	if before == nil {
		l.first = q.next
	} else {
		before.next = q.next
	}
	if l.last == q {
		l.last = before
	}
	q.next = nil
	l.n--
}
