package simloop

import (
	"encoding/binary"
	"sync"
)

// arena gives memory for the contents of disks. It is taken back all at once, when the simulation
// ends (Sim.Close), and used again by the next one: what is written in one is soon as much as the
// garbage collector could do.
type arena struct {
	slabs [][]byte
	rest  []byte // of the last slab
}

const (
	slabSize = 4 << 20
	// maxSlabs bounds what an arena keeps until its end; what is needed above it is left to the
	// garbage collector.
	maxSlabs = 32
)

// slabs are those that no arena uses.
var slabs struct {
	sync.Mutex
	free [][]byte
}

// get returns n bytes with old contents.
func (a *arena) get(n int) []byte {
	if n > len(a.rest) {
		if n > slabSize || len(a.slabs) == maxSlabs {
			return make([]byte, n)
		}
		a.rest = newSlab()
		a.slabs = append(a.slabs, a.rest)
	}
	b := a.rest[:n:n]
	a.rest = a.rest[n:]
	return b
}

// page returns a page with old contents.
func (a *arena) page() *[pageSize]byte { return (*[pageSize]byte)(a.get(pageSize)) }

func newSlab() []byte {
	slabs.Lock()
	defer slabs.Unlock()
	if n := len(slabs.free); n > 0 {
		s := slabs.free[n-1]
		slabs.free = slabs.free[:n-1]
		return s
	}
	return make([]byte, slabSize)
}

// free takes everything back.
func (a *arena) free() {
	slabs.Lock()
	defer slabs.Unlock()
	slabs.free = append(slabs.free, a.slabs...)
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
