package mds

import (
	"encoding/binary"
	"math/bits"
	"unsafe"
)

// Chunk records are packed in snapshots: most of their 16 words begin with zeros, and a snapshot
// is as quick as the disk. A packed record is
//
//	offset size field
//	     0    8 sixteen lengths of 4 bits (0 to 8), the first word's in the lowest bits
//	     8      that many bytes of each word, the lowest first
//
// A record with three members takes about 62 bytes of its 128.
const (
	recordWords = RecordSize / 8
	packedMax   = 8 + RecordSize // bytes of a packed record, at most
)

type wordsOfRecord [recordWords]uint64

func (r *Record) words() *wordsOfRecord { return (*wordsOfRecord)(unsafe.Pointer(r)) }

// packPage appends the packed records of a page.
func packPage(b []byte, p *page) []byte {
	le := binary.LittleEndian
	at := len(b)
	b = append(b, make([]byte, recordsPerPage*packedMax+8)...)
	for i := range p {
		lengths, head := uint64(0), at
		at += 8
		for k, w := range p[i].words() {
			n := (bits.Len64(w) + 7) / 8
			lengths |= uint64(n) << (4 * k)
			le.PutUint64(b[at:], w) // what is beyond n is written over by the next word
			at += n
		}
		le.PutUint64(b[head:], lengths)
	}
	return b[:at]
}

// unpackPage reads the records of a page and returns what is behind them. Nothing in b is trusted.
func unpackPage(p *page, b []byte) (rest []byte, err error) {
	le := binary.LittleEndian
	for i := range p {
		if len(b) < 8 {
			return nil, errCorrupt("packed chunk records are cut off")
		}
		lengths := le.Uint64(b)
		b = b[8:]
		for k := range p[i].words() {
			n := int(lengths >> (4 * k) & 15)
			if n > 8 || n > len(b) {
				return nil, errCorrupt("a word of %d bytes in packed chunk records", n)
			}
			p[i].words()[k] = wordOf(b, n)
			b = b[n:]
		}
	}
	return b, nil
}

// wordOf reads a word of n bytes, of 8 at most and as many as b has.
func wordOf(b []byte, n int) uint64 {
	if len(b) >= 8 {
		return binary.LittleEndian.Uint64(b) & (1<<(8*n) - 1)
	}
	w := uint64(0)
	for i := range n {
		w |= uint64(b[i]) << (8 * i)
	}
	return w
}
