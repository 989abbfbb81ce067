package fuse

import (
	"time"

	"golang.org/x/sys/unix"
)

// This file gives back the memory of payloads. There are many more calls than are usually under
// way, and each may have had a request of 1 MiB once. The kernel takes the entry of a queue that
// came back last, so those that only a burst needed stay as they are.

const (
	// restAfter is after how long without use a payload's memory is given back.
	restAfter = 10 * time.Second
	// restKeep is how much of a payload each call may keep.
	restKeep = 4096
	// restBatch is how many are given back at a time, restAgain when the next ones are, or when it
	// is tried again.
	restBatch = 16
	restAgain = 10 * time.Millisecond
)

// touched notes that n bytes of the payload were used, or are about to be.
func (k *call) touched(n int) {
	if n <= restKeep {
		return
	}
	c := k.c
	if k.used == 0 {
		c.filled = append(c.filled, k)
		if !c.rest.Armed() {
			c.loop.Arm(&c.rest, int64(c.fs.o.hooks.restAfter))
		}
	}
	k.used, k.usedAt = max(k.used, n), c.loop.Now()
}

// giveBack gives back what wasn't used for a while.
//
// The payload of an entry that waits in the kernel for a request must not be taken away when the
// kernel has just filled it. The kernel fills it on this thread, within io_uring_enter, as only
// this process's threads have its addresses, and completes the command there. So when all
// completions were taken it is empty, and stays so until the next io_uring_enter.
func (c *conn) giveBack() {
	settled, idle, n := c.loop.Settled(), false, 0
	old := c.loop.Now() - int64(c.fs.o.hooks.restAfter)
	kept := c.filled[:0]
	for _, k := range c.filled {
		switch {
		case k.state != callFree || k.usedAt > old:
			kept = append(kept, k)
		case n == restBatch || k.headers != nil && !settled:
			kept, idle = append(kept, k), true
		default:
			_ = unix.Madvise(k.payload[:k.used], unix.MADV_DONTNEED)
			k.used = 0
			n++
		}
	}
	clear(c.filled[len(kept):])
	c.filled = kept
	switch {
	case idle:
		c.loop.Arm(&c.rest, int64(restAgain))
	case len(kept) > 0:
		c.loop.Arm(&c.rest, int64(c.fs.o.hooks.restAfter))
	}
}
