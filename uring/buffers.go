package uring

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BufAlign is the alignment of every buffer of a Pool: enough for O_DIRECT on any disk.
const BufAlign = 4096

// Buf is a piece of a Pool, counted by references. Counting isn't atomic: a Buf belongs to one
// loop's thread.
type Buf struct {
	mem   []byte
	refs  int32
	class uint8
	pool  *Pool
	next  *Buf
}

// Bytes is the whole buffer, page-aligned. Valid as long as the caller holds a reference.
func (b *Buf) Bytes() []byte { return b.mem }

// Retain adds a reference.
func (b *Buf) Retain() {
	if b.refs <= 0 {
		panic(fmt.Sprintf("uring: Retain of a free buffer (refs %d)", b.refs))
	}
	b.refs++
}

// Release drops a reference; the last one gives the buffer back to its pool.
func (b *Buf) Release() {
	if b.refs <= 0 {
		panic(fmt.Sprintf("uring: Release of a free buffer (refs %d)", b.refs))
	}
	b.refs--
	if b.refs == 0 {
		b.pool.put(b)
	}
}

// bufClasses are the sizes of buffers a pool hands out, in bytes.
var bufClasses = [...]int{4096, 16384, 65536 + 4096, 262144, 1 << 20}

// Pool hands out page-aligned buffers from one anonymous mapping outside the Go heap, so that the
// kernel may be given their addresses and the whole can be registered with a ring. Its size is a
// hard bound. It belongs to one thread.
type Pool struct {
	arena []byte
	brk   int // bytes handed out of the arena so far
	free  [len(bufClasses)]*Buf
	inUse int // bytes
	unmap func([]byte) error
}

// NewPool maps a pool of size bytes (rounded up to a page). Memory is touched only when used.
func NewPool(size int) (*Pool, error) {
	size = (size + BufAlign - 1) &^ (BufAlign - 1)
	m, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map a buffer pool of %d bytes: %w", size, err)
	}
	return NewPoolIn(m, unix.Munmap), nil
}

// NewPoolIn returns a pool in memory that the caller mapped: page-aligned, outside the Go heap. It
// is given back by unmap.
func NewPoolIn(m []byte, unmap func([]byte) error) *Pool {
	if len(m) == 0 || len(m)%BufAlign != 0 || uintptr(unsafe.Pointer(&m[0]))%BufAlign != 0 {
		panic("uring: memory of a pool isn't page-aligned")
	}
	return &Pool{arena: m, unmap: unmap}
}

// Get returns a buffer of at least n bytes (n <= 1 MiB) with one reference and old contents, or
// nil if the pool is exhausted: the caller pushes back on whoever asked for the work.
func (p *Pool) Get(n int) *Buf {
	c := 0
	for n > bufClasses[c] {
		c++
		if c == len(bufClasses) {
			panic(fmt.Sprintf("uring: buffer of %d bytes asked for", n))
		}
	}
	if p.free[c] == nil && p.brk+bufClasses[c] > len(p.arena) {
		// Memory stays in the class it was first handed out for. A free buffer of a larger class
		// is better than waiting for one that may never be made.
		for c++; c < len(bufClasses) && p.free[c] == nil; c++ {
		}
		if c == len(bufClasses) {
			return nil
		}
	}
	b := p.free[c]
	if b != nil {
		p.free[c] = b.next
		b.next = nil
	} else {
		b = &Buf{mem: p.arena[p.brk : p.brk+bufClasses[c] : p.brk+bufClasses[c]],
			class: uint8(c), pool: p}
		p.brk += bufClasses[c]
	}
	b.refs = 1
	p.inUse += len(b.mem)
	return b
}

// heapClass marks a buffer of the Go heap, made where a pool was exhausted and failing is no
// choice.
const heapClass = 255

func (p *Pool) put(b *Buf) {
	if b.class == heapClass {
		return
	}
	p.inUse -= len(b.mem)
	b.next = p.free[b.class]
	p.free[b.class] = b
}

// InUse is how many bytes are handed out.
func (p *Pool) InUse() int { return p.inUse }

// Arena is the whole mapping, for registration with a ring.
func (p *Pool) Arena() []byte { return p.arena }

// Close unmaps the pool. No buffer may be in use.
func (p *Pool) Close() error {
	if p.inUse != 0 {
		panic(fmt.Sprintf("uring: pool closed with %d bytes in use", p.inUse))
	}
	return p.unmap(p.arena)
}

// Abandon gives the memory back although buffers are in use: of a simulated process that was
// killed.
func (p *Pool) Abandon() error { return p.unmap(p.arena) }
