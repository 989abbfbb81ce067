// Package mds is the metadata server: the names of files, the chunk records, where chunks are
// placed, who is alive, and the replicated log that keeps all of it.
//
// The core is a pure, deterministic state machine (State): commands in, results out; time and
// placement come inside the commands. hashicorp/raft carries the commands (raft.go), and a shell
// of ordinary Go serves requests (server.go). What only the leader of the moment knows, such as
// leases and connections, is soft state beside it (lease.go, repair.go), again pure.
//
// See README.md for the promises, limits and formats.
package mds

import (
	"fmt"

	"pstorage/dataplane"
)

// Limits of the state machine.
const (
	// MaxFileChunks bounds the chunks of one file, and so its size: 4 PiB.
	MaxFileChunks = 1 << 26
	// MaxFileSize is the largest size of a file in bytes.
	MaxFileSize = MaxFileChunks * dataplane.ChunkSize
	// MaxXattrValue bounds the value of an extended attribute in bytes.
	MaxXattrValue = 64 << 10
	// MaxXattrBytes bounds all extended attributes of one file, names and values, in bytes.
	MaxXattrBytes = 128 << 10
	// MaxEvents is how many events the cluster remembers.
	MaxEvents = 10000
	// MaxCS bounds the ids of chunk servers that were ever registered.
	MaxCS = 1 << 20
	// GCPercent is what a process with a metadata server gives debug.SetGCPercent. The chunk table
	// lies outside the heap, so what is left is collected quickly, and garbage of half its size
	// keeps the whole below 140 bytes per chunk.
	GCPercent = 50
	// MaxConfigKeys bounds the entries of the cluster configuration; each node has one, and each
	// chunk server that a node with a certificate registered.
	MaxConfigKeys = 16384

	// freeStep is how many chunks one command frees at most, so that no command holds up the
	// others for more than about a millisecond.
	freeStep = 1024
	// dedupeMax is how many results of mutations are remembered for clients that ask again.
	dedupeMax = 32768
	// maxEventText bounds source, code and message of an event, in bytes each.
	maxEventText = 1024
)

// assert stops the process when something that this package guarantees to itself doesn't hold.
func assert(ok bool, what string, values ...any) {
	if !ok {
		panic(fmt.Sprint("mds: assertion failed: ", what, " ", fmt.Sprintln(values...)))
	}
}

// errCorrupt describes damage in a log entry or a snapshot.
func errCorrupt(format string, args ...any) error {
	return dataplane.E("read metadata", dataplane.BadCRC, fmt.Errorf(format, args...))
}
