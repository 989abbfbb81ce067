// Package dataplane is the vocabulary of pstorage: identifiers, epochs, errors, limits, and the
// wire frame that every connection speaks. It holds nouns and codecs, no logic, and imports
// nothing of ours.
//
// # The wire
//
// All integers are little endian. A frame is a 64-byte header, then, if FlagData is set, one
// CRC32C (Castagnoli, 4 bytes) for each 4 KiB block that the payload touches, then the payload:
//
//	+-----------+--------------------------+----------------------+
//	| header 64 | CRC32C x Blocks(off,len) | payload (len bytes)  |
//	+-----------+--------------------------+----------------------+
//
// Blocks are counted by chunk offset: a payload of 4096 bytes at offset 512 touches two blocks and
// carries two CRCs, each over its own fragment. Control frames (opcode >= OpControlBase) always
// have offset 0, so their CRCs cover consecutive 4 KiB pieces of the payload.
//
// Header:
//
//	offset size field
//	     0    2 magic 0x5053
//	     2    1 protocol version (1)
//	     3    1 opcode
//	     4    2 flags
//	     6    2 status: a Kind; 0 in requests
//	     8    8 request id: chosen by the asker, echoed in the reply
//	    16    8 chunk id (control frames: 0)
//	    24    4 epoch
//	    28    4 byte offset in the chunk
//	    32    4 length: of the payload if FlagData, otherwise of the range asked for
//	    36    4 aux: opcode-specific
//	    40    8 seq: opcode-specific sequence number
//	    48    8 authentication tag: zero unless negotiated
//	    56    4 reserved, zero
//	    60    4 CRC32C of bytes 0-59
//
// A header is trusted only when magic, version, CRC, reserved bytes and the bounds of Validate
// hold; otherwise the connection is closed with a logged reason. Payload CRCs are computed once at
// the writer, stored, and checked again at each hop that keeps the data and at the reader.
package dataplane
