package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"pstorage/cmd/metrics"
	"pstorage/dataplane/control"
	"pstorage/mds"
)

// observers are the metadata servers that run in this process.
type observers struct {
	mu   sync.Mutex
	list []*mds.Observer
}

func (o *observers) add(one *mds.Observer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, one)
}

func (o *observers) all() []*mds.Observer {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]*mds.Observer(nil), o.list...)
}

// alive returns nil when all of them have answered that haven't ended.
func (o *observers) alive(ctx context.Context) error {
	var errs []error
	for _, one := range o.all() {
		if err := one.Alive(ctx); !errors.Is(err, mds.ErrEnded) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// collect writes the samples of all of them. One that has ended has none.
func (o *observers) collect(_ context.Context, t *metrics.Text) error {
	metrics.Process(t)
	for _, one := range o.all() {
		d, err := one.Observe()
		up := t.Family(metrics.Gauge, "pstorage_mds_servers", "",
			"Metadata servers in this process that run")
		if err != nil {
			continue
		}
		labels := []string{"cluster", d.Cluster, "mds", fmt.Sprint(d.Node)}
		up.Add(1, labels...)
		addRaft(t, d, labels)
		if d.Stat != nil {
			addStat(t, d.Stat, labels[:2])
			addWatch(t, &d.Watch, labels[:2])
		}
	}
	return nil
}

// gauge is a sample without labels of its own.
type gauge struct {
	name, help string
	value      float64
}

func addGauges(t *metrics.Text, labels []string, list ...gauge) {
	for _, g := range list {
		t.Family(metrics.Gauge, g.name, "", g.help).Add(g.value, labels...)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func addRaft(t *metrics.Text, d *mds.Observation, labels []string) {
	addGauges(t, labels,
		gauge{"pstorage_mds_leader", "1 if it leads", truth(d.Leads)},
		gauge{"pstorage_mds_raft_term", "Raft's term", float64(d.Term)},
		gauge{"pstorage_mds_raft_last_index", "Newest entry of its log", float64(d.Last)},
		gauge{"pstorage_mds_raft_commit_index", "Newest entry known as committed", float64(d.Commit)},
		gauge{"pstorage_mds_raft_applied_index", "Newest entry in its state", float64(d.Applied)})
	t.Family(metrics.Counter, "pstorage_events", "", "Events of the cluster so far").
		Add(float64(d.Events), labels...)
	for i, name := range []string{"info", "warning", "fault"} {
		t.Family(metrics.Gauge, "pstorage_events_last_hour", "", "Events of the last hour").
			Add(float64(d.RecentEvents[i]), append(labels[:len(labels):len(labels)], "severity", name)...)
	}
}

// addWatch writes what the leader's clients are told of chunk maps.
func addWatch(t *metrics.Text, d *mds.MapWatchDoc, labels []string) {
	addGauges(t, labels, gauge{"pstorage_mds_map_watches",
		"Connections that are told of changed chunk maps, once for each file", float64(d.Watches)})
	t.Family(metrics.Counter, "pstorage_mds_map_changes_dropped", "",
		"Changes of chunk maps that clients weren't told of, since the leader began").
		Add(float64(d.Dropped), labels...)
	t.Family(metrics.Counter, "pstorage_mds_map_watches_refused", "",
		"Requests to be told of a file's chunk map above the bounds, since the leader began").
		Add(float64(d.Refused), labels...)
}

// addStat writes what only the leader knows: the state of the cluster.
func addStat(t *metrics.Text, d *control.StatDoc, labels []string) {
	with := func(more ...string) []string { return append(labels[:2:2], more...) }
	for _, h := range []string{"healthy", "degraded", "critical"} {
		t.Family(metrics.Gauge, "pstorage_cluster_health", "", "1 for the health that the cluster has").
			Add(truth(d.Health == h), with("health", h)...)
	}
	s := &d.Space
	addGauges(t, labels,
		gauge{"pstorage_files", "Files, directories and links", float64(d.Files)},
		gauge{"pstorage_space_total_bytes", "Space of all disks", float64(s.Total)},
		gauge{"pstorage_space_free_bytes", "Free space of all disks", float64(s.Free)},
		gauge{"pstorage_space_logical_total_bytes", "Space for user data", float64(s.LogicalTotal)},
		gauge{"pstorage_space_logical_free_bytes", "Free space for user data", float64(s.LogicalFree)},
		gauge{"pstorage_space_limit_bytes", "capacity.limit; 0: none", float64(s.Limit)},
		gauge{"pstorage_space_allocated_bytes", "User data in chunks, each once", float64(s.Allocated)},
		gauge{"pstorage_chunks_fallback_domain", "Chunks in a finer failure domain than asked for",
			float64(d.Chunks.Fallback)},
		gauge{"pstorage_rebalance_paused", "1 if rebalancing is off", truth(d.Moves.Paused)})
	c := &d.Chunks
	for _, state := range []struct {
		name string
		n    uint64
	}{
		{"all", c.Total}, {"healthy", c.Healthy}, {"degraded", c.Degraded},
		{"below_minimum", c.BelowMinimum}, {"urgent", c.Urgent}, {"offline", c.Offline},
	} {
		t.Family(metrics.Gauge, "pstorage_chunks", "",
			"Chunks by state; degraded ones may be in the states after it as well").
			Add(float64(state.n), with("state", state.name)...)
	}
	r := &d.Recovery
	for _, state := range []struct {
		name string
		n    uint64
	}{
		{"copying", r.Copying}, {"queued", r.Queued}, {"again", r.Again}, {"no_place", r.NoPlace},
		{"waiting", r.Waiting}, {"excluding", r.Excluding}, {"offline", r.Offline},
		{"starting", r.Starting},
	} {
		t.Family(metrics.Gauge, "pstorage_recovery_chunks", "",
			"Degraded chunks by what becomes of them").
			Add(float64(state.n), with("state", state.name)...)
	}
	for _, why := range []struct {
		name string
		n    uint64
	}{{"drain", d.Moves.Drain}, {"mend", d.Moves.Mend}, {"balance", d.Moves.Balance}} {
		t.Family(metrics.Gauge, "pstorage_moving_chunks", "", "Whole chunks that change servers").
			Add(float64(why.n), with("why", why.name)...)
	}
	t.Family(metrics.Counter, "pstorage_recovered_chunks", "", "Copies since the leader began").
		Add(float64(c.Recovered), labels...)
	t.Family(metrics.Counter, "pstorage_moved_chunks", "", "Moves since the leader began").
		Add(float64(d.Moves.Done), labels...)
	for _, m := range d.MDS {
		t.Family(metrics.Gauge, "pstorage_mds_member_up", "", "1 if it answers the leader").
			Add(truth(!m.Down), with("mds", m.ID, "addr", m.Addr)...)
	}
	addServers(t, d.CS, with)
}

// csStates are all states of a chunk server.
var csStates = []string{control.CSActive, control.CSInactive, control.CSOffline, control.CSIll,
	control.CSReleasing, control.CSFailed, control.CSDropped, control.CSRefused}

// addServers writes what the leader knows of chunk servers. What they measure themselves is at
// their own endpoints.
func addServers(t *metrics.Text, list []control.CSDoc, with func(...string) []string) {
	for _, s := range list {
		if s.Status == control.CSDropped {
			continue
		}
		labels := with("cs", strconv.FormatUint(uint64(s.ID), 10), "host", s.Host, "dir", s.Path)
		for _, state := range csStates {
			t.Family(metrics.Gauge, "pstorage_cs_state", "", "1 for the state that it is in").
				Add(truth(s.Status == state), append(labels[:len(labels):len(labels)], "state", state)...)
		}
		addGauges(t, labels,
			gauge{"pstorage_cs_known_capacity_bytes", "Room for chunks", float64(s.Capacity)},
			gauge{"pstorage_cs_known_used_bytes", "Of it taken", float64(s.Used)},
			gauge{"pstorage_cs_known_chunks", "Chunks it is a member of", float64(s.Chunks)},
			gauge{"pstorage_cs_heartbeat_age_seconds", "Since its last heartbeat",
				float64(s.SilentMs) / 1e3})
		if s.Drain != nil {
			addGauges(t, labels, gauge{"pstorage_cs_drain_left_chunks",
				"Chunks still to be moved off it", float64(s.Drain.Left)})
		}
	}
}
