package ssdcache

import (
	"fmt"
	"math/bits"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"pstorage/dataplane"
)

// Pos is a block's place in the log: the block number in the file or device.
type Pos uint32

// index finds a block's newest position in the log. It lives in one mapping outside the Go heap,
// without pointers: per position 8 bytes of index, which are 4 of owner and 3.95 of hash table
// (4.74 above 2^26 positions, 256 GiB), and beside them 4 of CRC and 1 of state.
//
// The table is a bucketized cuckoo hash table. A key's hash names two buckets, each a cache line.
// A key goes to the first if there is room, otherwise to the second; if that is full, too, an entry
// of one of them makes room by changing to the other one of its own two. A bucket counts which keys
// are elsewhere, so a search often ends there; the tags of its entries say which places needn't be
// looked at. In an index that stays full a quarter of the keys are in their second bucket.
// Where no entry can change, the key goes to the stash, a list that is searched to the end. With
// nine tenths of the entries in use that happens next to never by chance, but would to somebody who
// knows the hash and picks blocks by it. So the hash has a seed that users of the store can't know.
//
// Invariant: a place's owner isn't 0 exactly if the table holds its position p, and then p is the
// newest position of that key; what was superseded or dropped has owner 0. So to ask whether a
// position is still current, and to walk the current blocks of a segment, takes no search. Nothing
// that can be seen from outside depends on where in the table a key is.
type index struct {
	mem   []byte
	table []bucket
	place []place // by position
	state []uint8 // by position
	stash []Pos
	n     int
	seed  uint64
	shape
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

// tableLoad is the part of the entries that is in use if all positions are, in tenths. At nine, a
// third to half of the buckets are full; at more, keys have to make room for others too often.
const tableLoad = 9

// newIndex returns an index for positions [0, positions), the first of which is never a block's.
// The seed decides what hashes to what; users of the store must not know it.
func newIndex(positions uint32, seed uint64) (*index, error) {
	width := uint(narrow)
	if positions > 1<<(narrow-minTag) {
		width = wide
	}
	return newIndexOf(positions, width, seed)
}

// newIndexOf is newIndex with entries of the given width, narrow or wide.
func newIndexOf(positions uint32, width uint, seed uint64) (*index, error) {
	s, err := shapeFor(positions, width)
	if err != nil {
		return nil, err
	}
	n := uint64(positions)
	buckets := n*10/uint64(tableLoad*s.slots()) + 2
	places := buckets * uint64(unsafe.Sizeof(bucket{}))
	states := places + n*uint64(unsafe.Sizeof(place{}))
	mem, err := unix.Mmap(-1, 0, int(states+n), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map an index of %d bytes: %w", states+n, err)
	}
	// Look-ups are all over it: pages of 2 MiB, if there are any, spare them misses of the TLB.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	return &index{mem: mem, state: mem[states:], shape: s, seed: seed,
		table: unsafe.Slice((*bucket)(unsafe.Pointer(&mem[0])), buckets),
		place: unsafe.Slice((*place)(unsafe.Pointer(&mem[places])), positions)}, nil
}

func (x *index) close() error { return unix.Munmap(x.mem) }

// hash is another one for each key: its upper half gives the first bucket and the tag, its lower
// half the second bucket.
func (x *index) hash(key blockKey) uint64 {
	h := uint64(key) ^ x.seed
	h = (h ^ h>>32) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>29) * 0x94d049bb133111eb
	return h ^ h>>32
}

// first is the bucket where the key with hash h belongs.
func (x *index) first(h uint64) int { return int(h >> 32 * uint64(len(x.table)) >> 32) }

// second is the other bucket where it may be.
func (x *index) second(h uint64) int {
	i := int(h & (1<<32 - 1) * uint64(len(x.table)) >> 32)
	if i != x.first(h) {
		return i
	}
	if i++; i < len(x.table) {
		return i
	}
	return 0
}

// spot is where a key was found: entry m (a bit of match) of a bucket, or m of the stash; m is -1
// if it wasn't.
type spot struct{ bucket, m int }

const inStash = -1

// find searches for key, which has hash h.
func (x *index) find(h uint64, key blockKey) (spot, Pos) {
	e, i := x.entry(h, 0), x.first(h)
	if m, p := x.findIn(i, e, key); m >= 0 {
		return spot{i, m}, p
	}
	if x.table[i][elsewhere] == 0 {
		return spot{m: -1}, 0
	}
	i = x.second(h)
	if m, p := x.findIn(i, e, key); m >= 0 {
		return spot{i, m}, p
	}
	for m, p := range x.stash {
		if x.place[p].owner == key+1 {
			return spot{inStash, m}, p
		}
	}
	return spot{m: -1}, 0
}

