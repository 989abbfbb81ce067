package fuse

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"pstorage/uring"
)

// This file is FUSE over io_uring (Linux 6.14). The kernel has a queue for each CPU that there may
// be and gives a request to that of the CPU where it was made. A queue has entries, each a call
// with its memory. An entry is registered, comes back with a request, is handed over again with the
// reply (which the kernel copies at that moment), comes back with the next request, and so on.
//
//	REGISTER ──► kernel ──► request ──► call.begin ... call.answer ──► COMMIT_AND_FETCH ─┐
//	               ▲                                                                      │
//	               └──────────────────────────────────────────────────────────────────────┘
//
// All entries are on the client's own ring: one io_uring_enter takes requests of the kernel and
// answers of chunk servers, and submits replies and questions. FORGET and INTERRUPT still come by
// /dev/fuse. When the file system is unmounted each entry comes back with ENOTCONN.

// queueEntries is how many entries a queue has: what one CPU may have under way at a time. The
// rest waits in the kernel, also what has nothing to do with those that hang: all kinds of requests
// share them. An entry takes 1 MiB of address space, and about 2 KiB of memory here and in the
// kernel; its payload what was used of it lately (rest.go).
const queueEntries = 128

// maxQueues is up to how many CPUs, those that may yet be plugged in included, FUSE over io_uring
// is chosen by itself: 32 GiB of address space, 64 MiB of memory.
const maxQueues = 256

// mapQueues returns memory for the entries of all queues, or nil if there is none and /dev/fuse
// will do. It must be there before the kernel is told that entries come, as it has everybody wait
// for them then.
func (o *Options) mapQueues(queues int) ([]byte, error) {
	mem, err := o.hooks.mapMemory(entriesSize(queues * queueEntries))
	if err == nil {
		return mem, nil
	}
	err = fmt.Errorf("memory for FUSE over io_uring, %d requests on each of %d CPUs: %w",
		queueEntries, queues, err)
	if o.OverRing == On {
		return nil, err
	}
	o.Log.Warn("requests come by /dev/fuse", "why", err)
	return nil, nil
}

// headsSize is how many bytes the headers of n entries take, entriesSize with the payloads.
func headsSize(n int) int   { return (n*entryHead + headPage - 1) &^ (headPage - 1) }
func entriesSize(n int) int { return headsSize(n) + n*maxWrite }

// register gives the kernel the entries of all queues, in memory of mapQueues.
func (c *conn) register(mem []byte, queues int) {
	c.makeEntries(mem, queues*queueEntries)
	for i, k := range c.calls[:c.entries] {
		// One of each queue first: they are used when all have one.
		k.enqueue(uint16(i%queues) + c.fs.o.hooks.firstQueue)
	}
}

// makeEntries makes the first n calls: all headers, then all payloads, in one piece of memory,
// which is the connection's from here on.
func (c *conn) makeEntries(mem []byte, n int) {
	c.ringMem, c.entries = mem, n
	payloads := mem[headsSize(n):]
	for i := range n {
		head, payload := mem[i*entryHead:][:entryHead], payloads[i*maxWrite:][:maxWrite]
		k := newCall(c, head, payload[:maxWrite:maxWrite])
		h := (*ringHeaders)(unsafe.Pointer(&head[0]))
		k.headers = h
		k.head = (*fuse.InHeader)(unsafe.Pointer(&h.inOut))
		k.arg = (*ioArg)(unsafe.Pointer(&h.arg))
		k.reply = (*fuse.OutHeader)(unsafe.Pointer(&h.inOut))
	}
}

// enqueue makes k an entry of a queue.
func (k *call) enqueue(queue uint16) {
	// Only this command needs them; they lie behind the headers.
	iov := (*[2]unix.Iovec)(unsafe.Pointer(&k.mem[unsafe.Sizeof(*k.headers)]))
	iov[0].Base, iov[1].Base = &k.mem[0], &k.payload[0]
	iov[0].SetLen(int(unsafe.Sizeof(*k.headers)))
	iov[1].SetLen(len(k.payload))
	k.cmd = uring.Cmd{File: k.c.file, Op: cmdRegister, Addr: uintptr(unsafe.Pointer(iov)), Len: 2,
		Arg: [3]uint64{2: uint64(queue)}, Done: func(_ *uring.Cmd, res int32) { k.arrived(res) }}
	k.c.live++
	k.c.loop.Command(&k.cmd)
}

// arrived is the entry's return: with a request, or for good.
func (k *call) arrived(res int32) {
	if res < 0 {
		k.c.lost(k, unix.Errno(-res))
		return
	}
	h := k.headers
	n := int(h.payloadSize)
	if argSize := int(k.head.Length) - inHeaderSize - n; n > len(k.payload) || argSize < 0 ||
		argSize > len(h.arg) {
		k.malformed()
		return
	}
	k.begin(n)
}

// commit hands the reply over, and the entry for the next request.
func (k *call) commit(n int) {
	h := k.headers
	h.payloadSize = uint32(n)
	k.cmd.Op, k.cmd.Addr, k.cmd.Len, k.cmd.Arg[1] = cmdCommitAndFetch, 0, 0, h.commitID
	k.c.loop.Command(&k.cmd)
}

// lost is the end of an entry: the file system was unmounted, or the kernel refused it.
func (c *conn) lost(k *call, errno unix.Errno) {
	c.live--
	switch {
	case k.cmd.Op == cmdRegister && errno != unix.ENOTCONN && errno != unix.ECONNABORTED:
		if c.refused == 0 {
			c.log.Warn("the kernel refuses FUSE over io_uring; going on by /dev/fuse", "err", errno)
		}
		c.refused = errno
		c.overRing.Store(false)
	case c.connected && errno != unix.ENOTCONN && errno != unix.ECONNABORTED:
		c.log.Error("the kernel refuses a reply", "request", k.opcode, "err", errno)
	}
	c.maybeEnded()
}

// possibleCPUs is how many CPUs the kernel counts with, and so how many queues there are.
func possibleCPUs() (int, error) {
	text, err := os.ReadFile("/sys/devices/system/cpu/possible")
	if err != nil {
		return 0, err
	}
	return countCPUs(strings.TrimSpace(string(text)))
}

// countCPUs counts a list such as 0-3,8.
func countCPUs(list string) (int, error) {
	n := 0
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, err := strconv.Atoi(from)
		if err != nil {
			return 0, fmt.Errorf("list of CPUs %q: %w", list, err)
		}
		b, err := strconv.Atoi(to)
		if err != nil || b < a || b-a >= 1<<16 {
			return 0, fmt.Errorf("list of CPUs %q isn't one", list)
		}
		n += b - a + 1
	}
	return n, nil
}

// enableParameter is what lets the kernel offer FUSE over io_uring to new mounts.
const enableParameter = "/sys/module/fuse/parameters/enable_uring"

// enableRing makes sure that the kernel offers it, or says why it doesn't.
func enableRing(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("this kernel has no FUSE over io_uring (Linux 6.14 with "+
			"CONFIG_FUSE_IO_URING): %w", err)
	}
	if s := string(text); strings.HasPrefix(s, "Y") || strings.HasPrefix(s, "1") {
		return nil
	}
	if err := os.WriteFile(path, []byte("1"), 0); err != nil {
		return fmt.Errorf("FUSE over io_uring is switched off: %w", err)
	}
	return nil
}
