package nbd

import (
	"encoding/binary"
	"errors"

	"pstorage/dataplane"
)

// The protocol (NetworkBlockDevice/nbd, doc/proto.md). All integers are big endian.
//
//	server's greeting          option                     option reply
//	 0 8 "NBDMAGIC"             0 8 "IHAVEOPT"             0 8 0x3e889045565a9
//	 8 8 "IHAVEOPT"             8 4 option                 8 4 option
//	16 2 handshake flags       12 4 length                12 4 reply type
//	client's answer            16   data                  16 4 length
//	 0 4 client flags                                     20   data
//
//	request                    simple reply               structured reply chunk
//	 0 4 0x25609513             0 4 0x67446698             0 4 0x668e33ef
//	 4 2 command flags          4 4 error                  4 2 flags (1: the last one)
//	 6 2 command                8 8 cookie                 6 2 type
//	 8 8 cookie                16   data of a READ         8 8 cookie
//	16 8 offset                                           16 4 length
//	24 4 length                                           20   payload
//	28   data of a WRITE
const (
	magicGreeting   = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicReply      = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	requestSize    = 28
	optionSize     = 16
	simpleSize     = 16
	structuredSize = 20
)

// Handshake flags, of both sides.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// Options.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMeta        = 9
	optSetMeta         = 10
)

// Types of option replies.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4
	repErr         = 1 << 31
	repErrUnsup    = repErr + 1
	repErrPolicy   = repErr + 2
	repErrInvalid  = repErr + 3
	repErrUnknown  = repErr + 6
	repErrTooBig   = repErr + 9
)

// Pieces of information of INFO and GO.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags.
const (
	hasFlags        = 1 << 0
	readOnly        = 1 << 1
	sendFlush       = 1 << 2
	sendFUA         = 1 << 3
	sendTrim        = 1 << 5
	sendWriteZeroes = 1 << 6
	sendDF          = 1 << 7
	canMultiConn    = 1 << 8
	sendResize      = 1 << 9
	sendCache       = 1 << 10
	sendFastZero    = 1 << 11
)

// Commands.
const (
	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7
	cmdResize      = 8 // extension: the new size is in the offset, the length is 0
)

// Command flags.
const (
	cmdFlagFUA      = 1 << 0
	cmdFlagNoHole   = 1 << 1
	cmdFlagDF       = 1 << 2
	cmdFlagReqOne   = 1 << 3
	cmdFlagFastZero = 1 << 4
)

// Structured replies.
const (
	chunkDone        = 1 // flag
	chunkNone        = 0
	chunkOffsetData  = 1
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1
)

// base:allocation, the one metadata context there is.
const (
	metaAllocation   = "base:allocation"
	metaAllocationID = 1
	stateHole        = 1 << 0
	stateZero        = 1 << 1
)

// Errors on the wire.
const (
	errPerm     = 1
	errIO       = 5
	errInvalid  = 22
	errNoSpace  = 28
	errOverflow = 75
	errNotSup   = 95
	errShutdown = 108
)

// errorOf is what a client is told of err.
func errorOf(err error) uint32 {
	if err == nil {
		return 0
	}
	switch dataplane.KindOf(err) {
	case dataplane.Denied:
		return errPerm
	case dataplane.NoSpace:
		return errNoSpace
	case dataplane.Invalid, dataplane.OutOfBounds:
		return errInvalid
	case dataplane.TooLarge:
		return errOverflow
	case dataplane.NotSupported:
		return errNotSup
	case dataplane.Closed, dataplane.Fenced:
		return errShutdown
	}
	return errIO
}

// Bounds.
const (
	// maxPayload is the longest READ or WRITE: what clients that don't ask assume.
	maxPayload = 32 << 20
	// bufferSize is the largest buffer of the pool. It is advertised as the largest payload, so
	// clients that ask (qemu does) cut larger ones.
	bufferSize = 1 << 20
	maxOption  = 16 << 10 // bytes of an option's data
	maxName    = 4096
	maxOptions = 256 // in one handshake
)

// request is the header of a command.
type request struct {
	flags, cmd uint16
	cookie     uint64
	offset     uint64
	length     uint32
}

var errMagic = errors.New("a request doesn't begin with its magic number")

// parseRequest decodes the requestSize bytes of p.
func parseRequest(p []byte) (request, error) {
	if binary.BigEndian.Uint32(p) != magicRequest {
		return request{}, errMagic
	}
	return request{
		flags:  binary.BigEndian.Uint16(p[4:]),
		cmd:    binary.BigEndian.Uint16(p[6:]),
		cookie: binary.BigEndian.Uint64(p[8:]),
		offset: binary.BigEndian.Uint64(p[16:]),
		length: binary.BigEndian.Uint32(p[24:]),
	}, nil
}

func putSimple(p []byte, errno uint32, cookie uint64) {
	binary.BigEndian.PutUint32(p, magicSimple)
	binary.BigEndian.PutUint32(p[4:], errno)
	binary.BigEndian.PutUint64(p[8:], cookie)
}

func putStructured(p []byte, flags, typ uint16, cookie uint64, length uint32) {
	binary.BigEndian.PutUint32(p, magicStructured)
	binary.BigEndian.PutUint16(p[4:], flags)
	binary.BigEndian.PutUint16(p[6:], typ)
	binary.BigEndian.PutUint64(p[8:], cookie)
	binary.BigEndian.PutUint32(p[16:], length)
}

// appendReply appends an option's reply.
func appendReply(out []byte, option, typ uint32, data []byte) []byte {
	out = binary.BigEndian.AppendUint64(out, magicReply)
	out = binary.BigEndian.AppendUint32(out, option)
	out = binary.BigEndian.AppendUint32(out, typ)
	out = binary.BigEndian.AppendUint32(out, uint32(len(data)))
	return append(out, data...)
}
