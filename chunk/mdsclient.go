package chunk

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// mdsClient is Metadata over a control.Client: ordinary goroutines, whose answers are posted to
// the shard's loop.
type mdsClient struct {
	ctx    context.Context
	client *control.Client
	post   func(func())
	source string
	log    *slog.Logger
	events chan *control.Event
	ended  sync.WaitGroup

	mu          sync.Mutex
	unreachable map[dataplane.CSID]map[dataplane.ChunkID]dataplane.Epoch
}

const (
	mdsTimeout     = 5 * time.Second
	reportEvery    = 100 * time.Millisecond
	maxEvents      = 256  // that wait to be sent; more are only in the log
	maxUnreachable = 4096 // chunks in one report
)

func newMDSClient(ctx context.Context, c *control.Client, post func(func()),
	log *slog.Logger) *mdsClient {
	m := &mdsClient{ctx: ctx, client: c, post: post, log: log,
		events:      make(chan *control.Event, maxEvents),
		unreachable: map[dataplane.CSID]map[dataplane.ChunkID]dataplane.Epoch{}}
	m.ended.Go(m.sendEvents)
	m.ended.Go(m.report)
	return m
}

func (m *mdsClient) ask(op dataplane.Opcode, req any, cb func(*control.ChunkConfig, error)) {
	m.ended.Go(func() {
		ctx, cancel := context.WithTimeout(m.ctx, mdsTimeout)
		defer cancel()
		cfg := &control.ChunkConfig{}
		err := m.client.Call(ctx, op, req, cfg)
		m.post(func() { cb(cfg, err) })
	})
}

// GetChunk implements Metadata.
func (m *mdsClient) GetChunk(id dataplane.ChunkID, cb func(*control.ChunkConfig, error)) {
	m.ask(control.OpGetChunk, &control.GetChunkReq{Chunk: id}, cb)
}

// Reconfigure implements Metadata.
func (m *mdsClient) Reconfigure(req *control.ReconfigureReq, cb func(*control.ChunkConfig, error)) {
	m.ask(control.OpReconfigure, req, cb)
}

// Unreachable implements Metadata: reports are gathered for a moment.
func (m *mdsClient) Unreachable(req *control.UnreachableReq) {
	m.mu.Lock()
	defer m.mu.Unlock()
	set := m.unreachable[req.CS]
	if set == nil {
		set = map[dataplane.ChunkID]dataplane.Epoch{}
		m.unreachable[req.CS] = set
	}
	for _, c := range req.Chunks {
		if len(set) < maxUnreachable {
			set[c.Chunk] = c.Epoch
		}
	}
}

// report sends what Unreachable gathered.
func (m *mdsClient) report() {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
		}
		m.mu.Lock()
		all := m.unreachable
		m.unreachable = map[dataplane.CSID]map[dataplane.ChunkID]dataplane.Epoch{}
		m.mu.Unlock()
		for cs, set := range all {
			req := &control.UnreachableReq{CS: cs}
			for id, epoch := range set {
				req.Chunks = append(req.Chunks, control.HeldChunk{Chunk: id, Epoch: epoch})
			}
			ctx, cancel := context.WithTimeout(m.ctx, mdsTimeout)
			if err := m.client.Call(ctx, control.OpUnreachable, req, nil); err != nil {
				m.log.Warn("report of an unreachable chunk server failed", "cs", cs, "err", err)
			}
			cancel()
		}
	}
}

// Event implements Metadata.
func (m *mdsClient) Event(e *control.Event) {
	e.TimeNs = time.Now().UnixNano()
	m.mu.Lock()
	e.Source = m.source
	m.mu.Unlock()
	select {
	case m.events <- e:
	default:
		m.log.Warn("too many events; this one is only in the log", "code", e.Code)
	}
}

func (m *mdsClient) setSource(s string) {
	m.mu.Lock()
	m.source = s
	m.mu.Unlock()
}

func (m *mdsClient) sendEvents() {
	for {
		select {
		case <-m.ctx.Done():
			return
		case e := <-m.events:
			ctx, cancel := context.WithTimeout(m.ctx, mdsTimeout)
			if err := m.client.Call(ctx, control.OpAddEvent, e, nil); err != nil {
				m.log.Warn("event not delivered", "code", e.Code, "err", err)
			}
			cancel()
		}
	}
}
