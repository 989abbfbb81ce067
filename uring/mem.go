package uring

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// slab hands out records that the kernel may point into while an operation is in flight (iovecs,
// message headers, socket addresses). They lie outside the Go heap and never move. T holds no Go
// pointers. Memory is never given back; it is bounded by the most operations ever in flight.
type slab[T any] struct {
	free []*T
	maps [][]byte
}

// slabChunk is how many bytes a slab grows by, at least.
const slabChunk = 64 << 10

func (s *slab[T]) get() *T {
	if len(s.free) == 0 {
		s.grow()
	}
	t := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	return t
}

func (s *slab[T]) put(t *T) { s.free = append(s.free, t) }

func (s *slab[T]) grow() {
	var t T
	size := int(unsafe.Sizeof(t))
	n := max(1, slabChunk/size)
	m := mustMap(n * size)
	s.maps = append(s.maps, m)
	for i := n - 1; i >= 0; i-- {
		s.free = append(s.free, (*T)(unsafe.Pointer(&m[i*size])))
	}
}

func (s *slab[T]) unmap() {
	for _, m := range s.maps {
		_ = unix.Munmap(m)
	}
	s.maps, s.free = nil, nil
}

// mustMap maps anonymous memory. It panics if the kernel has none: the amounts are small.
func mustMap(size int) []byte {
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		panic(fmt.Sprintf("uring: map %d bytes: %v", size, err))
	}
	return m
}

func addrOf(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }
