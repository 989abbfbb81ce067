package ssdcache

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"pstorage/dataplane"
)

// On disk. All integers are little endian, all places multiples of 4 KiB ("blocks"):
//
//	block 0, 1     superblock, two copies written in turn
//	block 2-15     zero
//	block 16...    segments, all of the same size; segment sequence number s lies in
//	               segment s modulo their number
//
// Superblock (4096 bytes; a new copy is durable before what it says is relied on):
//
//	offset size field
//	     0    8 magic "PSLOGSB\x01"
//	     8    4 version (4; 3 had no Stored records, 2 no Moved ones, 1 no Clean ones)
//	    12    4 bytes of a segment
//	    16    8 owner
//	    24    8 format id: random, so that what an earlier format left is not taken for ours
//	    32    4 segments
//	    36    4 incarnation: how often the log was opened
//	    40    8 generation: how often the superblock was written; the copy is generation modulo 2
//	    48    8 tail: sequence number of the first segment to replay
//	    56    8 number of the tail segment's first batch
//	    64    8 durable: batches up to this number were durable
//	    72    4 flags: 1 = closed in an orderly way, "durable" is the last batch there is
//	    76    4 zero
//	    80    8 mark: number of the store's last checkpoint, as it says (Marker)
//	    88 4004 zero
//	  4092    4 CRC32C of bytes 0-4091
//
// A segment holds batches back to back. A batch is a header of 1, 2 or 4 blocks, then its data
// blocks, in the order of the entries:
//
//	offset size field
//	     0    8 magic "PSLOGBA\x01"
//	     8    2 version (4)
//	    10    2 header blocks
//	    12    4 data blocks
//	    16    8 owner
//	    24    8 format id
//	    32    8 segment sequence number
//	    40    8 batch number, from 1, without holes
//	    48    8 durable: all batches up to this number were durable when this one was written
//	    56    4 incarnation
//	    60    4 CRC of the header of the batch before
//	    64    4 own place: block number in the log
//	    68    4 number of entries
//	    72    4 bytes used by this table and the entries
//	    76   16 zero
//	    92    4 CRC32C of the header blocks without these four bytes
//	    96      entries
//
// An entry, padded to a multiple of 4 bytes:
//
//	 0    1 kind
//	 1    1 zero
//	 2    2 bytes of meta (<= 1024)
//	 4    4 slot
//	 8    8 chunk id
//	16    4 epoch
//	20    4 byte offset in the chunk, block-aligned
//	24    4 length in bytes, block-aligned
//	28    4 zero
//	32    8 seq
//	40    8 commit mark
//	48      Data, Clean, Moved and Stored: CRC32C of each block, 4 bytes each; then meta
const (
	version         = 4 // written; older ones can be read
	blockSize       = dataplane.BlockSize
	firstBlock      = 16 // of segment 0
	superSize       = blockSize
	headSize        = 96
	entrySize       = 48
	maxHeaderBlocks = 4
	headCRCAt       = 92
	flagClean       = 1
	maxInFlight     = 8 // batches sent and not durable: a header's number is at most so far ahead
)

// Limits of a Record.
const (
	MaxMeta = 1024               // bytes of Record.Meta
	MaxData = dataplane.PartSize // bytes of one Data or Stored record
)

// MaxSlots is the most slots a store can have (16 TiB of chunks).
const MaxSlots = 1<<18 - 1

// Segment sizes allowed, in bytes; powers of two.
const (
	MinSegment     = 256 << 10
	MaxSegment     = 16 << 20
	DefaultSegment = 4 << 20
	minSegments    = 6
)

