package dataplane

import (
	"encoding/binary"
	"fmt"
)

// The frame header's fixed values.
const (
	HeaderSize      = 64
	Magic           = 0x5053
	ProtocolVersion = 1
)

// Opcode says what a frame asks for. A reply has the opcode of its request and FlagReply.
type Opcode uint8

// The data-path opcodes, spoken between clients and chunk servers and among chunk servers.
const (
	// OpRead (client or CS -> CS): bytes [Offset, Offset+Length) of the chunk at Epoch. The reply
	// carries the data and CRCs. Seq from a client: the highest seq that was acknowledged to it in
	// Epoch (write-ack=disk), 0: none. With FlagRecovery (CS only) a sealed chunk answers too. If
	// then Aux is ReadSalvage, and the range one block, any replica answers with what it has,
	// whatever its state and age: the reply has its Epoch and last Seq, and Aux 1 if the block's 64
	// KiB were touched above its commit mark or out of order, or are of a copy that wasn't finished.
	OpRead Opcode = 1
	// OpWrite (client -> head): FlagData. Seq is the token of the client's lease on the file, 0:
	// none. The reply carries the seq and its epoch; status OK means durable on every member, like
	// all before it (in their memory with write-ack=memory; then Seq is 0).
	OpWrite Opcode = 2
	// OpZero (client -> head): [Offset, Offset+Length) reads as zeros from now on. Block-aligned.
	// Seq as in OpWrite.
	OpZero Opcode = 3
	// OpFlush (client -> head): reply when all earlier acknowledged writes of the chunk are durable.
	// With FlagRecovery (head -> member): reply when everything up to Seq is durable there; Aux:
	// the term, and by how much the commit mark is behind Seq. With write-ack=memory the Aux of
	// every answer to a client is the life of the chunk: a different one means that unflushed
	// writes may be lost.
	OpFlush Opcode = 4
	// OpPing (any -> any): empty reply.
	OpPing Opcode = 5
	// OpStat (any -> CS): the reply's payload is a JSON document of counters.
	OpStat Opcode = 6

	// OpReplicate (head -> member, or member -> next in the chain): the write Seq of the chunk at
	// Epoch. Aux: low 16 bits Seq minus the head's commit mark, high 16 bits the term of the
	// OpActivate that the head writes under. FlagData, or FlagZero without data. With FlagChain the
	// receiver forwards to the next member and answers when both are durable.
	// The reply carries Seq and status: "durable in my log".
	OpReplicate Opcode = 16
	// OpCommit (head -> member): everything up to Seq is committed. No reply. From a client, to other
	// members than the head: Seq was acknowledged to it in Epoch (write-ack=disk).
	OpCommit Opcode = 17
	// OpSeal (coordinator -> member): stop accepting in every epoch <= Epoch. Request: Aux is how
	// many more bytes of reply payload are welcome. Reply: Epoch held, Seq = last seq appended,
	// Aux = Seq minus commit mark, payload = extents (16 bytes each: seq u64, offset u32, length
	// u32) of the writes above the commit mark, ascending by seq; FlagRecovery: it was the head, and
	// a change of the members that it asked for may yet be committed. Status UnknownChunk: has none.
	// With FlagRecovery (head -> a server that isn't a member and is to get a copy): it drops what
	// it holds of the chunk, if that is older than Epoch. But if Aux isn't 0 and the receiver holds
	// the chunk at an epoch >= Aux with a last seq >= Seq, it keeps that, and answers as above.
	OpSeal Opcode = 18
	// OpPatch (coordinator -> sealed member): data of [Offset, +len), copied from the member with
	// the longest history; outside the order of seqs. The reply means durable, but for a fresh copy:
	// there a patch without data (Length 0) makes all patches before it durable.
	OpPatch Opcode = 19
	// OpActivate (coordinator -> member): serve the chunk at Epoch with Seq as last and committed
	// seq; payload = the encoded ChunkConfig, and behind it with FlagRecovery the head's dirty map,
	// for a member that was copied to. Aux: the low 16 bits are the term, which is random: a write
	// that was on its way since before the activation doesn't carry it; the high ones the life of a
	// chunk with write-ack=memory. The reply means durable. Without payload and flags (head -> the
	// server that a chunk is being moved to): the copy is complete up to Seq of Epoch, and must
	// outlive the process; it isn't served yet. Aux has the life, or 0, without a term.
	OpActivate Opcode = 20
	// OpDigest (head -> member): Epoch, Seq and Aux (the term of the activation) say at which state.
	// The reply's payload is 1024 checksums of 4 bytes, one per 64 KiB of the chunk: of the
	// checksums of its blocks; 0: not known. Status NotReady: the chunk isn't at rest at that Seq.
	OpDigest Opcode = 22

	// OpControlBase and above: control messages, see package control.
	OpControlBase Opcode = 64
)

// Flags of a frame.
const (
	FlagReply    uint16 = 1 << 0 // answers the request with the same id
	FlagData     uint16 = 1 << 1 // CRCs and Length bytes of payload follow the header
	FlagChain    uint16 = 1 << 2 // OpReplicate: forward to the next member
	FlagFUA      uint16 = 1 << 3 // durable before the reply, whatever the chunk's write-ack mode
	FlagRecovery uint16 = 1 << 4 // OpRead: from a sealed member, for settling and copying
	FlagZero     uint16 = 1 << 5 // OpReplicate: the range is zeroed, no payload
	FlagPush     uint16 = 1 << 6 // control: not asked for, no reply expected
	flagsKnown   uint16 = 1<<7 - 1
)

