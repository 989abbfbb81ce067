// Package ssdcache is the log of a chunk server: every change of its chunks goes to it first, is
// acknowledged when it is durable there, and is written back to the store behind it later, sorted
// and merged. It is a ring of segments on an SSD, or on the disk itself. README.md has the format,
// the promises and the argument why a power cut keeps them.
//
// A flow is a file:
//
//	append.go   Append: into the open batch and the index
//	commit.go   batch to disk, completions, Done in order
//	read.go     Lookup and Read
//	readcache.go  copies of what is read often
//	destage.go  oldest segments to the Backing, then free
//	runs.go     runs of blocks for it
//	pace.go     the intake slowed to its speed
//	open.go     Format, Open: superblock, replay, ready
//	walk.go     which parts of the log replay reads
//	replay.go   what to do with what replay finds: the decision table
//	format.go   bytes on disk
//	index.go    block -> position, outside the Go heap
//
// Everything happens on one thread, in callbacks of the seam in package uring; nothing is allocated
// per append or read.
package ssdcache
