// Package simloop implements the seam of package uring (Env, Disk, Net) over a virtual clock, a
// faulty disk and a faulty network, all in one goroutine and all decided by one seed. The logic of
// a chunk server, of the log and of the client runs unchanged on it.
//
// # Time and order
//
// A Sim has one queue of events ordered by (time, order of making). An Env is one node: it gathers
// what is due, then runs it as one turn (due timers, completions, received bytes, the turn's end),
// and is busy for a few microseconds after it, so that batches form as they do on a real loop.
// Nothing else moves the clock. No map is iterated, no wall clock is read: the same seed and the
// same calls give the same history, and Sim.Hash proves it.
//
// # Faults
//
// A Disk keeps, beside what reads see, what a power cut would leave: of every 512-byte sector that
// was written and not made durable by a DiskSync or its own DiskWriteSync, any version since the
// last durable one may be what survives. Disk.Fault injects errors, lost, misdirected, torn and
// flipped writes per operation. Net delays, cuts, and resets; Env.Kill ends a process.
//
// Broken users are caught: an operation's memory that changes while a write is in flight, memory
// of Recv used after the call (it is overwritten), unaligned disk operations.
package simloop
