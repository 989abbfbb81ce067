package chunk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"pstorage/dataplane"
)

// The store file. All integers are little endian, all areas 4 KiB-aligned:
//
//	+------------+------------+---------+-----------+------------------------+
//	| superblock | slot table | staging | CRC pages | slots, 64 MiB each     |
//	| 4 KiB at 0 | 256 B/slot | 4 MiB   | 64 KiB/slot | sparse, 64 MiB-aligned |
//	+------------+------------+---------+-----------+------------------------+
//
// Behind the superblock, at 4 KiB, is the scrub record (scrubrecord.go), at 8 KiB the stamp
// (stamp.go).
//
// Superblock, written once:
//
//	offset size field
//	     0    8 magic "PSTORECS"
//	     8    4 version (2; 1 had slot entries of 128 bytes)
//	    12    4 block size (4096)
//	    16   16 disk uuid: the same in identity
//	    32   16 cluster id
//	    48   16 log uuid: the same in identity
//	    64    4 number of slots
//	    68    4 slot size (64 MiB)
//	    72    8 offset of the slot table
//	    80    8 offset of the staging area
//	    88    8 offset of the CRC pages
//	    96    8 offset of slot 0
//	   104 3988 reserved, zero
//	  4092    4 CRC32C of bytes 0-4091
//
// Slot entry, 256 bytes; never crosses a 512-byte sector, so it is old or new after a power cut:
//
//	offset size field
//	     0    8 chunk id; 0: the slot is free
//	     8    4 epoch
//	    12    4 flags: 1 a copy that was begun and never activated, 2 has a dirty map, 4 the
//	           metadata servers were asked at this epoch to add or to move a member
//	    16    8 last seq that is durable here
//	    24    8 commit mark
//	    32    4 tail: byte offset of the range that writes above the commit mark touched, or that
//	           was changed out of the order of seqs
//	    36    4 tail: its length; 0: there were none
//	    40   64 16 words, one per CRC page of the slot: see word(); 0: the page was never written
//	   104    4 dirty map: since this epoch
//	   108    4 1: the tail is of writes above the commit mark only; 0: not known, as with
//	           programs that didn't tell. Programs that don't know this field write 0
//	   112    8 dirty map: from this seq on
//	   120  128 dirty map: a bit per 64 KiB, see dirtyMap
//	   248    4 reserved, zero
//	   252    4 CRC32C of bytes 0-251 and the slot's number (u32): a misplaced entry doesn't match
//
// An entry of zeros is a free slot that was never used.
//
// CRC page: 1024 words of 4 bytes, one per block of 4 KiB: see word(). A word of 0 means "reads as
// zeros", whatever lies in the slot, so a fresh slot and a hole need no I/O at all.
//
// Staging area: pages of the table and of the CRC area are first written here, so that a power
// cut in the middle of updating them in place can be completed at the next start:
//
//	offset size field
//	     0    8 magic "PSSTAGE1"
//	     8    8 round
//	    16    4 number of pages n, at most maxStaged
//	    20   40 reserved, zero
//	    60    4 CRC32C of bytes 0-59 and of the n entries
//	    64 16*n entries: target offset in the store (u64), CRC32C of the page (u32), zero (u32)
//	 16384 4K*n the pages
const (
	storeMagic   = "PSTORECS"
	storeVersion = 2

	superSize = dataplane.BlockSize
	entrySize = 256

	pagesPerSlot  = 16
	wordsPerPage  = dataplane.BlockSize / 4 // 1024 blocks = 4 MiB
	crcBytesSlot  = pagesPerSlot * dataplane.BlockSize
	entriesInPage = dataplane.BlockSize / entrySize

	stageMagic     = "PSSTAGE1"
	stageHeadSize  = 16384
	stageEntriesAt = 64
	stageEntrySize = 16
	maxStaged      = 1000 // 64 + 16*1000 <= 16384
	stageAreaSize  = 4 << 20
	tableOffset    = 1 << 20
	areaAlign      = 1 << 20
	maxSlots       = 1 << 22 // 256 TiB
	slotUnfinished = 1 << 0
	slotDirty      = 1 << 1
	slotUnsure     = 1 << 2
	slotFlagsKnown = slotUnfinished | slotDirty | slotUnsure
)

