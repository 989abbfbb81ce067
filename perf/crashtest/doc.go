// Package crashtest holds tests of whole servers, as processes on disks of their own, against
// faults below them: power cuts at every flush of a recorded run, kill -9, errors of reads, writes
// and flushes, disks that crawl, full file systems, old copies put back. It has no code but tests.
//
// Most need root (loop devices, mounts) and are skipped with a reason without it. By default and
// with -short they take seconds; PSTORAGE_LONG=1 runs all of each. A failing run prints its seed;
// PSTORAGE_SEED repeats it.
package crashtest
