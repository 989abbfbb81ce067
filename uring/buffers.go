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
	next  *Buf // in the free list of its class
	prev  *Buf
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
// hard bound. It belongs to one thread. When all of it has been cut into buffers, those that are
// free are cut anew as they are needed: see recut.go.
type Pool struct {
	arena []byte
	brk   int // bytes handed out of the arena so far
	free  [len(bufClasses)]*Buf
	inUse int // bytes
	unmap func([]byte) error
	recut recut
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
	b := p.free[c]
	switch {
	case b != nil:
		p.unlink(b)
	case p.brk+bufClasses[c] <= len(p.arena):
		b = p.cut(p.brk, c)
	default:
		if b = p.split(c); b == nil {
			b = p.join(c)
		}
		if b == nil {
			return nil
		}
	}
	b.refs = 1
	p.inUse += len(b.mem)
	return b
}

// cut makes a buffer of the class c of the memory at an offset of the arena.
func (p *Pool) cut(at, c int) *Buf {
	end := at + bufClasses[c]
	b := &Buf{mem: p.arena[at:end:end], class: uint8(c), pool: p}
	p.brk = max(p.brk, end)
	p.recut.put(b, at)
	return b
}

// link adds a buffer to the free ones.
func (p *Pool) link(b *Buf) {
	b.next = p.free[b.class]
	if b.next != nil {
		b.next.prev = b
	}
	p.free[b.class] = b
}

// unlink takes a buffer out of the free ones.
func (p *Pool) unlink(b *Buf) {
	if b.prev != nil {
		b.prev.next = b.next
	} else {
		p.free[b.class] = b.next
	}
	if b.next != nil {
		b.next.prev = b.prev
	}
	b.next, b.prev = nil, nil
}

// heapClass marks a buffer of the Go heap, made where a pool was exhausted and failing is no
// choice.
const heapClass = 255

func (p *Pool) put(b *Buf) {
	if b.class == heapClass {
		return
	}
	p.inUse -= len(b.mem)
	p.recut.since += len(b.mem)
	p.link(b)
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
