package mds

import (
	"encoding/binary"
	"slices"

	"pstorage/dataplane"
)

// encoder appends little-endian fields: integers of fixed width, strings and byte slices with a
// u32 length in front.
type encoder struct{ b []byte }

func (e *encoder) u8(v uint8)   { e.b = append(e.b, v) }
func (e *encoder) u16(v uint16) { e.b = binary.LittleEndian.AppendUint16(e.b, v) }
func (e *encoder) u32(v uint32) { e.b = binary.LittleEndian.AppendUint32(e.b, v) }
func (e *encoder) u64(v uint64) { e.b = binary.LittleEndian.AppendUint64(e.b, v) }
func (e *encoder) i64(v int64)  { e.u64(uint64(v)) }

func (e *encoder) bool(v bool) {
	if v {
		e.u8(1)
	} else {
		e.u8(0)
	}
}

func (e *encoder) str(s string) {
	e.u32(uint32(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) bytes(p []byte) {
	e.u32(uint32(len(p)))
	e.b = append(e.b, p...)
}

func (e *encoder) cs(members []dataplane.CSID) {
	e.u8(uint8(len(members)))
	for _, m := range members {
		e.u32(uint32(m))
	}
}

// decoder reads what encoder wrote. After the first field that isn't there bad is set and every
// further field is zero, so the caller checks once.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || n < 0 || n > len(d.b) {
		d.bad = true
		return nil
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) u8() uint8 {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if p := d.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if p := d.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if p := d.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

func (d *decoder) i64() int64 { return int64(d.u64()) }
func (d *decoder) bool() bool { return d.u8() != 0 }

func (d *decoder) raw() []byte {
	n := d.u32()
	if uint64(n) > uint64(len(d.b)) {
		d.bad = true
		return nil
	}
	return d.take(int(n))
}

func (d *decoder) str() string { return string(d.raw()) }

// bytes returns a copy, nil when empty.
func (d *decoder) bytes() []byte { return append([]byte(nil), d.raw()...) }

// count reads a u32 number of elements that take at least size bytes each.
func (d *decoder) count(size int) int {
	n := d.u32()
	if uint64(n)*uint64(size) > uint64(len(d.b)) {
		d.bad = true
		return 0
	}
	return int(n)
}

// cs reads a list of members into the memory of into.
func (d *decoder) cs(into []dataplane.CSID) []dataplane.CSID {
	n := int(d.u8())
	if n > dataplane.MaxReplicas {
		d.bad = true
		return nil
	}
	into = into[:0]
	for range n {
		into = append(into, dataplane.CSID(d.u32()))
	}
	return into
}

// ok says whether everything was there and nothing is left.
func (d *decoder) ok() bool { return !d.bad && len(d.b) == 0 }

// fifo is a bounded queue that forgets its oldest elements. It only ever appends to memory, so a
// capture of it is a copy of a few slice headers and stays valid while the queue goes on.
type fifo[T any] struct {
	blocks [][]T
	skip   int // elements of the first block that are forgotten
	n, max int
}

const fifoBlock = 256

// push appends v and returns what was forgotten for it.
func (q *fifo[T]) push(v T) (old T, forgot bool) {
	if len(q.blocks) == 0 || len(q.blocks[len(q.blocks)-1]) == fifoBlock {
		q.blocks = append(q.blocks, make([]T, 0, fifoBlock))
	}
	last := len(q.blocks) - 1
	q.blocks[last] = append(q.blocks[last], v)
	q.n++
	if q.n <= q.max {
		return old, false
	}
	old = q.blocks[0][q.skip]
	q.skip++
	q.n--
	if q.skip == fifoBlock {
		q.blocks, q.skip = q.blocks[1:], 0
	}
	return old, true
}

// capture returns the queue as it is now, for reading.
func (q *fifo[T]) capture() fifo[T] {
	c := *q
	c.blocks = slices.Clone(q.blocks)
	return c
}

// each calls f for every element, oldest first, until it returns false.
func (q *fifo[T]) each(f func(v *T) bool) {
	skip := q.skip
	for _, b := range q.blocks {
		for i := skip; i < len(b); i++ {
			if !f(&b[i]) {
				return
			}
		}
		skip = 0
	}
}