var (
	superMagic = [8]byte{'P', 'S', 'L', 'O', 'G', 'S', 'B', 1}
	batchMagic = [8]byte{'P', 'S', 'L', 'O', 'G', 'B', 'A', 1}
	le         = binary.LittleEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// RecordKind says what a Record is.
type RecordKind uint8

// The kinds of records. They are on disk: never renumber.
const (
	Data RecordKind = 1 // blocks of a chunk
	Zero RecordKind = 2 // a range of a chunk reads as zeros from now on
	Meta RecordKind = 3 // bytes of the owner's own
	Drop RecordKind = 4 // the slot's chunk (0: whichever) is gone: all its blocks leave the index
	// Clean is a copy of blocks of the store, for reading. The log makes it itself, replay skips it.
	Clean RecordKind = 5
	// Moved are blocks of a segment that is to be used again, as they were. The log makes it itself,
	// with Chunk, Epoch, Seq and Commit 0: the owner has learnt those from the first record.
	Moved RecordKind = 6
	// Stored are blocks that lie in the store, durable since before the record was appended: only
	// their checksums are here. To the index it is like Zero; the owner makes its store agree.
	Stored RecordKind = 7
)

// Record is one entry of the log.
type Record struct {
	Kind   RecordKind
	Slot   uint32 // of the store
	Chunk  dataplane.ChunkID
	Epoch  dataplane.Epoch
	Seq    dataplane.Seq
	Commit dataplane.Seq
	Offset uint32 // bytes in the chunk, block-aligned; Data, Stored and Zero
	Length uint32 // bytes, block-aligned; Data and Stored (at most MaxData), Zero
	Meta   []byte // owner-defined, at most MaxMeta bytes; any kind may carry it
	Sums   []byte // of a Stored record in replay: CRC32C of each block, 4 bytes each
}

func (r *Record) hasData() bool { return r.Kind == Data || r.Kind == Clean || r.Kind == Moved }

// blocks is how many data blocks the record has in the log.
func (r *Record) blocks() int {
	if !r.hasData() {
		return 0
	}
	return int(r.Length / blockSize)
}

// sums is how many blocks the record has the checksums of.
func (r *Record) sums() int {
	if r.Kind == Stored {
		return int(r.Length / blockSize)
	}
	return r.blocks()
}

// headerBytes is what the record takes of a batch header.
func (r *Record) headerBytes() int { return entrySize + 4*r.sums() + (len(r.Meta)+3)&^3 }

// check says what is wrong with a record.
func (r *Record) check() string {
	ranged := r.hasData() || r.Kind == Zero || r.Kind == Stored
	switch {
	case r.Kind < Data || r.Kind > Stored:
		return "unknown kind"
	case len(r.Meta) > MaxMeta:
		return "too much meta"
	case !ranged && (r.Offset != 0 || r.Length != 0):
		return "range on a record without one"
	case ranged && r.Length == 0:
		return "empty range"
	case r.Offset%blockSize != 0 || r.Length%blockSize != 0:
		return "range not aligned to blocks"
	case r.Offset > dataplane.ChunkSize || r.Length > dataplane.ChunkSize-r.Offset:
		return "range outside the chunk"
	case r.Kind != Zero && r.Length > MaxData:
		return "too much data"
	case r.Slot >= MaxSlots:
		return "slot number too high"
	}
	return ""
}

// put encodes the entry at the start of b and returns where its CRCs go. It takes headerBytes.
func (r *Record) put(b []byte) (crcs []byte) {
	n := r.headerBytes()
	_ = b[n-1]
	b[0], b[1] = byte(r.Kind), 0
	le.PutUint16(b[2:], uint16(len(r.Meta)))
	le.PutUint32(b[4:], r.Slot)
	le.PutUint64(b[8:], uint64(r.Chunk))
	le.PutUint32(b[16:], uint32(r.Epoch))
	le.PutUint32(b[20:], r.Offset)
	le.PutUint32(b[24:], r.Length)
	le.PutUint32(b[28:], 0)
	le.PutUint64(b[32:], uint64(r.Seq))
	le.PutUint64(b[40:], uint64(r.Commit))
	at := entrySize + 4*r.sums()
	clear(b[at+copy(b[at:], r.Meta) : n])
	return b[entrySize:at]
}

// formatError says why bytes on disk are not what they should be.
type formatError string

func (e formatError) Error() string { return string(e) }

const errNotLog = formatError("no superblock")

// decode reads the entry at the start of b. Meta and the returned CRCs lie in b. n is how many
// bytes the entry takes.
func (r *Record) decode(b []byte) (crcs []byte, n int, err error) {
	if len(b) < entrySize {
		return nil, 0, formatError("entry cut short")
	}
	*r = Record{Kind: RecordKind(b[0]), Slot: le.Uint32(b[4:]),
		Chunk: dataplane.ChunkID(le.Uint64(b[8:])), Epoch: dataplane.Epoch(le.Uint32(b[16:])),
		Offset: le.Uint32(b[20:]), Length: le.Uint32(b[24:]),
		Seq: dataplane.Seq(le.Uint64(b[32:])), Commit: dataplane.Seq(le.Uint64(b[40:]))}
	if b[1] != 0 || le.Uint32(b[28:]) != 0 {
		return nil, 0, formatError("reserved bytes of an entry not zero")
	}
	if why := r.check(); why != "" {
		return nil, 0, formatError(why)
	}
	meta := int(le.Uint16(b[2:]))
	at := entrySize + 4*r.sums()
	n = at + (meta+3)&^3
	if meta > MaxMeta || n > len(b) {
		return nil, 0, formatError("entry runs over the header")
	}
	for _, pad := range b[at+meta : n] {
		if pad != 0 {
			return nil, 0, formatError("padding of an entry not zero")
		}
	}
	r.Meta = b[at : at+meta]
	if r.Kind == Stored {
		r.Sums = b[entrySize:at]
	}
	return b[entrySize:at], n, nil
}

// header is the fixed part of a batch header.
type header struct {
	headBlocks int
	dataBlocks int
	owner, id  uint64
	seg        uint64
	nr         uint64
	durable    uint64
	inc        uint32
	prev       uint32
	pos        uint32
	entries    int
	used       int
	crc        uint32 // set by put and decode
}

// headerCRC sums up a whole header.
func headerCRC(b []byte) uint32 {
	return crc32.Update(crc32.Update(0, castagnoli, b[:headCRCAt]), castagnoli, b[headCRCAt+4:])
}

// put encodes h to b, the header blocks, which hold the entries already and zeros after them.
func (h *header) put(b []byte) {
	if len(b) != h.headBlocks*blockSize {
		panic(fmt.Sprintf("ssdcache: header of %d blocks in %d bytes", h.headBlocks, len(b)))
	}
	copy(b, batchMagic[:])
	le.PutUint16(b[8:], version)
	le.PutUint16(b[10:], uint16(h.headBlocks))
	le.PutUint32(b[12:], uint32(h.dataBlocks))
	le.PutUint64(b[16:], h.owner)
	le.PutUint64(b[24:], h.id)
	le.PutUint64(b[32:], h.seg)
	le.PutUint64(b[40:], h.nr)
	le.PutUint64(b[48:], h.durable)
	le.PutUint32(b[56:], h.inc)
	le.PutUint32(b[60:], h.prev)
	le.PutUint32(b[64:], h.pos)
	le.PutUint32(b[68:], uint32(h.entries))
	le.PutUint32(b[72:], uint32(h.used))
	clear(b[76:headCRCAt])
	h.crc = headerCRC(b)
	le.PutUint32(b[headCRCAt:], h.crc)
}

// headerBlocks returns how many blocks the header that seems to begin at b has; 0: none begins.
func headerBlocks(b []byte) int {
	if len(b) < headSize || [8]byte(b[:8]) != batchMagic {
		return 0
	}
	switch n := int(le.Uint16(b[10:])); n {
	case 1, 2, 4:
		return n
	}
	return 0
}

// decode reads a batch header from b, which must hold all of its headerBlocks. Entries are checked
// one by one, so that walking them later can't fail.
func (h *header) decode(b []byte) error {
	n := headerBlocks(b)
	if n == 0 || len(b) < n*blockSize {
		return formatError("no batch header")
	}
	b = b[:n*blockSize]
	*h = header{headBlocks: n, dataBlocks: int(le.Uint32(b[12:])), owner: le.Uint64(b[16:]),
		id: le.Uint64(b[24:]), seg: le.Uint64(b[32:]), nr: le.Uint64(b[40:]),
		durable: le.Uint64(b[48:]), inc: le.Uint32(b[56:]), prev: le.Uint32(b[60:]),
		pos: le.Uint32(b[64:]), entries: int(le.Uint32(b[68:])), used: int(le.Uint32(b[72:])),
		crc: le.Uint32(b[headCRCAt:])}
	switch {
	case h.crc != headerCRC(b):
		return formatError("batch header checksum mismatch")
	case le.Uint16(b[8:]) == 0 || le.Uint16(b[8:]) > version:
		return formatError("unknown version of a batch")
	case h.used < headSize || h.used > len(b):
		return formatError("batch header runs over its blocks")
	case h.nr == 0 || h.durable >= h.nr || h.nr-h.durable > maxInFlight:
		return formatError("impossible batch number")
	}
	at, data := headSize, 0
	var r Record
	for range h.entries {
		_, n, err := r.decode(b[at:h.used])
		if err != nil {
			return err
		}
		at, data = at+n, data+r.blocks()
	}
	if at != h.used || data != h.dataBlocks {
		return formatError("entries don't add up to the batch")
	}
	return nil
}

// walk calls f for each entry of the decoded header in b; data is the entry's first data block,
// counted from the batch's first.
func (h *header) walk(b []byte, f func(r *Record, crcs []byte, data int) bool) {
	at, data := headSize, 0
	var r Record
	for range h.entries {
		crcs, n, err := r.decode(b[at:h.used])
		if err != nil {
			panic(fmt.Sprintf("ssdcache: entry of a checked header: %v", err))
		}
		if !f(&r, crcs, data) {
			return
		}
		at, data = at+n, data+r.blocks()
	}
}

// super is the superblock.
type super struct {
	segSize   uint32
	owner, id uint64
	segments  uint32
	inc       uint32
	gen       uint64
	tail      uint64
	tailBatch uint64
	durable   uint64
	mark      uint64
	clean     bool
}

func (s *super) put(b []byte) {
	b = b[:superSize]
	clear(b)
	copy(b, superMagic[:])
	le.PutUint32(b[8:], version)
	le.PutUint32(b[12:], s.segSize)
	le.PutUint64(b[16:], s.owner)
	le.PutUint64(b[24:], s.id)
	le.PutUint32(b[32:], s.segments)
	le.PutUint32(b[36:], s.inc)
	le.PutUint64(b[40:], s.gen)
	le.PutUint64(b[48:], s.tail)
	le.PutUint64(b[56:], s.tailBatch)
	le.PutUint64(b[64:], s.durable)
	le.PutUint64(b[80:], s.mark)
	if s.clean {
		le.PutUint32(b[72:], flagClean)
	}
	le.PutUint32(b[superSize-4:], dataplane.CRC(b[:superSize-4]))
}

func (s *super) decode(b []byte) error {
	if len(b) < superSize || [8]byte(b[:8]) != superMagic {
		return errNotLog
	}
	b = b[:superSize]
	if le.Uint32(b[superSize-4:]) != dataplane.CRC(b[:superSize-4]) {
		return formatError("superblock checksum mismatch")
	}
	if v := le.Uint32(b[8:]); v == 0 || v > version {
		return formatError(fmt.Sprintf("format version %d, this program knows %d", v, version))
	}
	*s = super{segSize: le.Uint32(b[12:]), owner: le.Uint64(b[16:]), id: le.Uint64(b[24:]),
		segments: le.Uint32(b[32:]), inc: le.Uint32(b[36:]), gen: le.Uint64(b[40:]),
		tail: le.Uint64(b[48:]), tailBatch: le.Uint64(b[56:]), durable: le.Uint64(b[64:]),
		mark: le.Uint64(b[80:])}
	flags := le.Uint32(b[72:])
	s.clean = flags&flagClean != 0
	switch {
	case !segSizeOK(int64(s.segSize)):
		return formatError("impossible segment size")
	case s.segments < minSegments || (int64(s.segments)*int64(s.segSize))/blockSize > maxPosition:
		return formatError("impossible number of segments")
	case s.tail == 0 || s.tailBatch == 0 || s.durable+1 < s.tailBatch || flags&^flagClean != 0:
		return formatError("impossible superblock")
	}
	return nil
}

// maxPosition is what the index has room for: logs of 4 TiB.
const maxPosition = 1<<(wide-minTag) - firstBlock

func segSizeOK(n int64) bool { return n >= MinSegment && n <= MaxSegment && n&(n-1) == 0 }
