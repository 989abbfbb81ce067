// Package uring is the reactor of pstorage: one OS thread, one io_uring, sockets and disks
// together. A Loop sleeps in one place, io_uring_enter; everything a chunk server or client does
// happens in callbacks on its thread, so its state needs no locks.
//
// seam.go has the interfaces (Env, Disk, Conn, Net) that logic is written against; simloop
// implements the same over a virtual clock.
package uring
