// Package emulate makes disks of a chosen speed out of files: a loop device with direct I/O over
// a file, limited by the block I/O throttle of a control group (version 1). A Rig is a set of such
// disks and the control group; only processes in the group are slowed.
//
// What is limited is what a process submits itself: direct I/O, also through a ring. Buffered
// writes are written back by the kernel's threads, unlimited. Reads and writes have separate
// budgets, unlike a real disk's. An operation counts once for each piece the kernel cuts it in
// (about 512 KiB); a flush doesn't count; neighbours don't count less, so a sequential stream of
// small operations is as slow as a random one: worse than on a real disk.
//
// Everything a rig makes carries its name: the lock (which says whether its owner lives), the
// files, the mounts (by their device), the control group. So what a crash left is found by name
// and taken away when the same name is opened again, or by Sweep.
package emulate