// ReadSalvage as the Aux of an OpRead with FlagRecovery asks for what there is.
const ReadSalvage uint32 = 1

// Header is a decoded frame header. See the package comment for the byte table.
type Header struct {
	Op     Opcode
	Flags  uint16
	Status Kind
	ReqID  uint64
	Chunk  ChunkID
	Epoch  Epoch
	Offset uint32 // bytes in the chunk
	Length uint32 // bytes
	Aux    uint32
	Seq    Seq
	Tag    uint64 // authentication tag; zero unless negotiated
}

// Reply returns the header of a reply to h without payload.
func (h *Header) Reply(status Kind) Header {
	return Header{Op: h.Op, Flags: FlagReply, Status: status, ReqID: h.ReqID, Chunk: h.Chunk,
		Epoch: h.Epoch, Offset: h.Offset}
}

// CRCBytes returns how many bytes of CRCs follow the header.
func (h *Header) CRCBytes() int {
	if h.Flags&FlagData == 0 {
		return 0
	}
	return 4 * Blocks(h.Offset, h.Length)
}

// DataBytes returns how many bytes of payload follow the CRCs.
func (h *Header) DataBytes() int {
	if h.Flags&FlagData == 0 {
		return 0
	}
	return int(h.Length)
}

// Put encodes h to the first HeaderSize bytes of b.
func (h *Header) Put(b []byte) {
	le := binary.LittleEndian
	_ = b[HeaderSize-1]
	le.PutUint16(b[0:], Magic)
	b[2] = ProtocolVersion
	b[3] = byte(h.Op)
	le.PutUint16(b[4:], h.Flags)
	le.PutUint16(b[6:], uint16(h.Status))
	le.PutUint64(b[8:], h.ReqID)
	le.PutUint64(b[16:], uint64(h.Chunk))
	le.PutUint32(b[24:], uint32(h.Epoch))
	le.PutUint32(b[28:], h.Offset)
	le.PutUint32(b[32:], h.Length)
	le.PutUint32(b[36:], h.Aux)
	le.PutUint64(b[40:], uint64(h.Seq))
	le.PutUint64(b[48:], h.Tag)
	le.PutUint32(b[56:], 0)
	le.PutUint32(b[60:], CRC(b[:60]))
}

// PutTag puts an authentication tag into an encoded header.
func PutTag(b []byte, tag uint64) {
	binary.LittleEndian.PutUint64(b[48:], tag)
	binary.LittleEndian.PutUint32(b[60:], CRC(b[:60]))
}

// FrameError says why a frame was refused. The connection must be closed.
type FrameError struct{ Reason string }

func (e *FrameError) Error() string { return "bad frame: " + e.Reason }

var (
	errShort    = &FrameError{"header cut short"}
	errMagic    = &FrameError{"wrong magic"}
	errVersion  = &FrameError{"unknown protocol version"}
	errHeadCRC  = &FrameError{"header checksum mismatch"}
	errReserved = &FrameError{"reserved bytes not zero"}
	errFlags    = &FrameError{"unknown flags"}
	errStatus   = &FrameError{"unknown status"}
	errBounds   = &FrameError{"range outside the chunk"}
	errPart     = &FrameError{"payload larger than a part"}
	errControl  = &FrameError{"control payload too large"}
)

// Decode decodes and validates the header in the first HeaderSize bytes of b. It allocates
// nothing. Any error is a *FrameError.
func (h *Header) Decode(b []byte) error {
	if len(b) < HeaderSize {
		return errShort
	}
	le := binary.LittleEndian
	switch {
	case le.Uint16(b[0:]) != Magic:
		return errMagic
	case b[2] != ProtocolVersion:
		return errVersion
	case le.Uint32(b[60:]) != CRC(b[:60]):
		return errHeadCRC
	case le.Uint32(b[56:]) != 0:
		return errReserved
	}
	h.Op = Opcode(b[3])
	h.Flags = le.Uint16(b[4:])
	h.Status = Kind(le.Uint16(b[6:]))
	h.ReqID = le.Uint64(b[8:])
	h.Chunk = ChunkID(le.Uint64(b[16:]))
	h.Epoch = Epoch(le.Uint32(b[24:]))
	h.Offset = le.Uint32(b[28:])
	h.Length = le.Uint32(b[32:])
	h.Aux = le.Uint32(b[36:])
	h.Seq = Seq(le.Uint64(b[40:]))
	h.Tag = le.Uint64(b[48:])
	return h.validate()
}

func (h *Header) validate() error {
	switch {
	case h.Flags&^flagsKnown != 0:
		return errFlags
	case !h.Status.Valid():
		return errStatus
	case h.Op >= OpControlBase:
		if h.Offset != 0 || h.Length > MaxControlPayload {
			return errControl
		}
	case h.Offset > ChunkSize || h.Length > ChunkSize-h.Offset:
		return errBounds
	case h.Flags&FlagData != 0 && h.Length > PartSize:
		return errPart
	}
	return nil
}

func (h *Header) String() string {
	return fmt.Sprintf("op %d flags %#x status %v req %d chunk %v epoch %d [%d +%d] seq %d aux %d",
		h.Op, h.Flags, h.Status, h.ReqID, h.Chunk, h.Epoch, h.Offset, h.Length, h.Seq, h.Aux)
}
