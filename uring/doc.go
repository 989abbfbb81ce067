// Package uring is the reactor of pstorage: one OS thread, one io_uring, sockets and disks
// together. A Loop sleeps in one place, io_uring_enter; everything a chunk server or client does
// happens in callbacks on its thread, so its state needs no locks.
//
// seam.go has the interfaces (Env, Disk, Conn, Net) that logic is written against; simloop
// implements the same over a virtual clock.
//
// # A turn of the loop
//
//	completions ─► callbacks ─┐
//	posted work ─► callbacks ─┤ again while there is more, at most maxRounds times
//	due timers  ─► callbacks ─┤
//	deferred    ─► callbacks ─┘
//	AtTurnEnd callbacks, then the above again if they made work
//	flush: one receive and one send per connection that needs it, waiting disk operations
//	io_uring_enter: submit, and sleep until a completion, a timer or a post
//
// Disk operations become submission entries when they are asked for. Every SubmitEarly entries
// they are handed over in the middle of the turn, so that the disk has work meanwhile.
//
// # Order
//
// Bytes of a connection are sent and received in order. Disk operations complete in any order:
// whoever needs one, waits for the first before submitting the second.
//
// # Who owns a buffer
//
// A Buf has references. The pool's memory is mapped outside the Go heap and registered with the
// ring, so a transfer to or from it costs the kernel no mapping of pages. A DiskOp and its buffers
// belong to the disk from Submit to Done; a buffer given to AppendBuf is held by the connection
// until it is sent; memory given for a direct receive belongs to the connection until RecvDone or
// Closed. iovecs, message headers and socket addresses of operations in flight lie in slabs
// outside the Go heap.
//
// # Bounds
//
// At most LoopOptions.MaxDiskOps disk operations are in flight, a quarter of the completion queue;
// more wait in queues of the disk. Each connection has at most one receive and one send in flight.
// So the completion queue overflows only with thousands of connections; then the kernel keeps the
// completions and hands them over in the next turn.
//
// # What kernels have
//
// Linux 5.6 is the oldest that works. What newer ones add is asked for and done without where it
// is missing, which the log says: timeouts in io_uring_enter (5.11), multishot accept (5.19),
// SINGLE_ISSUER (6.0), DEFER_TASKRUN (6.1), O_DIRECT alignment by statx (6.1), vectored transfers
// by registered buffers (6.15).
package uring