// The areas must fit: a negative constant here doesn't compile.
const (
	_ = uint(stageHeadSize - stageEntriesAt - maxStaged*stageEntrySize)
	_ = uint(stageAreaSize - stageHeadSize - maxStaged*dataplane.BlockSize)
	_ = uint(pagesPerSlot*wordsPerPage - dataplane.BlocksPerChunk)
	_ = uint(dataplane.BlocksPerChunk - pagesPerSlot*wordsPerPage)
)

const zeroCRC = 0x98f94189 // of 4096 zero bytes; a test compares it with dataplane.ZeroBlockCRC

// Words with a meaning of their own.
const (
	wordZeros   = 0 // the block reads as zeros, whatever lies in the slot
	wordUnknown = 2 // the checksum was lost: the block must come from another member
)

// word is how the checksum of a block (or of a CRC page) is stored: XORed with the checksum of 4096
// zero bytes, so that 0 can mean zeros. zeros says whether the content is all zeros. The two words
// with a meaning of their own are stored as the next one, which then stands for two checksums.
func word(crc uint32, zeros bool) uint32 {
	w := crc ^ zeroCRC
	if w == wordZeros && !zeros || w == wordUnknown {
		return w + 1
	}
	return w
}

// wordMatches says whether content with checksum crc may be stored under word w.
func wordMatches(w, crc uint32) bool {
	if w == wordZeros || w == wordUnknown {
		return w == wordZeros && crc == zeroCRC
	}
	x := crc ^ zeroCRC
	return w == x || w == wordZeros+1 && x == wordZeros || w == wordUnknown+1 && x == wordUnknown
}

// isZero says whether p is all zeros: its first byte is, and each is like the one before.
func isZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}

// wordOf returns the word of a block whose checksum is known.
func wordOf(crc uint32, block []byte) uint32 {
	return word(crc, crc == zeroCRC && isZero(block))
}

// uuid is 16 random bytes.
type uuid [16]byte

func (u uuid) String() string { return fmt.Sprintf("%x", u[:]) }

// superblock is the decoded first page of a store.
type superblock struct {
	disk    uuid
	cluster dataplane.ClusterID
	log     uuid
	slots   uint32

	table, stage, crcs, data int64 // byte offsets of the areas
}

// newSuperblock lays out a store of the given number of slots.
func newSuperblock(slots uint32) superblock {
	if slots == 0 || slots > maxSlots {
		panic(fmt.Sprintf("chunk: store of %d slots", slots))
	}
	up := func(n, align int64) int64 { return (n + align - 1) / align * align }
	s := superblock{slots: slots, table: tableOffset}
	s.stage = up(s.table+int64(slots)*entrySize, areaAlign)
	s.crcs = up(s.stage+stageAreaSize, areaAlign)
	s.data = up(s.crcs+int64(slots)*crcBytesSlot, dataplane.ChunkSize)
	return s
}

func (s *superblock) size() int64 { return s.data + int64(s.slots)*dataplane.ChunkSize }

// tablePage returns the offset of the page with the entry of slot.
func (s *superblock) tablePage(slot uint32) int64 {
	return s.table + int64(slot/entriesInPage)*dataplane.BlockSize
}

// crcPage returns the offset of a page of the CRC area; page = slot*pagesPerSlot + 0..15.
func (s *superblock) crcPage(page uint32) int64 {
	return s.crcs + int64(page)*dataplane.BlockSize
}

// block returns the offset of a block of a slot.
func (s *superblock) block(slot, block uint32) int64 {
	return s.data + int64(slot)*dataplane.ChunkSize + int64(block)*dataplane.BlockSize
}

