package mds

import (
	"context"
	"errors"
	"runtime"
	"time"
)

// MeasureGC starts a server on what MeasureState made and counts the garbage collector's pauses
// beside a load of changes: for o.Loss as the cycles come by themselves (own_gc_), and for as long
// with one cycle after the other (gc_), because 99.9 % of the few dozen pauses that come by
// themselves says nothing. What a pause has to do doesn't depend on who asked for the cycle; that
// there is always one makes the CPUs scarcer, so the second figures are on the safe side.
func MeasureGC(ctx context.Context, dir string, o MeasureOptions) (Figures, error) {
	m, err := startMeasured(ctx, dir, o)
	if err != nil {
		return nil, err
	}
	f := Figures{}
	err = m.collectUnderLoad(ctx, o, f)
	return f, errors.Join(err, m.end())
}

func (m *measured) collectUnderLoad(ctx context.Context, o MeasureOptions, f Figures) error {
	load := m.beginLoad(ctx, o)
	defer load.end()
	// Until the load is on its way, or can't be.
	for load.changes.Load() == 0 && len(load.failed) == 0 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	gc, before := gcPauses(), load.changes.Load()
	time.Sleep(o.Loss)
	gcReport(f, "own_", gc)
	f["own_gc_changes_per_s"] = float64(load.changes.Load()-before) / o.Loss.Seconds()
	gc, before = gcPauses(), load.changes.Load()
	began := time.Now()
	for time.Since(began) < o.Loss && ctx.Err() == nil {
		runtime.GC()
	}
	took := time.Since(began)
	gcReport(f, "", gc)
	f["gc_changes_per_s"] = float64(load.changes.Load()-before) / took.Seconds()
	return errors.Join(load.failure(), ctx.Err())
}
