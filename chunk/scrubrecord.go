package chunk

import (
	"encoding/binary"
	"errors"

	"pstorage/dataplane"
)

// The scrub record is where a pass over the store stands. It lies behind the superblock, at byte
// 4096 of the store, and is written in place every few seconds: one sector, so it is old or new
// after a power cut. With an older one, or without, blocks are only compared once more. All
// integers are little endian:
//
//	offset size field
//	     0    8 magic "PSSCRUB1"
//	     8    4 version (1)
//	    12    4 flags: 1 a pass is under way, 2 it was asked for
//	    16    4 next slot
//	    20    4 next block in it, a multiple of 256; 16384: the slot's blocks are done
//	    24    8 when the pass began, ns since 1970
//	    32    8 when the last complete pass ended, ns since 1970; 0: never
//	    40    8 bytes of chunks that the pass is through with
//	    48    8 bytes that it read
//	    56    8 blocks that were damaged
//	    64    8 blocks that were repaired
//	    72    8 blocks that could not be repaired
//	    80    8 parts of 64 KiB in which replicas differed
//	    88  420 reserved, zero
//	   508    4 CRC32C of bytes 0-507
const (
	scrubMagic      = "PSSCRUB1"
	scrubVersion    = 1
	scrubRecordSize = 512
	scrubRecordArea = dataplane.BlockSize
	scrubOffset     = superSize
	scrubFlagsKnown = scrubRunning | scrubManual

	scrubRunning = 1 << 0
	scrubManual  = 1 << 1
)

// scrubRecord is the decoded scrub record; the zero value: no pass was ever begun.
type scrubRecord struct {
	flags       uint32
	slot, block uint32
	startedNs   int64
	finishedNs  int64
	done, read  uint64
	bad         uint64
	repaired    uint64
	lost        uint64
	mismatches  uint64
}

func (s *scrubRecord) put(b []byte) {
	le := binary.LittleEndian
	clear(b[:scrubRecordSize])
	copy(b, scrubMagic)
	le.PutUint32(b[8:], scrubVersion)
	le.PutUint32(b[12:], s.flags)
	le.PutUint32(b[16:], s.slot)
	le.PutUint32(b[20:], s.block)
	le.PutUint64(b[24:], uint64(s.startedNs))
	le.PutUint64(b[32:], uint64(s.finishedNs))
	for i, v := range s.counters() {
		le.PutUint64(b[40+8*i:], *v)
	}
	le.PutUint32(b[508:], dataplane.CRC(b[:508]))
}

func (s *scrubRecord) counters() [6]*uint64 {
	return [...]*uint64{&s.done, &s.read, &s.bad, &s.repaired, &s.lost, &s.mismatches}
}

var errScrubRecord = errors.New("scrub record is damaged, or of another version")

// decode takes a record. One of zeros is of a store that was never scrubbed.
func (s *scrubRecord) decode(b []byte) error {
	*s = scrubRecord{}
	if len(b) < scrubRecordSize {
		return errScrubRecord
	}
	if isZero(b[:scrubRecordSize]) {
		return nil
	}
	le := binary.LittleEndian
	if string(b[:8]) != scrubMagic || le.Uint32(b[8:]) != scrubVersion ||
		le.Uint32(b[508:]) != dataplane.CRC(b[:508]) {
		return errScrubRecord
	}
	s.flags = le.Uint32(b[12:])
	s.slot, s.block = le.Uint32(b[16:]), le.Uint32(b[20:])
	s.startedNs, s.finishedNs = int64(le.Uint64(b[24:])), int64(le.Uint64(b[32:]))
	for i, v := range s.counters() {
		*v = le.Uint64(b[40+8*i:])
	}
	if s.flags&^scrubFlagsKnown != 0 || s.slot > maxSlots || s.block > dataplane.BlocksPerChunk ||
		s.block%scrubBlocks != 0 || s.startedNs < 0 || s.finishedNs < 0 {
		*s = scrubRecord{}
		return errScrubRecord
	}
	return nil
}
