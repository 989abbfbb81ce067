package main

import (
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"pstorage/uring"
	"pstorage/uring/simloop"
)

// Memory is used again from process to process and from seed to seed, with its old contents: what
// a run does must not depend on them, and comparing two runs of a seed shows that it doesn't.

// arenas are mappings for pools, by size.
var arenas = struct {
	sync.Mutex
	free map[int][][]byte
}{free: map[int][][]byte{}}

// pools are what one process has.
type pools struct{ maps [][]byte }

// pool returns an empty pool of size bytes.
func (p *pools) pool(size int) (*uring.Pool, error) {
	arenas.Lock()
	defer arenas.Unlock()
	var m []byte
	if list := arenas.free[size]; len(list) > 0 {
		m, arenas.free[size] = list[len(list)-1], list[:len(list)-1]
	} else {
		var err error
		if m, err = unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE); err != nil {
			return nil, fmt.Errorf("map %d bytes: %w", size, err)
		}
		huge(m)
	}
	p.maps = append(p.maps, m)
	return uring.NewPoolIn(m, p.unmap), nil
}

// unmap takes back the memory of one pool.
func (p *pools) unmap(m []byte) error {
	i := slices.IndexFunc(p.maps, func(o []byte) bool { return &o[0] == &m[0] })
	if i < 0 {
		panic("memory of a pool given back twice")
	}
	p.maps = slices.Delete(p.maps, i, i+1)
	arenas.Lock()
	defer arenas.Unlock()
	arenas.free[len(m)] = append(arenas.free[len(m)], m)
	return nil
}

// free takes back everything. The process has ended and isn't in a turn.
func (p *pools) free() {
	for len(p.maps) > 0 {
		_ = p.unmap(p.maps[0])
	}
}

// idleBuffers are memory for operations and connections that no world uses now.
var idleBuffers struct {
	sync.Mutex
	list []*simloop.Buffers
}

func takeBuffers() *simloop.Buffers {
	idleBuffers.Lock()
	defer idleBuffers.Unlock()
	n := len(idleBuffers.list)
	if n == 0 {
		return new(simloop.Buffers)
	}
	b := idleBuffers.list[n-1]
	idleBuffers.list = idleBuffers.list[:n-1]
	return b
}

func giveBuffers(b *simloop.Buffers) {
	idleBuffers.Lock()
	defer idleBuffers.Unlock()
	idleBuffers.list = append(idleBuffers.list, b)
}

// huge asks for huge pages, as what a run writes is spread over much memory. It works without.
func huge(m []byte) { _ = unix.Madvise(m, unix.MADV_HUGEPAGE) }

// slabList are slabs that no simulation uses now. They lie outside the Go heap, whose collector
// would otherwise wait for a multiple of them.
type slabList struct {
	sync.Mutex
	free [][]byte
}

var slabs slabList

// slabsAtOnce is how many slabs are mapped together; what of them isn't used takes no memory.
const slabsAtOnce = 16

// Get implements simloop.Slabs.
func (l *slabList) Get() []byte {
	l.Lock()
	defer l.Unlock()
	if len(l.free) == 0 {
		m, err := unix.Mmap(-1, 0, slabsAtOnce*simloop.SlabSize, unix.PROT_READ|unix.PROT_WRITE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err != nil {
			return make([]byte, simloop.SlabSize)
		}
		huge(m)
		for ; len(m) > 0; m = m[:len(m)-simloop.SlabSize] {
			l.free = append(l.free, m[len(m)-simloop.SlabSize:len(m):len(m)])
		}
	}
	n := len(l.free)
	s := l.free[n-1]
	l.free = l.free[:n-1]
	return s
}

// Put implements simloop.Slabs.
func (l *slabList) Put(slab []byte) {
	l.Lock()
	defer l.Unlock()
	l.free = append(l.free, slab)
}
