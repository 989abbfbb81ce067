package mds

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// MeasureEmpty starts a server without chunks and returns its resident memory as rss_bytes.
func MeasureEmpty(ctx context.Context, dir string, o MeasureOptions) (Figures, error) {
	m, err := startMeasured(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	heap()
	rss, err := resident()
	return Figures{"rss_bytes": rss}, errors.Join(err, m.end())
}

// MeasureSnapshot starts a server on what MeasureState made and measures its resident memory, and
// a snapshot beside a load of changes. The load goes on after it for o.Loss: what it has changed
// is in the log that the next start applies.
func MeasureSnapshot(ctx context.Context, dir string, o MeasureOptions) (Figures, error) {
	m, err := startMeasured(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	f := Figures{"restart_snapshot_s": m.restart.Seconds()}
	<-m.r.started
	if f["rss_started_bytes"], err = resident(); err != nil {
		return nil, errors.Join(err, m.end())
	}
	heap()
	if f["rss_bytes"], err = resident(); err != nil {
		return nil, errors.Join(err, m.end())
	}
	err = m.snapshotUnderLoad(ctx, o, f)
	return f, errors.Join(err, m.end())
}

func (m *measured) snapshotUnderLoad(ctx context.Context, o MeasureOptions, f Figures) error {
	alone, beside, reads := &applyWatch{}, &applyWatch{}, &samples{}
	load := m.beginLoad(ctx, o)
	defer load.end()
	load.work.Go(func() { m.probe(&load.stop, reads) })
	time.Sleep(time.Second) // the load is on its way
	m.r.fsm.observe.Store(alone)
	time.Sleep(3 * time.Second)
	alone.held.report(f, "load_pause")
	alone.latency.report(f, "load_apply")
	gc := gcPauses()
	m.r.fsm.observe.Store(beside)
	began, before := time.Now(), load.changes.Load()
	if err := m.r.raft.Snapshot().Error(); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	took := time.Since(began)
	m.r.fsm.observe.Store(nil)
	f["snapshot_s"] = took.Seconds()
	f["snapshot_changes_per_s"] = float64(load.changes.Load()-before) / took.Seconds()
	beside.held.report(f, "snapshot_pause")
	beside.latency.report(f, "snapshot_apply")
	reads.report(f, "snapshot_read_wait")
	rss, err := resident()
	if err != nil {
		return err
	}
	f["rss_snapshot_bytes"] = rss
	m.loadOn(o, f, gc)
	return load.failure()
}

// loadOn lets the load go on and takes the pauses of the garbage collector.
func (m *measured) loadOn(o MeasureOptions, f Figures, gc gcHistograms) {
	time.Sleep(o.Loss)
	gcReport(f, "snapshot_", gc)
}

// changeLoad is a load of changes of a server.
type changeLoad struct {
	stop    atomic.Bool
	work    sync.WaitGroup
	cancel  context.CancelFunc
	changes atomic.Uint64 // so far
	failed  chan error
}

// beginLoad changes chunks until the load's end.
func (m *measured) beginLoad(ctx context.Context, o MeasureOptions) *changeLoad {
	l := &changeLoad{failed: make(chan error, 1)}
	ctx, l.cancel = context.WithCancel(ctx)
	for w := range measureWriters {
		l.work.Go(func() {
			if err := m.change(ctx, &l.stop, uint32(w), o, &l.changes); err != nil {
				select {
				case l.failed <- err:
				default:
				}
			}
		})
	}
	return l
}

func (l *changeLoad) end() {
	l.stop.Store(true)
	l.cancel()
	l.work.Wait()
}

// failure says why a change failed, if one did.
func (l *changeLoad) failure() error {
	select {
	case err := <-l.failed:
		return err
	default:
		return nil
	}
}

// measureWriters is how many changes are on their way at once beside a snapshot.
const measureWriters = 8

// change marks chunks all over the table as created, one after the other.
func (m *measured) change(ctx context.Context, stop *atomic.Bool, w uint32, o MeasureOptions,
	done *atomic.Uint64) error {
	slot := uint64(w)
	for !stop.Load() {
		slot = (slot*2862933555777941757 + 3037000493) % o.Chunks
		c := &cmdReconfigure{Chunk: dataplane.NewChunkID(1, slot), Epoch: 1, SetCreated: true}
		res, err := m.r.propose(ctx, c)
		if err == nil {
			err = res.err("change a chunk")
		}
		if err != nil {
			if stop.Load() {
				return nil
			}
			return err
		}
		done.Add(1)
	}
	return nil
}

// MeasureLoss starts a server on a snapshot and the log behind it, and measures how long it takes
// until all chunks of a lost chunk server have been found and queued.
func MeasureLoss(ctx context.Context, dir string, o MeasureOptions) (Figures, error) {
	m, err := startMeasured(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	f := Figures{"restart_s": m.restart.Seconds()}
	err = m.lose(ctx, o, f)
	return f, errors.Join(err, m.end())
}

// lose takes a server away when the rounds have come to rest.
func (m *measured) lose(ctx context.Context, o MeasureOptions, f Figures) error {
	l := m.lead.Load()
	if l == nil {
		return m.r.notLeader()
	}
	var stop atomic.Bool
	var work sync.WaitGroup
	defer work.Wait()
	defer stop.Store(true)
	work.Go(func() { m.keepLeases(&stop, o) })
	lost := dataplane.CSID(1 + o.Servers/2)
	if _, _, err := m.awaitRound(ctx, func(n uint64, _ int) bool { return n > 0 }); err != nil {
		return err
	}
	m.r.fsm.mu.RLock()
	want := int(m.r.fsm.s.csLoad[lost])
	m.r.fsm.mu.RUnlock()
	time.Sleep(time.Second) // what the first round found is over
	waits := &samples{}
	work.Go(func() { m.probe(&stop, waits) })
	l.mu.Lock()
	rounds := l.recover.rounds
	l.mu.Unlock()
	began := time.Now()
	l.mu.Lock()
	l.diskFailed(lost, "lost by a measurement") // as a heartbeat would say it
	l.mu.Unlock()
	_, found, err := m.awaitRound(ctx, func(n uint64, found int) bool {
		return n > rounds && found >= min(want, maxNeeds)
	})
	if err != nil {
		return err
	}
	f["cs_loss_scan_ms"] = ms(time.Since(began))
	f["cs_loss_chunks"] = float64(found)
	stop.Store(true)
	work.Wait()
	waits.report(f, "cs_loss_read_wait")
	return nil
}

// awaitRound polls the recoverer until ok.
func (m *measured) awaitRound(ctx context.Context, ok func(rounds uint64, found int) bool) (
	uint64, int, error) {
	l := m.lead.Load()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		l.mu.Lock()
		rounds, found := l.recover.rounds, l.recover.lastFound
		l.mu.Unlock()
		if ok(rounds, found) {
			return rounds, found, nil
		}
		select {
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		case <-tick.C:
		}
	}
}

// keepLeases stands for the heartbeats of all chunk servers.
func (m *measured) keepLeases(stop *atomic.Bool, o MeasureOptions) {
	l := m.lead.Load()
	for !stop.Load() {
		l.mu.Lock()
		now := l.now()
		for cs := dataplane.CSID(1); int(cs) <= o.Servers; cs++ {
			if e := l.leases.at(cs); !e.failed {
				e.answeredNs = now
			}
		}
		l.mu.Unlock()
		time.Sleep(dataplane.HeartbeatEvery / 2)
	}
}

// MeasureHeartbeat is the heartbeat of a chunk server that MeasureState made.
func MeasureHeartbeat(cs dataplane.CSID) *control.HeartbeatReq {
	return &control.HeartbeatReq{CS: cs, Boot: 1, Capacity: 1 << 50,
		Instance: MeasureInstance(cs)}
}
