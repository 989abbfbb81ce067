package main

import (
	"context"
	"strconv"
	"time"

	"pstorage/chunk"
	"pstorage/cmd/metrics"
)

// Samples of chunk servers have the labels cluster, cs and dir.

// collect writes the samples of all children.
func (b *beats) collect(_ context.Context, t *metrics.Text) error {
	metrics.Process(t)
	for _, e := range b.all() {
		labels := []string{"cluster", e.place.cluster, "dir", e.place.daemon.Dir}
		up := 0.0
		if e.up {
			up = 1
		}
		t.Family(metrics.Gauge, "pstorage_cs_up", "", "1 if the chunk server's process runs").
			Add(up, labels...)
		t.Family(metrics.Counter, "pstorage_cs_starts", "", "Starts of its process by this supervisor").
			Add(float64(e.starts), labels...)
		if e.up {
			labels = append(labels, "cs", strconv.FormatUint(uint64(e.seen.CS), 10))
			t.Family(metrics.Gauge, "pstorage_cs_silent_seconds", "seconds",
				"Time since its loop gave the last sign of life").
				Add(time.Since(e.at).Seconds(), labels...)
			addObservation(t, &e.seen, labels)
		}
	}
	return nil
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// addObservation writes what one child said.
func addObservation(t *metrics.Text, o *chunk.Observation, labels []string) {
	s := &o.Stats
	for _, c := range []struct {
		name, help string
		value      uint64
	}{
		{"pstorage_cs_reads", "Reads answered", s.Reads},
		{"pstorage_cs_writes", "Writes answered", s.Writes},
		{"pstorage_cs_read_data_bytes", "Bytes read by clients", s.ReadBytes},
		{"pstorage_cs_write_data_bytes", "Bytes written by clients", s.WriteBytes},
		{"pstorage_cs_crc_errors", "Blocks that didn't match their checksum", s.CRCErrors},
		{"pstorage_cs_io_errors", "Errors of the disk", s.IOErrors},
		{"pstorage_cs_cache_hit_blocks", "Blocks read for clients from the log or its read cache",
			o.FromLog},
		{"pstorage_cs_cache_miss_blocks", "Blocks read for clients from the store", o.FromStore},
		{"pstorage_cs_copies", "Chunks copied to a new member as their head", s.Copies},
		{"pstorage_cs_delta_copies", "Of the copies: only what had changed", s.Deltas},
		{"pstorage_cs_copy_data_bytes", "Bytes sent for copies", s.CopyBytes},
	} {
		t.Family(metrics.Counter, c.name, "", c.help).Add(float64(c.value), labels...)
	}
	for _, g := range []struct {
		name, unit, help string
		value            float64
	}{
		{"pstorage_cs_capacity_bytes", "bytes", "Room for chunks", float64(o.Capacity)},
		{"pstorage_cs_used_bytes", "bytes", "Room taken by chunks", float64(o.Used)},
		{"pstorage_cs_allocated_bytes", "bytes", "What the store takes of its file system",
			float64(s.Allocated)},
		{"pstorage_cs_chunks", "", "Chunks held", float64(s.Chunks)},
		{"pstorage_cs_clients", "", "Clients connected", float64(s.Clients)},
		{"pstorage_cs_connections", "", "Connections of clients and servers", float64(o.Connections)},
		{"pstorage_cs_log_used_bytes", "bytes", "Log that isn't written back", float64(s.LogUsed)},
		{"pstorage_cs_log_size_bytes", "bytes", "Size of the log", float64(s.LogSize)},
		{"pstorage_cs_pool_used_bytes", "bytes", "Buffers in use", float64(o.PoolInUse)},
		{"pstorage_cs_lease", "", "1 if it may serve", truth(o.Lease)},
		{"pstorage_cs_failed", "", "1 if its disk has failed", truth(o.Failed != "")},
		{"pstorage_cs_scrub_running", "", "1 if a pass of the scrubber is under way",
			truth(s.ScrubRunning)},
		{"pstorage_cs_scrub_done_bytes", "bytes", "Read by this pass, holes included",
			float64(s.ScrubDone)},
		{"pstorage_cs_scrub_total_bytes", "bytes", "To be read by this pass", float64(s.ScrubTotal)},
		{"pstorage_cs_scrub_bad_blocks", "", "Blocks of this pass that didn't match",
			float64(s.ScrubBad)},
		{"pstorage_cs_scrub_repaired_blocks", "", "Of those: repaired", float64(s.ScrubRepaired)},
		{"pstorage_cs_scrub_lost_blocks", "", "Of those: without a good copy", float64(s.ScrubLost)},
		{"pstorage_cs_scrub_mismatches", "", "Parts of 64 KiB in which replicas differed",
			float64(s.ScrubMismatches)},
		{"pstorage_cs_scrub_finished_timestamp_seconds", "seconds",
			"When the last complete pass ended; 0: never", float64(s.ScrubFinishedNs) / 1e9},
	} {
		t.Family(metrics.Gauge, g.name, g.unit, g.help).Add(g.value, labels...)
	}
	addWait(t, "pstorage_cs_log_write_seconds", "Appends to the log, until durable", &o.LogWait,
		labels)
	addWait(t, "pstorage_cs_disk_read_seconds", "Reads of the log and the store", &o.ReadWait, labels)
}

func addWait(t *metrics.Text, name, help string, h *chunk.WaitHistogram, labels []string) {
	bounds := make([]float64, chunk.WaitBuckets-1)
	for i := range bounds {
		bounds[i] = float64(chunk.WaitBound(i)) / 1e9
	}
	t.Family(metrics.Histogram, name, "seconds", help).
		AddHistogram(bounds, h.Counts[:], float64(h.SumNs)/1e9, labels...)
}
