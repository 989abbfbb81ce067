package main

import (
	"fmt"
	"math/bits"
	"sync"

	"golang.org/x/sys/unix"

	"pstorage/uring"
)

// Memory is used again from process to process and from seed to seed, with its old contents: what
// a run does must not depend on them, and comparing two runs of a seed shows that it doesn't.

// arenas are mappings for pools, by size.
var arenas = struct {
	sync.Mutex
	free map[int][][]byte
}{free: map[int][][]byte{}}

// newPool returns an empty pool of size bytes.
func newPool(size int) *uring.Pool {
	arenas.Lock()
	defer arenas.Unlock()
	list := arenas.free[size]
	if n := len(list); n > 0 {
		arenas.free[size] = list[:n-1]
		return uring.NewPoolIn(list[n-1])
	}
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		panic(fmt.Sprintf("map %d bytes: %v", size, err))
	}
	return uring.NewPoolIn(m)
}

// freePool takes back the memory of a pool whose process has ended.
func freePool(p *uring.Pool) {
	arenas.Lock()
	defer arenas.Unlock()
	m := p.Arena()
	arenas.free[len(m)] = append(arenas.free[len(m)], m)
}

// buffers are memory for operations, by powers of two.
type buffers [24][][]byte

func (m *buffers) get(n int) []byte {
	class := bits.Len(uint(n - 1))
	if l := len(m[class]); l > 0 {
		b := m[class][l-1]
		m[class] = m[class][:l-1]
		return b[:n]
	}
	return make([]byte, n, 1<<class)
}

func (m *buffers) put(b []byte) {
	class := bits.Len(uint(cap(b) - 1))
	m[class] = append(m[class], b)
}
