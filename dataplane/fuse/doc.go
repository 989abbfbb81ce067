// Package fuse mounts a cluster's files in the kernel's file system, by /dev/fuse.
//
// An inode number is a FileID. Reads and writes don't go through the page cache (FOPEN_DIRECT_IO):
// what one client wrote is what the next read returns, on this host and on others (but see below);
// O_DIRECT, loop devices with direct I/O and I/O of any alignment work. Permissions are checked by
// the kernel (default_permissions); file locks are the kernel's too, so they hold among processes
// of one host.
//
// The kernel's requests come to the client's event loop: over io_uring, on the loop's own ring
// (ring.go), or by /dev/fuse (device.go). There READ, WRITE and FSYNC are given to the client's
// engine at once, without a goroutine or a copy (call.go); go-fuse's protocol server has the rest
// on goroutines, which call the MDS. When the cluster can't answer, requests wait, as the data path
// does; a process that waits for longer than Options.Grace can be interrupted.
//
// What differs from a local file system:
//   - There are no hard links, device nodes, sockets or pipes.
//   - A file that is removed (or replaced by a rename) while a process of this host has it open
//     moves to a hidden name in the root directory until the last close. If the mount dies before,
//     that name stays: `.pstorage-deleted.CLIENT.FILE`. Processes on other hosts that have it open
//     lose it.
//   - The time of modification is sent at close, and once a while; not with every write. The time
//     of access changes only when it is set.
//   - fallocate doesn't reserve space.
//   - A read with O_DIRECT through libaio or io_uring ends at the size that the kernel was told
//     last, without asking us: what another host appended is missing until the kernel is told anew,
//     as by a stat (see Options.AttrTTL).
//   - After a write through them that failed, the next ftruncate by the same open may be refused
//     once, with the error of the write.
//   - mmap, and since Linux 6.5 sendfile, splice and copy_file_range (which cp uses), read by the
//     page cache: what another host has written since a page was read is missing until the file is
//     opened anew, or its time of modification or its size is seen to have changed.
//   - A write to a file that is open with O_APPEND never overwrites, so RWF_NOAPPEND has no effect.
//   - A new entry in a directory with the set-group-ID bit doesn't inherit the group.
package fuse
