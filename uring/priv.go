package uring

// diskOpPriv is what the ring keeps in a DiskOp.
type diskOpPriv struct{}