func (s *superblock) put(b []byte) {
	le := binary.LittleEndian
	clear(b[:superSize])
	copy(b[0:], storeMagic)
	le.PutUint32(b[8:], storeVersion)
	le.PutUint32(b[12:], dataplane.BlockSize)
	copy(b[16:], s.disk[:])
	copy(b[32:], s.cluster[:])
	copy(b[48:], s.log[:])
	le.PutUint32(b[64:], s.slots)
	le.PutUint32(b[68:], dataplane.ChunkSize)
	le.PutUint64(b[72:], uint64(s.table))
	le.PutUint64(b[80:], uint64(s.stage))
	le.PutUint64(b[88:], uint64(s.crcs))
	le.PutUint64(b[96:], uint64(s.data))
	le.PutUint32(b[superSize-4:], dataplane.CRC(b[:superSize-4]))
}

func (s *superblock) decode(b []byte) error {
	le := binary.LittleEndian
	switch {
	case len(b) < superSize:
		return errors.New("superblock cut short")
	case string(b[:8]) != storeMagic:
		return errors.New("not a store of a chunk server (wrong magic)")
	case le.Uint32(b[superSize-4:]) != dataplane.CRC(b[:superSize-4]):
		return errors.New("superblock is damaged (checksum mismatch)")
	case le.Uint32(b[8:]) != storeVersion:
		return fmt.Errorf("store has version %d, this program knows %d",
			le.Uint32(b[8:]), storeVersion)
	case le.Uint32(b[12:]) != dataplane.BlockSize, le.Uint32(b[68:]) != dataplane.ChunkSize,
		le.Uint32(b[64:]) == 0, le.Uint32(b[64:]) > maxSlots:
		return errors.New("superblock has sizes that make no sense")
	}
	*s = newSuperblock(le.Uint32(b[64:]))
	copy(s.disk[:], b[16:])
	copy(s.cluster[:], b[32:])
	copy(s.log[:], b[48:])
	if le.Uint64(b[72:]) != uint64(s.table) || le.Uint64(b[80:]) != uint64(s.stage) ||
		le.Uint64(b[88:]) != uint64(s.crcs) || le.Uint64(b[96:]) != uint64(s.data) {
		return errors.New("superblock has areas at unknown offsets")
	}
	return nil
}

// slotEntry is a decoded entry of the slot table. The zero value is a free slot.
type slotEntry struct {
	chunk            dataplane.ChunkID
	epoch            dataplane.Epoch
	last, commit     dataplane.Seq
	tailOff, tailLen uint32
	inOrder          bool                 // the tail is of writes above the commit mark only
	pages            [pagesPerSlot]uint32 // words of the CRC pages
	unfinished       bool
	unsure           bool
	dirty            *dirtyMap // nil: none
}

func (e *slotEntry) put(b []byte, slot uint32) {
	_ = b[entrySize-1]
	le := binary.LittleEndian
	clear(b[:entrySize])
	le.PutUint64(b[0:], uint64(e.chunk))
	le.PutUint32(b[8:], uint32(e.epoch))
	le.PutUint64(b[16:], uint64(e.last))
	le.PutUint64(b[24:], uint64(e.commit))
	le.PutUint32(b[32:], e.tailOff)
	le.PutUint32(b[36:], e.tailLen)
	if e.inOrder {
		le.PutUint32(b[108:], 1)
	}
	for i, w := range e.pages {
		le.PutUint32(b[40+4*i:], w)
	}
	flags := uint32(0)
	if e.unfinished {
		flags |= slotUnfinished
	}
	if e.unsure {
		flags |= slotUnsure
	}
	if e.dirty != nil {
		flags |= slotDirty
		le.PutUint32(b[104:], uint32(e.dirty.since))
		le.PutUint64(b[112:], uint64(e.dirty.mark))
		e.dirty.set.put(b[120:])
	}
	le.PutUint32(b[12:], flags)
	le.PutUint32(b[entrySize-4:], entryCRC(b, slot))
}

func entryCRC(b []byte, slot uint32) uint32 {
	var t [entrySize]byte
	copy(t[:], b[:entrySize-4])
	binary.LittleEndian.PutUint32(t[entrySize-4:], slot)
	return dataplane.CRC(t[:])
}

var (
	errEntryCRC   = errors.New("slot entry is damaged (checksum mismatch)")
	errEntrySense = errors.New("slot entry makes no sense")
)

