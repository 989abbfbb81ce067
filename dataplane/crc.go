package dataplane

import (
	"encoding/binary"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC returns the CRC32C of p.
func CRC(p []byte) uint32 { return crc32.Update(0, castagnoli, p) }

// CRCAdd returns the CRC32C of the bytes that crc covers followed by p.
func CRCAdd(crc uint32, p []byte) uint32 { return crc32.Update(crc, castagnoli, p) }

// ZeroBlockCRC is the CRC32C of 4096 zero bytes.
var ZeroBlockCRC = CRC(make([]byte, BlockSize))

// PutCRCs writes one CRC32C per block that payload touches at chunk offset off to out, which must
// hold 4*Blocks(off, len(payload)) bytes, and returns the bytes written.
func PutCRCs(out []byte, off uint32, payload []byte) int {
	n := 0
	for len(payload) > 0 {
		k := BlockSize - int(off%BlockSize)
		if k > len(payload) {
			k = len(payload)
		}
		binary.LittleEndian.PutUint32(out[n:], CRC(payload[:k]))
		payload, off, n = payload[k:], off+uint32(k), n+4
	}
	return n
}

// CheckCRCs compares payload, which starts at chunk offset off, with its CRCs. It returns the
// index of the first block that doesn't match, or -1. len(crcs) must be
// 4*Blocks(off, len(payload)), otherwise the answer is 0.
func CheckCRCs(crcs []byte, off uint32, payload []byte) int {
	if len(crcs) != 4*Blocks(off, uint32(len(payload))) {
		return 0
	}
	for i := 0; len(payload) > 0; i++ {
		k := BlockSize - int(off%BlockSize)
		if k > len(payload) {
			k = len(payload)
		}
		if binary.LittleEndian.Uint32(crcs[4*i:]) != CRC(payload[:k]) {
			return i
		}
		payload, off = payload[k:], off+uint32(k)
	}
	return -1
}
