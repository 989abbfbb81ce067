package ssdcache

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
)

// Pos is a block's place in the log: the block number in the file or device.
type Pos uint32

// index finds a block's newest position in the log. It lives in one mapping outside the Go heap,
// without pointers: per position 4 bytes of owner, 4 of CRC, 1 of state, and 6 bytes of hash table.
//
// The table has open addressing with linear probing; an entry is a position, its key is found in
// the block's place. Invariant: a place's owner isn't 0 exactly if the table holds its position p,
// and then p is the newest position of that key; what was superseded or dropped has owner 0. So to
// ask whether a position is still current, and to walk the current blocks of a segment, takes no
// probing.
type index struct {
	mem   []byte
	table []uint32 // position plus 1; 0: empty
	place []place  // by position
	state []uint8  // by position
	n     int
}

// place is what is known of a position. A look-up needs both, so they share a cache line.
type place struct {
	owner uint32 // key plus 1; 0: none
	crc   uint32
}

// isClean in a state says that the store has the same contents; isWrite that the block was written,
// also when it isn't the newest any more; heatMask are the reads seen, up to heatMask of them.
const (
	isClean  = 0x80
	isWrite  = 0x40
	heatMask = 0x07
)

// blockKey names a block of the store in 32 bits.
type blockKey = uint32

func keyOf(slot, block uint32) blockKey {
	if slot >= MaxSlots || block >= dataplane.BlocksPerChunk {
		panic(fmt.Sprintf("ssdcache: slot %d block %d", slot, block))
	}
	return slot<<14 | block
}

// Compiles only if a chunk has 1<<14 blocks.
const _ = uint(dataplane.BlocksPerChunk-1<<14) + uint(1<<14-dataplane.BlocksPerChunk)

// newIndex returns an index for positions [0, positions).
func newIndex(positions uint32) (*index, error) {
	table := uint64(positions) + uint64(positions)/2 + 64
	words := table + 2*uint64(positions)
	size := int(4*words + uint64(positions))
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map an index of %d bytes: %w", size, err)
	}
	// Look-ups are all over it: pages of 2 MiB, if there are any, spare them misses of the TLB.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	return &index{mem: mem, state: mem[4*words:],
		place: unsafe.Slice((*place)(unsafe.Pointer(&mem[0])), positions),
		table: unsafe.Slice((*uint32)(unsafe.Pointer(&mem[8*uint64(positions)])), table)}, nil
}

func (x *index) close() error { return unix.Munmap(x.mem) }

// home is where the search for a key begins.
func (x *index) home(key blockKey) int {
	h := key * 0x9e3779b1
	h = (h ^ h>>15) * 0x85ebca6b
	h ^= h >> 13
	return int(uint64(h) * uint64(len(x.table)) >> 32)
}

// find returns the table place of key, or the empty place where it would go.
func (x *index) find(key blockKey) int {
	for i := x.home(key); ; {
		e := x.table[i]
		if e == 0 || x.place[e-1].owner == key+1 {
			return i
		}
		if i++; i == len(x.table) {
			i = 0
		}
	}
}

func (x *index) get(key blockKey) (Pos, bool) {
	e := x.table[x.find(key)]
	return Pos(e - 1), e != 0
}

// put makes p, which must not be in use, the newest position of key.
func (x *index) put(key blockKey, p Pos, crc uint32) {
	if x.place[p].owner != 0 {
		panic(fmt.Sprintf("ssdcache: position %d is owned by block %#x", p, x.place[p].owner-1))
	}
	i := x.find(key)
	if e := x.table[i]; e != 0 {
		x.place[e-1].owner = 0
	} else {
		x.n++
	}
	x.table[i], x.place[p], x.state[p] = uint32(p)+1, place{key + 1, crc}, isWrite
}

// current says whether p is the newest position of a block, and of which.
func (x *index) current(p Pos) (blockKey, bool) {
	owner := x.place[p].owner
	return owner - 1, owner != 0
}

// crc is the checksum of the block at p.
func (x *index) crc(p Pos) uint32 { return x.place[p].crc }

// drop forgets a block.
func (x *index) drop(key blockKey) {
	if i := x.find(key); x.table[i] != 0 {
		x.remove(i)
	}
}

// evict forgets the block at p, if any: its place is to be used again.
func (x *index) evict(p Pos) {
	if key, ok := x.current(p); ok {
		x.remove(x.find(key))
	}
}

// remove empties table place i and closes the gap, so that searches still find what lies behind.
func (x *index) remove(i int) {
	x.place[x.table[i]-1].owner = 0
	x.n--
	for j := i; ; {
		x.table[i] = 0
		for {
			if j++; j == len(x.table) {
				j = 0
			}
			e := x.table[j]
			if e == 0 {
				return
			}
			// The entry at j may move to the gap at i unless its home lies between them.
			h := x.home(x.place[e-1].owner - 1)
			if between := i < h && h <= j || j < i && (i < h || h <= j); !between {
				break
			}
		}
		x.table[i] = x.table[j]
		i = j
	}
}
