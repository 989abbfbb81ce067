package web

import (
	"context"
	"slices"
	"sync"
	"time"

	"pstorage/dataplane/control"
)

const (
	pollEvery  = 5 * time.Second
	retryAfter = time.Second // without an answer
	askWithin  = 10 * time.Second
	keepPoints = 180 // of history: a quarter of an hour
	keepEvents = 200
)

// Ask asks the cluster's leader for a document, as an administrator does: Admin of a
// control.Client.
type Ask func(ctx context.Context, command string, args, doc any) error

// State is what the page gets. Times are in milliseconds since 1970.
type State struct {
	Stat   *control.StatDoc   `json:"stat"`   // null until the leader has answered once
	Events []control.EventDoc `json:"events"` // newest first
	Points []Point            `json:"points"` // oldest first
	Error  string             `json:"error"`  // why the last question wasn't answered; empty: it was
	AskMs  int64              `json:"ask_ms"` // how often the leader is asked
	NowMs  int64              `json:"now_ms"`
	// Recovery's chunks per second in the last minute, and how many seconds it takes; -1: not known.
	RecoverRate float64 `json:"recover_rate"`
	RecoverLeft float64 `json:"recover_left"`
}

// Point is one moment in the charts. Latencies are in milliseconds; -1: nothing was measured.
type Point struct {
	AtMs       int64   `json:"at_ms"`
	Reads      float64 `json:"reads"` // per second, of all chunk servers
	Writes     float64 `json:"writes"`
	ReadBytes  float64 `json:"read_bytes"`
	WriteBytes float64 `json:"write_bytes"`
	ReadMid    float64 `json:"read_mid"` // median and worst of the chunk servers
	ReadWorst  float64 `json:"read_worst"`
	LogMid     float64 `json:"log_mid"`
	LogWorst   float64 `json:"log_worst"`
	Degraded   uint64  `json:"degraded"`
	recovered  uint64
}

// Poller keeps the state of one cluster.
type Poller struct {
	ask Ask
	now func() time.Time

	mu    sync.Mutex
	state State
}

// NewPoller returns a poller that knows nothing yet.
func NewPoller(ask Ask) *Poller {
	return &Poller{ask: ask, now: time.Now, state: State{Events: []control.EventDoc{},
		Points: []Point{}, Error: "not asked yet", AskMs: pollEvery.Milliseconds(), RecoverLeft: -1}}
}

// Run asks until ctx ends.
func (p *Poller) Run(ctx context.Context) {
	for ctx.Err() == nil {
		wait := pollEvery
		if !p.poll(ctx) {
			wait = retryAfter
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// State is what is known now.
func (p *Poller) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.state
	s.NowMs = p.now().UnixMilli()
	return s
}

// poll asks once, and says whether it was answered.
func (p *Poller) poll(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	var stat control.StatDoc
	var events control.EventsDoc
	err := p.ask(ctx, control.AdminStat, nil, &stat)
	if err == nil {
		err = p.ask(ctx, control.AdminEvents, control.EventsArgs{Limit: keepEvents, Last: true}, &events)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		p.state.Error = err.Error()
		return false
	}
	slices.Reverse(events.Events)
	// New slices: those handed out are read by others.
	points := append(slices.Clone(p.state.Points), pointOf(&stat, p.now()))
	points = points[max(0, len(points)-keepPoints):]
	p.state.Stat, p.state.Events, p.state.Points, p.state.Error = &stat, events.Events, points, ""
	p.state.RecoverRate, p.state.RecoverLeft = recovery(points)
	return true
}

// pointOf is the moment that stat describes.
func pointOf(stat *control.StatDoc, now time.Time) Point {
	pt := Point{AtMs: now.UnixMilli(), Degraded: stat.Chunks.Degraded,
		recovered: stat.Chunks.Recovered}
	var reads, logs []float64
	for _, c := range stat.CS {
		pt.Reads, pt.Writes = pt.Reads+c.ReadRate, pt.Writes+c.WriteRate
		pt.ReadBytes, pt.WriteBytes = pt.ReadBytes+c.ReadSpeed, pt.WriteBytes+c.WriteSpeed
		if c.Stats == nil || c.Status != control.CSActive && c.Status != control.CSIll &&
			c.Status != control.CSReleasing {
			continue
		}
		if c.Stats.ReadWaitNs > 0 {
			reads = append(reads, float64(c.Stats.ReadWaitNs)/1e6)
		}
		if c.Stats.LogWaitNs > 0 {
			logs = append(logs, float64(c.Stats.LogWaitNs)/1e6)
		}
	}
	pt.ReadMid, pt.ReadWorst = midWorst(reads)
	pt.LogMid, pt.LogWorst = midWorst(logs)
	return pt
}

// midWorst returns median and maximum, -1 of nothing.
func midWorst(list []float64) (mid, worst float64) {
	if len(list) == 0 {
		return -1, -1
	}
	slices.Sort(list)
	return list[len(list)/2], list[len(list)-1]
}

const rateOver = time.Minute

// recovery is the rate of the last minute, in chunks per second, and how many seconds are left.
func recovery(points []Point) (rate, left float64) {
	last := points[len(points)-1]
	first := last
	for _, pt := range points {
		if last.AtMs-pt.AtMs <= rateOver.Milliseconds() && pt.recovered <= last.recovered {
			first = pt // a leader that began since counts anew
			break
		}
	}
	if took := float64(last.AtMs-first.AtMs) / 1e3; took > 0 {
		rate = float64(last.recovered-first.recovered) / took
	}
	switch {
	case last.Degraded == 0:
		return rate, 0
	case rate == 0:
		return 0, -1
	}
	return rate, float64(last.Degraded) / rate
}