// findIn searches for key in bucket i; e has its tag. An empty entry leads to place 0: of nobody.
func (x *index) findIn(i int, e uint64, key blockKey) (int, Pos) {
	b := &x.table[i]
	for hits := x.match(b, e, x.tags); hits != 0; hits &= hits - 1 {
		m := bits.TrailingZeros64(hits)
		p := Pos(x.load(b, m) & (1<<x.posBits - 1))
		if x.place[p].owner == key+1 {
			return m, p
		}
	}
	return -1, 0
}

// locate returns where position p is, which belongs to a key with hash h. It reads no places.
func (x *index) locate(h uint64, p Pos) spot {
	e := x.entry(h, p)
	for _, i := range [2]int{x.first(h), x.second(h)} {
		if hits := x.match(&x.table[i], e, x.whole); hits != 0 {
			return spot{i, bits.TrailingZeros64(hits)}
		}
	}
	if m := slices.Index(x.stash, p); m >= 0 {
		return spot{inStash, m}
	}
	panic(fmt.Sprintf("ssdcache: position %d has owner %#x and isn't in the table", p,
		x.place[p].owner))
}

func (x *index) get(key blockKey) (Pos, bool) {
	at, p := x.find(x.hash(key), key)
	return p, at.m >= 0
}

// put makes p, which must not be in use, the newest position of key.
func (x *index) put(key blockKey, p Pos, crc uint32) {
	if x.place[p].owner != 0 || p == 0 {
		panic(fmt.Sprintf("ssdcache: position %d is owned by block %#x", p, x.place[p].owner-1))
	}
	h := x.hash(key)
	switch at, old := x.find(h, key); {
	case at.m < 0:
		x.n++
		x.insert(h, p)
	case at.bucket == inStash:
		x.place[old].owner = 0
		x.stash[at.m] = p
	default:
		x.place[old].owner = 0
		x.store(&x.table[at.bucket], at.m, x.entry(h, p))
	}
	x.place[p], x.state[p] = place{key + 1, crc}, isWrite
}

// insert finds a place in the table for position p of a key with hash h, which isn't in it.
func (x *index) insert(h uint64, p Pos) {
	e, i, j := x.entry(h, p), x.first(h), x.second(h)
	if x.add(&x.table[i], e) {
		return
	}
	if !x.add(&x.table[j], e) {
		if x.makeRoom(i) {
			x.add(&x.table[i], e)
			return
		}
		if !x.makeRoom(j) || !x.add(&x.table[j], e) {
			x.stash = append(x.stash, p)
		}
	}
	x.table[i].count(1)
}

// makeRoom moves an entry of bucket i, which is full, to the other one of its buckets.
func (x *index) makeRoom(i int) bool {
	b, all := &x.table[i], pattern{mask: 0, ones: x.whole.ones}
	for hits := x.match(b, 0, all); hits != 0; hits &= hits - 1 {
		m := bits.TrailingZeros64(hits)
		e := x.load(b, m)
		h := x.hash(x.place[e&(1<<x.posBits-1)].owner - 1)
		home, d := x.first(h), -1
		to := home
		if home == i {
			to, d = x.second(h), 1
		}
		if x.add(&x.table[to], e) {
			x.table[home].count(d)
			x.store(b, m, 0)
			return true
		}
	}
	return false
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
	h := x.hash(key)
	if at, p := x.find(h, key); at.m >= 0 {
		x.remove(h, p, at)
	}
}

// evict forgets the block at p, if any: its place is to be used again.
func (x *index) evict(p Pos) {
	if key, ok := x.current(p); ok {
		h := x.hash(key)
		x.remove(h, p, x.locate(h, p))
	}
}

// remove forgets position p of a key with hash h, which is at a spot.
func (x *index) remove(h uint64, p Pos, at spot) {
	x.place[p].owner = 0
	x.n--
	home := x.first(h)
	if at.bucket != home {
		x.table[home].count(-1)
	}
	if at.bucket == inStash {
		x.stash = slices.Delete(x.stash, at.m, at.m+1)
		return
	}
	x.store(&x.table[at.bucket], at.m, 0)
	if len(x.stash) != 0 {
		x.unstash(at.bucket)
	}
}

// unstash takes a key out of the stash that may be in bucket i, which has room.
func (x *index) unstash(i int) {
	for m, p := range x.stash {
		h := x.hash(x.place[p].owner - 1)
		home := x.first(h)
		if home != i && x.second(h) != i {
			continue
		}
		x.add(&x.table[i], x.entry(h, p))
		if home == i {
			x.table[i].count(-1)
		}
		x.stash = slices.Delete(x.stash, m, m+1)
		return
	}
}