func (e *slotEntry) decode(b []byte, slot uint32) error {
	*e = slotEntry{}
	if isZero(b[:entrySize]) {
		return nil
	}
	le := binary.LittleEndian
	if le.Uint32(b[entrySize-4:]) != entryCRC(b, slot) {
		return errEntryCRC
	}
	e.chunk = dataplane.ChunkID(le.Uint64(b[0:]))
	e.epoch = dataplane.Epoch(le.Uint32(b[8:]))
	e.last = dataplane.Seq(le.Uint64(b[16:]))
	e.commit = dataplane.Seq(le.Uint64(b[24:]))
	e.tailOff = le.Uint32(b[32:])
	e.tailLen = le.Uint32(b[36:])
	e.inOrder = le.Uint32(b[108:]) == 1
	for i := range e.pages {
		e.pages[i] = le.Uint32(b[40+4*i:])
	}
	flags := le.Uint32(b[12:])
	e.unfinished, e.unsure = flags&slotUnfinished != 0, flags&slotUnsure != 0
	if flags&slotDirty != 0 {
		e.dirty = &dirtyMap{since: dataplane.Epoch(le.Uint32(b[104:])),
			mark: dataplane.Seq(le.Uint64(b[112:]))}
		e.dirty.set.get(b[120:])
	}
	if flags&^slotFlagsKnown != 0 || e.dirty != nil && e.dirty.since > e.epoch || e.commit > e.last ||
		e.tailOff > dataplane.ChunkSize || e.tailLen > dataplane.ChunkSize-e.tailOff ||
		e.tailOff%dataplane.BlockSize != 0 || e.tailLen%dataplane.BlockSize != 0 {
		*e = slotEntry{}
		return errEntrySense
	}
	return nil
}

// stagedPage is one entry of the staging area.
type stagedPage struct {
	target int64
	crc    uint32
}

// putStage encodes the head of the staging area for the given pages to b.
func putStage(b []byte, round uint64, pages []stagedPage) {
	if len(pages) > maxStaged {
		panic(fmt.Sprintf("chunk: %d pages staged", len(pages)))
	}
	le := binary.LittleEndian
	clear(b[:stageHeadSize])
	copy(b, stageMagic)
	le.PutUint64(b[8:], round)
	le.PutUint32(b[16:], uint32(len(pages)))
	for i, p := range pages {
		e := b[stageEntriesAt+stageEntrySize*i:]
		le.PutUint64(e, uint64(p.target))
		le.PutUint32(e[8:], p.crc)
	}
	le.PutUint32(b[60:], stageCRC(b, len(pages)))
}

func stageCRC(b []byte, n int) uint32 {
	var t [8]byte
	le := binary.LittleEndian
	le.PutUint32(t[0:], dataplane.CRC(b[:60]))
	le.PutUint32(t[4:], dataplane.CRC(b[stageEntriesAt:stageEntriesAt+stageEntrySize*n]))
	return dataplane.CRC(t[:])
}

// decodeStage decodes the head of the staging area. An area that isn't intact holds nothing: the
// round it belonged to never got to changing anything in place. ok says that it is intact so far;
// the pages' own checksums are the caller's to check.
func decodeStage(b []byte, s *superblock) (round uint64, pages []stagedPage, ok bool) {
	le := binary.LittleEndian
	if len(b) < stageHeadSize || string(b[:8]) != stageMagic {
		return 0, nil, false
	}
	n := le.Uint32(b[16:])
	if n > maxStaged || le.Uint32(b[60:]) != stageCRC(b, int(n)) {
		return 0, nil, false
	}
	tableEnd := s.table + int64(s.slots)*entrySize
	crcEnd := s.crcs + int64(s.slots)*crcBytesSlot
	for i := range int(n) {
		e := b[stageEntriesAt+stageEntrySize*i:]
		t := int64(le.Uint64(e))
		inTable := t >= s.table && t < tableEnd
		inCRCs := t >= s.crcs && t < crcEnd
		if t%dataplane.BlockSize != 0 || !inTable && !inCRCs && t != stampOffset {
			return 0, nil, false
		}
		pages = append(pages, stagedPage{t, le.Uint32(e[8:])})
	}
	return le.Uint64(b[8:]), pages, true
}
