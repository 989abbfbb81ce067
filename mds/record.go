package mds

import (
	"unsafe"

	"pstorage/dataplane"
)

// RecordSize is the size of a chunk record in bytes.
const RecordSize = 128

// Record is everything the metadata servers keep of one chunk. It has no pointers and no implicit
// padding, so an array of records is invisible to the garbage collector and is written to a
// snapshot as it lies in memory.
//
//	offset size field
//	     0    8 chunk id: generation<<40 | slot
//	     8    8 file id; in a free record: slot+1 of the next free record, 0 at the end
//	    16    4 index of the chunk in the file
//	    20    4 epoch
//	    24    1 state: 0 free, 1 used
//	    25    1 flags: 1 created, 2 placed in a finer failure domain than asked for
//	    26    1 replicas wanted
//	    27    1 minimum of replicas to write
//	    28    1 replicas present (members of the current epoch)
//	    29    1 tier
//	    30    1 failure domain asked for
//	    31    1 write-ack mode: 0 disk, 1 memory
//	    32   64 eight replica entries of 8 bytes, the first Present in use, in the chain's order:
//	            CS id u32, state u8 (1 member), chain position u8, epoch delta u16 (0 now);
//	            behind them the former members whose places are free (state 2)
//	    96    8 reserved for clones: reference count and parent, zero
//	   104    8 time of the last change, ns since 1970
//	   112   12 reserved, zero
//	   124    4 CRC32C of bytes 0-123
//
// Integers are little endian, as on every machine this is built for (a test says so).
type Record struct {
	ID        dataplane.ChunkID
	File      dataplane.FileID
	Index     uint32
	Epoch     dataplane.Epoch
	State     uint8
	Flags     uint8
	Wanted    uint8
	Minimum   uint8
	Present   uint8
	Tier      uint8
	Domain    uint8
	Ack       uint8
	Replicas  [dataplane.MaxReplicas]Replica
	Clone     uint64
	ChangedNs int64
	reserved  [12]byte
	CRC       uint32
}

// Replica is one member of a chunk.
type Replica struct {
	CS         dataplane.CSID
	State      uint8
	Position   uint8
	EpochDelta uint16
}

// States of a record and of a replica entry.
const (
	stateFree     uint8 = 0
	stateUsed     uint8 = 1
	replicaNone   uint8 = 0
	replicaValid  uint8 = 1
	replicaFormer uint8 = 2
)

// Flags of a record.
const (
	flagCreated  uint8 = 1 << 0 // a write may have been acknowledged: members without data lost it
	flagFallback uint8 = 1 << 1 // placed in a finer failure domain than its policy asks for
)

// The layout is a format: these fail to compile when it changes.
const (
	_ = -(unsafe.Sizeof(Record{}) ^ RecordSize)
	_ = -(unsafe.Sizeof(Replica{}) ^ 8)
	_ = -(unsafe.Offsetof(Record{}.File) ^ 8)
	_ = -(unsafe.Offsetof(Record{}.Index) ^ 16)
	_ = -(unsafe.Offsetof(Record{}.Epoch) ^ 20)
	_ = -(unsafe.Offsetof(Record{}.State) ^ 24)
	_ = -(unsafe.Offsetof(Record{}.Ack) ^ 31)
	_ = -(unsafe.Offsetof(Record{}.Replicas) ^ 32)
	_ = -(unsafe.Offsetof(Record{}.Clone) ^ 96)
	_ = -(unsafe.Offsetof(Record{}.ChangedNs) ^ 104)
	_ = -(unsafe.Offsetof(Record{}.reserved) ^ 112)
	_ = -(unsafe.Offsetof(Record{}.CRC) ^ 124)
)

// bytes returns the memory of the record.
func (r *Record) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(r)), RecordSize)
}

// seal computes the record's checksum. Call it after the last change.
func (r *Record) seal() { r.CRC = dataplane.CRC(r.bytes()[:RecordSize-4]) }

// intact says whether the checksum matches. A record that was never used is all zero and intact.
func (r *Record) intact() bool {
	if r.CRC == dataplane.CRC(r.bytes()[:RecordSize-4]) {
		return true
	}
	return *r == Record{}
}

// setMembers replaces the members. len(members) must be within [0, MaxReplicas].
func (r *Record) setMembers(members []dataplane.CSID) {
	assert(len(members) <= dataplane.MaxReplicas, "too many members", len(members))
	r.Replicas = [dataplane.MaxReplicas]Replica{}
	for i, cs := range members {
		r.Replicas[i] = Replica{CS: cs, State: replicaValid, Position: uint8(i)}
	}
	r.Present = uint8(len(members))
}

// members returns the replica entries in use, in the order of the chain. They are the record's
// own memory.
func (r *Record) members() []Replica { return r.Replicas[:r.Present&15] }

// has says whether cs is a member.
func (r *Record) has(cs dataplane.CSID) bool {
	for i := range r.members() {
		if r.Replicas[i].CS == cs {
			return true
		}
	}
	return false
}

// sameMembers says whether the record's members are exactly those, in that order.
func (r *Record) sameMembers(members []dataplane.CSID) bool {
	if len(members) != int(r.Present) {
		return false
	}
	for i, cs := range members {
		if r.Replicas[i].CS != cs {
			return false
		}
	}
	return true
}

// valid checks what the checksum can't: that a record which came from outside makes sense at
// the given slot.
func (r *Record) valid(slot uint64) bool {
	if *r == (Record{}) {
		return true
	}
	switch {
	case r.ID.Slot() != slot || r.ID.Generation() == 0:
		return false
	case r.State == stateFree:
		return true
	case r.State != stateUsed || r.File == 0 || r.Epoch == 0:
		return false
	case r.Present == 0 || r.Present > dataplane.MaxReplicas || r.Index >= MaxFileChunks:
		return false
	}
	for i := range r.members() {
		if r.Replicas[i].CS == 0 {
			return false
		}
	}
	return true
}
