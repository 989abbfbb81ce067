// Package client is how a program reads and writes files of a cluster.
//
// Engine is the data path: a single-threaded state machine on a reactor (uring.Env, uring.Net). It
// knows which chunk servers hold a file's chunks, cuts requests in parts of up to 64 KiB, sends
// them, checks what comes back, and tries again whatever can be tried again. Client puts an Engine
// on a loop of its own and adds names and attributes, for callers on ordinary goroutines.
//
// # The way of an operation
//
//	Submit       op waits for the end of the turn                           op.go
//	start        size checks; a write past the end asks the MDS to grow     size.go
//	issue        cut in parts: chunk borders, 64 KiB; a window per op       op.go
//	dispatch     map entry -> member (fetch, allocate, or zeros)            dispatch.go, maps.go
//	send         to the member's connection, bounded bytes in flight        peer.go
//	reply        check CRCs, copy; or decide by the table                   reply.go, retry.go
//	finish       last part done (and file grown): Op.Done                   op.go
//
// # What a caller may rely on
//
// An operation doesn't fail while the data is safe: it waits and is tried again for as long as it
// takes, unless Op.Timeout says otherwise. It fails when every member of a chunk has answered,
// twice, that a block is damaged (EIO); when the file or the right to use it is gone; or when the
// engine is closed. A failed write is indeterminate, but each 4 KiB block is old or new.
//
// A write that was acknowledged is on stable storage on all members (files with write-ack=memory:
// after Flush or with FUA). A read returns the newest acknowledged bytes, also those written by
// other clients: that a chunk doesn't exist, or where a file ends, isn't taken from a cache without
// asking.
package client
