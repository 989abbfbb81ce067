// Package chunk is the chunk server: one per disk. It keeps chunks in 64 MiB slots of a store file,
// in front of them a log (package ssdcache) in which every write becomes durable first, a CRC32C
// for each 4 KiB block apart from the data, and it replicates writes to the other members of each
// chunk.
//
// A Shard is the whole server as callbacks on one thread, over the seams of package uring, so that
// it runs on a real ring and in a simulation alike. Run is the process around it: files, lease,
// the connection to the metadata servers.
//
// Flows to read, each one file: write.go (a client's write at the head), member.go (the same write
// at the other members), read.go, settle.go and coordinator.go (bringing the members of a chunk to
// one history), checkpoint.go (what makes the store's tables durable).
package chunk
