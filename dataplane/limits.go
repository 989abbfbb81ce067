package dataplane

import "time"

// Limits of the protocol. What a limit bounds is never trusted before it was checked.
const (
	MaxControlPayload = 1 << 20 // bytes of one control frame's payload
	MaxNameLen        = 255     // bytes of one file name
	MaxPathLen        = 4096    // bytes of a path or a symlink's target

	// MaxInflightPerChunk bounds the writes of one chunk that the head has accepted and not yet
	// committed; a replica's reorder buffer and its list of recent extents need be no longer.
	MaxInflightPerChunk = 256

	// SmallWrite: up to this many bytes the head fans out to all members at once; above it the
	// write walks the chain.
	SmallWrite = 32 << 10

	DefaultMDSPort = 2510
)

// Times of the lease protocol (invariant I4). A chunk server counts its lease from the moment it
// sent the heartbeat, on its own monotonic clock; the metadata server from the moment it answered,
// with the margin added, so that a bounded clock drift can't make the two disagree.
const (
	HeartbeatEvery = 500 * time.Millisecond
	LeaseTime      = 2 * time.Second
	LeaseMargin    = 200 * time.Millisecond

	// FileLeaseTime is for how long a client that says nothing keeps its right to write files, and
	// RenewEvery how often it says something. Its writes are kept out by fences, not by clocks.
	FileLeaseTime = 30 * time.Second
	RenewEvery    = 5 * time.Second
)
