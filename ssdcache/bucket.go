package ssdcache

import (
	"fmt"
	"math/bits"
)

// bucket is a cache line of the index's table: entries, and in its last byte how many keys belong
// here first and are elsewhere. Nothing but zeros is an empty one.
//
//	narrow: 18 entries of 28 bits, two in 7 bytes
//	wide:   15 entries of 32 bits; bytes 60 to 62 are 0
//
// An entry is a position in its low bits and a tag, bits of the key's hash, in all others. 0 is
// empty: position 0 is never a block's. With 2 bits of tag, the fewest, one entry in four that a
// search passes makes it look at the wrong block's place; with the 8 of a log of 4 GiB, one in 256.
type bucket [64]byte

const (
	narrow, wide           = 28, 32
	narrowSlots, wideSlots = 18, 15
	elsewhere              = 63 // the byte of a bucket that counts; at its maximum it stays there
	minTag                 = 2
)

// shape is how the buckets of a table are divided.
type shape struct {
	width   uint // of an entry, in bits
	posBits uint
	tags    pattern // compares tags
	whole   pattern // compares entries
}

// pattern is which bits of two entries in a word match compares, and the lowest of them in each.
type pattern struct{ mask, ones uint64 }

// shapeFor returns the shape for entries of width bits that hold positions below n.
func shapeFor(n uint32, width uint) (shape, error) {
	s := shape{width: width, posBits: uint(bits.Len32(n - 1))}
	if s.posBits+minTag > width {
		return s, fmt.Errorf("an index for %d blocks; at most %d are possible", n,
			uint64(1)<<(wide-minTag))
	}
	field := uint64(1)<<width - 1
	tag := field >> s.posBits << s.posBits
	s.whole = pattern{s.both(field), s.both(1)}
	s.tags = pattern{s.both(tag), s.both(1 << s.posBits)}
	return s, nil
}

// slots is how many entries a bucket has.
func (s *shape) slots() int {
	if s.width == narrow {
		return narrowSlots
	}
	return wideSlots
}

// both has e as each of the two entries of a word.
func (s *shape) both(e uint64) uint64 { return e | e<<s.width }

// entry is the entry for position p of the key with hash h.
func (s *shape) entry(h uint64, p Pos) uint64 {
	return uint64(p) | h>>32<<s.posBits&(1<<s.width-1)
}

// match compares the entries of b with e in the bits that c names. What it returns has a bit per
// entry that is equal (see slot). The lowest bit is always true; others can be false.
func (s *shape) match(b *bucket, e uint64, c pattern) uint64 {
	e = s.both(e)
	if s.width != narrow {
		return matchWide(b, e, c)
	}
	m := equal28(le.Uint64(b[0:]), e, c)
	m |= equal28(le.Uint64(b[7:]), e, c) >> 1
	m |= equal28(le.Uint64(b[14:]), e, c) >> 2
	m |= equal28(le.Uint64(b[21:]), e, c) >> 3
	m |= equal28(le.Uint64(b[28:]), e, c) >> 4
	m |= equal28(le.Uint64(b[35:]), e, c) >> 5
	m |= equal28(le.Uint64(b[42:]), e, c) >> 6
	m |= equal28(le.Uint64(b[49:]), e, c) >> 7
	return m | equal28(le.Uint64(b[56:]), e, c)>>8
}

// equal28 returns the highest bit of each of the two entries in w that is equal to that in e. If
// the lower one is, the upper one's may be wrong: subtraction borrows from it.
func equal28(w, e uint64, c pattern) uint64 {
	w = (w ^ e) & c.mask
	return (w - c.ones) &^ w & (1<<27 | 1<<55)
}

func matchWide(b *bucket, e uint64, c pattern) uint64 {
	var m uint64
	for i := range 8 {
		w := (le.Uint64(b[8*i:]) ^ e) & c.mask
		m |= (w - c.ones) &^ w & (1<<31 | 1<<63) >> i
	}
	return m &^ (1 << 63 >> 7) // the count isn't an entry
}

// slot returns where in a bucket the entry of bit m of match is: the offset of its word, and how
// far up in the word.
func (s *shape) slot(m int) (off, up uint) {
	bit := uint(m)
	if bit >= s.width {
		bit, up = bit-s.width, s.width
	}
	return (s.width - 1 - bit) * (s.width / 4), up
}

// load returns the entry of bit m of match.
func (s *shape) load(b *bucket, m int) uint64 {
	off, up := s.slot(m)
	return le.Uint64(b[off:]) >> up & (1<<s.width - 1)
}

// store replaces the entry of bit m of match.
func (s *shape) store(b *bucket, m int, e uint64) {
	off, up := s.slot(m)
	w := le.Uint64(b[off:])
	le.PutUint64(b[off:], w&^((1<<s.width-1)<<up)|e<<up)
}

// add stores e in a free place of b, if there is one.
func (s *shape) add(b *bucket, e uint64) bool {
	m := s.match(b, 0, s.whole)
	if m == 0 {
		return false
	}
	s.store(b, bits.TrailingZeros64(m), e)
	return true
}

// count changes how many keys of b are elsewhere, by 1 or -1.
func (b *bucket) count(d int) {
	if b[elsewhere] != 255 {
		b[elsewhere] += byte(d)
	}
}
