package uring

// diskOpPriv is what the ring keeps in a DiskOp while it is in flight.
type diskOpPriv struct {
	d     *ringDisk
	next  *DiskOp // in a queue of the disk
	iov   *iovecs // nil for a single buffer
	done  int64   // bytes transferred
	size  int64   // bytes to transfer
	busy  bool    // submitted and not yet done
	punch bool    // submitted as the punching of a hole
}
