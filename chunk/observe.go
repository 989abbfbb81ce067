package chunk

import (
	"context"
	"math/bits"
	"time"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
)

// What a process tells about itself, for monitoring and for its supervisor.

// observeEvery is how often that is.
const observeEvery = time.Second

// WaitBuckets is the number of buckets of a WaitHistogram.
const WaitBuckets = 22

// WaitHistogram counts durations. Bucket i has those up to WaitBound(i) and above the bound of the
// bucket before; the last one has all others.
type WaitHistogram struct {
	Counts [WaitBuckets]uint64
	SumNs  int64
}

// firstBound is 2 to this power, in ns: 8 µs. The bounds double up to 8 s.
const firstBound = 13

// WaitBound is the upper bound of bucket i in ns, i < WaitBuckets-1.
func WaitBound(i int) int64 { return 1 << (firstBound + i) }

func (h *WaitHistogram) add(ns int64) {
	ns = max(ns, 1)
	i := max(bits.Len64(uint64(ns-1))-firstBound, 0)
	h.Counts[min(i, WaitBuckets-1)]++
	h.SumNs += ns
}

// Observation is what a chunk server's process says of itself. All counters are since its start.
type Observation struct {
	CS             dataplane.CSID
	Boot           uint64
	Capacity, Used uint64 // bytes
	Lease          bool   // it may serve
	Failed         string // how its disk failed
	Stats          control.CSStats
	LogWait        WaitHistogram // of appends to the log, until they are durable
	ReadWait       WaitHistogram // of reads of the log or the store
	FromLog        uint64        // blocks read for clients out of the log, and the read cache in it
	FromStore      uint64        // and out of the store
	PoolInUse      int           // bytes of buffers
	Connections    int
}

// observation describes the shard. It is called on the loop's thread.
func (sh *Shard) observation() Observation {
	g := &sh.gauges
	o := Observation{CS: sh.id, Lease: sh.env.Now() < sh.lease.Load(), Stats: sh.Stats(),
		LogWait: g.log.hist, ReadWait: g.reads.hist, FromLog: g.fromLog, FromStore: g.fromStore,
		PoolInUse: sh.pool.InUse(), Connections: sh.linkCount}
	o.Capacity, o.Used = sh.Capacity()
	if sh.dead != nil {
		o.Failed = sh.dead.Error()
	}
	return o
}

// observe hands observations to OnObserve until ctx ends. Each comes from the loop itself: as long
// as they come, it turns.
func (s *server) observe(ctx context.Context) {
	if s.o.OnObserve == nil {
		return
	}
	tick := time.NewTicker(observeEvery)
	defer tick.Stop()
	for {
		var o Observation
		if err := s.onLoop(func(done func(error)) {
			o = s.shard.observation()
			done(nil)
		}); err != nil {
			return // the loop has ended
		}
		o.Boot = s.id.Boot
		s.o.OnObserve(&o)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
