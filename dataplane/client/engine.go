package client

import (
	"errors"
	"log/slog"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
	"pstorage/uring"
)

// MaxFileSize is the largest file, in bytes.
const MaxFileSize = 1 << 52

// Metadata is what the engine asks the metadata servers. Callbacks come on the engine's thread,
// once, never from inside the call. An error that can be retried is retried by the engine.
type Metadata interface {
	// GetMap answers which of the chunks [first, first+count) of file exist and where.
	GetMap(file dataplane.FileID, first, count uint32, cb func(*control.MapReply, error))
	// Allocate makes those of the chunks [first, first+count) that don't exist, and answers as GetMap.
	Allocate(file dataplane.FileID, first, count uint32, cb func(*control.MapReply, error))
	// Grow makes file at least size bytes long.
	// Grow is by the write lease with that token; 0: by none.
	Grow(file dataplane.FileID, size, token uint64, cb func(*control.Attr, error))
	// GetAttr answers the file's attributes.
	GetAttr(file dataplane.FileID, cb func(*control.Attr, error))
	// Unreachable reports that cs doesn't answer for these chunks. The slice is the callee's.
	Unreachable(cs dataplane.CSID, chunks []control.HeldChunk)
}

// Options of an Engine. Zero values mean the defaults.
type Options struct {
	Env  uring.Env
	Net  uring.Net
	Pool *uring.Pool
	Cred *session.Credentials
	Meta Metadata
	Log  *slog.Logger // nil: no log

	Window    int // parts of one op in flight; default 16, 1 MiB
	MaxParts  int // parts of all ops that aren't finished; default 4096, at most 65536
	PeerBytes int // payload bytes in flight to or from one chunk server; default 8 MiB
	PeerParts int // parts in flight at one chunk server; default 512

	DialTimeout time.Duration // default 2 s
	PingAfter   time.Duration // of silence with requests outstanding; default 0.5 s
	PeerTimeout time.Duration // of silence with requests outstanding; then it is lost; default 2 s
	ReadTimeout time.Duration // of one answer, then another member is asked; default 3 s
	MinBackoff  time.Duration // before the second try; default 10 ms
	MaxBackoff  time.Duration // between later tries; default 200 ms

	// LeaseWait is how long a write waits for another client to close the file; default 20 s.
	LeaseWait time.Duration

	// HoleTTL is for how long the absence of a chunk, and the end of a file, is believed without
	// asking the MDS again. 0, the default: not at all, so what another client wrote is seen.
	HoleTTL time.Duration
}

func (o *Options) setDefaults() {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	defd := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&o.Window, 16)
	def(&o.MaxParts, 4096)
	o.MaxParts = min(o.MaxParts, 1<<partIndexBits)
	def(&o.PeerBytes, 8<<20)
	def(&o.PeerParts, 512)
	defd(&o.DialTimeout, 2*time.Second)
	defd(&o.PingAfter, 500*time.Millisecond)
	defd(&o.PeerTimeout, 2*time.Second)
	defd(&o.ReadTimeout, 3*time.Second)
	defd(&o.MinBackoff, 10*time.Millisecond)
	defd(&o.MaxBackoff, 200*time.Millisecond)
	defd(&o.LeaseWait, 20*time.Second)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// Stats are counters of an Engine since its start.
type Stats struct {
	Ops         [4]uint64 // finished, by OpKind
	Parts       uint64    // requests sent to chunk servers
	Retries     uint64    // parts that waited and were tried again
	Failovers   uint64    // reads that went to another member
	MapFetches  uint64
	MapPushes   uint64 // entries of chunk maps that changed because the metadata servers said so
	Allocations uint64
	BadCRCs     uint64 // answers whose data didn't match its checksums
	Told        uint64 // messages of what a silent head acknowledged, see acked.go
	Hedges      uint64 // reads sent to another member too
	Late        uint64 // answers that nobody waited for any more
	ConnsLost   uint64
}

// Engine is the data path of a client. It belongs to one thread.
type Engine struct {
	opt    Options
	env    uring.Env
	meta   Metadata
	log    *slog.Logger
	closed bool
	stats  Stats
	turn   uring.TurnEnder
	seq    uint64 // counts submissions and fetches, to tell which was first

	ready    opQueue // submitted, not started
	starving []*File // have ops that wait for a free part, in the order of their turns
	finished opQueue // wait for Done
	growing  []*File // have writes that wait for a Grow not yet asked for
	pumps    []*peer // have room for what waits
	newest   *Op     // of all ops between Submit and Done
	ops      int

	parts []part // the slab
	free  *part
	spare int // how many are free
	peers map[dataplane.CSID]*peer
	// peerList has them in the order in which they became known.
	peerList []*peer
	hedge    hedges

	hdr  dataplane.Header // of the frame being sent
	crcs [4 * (dataplane.PartSize/dataplane.BlockSize + 1)]byte
	lull lull

	leases leases
}

var (
	errEngineClosed = dataplane.E("client", dataplane.Closed, nil)
	errNoFile       = errors.New("no file, or a file of another engine")
	errRange        = errors.New("range behind the largest possible file")
)

// NewEngine returns an engine on o's thread. Connections are made when they are needed.
func NewEngine(o Options) *Engine {
	o.setDefaults()
	e := &Engine{opt: o, env: o.Env, meta: o.Meta, log: o.Log,
		parts: make([]part, o.MaxParts), peers: make(map[dataplane.CSID]*peer)}
	e.turn.TurnEnd = e.turnEnd
	e.hedge.timer.Fire = e.hedgeLate
	e.leases.meta, _ = o.Meta.(Leaser)
	for i := len(e.parts) - 1; i >= 0; i-- {
		p := &e.parts[i]
		p.eng, p.id = e, uint64(i)
		p.next, e.free = e.free, p
	}
	e.spare = len(e.parts)
	return e
}

// Stats returns the counters so far.
func (e *Engine) Stats() Stats { return e.stats }

// Pending is how many ops aren't done.
func (e *Engine) Pending() int { return e.ops }

// Close fails everything that isn't done, with Kind Closed, and drops all connections. Done of the
// failed ops is called at the end of the turn.
func (e *Engine) Close() {
	if e.closed {
		return
	}
	e.closed = true
	for op := e.newest; op != nil; op = op.older {
		e.abort(op, errEngineClosed)
	}
	for _, pr := range e.peers { // the order doesn't matter: nothing is sent any more
		pr.shut()
	}
}

// lull keeps a repeated message out of the log: one line a second for each reason.
type lull struct{ until [8]int64 }

// Reasons to be quiet.
const (
	quietCRC = iota
	quietSpace
	quietMinimum
	quietMeta
	quietFatal
)

func (e *Engine) mayLog(reason int) bool {
	now := e.env.Now()
	if now < e.lull.until[reason] {
		return false
	}
	e.lull.until[reason] = now + int64(time.Second)
	return true
}
