package simloop

import (
	"encoding/binary"
	"math/bits"
)

// Slabs are where memory for the contents of disks comes from. It is given back all at once when
// the simulation ends (Sim.Close), so that the next one can use it: the garbage collector would
// have much to do with what is written in one.
type Slabs interface {
	Get() []byte // of SlabSize bytes, with old contents
	Put(slab []byte)
}

// SlabSize is the length of a slab, in bytes.
const SlabSize = 4 << 20

// arena gives memory out of slabs; without them, the garbage collector's.
type arena struct {
	from  Slabs
	slabs [][]byte
	rest  []byte // of the last slab
}

// maxSlabs bounds what an arena keeps until its end; what is needed above it is left to the garbage
// collector.
const maxSlabs = 32

// get returns n bytes with old contents.
func (a *arena) get(n int) []byte {
	if n > len(a.rest) {
		if a.from == nil || n > SlabSize || len(a.slabs) == maxSlabs {
			return make([]byte, n)
		}
		a.rest = a.from.Get()
		a.slabs = append(a.slabs, a.rest)
	}
	b := a.rest[:n:n]
	a.rest = a.rest[n:]
	return b
}

// page returns a page with old contents.
func (a *arena) page() *[pageSize]byte { return (*[pageSize]byte)(a.get(pageSize)) }

// free takes everything back.
func (a *arena) free() {
	for _, s := range a.slabs {
		a.from.Put(s)
	}
	a.slabs, a.rest = nil, nil
}

// digest continues the digest h with b: with all of it if it is short, otherwise with some of each
// sector, as that is where spoil and other data would be.
func digest(h uint64, b []byte) uint64 {
	step := 8
	if len(b) > 1024 {
		step = sector / 4
	}
	h ^= uint64(len(b))
	for ; len(b) >= 8; b = b[min(step, len(b)):] {
		h = (h ^ binary.LittleEndian.Uint64(b)) * 0x9e3779b97f4a7c15
		h ^= h >> 32
	}
	for _, x := range b {
		h = (h ^ uint64(x)) * 1099511628211
	}
	return h
}

// Buffers gives buffers of a power of two bytes, and takes them back. The zero value is empty. Not
// safe for concurrent use.
type Buffers [24][][]byte

// Get returns n bytes with old contents.
func (m *Buffers) Get(n int) []byte {
	class := bits.Len(uint(max(n, 64) - 1))
	if l := len(m[class]); l > 0 {
		b := m[class][l-1]
		m[class] = m[class][:l-1]
		return b[:n]
	}
	return make([]byte, n, 1<<class)
}

// Put takes back what Get returned; nobody uses it any more. Nil is nothing.
func (m *Buffers) Put(b []byte) {
	if b != nil {
		class := bits.Len(uint(cap(b) - 1))
		m[class] = append(m[class], b)
	}
}
