// Package control is the language of the control plane: the messages that clients, chunk servers,
// supervisors and the command line exchange with the metadata servers, their encoding, a client
// that follows the leader, and the server's side of a connection.
//
// A control message is a data-plane frame (package dataplane) with an opcode of 64 or more, whose
// payload is one encoded struct of this package. Encoding, version-tolerant at each level:
//
//	bool, uint8..uint64, int64    1 to 8 bytes, little endian
//	string, []byte                u32 length, bytes
//	[]T                           u32 count, elements
//	[N]byte                       N bytes
//	struct                        u32 length in bytes of what follows, fields in order
//
// A decoder skips what it doesn't know behind the known fields of a struct, and leaves fields that
// are missing at the end at zero. So fields are appended, never moved or removed.
//
// A reply whose status isn't OK carries an ErrorReply.
package control
