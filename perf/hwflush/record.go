package hwflush

import (
	"encoding/binary"
	"hash/crc32"
)

// A record on the disk. Little endian.
//
//	bytes     field
//	0-7       magic "PSHWFL" and version 1 in two digits: "PSHWFL01"
//	8-23      session: random, of one run
//	24-31     number, from 1
//	32-39     slots of the area
//	40-47     time of writing, ns since 1970
//	48-4091   filling that follows from session and number
//	4092-4095 CRC32C of all bytes before
const (
	recordSize  = 4096
	recordMagic = "PSHWFL01"
	recordFill  = 48
	recordCRC   = recordSize - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Session names one run of a client.
type Session [16]byte

type record struct {
	session Session
	number  uint64
	slots   uint64
	timeNs  uint64
}

// put encodes r to b, of recordSize bytes.
func (r *record) put(b []byte) {
	le := binary.LittleEndian
	copy(b, recordMagic)
	copy(b[8:], r.session[:])
	le.PutUint64(b[24:], r.number)
	le.PutUint64(b[32:], r.slots)
	le.PutUint64(b[40:], r.timeNs)
	r.fill(b)
	le.PutUint32(b[recordCRC:], crc32.Checksum(b[:recordCRC], castagnoli))
}

// fill makes each record different from all others everywhere: a disk that mixes parts of two
// records can't hide it, and one that stores equal blocks once gains nothing.
func (r *record) fill(b []byte) {
	x := binary.LittleEndian.Uint64(r.session[:]) ^ r.number*0x9e3779b97f4a7c15 | 1
	for i := recordFill; i+8 <= recordCRC; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[i:], x)
	}
}

// parseRecord decodes b, of recordSize bytes. It returns false if that isn't an intact record.
func parseRecord(b []byte) (r record, ok bool) {
	le := binary.LittleEndian
	if len(b) != recordSize || string(b[:8]) != recordMagic ||
		le.Uint32(b[recordCRC:]) != crc32.Checksum(b[:recordCRC], castagnoli) {
		return record{}, false
	}
	copy(r.session[:], b[8:])
	r.number, r.slots, r.timeNs = le.Uint64(b[24:]), le.Uint64(b[32:]), le.Uint64(b[40:])
	return r, r.number > 0 && r.slots >= minSlots && r.slots <= maxSlots
}
