package mds

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	rtmetrics "runtime/metrics"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"pstorage/dataplane"
	"pstorage/dataplane/control"
	"pstorage/dataplane/session"
)

// This file and measure_run.go measure a metadata server at a size that no test fills it to by
// requests. They are for pstorage-perf, and nothing of them runs in a server that serves.

// Figures are measured values by name; the unit ends the name.
type Figures map[string]float64

// MeasureOptions say what is measured.
type MeasureOptions struct {
	Cred    *session.Credentials // role RoleMDS
	Chunks  uint64
	Files   int // that have the chunks, in equal parts
	Servers int // chunk servers, each on a host of its own
	// Loss is how long the measured load goes on after what it accompanies has ended, or beside
	// garbage collections.
	Loss time.Duration
}

// MeasureInstance is the control.HeartbeatReq.Instance of a chunk server that MeasureState made;
// its start counter is 1.
func MeasureInstance(cs dataplane.CSID) uint64 { return 1<<32 + uint64(cs) }

// MeasureState makes directories of metadata servers whose newest snapshot holds files, chunk
// servers and chunks as the options say; each peer gets the directory of its index.
func MeasureState(dirs []string, peers []Peer, o MeasureOptions) error {
	s, err := measuredState(o)
	if err != nil {
		return err
	}
	defer s.Close()
	for i, dir := range dirs {
		err := Format(dir, FormatOptions{Cluster: o.Cred.Cluster, ClusterName: o.Cred.ClusterName,
			Addr: peers[i].Addr, Node: peers[i].Node, Peers: peers})
		if err == nil {
			err = plantSnapshot(dir, s, peers)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// measuredState builds a state, its chunks by the commands that always make them.
func measuredState(o MeasureOptions) (*State, error) {
	s := NewState()
	now := time.Now().UnixNano()
	apply := func(c command) (Result, error) {
		var r Result
		s.applyOne(now, c, &r)
		return r, r.err("make the state to measure")
	}
	_, err := apply(&cmdInit{ClusterID: o.Cred.Cluster, ClusterName: o.Cred.ClusterName})
	for i := 1; i <= o.Servers && err == nil; i++ {
		cs := CS{Boot: 1, Addr: fmt.Sprintf("127.%d.%d.1:1", i>>8&255, i&255),
			Host: fmt.Sprint("host", i), Path: "/srv/cs", Capacity: 1 << 50}
		copy(cs.Disk[:], strconv.Itoa(i))
		_, err = apply(&cmdRegisterCS{Instance: MeasureInstance(dataplane.CSID(i)), CS: cs})
	}
	rng := rand.New(rand.NewPCG(1, o.Chunks))
	left := o.Chunks
	for i := 0; i < o.Files && err == nil; i++ {
		var r Result
		r, err = apply(&cmdCreate{CreateReq: control.CreateReq{Parent: dataplane.RootID,
			Name: fmt.Sprint("image", i), Type: control.TypeFile}})
		n := left / uint64(o.Files-i)
		left -= n
		for first := uint32(0); n > 0 && err == nil; {
			c := &cmdAllocate{File: r.Attr.File, Chunks: make([]placed, min(n, control.MaxMapRange))}
			for k := range c.Chunks {
				c.Chunks[k] = anyPlace(rng, first, o.Servers)
				first++
			}
			n -= uint64(len(c.Chunks))
			_, err = apply(c)
		}
	}
	if err == nil && s.table.Len() != o.Chunks {
		err = fmt.Errorf("%d chunks were made of %d", s.table.Len(), o.Chunks)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// anyPlace chooses three servers.
func anyPlace(rng *rand.Rand, index uint32, servers int) placed {
	p := placed{index: index}
	for int(p.n) < min(3, servers) {
		cs := dataplane.CSID(1 + rng.IntN(servers))
		if !slices.Contains(p.members[:p.n], cs) {
			p.members[p.n] = cs
			p.n++
		}
	}
	return p
}

// plantSnapshot writes the state as the snapshot behind a fresh directory's only log entry.
func plantSnapshot(dir string, s *State, peers []Peer) error {
	op := "write the state to measure into " + dir
	rlog := newHCLog(slog.New(slog.DiscardHandler))
	snaps, err := raft.NewFileSnapshotStoreWithLogger(filepath.Join(dir, raftDir), snapshotsKept,
		rlog)
	if err != nil {
		return dataplane.E(op, dataplane.IOError, err)
	}
	var servers raft.Configuration
	for _, p := range peers {
		servers.Servers = append(servers.Servers, raft.Server{Suffrage: raft.Voter,
			ID: serverID(p.Node), Address: raft.ServerAddress(p.Addr)})
	}
	_, trans := raft.NewInmemTransport(raft.ServerAddress(peers[0].Addr))
	sink, err := snaps.Create(raft.SnapshotVersionMax, 1, 1, servers, 1, trans)
	if err != nil {
		return dataplane.E(op, dataplane.IOError, err)
	}
	sn, err := s.Capture()
	if err != nil {
		return err
	}
	defer sn.Release()
	if err := sn.Write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return dataplane.E(op, dataplane.IOError, err)
	}
	return nil
}

// measured is a metadata server that runs in this process for measuring.
type measured struct {
	*server
	stop    context.CancelFunc
	ended   chan error
	restart time.Duration // from the start to leading
}

// startMeasured starts what is in dir, as Run does, and waits until it leads.
func startMeasured(ctx context.Context, dir string, o MeasureOptions) (*measured, error) {
	began := time.Now()
	id, err := readIdentity(dir)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	logger := slog.New(slog.DiscardHandler)
	r, err := startReplica(filepath.Join(dir, raftDir), id.Node, id.Addr, o.Cred, logger, nil)
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	r.offline = time.Hour // nothing but the loss that is measured is to be mended
	ctx, stop := context.WithCancel(ctx)
	m := &measured{server: &server{r: r, log: logger, id: id, cred: o.Cred}, stop: stop,
		ended: make(chan error, 1)}
	leads := make(chan struct{})
	go func() {
		m.ended <- m.run(ctx, listener, id, &Options{Dir: dir, Cred: o.Cred, Log: logger,
			Leading: func(on bool) {
				if on {
					close(leads)
				}
			}})
		listener.Close()
	}()
	select {
	case <-leads:
		m.restart = time.Since(began)
		return m, nil
	case err := <-m.ended:
		stop()
		return nil, errors.Join(errors.New("the server ended before it led"), err)
	}
}

func (m *measured) end() error {
	m.stop()
	return <-m.ended
}

// resident returns the resident memory of this process in bytes.
func resident() (float64, error) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, err
	}
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0, errors.New("/proc/self/statm has no resident size")
	}
	pages, err := strconv.ParseUint(string(f[1]), 10, 64)
	return float64(pages) * float64(os.Getpagesize()), err
}

// samples collects durations, from any goroutine.
type samples struct {
	mu   sync.Mutex
	list []time.Duration
}

func (s *samples) add(d time.Duration) {
	s.mu.Lock()
	s.list = append(s.list, d)
	s.mu.Unlock()
}

// applyWatch measures how entries are applied.
type applyWatch struct {
	// held is how long the state was held at a time: to apply an entry (up to commandsPerLock of
	// its commands), with what that copies for a snapshot, and by a snapshot's beginning and end.
	// Nobody reads or applies meanwhile.
	held samples
	// latency is how long entries took, with their decoding and waiting for readers and a CPU.
	latency samples
}

// applied notes that an entry has been applied that came at began. w may be nil.
func (w *applyWatch) applied(began time.Time) {
	if w != nil {
		w.latency.add(time.Since(began))
	}
}

// report adds NAME_p999_ms, NAME_max_ms and NAME_samples.
func (s *samples) report(f Figures, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == 0 {
		return
	}
	slices.Sort(s.list)
	f[name+"_p999_ms"] = ms(s.list[(len(s.list)-1)*999/1000])
	f[name+"_max_ms"] = ms(s.list[len(s.list)-1])
	f[name+"_samples"] = float64(len(s.list))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// gcHistograms are the histograms of the garbage collector's pauses so far, by figure: whole
// pauses, and the part of them until all threads have stopped, which waits for the CPUs.
type gcHistograms map[string]*rtmetrics.Float64Histogram

func gcPauses() gcHistograms {
	s := []rtmetrics.Sample{{Name: "/sched/pauses/total/gc:seconds"},
		{Name: "/sched/pauses/stopping/gc:seconds"}}
	rtmetrics.Read(s)
	return gcHistograms{"gc_pause": s[0].Value.Float64Histogram(),
		"gc_stopping": s[1].Value.Float64Histogram()}
}

// gcReport adds the pauses since before, by names that begin with prefix: the upper bounds of the
// buckets with the 50th, 99th and 99.9th percentiles and the longest.
func gcReport(f Figures, prefix string, before gcHistograms) {
	for name, after := range gcPauses() {
		total := uint64(0)
		for i, n := range after.Counts {
			total += n - before[name].Counts[i]
		}
		f[prefix+"gc_pauses"] = float64(total)
		for suffix, permille := range map[string]uint64{"p50": 500, "p99": 990, "p999": 999,
			"max": 1000} {
			seen, figure := uint64(0), prefix+name+"_"+suffix+"_ms"
			f[figure] = 0
			for i, n := range after.Counts {
				seen += n - before[name].Counts[i]
				if total > 0 && seen*1000 >= total*permille {
					f[figure] = after.Buckets[i+1] * 1e3
					break
				}
			}
		}
	}
}

// heap gives what the process no longer needs back to the system, so that what is resident is
// what it holds.
func heap() { debug.FreeOSMemory() }

// probe measures how long readers of the state wait for it, until stop is set.
func (m *measured) probe(stop *atomic.Bool, s *samples) {
	f := m.r.fsm
	for !stop.Load() {
		began := time.Now()
		f.mu.RLock()
		d := time.Since(began)
		f.mu.RUnlock()
		s.add(d)
		time.Sleep(200 * time.Microsecond)
	}
}
